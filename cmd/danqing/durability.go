package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/redishealth"
)

// redisPatience bounds a question about Redis that nothing depends on.
const redisPatience = 5 * time.Second

// sayDurability tells the log what puts the jobs in a Redis at risk.
func sayDurability(ctx context.Context, rdb redis.UniversalClient, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	d, err := redishealth.Probe(ctx, rdb)
	if err != nil {
		log.Warn("redis durability unknown", "err", err)
		return
	}
	for _, f := range d.Findings() {
		level := slog.LevelWarn
		if f.Severity == redishealth.SeverityNote {
			level = slog.LevelInfo
		}
		log.Log(ctx, level, "redis examined", "severity", string(f.Severity), "finding", f.Text, "hint", f.Remedy)
	}
}
