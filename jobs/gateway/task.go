package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
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

// serviceLocation is the time zone of DashScope's times (dashscope-api: the sample of the
// EventBridge page).
func serviceLocation() *time.Location { return time.FixedZone("UTC+8", 8*60*60) }

const (
	serviceTimeLayout = "2006-01-02 15:04:05.000"
	// heldRunningTime is how long a held job is reported as RUNNING, so that an operator
	// has time to decide.
	heldRunningTime = 24 * time.Hour
	codeHeld        = "Held" // not DashScope's
)

// status returns a job's state as a DashScope task status. It never goes back, however often
// the job is tried again, unless an operator reopens a job that has ended.
func status(rec *jobs.Job, now time.Time) string {
	switch rec.State {
	case jobs.StateScheduled, jobs.StateQueued, jobs.StatePrepared, jobs.StateRetrying, jobs.StateSubmitting, jobs.StateGenerating, jobs.StateStoring:
		if rec.StartedAt.IsZero() {
			return dashscope.StatusPending
		}
	case jobs.StateHeld:
		if now.Sub(rec.UpdatedAt) >= heldRunningTime {
			return dashscope.StatusFailed
		}
	case jobs.StateSucceeded:
		return dashscope.StatusSucceeded
	case jobs.StateFailed:
		return dashscope.StatusFailed
	case jobs.StateCanceled:
		return dashscope.StatusCanceled
	}
	return dashscope.StatusRunning
}

func isFinal(status string) bool {
	return slices.Contains([]string{dashscope.StatusSucceeded, dashscope.StatusFailed, dashscope.StatusCanceled, dashscope.StatusUnknown}, status)
}

// startTime is when the job was submitted; zero while it waits.
func startTime(rec *jobs.Job) time.Time {
	if rec.State.Waiting() {
		return time.Time{}
	}
	return rec.SubmittedAt
}

// taskResponse returns a job in the format of a DashScope task.
func (a *api) taskResponse(r *request, rec *jobs.Job) (*dashscope.TaskResponse, error) {
	moment := func(at time.Time) string {
		if at.IsZero() {
			return ""
		}
		return at.In(serviceLocation()).Format(serviceTimeLayout)
	}
	task := &dashscope.TaskResponse{Output: dashscope.TaskOutput{
		TaskID: rec.ID, TaskStatus: status(rec, time.Now()),
		SubmitTime: moment(rec.EnqueuedAt), ScheduledTime: moment(startTime(rec)), EndTime: moment(rec.FinishedAt),
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
		metrics.Total, out.TaskMetrics = max(metrics.Succeeded+len(rec.Missing()), len(rec.Images)), metrics
		metrics.Failed = metrics.Total - metrics.Succeeded
		task.Usage = usage(rec, metrics.Succeeded)
	case dashscope.StatusFailed:
		metrics.Failed = metrics.Total
		out.Code, out.Message = rec.Code, rec.Message
		if rec.State == jobs.StateHeld {
			out.Code, out.Message = codeHeld, "the job is held for a decision ("+rec.Code+"): contact the operator of this Danqing server"
		}
	}
	answer := task.InProtocol(protocolOf(rec))
	return &answer, nil
}

// protocolOf returns the protocol in which a job is answered.
func protocolOf(rec *jobs.Job) dashscope.Protocol {
	m, err := jobs.LookupModel(rec.Model)
	if err != nil {
		return dashscope.ProtocolText2Image // of a model that is no longer offered
	}
	return dashscope.Protocol(m.Protocol)
}

// usage returns what DashScope says that it charges for: Qwen-Image 3.0 by size and with its
// reference images, see [dashscope.Usage].
func usage(rec *jobs.Job, images int) *dashscope.Usage {
	m, err := jobs.LookupModel(rec.Model)
	first := slices.IndexFunc(rec.Images, func(image jobs.Image) bool { return image.Key != "" })
	switch {
	case err != nil || first < 0 || m.Protocol != jobs.ProtocolImageGeneration:
		return &dashscope.Usage{ImageCount: images}
	case m.InputPrices == nil:
		return &dashscope.Usage{ImageCount: images, Size: fmt.Sprintf("%d*%d", rec.Images[first].Width, rec.Images[first].Height)}
	}
	u := &dashscope.Usage{OutputImageCount: images, OutputImageType: dashscope.SmallImageType}
	if rec.Images[first].Width*rec.Images[first].Height > dashscope.LargePixels {
		u.OutputImageType = dashscope.LargeImageType
	}
	if rec.Request != nil {
		u.InputImageCount = new(len(rec.Request.RefImages))
	}
	return u
}

func (a *api) result(r *http.Request, rec *jobs.Job, image jobs.Image) (dashscope.Result, error) {
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

// unknownTask returns DashScope's answer for a task that does not exist.
func unknownTask(id string) *dashscope.TaskResponse {
	return &dashscope.TaskResponse{Output: dashscope.TaskOutput{TaskID: id, TaskStatus: dashscope.StatusUnknown}}
}

const (
	// defaultLongPoll is how long a query waits for a change: programs of their own commonly
	// give up after 5 to 30 s, and take that for a failure of an image that is being paid for.
	defaultLongPoll = 3 * time.Second
	// maxLongPoll is how long a query of the official SDKs waits, or one that asks for it.
	// The SDKs time out after 300 s, proxies commonly after 60.
	maxLongPoll = 50 * time.Second
	// lastAnswersKept is how many last answers are cached, of up to maxAnswerBytes each.
	lastAnswersKept = 1 << 15
	maxAnswerBytes  = 2 << 10
	// readTimeout limits one read from Redis.
	readTimeout = 5 * time.Second
)

// task answers a query of a job by long polling: at once if the answer differs from the
// client's last one, else as soon as it changes, or after longPollTime. While Redis is
// unavailable it waits for the same time and then repeats the last answer, to this client or
// to another one, because the SDKs abandon the job on any error.
func (a *api) task(w http.ResponseWriter, r *request) (any, error) {
	id := r.PathValue("id")
	client, anyone := clientID(r, id), r.caller.Name+"\x00"+id
	last, cached := a.lastAnswers.Get(client)
	ctx, cancel := context.WithTimeout(r.Context(), longPollTime(r))
	defer cancel()
	changed, stop := a.hub.watch(id)
	defer stop()
	var answer *dashscope.TaskResponse
	for failures := 0; ; {
		now, err := a.readTask(r, id)
		if err == nil {
			failures, answer = 0, now
			if isFinal(now.Output.TaskStatus) || !cached || last.hash != newLastAnswer(now).hash {
				break
			}
		} else {
			failures++
		}
		if !a.hub.wait(ctx, changed, pollDelay(failures)) {
			break
		}
	}
	if answer == nil {
		if !cached {
			last, _ = a.lastAnswers.Get(anyone)
		}
		answer = fallbackAnswer(id, last.text)
	} else if answer.Output.TaskStatus != dashscope.StatusUnknown { // not cached: any ID can be queried
		a.lastAnswers.Add(client, newLastAnswer(answer))
		a.lastAnswers.Add(anyone, newLastAnswer(answer))
	}
	if r.simulated {
		w.Header().Set(dashscope.HeaderSimulated, "true")
	}
	answer.RequestID = r.id
	return answer, context.Cause(r.Context()) // an error if the client has disconnected
}

// clientID identifies the client of a query as well as possible: the SDKs open a new
// connection for every query.
func clientID(r *request, id string) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{r.caller.Name, host, r.UserAgent(), id}, "\x00"))) // a hash limits the length
	return string(sum[:])
}

// sdkUserAgent begins the User-Agent of DashScope's SDKs for Python and Java.
const sdkUserAgent = "dashscope/"

// longPollTime returns how long the client can wait: RFC 7240's Prefer: wait=SECONDS, or what
// is known of its kind.
func longPollTime(r *request) time.Duration {
	if r.crowded {
		return 0
	}
	for _, preference := range strings.FieldsFunc(strings.Join(r.Header.Values("Prefer"), ","), func(r rune) bool { return r == ',' || r == ';' }) {
		name, value, _ := strings.Cut(preference, "=")
		if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && strings.EqualFold(strings.TrimSpace(name), "wait") && seconds >= 0 {
			return min(time.Duration(min(seconds, 3600))*time.Second, maxLongPoll)
		}
	}
	if strings.HasPrefix(strings.ToLower(r.UserAgent()), sdkUserAgent) {
		return maxLongPoll
	}
	return defaultLongPoll
}

// readTask returns the current answer about a job. It fails if Redis or the bucket does
// not respond.
func (a *api) readTask(r *request, id string) (*dashscope.TaskResponse, error) {
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	rec, err := a.get(ctx, r.caller, id)
	if errors.Is(err, jobs.ErrNotFound) {
		return unknownTask(id), nil
	}
	if errors.Is(err, jobs.ErrCorrupt) || errors.Is(err, storage.ErrUnreadable) { // permanent
		task := unknownTask(id)
		task.Output.TaskStatus, task.Output.Code, task.Output.Message = dashscope.StatusFailed, jobs.CodeRecordCorrupt, "the job's record is corrupt: contact the operator of this Danqing server"
		return task, nil
	}
	if err != nil {
		return nil, err
	}
	r.simulated = rec.Simulated
	return a.taskResponse(r, rec)
}

// lastAnswer is a cached answer: its hash, and its text unless it is too long.
type lastAnswer struct {
	hash [sha256.Size]byte
	text string
}

func newLastAnswer(answer *dashscope.TaskResponse) lastAnswer {
	encoded, _ := json.Marshal(answer) // cannot fail: strings and numbers
	s := lastAnswer{hash: sha256.Sum256(encoded)}
	if len(encoded) <= maxAnswerBytes {
		s.text = string(encoded)
	}
	return s
}

// fallbackAnswer returns the answer while Redis is unavailable: the last one, or PENDING.
func fallbackAnswer(id, last string) *dashscope.TaskResponse {
	var answer dashscope.TaskResponse
	if last == "" || json.Unmarshal([]byte(last), &answer) != nil {
		answer.Output.TaskID, answer.Output.TaskStatus = id, dashscope.StatusPending
	}
	return &answer
}

// waitFor returns the job as soon as until is true, or in its current state when ctx or
// the gateway ends. While Redis is unavailable it waits. It fails with [jobs.ErrNotFound],
// or with the last error if the job could never be read.
func (a *api) waitFor(ctx context.Context, c caller, id string, until func(*jobs.Job) bool) (*jobs.Job, error) {
	changed, stop := a.hub.watch(id)
	defer stop()
	var rec *jobs.Job
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
		if !a.hub.wait(ctx, changed, pollDelay(failures)) {
			if rec == nil {
				return nil, err
			}
			return rec, nil
		}
	}
}
