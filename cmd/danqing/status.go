package main

import (
	"context"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// modelCount counts the lines of a model: those that are open, and those that were settled in
// this run.
type modelCount struct{ left, settled int }

const (
	// activeInterval is how often the jobs that are being painted are read, for people.
	activeInterval = time.Second
	// plannedWeight is how many settled jobs the plan counts for, in how long a job takes.
	plannedWeight = 3
)

// activity is what is being painted, as it was read last.
type activity struct {
	at   time.Time
	jobs []*jobs.Job
}

// status returns how far the run is. For a bar it reads what is being painted.
func (r *batchRun) status(ctx context.Context) status {
	now := time.Now()
	s := status{counts: r.counts(), elapsed: now.Sub(r.progress.startAt), atMost: r.plan.whole, simulated: r.plan.simulated}
	s.left = r.timeLeft(s.elapsed)
	if !r.progress.live {
		return s
	}
	if now.Sub(r.active.at) >= activeInterval {
		found, _, err := jobs.NewClient(r.runtime.redis).List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateSubmitting, jobs.StateGenerating}})
		if err == nil { // else the last ones are shown for a while longer
			r.active = activity{now, found}
		}
	}
	for _, rec := range r.active.jobs {
		if l := r.byID[rec.ID]; l == nil || rec.Request == nil || !r.isOpen(l) {
			continue
		}
		s.active = append(s.active, activeJob{id: rec.ID, model: rec.Model, prompt: rec.Request.Prompt, took: max(now.Sub(rec.SubmittedAt), 0)})
	}
	return s
}

// timeLeft estimates how long the open lines take: those of the slowest model. Each of them
// takes as long as the settled ones did on average, and in the beginning, as the plan says.
func (r *batchRun) timeLeft(elapsed time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	longest := time.Duration(0)
	for model, n := range r.models {
		if n.left == 0 {
			continue
		}
		sum, weight := time.Duration(0), 0
		if planned := r.planned(model); planned > 0 {
			sum, weight = plannedWeight*planned, plannedWeight
		}
		if n.settled > 0 {
			sum, weight = sum+elapsed, weight+n.settled
		}
		if weight == 0 {
			return 0
		}
		longest = max(longest, time.Duration(n.left)*sum/time.Duration(weight))
	}
	return longest
}

// planned returns how long a job of a model takes by the plan, 0 if that is not known.
func (r *batchRun) planned(model string) time.Duration {
	for _, m := range r.plan.models {
		if m.model != model || m.pace.slots == 0 {
			continue
		}
		took := m.pace.taskTime
		if r.plan.simulated {
			took = (minSimulatedTask + maxSimulatedTask) / 2
		}
		return took / time.Duration(m.pace.slots)
	}
	return 0
}
