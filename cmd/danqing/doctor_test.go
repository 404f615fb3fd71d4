package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	queue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/journal"
)

// doctorStack is a setup for doctor without faults, until a test adds one.
type doctorStack struct {
	t   *testing.T
	env map[string]string
	sim *simulator.Simulator
	// dashscope modifies the answers of the service.
	dashscope func(http.ResponseWriter, *http.Request, http.Handler)
	// bucket modifies the answers of the bucket.
	bucket func(http.ResponseWriter, *http.Request, http.Handler)
	rdb    *redis.Client
}

const (
	ourKey   = "sk-hush-ours"
	otherKey = "sk-hush-other"
	s3Secret = "hush-s3"
)

func newDoctorStack(t *testing.T) *doctorStack {
	t.Helper()
	p := &doctorStack{t: t, sim: &simulator.Simulator{Keys: map[string]simulator.Key{
		ourKey: {Account: "main", ID: "1"}, otherKey: {Account: "main", ID: "2"},
	}}}
	files, err := bucket.Open(bucket.Config{Dir: filepath.Join(t.TempDir(), "s3"), AccessKeyID: "AKIATEST", SecretAccessKey: s3Secret})
	require.NoError(t, err)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.bucket != nil {
			p.bucket(w, r, files)
			return
		}
		files.ServeHTTP(w, r)
	}))
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.dashscope != nil {
			p.dashscope(w, r, p.sim)
			return
		}
		p.sim.ServeHTTP(w, r)
	}))
	q, err := queue.OpenDir(queue.Config{Dir: filepath.Join(t.TempDir(), "queue"), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	options, err := redis.ParseURL(q.URL())
	require.NoError(t, err)
	p.rdb = redis.NewClient(options)
	t.Cleanup(func() {
		store.Close()
		service.Close()
		assert.NoError(t, p.sim.Close())
		assert.NoError(t, files.Close())
		assert.NoError(t, p.rdb.Close())
		assert.NoError(t, q.Close())
	})
	p.env = map[string]string{
		"DASHSCOPE_HTTP_BASE_URL": service.URL + "/api/v1", "DASHSCOPE_API_KEY": ourKey,
		"AWS_ENDPOINT_URL_S3": store.URL, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": s3Secret, "AWS_REGION": "us-east-1",
		"DANQING_S3_BUCKET": bucket.DefaultBucket, "DANQING_S3_ADDRESSING": "path",
		"REDIS_URL": q.URL(), "DANQING_DATA_DIR": filepath.Join(t.TempDir(), "data"),
	}
	return p
}

// doctor runs doctor with --json and returns the exit code, the findings, and standard
// error.
func (p *doctorStack) doctor(args ...string) (code int, found []finding, stderr string) {
	p.t.Helper()
	environ := make([]string, 0, len(p.env))
	for name, value := range p.env {
		environ = append(environ, name+"="+value)
	}
	var out, text bytes.Buffer
	run := &program{args: append([]string{"doctor", "--json"}, args...), environ: environ, stdin: strings.NewReader(""), stdout: &out, stderr: &text}
	code = run.run(p.t.Context())
	for _, secret := range []string{"hush", p.rdb.Options().Password} {
		assert.NotContains(p.t, out.String()+text.String(), secret)
	}
	for decoder := json.NewDecoder(&out); ; {
		var f finding
		err := decoder.Decode(&f)
		if errors.Is(err, io.EOF) {
			return code, found, text.String()
		}
		require.NoError(p.t, err)
		found = append(found, f)
	}
}

// lines returns one line per finding.
func lines(found []finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%s %s: %s → %s\n", f.Section, f.Severity, f.Text, f.Remedy)
	}
	return b.String()
}

// requireFinding fails unless a finding begins with begins and has the remedy.
func requireFinding(t *testing.T, found []finding, begins, remedy string) {
	t.Helper()
	for _, f := range found {
		if strings.HasPrefix(fmt.Sprintf("%s %s: %s", f.Section, f.Severity, f.Text), begins) && strings.Contains(f.Remedy, remedy) {
			return
		}
	}
	require.Fail(t, "not found", "%q → %q in\n%s", begins, remedy, lines(found))
}

// Without faults there are no errors and no warnings, and nothing is changed.
func TestDoctorFindsNothing(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	code, found, text := p.doctor()
	assert.Equal(t, exitDone, code, lines(found))
	assert.Empty(t, text)
	for _, f := range found {
		assert.Contains(t, []redishealth.Severity{severityOK, redishealth.SeverityNote}, f.Severity, f.Text)
	}
	requireFinding(t, found, "configuration ok: account default: a key, lanes wanx-v1 (1 at once)", "")
	requireFinding(t, found, "redis ok: the clocks agree", "")
	requireFinding(t, found, "redis ok: the embedded queue", "")
	for _, trial := range []string{"reach", "write", "read", "link", "delete"} {
		requireFinding(t, found, "bucket ok: "+trial+": done in", "")
	}
	requireFinding(t, found, "dashscope note: account default: the simulator answers at http://127.0.0.1", "")
	requireFinding(t, found, "dashscope ok: account default: wanx-v1, 1 of 1 tasks at once, prompts of up to 500 characters, 0.16 yuan an image", "")
	requireFinding(t, found, "dashscope ok: account default: the service offers wanx-v1: 0.16 yuan an image, 1 task at once, 100 may wait, 2 a second", "")
	requireFinding(t, found, "dashscope ok: account default: 0 tasks in 24 hours, none of others", "")
	assert.NoDirExists(t, p.env["DANQING_DATA_DIR"])
}

// Budgets and contract prices are reported.
func TestDoctorReportsMoney(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	p.env["DANQING_DAILY_BUDGET"], p.env["DANQING_PRICES"] = "12.5", "wanx-v1=0.12"
	_, found, _ := p.doctor()
	requireFinding(t, found, "configuration ok: account default: a key, lanes wanx-v1 (1 at once), at most 12.50 yuan a day", "")
	requireFinding(t, found, "dashscope ok: account default: wanx-v1, 1 of 1 tasks at once, prompts of up to 500 characters, 0.12 yuan an image", "")
}

// fault is a mistake or a fault of a service, and the expected finding.
type fault struct {
	change         func(*doctorStack)
	begins, remedy string
}

// nowhere is tcpmux's port, which is unused.
const nowhere = "127.0.0.1:1"

// configFaults are wrong settings.
func configFaults() map[string]fault {
	return map[string]fault{
		"no key":      {func(p *doctorStack) { delete(p.env, "DASHSCOPE_API_KEY") }, "configuration error: DASHSCOPE_API_KEY is not set", "Model Studio"},
		"wrong key":   {func(p *doctorStack) { p.env["DASHSCOPE_API_KEY"] = "sk-hush-wrong" }, "dashscope error: account default: dashscope list: HTTP 401: InvalidApiKey", "key"},
		"no service":  {func(p *doctorStack) { p.env["DASHSCOPE_HTTP_BASE_URL"] = "http://" + nowhere + "/api/v1" }, "dashscope error: account default: dashscope list: dial tcp", "DASHSCOPE_HTTP_BASE_URL"},
		"no Redis":    {func(p *doctorStack) { p.env["REDIS_URL"] = "redis://:hush@" + nowhere }, "redis error: nothing listens at " + nowhere, "REDIS_URL"},
		"no socket":   {func(p *doctorStack) { p.env["REDIS_URL"] = "unix:///no/such/socket" }, "redis error: there is no socket /no/such/socket", "unixsocket"},
		"no password": {func(p *doctorStack) { p.env["REDIS_URL"] = "redis://" + p.rdb.Options().Addr }, "redis error: the Redis at 127.0.0.1", "redis://USER:PASSWORD@"},
		"no TLS":      {func(p *doctorStack) { p.env["REDIS_URL"] = "rediss" + strings.TrimPrefix(p.env["REDIS_URL"], "redis") }, "redis error: no TLS with 127.0.0.1", "redis://"},
		"no Redis there": {func(p *doctorStack) {
			p.env["REDIS_URL"] = "redis" + strings.TrimPrefix(p.env["AWS_ENDPOINT_URL_S3"], "http")
		}, "redis error: 127.0.0.1", "correct REDIS_URL"},
		"no bucket set": {func(p *doctorStack) {
			maps.DeleteFunc(p.env, func(name, _ string) bool { return strings.HasPrefix(name, "DANQING_S3_") })
		}, "bucket error: REDIS_URL is set and DANQING_S3_BUCKET is not", "all workers reach"},
		"no bucket":         {func(p *doctorStack) { p.env["DANQING_S3_BUCKET"] = "elsewhere" }, `bucket error: reach: check the bucket: bucket "elsewhere" does not exist at http://127.0.0.1`, ""},
		"no store":          {func(p *doctorStack) { p.env["AWS_ENDPOINT_URL_S3"] = "http://" + nowhere }, "bucket error: reach: check the bucket: nothing listens at http://" + nowhere, ""},
		"wrong secret":      {func(p *doctorStack) { p.env["AWS_SECRET_ACCESS_KEY"] = "hush-wrong" }, `bucket error: reach: check the bucket: the secret access key does not match the access key ID "AKIATEST": correct AWS_SECRET_ACCESS_KEY`, ""},
		"links nobody sees": {func(p *doctorStack) { p.env["DANQING_S3_PUBLIC_URL"] = "http://" + nowhere }, "bucket warning: link: link: " + nowhere + " cannot be reached", "DANQING_S3_PUBLIC_URL"},
	}
}

// serviceFaults are faults of services.
func serviceFaults() map[string]fault {
	return map[string]fault{
		"no data directory": {func(p *doctorStack) {
			file := filepath.Join(p.t.TempDir(), "file")
			require.NoError(p.t, os.WriteFile(file, nil, 0o600))
			p.env["DANQING_DATA_DIR"] = filepath.Join(file, "data")
		}, "configuration error: data directory /", "DANQING_DATA_DIR"},
		"unencrypted key": {func(p *doctorStack) { p.env["DASHSCOPE_HTTP_BASE_URL"] = "http://unknown.invalid/api/v1" }, "configuration warning: DASHSCOPE_HTTP_BASE_URL is http://", ""},
		"a gateway": {func(p *doctorStack) {
			p.dashscope = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				w.Header().Set(dashscope.HeaderGateway, "true")
				next.ServeHTTP(w, r)
			}
		}, "dashscope error: account default: the DashScope base URL is Danqing's own API", "DASHSCOPE_HTTP_BASE_URL"},
		"clock behind": {func(p *doctorStack) { p.dateAhead(150 * time.Second) }, "dashscope warning: this machine's clock is 2m", "NTP"},
		"clock ahead":  {func(p *doctorStack) { p.dateAhead(-90 * time.Second) }, "dashscope warning: this machine's clock is 1m3", "NTP"},
		"no pages": {func(p *doctorStack) {
			p.dashscope = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Get("page_size") == "100" {
					http.Error(w, "<html>", http.StatusBadGateway)
					return
				}
				next.ServeHTTP(w, r)
			}
		}, "dashscope warning: account default: its tasks cannot be listed: dashscope list: HTTP 502", ""},
		"a list that it may not read": {func(p *doctorStack) {
			p.sim.Script(simulator.Fault{Route: simulator.RouteModels, Times: -1, Status: http.StatusForbidden, Code: "AccessDenied", Message: "no"})
		}, "dashscope note: account default: the service does not tell which models it offers: dashscope models: HTTP 403: AccessDenied", "console"},
		"limits that it may not read": {func(p *doctorStack) {
			p.sim.Script(simulator.Fault{Route: simulator.RouteLimits, Times: -1, Status: http.StatusNotFound, Code: "NotFound", Message: "no"})
		}, "dashscope note: account default: the service does not tell the account's limits: dashscope limits: HTTP 404", "console"},
		"a list without an end": {func(p *doctorStack) {
			p.offers(`{"output":{"total":9999,"models":[{"model":"qwen-image"}]}}`)
		}, "dashscope note: account default: the service does not tell which models it offers: dashscope models: HTTP 200: page 2 has nothing new", ""},
		"a list of other models": {func(p *doctorStack) {
			p.offers(`{"output":{"total":1,"models":[{"model":"qwen-max"}]}}`)
		}, "dashscope note: account default: the service's list of 1 model has none of the catalog", ""},
		"more tasks at once":       {func(p *doctorStack) { p.sim.Concurrency = 4 }, "dashscope note: account default: wanx-v1: the service runs 4 tasks at once, the catalog says 1", ""},
		"a lower rate":             {func(p *doctorStack) { p.sim.SubmitsPerSecond = 1 }, "dashscope warning: account default: wanx-v1: the service accepts 1 a second, and Danqing sends up to 2 a second", "submits_per_second"},
		"fewer tasks than allowed": {func(p *doctorStack) { p.env["DANQING_MODELS"] = "qwen-image" }, "dashscope note: account default: qwen-image, 1 of 2 tasks at once", "DANQING_CONCURRENCY=2"},
		"a queue that is no queue": {func(p *doctorStack) {
			require.NoError(p.t, p.rdb.HSet(p.t.Context(), "danqing:lanes", "default:wanx-v1", "{").Err())
		}, "redis error: read lane default:wanx-v1", "another version"},
		"a damaged instance": {func(p *doctorStack) {
			delete(p.env, "REDIS_URL")
			require.NoError(p.t, os.Mkdir(p.env["DANQING_DATA_DIR"], 0o700))
			require.NoError(p.t, os.WriteFile(filepath.Join(p.env["DANQING_DATA_DIR"], instanceFile), []byte(`{"redis_url":"hush"}`), 0o600))
		}, "redis error: read /", "delete its instance.json"},
	}
}

// Each fault of the configuration or of a service is found, with its remedy.
func TestDoctorFindsFaults(t *testing.T) {
	t.Parallel()
	all := configFaults()
	maps.Copy(all, serviceFaults())
	for name, test := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newDoctorStack(t)
			p.t = t
			test.change(p)
			begun := time.Now()
			code, found, text := p.doctor()
			assert.Less(t, time.Since(begun), 20*time.Second)
			requireFinding(t, found, test.begins, test.remedy)
			if strings.Contains(test.begins, " error: ") {
				assert.Equal(t, exitFailed, code)
				assert.Contains(t, text, "doctor found ")
			} else if !strings.Contains(lines(found), " error: ") {
				assert.Equal(t, exitDone, code)
			}
		})
	}
}

// dateAhead sets the service's clock ahead.
func (p *doctorStack) dateAhead(by time.Duration) {
	p.dashscope = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(dateWriter{w, by}, r)
	}
}

// dateWriter answers with another Date.
type dateWriter struct {
	http.ResponseWriter
	by time.Duration
}

func (d dateWriter) WriteHeader(status int) {
	d.Header().Set("Date", time.Now().Add(d.by).UTC().Format(http.TimeFormat))
	d.ResponseWriter.WriteHeader(status)
}

// An invalid configuration is an error, not a finding.
func TestDoctorInvalidConfig(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	p.env["DANQING_CONCURRENCY"] = "many"
	code, found, text := p.doctor()
	assert.Equal(t, exitUsage, code)
	assert.Empty(t, found)
	assert.Contains(t, text, "DANQING_CONCURRENCY")
}

// submit creates a task at the service, like another program with a key.
func (p *doctorStack) submit(key, model string) string {
	p.t.Helper()
	client, err := dashscope.New(dashscope.Config{BaseURL: p.env["DASHSCOPE_HTTP_BASE_URL"], APIKey: key})
	require.NoError(p.t, err)
	one := 1
	known, err := jobs.LookupModel(model)
	require.NoError(p.t, err)
	created, err := client.Create(p.t.Context(), dashscope.CreateRequest{Protocol: dashscope.Protocol(known.Protocol), Model: model, Input: dashscope.Input{Prompt: "cat"}, Parameters: dashscope.Parameters{N: &one}})
	require.NoError(p.t, err)
	return created.TaskID
}

// Tasks without a job in this Redis are reported by key and model. Tasks of the last minute
// are not, because their owner may not be recorded yet.
func TestDoctorForeignTasks(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	first := p.submit(otherKey, "wanx-v1")
	_, found, _ := p.doctor()
	requireFinding(t, found, "dashscope ok: account default: 1 task in 24 hours, none of others", "")

	p.dateAhead(2 * time.Minute)
	code, found, _ := p.doctor()
	assert.Equal(t, exitDone, code)
	requireFinding(t, found, "dashscope warning: account default: other programs created 1 task of wanx-v1 in the last 24 hours, perhaps with Danqing's own key", "a key of its own")

	// One of them now has a job, which reveals the ID of Danqing's key.
	p.dashscope = nil
	ours, foreign := p.submit(ourKey, "wanx-v1"), p.submit(ourKey, "qwen-image")
	client := jobs.NewStore(p.rdb)
	require.NoError(t, client.ClaimTask(t.Context(), ours, "cat-1"))
	p.dateAhead(2 * time.Minute)
	_, found, _ = p.doctor()
	requireFinding(t, found, "dashscope warning: account default: other programs created 1 task of qwen-image in the last 24 hours, with Danqing's own key", "one Redis")
	requireFinding(t, found, "dashscope note: account default: other keys of the main account created 1 task of wanx-v1 in the last 24 hours", "main account of its own")

	require.NoError(t, client.ClaimTask(t.Context(), foreign, "cat-2"))
	require.NoError(t, client.ClaimTask(t.Context(), first, "cat-3"))
	_, found, _ = p.doctor()
	requireFinding(t, found, "dashscope ok: account default: 3 tasks in 24 hours, none of others", "")

	// The ID of Danqing's key is recorded before it has a task in the list.
	require.NoError(t, p.rdb.Del(t.Context(), "danqing:task:"+first).Err())
	ourselves, err := dashscope.New(dashscope.Config{APIKey: ourKey})
	require.NoError(t, err)
	require.NoError(t, client.SetKeyID(t.Context(), ourselves.KeyFingerprint(), "2"))
	_, found, _ = p.doctor()
	requireFinding(t, found, "dashscope warning: account default: other programs created 1 task of wanx-v1 in the last 24 hours, with Danqing's own key", "one Redis")
	require.NoError(t, client.ClaimTask(t.Context(), first, "cat-3"))

	// Without a queue the owners are unknown.
	delete(p.env, "REDIS_URL")
	_, found, _ = p.doctor()
	requireFinding(t, found, "dashscope note: account default: 3 tasks in 24 hours; without a queue their owners are unknown", "REDIS_URL")
}

// A task of a model that only another process's catalog has is found, with what to do.
func TestDoctorFindsUnknownModels(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	store, ctx := jobs.NewStore(p.rdb), t.Context()
	for _, model := range []string{"new-image", "wanx-v1", "idle-image"} {
		require.NoError(t, store.SetLane(ctx, jobs.LaneStatus{Account: "default", Model: model, Concurrency: 1, State: jobs.LaneOpen}))
		if model == "idle-image" {
			continue
		}
		rec := &jobs.Record{Job: jobs.Job{ID: "job-" + model, State: jobs.StateGenerating, Model: model, Account: "default", TaskID: "task-" + model, Attempt: 1}}
		require.NoError(t, store.Update(ctx, nil, rec))
		require.NoError(t, p.rdb.HSet(ctx, rediskey.Lane("default", model, rediskey.LaneInFlight), rec.ID, "1").Err())
	}
	code, found, _ := p.doctor()
	assert.Equal(t, exitFailed, code)
	requireFinding(t, found, "redis error: lane new-image of account default: no worker, 1 task at DashScope, and the model is not in the catalog", "set DANQING_MODEL_CATALOG")
	requireFinding(t, found, "redis note: lane wanx-v1 of account default: no worker", "start a worker")
	requireFinding(t, found, "redis note: lane idle-image of account default: no worker", "start a worker")
}

// Doctor finds out whether the task list shows tasks of a newer model, by a task of this queue
// alone, and tells the lane.
func TestDoctorListedTasks(t *testing.T) {
	t.Parallel()
	const model, unknown = "wan2.6-t2i", "dashscope note: account default: it is not known whether the task list shows tasks of wan2.6-t2i"
	for name, unlisted := range map[string][]dashscope.Protocol{"shown": nil, "not shown": {dashscope.ProtocolImageGeneration}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newDoctorStack(t)
			p.sim.Unlisted, p.sim.SubmitsPerSecond = unlisted, -1
			p.env["DANQING_MODELS"] = model
			listed := func() bool {
				is, err := jobs.NewStore(p.rdb).TasksListed(t.Context(), "default", model)
				require.NoError(t, err)
				return is
			}
			p.submit(otherKey, model) // not of this queue
			_, found, _ := p.doctor()
			requireFinding(t, found, unknown, "run doctor again")
			assert.False(t, listed())

			task := p.submit(ourKey, model)
			last := fmt.Sprintf(`{"id":%q,"at":%q}`, task, time.Now().Add(-time.Hour).Format(time.RFC3339))
			require.NoError(t, p.rdb.Set(t.Context(), rediskey.Lane("default", model, rediskey.LaneLastTask), last, 0).Err())
			code, found, _ := p.doctor()
			assert.Equal(t, exitDone, code)
			assert.Equal(t, unlisted == nil, listed())
			if unlisted != nil {
				requireFinding(t, found, "dashscope note: account default: the task list does not show task "+task+" of wan2.6-t2i, created ", "console")
				assert.Contains(t, lines(found), "a lost create of this model ends held")
				return
			}
			requireFinding(t, found, "dashscope ok: account default: the task list shows task "+task+" of wan2.6-t2i: lost creates are reconciled from now on", "")
			_, found, _ = p.doctor()
			requireFinding(t, found, "dashscope ok: account default: the task list shows tasks of wan2.6-t2i: lost creates are reconciled", "")
		})
	}
}

// Two keys of one main account are not two accounts, and real accounts cannot be mixed with
// simulated ones.
func TestDoctorAccounts(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	p.submit(ourKey, "wanx-v1")
	genuine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.sim.ServeHTTP(unmarkedWriter{w}, r)
	}))
	t.Cleanup(genuine.Close)
	file := filepath.Join(t.TempDir(), "accounts.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `accounts:
  - {name: one, api_key_env: KEY_ONE, base_url: %s}
  - {name: two, api_key_env: KEY_TWO, base_url: %s/api/v1}
`, p.env["DASHSCOPE_HTTP_BASE_URL"], genuine.URL), 0o600))
	maps.DeleteFunc(p.env, func(name, _ string) bool { return strings.HasPrefix(name, "DASHSCOPE_") })
	p.env["KEY_ONE"], p.env["KEY_TWO"] = ourKey, otherKey
	code, found, _ := p.doctor("--config", file)
	assert.Equal(t, exitFailed, code)
	requireFinding(t, found, "dashscope error: accounts one and two are the same main account", "leave one of the two out")
	requireFinding(t, found, "dashscope error: account one is answered by the simulator and account two by DashScope", "base URL")
}

// unmarkedWriter removes the simulator's header.
type unmarkedWriter struct{ http.ResponseWriter }

func (u unmarkedWriter) WriteHeader(status int) {
	u.Header().Del(dashscope.HeaderSimulated)
	u.ResponseWriter.WriteHeader(status)
}

// The process in the data directory, and the workers of the lanes, are reported.
func TestDoctorWorkersAndLanes(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	path := p.env["DANQING_DATA_DIR"]
	data, err := journal.OpenDataDir(path)
	require.NoError(t, err)
	require.NoError(t, writeInstance(path, instance{PID: os.Getpid(), HTTP: "http://127.0.0.1:8765", RedisURL: p.env["REDIS_URL"]}))
	client, ctx := jobs.NewStore(p.rdb), t.Context()
	for model, by := range map[string]string{"wanx-v1": data.WorkerID, "qwen-image": "another", "wan2.2-t2i-flash": "", "wan2.2-t2i-plus": "another"} {
		lane := jobs.LaneStatus{Account: "default", Model: model, Concurrency: 1, State: jobs.LaneOpen}
		if model == "wan2.2-t2i-plus" {
			lane.State, lane.Message = jobs.LanePaused, "the account is in arrears"
		}
		require.NoError(t, client.SetLane(ctx, lane))
		if by != "" {
			require.NoError(t, p.rdb.Set(ctx, rediskey.Lane("default", model, rediskey.LaneLease), by, 0).Err())
		}
	}
	_, found, _ := p.doctor()
	requireFinding(t, found, "configuration note: data directory "+path+": in use by ", "DANQING_DATA_DIR of its own")
	// On some file systems the device in the list of locks differs.
	assert.Regexp(t, fmt.Sprintf(`in use by (process %d|another process), which serves http://127.0.0.1:8765 `, os.Getpid()), lines(found))
	requireFinding(t, found, "redis ok: lane wanx-v1 of account default: held by the worker of this data directory, 1 task at once", "")
	requireFinding(t, found, "redis ok: lane qwen-image of account default: held by another worker", "")
	requireFinding(t, found, "redis note: lane wan2.2-t2i-flash of account default: no worker", "start a worker")
	requireFinding(t, found, "redis warning: lane wan2.2-t2i-plus of account default: held by another worker and paused: the account is in arrears", "jobs resume")

	// Without REDIS_URL the running instance's queue is used.
	delete(p.env, "REDIS_URL")
	_, found, _ = p.doctor()
	requireFinding(t, found, "redis ok: the embedded queue", "")
	require.NoError(t, data.Close())
	require.NoError(t, removeInstance(path))
	_, found, _ = p.doctor()
	requireFinding(t, found, "configuration ok: data directory "+path+": not in use", "")
	requireFinding(t, found, "redis note: no Redis is configured", "danqing up")
}

// Servers that accept connections and never answer are timed out within seconds.
func TestDoctorSilentServers(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, silent.Close()) })
	address := silent.Addr().String()
	p.env["REDIS_URL"], p.env["DASHSCOPE_HTTP_BASE_URL"] = "redis://"+address, "http://"+address+"/api/v1"
	begun := time.Now()
	code, found, _ := p.doctor()
	assert.Less(t, time.Since(begun), 30*time.Second)
	assert.Equal(t, exitFailed, code)
	requireFinding(t, found, "redis error: "+address+" does not answer within 5s", "network")
	requireFinding(t, found, "dashscope error: account default: dashscope list: no answer within 5s", "network")
}

// A signal ends doctor.
func TestDoctorInterrupted(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	signals := make(chan os.Signal, 1)
	p.dashscope = func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		signals <- os.Interrupt
		<-r.Context().Done()
	}
	environ := make([]string, 0, len(p.env))
	for name, value := range p.env {
		environ = append(environ, name+"="+value)
	}
	run := &program{args: []string{"doctor"}, environ: environ, signals: signals, stdout: io.Discard, stderr: io.Discard}
	assert.Equal(t, exitInterrupted, run.run(context.Background()))
}

// With sections doctor checks only these: what is wrong elsewhere does not count.
func TestDoctorSections(t *testing.T) {
	t.Parallel()
	p := newDoctorStack(t)
	p.env["REDIS_URL"], p.env["AWS_SECRET_ACCESS_KEY"] = "redis://127.0.0.1:1", "hush-wrong"
	for _, only := range [][]string{{"configuration"}, {"configuration", "dashscope"}} {
		code, found, stderr := p.doctor(only...)
		assert.Zero(t, code, "%s%s", stderr, lines(found))
		for _, f := range found {
			assert.Contains(t, only, f.Section)
		}
	}
	code, _, _ := p.doctor("redis")
	assert.Equal(t, exitFailed, code)
	code, _, stderr := p.doctor("disk")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stderr, `"disk"`)
}
