package drill

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// outcomes decides how tasks end, by the job and by whether it is the job's first task.
type outcomes struct {
	// retryable lets some first tasks fail with a retryable error; the retry follows
	// half a minute later.
	retryable bool

	mu   sync.Mutex
	seen map[string]bool
}

func newOutcomes(again bool) *outcomes { return &outcomes{retryable: again, seen: map[string]bool{}} }

// isRefused reports whether the service rejects a job's request (moderation).
func isRefused(number int) bool { return number%23 == 19 }

func (f *outcomes) next(req dashscope.CreateRequest) simulator.Outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !f.seen[req.Input.Prompt]
	f.seen[req.Input.Prompt] = true
	number := 0
	if _, err := fmt.Sscanf(strings.TrimPrefix(req.Input.Prompt, promptPrefix), "drill-%d", &number); err != nil {
		return simulator.Outcome{}
	}
	moderated := simulator.Failure{Code: "DataInspectionFailed", Message: "Output data may contain inappropriate content."}
	switch {
	case isRefused(number):
		return simulator.Outcome{Code: moderated.Code, Message: moderated.Message}
	case number%17 == 6 && first && f.retryable:
		return simulator.Outcome{Code: "InternalError", Message: "An internal error has occurred."}
	case number%15 == 8: // with two images
		return simulator.Outcome{Images: map[int]simulator.Failure{1: moderated}}
	}
	return simulator.Outcome{}
}

// foreignPrompt is the prompt of another program's tasks, foreignTime their duration.
const foreignPrompt, foreignTime = "of another program", 1500 * time.Millisecond

// foreignModel is the older model with the most creates a second.
const foreignModel = "wan2.5-t2i-preview"

// taskTime returns how long a task takes.
func taskTime(rng *rand.Rand, req dashscope.CreateRequest) time.Duration {
	if req.Input.Prompt == foreignPrompt {
		return foreignTime
	}
	return simulator.Between(taskShortest, taskLongest)(rng, req)
}
