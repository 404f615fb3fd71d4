package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// stage copies a reference image into the bucket and returns its staged name.
func (a *api) stage(ctx context.Context, c caller, rawURL string) (string, error) {
	if err := a.countUpload(ctx, c); err != nil {
		return "", err
	}
	release, err := a.shares[c.Name].transfers.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	ref, err := storage.FetchReference(ctx, rawURL, a.cfg.Staging)
	if err == nil {
		defer os.Remove(ref.Path) //nolint:errcheck // a temporary file
		err = a.storeReference(ctx, c, ref)
	}
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
