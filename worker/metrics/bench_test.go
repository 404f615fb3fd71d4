package metrics_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// BenchmarkScrape measures a scrape of the gauges while jobs wait in a redis-server.
func BenchmarkScrape(b *testing.B) {
	for _, waiting := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("waiting=%d", waiting), func(b *testing.B) {
			rdb := redistest.Start(b).Client(b)
			client := jobs.NewClient(rdb)
			var producers errgroup.Group
			producers.SetLimit(50)
			for n := range waiting {
				producers.Go(func() error {
					_, err := client.Enqueue(b.Context(), jobs.Request{ID: fmt.Sprint(n), Prompt: "a cup"})
					return err
				})
			}
			require.NoError(b, producers.Wait())
			m := metrics.New("test")
			m.WatchQueue(rdb)
			for b.Loop() {
				require.Contains(b, scrape(m), "danqing_redis_up 1\n")
			}
		})
	}
}
