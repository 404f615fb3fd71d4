package dashboard

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	// stateLifetime is how long what was read is shown: all clients share it, so that Redis
	// is read once in that time, however many look.
	stateLifetime = time.Second
	// stateTimeout limits a read of Redis and of the bucket.
	stateTimeout = 10 * time.Second
	// shownHeld, shownImages and failuresRead bound what is read and shown. A list reads 200
	// records of each state at most.
	shownHeld    = 8
	shownImages  = 8
	failuresRead = 200
	shownHours   = 12
)

// state is what the first page shows, for all who look.
type state struct {
	At       time.Time
	Counts   map[jobs.State]int64
	Lanes    []lane
	Accounts []account
	Held     []*held
	Newest   []picture
	Failures []failure
	// FailuresOf is how many of the last failures were counted.
	FailuresOf int
	Simulated  bool
}

// Sum adds the counts of states.
func (s *state) Sum(names ...jobs.State) (sum int64) {
	for _, name := range names {
		sum += s.Counts[name]
	}
	return sum
}

// MoreHeld is how many held jobs are not shown.
func (s *state) MoreHeld() int64 { return max(s.Counts[jobs.StateHeld]-int64(len(s.Held)), 0) }

// lane is a lane with what it does.
type lane struct {
	jobs.LaneStatus
	Hours   []hour
	Waiting int64 // jobs of its model that wait, for any account
}

// account is what an account spent today.
type account struct {
	Name                     string
	Spent, Reserved, Budget  int64 // millionths of a yuan; a Budget of 0 is none
	SpentShare, ReserveShare int   // percent of the budget
}

// held is a job that waits for a decision, with the tasks that may be its own.
type held struct {
	*jobs.Job
	Candidates []candidate
	Price      int64
}

// candidate is a task that may be a held job's, or is.
type candidate struct {
	Task   string
	Own    bool // it is the job's own task
	Images []jobs.Image
}

// picture is an image with its job.
type picture struct {
	*jobs.Job
	Image jobs.Image
}

// failure is why jobs failed.
type failure struct {
	Code, Message string
	Count         int
	Last          *jobs.Job
}

// stateCache has the last state that was read.
type stateCache struct {
	mu   sync.Mutex
	last *state
}

// current returns the state of at most a second ago. Callers that come at the same time wait for
// one read.
func (d *Dashboard) current(ctx context.Context) (*state, error) {
	d.state.mu.Lock()
	defer d.state.mu.Unlock()
	if d.state.last != nil && time.Since(d.state.last.At) < stateLifetime {
		return d.state.last, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer cancel()
	s := &state{At: time.Now()}
	for _, read := range []func(context.Context, *state) error{d.readCounts, d.readLanes, d.readSpending, d.readHeld, d.readEnded} {
		if err := read(ctx, s); err != nil {
			return nil, err
		}
	}
	d.state.last = s
	return s, nil
}

// forget makes the next page show what was just changed.
func (d *Dashboard) forget() {
	d.state.mu.Lock()
	defer d.state.mu.Unlock()
	d.state.last = nil
}

func (d *Dashboard) readCounts(ctx context.Context, s *state) (err error) {
	s.Counts, err = d.jobs.Counts(ctx)
	return err
}

func (d *Dashboard) readLanes(ctx context.Context, s *state) error {
	lanes, err := d.inspector.Lanes(ctx)
	if err != nil {
		return err
	}
	for _, status := range lanes {
		l := lane{LaneStatus: status, Hours: busyHours(status, s.At)}
		s.Simulated = s.Simulated || status.Simulated
		backlog, err := d.jobs.Backlog(ctx, l.Model)
		if err != nil {
			return err
		}
		for _, n := range backlog.Pending {
			l.Waiting += n
		}
		s.Lanes = append(s.Lanes, l)
	}
	return nil
}

// hour is how busy a lane was in one hour, in percent of its slots.
type hour struct {
	Start      time.Time
	Busy, Idle int
}

// busyHours returns the last hours of a lane, the oldest first, those in which it did nothing
// too.
func busyHours(lane jobs.LaneStatus, now time.Time) []hour {
	var hours []hour
	for start := now.Truncate(time.Hour).Add(-(shownHours - 1) * time.Hour); !start.After(now); start = start.Add(time.Hour) {
		h := hour{Start: start}
		possible := min(now.Sub(start), time.Hour).Seconds() * float64(lane.Concurrency)
		at := slices.IndexFunc(lane.Hours, func(h jobs.LaneHour) bool { return h.Start.Equal(start) })
		if at >= 0 && possible > 0 {
			h.Busy = min(int(math.Round(lane.Hours[at].BusySeconds*100/possible)), 100)
			h.Idle = min(int(math.Round(lane.Hours[at].IdleSeconds*100/possible)), 100-h.Busy)
		}
		hours = append(hours, h)
	}
	return hours
}

func (d *Dashboard) readSpending(ctx context.Context, s *state) error {
	var names []string
	for _, l := range s.Lanes {
		names = append(names, l.Account)
	}
	for name := range d.cfg.Budgets {
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	totals, err := d.ledger.Totals(ctx, names, s.At)
	if err != nil {
		return err
	}
	for i, total := range totals {
		a := account{Name: names[i], Spent: total.SpentMicroYuan, Reserved: total.ReservedMicroYuan, Budget: d.cfg.Budgets[names[i]]}
		if a.Budget > 0 {
			a.SpentShare = int(min(a.Spent*100/a.Budget, 100))
			a.ReserveShare = min(int(a.Reserved*100/a.Budget), 100-a.SpentShare)
		}
		s.Accounts = append(s.Accounts, a)
	}
	return nil
}

func (d *Dashboard) readHeld(ctx context.Context, s *state) error {
	list, _, err := d.jobs.List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateHeld}, Limit: shownHeld})
	for _, job := range list {
		s.Held = append(s.Held, d.heldJob(ctx, job))
	}
	return err
}

// heldJob returns a held job with the images that may be its own.
func (d *Dashboard) heldJob(ctx context.Context, job *jobs.Job) *held {
	h := &held{Job: job, Price: d.price(job)}
	if req := d.request(ctx, job); job.Request == nil && req.Model != "" {
		shown := *job
		shown.Request = &req
		h.Job = &shown
	}
	tasks := job.Candidates
	if job.TaskID != "" && !slices.Contains(tasks, job.TaskID) {
		tasks = append([]string{job.TaskID}, tasks...)
	}
	for _, task := range tasks {
		images, err := d.heldImages(ctx, task)
		if err != nil {
			d.log.Warn("images of a held job not listed", "job_id", job.ID, "task_id", task, "err", err)
		}
		h.Candidates = append(h.Candidates, candidate{Task: task, Own: task == job.TaskID, Images: images})
	}
	return h
}

// keptLifetime and keptTasks are for how long, and of how many tasks, the images that the bucket
// keeps are not listed again: each list is a request that is paid for.
const (
	keptLifetime = 30 * time.Second
	keptTasks    = 512
)

// keptImages are the images that the bucket had of a task.
type keptImages struct {
	images []jobs.Image
	at     time.Time
}

// heldImages returns the images that the bucket keeps of a task.
func (d *Dashboard) heldImages(ctx context.Context, task string) ([]jobs.Image, error) {
	if kept, ok := d.kept.Get(task); d.cfg.Store == nil || ok && time.Since(kept.at) < keptLifetime {
		return kept.images, nil
	}
	images, err := d.cfg.Store.HeldImages(ctx, task)
	if err == nil && len(images) > 0 { // those that are not there yet are expected soon
		d.kept.Add(task, keptImages{images, time.Now()})
	}
	return images, err
}

// price is what the images that a job lacks cost at most, in millionths of a yuan; 0 if that is
// not known.
func (d *Dashboard) price(job *jobs.Job) int64 {
	model, err := jobs.LookupModel(job.Model)
	if err != nil || d.cfg.Store == nil {
		return 0
	}
	return d.cfg.Store.Price(model, len(job.Missing()))
}

func (d *Dashboard) readEnded(ctx context.Context, s *state) error {
	newest, _, err := d.jobs.List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateSucceeded}, Limit: shownImages})
	for _, job := range newest {
		for _, image := range job.Images {
			if image.Key != "" && len(s.Newest) < shownImages {
				s.Newest = append(s.Newest, picture{job, image})
			}
		}
	}
	failed, _, failedErr := d.jobs.List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateFailed}, Limit: failuresRead})
	s.FailuresOf = len(failed)
	for _, job := range failed {
		at := slices.IndexFunc(s.Failures, func(f failure) bool { return f.Code == job.Code })
		if at < 0 {
			at = len(s.Failures)
			s.Failures = append(s.Failures, failure{Code: job.Code, Message: job.Message, Last: job})
		}
		s.Failures[at].Count++
	}
	slices.SortStableFunc(s.Failures, func(a, b failure) int { return b.Count - a.Count })
	return errors.Join(err, failedErr)
}
