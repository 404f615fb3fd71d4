package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/cmd/danqing/drill"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// drilled runs a drill of the test binary, which also acts as the program.
func drilled(t *testing.T, cfg drill.Config) *drill.Report {
	t.Helper()
	var err error
	cfg.Program, err = os.Executable()
	require.NoError(t, err)
	cfg.Instance, cfg.Short = findInstance, true
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	report, err := drill.Run(t.Context(), cfg)
	require.NoError(t, err)
	var text strings.Builder
	require.NoError(t, report.Print(&text))
	t.Log(text.String())
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, worker := range []string{"worker-1", "worker-2"} {
			log, _ := os.ReadFile(filepath.Join(cfg.Dir, worker, "log"))
			t.Logf("%s:\n%s", worker, bytes.TrimSpace(log))
		}
	})
	return report
}

// fewer reduces the faults of a drill with the race detector.
func fewer(faults int) int {
	if testing.Short() {
		return faults / 3
	}
	return faults
}

// The guarantees hold on every kind of queue, whatever the seed.
func TestDrill(t *testing.T) {
	t.Parallel()
	for _, queue := range []drill.Queue{drill.QueueEmbedded, drill.QueueServer} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			if queue == drill.QueueServer {
				redistest.Binary(t)
			}
			report := drilled(t, drill.Config{Queue: queue, Faults: fewer(15), Jobs: 30})
			assert.True(t, report.Passed, report.Problems)
			if !testing.Short() {
				assert.Positive(t, report.Kills) // among five faults there need not be one
			}
			assert.InDelta(t, 1, report.ChargesPerImage, 0)
			assert.Equal(t, report.ImagesCharged, report.ImagesDelivered+report.ImagesAside)
		})
	}
}

// A failover under load loses nothing that was paid for, and buys nothing twice.
func TestDrillFailsOver(t *testing.T) {
	t.Parallel()
	redistest.Binary(t)
	report := drilled(t, drill.Config{Queue: drill.QueueSentinel, Points: []string{"failover-kill"}, Faults: 1, Jobs: 12})
	assert.True(t, report.Passed, report.Problems)
	assert.InDelta(t, 1, report.ChargesPerImage, 0)
	assert.Equal(t, 1, report.Faults)
	assert.Equal(t, report.ImagesCharged, report.ImagesDelivered+report.ImagesAside)
}

// A create of the newer protocol whose reply is lost, while the list does not show its task, ends
// held: it is charged once, and counted.
func TestDrillUnlisted(t *testing.T) {
	t.Parallel()
	cfg := drill.Config{Points: []string{"stop"}, Faults: 1, Jobs: 24, Unlisted: true} // five of each model, at least
	cfg.WrapHandlers = func(service, store http.Handler) (http.Handler, http.Handler) { return loseReply(service), store }
	report := drilled(t, cfg)
	assert.True(t, report.Passed, report.Problems)
	assert.Equal(t, map[string]int{jobs.CodeSubmitAmbiguous: 1}, report.Held)
	assert.Positive(t, report.ImagesUnlisted)
	assert.Equal(t, report.ImagesCharged, report.ImagesDelivered+report.ImagesUnlisted)
}

// loseReply loses the reply of one create of the newer protocol, after the warm-up, whose task makes
// an image: that of drill-19 fails.
func loseReply(service http.Handler) http.Handler {
	var created atomic.Int32
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, dashscope.ProtocolImageGeneration.Path()) {
			service.ServeHTTP(rw, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the worker was killed
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		reply := httptest.NewRecorder()
		service.ServeHTTP(reply, r)
		if reply.Code == http.StatusOK && !bytes.Contains(body, []byte("drill-19")) && created.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		maps.Copy(rw.Header(), reply.Header())
		rw.WriteHeader(reply.Code)
		_, _ = rw.Write(reply.Body.Bytes()) // the worker may have gone
	})
}

// On a given Redis the drill accepts only an empty database, and leaves it empty.
func TestDrillLeavesRedisEmpty(t *testing.T) {
	t.Parallel()
	socket := redistest.Start(t).Socket
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	defer rdb.Close() //nolint:errcheck // the server ends too
	report := drilled(t, drill.Config{Queue: drill.QueueRedis, RedisURL: "unix://" + socket, Points: []string{"create.kill-done"}, Jobs: 1})
	assert.True(t, report.Passed, report.Problems)
	assert.Zero(t, rdb.DBSize(t.Context()).Val())

	require.NoError(t, rdb.Set(t.Context(), "theirs", "1", 0).Err())
	_, err := drill.Run(t.Context(), drill.Config{Queue: drill.QueueRedis, RedisURL: "unix://" + socket, Program: "unused"})
	require.ErrorIs(t, err, drill.ErrNotEmpty)
	assert.Equal(t, "1", rdb.Get(t.Context(), "theirs").Val())
}

// A drill that can only pass proves nothing: a create that is sent twice without the
// worker's knowledge, and an image that vanishes from the bucket, are found and named.
func TestDrillFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wrap  func(t *testing.T, service, store http.Handler, dir string) (http.Handler, http.Handler)
		check func(t *testing.T, report *drill.Report)
	}{
		"paid twice": {
			func(_ *testing.T, service, store http.Handler, _ string) (http.Handler, http.Handler) {
				return createTwice(service), store
			},
			func(t *testing.T, report *drill.Report) {
				t.Helper()
				assert.Greater(t, report.ChargesPerImage, 1.0)
				assert.Contains(t, strings.Join(report.Problems, "\n"), "drill-0 was charged for 2 tasks: ")
			},
		},
		"lost": {
			func(t *testing.T, service, store http.Handler, dir string) (http.Handler, http.Handler) {
				t.Helper()
				image := filepath.Join(dir, "bucket", bucket.DefaultBucket, "single", "drill-0-1.png")
				return service, lose(store, "/_jobs/drill-0.json", image)
			},
			func(t *testing.T, report *drill.Report) {
				t.Helper()
				assert.Equal(t, 1, report.ImagesLost)
				assert.InDelta(t, 1, report.ChargesPerImage, 0)
				assert.Contains(t, strings.Join(report.Problems, "\n"), "lost: image 1 of drill-0, task ")
			},
		},
		"wrong": {
			func(t *testing.T, service, store http.Handler, dir string) (http.Handler, http.Handler) {
				t.Helper()
				image := filepath.Join(dir, "bucket", bucket.DefaultBucket, "single", "drill-0-1.png")
				return service, swap(store, image, strings.ReplaceAll(image, "drill-0", "drill-1"))
			},
			func(t *testing.T, report *drill.Report) {
				t.Helper()
				assert.Equal(t, 2, report.ImagesWrong)
				assert.Contains(t, strings.Join(report.Problems, "\n"), `wrong picture: single/drill-0-1.png shows the request of "drill-1"`)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := drill.Config{Points: []string{"stop", "query.reset-done"}, Faults: 2, Jobs: 1, Seed: 7}
			cfg.Dir = t.TempDir()
			cfg.WrapHandlers = func(service, store http.Handler) (http.Handler, http.Handler) {
				return c.wrap(t, service, store, cfg.Dir)
			}
			report := drilled(t, cfg)
			assert.False(t, report.Passed)
			c.check(t, report)
			var text strings.Builder
			require.NoError(t, report.Print(&text))
			assert.Contains(t, text.String(), "FAILED, with seed 7; the logs of the workers are in "+cfg.Dir)
		})
	}
}

// createTwice creates a second task for the first create, hidden from the worker.
func createTwice(service http.Handler) http.Handler {
	var done atomic.Bool
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, dashscope.PathText2Image) && !done.Load() {
			body, err := io.ReadAll(r.Body)
			if err == nil && bytes.Contains(body, []byte(`"prompt of drill-0"`)) && done.CompareAndSwap(false, true) {
				again := r.Clone(context.WithoutCancel(r.Context()))
				again.Body = io.NopCloser(bytes.NewReader(body))
				service.ServeHTTP(httptest.NewRecorder(), again)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		service.ServeHTTP(rw, r)
	})
}

// swap exchanges two files once a sidecar is put and both are there. The jobs of the warm-up have
// ended then: the store does not serve an image that does not match its checksum.
func swap(store http.Handler, a, b string) http.Handler {
	var done atomic.Bool
	warmUp := regexp.MustCompile(`/_jobs/drill-[0-3]\.json$`)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/_jobs/") && !warmUp.MatchString(r.URL.Path) && !done.Load() {
			first, errA := os.ReadFile(a)
			second, errB := os.ReadFile(b)
			if errA == nil && errB == nil && done.CompareAndSwap(false, true) {
				_ = os.WriteFile(a, second, 0o600) // the test looks what they show
				_ = os.WriteFile(b, first, 0o600)
			}
		}
		store.ServeHTTP(rw, r)
	})
}

// lose removes a file once an object is put.
func lose(store http.Handler, put, file string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, put) {
			_ = os.Remove(file) // the test looks whether it is missed
		}
		store.ServeHTTP(rw, r)
	})
}

// The command's exit code is the verdict's, and its report is one line of JSON.
func TestDrillCommand(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	require.NoError(t, err)
	run := func(args ...string) (stdout, stderr string, code int) {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Args = append([]string{"danqing", "drill"}, args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), noExitSleep, "TMPDIR=" + t.TempDir()}
		var out, log strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &log
		_ = cmd.Run()
		return out.String(), log.String(), cmd.ProcessState.ExitCode()
	}
	stdout, stderr, code := run("--short", "--points", "stop", "--jobs", "1", "--json", "--seed", "5")
	require.Equal(t, exitDone, code, stderr)
	var report drill.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &report))
	assert.Equal(t, uint64(5), report.Seed)
	assert.Positive(t, report.ImagesDelivered)
	assert.NoDirExists(t, report.Folder)

	stdout, _, code = run("--list-points")
	assert.Equal(t, exitDone, code)
	assert.Contains(t, stdout, "create.kill-done\n")
	assert.NotContains(t, stdout, "redis.")

	_, stderr, code = run("--points", "create.nothing")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stderr, `no point "create.nothing" on this queue`)
	assert.Contains(t, stderr, "danqing drill --list-points")
}
