package gateway

import (
	"context"
	"net/http"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway/dashboard"
)

// dashboardStore gives the page for operators the images, sidecars and prices of the API.
type dashboardStore struct{ api *api }

var _ dashboard.Store = dashboardStore{}

// LoadSidecar implements [dashboard.Store].
func (s dashboardStore) LoadSidecar(ctx context.Context, id string) (*jobs.Job, error) {
	return s.api.cfg.LoadSidecar(ctx, id)
}

// ServeImage implements [dashboard.Store]. It sends the bytes itself: the page shows nothing from
// other hosts.
func (s dashboardStore) ServeImage(w http.ResponseWriter, r *http.Request, job *jobs.Job, image jobs.Image) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	s.api.sendImage(w, r, job, image)
}

// HeldImages implements [dashboard.Store].
func (s dashboardStore) HeldImages(ctx context.Context, task string) ([]jobs.Image, error) {
	keys, err := s.api.cfg.Bucket.HeldKeys(ctx, task)
	images := make([]jobs.Image, len(keys))
	for i, key := range keys {
		images[i] = jobs.Image{N: i + 1, Key: key}
	}
	return images, err
}

// Price implements [dashboard.Store].
func (s dashboardStore) Price(model jobs.Model, n int) int64 { return s.api.cfg.Price(model, n) }
