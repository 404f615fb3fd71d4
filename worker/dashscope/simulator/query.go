package simulator

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// maxPageSize limits a page of the list. The real limit is not documented.
const maxPageSize = 100

// beijing is the time zone of the service's times without a zone.
func beijing() *time.Location { return time.FixedZone("UTC+8", 8*60*60) }

// formatTime formats a time as a query returns it.
func formatTime(t time.Time) string { return t.In(beijing()).Format("2006-01-02 15:04:05.000") }

// find returns an account's task within its lifetime, or nil. s.mu must be held.
func (s *Simulator) find(account, id string, now time.Time) *task {
	t := s.byID[id]
	if t == nil || t.Account != account || now.Sub(t.CreatedAt) >= dashscope.TaskLifetime {
		return nil
	}
	return t
}

// query serves a query of one task: UNKNOWN with HTTP 200 for one that is not the
// account's or is older than 24 h.
func (s *Simulator) query(r *http.Request, c caller, requestID, taskID string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	if err := s.admitQuery(c.account, now); err != nil {
		return nil, err
	}
	out := dashscope.TaskResponse{
		RequestID: requestID,
		Output:    dashscope.TaskOutput{TaskID: taskID, TaskStatus: dashscope.StatusUnknown},
	}
	if t := s.find(c.account, taskID, now); t != nil {
		s.describe(&out, r, t, now)
		out = out.InProtocol(t.model.protocol())
	}
	return out, nil
}

// describe fills in a query's answer, field by field as in the published examples.
func (s *Simulator) describe(out *dashscope.TaskResponse, r *http.Request, t *task, now time.Time) {
	o := &out.Output
	o.TaskStatus = t.status(now)
	metrics := dashscope.TaskMetrics{Total: t.n()}
	switch o.TaskStatus {
	case dashscope.StatusCanceled:
		return
	case dashscope.StatusFailed:
		failure := t.failure()
		metrics.Failed = t.n()
		o.Code, o.Message, o.TaskMetrics = failure.Code, failure.Message, &metrics
		return
	case dashscope.StatusSucceeded:
		metrics.Succeeded, metrics.Failed = t.goodImages(), t.n()-t.goodImages()
		o.EndTime, o.Results = formatTime(t.end), s.results(r, t)
		out.Usage = t.usage()
	}
	o.SubmitTime, o.TaskMetrics = formatTime(t.CreatedAt), &metrics
	if t.model.protocol() == dashscope.ProtocolImageGeneration {
		o.TaskMetrics = nil // not in the reported answers
	}
	if t.started(now) {
		o.ScheduledTime = formatTime(t.start)
	}
}

// usage is what a succeeded task is charged for. Qwen-Image 3.0 says of which price its images are.
func (t *task) usage() *dashscope.Usage {
	if t.model.catalog == nil || t.model.catalog.InputPrices == nil {
		u := &dashscope.Usage{ImageCount: t.goodImages()}
		if t.model.protocol() == dashscope.ProtocolImageGeneration {
			w, h := t.size()
			u.Size = fmt.Sprintf("%d*%d", w, h)
		}
		return u
	}
	u := &dashscope.Usage{OutputImageCount: t.goodImages(), OutputImageType: dashscope.SmallImageType, InputImageCount: new(len(inputs(t.Request.Input)))}
	if w, h := t.size(); w*h > dashscope.LargePixels {
		u.OutputImageType = dashscope.LargeImageType
	}
	return u
}

// size is that of the task's images. Qwen-Image 3.0 edits at its largest size, whatever is asked.
func (t *task) size() (width, height int) {
	if t.model.catalog != nil && t.model.catalog.InputPrices != nil && len(inputs(t.Request.Input)) > 0 {
		return 2048, 2048
	}
	width, height, _ = t.model.sizes.parse(t.Request.Parameters.Size)
	return width, height
}

// charged is the price of the task's images.
func (t *task) charged(images int) int64 {
	if t.model.catalog == nil || images == 0 {
		return int64(images) * t.model.microYuan
	}
	p := jobs.Purchase{Images: images, Inputs: len(inputs(t.Request.Input))}
	if w, h := t.size(); t.model.catalog.LargePixels > 0 && w*h > t.model.catalog.LargePixels {
		p.LargeImages = images
	}
	cost, _ := t.model.catalog.CostOf(nil, t.model.region, p)
	return cost
}

// results lists a succeeded task's images. The results of wanx-v1 have only the URL,
// those of the other models the prompt too, and the rewritten prompt if there is one. A
// query always returns the same URL.
func (s *Simulator) results(r *http.Request, t *task) []dashscope.Result {
	out := make([]dashscope.Result, t.n())
	for i := range out {
		if f := t.Outcome.Images[i]; f.Code != "" {
			out[i] = dashscope.Result{Code: f.Code, Message: f.Message}
			continue
		}
		out[i].URL = s.resultURL(r, t, i)
		if t.model.honors("prompt_extend") && t.model.protocol() == dashscope.ProtocolText2Image {
			out[i].OrigPrompt, out[i].ActualPrompt = t.Request.Input.Prompt, t.actualPrompt()
		}
	}
	return out
}

// cancel serves a cancel: only a PENDING task can be canceled.
func (s *Simulator) cancel(r *http.Request, c caller, requestID, taskID string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	if err := s.admitQuery(c.account, now); err != nil {
		return nil, err
	}
	t := s.find(c.account, taskID, now)
	if t == nil || t.status(now) != dashscope.StatusPending {
		return nil, &apiError{http.StatusBadRequest, "UnsupportedOperation", "Failed to cancel the task, please confirm if the task is in PENDING status."}
	}
	if err := s.record(entry{Cancel: &cancellation{TaskID: taskID, At: now}}); err != nil {
		return nil, err
	}
	s.lanes[laneKey{t.Account, t.Request.Model}].cancel(t, now)
	s.log.InfoContext(r.Context(), "task canceled", "task_id", t.ID, "account", t.Account, "request_id", requestID)
	return struct {
		RequestID string `json:"request_id"`
	}{requestID}, nil
}

// list serves the list of an account's tasks, newest first.
func (s *Simulator) list(r *http.Request, c caller, requestID string) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	if err := s.admitQuery(c.account, now); err != nil {
		return nil, err
	}
	q, err := parseListQuery(r, now)
	if err != nil {
		return nil, err
	}
	var fit []dashscope.TaskInfo
	for _, t := range slices.Backward(s.tasks) {
		age := now.Sub(t.CreatedAt)
		if t.Account == c.account && age >= s.ListLag && age < dashscope.TaskLifetime && !slices.Contains(s.Unlisted, t.model.protocol()) && q.wants(t, now) {
			fit = append(fit, s.listed(t, now))
		}
	}
	first := min((q.pageNo-1)*q.pageSize, len(fit))
	return dashscope.ListResponse{
		Total: len(fit), TotalPage: (len(fit) + q.pageSize - 1) / q.pageSize,
		PageNo: q.pageNo, PageSize: q.pageSize, RequestID: requestID,
		Data: append([]dashscope.TaskInfo{}, fit[first:min(first+q.pageSize, len(fit))]...),
	}, nil
}

// listed returns a task as the list shows it.
func (s *Simulator) listed(t *task, now time.Time) dashscope.TaskInfo {
	info := dashscope.TaskInfo{
		TaskID: t.ID, Status: t.status(now), ModelName: t.Request.Model, Region: s.region(),
		APIKeyID: t.KeyID, RequestID: t.RequestID, GmtCreate: t.CreatedAt.UnixMilli(),
		CallerUID: digits("account", t.Account, 16), CallerParentID: digits("account", t.Account, 16),
		UserAPIUniqueKey: "apikey:v1:aigc:" + strings.ReplaceAll(strings.TrimPrefix(t.model.protocol().Path(), "/services/aigc/"), "/", ":") + ":" + t.Request.Model,
	}
	if t.started(now) {
		info.StartTime = t.start.UnixMilli()
	}
	if !now.Before(t.end) {
		info.EndTime = t.end.UnixMilli()
	}
	return info
}

// listQuery holds the parameters of a list.
type listQuery struct {
	taskID, model, status, keyID string
	from, to                     time.Time
	pageNo, pageSize             int
}

// parseListQuery parses the parameters of a list (manage-asynchronous-tasks page).
// Times are assumed to be UTC+8: the page names no zone.
func parseListQuery(r *http.Request, now time.Time) (listQuery, error) {
	values := r.URL.Query()
	bad := func(name string) error {
		return &apiError{http.StatusBadRequest, "InvalidParameter", name + " is invalid, please check the request parameters."}
	}
	q := listQuery{
		taskID: values.Get("task_id"), model: values.Get("model_name"), status: values.Get("status"),
		keyID: values.Get("api_key_id"), pageNo: 1, pageSize: 10,
	}
	for name, field := range map[string]*int{"page_no": &q.pageNo, "page_size": &q.pageSize} {
		if text := values.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 32)
			if err != nil || n < 1 {
				return q, bad(name)
			}
			*field = int(n)
		}
	}
	q.pageNo, q.pageSize = min(q.pageNo, 1<<20), min(q.pageSize, maxPageSize)
	for name, field := range map[string]*time.Time{"start_time": &q.from, "end_time": &q.to} {
		if text := values.Get(name); text != "" {
			at, err := time.ParseInLocation("20060102150405", text, beijing())
			if err != nil {
				return q, bad(name)
			}
			*field = at
		}
	}
	switch {
	case q.from.IsZero() && q.to.IsZero():
		q.from, q.to = now.Add(-24*time.Hour), now.Add(time.Second)
	case q.from.IsZero():
		q.from = q.to.Add(-24 * time.Hour)
	case q.to.IsZero():
		q.to = q.from.Add(24 * time.Hour)
	case q.to.Before(q.from) || q.to.Sub(q.from) > 24*time.Hour:
		return q, bad("The time range, at most 24 hours,")
	}
	return q, nil
}

// wants reports whether a task matches the filters.
func (q listQuery) wants(t *task, now time.Time) bool {
	return (q.taskID == "" || q.taskID == t.ID) &&
		(q.model == "" || q.model == t.Request.Model) &&
		(q.keyID == "" || q.keyID == t.KeyID) &&
		(q.status == "" || q.status == t.status(now)) &&
		!t.CreatedAt.Before(q.from) && !t.CreatedAt.After(q.to)
}
