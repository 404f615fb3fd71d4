package worker_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// 48 free jobs of one token, whose callbacks go to as many hosts that do not answer, delay
// no callback of another token, also not to one of these hosts; and none of them is lost.
func TestCallbacksAreSharedFairly(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		r.answers(func(_ http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/silence" {
				<-req.Context().Done()
			}
		})
		client := jobs.NewClient(s.redis)
		end := func(id, producer, callback string) {
			s.enqueue(jobs.Request{ID: id, Prompt: "no cat", Producer: producer, Callback: callback, NotBefore: time.Now().Add(time.Hour)})
			_, err := client.Cancel(t.Context(), id, jobs.Decider{})
			require.NoError(t, err)
		}
		const hostile = 48
		for i := range hostile {
			end(fmt.Sprint("hostile-", i), "hostile", fmt.Sprintf("http://%d.example/silence?token=hush", i))
		}
		arrived := func() map[string]time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			first := map[string]time.Time{}
			for _, d := range r.got {
				if _, again := first[d.event.Data.JobID]; !again {
					first[d.event.Data.JobID] = d.at
				}
			}
			return first
		}
		for i, wait := range []time.Duration{time.Second, 20 * time.Second} {
			<-time.After(wait)
			id, ended := fmt.Sprint("honest-", i), time.Now()
			end(id, "shop", fmt.Sprintf("http://%d.example/hook?token=hush", i))
			<-time.After(10 * time.Second) // the server looks for new messages every few seconds
			assert.WithinDuration(t, ended, arrived()[id], 10*time.Second)
		}
		for deadline := time.Now().Add(5 * time.Minute); len(arrived()) < hostile+2 && time.Now().Before(deadline); {
			<-time.After(5 * time.Second)
		}
		assert.Len(t, arrived(), hostile+2)
	})
}
