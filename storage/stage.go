package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// stageTime bounds the download of a reference image with all its redirects; ours.
const stageTime = time.Minute

// StageFrom says how reference images are fetched.
type StageFrom struct {
	// Dir takes the image on its way into the bucket; "" is the system's.
	Dir string
	// Dial connects to the image's host; nil is [PublicDialer] without exceptions.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// StageError is why a reference image could not be staged. Its text names the host and
// never the URL's query, which may be a signature.
type StageError struct {
	Host string // "" if the URL is none
	// Temporary says that the same call may succeed later: the host did not answer, or
	// had a trouble of its own.
	Temporary bool
	Err       error
}

// Error names the host.
func (e *StageError) Error() string {
	if e.Host == "" {
		return "reference image: " + e.Err.Error()
	}
	return fmt.Sprintf("reference image at %q: %v", e.Host, e.Err)
}

// Unwrap returns Err.
func (e *StageError) Unwrap() error { return e.Err }

// StageURL copies the reference image at a URL into the bucket, under its hash: JPEG,
// PNG, BMP, TIFF or WEBP, at most 10 MiB, 256×256 to 4096×4096 pixels. It asks public
// addresses alone, follows three redirects, and takes a minute at most.
//
// It fails with a [*StageError] if the image or its host is at fault, with the bucket's
// own error, or the disk's.
func (b *Bucket) StageURL(ctx context.Context, rawURL string, from StageFrom) (*Reference, error) {
	ref, err := FetchReference(ctx, rawURL, from)
	if err != nil {
		return nil, err
	}
	defer os.Remove(ref.Path) //nolint:errcheck // it is nobody's any more
	return ref, b.StageReference(ctx, ref)
}

// FetchReference is the first half of [Bucket.StageURL]: it leaves the image in a new
// file, at the Path of what it returns, which the caller must remove.
func FetchReference(ctx context.Context, rawURL string, from StageFrom) (ref *Reference, err error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, &StageError{Err: errors.New("not an http or https URL without user name and password")}
	}
	file, err := os.CreateTemp(from.Dir, "reference-*")
	if err != nil {
		return nil, fmt.Errorf("stage reference image: %w", err)
	}
	defer func() {
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	fetching, cancel := context.WithTimeoutCause(ctx, stageTime, fmt.Errorf("it did not arrive within %v", stageTime))
	defer cancel()
	if err := fetchReference(fetching, from, u, file); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("stage reference image: %w", err)
	}
	if ref, err = inspect(file); err != nil {
		return nil, &StageError{Host: u.Host, Err: err}
	}
	return ref, nil
}

// fetchReference downloads into a file as much as a reference image may have, and a
// byte.
func fetchReference(ctx context.Context, from StageFrom, u *url.URL, file io.Writer) error {
	dial := from.Dial
	if dial == nil {
		dial = PublicDialer(nil)
	}
	client := &http.Client{
		// No proxy, which would connect to whatever it is told to.
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, TLSHandshakeTimeout: strangerDialTime},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			r.Header.Del("Referer") // it holds the query of the URL before
			switch {
			case len(via) > maxHops:
				return errHops
			case r.URL.Scheme != "http" && r.URL.Scheme != "https", r.URL.User != nil:
				return errNotWeb
			}
			return nil
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return &StageError{Host: u.Host, Err: errNotWeb}
	}
	r.Header.Set("User-Agent", "danqing")
	resp, err := client.Do(r)
	if err != nil {
		return stageFailed(ctx, u, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	switch status := resp.StatusCode; {
	case status != http.StatusOK:
		later := status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
		return &StageError{Host: u.Host, Temporary: later, Err: fmt.Errorf("HTTP status %d", status)}
	case resp.ContentLength > maxReferenceBytes:
		return &StageError{Host: u.Host, Err: fmt.Errorf("has %d bytes, at most %d (10 MiB) are allowed", resp.ContentLength, maxReferenceBytes)}
	}
	if _, err := io.Copy(diskWriter{file}, io.LimitReader(resp.Body, maxReferenceBytes+1)); err != nil {
		if disk := (*diskError)(nil); errors.As(err, &disk) {
			return fmt.Errorf("stage reference image: %w: %w", ErrDisk, err)
		}
		return stageFailed(ctx, u, err)
	}
	return nil
}

// stageFailed says what went wrong on the way, without the URL, whose query is secret.
func stageFailed(ctx context.Context, u *url.URL, err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if strings.Contains(err.Error(), "Location header") { // net/http's text has all of it, and no type
		err = errNotWeb
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	final := errors.Is(err, ErrNotPublic) || errors.Is(err, errHops) || errors.Is(err, errNotWeb)
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && dns.IsNotFound {
		final = true
	}
	return &StageError{Host: u.Host, Temporary: !final, Err: err}
}
