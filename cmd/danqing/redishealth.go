package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/redishealth"
)

// redisCheckTimeout limits checks of Redis on which nothing depends.
const redisCheckTimeout = 5 * time.Second

// logRedisHealth logs the settings of Redis that put jobs at risk.
func logRedisHealth(ctx context.Context, rdb redis.UniversalClient, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, redisCheckTimeout)
	defer cancel()
	d, err := redishealth.Probe(ctx, rdb)
	if err != nil {
		log.Warn("redis durability unknown", "err", err)
		return
	}
	rights, err := redishealth.Rights(ctx, rdb)
	if err != nil {
		log.Warn("redis rights unknown", "err", err)
	}
	for _, f := range append(rights, d.Findings()...) {
		level := slog.LevelWarn
		if f.Severity == redishealth.SeverityNote {
			level = slog.LevelInfo
		}
		log.Log(ctx, level, "redis health checked", "severity", string(f.Severity), "finding", f.Text, "hint", f.Remedy)
	}
}
