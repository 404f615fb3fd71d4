package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// download is one GET of an image.
type download struct {
	spool   *Spool
	name    string // in the spool; "" if the image is held in memory only
	u       *url.URL
	trusted bool // whether u's host is trusted

	status int // of the response, 0 before it
}

var errSlow = fmt.Errorf("it took more than %s", untrustedTimeout)

var errUntrustedHost = errors.New("it comes from a host that is neither in *.aliyuncs.com nor a configured service")

// do downloads the image, or fails with a redirectError if the server redirects.
func (d *download) do(ctx context.Context) (*File, error) {
	guarded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := d.spool.client
	if !d.trusted {
		client = d.spool.untrustedClient
		timer := time.AfterFunc(untrustedTimeout, func() { cancel(errSlow) })
		defer timer.Stop()
	}
	req, err := http.NewRequestWithContext(guarded, http.MethodGet, d.u.String(), http.NoBody)
	if err != nil {
		return nil, d.fail(ctx, FetchForbidden, "", errors.New("not a URL"))
	}
	resp, err := client.Do(req)
	if errors.Is(err, ErrNotPublic) {
		return nil, d.fail(ctx, FetchForbidden, "", ErrNotPublic)
	}
	if err != nil {
		return nil, d.fail(ctx, FetchTemporary, "", cause(guarded, err))
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if d.status = resp.StatusCode; d.status != http.StatusOK {
		if to, err := resp.Location(); err == nil && statusKind(d.status) == FetchForbidden {
			return nil, &redirectError{to, d.status}
		}
		return nil, d.fail(ctx, statusKind(d.status), "", errors.New(http.StatusText(d.status)))
	}
	limit := d.spool.maxBytes * unverifiedSizeFactor
	if d.name == "" {
		limit = d.spool.maxBytes
	}
	if resp.ContentLength > limit {
		return nil, d.fail(ctx, FetchUnverified, "", fmt.Errorf("Content-Length is %d bytes, the limit is %d", resp.ContentLength, d.spool.maxBytes))
	}
	body := &stallGuard{r: resp.Body, timer: time.AfterFunc(d.spool.stall, func() { cancel(errStalled) }), after: d.spool.stall}
	defer body.timer.Stop()
	half, sums, err := d.receive(io.LimitReader(body, limit+1), resp.Header)
	if disk := (*diskError)(nil); errors.As(err, &disk) {
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, disk.err)
	}
	if err != nil {
		return nil, d.fail(ctx, FetchTemporary, "", cause(guarded, err))
	}
	defer half.discard()
	if sums.bytes > limit {
		return nil, d.fail(ctx, FetchUnverified, "", fmt.Errorf("more than %d bytes arrived, the limit is %d", limit, d.spool.maxBytes))
	}
	return d.saveResult(ctx, resp, half, sums)
}

// saveResult keeps the downloaded file, in the folder for its kind.
func (d *download) saveResult(ctx context.Context, resp *http.Response, half *partialFile, sums *sums) (*File, error) {
	kind, problem := d.spool.classify(resp, sums)
	if problem == nil && !d.trusted {
		kind, problem = FetchUnverified, errUntrustedHost
	}
	if d.name == "" {
		if problem != nil {
			return nil, fmt.Errorf("spool: %w, and the image cannot be verified: %w", ErrDisk, d.fail(ctx, kind, "", problem))
		}
		file := sums.file("", sourceName(d.u))
		file.content = half.memory.Bytes()
		return file, nil
	}
	folder := verifiedFolder
	switch {
	case problem == nil:
	case kind == FetchUnverified:
		folder = unverifiedFolder
	default:
		folder = recheckFolder
	}
	path := filepath.Join(d.spool.dir, folder, d.name)
	var err error
	if folder == verifiedFolder {
		err = d.spool.keepDigest(d.name, sums)
	}
	if err == nil {
		err = d.spool.folders[folder].Commit(half.file, d.name)
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	if problem != nil {
		return nil, d.fail(ctx, kind, path, problem)
	}
	return sums.file(path, sourceName(d.u)), nil
}

func (d *download) fail(ctx context.Context, kind FetchKind, path string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("fetch image: %w", context.Cause(ctx))
	}
	// net/http's error text begins with the whole URL.
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	// The error for an invalid HTTP response quotes it, and it may contain the query.
	if text := err.Error(); d.u.RawQuery != "" && strings.Contains(text, d.u.RawQuery) {
		err = errors.New(strings.ReplaceAll(text, d.u.RawQuery, "**redacted**"))
	}
	return &FetchError{Kind: kind, Status: d.status, Host: d.u.Host, Path: path, Err: err}
}

// partialFile is what has come so far, in a file or in memory.
type partialFile struct {
	file   *os.File
	memory bytes.Buffer
}

// discard removes the file, unless it was renamed away.
func (h *partialFile) discard() {
	if h.file != nil {
		_ = h.file.Close()           // closed already if all went well
		_ = os.Remove(h.file.Name()) // swept at the next start if not
	}
}

// receive writes body to a partial file, or to memory, and hashes it. It fails with a
// diskError if the disk is at fault. After an error it leaves no file.
func (d *download) receive(body io.Reader, source http.Header) (*partialFile, *sums, error) {
	h, sums := &partialFile{}, newSums(source)
	var to io.Writer = &h.memory
	if d.name != "" {
		f, err := os.CreateTemp(filepath.Join(d.spool.dir, incomingFolder), "*")
		if err != nil {
			return nil, nil, &diskError{err}
		}
		h.file, to = f, diskWriter{f}
	}
	buffer := d.spool.buffers.Get().(*[copyBuffer]byte)
	defer d.spool.buffers.Put(buffer)
	if _, err := io.CopyBuffer(io.MultiWriter(to, sums), body, buffer[:]); err != nil {
		h.discard()
		return nil, nil, err
	}
	return h, sums, nil
}

// classify verifies a download. A nil error means that it is verified; otherwise the
// kind says what the failure means.
func (s *Spool) classify(resp *http.Response, sums *sums) (FetchKind, error) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return FetchUnverified, fmt.Errorf("it has a Content-Encoding (%.40q) that was not requested", encoding)
	}
	if err := sums.compare(resp.Header); err != nil {
		return FetchTemporary, err
	}
	err := s.checkContent(sums)
	// Only a response that is delimited by the end of its connection can be
	// truncated without an error.
	untilClose := resp.ContentLength < 0 && resp.ProtoMajor == 1 && len(resp.TransferEncoding) == 0
	if errors.Is(err, errTruncated) && untilClose && sums.bytes > 0 {
		return FetchTemporary, err
	}
	return FetchUnverified, err
}

// checkContent verifies the bytes themselves.
func (s *Spool) checkContent(sums *sums) error {
	if sums.bytes > s.maxBytes {
		return fmt.Errorf("it has %d bytes, the limit is %d", sums.bytes, s.maxBytes)
	}
	_, err := sums.image.result()
	return err
}
