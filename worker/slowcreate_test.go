package worker_test

import (
	"testing"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// slowly delays the task of a job's first create, even if the connection has ended.
func slowly(id string, after time.Duration) simulator.Fault {
	return simulator.Fault{Route: simulator.RouteCreate, Match: asks(id), Delay: after, Detached: true}
}

// The service is slow, and the lane's holder loses its connection to Redis during its
// create.
func TestSlowCreateAtATakeover(t *testing.T) {
	for _, after := range []time.Duration{85 * time.Second, 90 * time.Second, 95 * time.Second, 200 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, quickTasks(), func(_ *testing.T, s *stack) {
				holder := s.onlyCutOff("data-1")
				s.known()
				s.sim.Script(slowly("a", after), html("b"))
				s.want("a", 1)
				s.want("b", 1)
				s.state("a", jobs.StateSubmitting)
				<-time.After(2 * time.Second)
				holder.on.Store(true)
				s.cutOff("data-2")
				s.requireOwnPair(1)
			})
		})
	}
}

// The service is slow, and the worker is killed.
func TestSlowCreateAfterARestart(t *testing.T) {
	for _, after := range []time.Duration{75 * time.Second, 80 * time.Second, 85 * time.Second, 250 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, quickTasks(), func(_ *testing.T, s *stack) {
				s.known()
				s.sim.Script(html("b"))
				s.killedIn(simulator.Fault{Delay: after, Detached: true}, "a", 0)
				s.want("b", 1)
				s.requireOwnPair(1)
			})
		})
	}
}

// The service is slow, and the worker is stopped.
func TestSlowCreateAfterAStop(t *testing.T) {
	for _, after := range []time.Duration{105 * time.Second, 110 * time.Second, 115 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, quickTasks(), func(_ *testing.T, s *stack) {
				s.known()
				s.sim.Script(slowly("a", after), html("b"))
				s.want("a", 1)
				s.state("a", jobs.StateSubmitting)
				s.stop()
				s.start()
				s.want("b", 1)
				s.requireOwnPair(1)
			})
		})
	}
}
