package notify

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A producer has 16 callbacks on their way and 16 that wait for them; the others return to
// the queue, spread over the time that they need. Other producers have their own.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var all turns
		notYet := func(err error) time.Duration {
			var later *notYetError
			require.ErrorAs(t, err, &later)
			return later.wait
		}
		var ends []func()
		for range producerConcurrency {
			end, err := all.take(t.Context(), "hostile")
			require.NoError(t, err)
			ends = append(ends, end)
		}
		began := time.Now()
		waited := make(chan error)
		for range producerWaiting {
			go func() {
				_, err := all.take(t.Context(), "hostile")
				waited <- err
			}()
		}
		synctest.Wait()
		_, err := all.take(t.Context(), "hostile")
		assert.Equal(t, minReturn, notYet(err), "nothing is known about its receivers")
		end, err := all.take(t.Context(), "shop")
		require.NoError(t, err)
		end()
		assert.Zero(t, time.Since(began))
		for range producerWaiting {
			notYet(<-waited)
		}
		assert.Equal(t, maxTurnWait, time.Since(began))
		<-time.After(10 * time.Second)
		for _, end := range ends[1:] {
			end()
		}
		for range producerConcurrency + producerWaiting - 1 {
			go func() {
				end, err := all.take(t.Context(), "hostile")
				if err == nil {
					<-t.Context().Done()
					end()
				}
			}()
		}
		synctest.Wait()
		var last time.Duration
		for range 100 {
			_, err := all.take(t.Context(), "hostile")
			last = notYet(err)
		}
		assert.InDelta(t, 100*10/float64(producerConcurrency), last.Seconds(), 20, "each takes 20 s")
		ends[0]()
	})
	synctest.Test(t, func(t *testing.T) {
		var all turns
		end, err := all.take(t.Context(), "shop")
		require.NoError(t, err)
		end()
		assert.Empty(t, all.by)
	})
}
