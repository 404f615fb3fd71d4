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

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// The things that [Bucket.Examine] tries, in this order.
const (
	TrialReach  = "reach"  // what Check asks
	TrialWrite  = "write"  // an object with its checksums and metadata
	TrialRead   = "read"   // that object, byte for byte, and its metadata
	TrialLink   = "link"   // its link, by a GET that is not signed otherwise
	TrialDelete = "delete" // that object
)

// Trial is one thing that was tried with a bucket.
type Trial struct {
	Name string        // one of the Trial constants
	Took time.Duration // with all tries
	// Err is nil if it went well; its text is a sentence for a person.
	Err error
	// Remedy says what to do after an error whose text does not.
	Remedy string
}

const (
	doctorFolder = "_doctor/"
	// trialBytes is more than one TLS record and one TCP window hold; ours.
	trialBytes = 256 << 10
	// trialTimeout is far above what a store takes for that; ours.
	trialTimeout = 10 * time.Second
)

// Examine writes a small object of random bytes below PREFIX/_doctor/, reads it by
// the API and by its link, and deletes it, whatever happens meanwhile. It returns
// what it tried: an error ends the trials that build upon it. Each trial takes ten
// seconds at most.
func (b *Bucket) Examine(ctx context.Context) []Trial {
	e := &examination{Bucket: b, key: b.prefix + doctorFolder + rand.Text(), content: make([]byte, trialBytes)}
	_, _ = rand.Read(e.content) // it never fails
	if !e.try(ctx, TrialReach, "", b.Check) {
		return e.trials
	}
	written := e.try(ctx, TrialWrite, "let the access key write there (s3:PutObject)", e.write)
	if written {
		e.try(ctx, TrialRead, "let the access key read there (s3:GetObject)", e.read)
		e.try(ctx, TrialLink, b.linkRemedy(), e.link)
	}
	// What was refused may be there all the same; and nobody else cleans up.
	e.try(context.WithoutCancel(ctx), TrialDelete, "let the access key delete there (s3:DeleteObject), and delete "+e.key, e.delete)
	if !written {
		e.trials = e.trials[:2]
	}
	return e.trials
}

func (b *Bucket) linkRemedy() string {
	if b.publicURL != "" {
		return "let everybody read the objects below DANQING_S3_PUBLIC_URL, or correct it, or unset it for links that are signed"
	}
	return "set DANQING_S3_PUBLIC_ENDPOINT to an address by which the readers of links reach the store; if they do, and this machine does not, all is well"
}

// examination is one call of Examine.
type examination struct {
	*Bucket
	key     string
	content []byte
	trials  []Trial
}

// try notes how a trial ends and reports whether it went well.
func (e *examination) try(ctx context.Context, name, remedy string, do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, trialTimeout,
		fmt.Errorf("%s: %s does not answer within %v: look at the network between, or correct AWS_ENDPOINT_URL_S3", name, e.endpoint, trialTimeout))
	defer cancel()
	started := time.Now()
	t := Trial{Name: name, Err: do(ctx)}
	t.Took = time.Since(started)
	if t.Err != nil {
		t.Err = cause(ctx, t.Err)
		if told := (*explained)(nil); !errors.As(t.Err, &told) && ctx.Err() == nil {
			t.Remedy = remedy
		}
	}
	e.trials = append(e.trials, t)
	return t.Err == nil
}

// trialName is metadata as images have it.
const trialName = "水彩 1.png"

func (e *examination) write(ctx context.Context) error {
	return e.putBytes(ctx, e.key, e.content, "application/octet-stream", map[string]string{"source-name": trialName})
}

func (e *examination) read(ctx context.Context) error {
	body, got, err := e.Get(ctx, e.key)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read only
	if err := e.same(body); err != nil {
		return fmt.Errorf("get %s: %w", e.key, err)
	}
	// put has compared the checksum that a HEAD tells.
	if name := got.Metadata["source-name"]; name != trialName {
		return fmt.Errorf("get %s: the store has made %q of the metadata %q", e.key, name, trialName)
	}
	return nil
}

// same fails unless r has the content, to its end.
func (e *examination) same(r io.Reader) error {
	got, err := io.ReadAll(io.LimitReader(r, trialBytes+1))
	switch {
	case err != nil:
		return err
	case !bytes.Equal(got, e.content):
		return fmt.Errorf("the store gives back other bytes (%d) than were sent (%d)", len(got), trialBytes)
	}
	return nil
}

func (e *examination) link(ctx context.Context) error {
	link, _, err := e.Link(ctx, e.key)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, link, http.NoBody)
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	resp, err := e.client.Options().HTTPClient.Do(r)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // its URL is signed
		}
		return fmt.Errorf("link: %s is not reached: %w", r.URL.Host, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("link: %s answers with HTTP status %d", r.URL.Host, resp.StatusCode)
	}
	if err := e.same(resp.Body); err != nil {
		return fmt.Errorf("link: %s: %w", r.URL.Host, err)
	}
	return nil
}

func (e *examination) delete(ctx context.Context) error {
	if _, err := e.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &e.name, Key: &e.key}); err != nil {
		return fmt.Errorf("delete %s: %w", e.key, e.explain(err))
	}
	return nil
}

// FreeBytes returns the room that this process has left on the file system of a
// folder, which must exist. It fails with [errors.ErrUnsupported] where that is not
// known.
func FreeBytes(dir string) (uint64, error) {
	free, err := freeBytes(dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return free, nil
}
