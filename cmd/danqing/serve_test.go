package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/storage/storagetest"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

const (
	serveToken     = "shop-0123456789abcdef"
	callbackSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
)

// serveStack is a Redis, a bucket and an address for `danqing serve` and a worker.
type serveStack struct {
	t       *testing.T
	env     []string
	rdb     *redis.Client
	jobs    *jobs.Client
	address string
	server  *exec.Cmd
}

func newServeStack(t *testing.T) *serveStack {
	t.Helper()
	socket := redistest.Start(t).Socket
	store := embeddedStore(t)
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, PoolSize: 50})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return &serveStack{t: t, address: net.JoinHostPort("127.0.0.1", freePorts(t)["8765"]), rdb: rdb, jobs: jobs.NewClient(rdb), env: []string{
		"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), noExitSleep, "REDIS_URL=unix://" + socket,
		"AWS_ENDPOINT_URL_S3=" + store.Endpoint, "AWS_REGION=" + storagetest.Region, "DANQING_S3_BUCKET=" + storagetest.Bucket,
		"AWS_ACCESS_KEY_ID=" + storagetest.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + storagetest.SecretAccessKey,
	}}
}

// program starts the program with additional environment variables. It is killed at the end.
func (s *serveStack) program(env []string, args ...string) (cmd *exec.Cmd, log *bytes.Buffer) {
	s.t.Helper()
	self, err := os.Executable()
	require.NoError(s.t, err)
	log = &bytes.Buffer{}
	cmd = exec.CommandContext(context.WithoutCancel(s.t.Context()), self)
	cmd.Args, cmd.Env, cmd.Dir = append([]string{"danqing"}, args...), append(append([]string{}, s.env...), env...), s.t.TempDir()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(s.t, cmd.Start())
	s.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd, log
}

// serve starts the server and waits until it answers.
func (s *serveStack) serve() {
	s.t.Helper()
	s.server, _ = s.program([]string{"DANQING_SERVE_TOKENS=shop:" + serveToken}, "serve", "--listen", s.address)
	require.Eventually(s.t, func() bool {
		resp, err := http.Get("http://" + s.address + "/healthz") //nolint:noctx // on this machine
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, time.Minute, 10*time.Millisecond)
}

// request sends a request like the Python SDK: with a new connection.
func (s *serveStack) request(method, path, body string, headers ...string) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.address+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+serveToken)
	req.Header.Set("Accept", "application/json; charset=utf-8")
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "dashscope/1.26.2; python/3.11.7; platform/Linux; processor/x86_64")
	if method == http.MethodPost {
		req.Header.Set("X-DashScope-Async", "enable")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode, answer, err
}

const synthesis = "/services/aigc/text2image/image-synthesis"

// submitAndWait submits a request, waits and returns the task, like the SDK's call.
func (s *serveStack) submitAndWait(body string, headers ...string) dashscope.TaskOutput {
	s.t.Helper()
	return s.createAndWait(synthesis, body, headers...)
}

// createAndWait is submitAndWait at another path.
func (s *serveStack) createAndWait(path, body string, headers ...string) dashscope.TaskOutput {
	s.t.Helper()
	status, answer, err := s.request(http.MethodPost, path, body, headers...)
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, status, string(answer))
	var task dashscope.TaskResponse
	require.NoError(s.t, json.Unmarshal(answer, &task))
	interval := time.Second
	for polls := 1; ; polls++ {
		status, answer, err := s.request(http.MethodGet, "/tasks/"+task.Output.TaskID, "")
		require.NoError(s.t, err)
		require.Equal(s.t, http.StatusOK, status, string(answer))
		require.NoError(s.t, json.Unmarshal(answer, &task))
		switch task.Output.TaskStatus {
		case dashscope.StatusPending, dashscope.StatusRunning:
		default:
			return task.Output
		}
		<-time.After(interval / 20) // the SDK's schedule, faster: 1, 1, 2, 2, 2, 4, 4, 4, 5 …
		if polls%3 == 2 {
			interval = min(2*interval, 5*time.Second)
		}
	}
}

// noRedirects is a client that follows no redirects, like curl.
func noRedirects() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// save saves each result like the documentation's sample programs.
func save(t *testing.T, dir string, results []dashscope.Result) {
	t.Helper()
	for _, result := range results {
		link, err := url.Parse(result.URL)
		require.NoError(t, err)
		resp, err := noRedirects().Get(result.URL) //nolint:noctx // on this machine
		require.NoError(t, err)
		content, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode, string(content))
		_, err = png.Decode(bytes.NewReader(content))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, path.Base(link.Path)), content, 0o600))
	}
}

// uploadFile uploads a local file like the SDKs.
func (s *serveStack) uploadFile(file string) string { return s.uploadFor("wanx-v1", file) }

// uploadFor uploads a local file for a model.
func (s *serveStack) uploadFor(model, file string) string {
	s.t.Helper()
	status, answer, err := s.request(http.MethodGet, "/uploads?action=getPolicy&model="+model, "")
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, status, string(answer))
	var policy dashscope.PolicyResponse
	require.NoError(s.t, json.Unmarshal(answer, &policy))
	p, key := policy.Data, policy.Data.UploadDir+"/"+filepath.Base(file)
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, field := range [][2]string{
		{"OSSAccessKeyId", p.OSSAccessKeyID}, {"Signature", p.Signature}, {"policy", p.Policy}, {"key", key}, {"x-oss-object-acl", p.XOSSObjectACL},
		{"x-oss-forbid-overwrite", p.XOSSForbidOverwrite}, {"success_action_status", "200"}, {"x-oss-content-type", "image/png"},
	} {
		require.NoError(s.t, form.WriteField(field[0], field[1]))
	}
	part, err := form.CreateFormFile("file", filepath.Base(file))
	require.NoError(s.t, err)
	content, err := os.ReadFile(file)
	require.NoError(s.t, err)
	_, err = part.Write(content)
	require.NoError(s.t, err)
	require.NoError(s.t, form.Close())
	resp, err := http.Post(p.UploadHost, form.FormDataContentType(), &body) //nolint:noctx // on this machine
	require.NoError(s.t, err)
	require.NoError(s.t, resp.Body.Close())
	require.Equal(s.t, http.StatusOK, resp.StatusCode)
	return "oss://" + key
}

// equalRequests sends three equal requests of OpenAI's API at once, as its SDK for JavaScript
// does.
func (s *serveStack) equalRequests() {
	s.t.Helper()
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.address+"/v1/images/generations", strings.NewReader(`{"model":"wanx-v1","prompt":"equal cats","size":"1024x1024"}`))
			if !assert.NoError(s.t, err) {
				return
			}
			for name, value := range map[string]string{
				"Accept": "application/json", "Authorization": "Bearer " + serveToken, "Content-Type": "application/json", "User-Agent": "OpenAI/JS 6.9.1",
				"X-Stainless-Retry-Count": "0", "X-Stainless-Lang": "js", "X-Stainless-Package-Version": "6.9.1", "X-Stainless-Runtime": "node", "X-Stainless-Timeout": "600",
			} {
				req.Header.Set(name, value)
			}
			resp, err := http.DefaultClient.Do(req)
			if !assert.NoError(s.t, err) {
				return
			}
			answer, err := io.ReadAll(resp.Body)
			assert.NoError(s.t, err)
			assert.NoError(s.t, resp.Body.Close())
			assert.Equal(s.t, http.StatusOK, resp.StatusCode, string(answer))
		})
	}
	group.Wait()
}

// A program written for DashScope runs against Danqing with a worker and a real Redis: each
// request is made once, its links lead to complete images, and callbacks are sent. Edited images
// show what they were made from.
func TestServe(t *testing.T) {
	t.Parallel()
	s := newServeStack(t)
	sim := &simulator.Simulator{TaskTime: simulator.Between(100*time.Millisecond, 300*time.Millisecond)}
	service := httptest.NewServer(sim)
	t.Cleanup(func() { service.Close(); require.NoError(t, sim.Close()) })
	told := make(chan *http.Request, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		told <- r
	}))
	t.Cleanup(receiver.Close)
	s.serve()
	s.program([]string{
		"DASHSCOPE_API_KEY=sk-serve", "DASHSCOPE_HTTP_BASE_URL=" + service.URL + "/api/v1", "DANQING_CALLBACK_SECRET=" + callbackSecret,
		"DANQING_CALLBACK_ALLOW=127.0.0.1", "DANQING_SERVE_URL=http://" + s.address, "DANQING_MODELS=wanx-v1,wan2.7-image,wan2.5-i2i-preview,wanx2.1-imageedit",
	}, "worker")

	dir := t.TempDir()
	girl := "近景镜头，18岁的中国女孩，古代服饰"
	for _, body := range []string{ // the documentation's five sample programs, with local reference images
		`{"model":"wanx-v1","input":{"prompt":"` + girl + `"},"parameters":{"style":"<auto>","size":"1024*1024","n":1}}`,
		`{"model":"wanx-v1","input":{"prompt":"` + girl + `","negative_prompt":"不要使用红色元素"},"parameters":{"style":"<auto>","size":"1024*1024","n":1}}`,
		`{"model":"wanx-v1","input":{"prompt":"` + girl + `","ref_img":"REF"},"parameters":{"style":"<auto>","size":"1024*1024","n":1,"ref_strength":0.0,"ref_mode":"repaint"}}`,
		`{"model":"wanx-v1","input":{"prompt":"一个英气的黑发女人","sketch_image_url":"REF"},"parameters":{"style":"<auto>","size":"1024*1024","n":1,"ref_strength":1.0,"ref_mode":"repaint"}}`,
		`{"model":"wanx-v1","input":{"prompt":"有一只黑色的小猫","ref_image":"REF"},"parameters":{"style":"<auto>","size":"1024*1024","n":1,"ref_strength":0.7,"ref_mode":"refonly"}}`,
	} {
		body = strings.Replace(body, "REF", s.uploadFile("examples/house.png"), 1)
		task := s.submitAndWait(body, "X-DashScope-OssResourceResolve", "enable")
		require.Equal(t, dashscope.StatusSucceeded, task.TaskStatus, task.Message)
		save(t, dir, task.Results)
	}
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, files, 5, "a file for each program")

	task := s.submitAndWait(`{"model":"wanx-v1","input":{"prompt":"four cats"}}`, "X-Danqing-Callback", receiver.URL+"/hook?key=hush", "Idempotency-Key", "order 17")
	require.Len(t, task.Results, 4)
	save(t, dir, task.Results)
	r := <-told
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(callbackSecret, "whsec_"))
	require.NoError(t, err)
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), body)
	assert.Equal(t, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), r.Header.Get("Webhook-Signature"))
	var event jobs.Event
	require.NoError(t, json.Unmarshal(body, &event))
	assert.Equal(t, "job.succeeded", event.Type)
	for i, image := range event.Data.Images {
		assert.Equal(t, task.Results[i].URL, image.URL)
	}
	assert.Equal(t, task.TaskID, s.submitAndWait(`{"model":"wanx-v1","input":{"prompt":"four cats"}}`, "Idempotency-Key", "order 17").TaskID)
	assert.Len(t, sim.Tasks(), 6, "each was bought once")
	s.equalRequests()
	assert.Len(t, sim.Tasks(), 9, "an image for each of the equal requests")
	s.edits()
	assert.Len(t, sim.Tasks(), 13, "each edit was bought once")

	// A worker refuses a Danqing server in place of DashScope.
	wrong, log := s.program([]string{"DASHSCOPE_API_KEY=" + serveToken, "DASHSCOPE_HTTP_BASE_URL=http://" + s.address + "/api/v1"}, "worker")
	require.Error(t, wrong.Wait())
	assert.Equal(t, exitUsage, wrong.ProcessState.ExitCode(), log.String())
	assert.Contains(t, log.String(), "is Danqing's own API, which would submit to itself")

	require.NoError(t, s.server.Process.Signal(os.Interrupt))
	require.NoError(t, s.server.Wait())
}

// 200 clients enqueue while serve is killed by kill -9 repeatedly: every job that was
// answered with 200 exists, with its message, and no idempotency key has two jobs.
func TestKilledServeKeepsAcceptedJobs(t *testing.T) {
	t.Parallel()
	clients, each, kills := 200, 10, 6
	if testing.Short() {
		clients, each, kills = 40, 5, 3
	}
	s := newServeStack(t)
	s.serve()
	var answered atomic.Int64
	var mu sync.Mutex
	ids := map[string]string{} // by key
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for n := range each {
				key := fmt.Sprintf("order %d/%d", c, n)
				body := fmt.Sprintf(`{"model":"wanx-v1","input":{"prompt":"cat of %s"},"parameters":{"n":1}}`, key)
				for {
					status, answer, err := s.request(http.MethodPost, synthesis, body, "Idempotency-Key", key)
					var task dashscope.TaskResponse
					if err == nil && status == http.StatusOK && json.Unmarshal(answer, &task) == nil {
						mu.Lock()
						ids[key] = task.Output.TaskID
						mu.Unlock()
						answered.Add(1)
						break
					}
					if t.Context().Err() != nil || err == nil && status < 500 {
						assert.Fail(t, "refused", "%d %s", status, answer)
						return
					}
					<-time.After(20 * time.Millisecond) // the server is down
				}
			}
		})
	}
	for kill := range kills {
		enough := int64(clients * each * (kill + 1) / (kills + 1))
		require.Eventually(t, func() bool { return answered.Load() >= enough }, 5*time.Minute, time.Millisecond)
		require.NoError(t, s.server.Process.Kill())
		_ = s.server.Wait()
		s.serve()
	}
	group.Wait()
	require.Len(t, ids, clients*each)
	distinct := map[string]bool{}
	for key, id := range ids {
		distinct[id] = true
		assert.Equal(t, jobs.IdempotencyID("shop", key), id)
	}
	assert.Len(t, distinct, clients*each)
	assert.Len(t, s.rdb.Keys(t.Context(), "danqing:job:*").Val(), clients*each)
	queue := "asynq:{" + jobs.Queue("wanx-v1", jobs.PriorityDefault) + "}"
	pending := s.rdb.LRange(t.Context(), queue+":pending", 0, -1).Val()
	require.Len(t, pending, clients*each)
	for _, id := range pending {
		require.True(t, distinct[id])
	}
	assert.Len(t, s.rdb.SMembers(t.Context(), "danqing:producer:shop:waiting").Val(), clients*each)
}
