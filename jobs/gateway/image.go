package gateway

import (
	"net/http"

	"github.com/danqing-queue/danqing/jobs"
)

// imageURL is a link to an image that never dies.
func (a *api) imageURL(r *http.Request, rec *jobs.Record, image jobs.Image) (string, error) {
	return a.base(r) + rec.ImagePath(image), nil
}
