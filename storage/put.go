package storage

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // a checksum: every store verifies Content-MD5
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
)

// metaSHA256 is the user metadata (x-amz-meta-sha256) with the content's digest.
const metaSHA256 = "sha256"

// putTimeout and putBytesPerSecond limit an upload with all its retries, in case
// the server stops reading: the client has no other timeout for that. 32 KiB/s is
// far below the speed of any connection in use.
const (
	putTimeout        = 2 * time.Minute
	putBytesPerSecond = 32 << 10
)

// digests are the length and the digests of a content, known before it is sent.
type digests struct {
	bytes  int64
	md5    [md5.Size]byte
	sha256 [sha256.Size]byte
}

func (d digests) sha256Hex() string { return hex.EncodeToString(d.sha256[:]) }

// PutImage stores a verified file under key, by one PutObject with its MD5 and its
// signed SHA-256, and checks the stored object. meta becomes user metadata: names
// are letters, digits and hyphens, values any text (encoded by RFC 2047 if it is not
// ASCII). "sha256" is added.
//
// After an error it is unknown whether the object exists. Putting it again is safe.
func (b *Bucket) PutImage(ctx context.Context, key string, img *File, meta map[string]string) error {
	if img == nil || img.digests.bytes == 0 {
		return fmt.Errorf("put %s: not a verified file: get it from a spool", key)
	}
	f, err := img.open()
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	defer f.Close() //nolint:errcheck // read only
	return b.put(ctx, key, f, img.digests, img.ContentType, meta)
}

// Quarantine stores the file at path, verified or not, for an operator under
// [Bucket.HeldKey], and returns the key. If the object exists with the same content,
// nothing is sent. If it exists with other content, it stays, and the new key ends
// in the first digits of the file's SHA-256.
func (b *Bucket) Quarantine(ctx context.Context, taskID, name, path string) (key string, err error) {
	f, d, err := openWithDigests(path)
	if err != nil {
		return "", fmt.Errorf("quarantine %s of task %s: %w", name, taskID, err)
	}
	defer f.Close() //nolint:errcheck // read only
	key = b.HeldKey(taskID, name)
	switch have, err := b.Head(ctx, key); {
	case err == nil && !d.match(have):
		key = b.HeldKey(taskID, name+"-"+d.sha256Hex()[:8])
	case err != nil && !errors.Is(err, ErrNotExist):
		return "", err
	}
	return key, b.putFileIfMissing(ctx, key, f, d)
}

// openWithDigests opens a local file and computes its digests.
func openWithDigests(path string) (*os.File, digests, error) {
	f, err := os.Open(path) //nolint:gosec // the caller's own file
	if err != nil {
		return nil, digests{}, err
	}
	d, err := computeDigests(f)
	if err != nil {
		_ = f.Close() // read only
		return nil, digests{}, err
	}
	return f, d, nil
}

// match reports whether a stored object has these digests.
func (d digests) match(have Info) bool { return have.Bytes == d.bytes && have.SHA256 == d.sha256Hex() }

// putFileIfMissing stores a file unless the bucket has it with the same content.
func (b *Bucket) putFileIfMissing(ctx context.Context, key string, f *os.File, d digests) error {
	switch have, err := b.Head(ctx, key); {
	case err == nil && d.match(have):
		return nil
	case err != nil && !errors.Is(err, ErrNotExist):
		return err
	}
	var head [512]byte // as much as DetectContentType uses
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return b.put(ctx, key, f, d, http.DetectContentType(head[:n]), nil)
}

// computeDigests reads r to its end.
func computeDigests(r io.Reader) (digests, error) {
	m, s := md5.New(), sha256.New() //nolint:gosec // see the import
	n, err := io.Copy(io.MultiWriter(m, s), r)
	d := digests{bytes: n}
	m.Sum(d.md5[:0])
	s.Sum(d.sha256[:0])
	return d, err
}

// put sends body, whose digests are d, and verifies the stored object.
func (b *Bucket) put(ctx context.Context, key string, body io.ReadSeeker, d digests, contentType string, meta map[string]string) error {
	if err := b.checkMode(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, putTimeout+time.Duration(d.bytes/putBytesPerSecond)*time.Second,
		fmt.Errorf("put %s: the store stopped reading", key))
	defer cancel()

	headers := make(map[string]string, len(meta)+1)
	for name, value := range meta {
		headers[strings.ToLower(name)] = mime.BEncoding.Encode("utf-8", value)
	}
	maps.Copy(headers, map[string]string{metaSHA256: d.sha256Hex()})
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	out, err := b.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket:        &b.name,
		Key:           &key,
		Body:          body,
		ContentLength: &d.bytes,
		ContentMD5:    aws.String(base64.StdEncoding.EncodeToString(d.md5[:])),
		ContentType:   &contentType,
		Metadata:      headers,
	}, s3.WithAPIOptions(signedPayload(d.sha256Hex())))
	if err != nil {
		return fmt.Errorf("put %s: %w", key, b.explain(cause(ctx, err)))
	}
	return b.verify(ctx, key, d, strings.Trim(aws.ToString(out.ETag), `"`))
}

// signedPayload signs the payload with a hash that is already computed. The SDK
// would omit the hash over https, and would read the body for it over http.
func signedPayload(sha256Hex string) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		return stack.Finalize.Add(middleware.FinalizeMiddlewareFunc("KnownPayloadHash",
			func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
				return next.HandleFinalize(v4.SetPayloadHash(ctx, sha256Hex), in)
			}), middleware.Before)
	}
}

// verify compares the stored object with d. The ETag of a plain upload is its MD5.
// With encryption it is something else, so after a difference the object is read
// back and compared.
func (b *Bucket) verify(ctx context.Context, key string, d digests, etag string) error {
	got, err := b.Head(ctx, key)
	if err != nil {
		return fmt.Errorf("verify %s: %w", key, err)
	}
	if got.Bytes != d.bytes || got.SHA256 != d.sha256Hex() {
		return fmt.Errorf("verify %s: the store has %d bytes with sha256 %q, sent were %d with %q: put it again", key, got.Bytes, got.SHA256, d.bytes, d.sha256Hex())
	}
	if etag == hex.EncodeToString(d.md5[:]) {
		return nil
	}
	b.log.WarnContext(ctx, "etag differs from md5, reading the object back", "key", key, "etag", etag)
	body, _, err := b.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("verify %s: %w", key, err)
	}
	defer body.Close() //nolint:errcheck // read only
	back, err := computeDigests(body)
	if err != nil {
		return fmt.Errorf("verify %s: %w", key, cause(ctx, err))
	}
	if back != d {
		return fmt.Errorf("verify %s: the stored bytes differ from those sent: put it again", key)
	}
	return nil
}

// cause returns ctx's cause if ctx has ended, and err otherwise.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// PutPage stores a page in HTML, verified like an image, and replaces an existing object. Keys
// of images never end in .html.
func (b *Bucket) PutPage(ctx context.Context, key string, html []byte) error {
	return b.putBytes(ctx, key, html, "text/html; charset=utf-8", nil)
}

// putBytes stores a small object.
func (b *Bucket) putBytes(ctx context.Context, key string, content []byte, contentType string, meta map[string]string) error {
	d := digests{bytes: int64(len(content)), md5: md5.Sum(content), sha256: sha256.Sum256(content)} //nolint:gosec // see the import
	return b.put(ctx, key, bytes.NewReader(content), d, contentType, meta)
}

func decodeMeta(s string) string {
	if d, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		return d
	}
	return s
}
