package worker_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// endAtOnce enqueues a job that ends at once and has a callback to a host.
func (s *stack) endAtOnce(id, host string) {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: id, Prompt: "a cat", NotBefore: time.Now().Add(time.Hour), Callback: "http://" + host + "/done?token=hush"})
	_, err := jobs.NewClient(s.redis).Cancel(s.t.Context(), id, jobs.Decider{})
	require.NoError(s.t, err)
}

// A receiver that does not respond delays no other receiver. Once it responds again, it
// receives every event.
func TestSilentReceiverDoesNotDelayOthers(t *testing.T) {
	var back atomic.Bool
	silent := func(cfg *worker.Config) {
		dial := cfg.DialCallback
		cfg.DialCallback = func(ctx context.Context, network, address string) (net.Conn, error) {
			if !back.Load() && strings.HasPrefix(address, "silent.example:") {
				ours, theirs := net.Pipe()
				go io.Copy(io.Discard, theirs) //nolint:errcheck // it ends with the connection
				return ours, nil
			}
			return dial(ctx, network, address)
		}
	}
	notifyBubbleWith(t, &simulator.Simulator{}, silent, func(t *testing.T, s *stack, r *receiver) {
		const jobsOfSilent = 100
		for i := range jobsOfSilent {
			s.endAtOnce(fmt.Sprintf("silent-%d", i), "silent.example")
		}
		<-time.After(25 * time.Second)
		s.endAtOnce("other", "shop.example")
		d := r.deliveries(1)[0]
		assert.Equal(t, "other", d.event.Data.JobID)
		assert.Less(t, d.at.Sub(s.get("other").FinishedAt), 10*time.Second, "one try of the silent one takes twice as long")

		back.Store(true)
		received := map[string]int{}
		for _, d := range r.deliveries(1 + jobsOfSilent) {
			received[d.event.Data.JobID]++
		}
		<-time.After(time.Hour)
		assert.Len(t, r.deliveries(1), 1+jobsOfSilent)
		assert.Len(t, received, 1+jobsOfSilent, "each once")
	})
}

// A response whose body does not end counts as delivered and delays no other receiver.
func TestEndlessResponseDoesNotDelayOthers(t *testing.T) {
	notifyBubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack, r *receiver) {
		r.answers(func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusOK)
			if req.Host == "silent.example" {
				assert.NoError(t, http.NewResponseController(w).Flush())
				<-req.Context().Done()
			}
		})
		const jobsOfSilent = 64
		for i := range jobsOfSilent {
			s.endAtOnce(fmt.Sprintf("silent-%d", i), "silent.example")
		}
		<-time.After(25 * time.Second)
		s.endAtOnce("other", "shop.example")
		<-time.After(10 * time.Second)
		var received []string
		for _, d := range r.deliveries(1) {
			received = append(received, d.event.Data.JobID)
		}
		assert.Contains(t, received, "other")
		assert.Less(t, len(received), jobsOfSilent/2)
	})
}
