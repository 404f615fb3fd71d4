// Package embedded is an in-process S3 server that stores objects in a folder. It is
// used when no other store is configured.
//
// Objects are plain files under their keys, DIR/BUCKET/KEY. They can be browsed,
// copied, and added by hand. Their metadata is in DIR/.danqing, which no key can
// reach. An object is published by a rename, after its bytes and its metadata are on
// disk: a kill at any moment leaves either the old or the new version, complete and
// with its own metadata.
//
// Supported: one bucket; PutObject (with Content-MD5, signed payload hash, checksums,
// If-Match, If-None-Match), GetObject (with ranges and conditions), HeadObject,
// DeleteObject(s), CopyObject, ListObjects v1 and v2, SigV4 by header and by presigned
// URL. Not supported: versions, ACLs, policies, lifecycle rules. Multipart uploads work,
// but are held in memory until they complete.
//
// Keys must be usable as file names: no empty, "." or ".." segments (and hence
// no folder markers such as "a/"), no segment over 255 bytes, UTF-8 without NUL,
// and not both "f" and "f/g". Other keys are refused with 400 InvalidArgument. So is, on a
// case-insensitive file system, a key that differs from another only in case, in any of
// its folders.
package embedded

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
	"github.com/rclone/gofakes3"

	"github.com/danqing-queue/danqing/storage/embedded/inprocess"
)

// DefaultBucket is the bucket's name unless Config says otherwise.
const DefaultBucket = "danqing"

// Config configures a [Server]. Dir is required.
type Config struct {
	// Dir is the folder for objects. It is created if it does not exist. Only one
	// server at a time can use it.
	Dir string
	// Bucket is the name of the only bucket; "" means DefaultBucket.
	Bucket string
	// AccessKeyID and SecretAccessKey are the credentials that clients must use.
	// If both are "", each Open generates new ones. An ID has at least 3
	// characters.
	AccessKeyID     string
	SecretAccessKey string `json:"-"`
	// Logger receives errors. nil discards them.
	Logger *slog.Logger
}

// String omits the secret.
func (c Config) String() string {
	return fmt.Sprintf("dir %q, bucket %q, access key ID %q, secret **redacted**", c.Dir, c.Bucket, c.AccessKeyID)
}

// GoString returns String, so that %#v shows no secret either.
func (c Config) GoString() string { return c.String() }

// maxIdleConns is as many as the default client of a bucket keeps.
const maxIdleConns = 64

// Server is an http.Handler that speaks S3.
type Server struct {
	id, secret string
	store      *store
	handler    http.Handler
	lock       *flock.Flock
	inner      inprocess.Server
	client     *http.Client
}

// Open opens the store in cfg.Dir, removes temporary files that a crash left there,
// and returns a server for it. It fails if another server uses the folder.
func Open(cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded bucket: Dir is empty: name a folder")
	}
	cfg.Bucket = cmp.Or(cfg.Bucket, DefaultBucket)
	if err := gofakes3.ValidateBucketName(cfg.Bucket); err != nil {
		return nil, fmt.Errorf("embedded bucket: Bucket %q: must be 3 to 63 lower-case letters, digits and hyphens", cfg.Bucket)
	}
	switch {
	case cfg.AccessKeyID == "" && cfg.SecretAccessKey == "":
		cfg.AccessKeyID, cfg.SecretAccessKey = "danqing-"+rand.Text()[:12], rand.Text()+rand.Text()
	case len(cfg.AccessKeyID) < 3 || cfg.SecretAccessKey == "":
		return nil, errors.New("embedded bucket: AccessKeyID and SecretAccessKey go together, the ID with at least 3 characters; leave both empty to have them generated")
	}
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))

	hidden := filepath.Join(cfg.Dir, hiddenFolder)
	if err := os.MkdirAll(hidden, 0o750); err != nil {
		return nil, fmt.Errorf("embedded bucket: %w", err)
	}
	lock := flock.New(filepath.Join(hidden, "lock"))
	if ok, err := lock.TryLock(); err != nil {
		return nil, fmt.Errorf("embedded bucket: lock %s: %w", cfg.Dir, err)
	} else if !ok {
		return nil, fmt.Errorf("embedded bucket: %s is in use by another process: stop that, or use another folder", cfg.Dir)
	}
	st, err := openStore(cfg.Dir, cfg.Bucket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded bucket: %w", err), lock.Unlock())
	}
	s3 := gofakes3.New(st,
		gofakes3.WithV4Auth(map[string]string{cfg.AccessKeyID: cfg.SecretAccessKey}),
		gofakes3.WithLogger(logger{cfg.Logger}),
	)
	s := &Server{id: cfg.AccessKeyID, secret: cfg.SecretAccessKey, store: st, handler: verifyBody(s3.Server()), lock: lock}
	s.client = &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return s.inner.Dial(ctx, s, cfg.Logger) },
		MaxIdleConnsPerHost: maxIdleConns, DisableCompression: true,
	}}
	return s, nil
}

// ServeHTTP answers an S3 request. Do not wrap the server in an [http.ServeMux], which
// redirects requests for keys that are not clean paths.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// HTTPClient returns a client that sends every request to this server in the process,
// without a socket. The host in the URL is ignored; the scheme must be http.
func (s *Server) HTTPClient() *http.Client { return s.client }

// Credentials returns the credentials that requests must be signed with.
func (s *Server) Credentials() (accessKeyID, secretAccessKey string) { return s.id, s.secret }

// Bucket returns the bucket's name.
func (s *Server) Bucket() string { return s.store.bucket }

// Path returns the file of an object, whether it exists or not, or "" for an invalid
// key.
func (s *Server) Path(key string) string {
	name, err := s.store.fileName(key)
	if err != nil {
		return ""
	}
	return filepath.Join(s.store.root.Name(), name)
}

// Close releases the folder. Requests in progress fail.
func (s *Server) Close() error {
	return errors.Join(s.inner.Close(), s.store.root.Close(), s.lock.Close())
}

// logger logs gofakes3's errors. It drops the other levels, which log every request.
type logger struct{ log *slog.Logger }

// Print implements gofakes3.Logger.
func (l logger) Print(level gofakes3.LogLevel, v ...any) {
	if level == gofakes3.LogErr {
		l.log.Error("embedded bucket", "err", fmt.Sprint(v...))
	}
}
