package storage

import (
	"bytes"
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
	"regexp"
	"time"
)

// Defaults of SpoolConfig. An image of DashScope has a few megabytes.
const (
	defaultMaxBytes      = 64 << 20
	defaultHeaderTimeout = time.Minute
	defaultStallTimeout  = 30 * time.Second
)

// keepFactor is how many times MaxBytes are still kept of what is too large to
// be proven, so that a person can look at it, before the disk is protected.
const keepFactor = 8

// SpoolConfig configures a [Spool]. Its zero value fetches from Aliyun alone.
type SpoolConfig struct {
	// Sources are the base URLs of the accounts' services. Of each that is not
	// Aliyun's, images are also taken from exactly its scheme, host and port, as
	// from a simulator. https on *.aliyuncs.com, port 443, is always allowed.
	Sources []string
	// DialContext opens connections; nil is net.Dialer's, by way of
	// the environment's proxy if it names one: the client of the service uses it
	// too, and what is paid for must be reachable.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Transport replaces the HTTP client's transport, DialContext and
	// HeaderTimeout with it; nil is ours.
	Transport http.RoundTripper
	// DialPublic opens connections to hosts that are neither Aliyun's nor among
	// Sources, whose images are kept unproven. nil is a dialer of ours that
	// refuses every address but public ones and uses no proxy; a test has its own.
	DialPublic func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxBytes is the largest image that is proven; 0 is 64 MiB. What is
	// larger is unproven, up to eight times this is kept.
	MaxBytes int64
	// HeaderTimeout is how long a server may take to begin its answer; 0 is a
	// minute.
	HeaderTimeout time.Duration
	// StallTimeout is how long it may then send nothing; 0 is 30 s.
	StallTimeout time.Duration
	// Logger takes what an operator may want to know; nil discards it.
	Logger *slog.Logger
}

// ErrDisk is returned (wrapped) if the spool's disk is at fault: it is full, say.
// Nothing is lost by that while the link lives; see [Spool.FetchUnkept].
var ErrDisk = errors.New("the disk of the spool fails")

// Spool is a folder of downloaded images, each proven and kept until it is
// removed. It is safe for concurrent use; one process at a time may have it.
type Spool struct {
	dir       string
	client    *http.Client
	strangers *http.Client // for hosts that are none of ours
	sources   []*url.URL   // ours beside Aliyun
	maxBytes  int64
	stall     time.Duration
	log       *slog.Logger
}

// Folders of a spool.
const (
	incomingFolder = "incoming" // half files; emptied at the start
	provenFolder   = "proven"
	unprovenFolder = "unproven"
	// doubtedFolder has what came and is asked for again: transfers that were
	// damaged on the way, and what [Spool.Doubt] put there.
	doubtedFolder = "doubted"
)

// spoolNamePattern leaves no way out of the folder (. and .. are excluded
// apart), and fits into a file name.
var spoolNamePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,200}$`)

// OpenSpool opens the spool in dir, which is created if need be, and removes
// the half files that a crash left.
func OpenSpool(dir string, cfg SpoolConfig) (*Spool, error) {
	s := &Spool{dir: dir, maxBytes: cfg.MaxBytes, stall: cfg.StallTimeout, log: cfg.Logger}
	if cfg.MaxBytes < 0 || cfg.HeaderTimeout < 0 || cfg.StallTimeout < 0 {
		return nil, errors.New("spool: MaxBytes, HeaderTimeout and StallTimeout must not be negative; 0 is the default")
	}
	if s.maxBytes == 0 {
		s.maxBytes = defaultMaxBytes
	}
	if cfg.HeaderTimeout == 0 {
		cfg.HeaderTimeout = defaultHeaderTimeout
	}
	if s.stall == 0 {
		s.stall = defaultStallTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for i, source := range cfg.Sources {
		u, err := url.Parse(source)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
			return nil, fmt.Errorf("spool: Sources[%d] must be a URL such as https://dashscope.aliyuncs.com/api/v1, without credentials", i)
		}
		if !inDomain(u.Hostname(), aliyunDomain) {
			s.sources = append(s.sources, u)
		}
	}
	s.client = &http.Client{
		Transport: cfg.Transport,
		// A redirect could lead anywhere: the spool looks at each.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if s.client.Transport == nil {
		s.client.Transport = newTransport(cfg)
	}
	s.strangers = newStrangers(cfg)

	if err := os.RemoveAll(filepath.Join(dir, incomingFolder)); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for _, folder := range []string{incomingFolder, provenFolder, unprovenFolder, doubtedFolder} {
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
		DisableCompression:    true, // the bytes as they are stored there
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: cfg.HeaderTimeout,
	}
}

// File is an image on the local disk that is proven to have arrived as it was
// made. Only a [Spool] makes one that a bucket takes.
type File struct {
	Path        string // "" if it is in memory alone: see Spool.FetchUnkept
	Bytes       int64
	SHA256, MD5 string // hex
	Width       int    // pixels
	Height      int
	ContentType string
	SourceName  string // file name in the source's URL

	digests digests
	content []byte // unless it lies at Path
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

// Doubt has what the spool has under name unproven asked for again by the next
// [Spool.Fetch], which falls back on it if its link is dead. It does nothing if
// there is nothing.
func (s *Spool) Doubt(name string) error {
	if err := checkSpoolName(name); err != nil {
		return err
	}
	err := os.Rename(filepath.Join(s.dir, unprovenFolder, name), filepath.Join(s.dir, doubtedFolder, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// Remove deletes what the spool has under name, proven or not, and does nothing
// if there is nothing.
func (s *Spool) Remove(name string) error {
	if err := checkSpoolName(name); err != nil {
		return err
	}
	var errs []error
	for _, folder := range []string{provenFolder, unprovenFolder, doubtedFolder} {
		if err := os.Remove(filepath.Join(s.dir, folder, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// FreeBytes returns the room left for this process on the spool's file system.
// It fails with [errors.ErrUnsupported] where that is not known.
func (s *Spool) FreeBytes() (uint64, error) {
	free, err := freeBytes(s.dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	return free, nil
}

func checkSpoolName(name string) error {
	if !spoolNamePattern.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("spool file %q: the name must match [A-Za-z0-9._-]{1,200}", name)
	}
	return nil
}

// publish makes a written file durable under its final name.
func publish(f *os.File, to string) error {
	err := f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func sourceName(u *url.URL) string {
	if name := path.Base(u.Path); name != "." && name != "/" {
		return name
	}
	return ""
}
