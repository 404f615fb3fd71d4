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

// stageTimeout limits the download of a reference image including redirects. The
// value is our choice.
const stageTimeout = time.Minute

// StageOptions configures how reference images are downloaded.
type StageOptions struct {
	// Dir is the folder for the temporary file; "" is the system's.
	Dir string
	// Dial connects to the image's host. nil is [PublicDialer] without exceptions.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Limits are those of the model.
	Limits ReferenceLimits
}

// StageError is the reason why a reference image could not be staged. Its text
// contains the host and never the URL's query, which may be a signature.
type StageError struct {
	Host string // "" if the URL is invalid
	// Temporary is set when the same call may succeed later: the host did not respond,
	// or reported an error of its own.
	Temporary bool
	Err       error
}

// Error returns the reason with the host.
func (e *StageError) Error() string {
	if e.Host == "" {
		return "reference image: " + e.Err.Error()
	}
	return fmt.Sprintf("reference image at %q: %v", e.Host, e.Err)
}

// Unwrap returns Err.
func (e *StageError) Unwrap() error { return e.Err }

// FetchReference downloads the reference image at a URL into a new file, at the returned
// Path: JPEG, PNG, BMP, TIFF or WEBP, within the limits. The caller must remove it. It connects
// to public addresses only, follows up to three redirects, and times out after one minute.
//
// It fails with a [*StageError] if the image or its host is at fault, and otherwise
// with the error of the disk.
func FetchReference(ctx context.Context, rawURL string, from StageOptions) (ref *Reference, err error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, &StageError{Err: errors.New("not an http or https URL without user name and password")}
	}
	file, err := os.CreateTemp(from.Dir, "danqing-reference-*")
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
	fetching, cancel := context.WithTimeoutCause(ctx, stageTimeout, fmt.Errorf("it did not arrive within %v", stageTimeout))
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
	if ref, err = from.Limits.inspect(file); err != nil {
		return nil, &StageError{Host: u.Host, Err: err}
	}
	return ref, nil
}

// fetchReference downloads at most one byte more than a reference image may have.
func fetchReference(ctx context.Context, from StageOptions, u *url.URL, file io.Writer) error {
	dial := from.Dial
	if dial == nil {
		dial = PublicDialer(nil)
	}
	client := &http.Client{
		// No proxy: it would connect to private addresses too.
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, TLSHandshakeTimeout: publicDialTimeout},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			r.Header.Del("Referer") // it contains the previous URL's query
			switch {
			case len(via) > maxRedirects:
				return errTooManyRedirects
			case r.URL.Scheme != "http" && r.URL.Scheme != "https", r.URL.User != nil:
				return errUnsupportedURL
			}
			return nil
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return &StageError{Host: u.Host, Err: errUnsupportedURL}
	}
	r.Header.Set("User-Agent", "danqing")
	resp, err := client.Do(r)
	if err != nil {
		return newStageError(ctx, u, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	limits := from.Limits.WithDefaults()
	switch status := resp.StatusCode; {
	case status != http.StatusOK:
		later := status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
		return &StageError{Host: u.Host, Temporary: later, Err: fmt.Errorf("HTTP status %d", status)}
	case resp.ContentLength > limits.MaxBytes:
		return &StageError{Host: u.Host, Err: limits.tooLarge(resp.ContentLength)}
	}
	if _, err := io.Copy(diskWriter{file}, io.LimitReader(resp.Body, limits.MaxBytes+1)); err != nil {
		if disk := (*diskError)(nil); errors.As(err, &disk) {
			return fmt.Errorf("stage reference image: %w: %w", ErrDisk, err)
		}
		return newStageError(ctx, u, err)
	}
	return nil
}

// newStageError classifies a failed download. The text reveals nothing of this network: a
// name that is unknown and one with a private address are the same to the client.
func newStageError(ctx context.Context, u *url.URL, err error) error {
	failed := &StageError{Host: u.Host}
	dns := (*net.DNSError)(nil)
	switch {
	case ctx.Err() != nil:
		failed.Temporary, failed.Err = true, context.Cause(ctx)
	case errors.Is(err, ErrNotPublic), errors.As(err, &dns) && dns.IsNotFound:
		failed.Err = ErrNotPublic
	case errors.Is(err, errTooManyRedirects):
		failed.Err = errTooManyRedirects
	case errors.Is(err, errUnsupportedURL), strings.Contains(err.Error(), "Location header"): // net/http's own has no type
		failed.Err = errUnsupportedURL
	default:
		failed.Temporary, failed.Err = true, ExplainNoResponse(err)
	}
	return failed
}
