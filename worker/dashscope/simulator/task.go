package simulator

import (
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Task is a snapshot of a task.
type Task struct {
	// ID is its task_id; RequestID is that of its create.
	ID, RequestID string
	// Account created it, with the key APIKeyID.
	Account, APIKeyID string
	// Request is the body of its create.
	Request dashscope.CreateRequest
	// Status is as in a query, except that a task never becomes UNKNOWN here.
	Status string
	// Code and Message are set once the task has FAILED.
	Code, Message string
	// N is the number of requested images; an absent n is 4, or 1 for Qwen-Image.
	N int
	// Seeds has one seed per image.
	Seeds []int64
	// CreatedAt is the time of its create. StartedAt and EndedAt are zero until
	// reached.
	CreatedAt, StartedAt, EndedAt time.Time
	// Images is the number of images created so far, all of them at its end.
	Images int
	// ChargedMicroYuan is the cost of its images, by model and region.
	ChargedMicroYuan int64
}

// task is a task as recorded. Its state at a time is computed from that time: nothing
// runs in the background.
type task struct {
	ID         string                  `json:"task_id"`
	RequestID  string                  `json:"request_id"`
	Account    string                  `json:"account"`
	KeyID      string                  `json:"api_key_id"`
	Request    dashscope.CreateRequest `json:"request"`
	Seed       int64                   `json:"seed"`
	CreatedAt  time.Time               `json:"created_at"`
	Duration   time.Duration           `json:"duration"`
	Outcome    Outcome                 `json:"outcome"`
	CanceledAt time.Time               `json:"canceled_at,omitzero"`

	model model // of Request.Model

	// Set by the lane's scheduling. A task that never gets a slot has no start.
	start, end time.Time
	timedOut   bool
}

// n returns the number of requested images. An absent n means the maximum: 4, or 1 for
// Qwen-Image (API references).
func (t *task) n() int {
	if t.Request.Parameters.N == nil {
		return t.model.defaultImages()
	}
	return *t.Request.Parameters.N
}

// status returns the task's state at a time.
func (t *task) status(now time.Time) string {
	switch {
	case !t.CanceledAt.IsZero():
		return dashscope.StatusCanceled
	case !now.Before(t.end):
		if t.failure().Code != "" {
			return dashscope.StatusFailed
		}
		return dashscope.StatusSucceeded
	case t.started(now):
		return dashscope.StatusRunning
	default:
		return dashscope.StatusPending
	}
}

func (t *task) started(now time.Time) bool {
	return !t.start.IsZero() && !now.Before(t.start)
}

// failure returns why the whole task fails, empty if it does not.
func (t *task) failure() Failure {
	switch {
	case t.timedOut:
		return Failure{Code: "InternalError.Timeout", Message: "An internal timeout error has occurred during execution, please try again later or contact service support."}
	case t.Outcome.Code != "":
		return Failure{Code: t.Outcome.Code, Message: t.Outcome.Message}
	case t.goodImages() == 0:
		return t.Outcome.Images[0]
	default:
		return Failure{}
	}
}

// goodImages counts the images that succeed by the task's outcome.
func (t *task) goodImages() int {
	good := t.n()
	for i := range t.n() {
		if t.Outcome.Images[i].Code != "" {
			good--
		}
	}
	return good
}

// images counts the images that exist at a time.
func (t *task) images(now time.Time) int {
	if t.status(now) != dashscope.StatusSucceeded {
		return 0
	}
	return t.goodImages()
}

// hasImage reports whether the image with this index from 0 exists.
func (t *task) hasImage(index int, now time.Time) bool {
	return t.status(now) == dashscope.StatusSucceeded && index >= 0 && index < t.n() && t.Outcome.Images[index].Code == ""
}

// snapshot returns the exported form of the task.
func (t *task) snapshot(now time.Time) Task {
	images := t.images(now)
	out := Task{
		ID: t.ID, RequestID: t.RequestID, Account: t.Account, APIKeyID: t.KeyID,
		Request: t.Request, Status: t.status(now), N: t.n(), CreatedAt: t.CreatedAt,
		Images: images, ChargedMicroYuan: t.charged(images),
	}
	for i := range t.n() {
		out.Seeds = append(out.Seeds, t.Seed+int64(i))
	}
	if t.started(now) {
		out.StartedAt = t.start
	}
	if !now.Before(t.end) {
		out.EndedAt = t.end
	}
	if out.Status == dashscope.StatusFailed {
		f := t.failure()
		out.Code, out.Message = f.Code, f.Message
	}
	return out
}

// laneKey is the unit of the service's limits.
type laneKey struct {
	account, model string
}

// lane is the queue of one account and model.
type lane struct {
	tasks []*task
	free  []time.Time // when each slot is free again
}

// add queues a task. Tasks must be added in the order of their creation.
func (l *lane) add(t *task, concurrency int) {
	if l.free == nil {
		l.free = make([]time.Time, concurrency)
	}
	l.tasks = append(l.tasks, t)
	l.place(t)
}

// place computes when the task starts and ends: it takes the slot that is free first.
// Three hours after its creation it fails, started or not.
func (l *lane) place(t *task) {
	slot := 0
	for i, at := range l.free {
		if at.Before(l.free[slot]) {
			slot = i
		}
	}
	t.start = t.CreatedAt.Add(scheduleDelay)
	if l.free[slot].After(t.start) {
		t.start = l.free[slot]
	}
	t.end = t.start.Add(t.Duration)
	deadline := t.CreatedAt.Add(taskTimeout)
	t.timedOut = t.end.After(deadline)
	if t.timedOut {
		t.end = deadline
	}
	if !t.start.Before(deadline) {
		t.start = time.Time{}
		return
	}
	l.free[slot] = t.end
}

// cancel removes a PENDING task and lets those behind it move up. The tasks before it
// keep their times: they are placed by the same rule again.
func (l *lane) cancel(t *task, at time.Time) {
	t.CanceledAt = at
	clear(l.free)
	for _, other := range l.tasks {
		if other.CanceledAt.IsZero() {
			l.place(other)
		}
	}
	t.start, t.end, t.timedOut = time.Time{}, at, false
}
