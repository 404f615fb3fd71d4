package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
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

// mostCritical is how many critical messages are looked at: those of more jobs than a lane works on.
const mostCritical = 64

// MayStart reports whether a lane that has prepared a job may start it now: its message waits in
// the queue, which is not paused, or was drawn; and no critical job waits that is more urgent. The
// message of a job that a lane has prepared, or has made since, may wait all the same. It fails with
// Redis's own error.
func (s *Store) MayStart(ctx context.Context, job *Job) (bool, error) {
	queue, critical := Queue(job.Model, job.Priority), Queue(job.Model, PriorityCritical)
	var state *redis.StringCmd
	var paused, criticalPaused *redis.IntCmd
	var ids *redis.StringSliceCmd
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		state, paused = p.HGet(ctx, asynqMessage(queue, job.ID), "state"), p.Exists(ctx, asynqPaused(queue))
		ids, criticalPaused = p.LRange(ctx, asynqPending(critical), -mostCritical, -1), p.Exists(ctx, asynqPaused(critical))
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("read message of %s: %w", job.ID, err)
	}
	if state.Val() != "active" && (state.Val() != "pending" || paused.Val() > 0) {
		return false, nil
	}
	if job.Priority == PriorityCritical || criticalPaused.Val() > 0 || len(ids.Val()) == 0 {
		return true, nil
	}
	waits, err := s.anyWaits(ctx, ids.Val())
	return !waits, err
}

// anyWaits reports whether any of the jobs waits, and no lane has prepared it.
func (s *Store) anyWaits(ctx context.Context, ids []string) (bool, error) {
	states := make([]*redis.StringCmd, len(ids))
	_, err := s.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			states[i] = p.HGet(ctx, rediskey.Record(id), "state")
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, fmt.Errorf("read states of critical jobs: %w", err)
	}
	return slices.ContainsFunc(states, func(cmd *redis.StringCmd) bool {
		state := State(cmd.Val())
		return state == "" || state.Waiting() && state != StatePrepared // a message may come before its record
	}), nil
}
