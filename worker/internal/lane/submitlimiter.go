package lane

import (
	"math"
	"time"
)

// submitLimiter keeps a lane's creates below the service's rate limit. Its caller must hold
// the lane's submitSem.
type submitLimiter struct {
	// spread is the least time between two creates, sentAt when the last one was sent.
	spread time.Duration
	sentAt time.Time
	// replies are the reply times of the last creates that may fall into one window, oldest
	// first. The service has counted a create by its reply, however long the request took.
	replies []time.Time
	window  time.Duration
}

// windowMargin stretches the window to allow for clock drift between worker and service.
const windowMargin = 1.05

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
	return max(time.Until(p.sentAt.Add(p.spread)), time.Until(p.replies[0].Add(p.window)))
}

// sent records that a create is sent. One that is given up before does not delay the next.
func (p *submitLimiter) sent() { p.sentAt = time.Now() }

// done records that a create was answered, or that no answer will come.
func (p *submitLimiter) done() {
	p.replies = append(p.replies[1:], time.Now())
}
