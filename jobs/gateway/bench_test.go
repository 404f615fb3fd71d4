//go:build unix

package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	jobqueue "github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// BenchmarkCreate measures how many creates a second the API of "danqing up" acknowledges to 50
// clients over HTTP, each synced to this disk, and the processor time of one, clients included. Run
// it with -benchtime 20000x.
func BenchmarkCreate(b *testing.B) {
	queue, err := jobqueue.OpenDir(jobqueue.Config{Dir: b.TempDir()})
	require.NoError(b, err)
	defer func() { require.NoError(b, queue.Close()) }()
	s := newServiceOn(b, queue.Client(), func(api *gateway.API) { api.Depth = b.N + 1 })
	server := httptest.NewServer(s.gateway)
	defer server.Close()
	const clients = 50
	server.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = clients
	var group errgroup.Group
	before := processorTime(b)
	b.ResetTimer()
	for c := range clients {
		group.Go(func() error {
			for i := c; i < b.N; i += clients {
				body := fmt.Sprintf(`{"model":"wanx-v1","input":{"prompt":"a cat in the snow, number %d"},"parameters":{"n":1}}`, i)
				r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, server.URL+createPath, strings.NewReader(body))
				if err != nil {
					return err
				}
				r.Header.Set("X-DashScope-Async", "enable")
				answer, err := server.Client().Do(r)
				if err != nil {
					return err
				}
				text, err := io.ReadAll(answer.Body)
				if _ = answer.Body.Close(); err != nil || answer.StatusCode != http.StatusOK {
					return fmt.Errorf("%s: %s: %w", answer.Status, text, err)
				}
			}
			return nil
		})
	}
	require.NoError(b, group.Wait())
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/job")
}

// processorTime returns what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
