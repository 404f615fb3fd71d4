package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

const (
	// maxTransfers limits the concurrent uploads of reference images without tokens, and
	// maxTransfersPerToken those of each token, so that a slow client does not block
	// others. The values are our choice.
	maxTransfers         = 8
	maxTransfersPerToken = 2
	// maxLists limits the concurrent lists, which read all records of a day.
	maxLists = 2
	// semaphoreTimeout is how long a request waits for a semaphore.
	semaphoreTimeout = 30 * time.Second
)

// stage copies a reference image into the bucket and returns its staged name.
func (a *api) stage(ctx context.Context, c caller, rawURL string) (string, error) {
	release, err := a.transfers[c.Name].acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	ref, err := a.cfg.Bucket.StageURL(ctx, rawURL, a.cfg.Staging)
	var unfit *storage.StageError
	switch {
	case err == nil:
		return jobs.StagedPrefix + ref.SHA256, nil
	case errors.As(err, &unfit) && unfit.Temporary:
		return "", newAPIError(http.StatusServiceUnavailable, codeUnavailable, "ref_img: "+unfit.Error()+": nothing was queued; retry later", unavailableRetryAfter)
	case errors.As(err, &unfit):
		return "", newAPIError(http.StatusBadRequest, codeParameter, "ref_img: "+unfit.Error()+": nothing was queued", 0)
	}
	return "", fmt.Errorf("stage reference image: %w", err)
}

// semaphore limits the number of concurrent requests.
type semaphore chan struct{}

// acquire waits for the semaphore, at most semaphoreTimeout. The caller must release it.
func (g semaphore) acquire(ctx context.Context) (release func(), err error) {
	timer := time.NewTimer(semaphoreTimeout)
	defer timer.Stop()
	select {
	case g <- struct{}{}:
		return func() { <-g }, nil
	case <-timer.C:
		return nil, newAPIError(http.StatusServiceUnavailable, codeUnavailable, "too many concurrent requests of this kind: retry later", unavailableRetryAfter)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
