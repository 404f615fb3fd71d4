package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// serviceZone is the zone of DashScope's times without one (dashscope-api: the sample of
// the EventBridge page).
func serviceZone() *time.Location { return time.FixedZone("UTC+8", 8*60*60) }

const (
	serviceTime = "2006-01-02 15:04:05.000"
	// heldPatience is how long a held job reads as RUNNING: a person decides meanwhile.
	heldPatience = 24 * time.Hour
	codeHeld     = "Held" // ours
)

// status is a job's state in DashScope's words.
func status(rec *jobs.Record, now time.Time) string {
	switch rec.State {
	case jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying:
		return dashscope.StatusPending
	case jobs.StateGenerating:
		if rec.RunningAt.IsZero() {
			return dashscope.StatusPending
		}
	case jobs.StateHeld:
		if now.Sub(rec.UpdatedAt) >= heldPatience {
			return dashscope.StatusFailed
		}
	case jobs.StateSucceeded:
		return dashscope.StatusSucceeded
	case jobs.StateFailed:
		return dashscope.StatusFailed
	case jobs.StateCanceled:
		return dashscope.StatusCanceled
	case jobs.StateSubmitting, jobs.StateStoring:
	}
	return dashscope.StatusRunning
}

func ended(status string) bool {
	return slices.Contains([]string{dashscope.StatusSucceeded, dashscope.StatusFailed, dashscope.StatusCanceled, dashscope.StatusUnknown}, status)
}

// shown is a job as DashScope shows a task.
func (a *api) shown(r *request, rec *jobs.Record) (*dashscope.TaskResponse, error) {
	moment := func(at time.Time) string {
		if at.IsZero() {
			return ""
		}
		return at.In(serviceZone()).Format(serviceTime)
	}
	task := &dashscope.TaskResponse{Output: dashscope.TaskOutput{
		TaskID: rec.ID, TaskStatus: status(rec, time.Now()),
		SubmitTime: moment(rec.EnqueuedAt), ScheduledTime: moment(rec.SubmittedAt), EndTime: moment(rec.FinishedAt),
	}}
	out := &task.Output
	metrics := &dashscope.TaskMetrics{}
	if rec.Request != nil {
		metrics.Total, out.TaskMetrics = rec.Request.N, metrics
	}
	switch out.TaskStatus {
	case dashscope.StatusSucceeded:
		for _, image := range rec.Images {
			result, err := a.result(r.Request, rec, image)
			if err != nil {
				return nil, err
			}
			if out.Results = append(out.Results, result); image.Key != "" {
				metrics.Succeeded++
			}
		}
		metrics.Total, out.TaskMetrics = max(metrics.Total, len(rec.Images)), metrics
		metrics.Failed = metrics.Total - metrics.Succeeded
		task.Usage = &dashscope.Usage{ImageCount: metrics.Succeeded}
	case dashscope.StatusFailed:
		metrics.Failed = metrics.Total
		out.Code, out.Message = rec.Code, rec.Message
		if rec.State == jobs.StateHeld {
			out.Code, out.Message = codeHeld, "the job waits for a person's decision ("+rec.Code+"): ask whoever runs this Danqing"
		}
	}
	return task, nil
}

func (a *api) result(r *http.Request, rec *jobs.Record, image jobs.Image) (dashscope.Result, error) {
	if image.Key == "" {
		return dashscope.Result{Code: image.Code, Message: image.Message}, nil
	}
	link, err := a.imageURL(r, rec, image)
	result := dashscope.Result{URL: link, ActualPrompt: image.ActualPrompt}
	if image.ActualPrompt != "" && rec.Request != nil {
		result.OrigPrompt = rec.Request.Prompt
	}
	return result, err
}

// unknownTask is what DashScope answers for a task that it does not know.
func unknownTask(id string) *dashscope.TaskResponse {
	return &dashscope.TaskResponse{Output: dashscope.TaskOutput{TaskID: id, TaskStatus: dashscope.StatusUnknown}}
}

const (
	// holdMost is how long a look is held that has nothing new to tell: clients wait 300
	// s, and proxies commonly 60.
	holdMost = 50 * time.Second
	// seenKept is how many clients' last answers are remembered, of seenBytes each at
	// most.
	seenKept  = 1 << 15
	seenBytes = 2 << 10
	// readMost bounds one look at Redis.
	readMost = 5 * time.Second
)

// task answers a look at a job: at once if the client has not had this answer before,
// else as soon as there is another one, or after holdMost. While Redis is away it waits
// for it as long, and then gives the last answer that it knows: on any error the SDKs
// drop the job.
func (a *api) task(w http.ResponseWriter, r *request) (any, error) {
	id := r.PathValue("id")
	client := clientOf(r, id)
	last, known := a.seen.Get(client)
	ctx, cancel := context.WithTimeout(r.Context(), holdFor(r))
	defer cancel()
	changed, stop := a.hub.watch(id)
	defer stop()
	var answer *dashscope.TaskResponse
	for failures := 0; ; {
		now, err := a.look(r, id)
		if err == nil {
			failures, answer = 0, now
			if ended(now.Output.TaskStatus) || !known || last.hash != seenAs(now).hash {
				break
			}
		} else {
			failures++
		}
		if !a.hub.pause(ctx, changed, recheck(failures)) {
			break
		}
	}
	if answer == nil {
		answer = lastKnown(id, last.text)
	} else if answer.Output.TaskStatus != dashscope.StatusUnknown { // there is no end of names
		a.seen.Add(client, seenAs(answer))
	}
	if r.simulated {
		w.Header().Set(dashscope.HeaderSimulated, "true")
	}
	answer.RequestID = r.id
	return answer, context.Cause(r.Context()) // nobody reads it if the client has gone
}

// clientOf names who looks at a job, as far as one can tell clients apart: the SDKs open
// a connection for every look.
func clientOf(r *request, id string) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{r.caller.Name, host, r.UserAgent(), id}, "\x00"))) // whatever their lengths
	return string(sum[:])
}

// holdFor is how long the client lets its look be held: RFC 7240's Prefer: wait=SECONDS.
func holdFor(r *request) time.Duration {
	for _, preference := range strings.FieldsFunc(strings.Join(r.Header.Values("Prefer"), ","), func(r rune) bool { return r == ',' || r == ';' }) {
		name, value, _ := strings.Cut(preference, "=")
		if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && strings.EqualFold(strings.TrimSpace(name), "wait") && seconds >= 0 {
			return min(time.Duration(min(seconds, 3600))*time.Second, holdMost)
		}
	}
	return holdMost
}

// look reads what there is to tell of a job now. It fails if that cannot be told.
func (a *api) look(r *request, id string) (*dashscope.TaskResponse, error) {
	ctx, cancel := context.WithTimeout(r.Context(), readMost)
	defer cancel()
	rec, err := a.get(ctx, r.caller, id)
	if errors.Is(err, jobs.ErrNotFound) {
		return unknownTask(id), nil
	}
	if errors.Is(err, jobs.ErrDamaged) || errors.Is(err, storage.ErrUnreadable) { // which does not pass
		task := unknownTask(id)
		task.Output.TaskStatus, task.Output.Code, task.Output.Message = dashscope.StatusFailed, jobs.CodeRecordCorrupt, "the job's record is damaged: ask whoever runs this Danqing"
		return task, nil
	}
	if err != nil {
		return nil, err
	}
	r.simulated = rec.Simulated
	return a.shown(r, rec)
}

// seen is an answer as it is remembered: by its hash, and if it is not too long, whole.
type seen struct {
	hash [sha256.Size]byte
	text string
}

func seenAs(answer *dashscope.TaskResponse) seen {
	encoded, _ := json.Marshal(answer) // texts and numbers
	s := seen{hash: sha256.Sum256(encoded)}
	if len(encoded) <= seenBytes {
		s.text = string(encoded)
	}
	return s
}

// lastKnown is the answer to give while nothing can be read.
func lastKnown(id, last string) *dashscope.TaskResponse {
	var answer dashscope.TaskResponse
	if last == "" || json.Unmarshal([]byte(last), &answer) != nil {
		answer.Output.TaskID, answer.Output.TaskStatus = id, dashscope.StatusPending
	}
	return &answer
}

// await returns the job once until says so, or as it stands when ctx or the gateway
// ends. While Redis is away it waits. It fails with [jobs.ErrNotFound], or if the job
// was not read at all, with the reason.
func (a *api) await(ctx context.Context, c caller, id string, until func(*jobs.Record) bool) (*jobs.Record, error) {
	changed, stop := a.hub.watch(id)
	defer stop()
	var rec *jobs.Record
	for failures := 0; ; {
		now, err := a.get(ctx, c, id)
		switch {
		case errors.Is(err, jobs.ErrNotFound):
			return nil, err
		case err != nil:
			failures++
		default:
			if failures, rec = 0, now; until(rec) {
				return rec, nil
			}
		}
		if !a.hub.pause(ctx, changed, recheck(failures)) {
			if rec == nil {
				return nil, err
			}
			return rec, nil
		}
	}
}
