package gateway

import (
	"errors"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// imageURL is a link to an image that never dies: the bucket's own where that is public,
// or else one of ours, signed, which leads to a fresh link each time. Its last segment
// is the image's own and ends in the extension: the document's programs save under it.
func (a *api) imageURL(r *http.Request, rec *jobs.Record, image jobs.Image) (string, error) {
	link, expiresAt, err := a.cfg.Bucket.Link(r.Context(), image.Key)
	if err != nil {
		return "", err
	}
	name, ours := path.Base(image.Key), rec.ImagePath(image)
	lasting := expiresAt.IsZero() && strings.Contains(name, rec.ID) && path.Ext(name) != ""
	if lasting || ours == "" {
		return link, nil
	}
	return a.base(r) + ours, nil
}

const imagesPath = "/images/"

// image sends an image, or to where it lies, to whoever has its link: the signature is
// the credential. What is wrong about the link is told to nobody.
func (a *api) image(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	rec, image, err := a.signedImage(r)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		http.Error(w, "there is no such image", http.StatusNotFound)
	case err != nil:
		a.away(w, r, err)
	case a.cfg.Stream, r.Method == http.MethodHead: // the bucket's links are for GET alone
		a.sendImage(w, r, rec, image)
	default:
		link, _, err := a.cfg.Bucket.Link(r.Context(), image.Key)
		if err != nil {
			a.away(w, r, err)
			return
		}
		header.Set("Cache-Control", "no-store") // the link dies, this one does not
		http.Redirect(w, r, link, http.StatusFound)
	}
}

// away says that Redis or the bucket does not answer.
func (a *api) away(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		a.log.Warn("image not served", "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(awayPause/time.Second)))
	http.Error(w, "the image cannot be read now: ask again", http.StatusServiceUnavailable)
}

// signedImage finds the image that a link names, or fails with [jobs.ErrNotFound].
func (a *api) signedImage(r *http.Request) (*jobs.Record, jobs.Image, error) {
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
	rec, err := a.get(r.Context(), caller{all: true}, name[:at])
	if err != nil {
		return nil, jobs.Image{}, err
	}
	image, ok := rec.ImageBySignature(n, r.URL.Query().Get("s"))
	if _, want, _ := strings.Cut(rec.ImagePath(image), imagesPath); !ok || !strings.HasPrefix(want, r.PathValue("name")+"?") {
		return nil, jobs.Image{}, jobs.ErrNotFound
	}
	return rec, image, nil
}

// sendImage sends the bytes of an image.
func (a *api) sendImage(w http.ResponseWriter, r *http.Request, rec *jobs.Record, image jobs.Image) {
	body, info, err := a.cfg.Bucket.Get(r.Context(), image.Key)
	if errors.Is(err, storage.ErrNotExist) {
		http.Error(w, "the image has been removed from the bucket", http.StatusGone)
		return
	}
	if err != nil {
		a.away(w, r, err)
		return
	}
	defer body.Close() //nolint:errcheck // read only
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	header := w.Header()
	header.Set("Content-Type", "image/png") // no other was ever stored
	header.Set("Content-Length", strconv.FormatInt(info.Bytes, 10))
	header.Set("ETag", strconv.Quote(image.SHA256))
	header.Set("Cache-Control", "private, max-age=31536000, immutable")
	if r.Method == http.MethodHead {
		return
	}
	if _, err := io.Copy(w, body); err != nil && r.Context().Err() == nil {
		a.log.Warn("image not sent whole", "job_id", rec.ID, "key", image.Key, "err", err)
	}
}
