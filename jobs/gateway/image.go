package gateway

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// imageURL returns a permanent link to an image: the bucket's if it is public, otherwise a
// signed one of the gateway. Its last segment is unique to the image and has the extension, because the sample programs in
// DashScope's documentation use it as the file name.
func (a *api) imageURL(r *http.Request, rec *jobs.Job, image jobs.Image) (string, error) {
	link, expiresAt, err := a.cfg.Bucket.Link(r.Context(), image.Key)
	if err != nil {
		return "", err
	}
	name, signed := path.Base(image.Key), rec.ImagePath(image)
	lasting := expiresAt.IsZero() && strings.Contains(name, rec.ID) && path.Ext(name) != ""
	if lasting || signed == "" {
		return link, nil
	}
	return a.baseURL(r) + signed, nil
}

const imagesPath = "/images/"

// serveImage sends an image, or a redirect to it if the operator asked for that. The
// signature in the link is the credential. The error does not say what is wrong with the link.
func (a *api) serveImage(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	rec, image, err := a.findSignedImage(r)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		http.Error(w, "there is no such image", http.StatusNotFound)
	case err != nil:
		a.writeUnavailable(w, r, err)
	case !a.cfg.RedirectImages, r.Method == http.MethodHead: // the bucket's links are for GET alone
		a.sendImage(w, r, rec, image)
	default:
		link, _, err := a.cfg.Bucket.Link(r.Context(), image.Key)
		if err != nil {
			a.writeUnavailable(w, r, err)
			return
		}
		header.Set("Cache-Control", "no-store") // the target expires
		http.Redirect(w, r, link, http.StatusFound)
	}
}

// writeUnavailable answers that Redis or the bucket does not respond.
func (a *api) writeUnavailable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		a.log.Warn("image not served", "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(unavailableRetryAfter/time.Second)))
	http.Error(w, "the image cannot be read at present: retry later", http.StatusServiceUnavailable)
}

// findSignedImage returns the image of a signed link, or fails with [jobs.ErrNotFound].
func (a *api) findSignedImage(r *http.Request) (*jobs.Job, jobs.Image, error) {
	name := r.PathValue("name")
	name = strings.TrimSuffix(name, path.Ext(name))
	at := strings.LastIndexByte(name, '-')
	if at < 0 {
		return nil, jobs.Image{}, jobs.ErrNotFound
	}
	n, err := strconv.Atoi(name[at+1:])
	if err != nil {
		return nil, jobs.Image{}, jobs.ErrNotFound
	}
	began := time.Now()
	rec, err := a.get(r.Context(), caller{all: true}, name[:at])
	if err != nil {
		return nil, jobs.Image{}, err
	}
	image, ok := rec.ImageBySignature(n, r.URL.Query().Get("s"))
	if _, want, _ := strings.Cut(rec.ImagePath(image), imagesPath); !ok || !strings.HasPrefix(want, url.PathEscape(r.PathValue("name"))+"?") {
		a.hideDuration(r.Context(), began)
		return nil, jobs.Image{}, jobs.ErrNotFound
	}
	return rec, image, nil
}
