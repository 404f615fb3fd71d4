package lane

import (
	"math"
	"time"
)

// submitLimiter keeps a lane's creates below the service's rate limits: so many within any second,
// and within any minute, at once if need be. Its caller must hold the lane's submitSem.
type submitLimiter struct {
	windows []rateWindow
	// spread is the least time between two creates until spreadUntil, sentAt when the last one
	// was sent.
	spread              time.Duration
	sentAt, spreadUntil time.Time
}

// rateWindow is a limit of creates within any time of a length.
type rateWindow struct {
	// replies are the reply times of the last creates that may fall into one window, oldest
	// first. The service has counted a create by its reply, however long the request took.
	replies []time.Time
	length  time.Duration
}

const (
	// windowMargin stretches the window to allow for clock drift between worker and service.
	windowMargin = 1.05
	// spreadTime is for how long creates are evenly spaced after one was throttled. Over what time
	// the service counts is not documented, nor what it takes for a burst.
	spreadTime = time.Hour
)

// newSubmitLimiter returns a limiter for a rate per second, and one per minute unless that is 0. It
// assumes that earlier holders of the lane used up the windows at a time, if that is not zero.
func newSubmitLimiter(perSecond float64, perMinute int, used time.Time) *submitLimiter {
	n := max(int(math.Ceil(perSecond)), 1)
	p := &submitLimiter{spread: time.Duration(windowMargin / perSecond * float64(time.Second))}
	p.add(n, time.Duration(float64(n)/perSecond*windowMargin*float64(time.Second)), used)
	if perMinute > 0 {
		minute := time.Duration(windowMargin * float64(time.Minute))
		p.add(perMinute, minute, used)
		p.spread = max(p.spread, minute/time.Duration(perMinute))
	}
	return p
}

func (p *submitLimiter) add(n int, length time.Duration, used time.Time) {
	w := rateWindow{replies: make([]time.Time, n), length: length}
	for i := range w.replies {
		w.replies[i] = used
	}
	p.windows = append(p.windows, w)
}

// delay returns how long the next create must wait.
func (p *submitLimiter) delay() time.Duration {
	wait := time.Duration(math.MinInt64)
	for _, w := range p.windows {
		wait = max(wait, time.Until(w.replies[0].Add(w.length)))
	}
	if time.Now().Before(p.spreadUntil) {
		wait = max(wait, time.Until(p.sentAt.Add(p.spread)))
	}
	return wait
}

// sent records that a create is sent. One that is given up before does not delay the next.
func (p *submitLimiter) sent() { p.sentAt = time.Now() }

// done records that a create was answered, or that no answer will come.
func (p *submitLimiter) done() {
	for i, w := range p.windows {
		p.windows[i].replies = append(w.replies[1:], time.Now())
	}
}

// throttled records that the service has refused a create that came too soon for it.
func (p *submitLimiter) throttled() { p.spreadUntil = time.Now().Add(spreadTime) }
