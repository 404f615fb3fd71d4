package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// lost are the ways in which a create's reply is lost; made is set if it created a task.
func lost() map[string]struct {
	fault simulator.Fault
	made  bool
} {
	return map[string]struct {
		fault simulator.Fault
		made  bool
	}{
		"reset before the task was made": {simulator.Fault{Reset: simulator.ResetBefore}, false},
		"reset after the task was made":  {simulator.Fault{Reset: simulator.ResetAfter}, true},
		"500 with JSON, made":            {simulator.Fault{Status: http.StatusInternalServerError, Code: "InternalError", AfterWork: true}, true},
		"500 with JSON, not made":        {simulator.Fault{Status: http.StatusInternalServerError, Code: "InternalError"}, false},
		"502 with HTML":                  {simulator.Fault{Status: http.StatusBadGateway, Body: "<html>bad gateway</html>"}, false},
		"200 with garbage":               {simulator.Fault{Garbage: true, AfterWork: true}, true},
		"200 cut in the middle":          {simulator.Fault{Truncate: true}, true},
		"429 with HTML":                  {simulator.Fault{Status: http.StatusTooManyRequests, Body: "<html>slow down</html>"}, false},
		"no answer within 60 s":          {simulator.Fault{Delay: 2 * time.Minute, AfterWork: true}, true},
	}
}

// A create whose reply is lost is looked up in the account's list: its task is adopted,
// or the job is bought again if there is none; other jobs continue meanwhile, one at a
// time.
func TestRules5To7LostReplies(t *testing.T) {
	for name, c := range lost() {
		t.Run(name, func(t *testing.T) {
			c.fault.Route = simulator.RouteCreate
			sim := &simulator.Simulator{ListLag: 2 * time.Second}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				sim.Script(c.fault)
				ids := s.enqueueMany(3)
				for _, id := range ids {
					s.requireMadeOnce(id)
				}
				assert.Len(t, sim.Tasks(), 4)
				assert.Equal(t, 1, sim.Stats().Lanes[0].MaxOpen, "the next waits for what may have been made")
				sidecar := s.requireStored("job-1", 1)
				if c.made {
					assert.Len(t, sidecar.Attempts, 1)
				} else {
					assert.Len(t, sidecar.Attempts, 2)
					assert.Equal(t, "NotCreated", sidecar.Attempts[0].Code)
				}
				s.requireLedger()
			})
		})
	}
}

// requireLedger checks that the ledger's spending equals the service's charges, and that
// no reservation is open.
func (s *stack) requireLedger() {
	s.t.Helper()
	var spent, reserved int64
	all, err := ledger.New(s.redis).Spending(s.t.Context(), time.Now().Add(-48*time.Hour), time.Now())
	require.NoError(s.t, err)
	for _, one := range all {
		spent += one.SpentMicroYuan
		reserved += one.ReservedMicroYuan
	}
	require.Equal(s.t, s.sim.Stats().ChargedMicroYuan, spent, "spent")
	require.Zero(s.t, reserved, "reserved")
}

// killedIn runs a job until the worker crashes during its create, and restarts it with an
// empty queue: only its journal is left.
//
// down is how long no worker runs meanwhile.
func (s *stack) killedIn(fault simulator.Fault, id string, down time.Duration) {
	s.t.Helper()
	ctx, kill := context.WithCancel(s.t.Context())
	s.stop()
	s.prepare()
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.worker.Run(ctx) }()
	fault.Route = simulator.RouteCreate
	s.sim.Script(fault)
	s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id})
	s.state(id, jobs.StateSubmitting)
	<-time.After(time.Second)
	text := s.journal("data")
	kill()
	require.ErrorIs(s.t, <-s.ended, context.Canceled)
	s.ended = nil
	s.stop()
	s.rewriteJournal("data", text)
	<-time.After(down)
	s.start()
}

// A worker crashes during a create: the next run, which has only the journal, adopts the
// task or finds that there is none.
func TestRules5To7Killed(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{
		"task made":     {Delay: 5 * time.Second, AfterWork: true},
		"task not made": {Delay: 5 * time.Second, Status: http.StatusBadGateway, Body: "<html>"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				s.killedIn(fault, "job-1", 0)
				require.Equal(t, jobs.StateSubmitting, s.get("job-1").State)
				s.requireMadeOnce("job-1")
				assert.Len(t, s.sim.Tasks(), 2)
			})
		})
	}
}

// A worker that crashed during a create restarts after its limit: an existing task is
// still adopted. Tasks that another program has created with the key meanwhile are not.
func TestRules5To7KilledForAWhile(t *testing.T) {
	for name, c := range map[string]struct {
		fault   simulator.Fault
		foreign bool
	}{
		"task made":                     {simulator.Fault{Delay: 5 * time.Second, AfterWork: true}, false},
		"not made, but another's since": {simulator.Fault{Delay: 5 * time.Second, Status: http.StatusBadGateway, Body: "<html>"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				if c.foreign {
					time.AfterFunc(time.Hour, func() { s.foreign("sk-test") })
				}
				s.killedIn(c.fault, "job-1", 2*time.Hour)
				s.requireMadeOnce("job-1")
				if !c.foreign {
					assert.Len(t, s.sim.Tasks(), 2)
					s.requireLedger()
				}
			})
		})
	}
}

// "Not created" is not concluded before the service's own request limit has passed.
func TestRule6WaitsForTheLimit(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore})
		begin := time.Now()
		s.enqueueMany(1)
		s.requireMadeOnce("job-1")
		tasks := sim.Tasks()
		assert.GreaterOrEqual(t, tasks[1].CreatedAt.Sub(begin), 300*time.Second)
		assert.Less(t, tasks[1].CreatedAt.Sub(begin), 360*time.Second)
	})
}

// The list was read before the limit, and Redis answers after it: what the list did not show may
// have come meanwhile.
func TestRule6ListReadBeforeTheLimit(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		late := s.holdBack("prompt of job-1", 300*time.Second)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Match: late.match, Reset: simulator.ResetBefore})
		begin := time.Now()
		s.queue.Client().AddHook(&slowIndex{from: begin.Add(200 * time.Second), until: begin.Add(360 * time.Second)})
		s.enqueueMany(1)
		require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
		<-late.done
		<-time.After(5 * time.Minute)
		assert.Equal(t, 1, s.tasksOf("prompt of job-1"))
		s.requireChargedOnce()
	})
}

// slowIndex delays the read of the index of jobs for two minutes.
type slowIndex struct{ from, until time.Time }

func (d *slowIndex) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *slowIndex) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if now := time.Now(); now.After(d.from) && now.Before(d.until) && strings.Contains(cmd.String(), rediskey.Index("submitting")) {
			<-time.After(2 * time.Minute)
		}
		return next(ctx, cmd)
	}
}

func (d *slowIndex) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// lateCreates delays the creates of a prompt: the client's connection ends, and the
// request reaches the service later.
type lateCreates struct {
	s      *stack
	prompt string
	after  time.Duration
	taken  atomic.Bool
	done   chan struct{}
}

func (s *stack) holdBack(prompt string, after time.Duration) *lateCreates {
	return &lateCreates{s: s, prompt: prompt, after: after, done: make(chan struct{})}
}

// match is for a fault: it takes the request and executes it later.
func (l *lateCreates) match(r *http.Request) bool {
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil || !strings.Contains(string(body), l.prompt) || !l.taken.CompareAndSwap(false, true) {
		return false
	}
	again := r.Clone(context.WithoutCancel(r.Context()))
	again.Body = io.NopCloser(bytes.NewReader(body))
	again.RequestURI, again.URL.Scheme, again.URL.Host = "", "http", "dashscope.simulated"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return l.s.sim.DialContext(ctx, network, addr)
	}}}
	go func() {
		defer close(l.done)
		<-time.After(l.after)
		resp, err := client.Do(again)
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	return true
}

// A create reaches the service a minute after its connection has ended: its task is
// adopted. If it arrives after the job was bought again, the task is canceled or its
// image quarantined.
func TestRule6LateCreates(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		tasks int
	}{{time.Minute, 1}, {4 * time.Minute, 1}, {10 * time.Minute, 2}} {
		t.Run(c.after.String(), func(t *testing.T) {
			sim := &simulator.Simulator{}
			bubble(t, sim, func(t *testing.T, s *stack) {
				s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
				s.requireMadeOnce("first")
				late := s.holdBack("prompt of job-1", c.after)
				sim.Script(simulator.Fault{Route: simulator.RouteCreate, Match: late.match, Reset: simulator.ResetBefore})
				s.enqueueMany(1)
				require.Equal(t, jobs.StateSucceeded, s.wait("job-1").State)
				<-late.done
				<-time.After(5 * time.Minute)
				s.requireStored("job-1", 1)
				require.Equal(t, c.tasks, s.tasksOf("prompt of job-1"))
				for _, task := range sim.Tasks()[1+1 : 1+c.tasks] {
					s.requireKept(task.ID)
				}
				s.requireLedger()
			})
		})
	}
}

// The late task of a lost create is canceled while it is pending: it costs nothing.
func TestRule6LateCreateIsCanceled(t *testing.T) {
	sim := &simulator.Simulator{TaskTime: simulator.Between(4*time.Minute, 4*time.Minute)}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		late := s.holdBack("prompt of job-1", 7*time.Minute)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Match: late.match, Reset: simulator.ResetBefore})
		s.enqueueMany(3)
		for _, id := range []string{"job-1", "job-2", "job-3"} {
			require.Equal(t, jobs.StateSucceeded, s.wait(id).State)
		}
		<-late.done
		<-time.After(10 * time.Minute)
		canceled := 0
		for _, task := range sim.Tasks() {
			if task.Status == dashscope.StatusCanceled {
				canceled++
				assert.Zero(t, task.ChargedMicroYuan)
			}
		}
		assert.Equal(t, 1, canceled)
		s.requireChargedOnce()
		s.requireLedger()
	})
}

// requireKept checks that a task's first image is under _held/.
func (s *stack) requireKept(task string) {
	s.t.Helper()
	_, err := s.bucket.Head(s.t.Context(), s.bucket.HeldKey(task, task+"-1.png"))
	require.NoError(s.t, err)
}

// ownAndOther are two keys of one account: Danqing's and another program's.
func ownAndOther() map[string]simulator.Key {
	return map[string]simulator.Key{"sk-test": {}, "sk-other": {}}
}

// foreign submits a task on the account as another program does, with a key.
func (s *stack) foreign(key string) {
	s.t.Helper()
	_, err := s.client(key).Create(s.t.Context(), dashscope.CreateRequest{Model: "wanx-v1", Input: dashscope.Input{Prompt: "foreign"}})
	require.NoError(s.t, err)
}

// Another program submits on the account while a reply is lost. If it uses another key,
// the job's own task is recognized and adopted.
func TestRule7ForeignTasksOfAnotherKey(t *testing.T) {
	sim := &simulator.Simulator{Keys: ownAndOther()}
	bubble(t, sim, func(_ *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		s.foreign("sk-other")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueueMany(1)
		s.state("job-1", jobs.StateSubmitting)
		<-time.After(time.Second)
		s.foreign("sk-other")
		s.requireMadeOnce("job-1")
	})
}

// If another program uses the same key, the tasks cannot be distinguished: the job is
// held, it does not get another program's image, and the images of all candidates are
// quarantined. Nothing is bought again.
func TestRules7And8ForeignTasksOfTheSameKey(t *testing.T) {
	for name, foreign := range map[string]func(*stack, func()){
		"seen before":      func(s *stack, lose func()) { s.foreign("sk-test"); <-time.After(15 * time.Minute); lose() },
		"at the same time": func(s *stack, lose func()) { lose(); s.foreign("sk-test") },
	} {
		for _, reset := range []simulator.Reset{simulator.ResetAfter, simulator.ResetBefore} {
			t.Run(fmt.Sprintf("%s %d", name, reset), func(t *testing.T) {
				sim := &simulator.Simulator{}
				bubble(t, sim, func(t *testing.T, s *stack) {
					s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
					s.requireMadeOnce("first")
					foreign(s, func() {
						sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: reset})
						s.enqueueMany(1)
						s.state("job-1", jobs.StateSubmitting)
						<-time.After(time.Second)
					})
					rec := s.wait("job-1")
					if name == "seen before" && reset == simulator.ResetBefore {
						// No task on the list can be the job's: it was bought again.
						require.Equal(t, jobs.StateSucceeded, rec.State)
						return
					}
					require.Equal(t, jobs.StateHeld, rec.State)
					assert.Equal(t, "SubmitAmbiguous", rec.Code)
					assert.NotEmpty(t, rec.Candidates)
					<-time.After(5 * time.Minute)
					for _, task := range rec.Candidates {
						s.requireKept(task)
					}
					assert.LessOrEqual(t, s.tasksOf("prompt of job-1"), 1)
					s.stop()
					s.start()
					s.enqueueMany(1)
					<-time.After(10 * time.Minute)
					assert.Equal(t, jobs.StateHeld, s.get("job-1").State)
					assert.LessOrEqual(t, s.tasksOf("prompt of job-1"), 1)
				})
			})
		}
	}
}

// Either of two lost creates may have made a task: both jobs are held, even if one is
// held first, and neither is bought again.
func TestRule8TaskThatTwoMayHaveMade(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		late := s.holdBack("prompt of job-2", time.Minute)
		sim.Script(
			simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetBefore},
			simulator.Fault{Route: simulator.RouteCreate, Match: late.match, Reset: simulator.ResetBefore},
		)
		s.enqueueMany(3)
		s.requireMadeOnce("job-3")
		for _, id := range []string{"job-1", "job-2"} {
			rec := s.wait(id)
			require.Equal(t, jobs.StateHeld, rec.State, id)
			assert.Len(t, rec.Candidates, 1)
			<-time.After(time.Minute)
			s.requireKept(rec.Candidates[0])
		}
		<-time.After(10 * time.Minute)
		assert.Len(t, sim.Tasks(), 3)
		s.requireChargedOnce()

		// A quarantined task does not prevent later adoptions, also in another run.
		s.stop()
		s.start()
		s.enqueueMany(2)
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Reset: simulator.ResetAfter})
		s.enqueue(jobs.Request{ID: "job-4", Prompt: "prompt of job-4"})
		s.requireMadeOnce("job-4")

		// An operator looks at the image.
		_, err := jobs.NewInspector(s.redis).Resolve(t.Context(), "job-2", jobs.Resolution{Adopt: s.get("job-2").Candidates[0]}, jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("job-2")
		_, err = jobs.NewInspector(s.redis).Resolve(t.Context(), "job-1", jobs.Resolution{BuyAgain: true}, jobs.Decider{})
		require.NoError(t, err)
		s.requireMadeOnce("job-1")
		s.requireLedger()
	})
}

// Three creates of a job are lost, and the list has no task of them: the job is held,
// since each may have been charged.
func TestRule6LostThreeTimes(t *testing.T) {
	sim := &simulator.Simulator{}
	bubble(t, sim, func(t *testing.T, s *stack) {
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
		s.requireMadeOnce("first")
		sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: -1, Reset: simulator.ResetBefore})
		s.enqueueMany(1)
		rec := s.wait("job-1")
		require.Equal(t, jobs.StateHeld, rec.State)
		assert.Equal(t, 3, rec.Attempt)
		assert.Contains(t, rec.Message, "3 creates were lost")
		<-time.After(time.Hour)
		assert.Equal(t, 3, sim.Stats().Faults)
	})
}

// A corrupt record is not changed, and the jobs behind it continue.
func TestDamagedRecord(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, *stack){
		"text": func(t *testing.T, s *stack) {
			t.Helper()
			require.NoError(t, s.redis.HSet(t.Context(), "danqing:job:job-2", "record", "{garb").Err())
		},
		"type": func(t *testing.T, s *stack) {
			t.Helper()
			require.NoError(t, s.redis.Set(t.Context(), "danqing:job:job-2", "garbage", 0).Err())
		},
	} {
		t.Run(name, func(t *testing.T) { testDamagedRecord(t, damage) })
	}
}

func testDamagedRecord(t *testing.T, damage func(*testing.T, *stack)) {
	t.Helper()
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		s.enqueueMany(3)
		s.state("job-1", jobs.StateGenerating)
		damage(t, s)
		s.requireMadeOnce("job-3")
		_, err := jobs.NewStore(s.redis).Get(t.Context(), "job-2")
		require.ErrorIs(t, err, jobs.ErrCorrupt)
		all, _, err := jobs.NewStore(s.redis).List(t.Context(), jobs.ListFilter{})
		require.NoError(t, err)
		assert.Len(t, all, 2)

		// As the message says, the key is deleted and the job enqueued again.
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:job-2").Err())
		s.enqueue(jobs.Request{ID: "job-2", Prompt: "prompt of job-2"})
		s.requireMadeOnce("job-2")
	})
}

// get reads a job's record.
func (s *stack) get(id string) *jobs.Record {
	s.t.Helper()
	rec, err := jobs.NewStore(s.redis).Get(s.t.Context(), id)
	require.NoError(s.t, err)
	return rec
}
