package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// caller is a loop that makes one picture after the other on a slot, as a program without
// Danqing does. Its connections are kept open, which is more than some of them do.
type caller struct {
	name string
	// before returns how long a query, counted from 0, is sent after the answer to the create
	// or to the query before it.
	before func(query int, takes, roundTrip time.Duration) time.Duration
	// mostQueries is after how many queries the task is given up, 0 if never.
	mostQueries int
	// fragile is set if an answer other than 200 ends the wait: the task is given up. Others
	// query again.
	fragile bool
	// overlaps is set if the next create does not wait until the picture is stored.
	overlaps bool
}

// callers returns the references, by what their authors have published.
func callers() []caller {
	return []caller{
		{name: clientOracle, before: beforeOracle, overlaps: true},
		{name: clientFixed, before: func(int, time.Duration, time.Duration) time.Duration { return fixedInterval }},
		// relay/adaptor/ali/image.go of songquanpeng/one-api, asyncTaskWait: a query at once,
		// then every 2 s, 20 in all; whatever is not a status ends it. Its caller downloads
		// the picture.
		{name: clientOneAPI, before: beforeOneAPI, mostQueries: 20, fragile: true},
		// dashscope/client/base_api.py of dashscope-sdk-python, BaseAsyncApi.wait. Of the
		// errors only 503 and 504 are waited out.
		{name: clientSDK, before: beforeSDK, fragile: true},
	}
}

// The names of the clients.
const (
	clientDanqing = "danqing"
	clientOracle  = "oracle"
	clientFixed   = "fixed poll, 0.5 s"
	clientAsynq   = "asynq, 2 s poll"
	clientOneAPI  = "one-api"
	clientSDK     = "DashScope SDK"
)

const (
	fixedInterval  = 500 * time.Millisecond
	asynqInterval  = 2 * time.Second
	oneAPIInterval = 2 * time.Second
	// retryInterval is how long a caller waits after a refused create.
	retryInterval = time.Second
)

// beforeSDK returns the waits of the DashScope SDK: 1 s at first, doubled with every third
// query up to 5 s. The first query is sent at once.
func beforeSDK(query int, _, _ time.Duration) time.Duration {
	if query == 0 {
		return 0
	}
	seconds := 1
	for step := 1; step <= query; step++ {
		if seconds < 5 && step%3 == 0 {
			seconds = min(2*seconds, 5)
		}
	}
	return time.Duration(seconds) * time.Second
}

func beforeOneAPI(query int, _, _ time.Duration) time.Duration {
	if query == 0 {
		return 0
	}
	return oneAPIInterval
}

// beforeOracle sends a query that arrives as the task ends. The task is a round trip old when
// the create's answer has gone both ways.
func beforeOracle(query int, takes, roundTrip time.Duration) time.Duration {
	if query == 0 {
		return max(takes-roundTrip, 0)
	}
	return time.Millisecond // it came too early
}

// errGivenUp means that a caller has not waited for the end of a task.
var errGivenUp = errors.New("task given up")

// httpCaller is a caller with its connections to a service.
type httpCaller struct {
	caller
	service *service
	http    *http.Client
	dir     string
	givenUp atomic.Int64
	storing sync.WaitGroup
}

func newHTTPCaller(c caller, s *service, dir string) *httpCaller {
	return &httpCaller{caller: c, service: s, dir: dir, http: &http.Client{
		Transport: &http.Transport{DialContext: s.dial, MaxIdleConnsPerHost: 2 * mostSlots, DisableCompression: true},
	}}
}

func (h *httpCaller) close() {
	h.storing.Wait()
	h.http.CloseIdleConnections()
}

// run works on all slots until the context ends.
func (h *httpCaller) run(ctx context.Context, at *stage) {
	var group sync.WaitGroup
	sources := at.sources()
	for _, account := range at.accounts {
		for _, lane := range at.lanes {
			for range lane.slots {
				group.Go(func() {
					for ctx.Err() == nil {
						_ = h.one(ctx, account, lane.model, sources[lane.model].next()) // counted
					}
				})
			}
		}
	}
	group.Wait()
}

// one makes and stores one picture.
func (h *httpCaller) one(ctx context.Context, account, model string, takes time.Duration) error {
	id, err := h.create(ctx, account, model, takes)
	if err != nil {
		return err
	}
	for query := 0; ; query++ {
		if h.mostQueries > 0 && query >= h.mostQueries {
			h.givenUp.Add(1)
			return errGivenUp
		}
		if !wait(ctx, h.before(query, takes, h.service.roundTrip)) {
			return context.Cause(ctx)
		}
		task, err := h.call(ctx, account, http.MethodGet, dashscope.PathTasks+"/"+id, nil)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && h.fragile:
			h.givenUp.Add(1)
			return errGivenUp
		case err != nil || !ended(task.Output.TaskStatus):
			continue
		case h.overlaps:
			h.storing.Go(func() { _ = h.store(ctx, task) }) // the oracle's pictures are not counted apart
			return nil
		default:
			return h.store(ctx, task)
		}
	}
}

func (h *httpCaller) create(ctx context.Context, account, model string, takes time.Duration) (taskID string, err error) {
	n := 1
	body, err := json.Marshal(dashscope.CreateRequest{
		Model: model, Input: dashscope.Input{Prompt: promptOf(takes)}, Parameters: dashscope.Parameters{N: &n},
	})
	if err != nil {
		return "", err
	}
	for {
		task, err := h.call(ctx, account, http.MethodPost, dashscope.PathText2Image, body)
		if err == nil {
			return task.Output.TaskID, nil
		}
		if !wait(ctx, retryInterval) {
			return "", context.Cause(ctx)
		}
	}
}

func (h *httpCaller) call(ctx context.Context, account, method, path string, body []byte) (task *dashscope.TaskResponse, err error) {
	req, err := http.NewRequestWithContext(ctx, method, serviceURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+keyOf(account))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(dashscope.HeaderAsync, "enable")
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	task = &dashscope.TaskResponse{}
	return task, json.Unmarshal(content, task)
}

// store downloads a task's picture into a file, which it removes to save space.
func (h *httpCaller) store(ctx context.Context, task *dashscope.TaskResponse) (err error) {
	for _, result := range task.Output.Results {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, result.URL, nil)
		if err != nil {
			return err
		}
		resp, err := h.http.Do(req)
		if err != nil {
			return err
		}
		path := filepath.Join(h.dir, task.Output.TaskID+".png")
		err = save(path, resp.Body)
		if err = errors.Join(err, resp.Body.Close(), os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

func save(path string, from io.Reader) error {
	file, err := os.Create(path) //nolint:gosec // in the bench's own folder
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close())
}
