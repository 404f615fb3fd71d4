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
	// transfersAtOnce bounds how many reference images are on their way into the bucket
	// while there are no tokens, and transfersOfToken for each token: one that is slow on
	// purpose is in nobody else's way. Ours.
	transfersAtOnce  = 8
	transfersOfToken = 2
	// listsAtOnce bounds the lists that are being made, of all records of a day each.
	listsAtOnce = 2
	// gateMost is how long a request waits for a place.
	gateMost = 30 * time.Second
)

// stage copies a reference image into the bucket and returns its staged name.
func (a *api) stage(ctx context.Context, c caller, rawURL string) (string, error) {
	leave, err := a.transfers[c.Name].enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
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

// enter waits for a place, which the caller must leave; not longer than gateMost.
func (g gate) enter(ctx context.Context) (leave func(), err error) {
	timer := time.NewTimer(gateMost)
	defer timer.Stop()
	select {
	case g <- struct{}{}:
		return func() { <-g }, nil
	case <-timer.C:
		return nil, refuse(http.StatusServiceUnavailable, codeAway, "too much of this kind is going on: ask again", awayPause)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
