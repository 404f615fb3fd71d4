package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/danqing-queue/danqing/jobs"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// scriptCommands are the additional commands of the scripts.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"waitfor": waitFor, "redis": startRedis, "services": startServices, "hold": holdJob, "expire": expireJobs, "onterminal": onTerminal,
	}
}

// startRedis starts a redis-server for the script and sets REDIS_URL.
func startRedis(ts *testscript.TestScript, _ bool, _ []string) {
	socket := filepath.Join(ts.MkAbs("."), "redis.sock")
	server := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--dir", ts.MkAbs("."), "--save", "") //nolint:noctx // ended below
	ts.Check(server.Start())
	ts.Defer(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	waitFor(ts, false, []string{socket})
	ts.Setenv("REDIS_URL", "unix://"+socket)
}

// startServices starts and configures a bucket and a DashScope. A task whose prompt contains
// "fails once" fails the first time, "a photo" is a JPEG. GENUINE is the same service without the simulator's mark.
func startServices(ts *testscript.TestScript, _ bool, _ []string) {
	files, err := bucket.Open(bucket.Config{Dir: ts.MkAbs("s3"), AccessKeyID: "AKIATEST", SecretAccessKey: "s3cr3t"})
	ts.Check(err)
	var mu sync.Mutex
	failed := map[string]bool{}
	sim := &simulator.Simulator{
		TaskTime: simulator.Between(30*time.Millisecond, 60*time.Millisecond),
		Render: func(p painter.Picture) []byte {
			p.Width, p.Height = 8, 8
			if p.Prompt == "a photo" {
				return painter.PaintJPEG(p)
			}
			return painter.Paint(p)
		},
		Outcome: func(req dashscope.CreateRequest) simulator.Outcome {
			mu.Lock()
			defer mu.Unlock()
			if prompt := req.Input.Prompt; strings.Contains(prompt, "fails once") && !failed[prompt] {
				failed[prompt] = true
				return simulator.Outcome{Code: "DataInspectionFailed", Message: "no such cats"}
			}
			return simulator.Outcome{}
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/"+bucket.DefaultBucket) {
			files.ServeHTTP(w, r)
			return
		}
		sim.ServeHTTP(w, r)
	}))
	genuine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { sim.ServeHTTP(unmarkedWriter{w}, r) }))
	ts.Defer(func() {
		server.Close()
		genuine.Close()
		_ = sim.Close()
		_ = files.Close()
	})
	for name, value := range map[string]string{
		"GENUINE": genuine.URL + "/api/v1", "DASHSCOPE_HTTP_BASE_URL": server.URL + "/api/v1", "DASHSCOPE_API_KEY": "sk-test",
		"AWS_ENDPOINT_URL_S3": server.URL, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_REGION": "us-east-1",
		"DANQING_S3_BUCKET": bucket.DefaultBucket, "DANQING_S3_ADDRESSING": "path",
	} {
		ts.Setenv(name, value)
	}
}

// scriptQueue returns a client of the script's Redis.
func scriptQueue(ts *testscript.TestScript) *redis.Client {
	options, err := redis.ParseURL(ts.Getenv("REDIS_URL"))
	ts.Check(err)
	client := redis.NewClient(options)
	ts.Defer(func() { _ = client.Close() })
	return client
}

// holdJob holds a waiting job, as after a worker crashed during its submit.
func holdJob(ts *testscript.TestScript, _ bool, args []string) {
	rdb := scriptQueue(ts)
	client := jobs.NewStore(rdb)
	rec, err := client.Get(context.Background(), args[0])
	ts.Check(err)
	req, err := jobs.NewClient(rdb).RequestOf(context.Background(), &rec.Job)
	ts.Check(err)
	req = req.WithSeed(rec.ID)
	held := *rec
	held.State, held.Attempt, held.Term, held.Account, held.Request = jobs.StateHeld, rec.Attempt+1, 1, "default", &req
	held.SubmittedAt, held.Code, held.Message = time.Now().UTC(), "SubmitAmbiguous", "the program died"
	ts.Check(client.Update(context.Background(), rec, &held))
}

// expireJobs deletes jobs from Redis, as happens a week after their end.
func expireJobs(ts *testscript.TestScript, _ bool, args []string) {
	rdb := scriptQueue(ts)
	for _, id := range args {
		ts.Check(rdb.Del(context.Background(), "danqing:job:"+id).Err())
	}
}
