package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// redisCheckTimeout limits checks of Redis on which nothing depends.
const redisCheckTimeout = 5 * time.Second

// logRedisHealth logs the settings of Redis that put jobs at risk.
func logRedisHealth(ctx context.Context, client *jobs.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, redisCheckTimeout)
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
		log.Log(ctx, level, "redis health checked", "severity", string(f.Severity), "finding", f.Text, "hint", f.Remedy)
	}
}
