package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// Four workers on one Redis are killed, stopped, frozen and started at random during 150
// jobs: two tasks of one lane never run at once, no request is throttled, and each job is
// charged once.
func TestFourWorkersWithRandomFaults(t *testing.T) {
	t.Parallel()
	total := 150
	if testing.Short() { // in the race detector's run
		total = 40
	}
	f := newFleet(t, redistest.Start(t).Socket)
	var ids []string
	for i := range total {
		id := fmt.Sprintf("job-%d", i)
		_, err := f.client.Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "prompt of " + id, Model: fleetModels()[i%len(fleetModels())]})
		require.NoError(t, err)
		ids = append(ids, id)
	}
	for i := range f.members {
		f.start(i)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	disturbing, enough := context.WithCancel(t.Context())
	var disturbed sync.WaitGroup
	disturbed.Go(func() { f.injectFaults(disturbing, rand.New(rand.NewPCG(seed, 0))) })
	adopted, bought := 0, 0
	for _, id := range ids {
		rec, err := f.client.Wait(t.Context(), id)
		require.NoError(t, err)
		for rec.State == jobs.StateHeld {
			// Killed during a create: the operator decides.
			decision := jobs.Resolution{BuyAgain: true}
			if task := f.taskOf(id); task != "" {
				decision = jobs.Resolution{Adopt: task}
				adopted++
			} else {
				bought++
			}
			_, err := jobs.NewInspector(f.rdb).Resolve(t.Context(), id, decision, jobs.Decider{})
			require.NoError(t, err)
			rec, err = f.client.Wait(t.Context(), id)
			require.NoError(t, err)
		}
		require.Equal(t, jobs.StateSucceeded, rec.State, "%s: %s", id, rec.Message)
	}
	enough()
	disturbed.Wait()
	stats := f.sim.Stats()
	t.Logf("%d kills, %d stops, %d freezes; %d tasks adopted, %d jobs bought again", f.kills, f.stops, f.freezes, adopted, bought)
	assert.Zero(t, stats.Throttled, "creates refused with 429")
	for _, lane := range stats.Lanes {
		assert.Equal(t, 1, lane.MaxOpen, "%s: tasks at once", lane.Model)
	}
	assert.Len(t, f.sim.Tasks(), total)
	charged := map[string]int{}
	for _, task := range f.sim.Tasks() {
		charged[task.Request.Input.Prompt]++
		assert.Positive(t, task.ChargedMicroYuan)
	}
	for _, id := range ids {
		assert.Equal(t, 1, charged["prompt of "+id], id)
		_, err := os.Stat(f.files.Path("single/" + id + "-1.png"))
		require.NoError(t, err)
	}
}

// fleetModels are the models of each worker's lanes, with one task at a time.
func fleetModels() []string {
	return []string{"wanx-v1", "wanx2.1-t2i-turbo", "wan2.2-t2i-flash", "wan2.2-t2i-plus", "wan2.5-t2i-preview"}
}

// fleet is four workers, with a real Redis, a DashScope and a bucket that outlive them.
type fleet struct {
	t       *testing.T
	redis   string
	client  *jobs.Client
	rdb     redis.UniversalClient
	sim     *simulator.Simulator
	service *httptest.Server
	files   *bucket.Server
	store   *httptest.Server
	members [4]*exec.Cmd
	dirs    [4]string

	kills, stops, freezes int
}

func newFleet(t *testing.T, socket string) *fleet {
	t.Helper()
	f := &fleet{t: t, redis: "unix://" + socket}
	options, err := redis.ParseURL(f.redis)
	require.NoError(t, err)
	rdb := redis.NewClient(options)
	f.client, f.rdb = jobs.NewClient(rdb), rdb
	f.sim = &simulator.Simulator{
		TaskTime: simulator.Between(50*time.Millisecond, 400*time.Millisecond), Concurrency: 1,
		Render: func(p painter.Picture) []byte {
			p.Width, p.Height = 8, 8
			return painter.Paint(p)
		},
	}
	f.service = httptest.NewServer(f.sim)
	f.files, err = bucket.Open(bucket.Config{Dir: filepath.Join(t.TempDir(), "s3"), AccessKeyID: "AKIATEST", SecretAccessKey: "secret"})
	require.NoError(t, err)
	f.store = httptest.NewServer(f.files)
	for i := range f.dirs {
		f.dirs[i] = t.TempDir()
	}
	t.Cleanup(func() {
		for _, member := range f.members {
			if member != nil {
				_ = member.Process.Kill()
				_ = member.Wait()
			}
		}
		f.service.Close()
		f.store.Close()
		assert.NoError(t, f.sim.Close())
		assert.NoError(t, f.files.Close())
		assert.NoError(t, rdb.Close())
		if t.Failed() {
			for _, dir := range f.dirs {
				text, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Logf("%s:\n%s", dir, bytes.TrimSpace(text))
			}
		}
	})
	return f
}

// start starts worker i in its directory.
func (f *fleet) start(i int) {
	self, err := os.Executable()
	if !assert.NoError(f.t, err) {
		return
	}
	log, err := os.OpenFile(filepath.Join(f.dirs[i], "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if !assert.NoError(f.t, err) {
		return
	}
	defer log.Close()         //nolint:errcheck // also open in the child
	cmd := exec.Command(self) //nolint:noctx // killed by the test
	cmd.Args = []string{"danqing", "worker"}
	cmd.Dir, cmd.Stdout, cmd.Stderr = f.dirs[i], log, log
	var models strings.Builder
	for _, model := range fleetModels() {
		models.WriteString("," + model)
	}
	cmd.Env = []string{
		"HOME=" + f.dirs[i], "PATH=" + os.Getenv("PATH"), noExitSleep, "REDIS_URL=" + f.redis,
		"DASHSCOPE_API_KEY=sk-chaos", "DASHSCOPE_HTTP_BASE_URL=" + f.service.URL + "/api/v1", "DANQING_MODELS=" + models.String()[1:],
		"AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1",
		"AWS_ENDPOINT_URL_S3=" + f.store.URL, "DANQING_S3_BUCKET=" + bucket.DefaultBucket,
		"DANQING_SUBMIT_LIMIT=5s",
	}
	if assert.NoError(f.t, cmd.Start()) {
		f.members[i] = cmd
	}
}

// injectFaults injects faults into one worker after the other until ctx ends. A worker is
// frozen for longer than its leases last.
func (f *fleet) injectFaults(ctx context.Context, rng *rand.Rand) {
	thawed := map[int]time.Time{}
	tick := time.NewTicker(700 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			for i := range thawed {
				_ = f.members[i].Process.Signal(syscall.SIGCONT)
			}
			return
		}
		for i, at := range thawed {
			if time.Now().After(at) {
				_ = f.members[i].Process.Signal(syscall.SIGCONT)
				delete(thawed, i)
			}
		}
		i := rng.IntN(len(f.members))
		if _, frozen := thawed[i]; frozen {
			continue
		}
		member := f.members[i]
		f.expireLeases(ctx, 20*time.Second) // later than the longest freeze
		fault := rng.IntN(8)
		if n == 3 {
			fault = 7 // at least one freeze
		}
		switch fault {
		case 0, 1, 2, 3:
			f.kills++
			_ = member.Process.Kill()
		case 4, 5, 6:
			f.stops++
			_ = member.Process.Signal(syscall.SIGTERM)
		case 7:
			if len(thawed) == 0 {
				f.freezes++
				_ = member.Process.Signal(syscall.SIGSTOP)
				thawed[i] = time.Now().Add(18 * time.Second)
			}
			continue
		}
		_ = member.Wait()
		f.start(i)
	}
}

// taskOf returns the task that was created for a job, or "".
func (f *fleet) taskOf(id string) string {
	for _, task := range f.sim.Tasks() {
		if task.Request.Input.Prompt == "prompt of "+id {
			return task.ID
		}
	}
	return ""
}
