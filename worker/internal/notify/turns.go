package notify

import (
	"context"
	"sync"
	"time"
)

const (
	// producerConcurrency is how many callbacks of one producer are sent at once: with
	// timeouts of 20 s, 48 a minute to receivers that do not respond.
	producerConcurrency = 16
	// producerWaiting is how many more of its callbacks wait in the server for that, for
	// maxTurnWait at most. Others return to the queue.
	producerWaiting = 16
	maxTurnWait     = 10 * time.Second
	// minReturn and maxReturn bound the time after which a callback that has returned to the
	// queue is due again.
	minReturn = time.Second
	maxReturn = 10 * time.Minute
)

// turns shares the server's deliveries fairly among producers, so that slow receivers of one
// do not delay the callbacks of others. The zero value is ready to use.
type turns struct {
	mu sync.Mutex
	// by has the producers with callbacks in the server.
	by map[string]*turn
}

// turn is the state of one producer.
type turn struct {
	slots   chan struct{}
	present int // running and waiting
	// took is a moving average of the duration of a delivery, and freeAt when the callbacks
	// that have returned to the queue will have been sent.
	took   time.Duration
	freeAt time.Time
}

// notYetError means that a callback returns to the queue, because its producer has too many
// in the server. It is no attempt.
type notYetError struct{ wait time.Duration }

func (e *notYetError) Error() string { return "waits for other callbacks of its producer" }

// take waits for a producer's turn. The caller must end it. It fails with a [*notYetError],
// or with the cause of ctx.
func (t *turns) take(ctx context.Context, producer string) (end func(), err error) {
	own, ok := t.enter(producer)
	if !ok {
		return nil, t.later(own)
	}
	timer := time.NewTimer(maxTurnWait)
	defer timer.Stop()
	select {
	case own.slots <- struct{}{}:
	case <-timer.C:
		t.leave(producer, own, 0)
		return nil, t.later(own)
	case <-ctx.Done():
		t.leave(producer, own, 0)
		return nil, context.Cause(ctx)
	}
	began := time.Now()
	return func() {
		<-own.slots
		t.leave(producer, own, time.Since(began))
	}, nil
}

func (t *turns) enter(producer string) (own *turn, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own = t.by[producer]; own == nil {
		if t.by == nil {
			t.by = map[string]*turn{}
		}
		own = &turn{slots: make(chan struct{}, producerConcurrency)}
		t.by[producer] = own
	}
	if own.present == producerConcurrency+producerWaiting {
		return own, false
	}
	own.present++
	return own, true
}

func (t *turns) leave(producer string, own *turn, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if took > 0 {
		own.took += (took - own.took) / producerConcurrency
	}
	if own.present--; own.present == 0 {
		delete(t.by, producer)
	}
}

// later spreads the callbacks that return to the queue over the time that their producer
// needs for them.
func (t *turns) later(own *turn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if own.freeAt.Before(now) {
		own.freeAt = now
	}
	own.freeAt = own.freeAt.Add(own.took / producerConcurrency)
	return &notYetError{min(max(own.freeAt.Sub(now), minReturn), maxReturn)}
}
