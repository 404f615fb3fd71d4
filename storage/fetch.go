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
	"strconv"
	"time"
)

// aliyunDomain is the domain of result URLs: dashscope-result-*.oss-*.aliyuncs.com
// (text-to-image V2 API reference, allow-list).
const aliyunDomain = "aliyuncs.com"

// FetchKind classifies failed downloads by what the caller should do next.
type FetchKind int

const (
	// FetchTemporary means that the network, the server or the transfer
	// failed. Retry the same URL.
	FetchTemporary FetchKind = iota + 1
	// FetchGone means that the URL has expired or is invalid (401, 403, 404,
	// 410). Query the task for a new one.
	FetchGone
	// FetchUnverified means that the download was complete, as far as can be
	// determined, but is not a whole PNG, JPEG or WebP, or comes from an untrusted host. The
	// file is kept at Path for an operator. Path is "" if the file was too
	// large to be kept.
	FetchUnverified
	// FetchForbidden means that the URL must not be requested: it is not a
	// valid http(s) URL, leads to an address that is not public, or has too
	// many redirects.
	FetchForbidden
)

func (k FetchKind) String() string {
	switch k {
	case FetchTemporary:
		return "temporary"
	case FetchGone:
		return "gone"
	case FetchUnverified:
		return "unverified"
	case FetchForbidden:
		return "forbidden"
	}
	return "unknown"
}

// FetchError is the reason why a download returned no verified file. Its text
// contains the host and never the URL's query, which is a signature.
type FetchError struct {
	Kind   FetchKind
	Status int    // HTTP status, 0 if there was no response
	Host   string // "" if the URL is invalid
	Path   string // unverified file of this download or an earlier one, "" if none was kept; see Spool.Remove
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

// Fetch downloads the image at rawURL into the spool under name, verifies it and
// makes it durable. If the spool already has a verified file of that name, also
// from an earlier run, Fetch verifies it again and downloads nothing. If it has an
// unverified one, Fetch downloads nothing and returns the same error again. name
// consists of letters, digits, dots, hyphens and underscores.
//
// An image on an untrusted host is kept too, as unverified. Fetch follows at most
// three redirects there, and connects to public addresses only.
//
// It fails with a [*FetchError] if the source or its response is at fault, with
// [ErrDisk] if the disk is, and with ctx's cause if ctx ended.
func (s *Spool) Fetch(ctx context.Context, name, rawURL string) (*File, error) {
	if err := checkSpoolName(name); err != nil {
		return nil, err
	}
	u, trusted, err := s.parseSource(rawURL)
	if err != nil {
		return nil, s.withEarlierCopy(name, err)
	}
	file, err := s.reuse(name, sourceName(u))
	if file != nil || err != nil {
		return file, err
	}
	if err := s.unverifiedError(name, u, trusted); err != nil {
		return nil, err
	}
	file, err = s.followRedirects(u, trusted, func(u *url.URL, trusted bool) (*File, error) {
		return (&download{spool: s, name: name, u: u, trusted: trusted}).do(ctx)
	})
	return file, s.withEarlierCopy(name, err)
}

// FetchToMemory is [Spool.Fetch] for when the disk is full: the verified image, of
// up to MaxBytes, is held in memory only. An image that cannot be verified fails
// with [ErrDisk], because it must be kept on disk; fetch it again when there is
// space.
func (s *Spool) FetchToMemory(ctx context.Context, rawURL string) (*File, error) {
	u, trusted, err := s.parseSource(rawURL)
	if err != nil {
		return nil, err
	}
	return s.followRedirects(u, trusted, func(u *url.URL, trusted bool) (*File, error) {
		return (&download{spool: s, u: u, trusted: trusted}).do(ctx)
	})
}

// followRedirects fetches u and follows its redirects. After a redirect to an
// untrusted host, every later one is untrusted too.
func (s *Spool) followRedirects(u *url.URL, trusted bool, fetch func(*url.URL, bool) (*File, error)) (*File, error) {
	for hops := 0; ; hops++ {
		file, err := fetch(u, trusted)
		var moved *redirectError
		if !errors.As(err, &moved) {
			return file, err
		}
		if hops == maxRedirects {
			return nil, &FetchError{Kind: FetchForbidden, Status: moved.status, Host: u.Host, Err: errTooManyRedirects}
		}
		next, known, err := s.parseSource(moved.to.String())
		if err != nil {
			return nil, err
		}
		u, trusted = next, trusted && known
	}
}

// withEarlierCopy adds the path of an earlier download to a permanent error, if there
// is one.
func (s *Spool) withEarlierCopy(name string, err error) error {
	var failed *FetchError
	if errors.As(err, &failed) && (failed.Kind == FetchGone || failed.Kind == FetchForbidden) {
		if path := filepath.Join(s.dir, recheckFolder, name); exists(path) {
			failed.Path = path
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// unverifiedError returns the verification error of an earlier download of that name,
// or nil if there is none.
func (s *Spool) unverifiedError(name string, u *url.URL, trusted bool) error {
	path := filepath.Join(s.dir, unverifiedFolder, name)
	f, err := os.Open(path) //nolint:gosec // the name is checked
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	defer f.Close() //nolint:errcheck // read only
	sums := newSums(nil)
	if _, err := io.Copy(sums, f); err != nil {
		return fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	problem := s.checkContent(sums)
	switch {
	case problem == nil && !trusted:
		problem = errUntrustedHost
	case problem == nil:
		problem = errors.New("it was sent with an unexpected encoding")
	}
	return &FetchError{Kind: FetchUnverified, Host: u.Host, Path: path, Err: problem}
}

// reuse returns the verified file of that name, or nil if there is none. A file that
// fails the verification now is downloaded again, and stays as a fallback in case the URL
// is dead.
func (s *Spool) reuse(name, source string) (*File, error) {
	path := filepath.Join(s.dir, verifiedFolder, name)
	f, err := os.Open(path) //nolint:gosec // the name is checked
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no file is not an error
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	defer f.Close() //nolint:errcheck // read only
	sums := newSums(nil)
	if _, err := io.Copy(sums, f); err != nil {
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	_, err = sums.image.result()
	if err == nil {
		err = s.compareDigest(name, sums)
	}
	if err != nil {
		s.log.Warn("spool file damaged, downloading it again", "path", path, "err", err)
		return nil, os.Rename(path, filepath.Join(s.dir, recheckFolder, name))
	}
	return sums.file(path, source), nil
}

// keepDigest makes the SHA-256 of a verified file durable, before the file is. A PNG needs
// none: each of its chunks has a checksum.
func (s *Spool) keepDigest(name string, sums *sums) error {
	if sums.image.png.whole {
		return nil
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, incomingFolder), "*")
	if err != nil {
		return err
	}
	if _, err := f.WriteString(sums.file("", "").SHA256); err != nil {
		return errors.Join(err, f.Close())
	}
	return s.folders[digestFolder].Commit(f, name)
}

// compareDigest compares a verified file with what keepDigest has kept.
func (s *Spool) compareDigest(name string, sums *sums) error {
	if sums.image.png.whole {
		return nil
	}
	kept, err := os.ReadFile(filepath.Join(s.dir, digestFolder, name)) //nolint:gosec // the name is checked
	if err == nil && string(kept) != sums.file("", "").SHA256 {
		err = errors.New("its SHA-256 has changed")
	}
	return err
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

// sums is a writer that hashes an image and checks that it is whole.
type sums struct {
	bytes       int64
	md5, sha256 hash.Hash
	crc64       hash.Hash64 // nil if the source sends no CRC-64
	image       imageWalk
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
	return s.image.Write(p)
}

// compare checks the digests that the source sent.
func (s *sums) compare(source http.Header) error {
	if want := source.Get("Content-MD5"); want != "" && want != base64.StdEncoding.EncodeToString(s.md5.Sum(nil)) {
		return errors.New("its MD5 differs from Content-MD5: it was damaged in transit")
	}
	if s.crc64 != nil && source.Get(crc64Header) != strconv.FormatUint(s.crc64.Sum64(), 10) {
		return errors.New("its CRC-64 differs from x-oss-hash-crc64ecma: it was damaged in transit")
	}
	return nil
}

// file describes the verified file at path.
func (s *sums) file(path, source string) *File {
	image := s.image.format.common()
	d := digests{bytes: s.bytes}
	s.md5.Sum(d.md5[:0])
	s.sha256.Sum(d.sha256[:0])
	label := AILabelAbsent
	if image.label.found {
		label = AILabelPresent
	}
	return &File{
		Path: path, Bytes: d.bytes, SHA256: d.sha256Hex(), MD5: hex.EncodeToString(d.md5[:]),
		Width: image.width, Height: image.height, ContentType: image.contentType, AILabel: label, SourceName: source,
		digests: d,
	}
}

var errStalled = errors.New("the server stopped sending")

// stallGuard is a reader that resets its timer with every read, so that the timer
// fires when no bytes arrive.
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

// diskWriter wraps errors in diskError, to distinguish them from those of the source.
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
