package embedded_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

// BenchmarkEnqueue compares the durable queue with the one in memory, and 50 clients that
// share syncs with a single one. For each it reports the speed also as a ratio to that of a
// program that writes and syncs each job by itself, on the same disk.
func BenchmarkEnqueue(b *testing.B) {
	for name, opened := range map[string]func(*testing.B) *embedded.Queue{
		"memory": func(*testing.B) *embedded.Queue { return embedded.Open() },
		"log": func(b *testing.B) *embedded.Queue {
			b.Helper()
			return open(b, embedded.Config{Dir: b.TempDir()})
		},
	} {
		for _, clients := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/clients=%d", name, clients), func(b *testing.B) {
				q := opened(b)
				client := jobs.NewClient(q.Client())
				var producers errgroup.Group
				b.ResetTimer()
				for c := range clients {
					producers.Go(func() error {
						for i := c; i < b.N; i += clients {
							if _, err := client.Enqueue(b.Context(), request(fmt.Sprint(i))); err != nil {
								return err
							}
						}
						return nil
					})
				}
				require.NoError(b, producers.Wait())
				perSecond := float64(b.N) / b.Elapsed().Seconds()
				b.ReportMetric(perSecond, "jobs/s")
				b.ReportMetric(perSecond/syncsPerSecond(b), "x-syncs")
				require.NoError(b, q.Close())
			})
		}
	}
}

// syncsPerSecond returns how many jobs, of 2 KB, are written and synced one by one.
func syncsPerSecond(b *testing.B) float64 {
	b.Helper()
	file, err := os.Create(filepath.Join(b.TempDir(), "reference"))
	require.NoError(b, err)
	const jobs = 300
	record, began := make([]byte, 2000), time.Now()
	for range jobs {
		_, err := file.Write(record)
		require.NoError(b, err)
		require.NoError(b, file.Sync())
	}
	took := time.Since(began)
	require.NoError(b, file.Close())
	return jobs / took.Seconds()
}

// BenchmarkReopen replays 10,000 waiting jobs, from single writes and from a snapshot.
func BenchmarkReopen(b *testing.B) {
	dir := b.TempDir()
	q := open(b, embedded.Config{Dir: dir})
	client := jobs.NewClient(q.Client())
	var producers errgroup.Group
	producers.SetLimit(50)
	for i := range 10_000 {
		producers.Go(func() error {
			_, err := client.Enqueue(b.Context(), request(fmt.Sprint(i)))
			return err
		})
	}
	require.NoError(b, producers.Wait())
	require.NoError(b, q.Close())
	for b.Loop() {
		require.NoError(b, open(b, embedded.Config{Dir: dir}).Close())
	}
}
