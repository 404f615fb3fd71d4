package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	jobqueue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	tasksPath  = "/api/v1/tasks/"
	createPath = "/api/v1/services/aigc/text2image/image-synthesis"
)

// service is a gateway with its API, with an in-process queue and bucket. Requests to it
// need no network, so that it can run in a synctest bubble.
type service struct {
	t       testing.TB
	redis   redis.UniversalClient
	jobs    *jobs.Client
	bucket  *storage.Bucket
	gateway *gateway.Gateway
	outage  *outage
	// sidecars are the jobs that are only in the bucket.
	sidecars map[string]*jobs.Job
}

// outage is a hook that fails every Redis command while it is down.
type outage struct {
	down  atomic.Bool
	calls atomic.Int64
}

var (
	_       redis.Hook = (*outage)(nil)
	errDown            = errors.New("redis is unavailable")
)

func (o *outage) DialHook(next redis.DialHook) redis.DialHook { return next }

func (o *outage) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if o.calls.Add(1); o.down.Load() {
			cmd.SetErr(errDown)
			return errDown
		}
		return next(ctx, cmd)
	}
}

func (o *outage) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if o.down.Load() {
			return errDown
		}
		return next(ctx, cmds)
	}
}

func newService(t *testing.T, change func(*gateway.API)) *service {
	t.Helper()
	q := jobqueue.Open()
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return newServiceOn(t, q.Client(), change)
}

func newServiceOn(tb testing.TB, rdb redis.UniversalClient, change func(*gateway.API)) *service {
	tb.Helper()
	files, err := bucket.Open(bucket.Config{Dir: tb.TempDir()})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, files.Close()) })
	id, secret := files.Credentials()
	images, err := storage.New(storage.Config{
		Bucket: bucket.DefaultBucket, Endpoint: "http://bucket.embedded", AccessKeyID: id, SecretAccessKey: secret, HTTPClient: files.HTTPClient(),
	})
	require.NoError(tb, err)
	s := &service{t: tb, redis: rdb, jobs: jobs.NewClient(rdb), bucket: images, outage: &outage{}, sidecars: map[string]*jobs.Job{}}
	rdb.AddHook(s.outage)
	api := &gateway.API{
		Bucket: images, TempDir: tb.TempDir(),
		LoadSidecar: func(_ context.Context, id string) (*jobs.Job, error) {
			if rec := s.sidecars[id]; rec != nil {
				return rec, nil
			}
			return nil, jobs.ErrNotFound
		},
		Price: func(model jobs.Model, n int) int64 { return model.Prices[jobs.RegionBeijing] * int64(n) },
	}
	if change != nil {
		change(api)
	}
	s.gateway, err = gateway.New(gateway.Config{Redis: rdb, API: api})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.gateway.Close()) })
	return s
}

// runInBubble runs a test in simulated time.
func runInBubble(t *testing.T, change func(*gateway.API), test func(*testing.T, *service)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { test(t, newService(t, change)) })
}

// answer is a response.
type answer struct {
	status int
	header http.Header
	body   string
}

// call sends a request with pairs of header names and values.
func (s *service) call(ctx context.Context, method, path, body string, headers ...string) answer {
	r := httptest.NewRequestWithContext(ctx, method, "http://127.0.0.1:8765"+path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	w := httptest.NewRecorder()
	s.gateway.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.String()}
}

func (s *service) request(method, path, body string, headers ...string) answer {
	return s.call(s.t.Context(), method, path, body, headers...)
}

// decode returns an answer's body without its request_id, which always differs.
func (a answer) decode(t *testing.T) map[string]any {
	t.Helper()
	require.Contains(t, a.header.Get("Content-Type"), "application/json", a.body)
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.body), &got), a.body)
	if _, openAI := got["error"]; !openAI {
		require.Len(t, got["request_id"], 36, a.body)
	}
	delete(got, "request_id")
	return got
}

// requireRefused checks an error's status and code, and returns its message.
func (a answer) requireRefused(t *testing.T, status int, code string) string {
	t.Helper()
	got := a.decode(t)
	require.Equal(t, status, a.status, a.body)
	require.Equal(t, code, got["code"], a.body)
	message, _ := got["message"].(string)
	require.NotEmpty(t, message)
	return message
}

// create creates a job like the SDKs, and returns its ID.
func (s *service) create(body string, headers ...string) string {
	s.t.Helper()
	got := s.submit(body, headers...)
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var created dashscope.TaskResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &created))
	require.NotEmpty(s.t, created.Output.TaskID)
	return created.Output.TaskID
}

func (s *service) submit(body string, headers ...string) answer {
	return s.request(http.MethodPost, createPath, body, append([]string{
		"X-DashScope-Async", "enable", "Content-Type", "application/json; charset=utf-8",
	}, headers...)...)
}

const oneCat = `{"model":"wanx-v1","input":{"prompt":"有一只黑色的小猫"},"parameters":{"n":1}}`

// pythonSDK is the User-Agent of DashScope's SDK for Python.
const pythonSDK = "dashscope/1.26.7; python/3.12.3; platform/Linux; processor/x86_64"

// query queries a job and returns the decoded task.
func (s *service) query(id string, headers ...string) dashscope.TaskResponse {
	s.t.Helper()
	if !slices.Contains(headers, "User-Agent") {
		headers = append(headers, "User-Agent", pythonSDK)
	}
	got := s.request(http.MethodGet, tasksPath+id, "", headers...)
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var task dashscope.TaskResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &task))
	return task
}

// update changes a job's record as a worker would.
func (s *service) update(id string, change func(*jobs.Record)) *jobs.Job {
	s.t.Helper()
	store := jobs.NewStore(s.redis)
	rec, err := store.Get(s.t.Context(), id)
	require.NoError(s.t, err)
	next := *rec
	if next.Request == nil {
		req, err := s.jobs.RequestOf(s.t.Context(), &rec.Job)
		require.NoError(s.t, err)
		next.Request = &req
	}
	change(&next)
	require.NoError(s.t, store.Update(s.t.Context(), rec, &next))
	return &next.Job
}

// generate moves a job to the state in which its task is running.
func (s *service) generate(id string) {
	s.t.Helper()
	s.update(id, func(rec *jobs.Record) {
		rec.State, rec.Attempt, rec.Term, rec.TaskID = jobs.StateGenerating, 1, 1, "task-of-"+id
		rec.SubmittedAt, rec.RunningAt = time.Now().UTC(), time.Now().UTC()
	})
}

// finish stores all images of a job, and ends it as succeeded. An image without a content type
// is a PNG.
func (s *service) finish(id string, contentTypes ...string) *jobs.Job {
	s.t.Helper()
	return s.update(id, func(rec *jobs.Record) {
		rec.State, rec.FinishedAt, rec.CostMicroYuan = jobs.StateSucceeded, time.Now().UTC(), 160_000*int64(rec.Request.N)
		for n := 1; n <= rec.Request.N; n++ {
			rec.Images = append(rec.Images, s.store(&rec.Job, n))
		}
		for i, contentType := range contentTypes {
			rec.Images[i].ContentType = contentType
		}
	})
}

// store puts a different PNG for each image into the bucket.
func (s *service) store(rec *jobs.Job, n int) jobs.Image {
	s.t.Helper()
	path, _ := writePNG(s.t, rec.ID, n)
	ref, err := storage.ReferenceLimits{}.Inspect(path)
	require.NoError(s.t, err)
	require.NoError(s.t, s.bucket.StageReference(s.t.Context(), ref))
	return jobs.Image{N: n, Key: "_refs/" + ref.SHA256, Bytes: ref.Bytes, SHA256: ref.SHA256, Width: ref.Width, Height: ref.Height, ContentType: "image/png"}
}

// writePNG writes a PNG that differs for each name and number.
func writePNG(tb testing.TB, name string, n int) (path string, content []byte) {
	tb.Helper()
	const side = 256
	paper := image.NewNRGBA(image.Rect(0, 0, side, side))
	copy(paper.Pix, fmt.Sprint(name, n))
	var encoded bytes.Buffer
	require.NoError(tb, png.Encode(&encoded, paper))
	path = filepath.Join(tb.TempDir(), "picture.png")
	require.NoError(tb, os.WriteFile(path, encoded.Bytes(), 0o600))
	return path, encoded.Bytes()
}

func (s *service) post(path, body string, headers ...string) answer {
	return s.request(http.MethodPost, path, body, headers...)
}

// endless is a body without an end that counts the bytes read.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	copy(p, bytes.Repeat([]byte(" "), len(p)))
	return len(p), nil
}

var _ io.Reader = (*endless)(nil)

func assertNothingQueued(t *testing.T, s *service) {
	t.Helper()
	assert.Empty(t, s.redis.Keys(t.Context(), "danqing:job:*").Val())
	assert.Empty(t, s.redis.Keys(t.Context(), "asynq:*:t:*").Val())
}
