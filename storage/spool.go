package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs/jobid"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// Defaults of SpoolConfig. DashScope's images have a few megabytes.
const (
	defaultMaxBytes      = 64 << 20
	defaultHeaderTimeout = time.Minute
	defaultStallTimeout  = 30 * time.Second
)

// unverifiedSizeFactor times MaxBytes is the largest download that is kept as
// unverified for an operator. Larger ones are discarded to protect the disk.
const unverifiedSizeFactor = 8

// SpoolConfig configures a [Spool]. The zero value trusts only Aliyun's hosts.
type SpoolConfig struct {
	// Sources are the base URLs of the accounts' services, such as a simulator's.
	// The scheme, host and port of each is trusted. https on *.aliyuncs.com, port
	// 443, is always trusted.
	Sources []string
	// DialContext opens connections to trusted hosts. nil means net.Dialer's,
	// with the environment's proxy, like the client of the service.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Transport replaces the HTTP client's transport, and DialContext and
	// HeaderTimeout with it; nil means a default one.
	Transport http.RoundTripper
	// DialPublic opens connections to untrusted hosts, whose images are kept as
	// unverified. nil is [PublicDialer] without exceptions; no proxy is used.
	// Tests replace it.
	DialPublic func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxBytes is the largest image that is verified; 0 means 64 MiB. Larger ones,
	// up to eight times this, are kept as unverified.
	MaxBytes int64
	// HeaderTimeout limits the wait for the response header; 0 means one minute.
	HeaderTimeout time.Duration
	// StallTimeout limits the time without any bytes of the body; 0 means 30 s.
	StallTimeout time.Duration
	// Logger receives warnings. nil discards them.
	Logger *slog.Logger
}

// ErrDisk is returned (wrapped) if the spool's disk is at fault, for example full.
// Nothing is lost as long as the image's URL is valid; see [Spool.FetchToMemory].
var ErrDisk = errors.New("the disk of the spool fails")

// Spool is a folder of downloaded images. Each is verified, and kept until it is
// removed. It is safe for concurrent use. Only one process at a time may use the
// folder.
type Spool struct {
	dir             string
	client          *http.Client
	untrustedClient *http.Client // for untrusted hosts
	extraSources    []*url.URL   // trusted ones besides Aliyun
	maxBytes        int64
	stall           time.Duration
	log             *slog.Logger
	// folders are the folders of complete files, by name.
	folders map[string]*atomicfile.Dir
	// buffers are of copyBuffer bytes.
	buffers sync.Pool
}

// copyBuffer is how many bytes of a download are hashed and written at once: it fits the
// processor's cache, and saves seven of eight writes of io.Copy.
const copyBuffer = 256 << 10

// Folders of a spool.
const (
	incomingFolder   = "incoming" // partial files; emptied by OpenSpool
	verifiedFolder   = "verified"
	unverifiedFolder = "unverified"
	// recheckFolder holds files that are downloaded again: transfers that were
	// damaged, and files that [Spool.Recheck] moved there.
	recheckFolder = "recheck"
	// digestFolder holds the SHA-256 of those verified files that have no checksums in them.
	digestFolder = "sha256"
)

// OpenSpool opens the spool in dir, creates the folder if it does not exist, and
// removes the partial files that a crash left.
func OpenSpool(dir string, cfg SpoolConfig) (*Spool, error) {
	s := &Spool{
		dir: dir, maxBytes: cfg.MaxBytes, stall: cfg.StallTimeout, log: cfg.Logger, folders: map[string]*atomicfile.Dir{},
		buffers: sync.Pool{New: func() any { return new([copyBuffer]byte) }},
	}
	if cfg.MaxBytes < 0 || cfg.HeaderTimeout < 0 || cfg.StallTimeout < 0 {
		return nil, errors.New("spool: MaxBytes, HeaderTimeout and StallTimeout must not be negative; 0 is the default")
	}
	s.maxBytes = cmp.Or(s.maxBytes, defaultMaxBytes)
	if cfg.HeaderTimeout == 0 {
		cfg.HeaderTimeout = defaultHeaderTimeout
	}
	s.stall = cmp.Or(s.stall, defaultStallTimeout)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for i, source := range cfg.Sources {
		u, err := url.Parse(source)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
			return nil, fmt.Errorf("spool: Sources[%d] must be a URL such as https://dashscope.aliyuncs.com/api/v1, without credentials", i)
		}
		if !inDomain(u.Hostname(), aliyunDomain) {
			s.extraSources = append(s.extraSources, u)
		}
	}
	s.client = &http.Client{
		Transport: cfg.Transport,
		// The spool follows redirects itself, and checks each one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if s.client.Transport == nil {
		s.client.Transport = newTransport(cfg)
	}
	s.untrustedClient = newUntrustedClient(cfg)

	if err := os.RemoveAll(filepath.Join(dir, incomingFolder)); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for _, folder := range []string{incomingFolder, verifiedFolder, unverifiedFolder, recheckFolder, digestFolder} {
		s.folders[folder] = &atomicfile.Dir{Path: filepath.Join(dir, folder)}
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o750); err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
	}
	return s, nil
}

func newTransport(cfg SpoolConfig) *http.Transport {
	dial, proxy := cfg.DialContext, (func(*http.Request) (*url.URL, error))(nil)
	if dial == nil {
		dial, proxy = (&net.Dialer{Timeout: 10 * time.Second}).DialContext, http.ProxyFromEnvironment
	}
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           dial,
		DisableCompression:    true, // the digests are of the bytes as stored
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: cfg.HeaderTimeout,
	}
}

// File is a verified image, on the local disk or in memory. Only a [Spool] returns
// one that a bucket accepts.
type File struct {
	Path        string // "" if it is in memory only: see Spool.FetchToMemory
	Bytes       int64
	SHA256, MD5 string // hex
	Width       int    // pixels
	Height      int
	ContentType string // image/png, image/jpeg or image/webp, by its bytes
	AILabel     string // AILabelPresent or AILabelAbsent
	SourceName  string // file name in the source's URL

	digests digests
	content []byte // nil if it is at Path
}

// open opens the image's bytes.
func (f *File) open() (io.ReadSeekCloser, error) {
	if f.content == nil {
		return os.Open(f.Path)
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(f.content), io.NopCloser(nil)}, nil
}

// Recheck makes the next [Spool.Fetch] download the unverified file of that name
// again. The old file stays as a fallback in case the URL is dead. Recheck does
// nothing if there is no such file.
func (s *Spool) Recheck(name string) error {
	if err := checkSpoolName(name); err != nil {
		return err
	}
	err := os.Rename(filepath.Join(s.dir, unverifiedFolder, name), filepath.Join(s.dir, recheckFolder, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// Remove deletes the file of that name, verified or not, if there is one.
func (s *Spool) Remove(name string) error {
	if err := checkSpoolName(name); err != nil {
		return err
	}
	var errs []error
	for _, folder := range []string{verifiedFolder, unverifiedFolder, recheckFolder, digestFolder} {
		if err := os.Remove(filepath.Join(s.dir, folder, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Names returns the names of all files, verified or not, in no order.
func (s *Spool) Names() ([]string, error) {
	var names []string
	for _, folder := range []string{verifiedFolder, unverifiedFolder, recheckFolder} {
		files, err := os.ReadDir(filepath.Join(s.dir, folder))
		if err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		for _, file := range files {
			names = append(names, file.Name())
		}
	}
	return names, nil
}

// FreeBytes returns the free space for this process on the spool's file system.
// It fails with [errors.ErrUnsupported] on systems where that cannot be queried.
func (s *Spool) FreeBytes() (uint64, error) {
	free, err := freeBytes(s.dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	return free, nil
}

func checkSpoolName(name string) error {
	other := func(r rune) bool { return r != '.' && !jobid.Allowed(r) }
	if name == "" || name == "." || name == ".." || len(name) > maxNameBytes || strings.ContainsFunc(name, other) {
		return fmt.Errorf("spool file %q: the name must be 1 to %d bytes of letters, digits and . _ -", name, maxNameBytes)
	}
	return nil
}

// maxSourceName is the longest file name in bytes that is kept of a URL. All metadata of an
// object has 2 KB (S3's limit).
const maxSourceName = 200

// sourceName returns the file name of a URL, cut to its last bytes, which have the extension.
func sourceName(u *url.URL) string {
	name := path.Base(u.Path)
	if name == "." || name == "/" {
		return ""
	}
	return strings.ToValidUTF8(name[max(0, len(name)-maxSourceName):], "")
}
