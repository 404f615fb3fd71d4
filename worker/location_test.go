package worker_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// After Wait a producer has the location of its images: the bucket, the full key, and a
// permanent link if the workers can make one.
func TestJobHasTheLocationOfItsImages(t *testing.T) {
	for name, serveURL := range map[string]string{"with a gateway": shopURL, "without": ""} {
		t.Run(name, func(t *testing.T) {
			notifyBubbleWith(t, &simulator.Simulator{}, func(cfg *worker.Config) { cfg.ServeURL = serveURL }, func(t *testing.T, s *stack, _ *receiver) {
				s.enqueue(jobs.Request{ID: "job-1", Prompt: "prompt of job-1", N: 2})
				job, err := jobs.NewClient(s.redis).Wait(t.Context(), "job-1")
				require.NoError(t, err)
				assert.Equal(t, s.bucket.Name(), job.Bucket)
				require.Len(t, job.Images, 2)
				for _, image := range job.Images {
					_, err := s.bucket.Head(t.Context(), image.Key)
					require.NoError(t, err)
					want := ""
					if serveURL != "" {
						want = serveURL + job.ImagePath(image)
					}
					assert.Equal(t, want, image.Link)
				}
			})
		})
	}
}
