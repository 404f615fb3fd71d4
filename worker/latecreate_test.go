package worker_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// signedPNG returns a small picture that differs for each prompt, seed and index.
func signedPNG(p painter.Picture) []byte { return signedOf(p, 8, 8) }

// sizedPNG is signedPNG in the requested size.
func sizedPNG(p painter.Picture) []byte { return signedOf(p, p.Width, p.Height) }

func signedOf(p painter.Picture, width, height int) []byte {
	picture := image.NewNRGBA(image.Rect(0, 0, width, height))
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%d", p.Model, p.Prompt, p.Seed, p.Index))
	for x := range 8 {
		picture.SetNRGBA(x, 0, color.NRGBA{R: sum[4*x], G: sum[4*x+1], B: sum[4*x+2], A: 255})
	}
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// requireOwn waits until a job has succeeded, and checks that it was charged once and
// that the pictures under its keys belong to it.
func (s *stack) requireOwn(id string, n int) {
	s.t.Helper()
	rec := s.wait(id)
	require.Equal(s.t, jobs.StateSucceeded, rec.State, "%s: %s: %s", id, rec.Code, rec.Message)
	sidecar := s.requireStored(id, n)
	charged := 0
	for _, task := range s.sim.Tasks() {
		if task.Request.Input.Prompt != "prompt of "+id || task.ChargedMicroYuan == 0 {
			continue
		}
		charged++
		for i, stored := range sidecar.Images {
			content, err := os.ReadFile(s.files.Path(stored.Key))
			require.NoError(s.t, err)
			own := s.sim.Render(painter.Picture{
				Model: task.Request.Model, Prompt: task.Request.Input.Prompt, Seed: task.Seeds[i], Index: i, Width: stored.Width, Height: stored.Height,
			})
			require.Equal(s.t, own, content, "image %d of %s", i+1, id)
		}
	}
	require.Equal(s.t, 1, charged, "tasks charged for %s", id)
}

// asks matches the requests with a job's prompt.
func asks(id string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		return err == nil && strings.Contains(string(body), `"prompt of `+id+`"`)
	}
}

// late resets a job's first create; its request reaches the service after a while.
func (s *stack) late(id string, after time.Duration) simulator.Fault {
	return simulator.Fault{Route: simulator.RouteCreate, Match: s.holdBack(`"prompt of `+id+`"`, after).match, Reset: simulator.ResetBefore}
}

// html answers a job's first create like a proxy whose upstream is unavailable; there is
// no task.
func html(id string) simulator.Fault {
	return simulator.Fault{Route: simulator.RouteCreate, Match: asks(id), Status: http.StatusBadGateway, Body: "<html>"}
}

// cut resets the connection of a job's first create after its task was created.
func cut(id string) simulator.Fault {
	return simulator.Fault{Route: simulator.RouteCreate, Match: asks(id), Reset: simulator.ResetAfter}
}

// known runs a first job, whose task shows the api_key_id of the worker's key.
func (s *stack) known() {
	s.t.Helper()
	s.sim.Render = signedPNG
	s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first"})
	s.requireOwn("first", 1)
}

func (s *stack) want(id string, n int) {
	s.t.Helper()
	s.enqueue(jobs.Request{ID: id, Prompt: "prompt of " + id, N: n})
}

// quickTasks take a second, so that the lane is soon idle.
func quickTasks() *simulator.Simulator {
	return &simulator.Simulator{TaskTime: simulator.Between(time.Second, time.Second)}
}

// The task of a create that arrives late is not assigned to the lane's next create,
// which is lost without a task.
func TestLateCreateAndTheNextOneLost(t *testing.T) {
	for _, after := range []time.Duration{4500 * time.Millisecond, 40 * time.Second, time.Minute} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, n=%d", after, n), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					s.known()
					s.sim.Script(s.late("a", after), html("b"))
					s.want("a", 2)
					s.want("b", n)
					s.requireOwn("a", 2)
					s.requireOwn("b", n)
					assert.Len(t, s.sim.Tasks(), 3)
					s.requireLedger()
				})
			})
		}
	}
}

// The service needs minutes for each create: the worker waits for its reply.
func TestSlowService(t *testing.T) {
	for _, slow := range []time.Duration{70 * time.Second, 290 * time.Second} {
		t.Run(slow.String(), func(t *testing.T) {
			bubble(t, quickTasks(), func(t *testing.T, s *stack) {
				s.known()
				s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Times: 3, Delay: slow, Detached: true})
				for n, id := range []string{"a", "b", "c", "d"} {
					s.want(id, 1+n%2)
				}
				for n, id := range []string{"a", "b", "c", "d"} {
					s.requireOwn(id, 1+n%2)
				}
				assert.Len(t, s.sim.Tasks(), 5)
				assert.Equal(t, 1, s.sim.Stats().Lanes[0].MaxOpen)
				s.requireLedger()
			})
		})
	}
}

// The service is slow, and its reply is lost.
func TestSlowServiceWhoseAnswersAreLost(t *testing.T) {
	bubble(t, quickTasks(), func(t *testing.T, s *stack) {
		s.known()
		slow := func(id string, delay time.Duration) simulator.Fault {
			f := s.late(id, delay)
			f.Delay = delay + 5*time.Second
			return f
		}
		s.sim.Script(slow("a", 100*time.Second), slow("b", 200*time.Second), cut("c"))
		for _, id := range []string{"a", "b", "c"} {
			s.want(id, 1)
			s.requireOwn(id, 1)
		}
		assert.Len(t, s.sim.Tasks(), 4)
		s.requireLedger()
	})
}

// The task of a lost reply stays explained, also after a crash of the worker: later lost
// replies are adopted too.
func TestLostRepliesFarApart(t *testing.T) {
	bubble(t, quickTasks(), func(t *testing.T, s *stack) {
		s.known()
		for i, id := range []string{"a", "b", "c", "d"} {
			if id == "b" {
				s.killedIn(simulator.Fault{Delay: 5 * time.Second, AfterWork: true}, id, 0)
			} else {
				s.sim.Script(cut(id))
				s.want(id, 1)
			}
			begin := time.Now()
			s.requireOwn(id, 1)
			assert.Less(t, time.Since(begin), time.Minute, id)
			assert.Len(t, s.sim.Tasks(), i+2)
			<-time.After(20 * time.Minute)
		}
		s.requireLedger()
	})
}

// Three creates in a row are lost, each in another way.
func TestThreeCreatesLostInARow(t *testing.T) {
	for name, faults := range map[string]func(*stack) []simulator.Fault{
		"made":     func(*stack) []simulator.Fault { return []simulator.Fault{cut("a"), cut("b"), cut("c")} },
		"not made": func(*stack) []simulator.Fault { return []simulator.Fault{html("a"), html("b"), html("c")} },
		"late": func(s *stack) []simulator.Fault {
			return []simulator.Fault{s.late("a", 5*time.Second), s.late("b", 5*time.Second), s.late("c", 5*time.Second)}
		},
		"late, not, yes": func(s *stack) []simulator.Fault {
			return []simulator.Fault{s.late("a", 20*time.Second), html("b"), cut("c")}
		},
		"not, late, yes": func(s *stack) []simulator.Fault {
			return []simulator.Fault{html("a"), s.late("b", 5*time.Second), cut("c")}
		},
		"not, yes, late": func(s *stack) []simulator.Fault {
			return []simulator.Fault{html("a"), cut("b"), s.late("c", 5*time.Second)}
		},
		"late, late, no": func(s *stack) []simulator.Fault {
			return []simulator.Fault{s.late("a", 50*time.Second), s.late("b", 5*time.Second), html("c")}
		},
	} {
		for _, ns := range [][]int{{1, 1, 1}, {2, 1, 2}} {
			t.Run(fmt.Sprint(name, ns), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					s.known()
					s.sim.Script(faults(s)...)
					for i, id := range []string{"a", "b", "c"} {
						s.want(id, ns[i])
					}
					for i, id := range []string{"a", "b", "c"} {
						s.requireOwn(id, ns[i])
					}
					assert.Len(t, s.sim.Tasks(), 4)
					s.requireLedger()
				})
			})
		}
	}
}

// A create arrives while another worker takes over the lane, whose own next create is
// lost without a task.
func TestLateCreateAtATakeover(t *testing.T) {
	for _, after := range []time.Duration{4500 * time.Millisecond, 16 * time.Second, 50 * time.Second} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, n=%d", after, n), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					holder := s.onlyCutOff("data-1")
					s.known()
					s.sim.Script(s.late("a", after), html("b"))
					s.want("a", 2)
					s.want("b", n)
					s.state("a", jobs.StateSubmitting)
					<-time.After(2 * time.Second)
					holder.on.Store(true)
					s.cutOff("data-2")
					s.requireOwn("a", 2)
					s.requireOwn("b", n)
					assert.Len(t, s.sim.Tasks(), 3)
					s.requireLedger()
				})
			})
		}
	}
}

// The worker crashes after its create's connection has ended, and the request arrives
// after the next run, which has only the journal, has begun.
func TestLateCreateAfterARestart(t *testing.T) {
	for _, after := range []time.Duration{3 * time.Second, 30 * time.Second} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, n=%d", after, n), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					s.known()
					fault := s.late("a", after)
					s.sim.Script(html("b"))
					s.killedIn(fault, "a", 0)
					s.want("b", n)
					s.requireOwn("a", 1)
					s.requireOwn("b", n)
					assert.Len(t, s.sim.Tasks(), 3)
					s.requireLedger()
				})
			})
		}
	}
}

// Redis loses its data while a create is in transit, and the producers enqueue all jobs
// again.
func TestLateCreateAfterRedisLostItsData(t *testing.T) {
	for _, after := range []time.Duration{4500 * time.Millisecond, 25 * time.Second} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, n=%d", after, n), func(t *testing.T) {
				bubble(t, quickTasks(), func(t *testing.T, s *stack) {
					s.share()
					s.known()
					s.sim.Script(s.late("a", after), html("b"))
					s.want("a", 2)
					s.want("b", n)
					s.state("a", jobs.StateSubmitting)
					<-time.After(time.Second)
					require.NoError(t, s.redis.FlushAll(t.Context()).Err())
					s.want("b", n)
					s.want("a", 2)
					s.requireOwn("a", 2)
					s.requireOwn("b", n)
					assert.Len(t, s.sim.Tasks(), 3)
				})
			})
		}
	}
}

// Two creates are lost, and the first arrives after the second was sent: if the requests
// differ, the output identifies the creator. If not, both jobs are held, and nothing is
// adopted or bought again.
func TestLateCreateThatTwoMayHaveMade(t *testing.T) {
	const later = "wan2.2-t2i-flash" // repeats prompts
	for name, c := range map[string]struct {
		a, b jobs.Request
		held bool
	}{
		"n":       {a: jobs.Request{N: 2}, b: jobs.Request{N: 1}},
		"size":    {a: jobs.Request{Size: "720*1280"}, b: jobs.Request{Size: "1024*1024"}},
		"prompt":  {a: jobs.Request{Model: later}, b: jobs.Request{Model: later}},
		"nothing": {held: true},
	} {
		for _, made := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, second made %t", name, made), func(t *testing.T) {
				bubbleWith(t, quickTasks(), map[string][]worker.Lane{"": {{}, {Model: later}}}, func(t *testing.T, s *stack) {
					s.known()
					if name == "size" {
						s.sim.Render = sizedPNG
					}
					s.enqueue(jobs.Request{ID: "other", Prompt: "prompt of other", Model: later})
					require.Equal(t, jobs.StateSucceeded, s.wait("other").State)
					second := html("b")
					if made {
						second = cut("b")
					}
					s.sim.Script(s.late("a", 100*time.Second), second)
					for id, req := range map[string]jobs.Request{"a": c.a, "b": c.b} {
						req.ID, req.Prompt = id, "prompt of "+id
						if id == "b" {
							req.Priority = jobs.PriorityBulk
						}
						s.enqueue(req)
					}
					if c.held && !made {
						for _, id := range []string{"a", "b"} {
							rec := s.wait(id)
							require.Equal(t, jobs.StateHeld, rec.State, id)
							require.Len(t, rec.Candidates, 1)
						}
						<-time.After(time.Minute)
						s.requireKept(s.get("a").Candidates[0])
						<-time.After(time.Hour)
						assert.Len(t, s.sim.Tasks(), 3)
						return
					}
					s.requireOwn("a", max(c.a.N, 1))
					s.requireOwn("b", max(c.b.N, 1))
					assert.Len(t, s.sim.Tasks(), 4)
					s.requireLedger()
				})
			})
		}
	}
}

// A graceful stop does not wait minutes for a slow create: the next run reconciles it.
func TestStopWhileACreateIsSlow(t *testing.T) {
	bubble(t, quickTasks(), func(t *testing.T, s *stack) {
		s.known()
		s.sim.Script(simulator.Fault{Route: simulator.RouteCreate, Delay: 100 * time.Second, Detached: true})
		s.want("a", 1)
		s.state("a", jobs.StateSubmitting)
		begin := time.Now()
		s.stop()
		assert.Less(t, time.Since(begin), time.Minute)
		s.start()
		s.requireOwn("a", 1)
		assert.Len(t, s.sim.Tasks(), 2)
	})
}
