package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redistest"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/storage/storagetest"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The example batch on a real Redis gives the same objects in every kind of store: equal
// images, and sidecars that differ only in times and in DashScope's random names.
func TestExampleBatchInEveryBucket(t *testing.T) {
	t.Parallel()
	stores := map[string]func(testing.TB) *storagetest.Store{
		"embedded":  embeddedStore,
		"versitygw": storagetest.VersityGWTLS,
		"ceph": func(tb testing.TB) *storagetest.Store {
			tb.Helper()
			plain, _ := storagetest.Ceph(tb)
			return plain
		},
	}
	var mu sync.Mutex
	objects := map[string]map[string]string{}
	t.Run("run", func(t *testing.T) { // returns when all three have ended
		for name, open := range stores {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				got := exampleBatch(t, open(t))
				mu.Lock()
				defer mu.Unlock()
				objects[name] = got
			})
		}
	})
	want, ran := objects["embedded"]
	if !ran {
		t.Skip("none of the stores could be tried: see above")
	}
	require.Len(t, want, 8+8+1+1, "images, sidecars, a staged reference and the mode")
	for name, got := range objects {
		assert.Equal(t, want, got, name)
	}
}

// exampleBatch runs the program and returns the objects in the bucket by key: their content
// types, and sidecars as text or the SHA-256 of anything else.
func exampleBatch(t *testing.T, store *storagetest.Store) map[string]string {
	t.Helper()
	sim := &simulator.Simulator{Seed: 1, TaskTime: simulator.Between(30*time.Millisecond, 60*time.Millisecond)}
	dashScope := httptest.NewServer(sim)
	t.Cleanup(func() {
		dashScope.Close()
		assert.NoError(t, sim.Close())
	})
	// On another Redis the second run would wait a minute for other workers to replay.
	socket := redistest.Start(t).Socket
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("examples")))
	danqing := func(env ...string) (string, int) {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Args, cmd.Dir = []string{"danqing", "batch", "wanx-v1.jsonl"}, dir
		cmd.Env = append(env,
			"HOME="+dir, "PATH="+os.Getenv("PATH"), noExitSleep, "REDIS_URL=unix://"+socket,
			"DASHSCOPE_API_KEY=sk-buckets", "DASHSCOPE_HTTP_BASE_URL="+dashScope.URL+"/api/v1",
			"AWS_ENDPOINT_URL_S3="+store.Endpoint, "AWS_REGION="+storagetest.Region, "DANQING_S3_BUCKET="+storagetest.Bucket,
			"AWS_ACCESS_KEY_ID="+storagetest.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+storagetest.SecretAccessKey)
		out, err := cmd.CombinedOutput()
		require.NotNil(t, cmd.ProcessState, "%v", err)
		return string(out), cmd.ProcessState.ExitCode()
	}
	if store.CAFile != "" {
		out, code := danqing()
		assert.Equal(t, exitFailed, code, out)
		assert.Contains(t, out, "the certificate of "+store.Endpoint+" is signed by an authority that this machine does not trust: set SSL_CERT_FILE")
		assert.Empty(t, sim.Tasks(), "nothing is bought for a bucket that cannot be reached")
	}
	out, code := danqing("SSL_CERT_FILE=" + store.CAFile)
	require.Equal(t, exitDone, code, out)
	assert.Len(t, sim.Tasks(), 8)

	objects := map[string]string{}
	for key, o := range store.Objects(t) {
		content := fmt.Sprintf("%x", sha256.Sum256(o.Content))
		if strings.HasPrefix(key, "_jobs/") {
			content = withoutVolatile(t, o.Content)
		}
		objects[key] = o.ContentType + "\n" + content
	}
	return objects
}

// embeddedStore starts the embedded bucket, over loopback.
func embeddedStore(tb testing.TB) *storagetest.Store {
	tb.Helper()
	server, err := bucket.Open(bucket.Config{
		Dir: tb.TempDir(), Bucket: storagetest.Bucket,
		AccessKeyID: storagetest.AccessKeyID, SecretAccessKey: storagetest.SecretAccessKey,
	})
	require.NoError(tb, err)
	front := httptest.NewServer(server)
	tb.Cleanup(func() {
		front.Close()
		assert.NoError(tb, server.Close())
	})
	return &storagetest.Store{Endpoint: front.URL, Client: http.DefaultClient}
}

// withoutVolatile returns a sidecar without times, and without DashScope's random names of
// tasks, requests and results.
func withoutVolatile(t *testing.T, sidecar []byte) string {
	t.Helper()
	var all any
	require.NoError(t, json.Unmarshal(sidecar, &all))
	var strip func(any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				switch key {
				case "created_at", "submitted_at", "finished_at", "ended_at", "task_id", "request_id", "source_name":
					assert.NotEmpty(t, value, key)
					delete(v, key)
				default:
					strip(value)
				}
			}
		case []any:
			for _, value := range v {
				strip(value)
			}
		}
	}
	strip(all)
	text, err := json.MarshalIndent(all, "", "  ")
	require.NoError(t, err)
	return string(text)
}
