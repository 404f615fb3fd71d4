package storage

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // a checksum: every store verifies Content-MD5
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// modeObject is the object PREFIX/_mode.json. No key template can produce its key.
const modeObject = "_mode.json"

// maxModeBytes limits the size of that object.
const maxModeBytes = 4 << 10

// modeContent is the content of the object.
type modeContent struct {
	Mode string `json:"mode"`
}

// prefixMode is what is known of the prefix's mode.
type prefixMode struct {
	asking          chan struct{} // holds a value while a request is on its way
	mu              sync.Mutex
	known, required string
}

// settled reports whether nothing is required, or the prefix is known to have it.
func (m *prefixMode) settled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.required == "" || m.required == m.known
}

// ModeError means that the prefix has another mode than the one that [Bucket.Bind] gave.
type ModeError struct{ Mode string }

// Error names the mode and the remedy.
func (e *ModeError) Error() string {
	return fmt.Sprintf("the bucket prefix is %s since its first use: set DANQING_S3_PREFIX to another prefix", e.Mode)
}

// Mode returns the prefix's mode, a word that says what the objects there are for good, or
// "" if none was bound to it yet. It makes at most two attempts, because it runs while an
// operator waits.
func (b *Bucket) Mode(ctx context.Context) (string, error) {
	key := b.prefix + modeObject
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, func(o *s3.Options) { o.RetryMaxAttempts = 2 })
	if err != nil {
		if err = b.explain(err); errors.Is(err, ErrNotExist) {
			return "", nil
		}
		return "", fmt.Errorf("get %s: %w", key, err)
	}
	defer out.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(out.Body, maxModeBytes))
	if err != nil {
		return "", fmt.Errorf("get %s: %w", key, err)
	}
	var content modeContent
	if json.Unmarshal(text, &content) != nil || content.Mode == "" {
		return "", fmt.Errorf(`get %s: it is damaged: write {"mode":"real"} or {"mode":"simulated"} to it, whichever the objects beside it are; or correct AWS_ENDPOINT_URL_S3`, key)
	}
	b.mode.mu.Lock()
	defer b.mode.mu.Unlock()
	b.mode.known = content.Mode
	return content.Mode, nil
}

// Bind gives the prefix a mode if it has none. It fails with a [*ModeError] if it has
// another. After any error, each method that reads or writes objects tries again first, and
// fails as Bind does: nothing is read or written before the prefix has the mode. Of
// concurrent callers one wins; stores without conditional writes do not ensure that.
func (b *Bucket) Bind(ctx context.Context, mode string) error {
	b.mode.mu.Lock()
	b.mode.required = mode
	b.mode.mu.Unlock()
	return b.checkMode(ctx)
}

// checkMode fails unless the prefix has the required mode, if there is one.
func (b *Bucket) checkMode(ctx context.Context) error {
	if b.mode.settled() {
		return nil
	}
	select {
	case b.mode.asking <- struct{}{}:
		defer func() { <-b.mode.asking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if b.mode.settled() { // meanwhile
		return nil
	}
	b.mode.mu.Lock()
	required := b.mode.required
	b.mode.mu.Unlock()
	has, err := b.Mode(ctx)
	if err == nil && has == "" {
		has, err = b.writeMode(ctx, required)
	}
	if err == nil && has != required {
		err = &ModeError{has}
	}
	return err
}

// writeMode writes the mode unless there is one, and returns the one that is there.
func (b *Bucket) writeMode(ctx context.Context, mode string) (string, error) {
	err := b.putMode(ctx, mode, aws.String("*"))
	if lacksConditions(err) {
		err = b.putMode(ctx, mode, nil)
	}
	if err != nil && !hasStatus(err, http.StatusPreconditionFailed, http.StatusConflict) {
		return "", fmt.Errorf("put %s: %w", b.prefix+modeObject, b.explain(err))
	}
	has, err := b.Mode(ctx)
	if err == nil && has == "" {
		err = fmt.Errorf("get %s: it was written, and the store does not return it: try again", b.prefix+modeObject)
	}
	return has, err
}

// lacksConditions reports whether a store may have refused a write because it does not
// support conditions. OSS documents none in its S3 API.
func lacksConditions(err error) bool {
	return hasStatus(err, http.StatusNotImplemented, http.StatusBadRequest, http.StatusMethodNotAllowed)
}

// hasStatus reports whether the store answered with one of the HTTP statuses.
func hasStatus(err error, statuses ...int) bool {
	var answer *awshttp.ResponseError
	return errors.As(err, &answer) && slices.Contains(statuses, answer.HTTPStatusCode())
}

func (b *Bucket) putMode(ctx context.Context, mode string, ifNoneMatch *string) error {
	text, err := json.Marshal(modeContent{mode})
	if err != nil {
		return err
	}
	text = append(text, '\n')
	sum := md5.Sum(text) //nolint:gosec // see the import
	_, err = b.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: aws.String(b.prefix + modeObject), Body: bytes.NewReader(text), ContentLength: aws.Int64(int64(len(text))),
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:])), ContentType: aws.String("application/json"), IfNoneMatch: ifNoneMatch,
	})
	return err
}
