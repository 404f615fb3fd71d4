package dashboard_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/gateway/dashboard"
)

const (
	task      = "86ecf553-d340-4e21-af6e-a0c6a421c010"
	otherTask = "86ecf553-d340-4e21-af6e-a0c6a421c011"
	script    = `<script>alert("1")</script><img src=x onerror=alert(1)>' onclick=alert(1) "`
)

// shelf is a store with one image of each task.
type shelf struct{ sidecars map[string]*jobs.Job }

func (s shelf) LoadSidecar(_ context.Context, id string) (*jobs.Job, error) {
	if job := s.sidecars[id]; job != nil {
		return job, nil
	}
	return nil, jobs.ErrNotFound
}

func (shelf) ServeImage(w http.ResponseWriter, _ *http.Request, job *jobs.Job, image jobs.Image) {
	_, _ = fmt.Fprintf(w, "%s %s", job.ID, image.Key)
}

func (shelf) HeldImages(_ context.Context, id string) ([]jobs.Image, error) {
	return []jobs.Image{{N: 1, Key: "_held/" + id + "/1.png"}}, nil
}

func (shelf) Price(model jobs.Model, n int) int64 { return model.Prices[jobs.RegionBeijing] * int64(n) }

// desk is a dashboard with its queue.
type desk struct {
	*dashboard.Dashboard
	redis    redis.UniversalClient
	store    *jobs.Store
	sidecars map[string]*jobs.Job
}

func newDesk(t *testing.T, change func(*dashboard.Config)) *desk {
	t.Helper()
	queue := embedded.Open()
	t.Cleanup(func() { require.NoError(t, queue.Close()) })
	sidecars := map[string]*jobs.Job{}
	cfg := dashboard.Config{Redis: queue.Client(), Operator: func(*http.Request) string { return "ann" }, Store: shelf{sidecars}, HasLogin: true}
	if change != nil {
		change(&cfg)
	}
	d, err := dashboard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return &desk{d, queue.Client(), jobs.NewStore(queue.Client()), sidecars}
}

func (d *desk) call(t *testing.T, method, path string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1"+path, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	dashboard.SwitchLanguage(d).ServeHTTP(w, r)
	return w
}

func (d *desk) page(t *testing.T, path string, headers ...string) string {
	t.Helper()
	w := d.call(t, http.MethodGet, path, nil, headers...)
	require.Equal(t, http.StatusOK, w.Code, "%s: %s", path, w.Body)
	return w.Body.String()
}

// put enqueues a job and changes its record.
func (d *desk) put(t *testing.T, req jobs.Request, change func(*jobs.Record)) *jobs.Record {
	t.Helper()
	_, err := jobs.NewClient(d.redis).Enqueue(t.Context(), req)
	require.NoError(t, err)
	return d.move(t, req.ID, func(rec *jobs.Record) {
		normal, _, err := req.Normalize()
		require.NoError(t, err)
		rec.Request, rec.Attempt, rec.Account = &normal, 1, "main"
		rec.SubmittedAt = rec.EnqueuedAt.Add(time.Second)
		change(rec)
	})
}

func (d *desk) move(t *testing.T, id string, change func(*jobs.Record)) *jobs.Record {
	t.Helper()
	rec, err := d.store.Get(t.Context(), id)
	require.NoError(t, err)
	next := *rec
	change(&next)
	require.NoError(t, d.store.Update(t.Context(), rec, &next))
	inspector := asynq.NewInspectorFromRedisClient(d.redis)
	if !next.State.Waiting() { // its message is gone
		_ = inspector.DeleteTask(jobs.Queue(next.Model, next.Priority), id)
	}
	return &next
}

func hold(rec *jobs.Record) {
	rec.State, rec.Code, rec.Message, rec.Candidates = jobs.StateHeld, jobs.CodeSubmitAmbiguous, "a reply was lost", []string{task, otherTask}
}

// form is what the page of a decision sends.
func (d *desk) form(t *testing.T, id, action string) url.Values {
	t.Helper()
	page := d.page(t, "/jobs/"+url.PathEscape(id)+"/decide?action="+action+"&task="+task)
	form := url.Values{"why": {"because\nof  it"}}
	for _, field := range regexp.MustCompile(`type="hidden" name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		form.Set(field[1], field[2])
	}
	require.Equal(t, action, form.Get("action"))
	return form
}

// Whatever producers and services wrote is text: in prompts, labels, names and messages.
func TestNothingIsInjected(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	req := jobs.Request{ID: "猫.cat-1", Prompt: "held " + script, NegativePrompt: script, Labels: map[string]string{script[:60]: script}, Batch: script, RefImg: "https://example.com/a.png?token=secret"}
	d.put(t, req, func(rec *jobs.Record) {
		hold(rec)
		rec.Message, rec.Warnings = script, []string{script}
		rec.PastAttempts = []jobs.Attempt{{Attempt: 1, SubmittedAt: rec.EnqueuedAt, EndedAt: rec.EnqueuedAt, Code: script, Message: script, TaskID: script}}
	})
	for _, id := range []string{"failed", "succeeded"} {
		req.ID = id
		d.put(t, req, func(rec *jobs.Record) {
			rec.State, rec.Code, rec.Message, rec.FinishedAt = jobs.State(id), script, script, time.Now()
			rec.Images = []jobs.Image{{N: 1, Key: script + ".png", Width: 1, Height: 1}, {N: 2, Code: script, Message: script}}
		})
	}
	require.NoError(t, d.store.SetLane(t.Context(), jobs.LaneStatus{Account: "main", Model: script, State: jobs.LanePaused, Message: script, Host: script, Concurrency: 1}))
	safe := regexp.MustCompile(`(?i)<script>|<img src=x|' onclick|onerror=alert\(1\)>`)
	id := url.PathEscape(req.ID)
	for _, path := range []string{
		"/", "/jobs", "/jobs?q=" + url.QueryEscape(script), "/jobs?q=held", "/jobs/%E7%8C%AB.cat-1", "/jobs/failed", "/jobs/succeeded?done=" + url.QueryEscape(script),
		"/jobs/%E7%8C%AB.cat-1/decide?action=adopt&task=" + url.QueryEscape(script), "/jobs/failed/decide?action=retry",
	} {
		page := d.page(t, path)
		assert.Empty(t, safe.FindAllString(page, -1), path)
		assert.NotContains(t, page, "secret", path)
		assert.NotContains(t, page, "ZgotmplZ", path)
	}
	assert.Contains(t, d.page(t, "/"), `held &lt;script&gt;alert(&#34;1&#34;)`)
	assert.NotContains(t, d.call(t, http.MethodGet, "/jobs/"+url.PathEscape(script), nil).Body.String(), "<script>alert")
	assert.NotContains(t, d.call(t, http.MethodPost, "/jobs/"+id+"/decide", url.Values{"action": {"adopt"}, "task": {script}, "seen": {time.Now().Format(time.RFC3339Nano)}}).Body.String(), "<script>alert")
}

// Every page is in the language of the browser, or in the one that was chosen.
func TestLanguages(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	for _, state := range jobs.States() {
		d.put(t, jobs.Request{ID: "a-" + string(state), Prompt: "a cat"}, func(rec *jobs.Record) {
			if hold(rec); state != jobs.StateHeld {
				rec.State, rec.Code = state, ""
			}
			if state.Final() {
				rec.FinishedAt = time.Now()
			}
			for _, action := range []string{jobs.ActionAdopt, jobs.ActionBuyAgain, jobs.ActionGiveUp, jobs.ActionRetry, jobs.ActionCancel} {
				rec.Decisions = append(rec.Decisions, jobs.Decision{Action: action, By: "bo", At: time.Now()})
			}
		})
	}
	for _, state := range jobs.States() {
		for _, path := range []string{"/jobs/a-" + string(state), "/jobs/a-" + string(state) + "/decide?action=buy-again", "/jobs?state=" + string(state)} {
			d.page(t, path)
			d.page(t, path, "Accept-Language", "zh-CN,zh;q=0.9,en;q=0.8")
		}
	}
	for accept, want := range map[string]string{"": "en", "zh": "zh", "ZH-Hant-TW": "zh", "fr,zh": "zh", "de": "en", "en-GB,zh": "en"} {
		assert.Contains(t, d.page(t, "/", "Accept-Language", accept), `<html lang="`+want+`">`, accept)
	}
	w := d.call(t, http.MethodGet, "/jobs?q=a%26b&lang=zh", nil)
	assert.Equal(t, http.StatusSeeOther, w.Code)
	assert.Equal(t, "/jobs?q=a%26b", w.Header().Get("Location"))
	assert.Contains(t, w.Header().Get("Set-Cookie"), "danqing_language=zh;")
	assert.Contains(t, d.page(t, "/jobs", "Cookie", "danqing_language=zh", "Accept-Language", "en"), "搜索")
	assert.Contains(t, d.page(t, "/jobs", "Cookie", "danqing_language=xx"), "Search")
	assert.Equal(t, "/evil.example/", d.call(t, http.MethodGet, "//evil.example/?lang=zh", nil).Header().Get("Location"))
}

// To buy a job again does not help where its batch's budget has no room: it is not offered.
func TestJobOverItsBudget(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.put(t, jobs.Request{ID: "cat", Prompt: "a cat"}, func(rec *jobs.Record) {
		hold(rec)
		rec.Code, rec.Message, rec.Candidates, rec.Simulated = jobs.CodeBudgetExceeded, "run the batch again with a larger --budget", nil, true
	})
	for _, page := range []string{d.page(t, "/"), d.page(t, "/jobs/cat")} {
		assert.NotContains(t, page, "action=buy-again")
		assert.Contains(t, page, "action=give-up")
		assert.Contains(t, page, "run the batch again with a larger --budget")
	}
	assert.Contains(t, d.page(t, "/jobs/cat"), "danqing jobs show cat --simulate")
}

// A held job is bought again once, however often its form is sent, at the same time and after it
// is held again; who decided and why is kept.
func TestDecisionsAreMadeOnce(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.put(t, jobs.Request{ID: "cat", Prompt: "a cat", N: 2}, hold)
	assert.Contains(t, d.page(t, "/jobs/cat"), "at most ¥0.32")
	form := d.form(t, "cat", "buy-again")
	assert.Contains(t, d.page(t, "/jobs/cat/decide?action=buy-again"), "Buy for ¥0.32")
	var group errgroup.Group
	for range 10 {
		group.Go(func() error {
			if w := d.call(t, http.MethodPost, "/jobs/cat/decide", form); w.Header().Get("Location") != "/jobs/cat?done=buy-again" {
				return fmt.Errorf("%d %s", w.Code, w.Body)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	assert.Contains(t, d.page(t, "/jobs/cat?done=buy-again"), "It is bought again.")
	rec, err := d.store.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateQueued, rec.State)
	require.Len(t, rec.Decisions, 1)
	assert.Equal(t, jobs.Decision{Action: "buy-again", By: "ann", Why: "because of it", At: rec.Decisions[0].At}, rec.Decisions[0])
	assert.Len(t, rec.PastAttempts, 1)

	d.move(t, "cat", func(rec *jobs.Record) { rec.Attempt++; hold(rec) })
	for _, action := range []string{"buy-again", "give-up", "adopt"} {
		form.Set("action", action)
		w := d.call(t, http.MethodPost, "/jobs/cat/decide", form)
		assert.Equal(t, http.StatusConflict, w.Code, action)
		assert.Contains(t, w.Body.String(), "the job has changed since")
	}
	rec, err = d.store.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, jobs.StateHeld, rec.State)
	assert.Equal(t, http.StatusSeeOther, d.call(t, http.MethodPost, "/jobs/cat/decide", d.form(t, "cat", "adopt")).Code)
	rec, err = d.store.Get(t.Context(), "cat")
	require.NoError(t, err)
	assert.Equal(t, task, rec.TaskID)
	assert.Contains(t, d.page(t, "/jobs/cat"), "decided: adopt")
}

// A failed job is tried again once, also one that is in the bucket alone; a waiting one is canceled.
func TestRetryAndCancel(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	fail := func(rec *jobs.Record) {
		rec.State, rec.Code, rec.FinishedAt = jobs.StateFailed, "InternalError", time.Now().Add(-time.Hour)
	}
	old := d.put(t, jobs.Request{ID: "old", Prompt: "a cat"}, fail)
	d.sidecars["old"] = &old.Job
	require.NoError(t, d.redis.Del(t.Context(), "danqing:job:old").Err())
	d.put(t, jobs.Request{ID: "cat", Prompt: "a cat"}, fail)
	for _, id := range []string{"cat", "old"} {
		form := d.form(t, id, "retry")
		for range 2 {
			assert.Equal(t, http.StatusSeeOther, d.call(t, http.MethodPost, "/jobs/"+id+"/decide", form).Code)
		}
		d.move(t, id, fail)
		assert.Equal(t, http.StatusConflict, d.call(t, http.MethodPost, "/jobs/"+id+"/decide", form).Code, "it has failed again")
		assert.Equal(t, http.StatusSeeOther, d.call(t, http.MethodPost, "/jobs/"+id+"/decide", d.form(t, id, "retry")).Code)
		form = d.form(t, id, "cancel")
		assert.Equal(t, http.StatusSeeOther, d.call(t, http.MethodPost, "/jobs/"+id+"/decide", form).Code)
		rec, err := d.store.Get(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, jobs.StateCanceled, rec.State)
	}
	for _, bad := range []url.Values{{}, {"action": {"retry"}}, {"action": {"delete"}, "seen": {time.Now().Format(time.RFC3339Nano)}}} {
		assert.Equal(t, http.StatusBadRequest, d.call(t, http.MethodPost, "/jobs/cat/decide", bad).Code)
	}
	assert.Equal(t, http.StatusNotFound, d.call(t, http.MethodGet, "/jobs/none", nil).Code)
}

func TestPauses(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	require.NoError(t, d.store.SetLane(t.Context(), jobs.LaneStatus{Account: "main", Model: "wanx-v1", State: jobs.LaneOpen, Concurrency: 1}))
	require.NoError(t, d.redis.Set(t.Context(), "danqing:lane:main:wanx-v1:lease", "worker-7", 0).Err())
	post := func(form url.Values) int { return d.call(t, http.MethodPost, "/pauses", form).Code }
	assert.NotContains(t, d.page(t, "/"), "paused by")
	for _, form := range []url.Values{{"model": {"wanx-v1"}}, {"account": {"main"}}} {
		form.Set("action", "pause")
		form.Set("why", "a bad batch")
		assert.Equal(t, http.StatusSeeOther, post(form))
		assert.Regexp(t, `paused by ann, .*just now.*: a bad batch`, d.page(t, "/"))
		form.Set("action", "resume")
		assert.Equal(t, http.StatusSeeOther, post(form))
		assert.NotContains(t, d.page(t, "/"), "paused by")
	}
	assert.Equal(t, http.StatusBadRequest, post(url.Values{"model": {"none"}, "action": {"pause"}}))
	assert.Equal(t, http.StatusBadRequest, post(url.Values{"action": {"pause"}}))
}

// A page that is read-only has no button and no form but the search and the logout.
func TestReadOnlyPagesHaveNoButtons(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(cfg *dashboard.Config) { cfg.ReadOnly = true })
	d.put(t, jobs.Request{ID: "cat", Prompt: "a cat"}, hold)
	require.NoError(t, d.store.SetLane(t.Context(), jobs.LaneStatus{Account: "main", Model: "wanx-v1", State: jobs.LaneOpen, Concurrency: 1}))
	for _, path := range []string{"/", "/jobs", "/jobs/cat"} {
		page := d.page(t, path)
		assert.Equal(t, 1, strings.Count(page, `method="post"`), path) // the logout
		assert.NotContains(t, page, "/decide", path)
	}
	assert.Equal(t, "/jobs/cat", d.call(t, http.MethodGet, "/jobs/cat/decide?action=adopt", nil).Header().Get("Location"))
}

// Images are found by their number; those that are kept of a task, by the jobs whose own it may be.
func TestImages(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	d.put(t, jobs.Request{ID: "cat", Prompt: "a cat"}, hold)
	d.put(t, jobs.Request{ID: "dog", Prompt: "a dog"}, func(rec *jobs.Record) {
		rec.State, rec.FinishedAt = jobs.StateSucceeded, time.Now()
		rec.Images = []jobs.Image{{N: 1, Code: "x"}, {N: 2, Key: "dog-2.png"}}
	})
	for path, want := range map[string]string{"/jobs/dog/images/2": "dog dog-2.png", "/jobs/cat/held/" + task + "/1": "cat _held/" + task + "/1.png"} {
		assert.Equal(t, want, d.page(t, path))
	}
	for _, path := range []string{"/jobs/dog/images/1", "/jobs/dog/images/3", "/jobs/dog/images/x", "/jobs/dog/held/" + task + "/1", "/jobs/cat/held/" + task + "/2", "/jobs/none/images/1"} {
		assert.Equal(t, http.StatusNotFound, d.call(t, http.MethodGet, path, nil).Code, path)
	}
}

// The search finds jobs by ID, prompt, label and code, waiting ones too, and goes on where it stopped.
func TestSearch(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	client := jobs.NewClient(d.redis)
	for i := range 60 {
		_, err := client.Enqueue(t.Context(), jobs.Request{ID: fmt.Sprintf("n-%03d", i), Prompt: fmt.Sprintf("山水 %d", i), Labels: map[string]string{"sku": fmt.Sprintf("A-%d", i)}})
		require.NoError(t, err)
	}
	d.put(t, jobs.Request{ID: "dog", Prompt: "A Dog"}, func(rec *jobs.Record) {
		rec.State, rec.Code, rec.FinishedAt = jobs.StateFailed, "DataInspectionFailed", time.Now()
	})
	d.sidecars["old"] = &jobs.Job{ID: "old", State: jobs.StateSucceeded, Model: "wanx-v1"}
	ids := func(path string) []string {
		var list []string
		for _, found := range regexp.MustCompile(`class="id"><a href="/jobs/([^"]+)"`).FindAllStringSubmatch(d.page(t, path), -1) {
			list = append(list, found[1])
		}
		return list
	}
	for query, want := range map[string][]string{
		"n-007": {"n-007"}, "山水 17": {"n-017"}, "sku=A-5 山水": {"n-059", "n-058", "n-057", "n-056", "n-055", "n-054", "n-053", "n-052", "n-051", "n-050", "n-005"},
		"dog": {"dog"}, "inspection": {"dog"}, "old": {"old"}, "nothing": nil,
	} {
		assert.ElementsMatch(t, want, ids("/jobs?q="+url.QueryEscape(query)), query)
	}
	assert.Equal(t, []string{"dog"}, ids("/jobs?state=failed"))
	assert.Empty(t, ids("/jobs?state=failed&q=n-007"))
	seen := map[string]bool{}
	for path, pages := "/jobs", 1; ; pages++ {
		for _, id := range ids(path) {
			seen[id] = true
		}
		next := regexp.MustCompile(`<a href="(/jobs\?cursor=[^"]+)">Older`).FindStringSubmatch(d.page(t, path))
		if next == nil {
			assert.Equal(t, 2, pages)
			break
		}
		path = strings.ReplaceAll(next[1], "&amp;", "&")
	}
	assert.Len(t, seen, 61)
	assert.Equal(t, "/jobs", d.call(t, http.MethodGet, "/jobs?cursor=x", nil).Header().Get("Location"))
}

// counter counts commands to Redis.
type counter struct{ calls atomic.Int64 }

func (c *counter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.calls.Add(1)
		return next(ctx, cmd)
	}
}

func (c *counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.calls.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

// Many open pages cost Redis what one does, a change reaches all, and when nobody looks nothing is
// read.
func TestEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		count := &counter{}
		d.redis.AddHook(count)
		ctx, leave := context.WithCancel(t.Context())
		var streams []*stream
		for range 50 {
			s := &stream{header: http.Header{}}
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/events", nil)
			go d.ServeHTTP(s, r)
			streams = append(streams, s)
		}
		<-time.After(3 * time.Second)
		count.calls.Store(0)
		<-time.After(20 * time.Second)
		assert.InDelta(t, 10*35, count.calls.Load(), 10*25, "ten reads for fifty pages")
		_, err := jobs.NewClient(d.redis).Enqueue(t.Context(), jobs.Request{ID: "cat", Prompt: "a cat"})
		require.NoError(t, err)
		<-time.After(3 * time.Second)
		synctest.Wait()
		for _, s := range streams {
			assert.Equal(t, 1, strings.Count(s.text.String(), "event: change\n"))
			assert.Contains(t, s.text.String(), ":\n\n", "a heartbeat")
		}
		leave()
		<-time.After(time.Second)
		count.calls.Store(0)
		<-time.After(time.Hour)
		assert.Zero(t, count.calls.Load())
		// A closed dashboard opens no stream.
		d.Close()
		assert.Equal(t, http.StatusServiceUnavailable, d.call(t, http.MethodGet, "/events", nil).Code)
	})
}

// stream is a response that is read while it is written.
type stream struct {
	header http.Header
	text   strings.Builder
}

func (s *stream) Header() http.Header         { return s.header }
func (s *stream) WriteHeader(int)             {}
func (s *stream) Write(p []byte) (int, error) { return s.text.Write(p) }
func (s *stream) Flush()                      {}

var _ io.Writer = (*stream)(nil)
