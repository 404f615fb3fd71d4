package lane

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// As many creates as the service allows in a second are sent at once, and the next ones a second after
// these, also if a reply came late. One that was not sent, because another job goes first, does not
// delay the next.
func TestSubmitLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSubmitLimiter(2, 0, time.Time{})
		begun := time.Now()
		var sent, received []float64
		create := func() {
			<-time.After(p.delay())
			sent = append(sent, time.Since(begun).Seconds())
			p.sent()
			<-time.After(100 * time.Millisecond)
			received = append(received, time.Since(begun).Seconds())
			p.done()
		}
		for range 6 {
			assert.LessOrEqual(t, p.delay(), 1050*time.Millisecond)
			create()
		}
		assert.InDeltaSlice(t, []float64{0, 0.1, 1.15, 1.25, 2.3, 2.4}, sent, 0.001)
		for i := 2; i < len(sent); i++ { // whenever the service has counted the earlier ones
			assert.Greater(t, sent[i]-received[i-2], 1.0)
		}
		p.throttled()
		for range 3 {
			create()
			assert.GreaterOrEqual(t, p.delay().Seconds(), 0.425, "evenly spaced")
		}
		<-time.After(spreadTime)
		create()
		assert.LessOrEqual(t, p.delay(), time.Duration(0))
	})
}

// A limit per minute holds beside that per second.
func TestSubmitLimiterPerMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSubmitLimiter(1, 5, time.Time{})
		begun := time.Now()
		var sent []float64
		for range 12 {
			<-time.After(p.delay())
			sent = append(sent, time.Since(begun).Seconds())
			p.sent()
			p.done()
		}
		assert.InDeltaSlice(t, []float64{0, 1.05, 2.1, 3.15, 4.2, 63, 64.05, 65.1, 66.15, 67.2, 126, 127.05}, sent, 0.001)
		p.throttled()
		assert.GreaterOrEqual(t, p.delay().Seconds(), 12.0, "evenly spaced")
	})
}
