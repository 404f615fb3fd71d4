package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Names of the checks of [Bucket.SelfTest], in their order.
const (
	CheckReach  = "reach"  // Bucket.Check
	CheckWrite  = "write"  // put an object with checksums and metadata
	CheckRead   = "read"   // get it, and compare its bytes and metadata
	CheckLink   = "link"   // get it by its link, without other credentials
	CheckDelete = "delete" // delete it
)

// Check is the result of one check of [Bucket.SelfTest].
type Check struct {
	Name string        // one of the Check constants
	Took time.Duration // including retries
	// Err is nil if the check passed. Its text is one sentence for an operator.
	Err error
	// Remedy says what to do, if Err's text does not.
	Remedy string
}

const (
	selfTestFolder = "_doctor/"
	// selfTestBytes is more than one TLS record and one TCP window. The value is
	// our choice.
	selfTestBytes = 256 << 10
	// checkTimeout is far more than a store needs for that. The value is our choice.
	checkTimeout = 10 * time.Second
)

// SelfTest writes a small object of random bytes below PREFIX/_doctor/, reads it by
// the API and by its link, and deletes it, also after an error or when ctx ends. It
// returns the results of the checks; a failed check skips those that depend on it.
// Each check takes at most ten seconds.
func (b *Bucket) SelfTest(ctx context.Context) []Check {
	e := &selfTest{bucket: b, key: b.prefix + selfTestFolder + rand.Text(), content: make([]byte, selfTestBytes)}
	_, _ = rand.Read(e.content) // it never fails
	if !e.run(ctx, CheckReach, "", b.Check) {
		return e.checks
	}
	written := e.run(ctx, CheckWrite, "let the access key write there (s3:PutObject)", e.write)
	if written {
		e.run(ctx, CheckRead, "let the access key read there (s3:GetObject)", e.read)
		e.run(ctx, CheckLink, b.linkRemedy(), e.link)
	}
	// The object may exist although the write failed, and nothing else deletes it.
	e.run(context.WithoutCancel(ctx), CheckDelete, "let the access key delete there (s3:DeleteObject), and delete "+e.key, e.delete)
	if !written {
		e.checks = e.checks[:2]
	}
	return e.checks
}

func (b *Bucket) linkRemedy() string {
	if b.publicURL != "" {
		return "let everybody read the objects below DANQING_S3_PUBLIC_URL, or correct it, or unset it for links that are signed"
	}
	return "set DANQING_S3_PUBLIC_ENDPOINT to an address at which the readers of links reach the store; if only this machine cannot reach it, nothing is wrong"
}

// selfTest is the state of one SelfTest call.
type selfTest struct {
	bucket  *Bucket
	key     string
	content []byte
	checks  []Check
}

// run runs one check, appends its result and reports whether it passed.
func (e *selfTest) run(ctx context.Context, name, remedy string, do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout,
		fmt.Errorf("%s: %s does not answer within %v: check the network between, or correct AWS_ENDPOINT_URL_S3", name, e.bucket.endpoint, checkTimeout))
	defer cancel()
	started := time.Now()
	t := Check{Name: name, Err: do(ctx)}
	t.Took = time.Since(started)
	if t.Err != nil {
		t.Err = cause(ctx, t.Err)
		if explained := (*explainedError)(nil); !errors.As(t.Err, &explained) && ctx.Err() == nil {
			t.Remedy = remedy
		}
	}
	e.checks = append(e.checks, t)
	return t.Err == nil
}

// selfTestSourceName is metadata like that of images, with non-ASCII characters.
const selfTestSourceName = "水彩 1.png"

func (e *selfTest) write(ctx context.Context) error {
	return e.bucket.putBytes(ctx, e.key, e.content, "application/octet-stream", map[string]string{"source-name": selfTestSourceName})
}

func (e *selfTest) read(ctx context.Context) error {
	body, got, err := e.bucket.Get(ctx, e.key)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read only
	if err := e.checkBytes(body); err != nil {
		return fmt.Errorf("get %s: %w", e.key, err)
	}
	// put has already compared the checksum by a HEAD.
	if name := got.Metadata["source-name"]; name != selfTestSourceName {
		return fmt.Errorf("get %s: the store changed the metadata %q to %q", e.key, selfTestSourceName, name)
	}
	return nil
}

// checkBytes fails unless r has exactly the test object's content.
func (e *selfTest) checkBytes(r io.Reader) error {
	got, err := io.ReadAll(io.LimitReader(r, selfTestBytes+1))
	switch {
	case err != nil:
		return err
	case !bytes.Equal(got, e.content):
		return fmt.Errorf("the store returned other bytes (%d) than were sent (%d)", len(got), selfTestBytes)
	}
	return nil
}

func (e *selfTest) link(ctx context.Context) error {
	link, _, err := e.bucket.Link(ctx, e.key)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, link, http.NoBody)
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	resp, err := e.bucket.client.Options().HTTPClient.Do(r)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // the URL contains a signature
		}
		return fmt.Errorf("link: %s cannot be reached: %w", r.URL.Host, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("link: %s answers with HTTP status %d", r.URL.Host, resp.StatusCode)
	}
	if err := e.checkBytes(resp.Body); err != nil {
		return fmt.Errorf("link: %s: %w", r.URL.Host, err)
	}
	return nil
}

func (e *selfTest) delete(ctx context.Context) error { return e.bucket.delete(ctx, e.key) }

// FreeBytes returns the free space for this process on the file system of a folder,
// which must exist. It fails with [errors.ErrUnsupported] on systems where that cannot
// be queried.
func FreeBytes(dir string) (uint64, error) {
	free, err := freeBytes(dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return free, nil
}
