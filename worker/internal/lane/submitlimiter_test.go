package lane

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// Creates are evenly spaced, also after the window. One that was not sent, because another job
// goes first, does not delay the next.
func TestOnlySentCreatesDelayTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSubmitLimiter(2, time.Time{})
		assert.LessOrEqual(t, p.delay(), time.Duration(0))
		assert.LessOrEqual(t, p.delay(), time.Duration(0), "nothing was sent")
		for range 3 {
			<-time.After(max(p.delay(), 0))
			p.sent()
			p.done()
			assert.InDelta(t, 0.525, p.delay().Seconds(), 0.001)
		}
	})
}
