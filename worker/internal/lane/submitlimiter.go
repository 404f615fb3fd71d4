package lane

import (
	"math"
	"time"
)

// submitLimiter keeps a lane's creates below the service's rate limit: so many within any second,
// at once if need be. Its caller must hold the lane's submitSem.
type submitLimiter struct {
	// replies are the reply times of the last creates that may fall into one window, oldest
	// first. The service has counted a create by its reply, however long the request took.
	replies []time.Time
	window  time.Duration
	// spread is the least time between two creates until spreadUntil, sentAt when the last one
	// was sent.
	spread              time.Duration
	sentAt, spreadUntil time.Time
}

const (
	// windowMargin stretches the window to allow for clock drift between worker and service.
	windowMargin = 1.05
	// spreadTime is for how long creates are evenly spaced after one was throttled. Over what time
	// the service counts is not documented, nor what it takes for a burst.
	spreadTime = time.Hour
)

// newSubmitLimiter returns a limiter for a rate per second. It assumes that earlier holders
// of the lane used up the window at a time, if that is not zero.
func newSubmitLimiter(perSecond float64, used time.Time) *submitLimiter {
	n := max(int(math.Ceil(perSecond)), 1)
	p := &submitLimiter{
		spread:  time.Duration(windowMargin / perSecond * float64(time.Second)),
		replies: make([]time.Time, n),
		window:  time.Duration(float64(n) / perSecond * windowMargin * float64(time.Second)),
	}
	for i := range p.replies {
		p.replies[i] = used
	}
	return p
}

// delay returns how long the next create must wait.
func (p *submitLimiter) delay() time.Duration {
	wait := time.Until(p.replies[0].Add(p.window))
	if time.Now().Before(p.spreadUntil) {
		wait = max(wait, time.Until(p.sentAt.Add(p.spread)))
	}
	return wait
}

// sent records that a create is sent. One that is given up before does not delay the next.
func (p *submitLimiter) sent() { p.sentAt = time.Now() }

// done records that a create was answered, or that no answer will come.
func (p *submitLimiter) done() {
	p.replies = append(p.replies[1:], time.Now())
}

// throttled records that the service has refused a create that came too soon for it.
func (p *submitLimiter) throttled() { p.spreadUntil = time.Now().Add(spreadTime) }
