package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// delayedFactor is the interval of asynq's forwarder, which queues delayed messages that
	// have become due, in polling intervals.
	delayedFactor = 5
	// asynqJanitorInterval is how often asynq deletes the messages of jobs that ended a
	// week ago. Its default of 8 s would be most of an idle worker's Redis commands.
	asynqJanitorInterval = 10 * time.Minute

	// drainInterval is how often Drain checks whether the queue is empty. drainTimeout
	// bounds the wait.
	drainInterval = 50 * time.Millisecond
	drainTimeout  = 10 * time.Second

	asynqLogBurst    = 5
	asynqLogInterval = 10 * time.Second
)

// Server is an asynq server that waits for messages.
type Server struct {
	*asynq.Server
	client *client
}

// NewServer returns a server that is not started, with the worker's intervals. The caller must
// call Shutdown.
func (w *Watcher) NewServer(log *slog.Logger, cfg asynq.Config) *Server {
	cfg.TaskCheckInterval = w.interval
	cfg.DelayedTaskCheckInterval = delayedFactor * w.interval
	cfg.JanitorInterval = asynqJanitorInterval
	cfg.Logger = asynqLog{log: log, sometimes: &rate.Sometimes{First: asynqLogBurst, Interval: asynqLogInterval}}
	cfg.LogLevel = asynq.WarnLevel
	c := w.newClient(cfg.Queues)
	return &Server{Server: asynq.NewServerFromRedisClient(c, cfg), client: c}
}

// Stop is that of asynq.
func (s *Server) Stop() {
	s.client.stopWaiting()
	s.Server.Stop()
}

// Shutdown is that of asynq.
func (s *Server) Shutdown() {
	s.client.stopWaiting()
	s.Server.Shutdown()
}

// Drain waits until the ready messages of a queue have been handled, for 10 s at most. What
// remains stays in the queue.
func Drain(ctx context.Context, rdb redis.UniversalClient, queue string) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	for {
		info, err := inspector.GetQueueInfo(queue)
		if err != nil || info.Pending+info.Active == 0 || loop.Sleep(ctx, drainInterval) != nil {
			return
		}
	}
}

// asynqLog translates asynq's log lines. During a Redis outage they repeat, so only some of
// them are kept.
type asynqLog struct {
	log       *slog.Logger
	sometimes *rate.Sometimes
}

func (a asynqLog) Debug(...any) {}
func (a asynqLog) Info(...any)  {}

// Warn is called for what asynq repairs by itself.
func (a asynqLog) Warn(args ...any) { a.log.Debug("queue server", "err", fmt.Sprint(args...)) }

// Error is called when Redis does not answer, or a handler has panicked. It leaves out the ends
// of rounds, which are no failures.
func (a asynqLog) Error(args ...any) {
	switch text := fmt.Sprint(args...); {
	case strings.Contains(text, errRoundOver.Error()):
	case strings.HasPrefix(text, "recovering from panic"):
		a.log.Error("handler panicked", "err", text)
	default:
		text = text[max(strings.Index(text, "redis "), 0):] // after the loop of asynq and its code
		a.sometimes.Do(func() { loop.WarnRedis(a.log, errors.New(text)) })
	}
}

// Fatal is called by asynq only when its state is unrecoverable.
func (a asynqLog) Fatal(args ...any) {
	a.log.Error("queue server failed", "err", fmt.Sprint(args...))
	os.Exit(1) //nolint:forbidigo // asynq requires it
}
