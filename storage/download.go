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
	*Spool
	name string // in the spool; "" if the image is kept in memory alone
	u    *url.URL
	ours bool // whether it comes from one of our sources

	status int // of the answer, 0 before
}

var errSlow = fmt.Errorf("it took more than %s", strangerTime)

var errStranger = errors.New("it comes from a host that is neither of *.aliyuncs.com nor a configured service")

// do brings the image, or fails with a movedError if it lies elsewhere.
func (d *download) do(ctx context.Context) (*File, error) {
	guarded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := d.client
	if !d.ours {
		client = d.strangers
		timer := time.AfterFunc(strangerTime, func() { cancel(errSlow) })
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
			return nil, &movedError{to, d.status}
		}
		return nil, d.fail(ctx, statusKind(d.status), "", errors.New(http.StatusText(d.status)))
	}
	limit := d.maxBytes * keepFactor
	if d.name == "" {
		limit = d.maxBytes
	}
	if resp.ContentLength > limit {
		return nil, d.fail(ctx, FetchUnproven, "", fmt.Errorf("%d bytes are announced, at most %d are taken", resp.ContentLength, d.maxBytes))
	}
	body := &stallGuard{r: resp.Body, timer: time.AfterFunc(d.stall, func() { cancel(errStalled) }), after: d.stall}
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
		return nil, d.fail(ctx, FetchUnproven, "", fmt.Errorf("more than %d bytes came, at most %d are taken", limit, d.maxBytes))
	}
	return d.judged(ctx, resp, half, sums)
}

// judged keeps what came, proven or not.
func (d *download) judged(ctx context.Context, resp *http.Response, half *half, sums *sums) (*File, error) {
	kind, problem := d.judge(resp, sums)
	if problem == nil && !d.ours {
		kind, problem = FetchUnproven, errStranger
	}
	if d.name == "" {
		if problem != nil {
			return nil, fmt.Errorf("spool: %w, and what came cannot be proven: %w", ErrDisk, d.fail(ctx, kind, "", problem))
		}
		file := sums.file("", sourceName(d.u))
		file.content = half.memory.Bytes()
		return file, nil
	}
	folder := provenFolder
	switch {
	case problem == nil:
	case kind == FetchUnproven:
		folder = unprovenFolder
	default:
		folder = doubtedFolder
	}
	path := filepath.Join(d.dir, folder, d.name)
	if err := publish(half.file, path); err != nil {
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
	// What net/http says begins with the whole URL.
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	// An answer that is no HTTP is quoted, and may repeat what was asked.
	if text := err.Error(); d.u.RawQuery != "" && strings.Contains(text, d.u.RawQuery) {
		err = errors.New(strings.ReplaceAll(text, d.u.RawQuery, "**redacted**"))
	}
	return &FetchError{Kind: kind, Status: d.status, Host: d.u.Host, Path: path, Err: err}
}

// half is what has come so far, in a file or in memory.
type half struct {
	file   *os.File
	memory bytes.Buffer
}

// discard removes the file, unless it was renamed away.
func (h *half) discard() {
	if h.file != nil {
		_ = h.file.Close()           // closed already if all went well
		_ = os.Remove(h.file.Name()) // swept at the next start if not
	}
}

// receive writes body to a half file, or to memory, hashing on the way. It fails
// with a diskError if the disk is at fault, and leaves no file then.
func (d *download) receive(body io.Reader, source http.Header) (*half, *sums, error) {
	h, sums := &half{}, newSums(source)
	var to io.Writer = &h.memory
	if d.name != "" {
		f, err := os.CreateTemp(filepath.Join(d.dir, incomingFolder), "*")
		if err != nil {
			return nil, nil, &diskError{err}
		}
		h.file, to = f, diskWriter{f}
	}
	if _, err := io.Copy(io.MultiWriter(to, sums), body); err != nil {
		h.discard()
		return nil, nil, err
	}
	return h, sums, nil
}

// judge tells whether what came is proven.
func (s *Spool) judge(resp *http.Response, sums *sums) (FetchKind, error) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return FetchUnproven, fmt.Errorf("it is encoded (%.40q), which was not asked for", encoding)
	}
	if err := sums.compare(resp.Header); err != nil {
		return FetchTemporary, err
	}
	err := s.problem(sums)
	// Only an answer that ends with its connection can end early unnoticed.
	untilClose := resp.ContentLength < 0 && resp.ProtoMajor == 1 && len(resp.TransferEncoding) == 0
	if errors.Is(err, errTruncated) && untilClose && sums.bytes > 0 {
		return FetchTemporary, err
	}
	return FetchUnproven, err
}

// problem is what is wrong with the bytes themselves, or nil.
func (s *Spool) problem(sums *sums) error {
	if sums.bytes > s.maxBytes {
		return fmt.Errorf("it has %d bytes, at most %d are proven", sums.bytes, s.maxBytes)
	}
	return sums.png.err()
}
