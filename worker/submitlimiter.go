package worker

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// pace keeps a lane's creates below the rate that the service allows, one at a
// time. Its user holds the lane's turn.
type submitLimiter struct {
	// spread keeps creates apart evenly.
	spread *rate.Limiter
	// replies are when the last creates that may share a window were answered. The
	// service has counted each by then, however slow its way was.
	replies []time.Time
	window  time.Duration
}

// paceMargin stretches the window: two clocks do not run alike.
const paceMargin = 1.05

// newPace is for a rate per second. A lane that others have held starts with
// creates behind it that it did not see.
func newPace(perSecond float64, heldBefore bool) *submitLimiter {
	n := max(int(math.Ceil(perSecond)), 1)
	p := &submitLimiter{
		spread:  rate.NewLimiter(rate.Limit(perSecond/paceMargin), 1),
		replies: make([]time.Time, n),
		window:  time.Duration(float64(n) / perSecond * paceMargin * float64(time.Second)),
	}
	if heldBefore {
		for i := range p.replies {
			p.replies[i] = time.Now()
		}
	}
	return p
}

// delay is how long the next create must wait. It counts as sent.
func (p *submitLimiter) delay() time.Duration {
	return max(p.spread.Reserve().Delay(), time.Until(p.replies[0].Add(p.window)))
}

// answered notes that a create was answered, or that no answer will come.
func (p *submitLimiter) done() {
	p.replies = append(p.replies[1:], time.Now())
}
