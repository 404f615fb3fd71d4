package storage

import (
	"context"
	"crypto/md5" //nolint:gosec // a checksum
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// aliyunDomain is where results lie: dashscope-result-*.oss-*.aliyuncs.com
// (text-to-image V2 API reference, allow-list).
const aliyunDomain = "aliyuncs.com"

// FetchKind says what a failed fetch means to the caller.
type FetchKind int

const (
	// FetchTemporary says that the network, the server or the transfer is at
	// fault; try the same URL again.
	FetchTemporary FetchKind = iota + 1
	// FetchGone says that the URL is dead (401, 403, 404, 410); ask the
	// service for a fresh one.
	FetchGone
	// FetchUnproven says that something came, completely as far as can be
	// told, and is not a provable PNG. It lies at Path for a person, unless
	// that is "": then it was larger than the disk should bear.
	FetchUnproven
	// FetchForbidden says that images are not taken from there; nothing was
	// asked for, or the answer was a redirect.
	FetchForbidden
)

func (k FetchKind) String() string {
	switch k {
	case FetchTemporary:
		return "temporary"
	case FetchGone:
		return "gone"
	case FetchUnproven:
		return "unproven"
	case FetchForbidden:
		return "forbidden"
	}
	return "unknown"
}

// FetchError is why a fetch brought no proven file. Its text names the host and
// never the URL's query, which is a signature.
type FetchError struct {
	Kind   FetchKind
	Status int    // HTTP, 0 if there was no answer
	Host   string // "" if the URL is none
	Path   string // file with the bytes that came, if they were kept; see Spool.Remove
	Err    error
}

func (e *FetchError) Error() string {
	text := "fetch image"
	if e.Host != "" {
		text += " from " + strconv.Quote(e.Host)
	}
	if e.Status != 0 {
		text += ": HTTP status " + strconv.Itoa(e.Status)
	}
	return text + ": " + e.Err.Error()
}

func (e *FetchError) Unwrap() error { return e.Err }

// Fetch copies the image at rawURL into the spool under name, proves it and
// makes it durable. If name is there already, from an earlier run too, it is
// hashed and proven again and nothing is downloaded. name is made of letters,
// digits, dots, hyphens and underscores.
//
// It fails with a [*FetchError] if the source or what it sent is at fault, with
// another error if the disk is, and with ctx's cause if that ended.
func (s *Spool) Fetch(ctx context.Context, name, rawURL string) (*File, error) {
	if err := checkSpoolName(name); err != nil {
		return nil, err
	}
	u, err := s.allowed(rawURL)
	if err != nil {
		return nil, err
	}
	file, err := s.reuse(name, sourceName(u))
	if file != nil || err != nil {
		return file, err
	}
	return s.download(ctx, name, u)
}

// allowed parses rawURL and refuses what is not a source of ours.
func (s *Spool) allowed(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil { // whose text would show the query
		return nil, &FetchError{Kind: FetchForbidden, Err: errors.New("not a URL")}
	}
	aliyun := u.Scheme == "https" && inDomain(u.Hostname(), aliyunDomain) && (u.Port() == "" || u.Port() == "443")
	source := slices.ContainsFunc(s.sources, func(s *url.URL) bool { return u.Scheme == s.Scheme && u.Host == s.Host })
	if u.User != nil || u.Opaque != "" || !aliyun && !source {
		return nil, &FetchError{Kind: FetchForbidden, Host: u.Host, Err: errors.New("images are taken from https://*.aliyuncs.com and the configured services alone")}
	}
	return u, nil
}

// reuse returns the proven file of that name, or nil if there is none. What is
// there and cannot be proven any more is removed.
func (s *Spool) reuse(name, source string) (*File, error) {
	path := filepath.Join(s.dir, provenFolder, name)
	f, err := os.Open(path) //nolint:gosec // the name is checked
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	sums := newSums(nil)
	if _, err := io.Copy(sums, f); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := sums.png.err(); err != nil {
		s.log.Warn("spool file is damaged, fetching it again", "path", path, "err", err)
		return nil, os.Remove(path)
	}
	return sums.file(path, source), nil
}

func (s *Spool) download(ctx context.Context, name string, u *url.URL) (*File, error) {
	status := 0
	fail := func(kind FetchKind, path string, err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("fetch image: %w", context.Cause(ctx))
		}
		// What net/http says begins with the whole URL.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		// An answer that is no HTTP is quoted, and may repeat what was asked.
		if text := err.Error(); u.RawQuery != "" && strings.Contains(text, u.RawQuery) {
			err = errors.New(strings.ReplaceAll(text, u.RawQuery, "**redacted**"))
		}
		return &FetchError{Kind: kind, Status: status, Host: u.Host, Path: path, Err: err}
	}
	guarded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(guarded, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, fail(FetchForbidden, "", errors.New("not a URL"))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fail(FetchTemporary, "", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	status = resp.StatusCode
	if status != http.StatusOK {
		return nil, fail(statusKind(status), "", errors.New(http.StatusText(status)))
	}
	limit := s.maxBytes * keepFactor
	if resp.ContentLength > limit {
		return nil, fail(FetchUnproven, "", fmt.Errorf("%d bytes are announced, at most %d are taken", resp.ContentLength, s.maxBytes))
	}

	body := &stallGuard{r: resp.Body, timer: time.AfterFunc(s.stall, func() { cancel(errStalled) }), after: s.stall}
	defer body.timer.Stop()
	f, sums, err := s.receive(io.LimitReader(body, limit+1), resp.Header)
	if disk := (*diskError)(nil); errors.As(err, &disk) {
		return nil, fmt.Errorf("spool: %w", disk.err)
	}
	if err != nil {
		return nil, fail(FetchTemporary, "", cause(guarded, err))
	}
	defer os.Remove(f.Name()) //nolint:errcheck // renamed away if all went well
	defer f.Close()           //nolint:errcheck // closed already if all went well
	if sums.bytes > limit {
		return nil, fail(FetchUnproven, "", fmt.Errorf("more than %d bytes came, at most %d are taken", limit, s.maxBytes))
	}

	kind, problem := s.judge(resp, sums)
	folder := provenFolder
	if problem != nil {
		folder = unprovenFolder
	}
	path := filepath.Join(s.dir, folder, name)
	if err := publish(f, path); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if problem != nil {
		return nil, fail(kind, path, problem)
	}
	return sums.file(path, sourceName(u)), nil
}

// receive writes body to a half file, hashing on the way. It fails with a
// diskError if the disk is at fault, and leaves no file then.
func (s *Spool) receive(body io.Reader, source http.Header) (*os.File, *sums, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, incomingFolder), "*")
	if err != nil {
		return nil, nil, &diskError{err}
	}
	sums := newSums(source)
	if _, err = io.Copy(io.MultiWriter(diskWriter{f}, sums), body); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name()) // swept at the next start if not
		return nil, nil, err
	}
	return f, sums, nil
}

// judge tells whether what came is proven.
func (s *Spool) judge(resp *http.Response, sums *sums) (FetchKind, error) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return FetchUnproven, fmt.Errorf("it is encoded (%.40q), which was not asked for", encoding)
	}
	if err := sums.compare(resp.Header); err != nil {
		return FetchTemporary, err
	}
	if sums.bytes > s.maxBytes {
		return FetchUnproven, fmt.Errorf("it has %d bytes, at most %d are proven", sums.bytes, s.maxBytes)
	}
	err := sums.png.err()
	// Only an answer that ends with its connection can end early unnoticed.
	untilClose := resp.ContentLength < 0 && resp.ProtoMajor == 1 && len(resp.TransferEncoding) == 0
	if errors.Is(err, errTruncated) && untilClose && sums.bytes > 0 {
		return FetchTemporary, err
	}
	return FetchUnproven, err
}

func statusKind(status int) FetchKind {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return FetchGone
	}
	if status >= 300 && status < 400 {
		return FetchForbidden
	}
	return FetchTemporary
}

// sums hashes and walks what is written to it.
type sums struct {
	bytes       int64
	md5, sha256 hash.Hash
	crc64       hash.Hash64 // nil if the source names none
	png         pngWalk
}

// crc64Header is the digest that OSS sends with every object: CRC-64/ECMA, in
// decimal (OSS developer guide, "Check data transmission integrity by CRC-64").
const crc64Header = "X-Oss-Hash-Crc64ecma"

func newSums(source http.Header) *sums {
	s := &sums{md5: md5.New(), sha256: sha256.New()} //nolint:gosec // see the import
	if source.Get(crc64Header) != "" {
		s.crc64 = crc64.New(crc64.MakeTable(crc64.ECMA))
	}
	return s
}

func (s *sums) Write(p []byte) (int, error) {
	s.bytes += int64(len(p))
	_, _ = s.md5.Write(p) // hashes do not fail
	_, _ = s.sha256.Write(p)
	if s.crc64 != nil {
		_, _ = s.crc64.Write(p)
	}
	return s.png.Write(p)
}

// compare checks the digests that the source named.
func (s *sums) compare(source http.Header) error {
	if want := source.Get("Content-MD5"); want != "" && want != base64.StdEncoding.EncodeToString(s.md5.Sum(nil)) {
		return errors.New("its MD5 is not the one in Content-MD5: it was damaged on the way")
	}
	if s.crc64 != nil && source.Get(crc64Header) != strconv.FormatUint(s.crc64.Sum64(), 10) {
		return errors.New("its CRC-64 is not the one in x-oss-hash-crc64ecma: it was damaged on the way")
	}
	return nil
}

// file describes the proven file at path.
func (s *sums) file(path, source string) *File {
	d := digests{bytes: s.bytes}
	s.md5.Sum(d.md5[:0])
	s.sha256.Sum(d.sha256[:0])
	return &File{
		Path: path, Bytes: d.bytes, SHA256: d.sha256Hex(), MD5: hex.EncodeToString(d.md5[:]),
		Width: s.png.width, Height: s.png.height, ContentType: "image/png", SourceName: source,
		digests: d,
	}
}

var errStalled = errors.New("the server stopped sending")

// stallGuard calls its timer's function unless bytes keep coming.
type stallGuard struct {
	r     io.Reader
	timer *time.Timer
	after time.Duration
}

func (g *stallGuard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if n > 0 {
		g.timer.Reset(g.after)
	}
	return n, err
}

// diskWriter marks its errors, which are no fault of the source.
type diskWriter struct{ w io.Writer }

func (d diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil {
		err = &diskError{err}
	}
	return n, err
}

type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
