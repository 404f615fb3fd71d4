package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// stage copies a reference image into the bucket and returns its staged name.
func (a *api) stage(ctx context.Context, c caller, rawURL string, limits storage.ReferenceLimits) (string, error) {
	if err := a.countUpload(ctx, c); err != nil {
		return "", err
	}
	release, err := a.shares[c.Name].transfers.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	from := a.cfg.Staging
	from.Limits = limits
	ref, err := storage.FetchReference(ctx, rawURL, from)
	if err == nil {
		defer os.Remove(ref.Path) //nolint:errcheck // a temporary file
		err = a.storeReference(ctx, c, ref)
	}
	var unfit *storage.StageError
	switch {
	case err == nil:
		return jobs.StagedPrefix + ref.SHA256, nil
	case errors.As(err, &unfit) && !unfit.Temporary:
		return "", &unfitError{unfit.Error() + ": nothing was queued"}
	case errors.As(err, &unfit):
		return "", err
	}
	return "", fmt.Errorf("stage reference image: %w", err)
}
