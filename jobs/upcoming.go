package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// Upcoming returns, by priority, the IDs of the jobs whose messages a lane of the model will
// draw next, at most n of each priority, in that order. It leaves out what is paused in the
// web UI. It fails with Redis's own error.
func (s *Store) Upcoming(ctx context.Context, model string, n int) (map[string][]string, error) {
	pending, paused := map[string]*redis.StringSliceCmd{}, map[string]*redis.IntCmd{}
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, priority := range priorities() {
			queue := Queue(model, priority)
			pending[priority], paused[priority] = p.LRange(ctx, asynqPending(queue), int64(-n), -1), p.Exists(ctx, asynqPaused(queue))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read queues of %s: %w", model, err)
	}
	upcoming := map[string][]string{}
	for _, priority := range priorities() {
		if ids := pending[priority].Val(); len(ids) > 0 && paused[priority].Val() == 0 {
			slices.Reverse(ids) // messages are taken from the right end
			upcoming[priority] = ids
		}
	}
	return upcoming, nil
}

// MayStart reports whether a lane that has prepared a job may start it now: its message waits in
// the queue, which is not paused, or was drawn; and no critical job waits that is more urgent.
// It fails with Redis's own error.
func (s *Store) MayStart(ctx context.Context, job *Job) (bool, error) {
	queue, critical := Queue(job.Model, job.Priority), Queue(job.Model, PriorityCritical)
	var state *redis.StringCmd
	var urgent, paused, urgentPaused *redis.IntCmd
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		state, paused = p.HGet(ctx, asynqMessage(queue, job.ID), "state"), p.Exists(ctx, asynqPaused(queue))
		urgent, urgentPaused = p.LLen(ctx, asynqPending(critical)), p.Exists(ctx, asynqPaused(critical))
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("read message of %s: %w", job.ID, err)
	}
	waits := state.Val() == "active" || state.Val() == "pending" && paused.Val() == 0
	return waits && (job.Priority == PriorityCritical || urgent.Val() == 0 || urgentPaused.Val() > 0), nil
}
