package loop

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"
)

const (
	// delayedFactor is the interval of asynq's forwarder in polling intervals.
	delayedFactor = 5
	// asynqJanitorInterval is how often asynq deletes the messages of jobs that ended a
	// week ago. Its default of 8 s would be most of an idle worker's Redis commands.
	asynqJanitorInterval = 10 * time.Minute

	// RedisRetry is when a message is delivered again after an internal error, which cost
	// nothing.
	RedisRetry = 5 * time.Second

	// drainInterval is how often Drain checks whether the queue is empty. drainTimeout
	// bounds the wait.
	drainInterval = 50 * time.Millisecond
	drainTimeout  = 10 * time.Second

	asynqLogBurst    = 5
	asynqLogInterval = 10 * time.Second
)

// AsynqConfig returns what the configurations of all asynq servers of a worker share.
// interval is the polling interval of an idle server; delayed messages are polled at five
// times this interval.
func AsynqConfig(log *slog.Logger, interval time.Duration) asynq.Config {
	return asynq.Config{
		TaskCheckInterval:        interval, // a shutdown waits for this interval, possibly more than once
		DelayedTaskCheckInterval: delayedFactor * interval,
		JanitorInterval:          asynqJanitorInterval,
		Logger:                   asynqLog{log: log, sometimes: &rate.Sometimes{First: asynqLogBurst, Interval: asynqLogInterval}},
		LogLevel:                 asynq.WarnLevel,
	}
}

// Drain waits until the ready messages of a queue have been handled, for 10 s at most. What
// remains stays in the queue.
func Drain(ctx context.Context, rdb redis.UniversalClient, queue string) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	for {
		info, err := inspector.GetQueueInfo(queue)
		if err != nil || info.Pending+info.Active == 0 || Sleep(ctx, drainInterval) != nil {
			return
		}
	}
}

// asynqLog sends asynq's log lines to slog. During a Redis outage they repeat, so only
// some of them are kept.
type asynqLog struct {
	log       *slog.Logger
	sometimes *rate.Sometimes
}

func (a asynqLog) line(level slog.Level, args []any) {
	a.sometimes.Do(func() { a.log.Log(context.Background(), level, "asynq", "err", fmt.Sprint(args...)) })
}

func (a asynqLog) Debug(...any)      {}
func (a asynqLog) Info(...any)       {}
func (a asynqLog) Warn(args ...any)  { a.line(slog.LevelInfo, args) }
func (a asynqLog) Error(args ...any) { a.line(slog.LevelError, args) }

// Fatal is called by asynq only when its state is unrecoverable.
func (a asynqLog) Fatal(args ...any) {
	a.line(slog.LevelError, args)
	os.Exit(1) //nolint:forbidigo // asynq requires it
}
