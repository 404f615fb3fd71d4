package storage

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// ErrNotExist is returned (wrapped) for a key that the bucket does not contain.
var ErrNotExist = errors.New("object does not exist")

// HTTPClient sends requests. *http.Client implements it.
type HTTPClient interface {
	Do(*http.Request) (*http.Response, error)
}

// Bucket is one bucket of an S3-compatible store. It is safe for concurrent
// use. Keys are whole keys, prefix included, as [Bucket.ImageKey] returns them
// and sidecars record them.
type Bucket struct {
	name      string
	prefix    string // "" or ends in "/"
	publicURL string // "" or without a trailing slash
	template  template
	client    *s3.Client
	presign   *s3.PresignClient
	log       *slog.Logger
	mode      prefixMode

	// For error messages.
	endpoint, region, accessKeyID string
	aws, virtual                  bool
}

// New checks cfg and returns a client for the bucket. It opens no connection:
// [Bucket.Check] tests whether the bucket answers. An error names the field, its
// value (unless secret) and the remedy.
func New(cfg Config) (*Bucket, error) {
	cfg, refused := cfg.withDefaults()
	if len(refused) > 0 {
		return nil, fmt.Errorf("storage: %w", refused)
	}
	b := &Bucket{
		name:      cfg.Bucket,
		prefix:    cfg.Prefix,
		publicURL: cfg.PublicURL,
		template:  template(cfg.KeyTemplate),
		client:    s3.New(cfg.options(cfg.Endpoint)),
		presign:   s3.NewPresignClient(s3.New(cfg.options(cfg.PublicEndpoint))),
		log:       cfg.Logger,
		mode:      prefixMode{asking: make(chan struct{}, 1)},

		endpoint: cfg.Endpoint, region: cfg.Region, accessKeyID: cfg.AccessKeyID,
		aws: isAWS(cfg.Endpoint), virtual: isVirtual(cfg.Addressing, cfg.Endpoint),
	}
	if b.endpoint == "" {
		b.endpoint = "AWS"
	}
	return b, nil
}

// options are the client settings under which an upload is accepted by AWS,
// Aliyun OSS, R2, MinIO, Ceph and versitygw alike: no trailing checksums (OSS
// and Ceph refuse them, others store the framing as content) and no Expect
// header (the SDK sends it without waiting for the response).
func (c Config) options(endpoint string) s3.Options {
	o := s3.Options{
		Region:                       c.Region,
		UsePathStyle:                 usePathStyle(c.Addressing, endpoint),
		Credentials:                  credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		HTTPClient:                   c.HTTPClient,
		RequestChecksumCalculation:   aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:   aws.ResponseChecksumValidationWhenRequired,
		ContinueHeaderThresholdBytes: -1,
		Retryer:                      retry.NewStandard(retryPolicy),

		DisableLogOutputChecksumValidationSkipped: true,
	}
	if endpoint != "" {
		o.BaseEndpoint = aws.String(endpoint)
	}
	return o
}

// retryPolicy is the SDK's standard one with four attempts. It does not retry
// after a TLS error, which no repetition can fix.
func retryPolicy(o *retry.StandardOptions) {
	o.MaxAttempts = 4
	o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
		if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) || errors.Is(err, http.ErrSchemeMismatch) {
			return aws.FalseTernary
		}
		return aws.UnknownTernary
	})}, o.Retryables...)
}

// observedClient tells how each request went.
type observedClient struct {
	HTTPClient

	observe func(method string, status int, took time.Duration)
}

// Do sends a request.
func (c observedClient) Do(r *http.Request) (*http.Response, error) {
	begun, status := time.Now(), 0
	answer, err := c.HTTPClient.Do(r)
	if err == nil {
		status = answer.StatusCode
	}
	c.observe(r.Method, status, time.Since(begun))
	return answer, err
}

// defaultHTTPClient allows many parallel uploads, and times out when a server has
// received the whole request and sends no header for a minute. It has no read
// timeout, which would run while the body is still being written.
func defaultHTTPClient() HTTPClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = 64
		t.ResponseHeaderTimeout = time.Minute
	})
}

// Info describes an object.
type Info struct {
	Key         string
	Bytes       int64
	SHA256      string // hex, as recorded by the upload; "" if this package did not upload it
	ContentType string
	ETag        string // without quotes
	ModifiedAt  time.Time
	Metadata    map[string]string // user metadata; names in lower case
}

// Name returns the name of the bucket.
func (b *Bucket) Name() string { return b.name }

// Check requests a key that does not exist and returns nil if the bucket says so:
// the bucket then exists, accepts the credentials and allows them to read.
// Otherwise the error says in one sentence what is wrong and which environment
// variable to change, such as AWS_REGION. Check writes nothing. It makes at most
// two attempts, because it runs while an operator waits.
func (b *Bucket) Check(ctx context.Context) error {
	key := b.prefix + sidecarFolder + ".check-" + rand.Text()
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, func(o *s3.Options) { o.RetryMaxAttempts = 2 })
	if err == nil {
		_ = out.Body.Close() // not read
		return fmt.Errorf("check the bucket: %s returns an object for a random key, as no S3 store does: correct AWS_ENDPOINT_URL_S3", b.endpoint)
	}
	if err = b.explain(err); errors.Is(err, ErrNotExist) {
		return nil
	}
	return fmt.Errorf("check the bucket: %w", err)
}

// Head returns the object's metadata, or [ErrNotExist]. The response to a HEAD
// has no body, so a missing bucket looks like a missing object. [Bucket.Check]
// and [Bucket.Get] distinguish the two.
func (b *Bucket) Head(ctx context.Context, key string) (Info, error) {
	if err := b.checkMode(ctx); err != nil {
		return Info{}, err
	}
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return Info{}, fmt.Errorf("head %s: %w", key, b.explain(err))
	}
	return info(key, out.ContentLength, out.ContentType, out.ETag, out.LastModified, out.Metadata), nil
}

// Get opens an object, or returns [ErrNotExist]. The caller must close the reader.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, Info, error) {
	if err := b.checkMode(ctx); err != nil {
		return nil, Info{}, err
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return nil, Info{}, fmt.Errorf("get %s: %w", key, b.explain(err))
	}
	return out.Body, info(key, out.ContentLength, out.ContentType, out.ETag, out.LastModified, out.Metadata), nil
}

// GetRange opens the bytes first to last of an object, both included, or returns
// [ErrNotExist]. last may be beyond the end. The caller must close the reader.
func (b *Bucket) GetRange(ctx context.Context, key string, first, last int64) (io.ReadCloser, error) {
	if err := b.checkMode(ctx); err != nil {
		return nil, err
	}
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", first, last))})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, b.explain(err))
	}
	return out.Body, nil
}

func info(key string, bytes *int64, contentType, etag *string, modifiedAt *time.Time, meta map[string]string) Info {
	decoded := make(map[string]string, len(meta))
	for name, value := range meta {
		decoded[strings.ToLower(name)] = decodeMeta(value)
	}
	return Info{
		Key:         key,
		Bytes:       aws.ToInt64(bytes),
		SHA256:      decoded[metaSHA256],
		ContentType: aws.ToString(contentType),
		ETag:        strings.Trim(aws.ToString(etag), `"`),
		ModifiedAt:  aws.ToTime(modifiedAt),
		Metadata:    decoded,
	}
}
