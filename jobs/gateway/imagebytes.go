package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// minClientSpeed is the slowest client that gets a whole image, in bytes a second: a modem of
// 1998. A slower one would hold a connection to the bucket.
const minClientSpeed = 7 << 10

// sendImage sends the bytes of an image from the bucket, with ranges and conditions as in
// RFC 9110.
func (a *api) sendImage(w http.ResponseWriter, r *http.Request, rec *jobs.Job, image jobs.Image) {
	size := image.Bytes
	if size == 0 || r.Method == http.MethodHead {
		info, err := a.cfg.Bucket.Head(r.Context(), image.Key)
		if err != nil {
			a.writeImageError(w, r, err)
			return
		}
		size = info.Bytes
	}
	limit := writeTimeout + time.Duration(size/minClientSpeed)*time.Second
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit)) // unsupported in tests
	header := w.Header()
	header.Set("Content-Type", "image/"+image.Format()) // by its bytes, when it was verified
	if image.SHA256 != "" {
		header.Set("ETag", strconv.Quote(image.SHA256))
	}
	header.Set("Cache-Control", "private, max-age=31536000, immutable")
	object := &objectReader{size: size, last: lastByte(r.Header.Get("Range"), size), open: func(first, last int64) (io.ReadCloser, error) {
		return a.cfg.Bucket.GetRange(ctx, image.Key, first, last)
	}}
	defer object.close()
	late := &lateHeader{ResponseWriter: w}
	http.ServeContent(late, r, "", time.Time{}, object)
	switch {
	case object.err == nil || r.Context().Err() != nil:
		late.send()
	case late.sent:
		a.log.Warn("image response aborted", "job_id", rec.ID, "key", image.Key, "err", object.err)
	default:
		for _, name := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Cache-Control"} {
			header.Del(name)
		}
		a.writeImageError(w, r, object.err)
	}
}

// writeImageError answers that an image cannot be read from the bucket.
func (a *api) writeImageError(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, storage.ErrNotExist) {
		http.Error(w, "the image was deleted from the bucket", http.StatusGone)
		return
	}
	a.writeUnavailable(w, r, err)
}

// lastByte returns the last byte of a range such as bytes=0-99, and that of the whole object
// for any other header.
func lastByte(header string, size int64) int64 {
	first, last, _ := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if n, err := strconv.ParseInt(last, 10, 64); err == nil && first != "" && n < size {
		return n
	}
	return size - 1
}

// objectReader reads an object from the bucket, which it asks for the bytes from the position
// at the first read after a seek.
type objectReader struct {
	size int64
	last int64 // the last byte of the first request: all that is read, if the client's range holds
	open func(first, last int64) (io.ReadCloser, error)

	position int64
	body     io.ReadCloser
	err      error // of the bucket
}

var _ io.ReadSeeker = (*objectReader)(nil)

func (o *objectReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.position
	case io.SeekEnd:
		offset += o.size
	}
	if offset != o.position {
		o.close()
		o.position = offset
	}
	return offset, nil
}

func (o *objectReader) Read(p []byte) (int, error) {
	for o.err == nil {
		if o.position >= o.size {
			return 0, io.EOF
		}
		if o.body == nil {
			if o.last < o.position {
				o.last = o.size - 1
			}
			if o.body, o.err = o.open(o.position, o.last); o.err != nil {
				break
			}
		}
		n, err := o.body.Read(p)
		o.position += int64(n)
		switch {
		case err == nil:
			return n, nil
		case !errors.Is(err, io.EOF), o.position <= o.last: // or shorter than it was stored
			o.err = err
			return n, err
		}
		if o.close(); n > 0 {
			return n, nil
		}
	}
	return 0, o.err
}

func (o *objectReader) close() {
	if o.body != nil {
		_ = o.body.Close() // read only
		o.body = nil
	}
}

// lateHeader is a ResponseWriter that sends the header with the first byte of the body, so
// that an object that cannot be opened still gets an error.
type lateHeader struct {
	http.ResponseWriter
	status int
	sent   bool
}

func (l *lateHeader) WriteHeader(status int) { l.status = status }

func (l *lateHeader) Write(p []byte) (int, error) {
	l.send()
	return l.ResponseWriter.Write(p)
}

// send sends the header, if it was not sent.
func (l *lateHeader) send() {
	if !l.sent && l.status != 0 {
		l.sent = true
		l.ResponseWriter.WriteHeader(l.status)
	}
}
