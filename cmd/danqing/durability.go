package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// redisPatience bounds a question about Redis that nothing depends on.
const redisPatience = 5 * time.Second

// sayDurability tells the log what puts the jobs in a Redis at risk.
func sayDurability(ctx context.Context, client *jobs.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	d, err := client.Durability(ctx)
	if err != nil {
		log.Warn("redis durability unknown", "err", err)
		return
	}
	for _, f := range d.Findings() {
		level := slog.LevelWarn
		if f.Severity == jobs.SeverityNote {
			level = slog.LevelInfo
		}
		log.Log(ctx, level, "redis examined", "severity", string(f.Severity), "finding", f.Text, "hint", f.Remedy)
	}
}
