package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// stagesAtOnce bounds how many reference images are on their way into the bucket, each
// in memory as far as 10 MB go; ours.
const stagesAtOnce = 8

// stage copies a reference image into the bucket and returns its staged name.
func (a *api) stage(ctx context.Context, rawURL string) (string, error) {
	if err := a.stages.enter(ctx); err != nil {
		return "", err
	}
	defer a.stages.leave()
	ref, err := a.cfg.Bucket.StageURL(ctx, rawURL, a.cfg.StageFrom)
	var unfit *storage.StageError
	switch {
	case err == nil:
		return jobs.StagedPrefix + ref.SHA256, nil
	case errors.As(err, &unfit) && unfit.Temporary:
		return "", refuse(http.StatusServiceUnavailable, codeAway, "ref_img: "+unfit.Error()+": nothing was queued; ask again", awayPause)
	case errors.As(err, &unfit):
		return "", refuse(http.StatusBadRequest, codeParameter, "ref_img: "+unfit.Error()+": nothing was queued", 0)
	}
	return "", fmt.Errorf("stage reference image: %w", err)
}

// gate lets a number of requests through at a time.
type gate chan struct{}

// enter waits for a place, or fails once ctx ends.
func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) leave() { <-g }
