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
	// told, and is not a provable PNG, or comes from a host that is none of
	// ours. It lies at Path for a person, unless that is "": then it was larger
	// than the disk should bear.
	FetchUnproven
	// FetchForbidden says that nothing can be asked for there: the link is none,
	// or leads to an address that is not public, or in circles.
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
	Path   string // file with the bytes that came, now or earlier, if they were kept; see Spool.Remove
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
// hashed and proven again and nothing is downloaded; nor is it if it is there
// unproven, which is said once more. name is made of letters, digits, dots,
// hyphens and underscores.
//
// An image on a host that is none of ours is kept too, unproven: at most three
// redirects are followed, to public addresses alone.
//
// It fails with a [*FetchError] if the source or what it sent is at fault, with
// [ErrDisk] if the disk is, and with ctx's cause if that ended.
func (s *Spool) Fetch(ctx context.Context, name, rawURL string) (*File, error) {
	if err := checkSpoolName(name); err != nil {
		return nil, err
	}
	u, ours, err := s.source(rawURL)
	if err != nil {
		return nil, s.withDoubted(name, err)
	}
	file, err := s.reuse(name, sourceName(u))
	if file != nil || err != nil {
		return file, err
	}
	if err := s.unproven(name, u, ours); err != nil {
		return nil, err
	}
	file, err = s.follow(u, ours, func(u *url.URL, ours bool) (*File, error) {
		return (&download{Spool: s, name: name, u: u, ours: ours}).do(ctx)
	})
	return file, s.withDoubted(name, err)
}

// FetchUnkept is [Spool.Fetch] for a disk that is full: the image, if it can be
// proven, is in memory alone, up to MaxBytes of it. What cannot be proven fails
// with [ErrDisk], to be fetched once there is room.
func (s *Spool) FetchUnkept(ctx context.Context, rawURL string) (*File, error) {
	u, ours, err := s.source(rawURL)
	if err != nil {
		return nil, err
	}
	return s.follow(u, ours, func(u *url.URL, ours bool) (*File, error) {
		return (&download{Spool: s, u: u, ours: ours}).do(ctx)
	})
}

// follow fetches from u, and from where that leads. What has left our sources is
// a stranger's from then on.
func (s *Spool) follow(u *url.URL, ours bool, fetch func(*url.URL, bool) (*File, error)) (*File, error) {
	for hops := 0; ; hops++ {
		file, err := fetch(u, ours)
		var moved *movedError
		if !errors.As(err, &moved) {
			return file, err
		}
		if hops == maxHops {
			return nil, &FetchError{Kind: FetchForbidden, Status: moved.status, Host: u.Host, Err: errHops}
		}
		next, known, err := s.source(moved.to.String())
		if err != nil {
			return nil, err
		}
		u, ours = next, ours && known
	}
}

// withDoubted adds to an error that is final what came earlier, if anything did.
func (s *Spool) withDoubted(name string, err error) error {
	var failed *FetchError
	if errors.As(err, &failed) && (failed.Kind == FetchGone || failed.Kind == FetchForbidden) {
		if path := filepath.Join(s.dir, doubtedFolder, name); exists(path) {
			failed.Path = path
		}
	}
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// unproven says what is wrong with the file of that name, if it came before and
// could not be proven.
func (s *Spool) unproven(name string, u *url.URL, ours bool) error {
	path := filepath.Join(s.dir, unprovenFolder, name)
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
	problem := s.problem(sums)
	switch {
	case problem == nil && !ours:
		problem = errStranger
	case problem == nil:
		problem = errors.New("it was not sent as an image is")
	}
	return &FetchError{Kind: FetchUnproven, Host: u.Host, Path: path, Err: problem}
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
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	defer f.Close() //nolint:errcheck // read only
	sums := newSums(nil)
	if _, err := io.Copy(sums, f); err != nil {
		return nil, fmt.Errorf("spool: %w: %w", ErrDisk, err)
	}
	if err := sums.png.err(); err != nil {
		s.log.Warn("spool file is damaged, fetching it again", "path", path, "err", err)
		return nil, os.Remove(path)
	}
	return sums.file(path, source), nil
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
