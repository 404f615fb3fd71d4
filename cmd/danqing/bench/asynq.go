package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"

	queue "github.com/danqing-queue/danqing/jobs/embedded"
)

// plainAsynq is asynq with a handler that creates a task, queries it every two seconds, and
// stores the picture. Each slot has a worker.
type plainAsynq struct {
	caller *httpCaller
	queue  *queue.Queue
}

// newPlainAsynq fills the queues.
func newPlainAsynq(at *stage, s *service) (*plainAsynq, error) {
	before := func(int, time.Duration, time.Duration) time.Duration { return asynqInterval }
	p := &plainAsynq{caller: newHTTPCaller(caller{name: clientAsynq, before: before}, s, at.dir), queue: queue.Open()}
	client := asynq.NewClientFromRedisClient(p.queue.Client())
	for model, source := range at.sources() {
		for _, lane := range at.lanes {
			if lane.model != model {
				continue
			}
			for i := range at.tasks(lane) {
				task := asynq.NewTask("picture", []byte(promptOf(source.next())))
				if _, err := client.Enqueue(task, asynq.Queue(asynqQueue(at.accounts[i%len(at.accounts)], model))); err != nil {
					return nil, errors.Join(fmt.Errorf("enqueue: %w", err), p.queue.Close())
				}
			}
		}
	}
	return p, nil
}

func asynqQueue(account, model string) string { return account + ":" + model }

// run works until the context ends.
func (p *plainAsynq) run(ctx context.Context, at *stage) error {
	var servers []*asynq.Server
	defer func() {
		for _, server := range servers {
			server.Stop() // all of them: a shutdown waits for a second
		}
		for _, server := range servers {
			server.Shutdown()
		}
	}()
	for _, account := range at.accounts {
		for _, lane := range at.lanes {
			server := asynq.NewServerFromRedisClient(p.queue.Client(), asynq.Config{
				Concurrency: lane.slots, Queues: map[string]int{asynqQueue(account, lane.model): 1}, Logger: silent{}, LogLevel: asynq.FatalLevel,
				ShutdownTimeout: time.Second,
			})
			err := server.Start(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
				return p.caller.one(ctx, account, lane.model, takesOf(string(task.Payload())))
			}))
			if err != nil {
				return fmt.Errorf("start asynq: %w", err)
			}
			servers = append(servers, server)
		}
	}
	<-ctx.Done()
	return nil
}

func (p *plainAsynq) close() error {
	p.caller.close()
	return p.queue.Close()
}

// silent discards asynq's log.
type silent struct{}

func (silent) Debug(...any) {}
func (silent) Info(...any)  {}
func (silent) Warn(...any)  {}
func (silent) Error(...any) {}
func (silent) Fatal(...any) {}
