package lane

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

const (
	// aheadInterval is how often a lane looks for a job to prepare, and whether the one that
	// it has prepared is still the next.
	aheadInterval = time.Second
	// aheadLifetime is how long a prepared job waits at most before it is prepared anew.
	// The clock margin of an intent of unknown age is longer.
	aheadLifetime = 5 * time.Minute
	// aheadDepth is how many jobs of a queue are looked at: other lanes may have prepared
	// the first ones.
	aheadDepth = 16
)

var (
	// errSessionOver is the cause of a session's end: a pause, a stop, or the loss of the lease.
	errSessionOver = errors.New("the session of the lane is over")
	// errNotNext means that a prepared job is not the next any more.
	errNotNext = errors.New("the job is not the next any more")
)

// ahead is the preparation of a job before a slot is free.
type ahead struct {
	session context.Context //nolint:containedctx // the lane's, not a call's
	// begun is closed when the job has its slot, over when it will not have one: failed is
	// set then if it could not be prepared.
	begun, over chan struct{}
	failed      bool
}

// waits reports whether it is open whether the job gets its slot.
func (a *ahead) waits() bool {
	if a == nil {
		return false
	}
	select {
	case <-a.begun:
		return false
	case <-a.over:
		return false
	default:
		return true
	}
}

// isOver reports whether there is a preparation that has ended, with a slot or without.
func (a *ahead) isOver() bool { return a != nil && !a.waits() }

// startSession starts a session of serve, in which jobs are prepared ahead. end ends it, and
// waits until what was prepared is taken back.
func (l *lane) startSession(ctx context.Context) (end func()) {
	session, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	l.session, l.endSession = session, cancel
	l.mu.Unlock()
	var group sync.WaitGroup
	group.Go(func() { l.prepareAhead(ctx, session) })
	return func() {
		cancel(errSessionOver)
		group.Wait()
	}
}

// prepareAhead prepares the next jobs while every slot is taken, one for each slot, so that a create
// can be sent as soon as a task has ended. A job's message stays in the queue until a lane has a
// place for it: a lane with a free slot may take the job over at any time.
func (l *lane) prepareAhead(ctx, session context.Context) {
	ticker := time.NewTicker(aheadInterval)
	defer ticker.Stop()
	ended := make(chan aheadResult)
	waiting, failed := 0, false
	for session.Err() == nil {
		more := true
		select {
		case <-l.created:
			failed = false
		case <-ticker.C:
		case how := <-ended:
			waiting--
			failed = failed || how == aheadFailed
			more = how != aheadBegun // the next one when its create was sent
		case <-session.Done():
		}
		for more && !failed && waiting < cap(l.slots) && l.noSlotForMessages() && session.Err() == nil {
			var run func() aheadResult
			if run, more = l.startAhead(ctx, session); run != nil {
				waiting++
				go func() { ended <- run() }()
			}
		}
	}
	for ; waiting > 0; waiting-- {
		<-ended
	}
}

// noSlotForMessages reports whether a message that is drawn gets no slot at once: each slot has a task,
// or the handler of one that has ended and is not booked yet.
func (l *lane) noSlotForMessages() bool {
	return len(l.slots)+int(l.settling.Load()) >= cap(l.slots)
}

// aheadResult is what became of a preparation.
type aheadResult int

const (
	aheadBegun     aheadResult = iota // the job has its slot
	aheadTakenBack                    // another can be prepared
	aheadFailed                       // it could not be prepared
)

// startAhead starts to prepare the next job. more reports whether there was one, or may be another;
// run, if not nil, waits for the outcome.
func (l *lane) startAhead(ctx, session context.Context) (run func() aheadResult, more bool) {
	drawn, m := l.next(session)
	if drawn == nil && m == nil {
		return nil, false
	}
	a := &ahead{session: session, begun: make(chan struct{}), over: make(chan struct{})}
	e := &execution{}
	if drawn != nil {
		drawn <- a
	} else {
		var started bool
		if e, started = l.start(ctx, m.JobID, false, 0, func(ctx context.Context, e *execution) error {
			return l.drive(ctx, e, m.JobID, source{message: m, session: session, ahead: a})
		}); !started { // its message was drawn just now
			return nil, true
		}
	}
	return func() aheadResult {
		failed := false
		select {
		case <-a.begun:
			return aheadBegun
		case <-a.over:
			failed = a.failed
		case <-e.done:
			failed = a.failed || e.err != nil
		}
		if failed {
			return aheadFailed
		}
		return aheadTakenBack
	}, true
}

// next returns what the lane should prepare now, nil and nil for nothing: a critical job, one
// that was drawn and waits for a slot, or the next in the queues, by its message.
func (l *lane) next(ctx context.Context) (drawn chan *ahead, m *jobs.GenerateMessage) {
	upcoming, err := l.recorder.Store.Upcoming(ctx, l.cfg.Model.Name, aheadDepth)
	if err != nil {
		l.log.Debug("queues not read", "err", err)
		return nil, nil
	}
	if m = l.firstMessage(ctx, jobs.PriorityCritical, upcoming); m != nil {
		return nil, m
	}
	if drawn = l.takeWaiting(); drawn != nil {
		return drawn, nil
	}
	for m == nil && len(upcoming) > 0 {
		m = l.firstMessage(ctx, pick(upcoming, l.cfg.Model.Name), upcoming)
	}
	return nil, m
}

// takeWaiting returns the first drawn job that waits for a slot, nil if none does.
func (l *lane) takeWaiting() (drawn chan *ahead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		drawn = l.waiting[0]
		l.waiting = l.waiting[1:]
	}
	return drawn
}

// firstMessage returns the message of the first upcoming job of a priority that can be prepared, nil if
// there is none, and removes the priority from upcoming.
func (l *lane) firstMessage(ctx context.Context, priority string, upcoming map[string][]string) *jobs.GenerateMessage {
	defer delete(upcoming, priority)
	for _, id := range upcoming[priority] {
		if m := l.upcomingMessage(ctx, priority, id); m != nil {
			return m
		}
	}
	return nil
}

// upcomingMessage returns the message of a job in the queue, nil if the job is not to be
// prepared: it is being made, although nobody has drawn its message yet, or another lane has prepared it.
func (l *lane) upcomingMessage(ctx context.Context, priority, id string) *jobs.GenerateMessage {
	if l.worksOn(id) {
		return nil
	}
	rec, err := l.recorder.Store.Get(ctx, id)
	if err != nil || !rec.State.Waiting() || rec.State == jobs.StatePrepared {
		return nil
	}
	info, err := asynq.NewInspectorFromRedisClient(l.recorder.Redis).GetTaskInfo(jobs.Queue(l.cfg.Model.Name, priority), id)
	if err != nil {
		return nil
	}
	m, err := decodeMessage(info.Payload)
	if err != nil || m.Request.Model != l.cfg.Model.Name || m.JobID != id {
		return nil
	}
	return &m
}

// pick chooses a priority of at least one by its queue's weight, as asynq does for a message that it
// draws.
func pick(upcoming map[string][]string, model string) string {
	weights, total := jobs.LaneQueues(model), 0
	for priority := range upcoming {
		total += weights[jobs.Queue(model, priority)]
	}
	at := rand.IntN(total) //nolint:gosec // not a secret
	for priority := range upcoming {
		if at -= weights[jobs.Queue(model, priority)]; at < 0 {
			return priority
		}
	}
	return ""
}

// submitDrawn submits a job whose message was drawn, once a slot is free. It may be prepared
// before that.
func (l *lane) submitDrawn(ctx context.Context, e *execution, rec *jobs.Record, from source) error {
	a, err := l.awaitSlotOrAhead(from.session, e)
	switch {
	case err != nil:
		return err
	case a == nil:
		return l.submitInSlot(ctx, e, rec, from.message.Request)
	}
	if err = l.submitAhead(ctx, e, rec, from.message.Request, a); errors.Is(err, errNotNext) {
		err = errReread // it waits again
	}
	return err
}

// awaitSlotOrAhead waits until a drawn job has a slot, or is to be prepared ahead.
func (l *lane) awaitSlotOrAhead(session context.Context, e *execution) (*ahead, error) {
	start := make(chan *ahead, 1)
	l.mu.Lock()
	l.waiting = append(l.waiting, start)
	l.mu.Unlock()
	withdraw := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		i := slices.Index(l.waiting, start)
		if i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
		}
		return i >= 0
	}
	select {
	case l.slots <- struct{}{}:
		if withdraw() {
			l.slotTaken(e)
			return nil, nil //nolint:nilnil // it has its slot
		}
		<-l.slots
	case a := <-start:
		return a, nil
	case <-session.Done():
		if withdraw() {
			return nil, context.Cause(session)
		}
	}
	return <-start, nil
}

// submitAhead prepares a job, waits for a slot, and sends its create. It fails with
// [errNotNext] if the job could not be prepared, or is not the next any more.
func (l *lane) submitAhead(ctx context.Context, e *execution, rec *jobs.Record, req jobs.Request, a *ahead) (err error) {
	defer func() {
		if a.waits() {
			close(a.over)
		}
	}()
	p, err := l.prepare(a.session, rec, req, true)
	switch {
	case err != nil && a.session.Err() != nil:
		return cmp.Or(context.Cause(ctx), errNotNext)
	case errors.As(err, new(*pauseError)): // the lane pauses once it has a slot for the job
		l.log.Debug("next job not prepared", "job_id", rec.ID, "err", err)
		a.failed = true
		return errNotNext
	case err != nil:
		return err
	}
	warm, cool := context.WithCancel(a.session)
	defer cool()
	l.group.Go(func() { l.cfg.Account.Client.KeepWarm(warm) })
	l.prepared.Add(1)
	err = l.awaitSlot(ctx, e, p, a)
	l.prepared.Add(-1)
	if err != nil {
		return l.rollbackIntent(ctx, p.intent, p.rec, err)
	}
	close(a.begun)
	return l.send(ctx, e, p)
}

// awaitSlot waits for a slot for a prepared job. It fails with [errNotNext] as soon as another
// job goes first, and with [errSessionOver] when the lane pauses.
func (l *lane) awaitSlot(ctx context.Context, e *execution, p *prepared, a *ahead) error {
	watching, stop := context.WithCancel(a.session)
	defer stop()
	failed := make(chan error, 1)
	l.group.Go(func() { failed <- l.watchNext(watching, p) })
	select {
	case l.slots <- struct{}{}:
		l.slotTaken(e)
		return context.Cause(a.session) // both may have been ready
	case err := <-failed:
		return cmp.Or(context.Cause(ctx), err)
	}
}

// watchNext waits until another job goes before a prepared one, or ctx ends, and returns why.
func (l *lane) watchNext(ctx context.Context, p *prepared) error {
	for {
		if err := loop.Sleep(ctx, aheadInterval); err != nil {
			return err
		}
		if err := l.checkNext(ctx, p); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// checkNext fails unless the job is still prepared and the next.
func (l *lane) checkNext(ctx context.Context, p *prepared) error {
	current, err := l.recorder.Store.Get(ctx, p.rec.ID)
	if err != nil {
		return l.redisPause(err)
	}
	if current.State != jobs.StatePrepared || current.Attempt != p.intent.Attempt || current.Term != l.term {
		return errNotNext
	}
	return l.checkTurn(ctx, p)
}

// checkTurn fails unless a prepared job may still be sent: it may have waited for a while, for the
// outcome of another create if not for its slot. One that was prepared ahead must be the next one.
func (l *lane) checkTurn(ctx context.Context, p *prepared) error {
	if now := time.Now(); now.Sub(p.intent.SubmittedAt) > aheadLifetime || p.rec.Overdue(now) {
		return errNotNext
	}
	var checks errgroup.Group
	checks.Go(func() error { return l.checkLane(ctx) })
	checks.Go(func() error { return l.checkRoom(ctx) })
	if !p.ahead {
		return checks.Wait()
	}
	checks.Go(func() error {
		may, err := l.recorder.Store.MayStart(ctx, &p.rec.Job)
		if err != nil {
			return l.redisPause(err)
		}
		if !may {
			return errNotNext
		}
		return nil
	})
	return checks.Wait()
}
