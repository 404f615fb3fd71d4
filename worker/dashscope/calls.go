package dashscope

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// taskIDPattern matches the UUIDs that the service creates and nothing that could
// change a path.
var taskIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// Created is the answer to a create: the task exists.
type Created struct {
	TaskID    string
	Status    string    // usually PENDING
	RequestID string    // also shown in the list; may be ""
	Simulated bool      // the simulator answered
	Date      time.Time // the service's clock; zero if absent
}

// Create creates a task. It sends the request once, on its own connection, and follows
// no redirect.
//
// It fails with an [*Error]. After [KindAmbiguous] the caller must look for the task
// before it creates again; after every other kind there is certainly no task. Canceling
// ctx while the request is out is ambiguous too: a graceful shutdown should let it
// finish.
func (c *Client) Create(ctx context.Context, req CreateRequest) (*Created, error) {
	body, err := req.Encode()
	if err != nil {
		return nil, invalid(opCreate, err)
	}
	ctx, cancel := withTimeout(ctx, c.timeouts.create)
	defer cancel()
	r, err := c.request(ctx, http.MethodPost, req.Protocol.Path(), nil, bytes.NewReader(body))
	if err != nil {
		return nil, invalid(opCreate, err)
	}
	r.GetBody = nil // without it net/http cannot send the body again
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(HeaderAsync, "enable")
	for _, ref := range req.Input.References() {
		if strings.HasPrefix(ref, "oss://") {
			r.Header.Set(HeaderOSSResolve, "enable")
		}
	}
	a := c.exchange(c.oneShot, opCreate, r)
	// Only the needed fields are decoded: an oddity elsewhere must not hide a task_id.
	// A task_id counts with any status: a task that can be queried is not ambiguous.
	var got struct {
		Output struct {
			TaskID     string `json:"task_id"`
			TaskStatus string `json:"task_status"`
		} `json:"output"`
	}
	if a.err != nil || json.Unmarshal(a.body, &got) != nil || !taskIDPattern.MatchString(got.Output.TaskID) {
		return nil, c.fault(opCreate, a)
	}
	return &Created{
		TaskID: got.Output.TaskID, Status: got.Output.TaskStatus, RequestID: c.text(requestID(a.body)),
		Simulated: a.simulated(), Date: a.date(),
	}, nil
}

// encode returns JSON without HTML escapes (<auto>), as both SDKs send it.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func requestID(body []byte) string {
	var r struct {
		RequestID string `json:"request_id"`
	}
	if json.Unmarshal(body, &r) != nil {
		return ""
	}
	return r.RequestID
}

// Task is the answer to a query.
type Task struct {
	TaskResponse
	Simulated bool      // the simulator answered
	Date      time.Time // the service's clock; zero if absent
}

// Query returns a task. It first waits for the rate limit. The answer has this task's
// ID and some status, possibly one that this package does not define. The queries of
// URLs are removed from its messages.
//
// It fails with an [*Error] of [KindTemporary], [KindThrottled] or [KindAccount]; none
// of them says anything about the task.
func (c *Client) Query(ctx context.Context, taskID string) (*Task, error) {
	if !taskIDPattern.MatchString(taskID) {
		return nil, invalid(opQuery, fmt.Errorf("task_id %q: not a task's ID", taskID))
	}
	a, err := c.ask(ctx, opQuery, http.MethodGet, PathTasks+"/"+taskID, nil)
	if err != nil {
		return nil, err
	}
	t := &Task{Simulated: a.simulated(), Date: a.date()}
	// A field of another type than documented is left out: it must not hide an image.
	err = json.Unmarshal(a.body, &t.TaskResponse)
	if _, odd := errors.AsType[*json.UnmarshalTypeError](err); err != nil && !odd || t.Output.TaskStatus == "" {
		return nil, c.fault(opQuery, a)
	}
	if t.Output.TaskID != taskID {
		if t.Output.TaskID != "" {
			a.err = errors.New("answer is about another task")
			return nil, c.fault(opQuery, a)
		}
		t.Output.TaskID = taskID
	}
	out := &t.Output
	out.flattenChoices()
	out.TaskStatus, out.Code, out.Message, t.RequestID = c.text(out.TaskStatus), c.text(out.Code), c.text(out.Message), c.text(t.RequestID)
	for i, r := range out.Results {
		out.Results[i].Code, out.Results[i].Message = c.text(r.Code), c.text(r.Message)
		out.Results[i].ActualPrompt = cleanTo(c.scrub(r.ActualPrompt), maxPromptRunes)
	}
	return t, nil
}

// Cancel cancels a task, which works only while it is PENDING. It first waits for the
// rate limit.
//
// It fails with an [*Error], which wraps [ErrNotPending] if the task is no longer
// PENDING. After [KindTemporary] it is unknown whether the task was canceled: query it.
func (c *Client) Cancel(ctx context.Context, taskID string) error {
	if !taskIDPattern.MatchString(taskID) {
		return invalid(opCancel, fmt.Errorf("task_id %q: not a task's ID", taskID))
	}
	_, err := c.ask(ctx, opCancel, http.MethodPost, PathTasks+"/"+taskID+"/cancel", nil)
	e, ok := errors.AsType[*Error](err)
	if ok && e.Status == http.StatusBadRequest && normalCode(e.Code) == normalCode("UnsupportedOperation") {
		e.Err = ErrNotPending
	}
	return err
}

// ListFilter selects tasks. The zero value is the first page of ten tasks of the last
// 24 hours. There is no filter by time: its time zone is not documented.
type ListFilter struct {
	TaskID   string
	Model    string
	Status   string
	PageNo   int // counted from 1; 0 means 1
	PageSize int // 0 means the service's 10; the maximum is not documented
}

// Page is one page of a list.
type Page struct {
	ListResponse
	Simulated bool      // the simulator answered
	Date      time.Time // the service's clock; zero if absent
}

// List lists the tasks of the whole main account, of all its keys. It first waits for
// the rate limit. It fails with an [*Error] as Query does; an answer without a total is
// such an error, never an empty list.
func (c *Client) List(ctx context.Context, f ListFilter) (*Page, error) {
	p, _, err := c.list(ctx, f)
	return p, err
}

func (c *Client) list(ctx context.Context, f ListFilter) (*Page, answer, error) {
	q := url.Values{"page_no": {strconv.Itoa(cmp.Or(f.PageNo, 1))}}
	for k, v := range map[string]string{"task_id": f.TaskID, "model_name": f.Model, "status": f.Status} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if f.PageSize != 0 {
		q.Set("page_size", strconv.Itoa(f.PageSize))
	}
	a, err := c.ask(ctx, opList, http.MethodGet, PathTasks, q)
	if err != nil {
		return nil, a, err
	}
	p := &Page{Simulated: a.simulated(), Date: a.date()}
	p.Total = -1
	if json.Unmarshal(a.body, &p.ListResponse) != nil || p.Total < 0 {
		return nil, a, c.fault(opList, a)
	}
	for i, task := range p.Data {
		task.TaskID, task.Status, task.RequestID = c.text(task.TaskID), c.text(task.Status), c.text(task.RequestID)
		task.APIKeyID, task.CallerParentID = c.text(task.APIKeyID), c.text(task.CallerParentID)
		p.Data[i] = task
	}
	return p, a, nil
}

// Endpoint describes the server at the base URL.
type Endpoint struct {
	Simulated bool      // the simulator
	Gateway   bool      // Danqing's own API: a worker must not submit to it
	Date      time.Time // its clock; zero if absent
	// Owner is the main account's number (caller_parent_id); "" if it had no task
	// within 24 h.
	Owner string
}

// Probe lists one task, at no cost, to check the key and to identify the server. If any
// answer was received, the Endpoint is filled even if there is an error, which is an
// [*Error] as of List.
func (c *Client) Probe(ctx context.Context) (Endpoint, error) {
	page, a, err := c.list(ctx, ListFilter{PageSize: 1})
	e := Endpoint{Simulated: a.simulated(), Gateway: a.header.Get(HeaderGateway) != "", Date: a.date()}
	if err == nil && len(page.Data) > 0 {
		e.Owner = page.Data[0].CallerParentID
	}
	return e, err
}

// ask makes a repeatable call: it waits for the rate limit, sends the request, and
// returns a complete answer with HTTP 200.
func (c *Client) ask(ctx context.Context, op, method, path string, query url.Values) (answer, error) {
	if err := c.limiter.Wait(ctx); err != nil {
		return answer{}, &Error{Op: op, Kind: KindTemporary, Err: fmt.Errorf("wait for the rate limit: %w", cmp.Or(context.Cause(ctx), err))}
	}
	return c.get(ctx, op, method, path, query)
}

func (c *Client) get(ctx context.Context, op, method, path string, query url.Values) (answer, error) {
	ctx, cancel := withTimeout(ctx, c.timeouts.query)
	defer cancel()
	r, err := c.request(ctx, method, path, query, nil)
	if err != nil {
		return answer{}, invalid(op, err)
	}
	a := c.exchange(c.pooled, op, r)
	if a.err != nil || a.status != http.StatusOK {
		return a, c.fault(op, a)
	}
	return a, nil
}

// ParseTime parses the times of a query's answer, "2006-01-02 15:04:05.000". They have
// no zone. UTC+8 follows from the sample on the async-task-api page, whose event is
// published eight hours "before" its task ends.
func ParseTime(s string) (time.Time, error) {
	t, err := time.ParseInLocation(time.DateTime, s, time.FixedZone("UTC+8", 8*60*60))
	if err != nil {
		return time.Time{}, fmt.Errorf("parse time %q: %w", clean(s), err)
	}
	return t, nil
}
