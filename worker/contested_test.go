package worker_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The journal of a second worker has a task that the job has rejected: the task is still
// offered to other jobs.
func TestRejectedTaskIsOfferedToOthers(t *testing.T) {
	bubble(t, &simulator.Simulator{TaskTime: simulator.Between(3*time.Minute, 3*time.Minute)}, func(t *testing.T, s *stack) {
		holder := s.onlyCutOff("data-1")
		s.known()
		s.sim.Script(s.late("a", 75*time.Second), html("b"))
		s.want("a", 2)
		s.want("b", 1)
		s.state("b", jobs.StateGenerating)
		<-time.After(time.Second)
		require.NoError(t, os.MkdirAll(filepath.Join(s.dir, "data-3"), 0o700))
		s.rewriteJournal("data-3", s.journal("data-1"))
		holder.on.Store(true)
		s.cutOff("data-2")
		for len(s.get("b").Rejected) == 0 {
			<-time.After(10 * time.Millisecond)
		}
		s.cutOff("data-3") // as if the first had restarted
		s.requireOwnPair(2)
	})
}

// The prompt in the task's output matches neither request: both jobs are held, and
// nothing is bought again.
func TestOutputThatMatchesNoRequestIsHeld(t *testing.T) {
	const later = "wan2.2-t2i-flash" // repeats prompts
	bubbleWith(t, quickTasks(), map[string][]worker.Lane{"": {{Model: later}}}, func(t *testing.T, s *stack) {
		s.sim.Render = signedPNG
		s.enqueue(jobs.Request{ID: "first", Prompt: "prompt of first", Model: later})
		require.Equal(t, jobs.StateSucceeded, s.wait("first").State)
		s.proxy(func(r *http.Request, _ http.Header, body []byte) []byte {
			if r.Method == http.MethodGet {
				return bytes.ReplaceAll(body, []byte(`"orig_prompt":"prompt of `), []byte(`"orig_prompt":"Prompt  of `))
			}
			return body
		})
		s.stop()
		s.start()
		s.sim.Script(s.late("a", 100*time.Second), html("b"))
		s.enqueue(jobs.Request{ID: "a", Prompt: "prompt of a", Model: later})
		s.enqueue(jobs.Request{ID: "b", Prompt: "prompt of b", Model: later})
		for _, id := range []string{"a", "b"} {
			rec := s.wait(id)
			assert.Equal(t, jobs.StateHeld, rec.State, "%s %s", id, rec.Message)
			assert.Len(t, rec.Candidates, 1)
		}
		assert.Len(t, s.sim.Tasks(), 2)
	})
}

// The image size decides, although the later create is the likelier creator.
func TestImageSizeIdentifiesTheCreator(t *testing.T) {
	for _, slow := range []time.Duration{time.Second, 15 * time.Minute} {
		for _, after := range []time.Duration{75 * time.Second, 100 * time.Second} {
			t.Run(fmt.Sprint(slow, after), func(t *testing.T) {
				bubble(t, &simulator.Simulator{TaskTime: simulator.Between(slow, slow)}, func(_ *testing.T, s *stack) {
					s.known()
					s.sim.Render = sizedPNG
					s.sim.Script(s.late("a", after), html("b"))
					s.enqueue(jobs.Request{ID: "a", Prompt: "prompt of a", Size: "720*1280"})
					s.enqueue(jobs.Request{ID: "b", Prompt: "prompt of b", Size: "1024*1024"})
					s.requireOwnPair(1)
				})
			})
		}
	}
}

// The number of images decides once the task has ended, however long it takes.
func TestImageCountIdentifiesTheCreator(t *testing.T) {
	for _, after := range []time.Duration{75 * time.Second, 100 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, &simulator.Simulator{TaskTime: simulator.Between(15*time.Minute, 15*time.Minute)}, func(_ *testing.T, s *stack) {
				s.known()
				s.sim.Script(s.late("a", after), html("b"))
				s.want("a", 2)
				s.want("b", 1)
				s.requireOwnPair(2)
			})
		})
	}
}
