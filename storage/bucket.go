package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// ErrNotExist is returned (wrapped) for a key that the bucket does not hold.
var ErrNotExist = errors.New("object does not exist")

// HTTPClient sends requests; *http.Client is one.
type HTTPClient interface {
	Do(*http.Request) (*http.Response, error)
}

// Bucket is one bucket of an S3-compatible store. It is safe for concurrent
// use. Keys are whole keys, prefix included, as [Bucket.ImageKey] returns them
// and sidecars record them.
type Bucket struct {
	name      string
	prefix    string // "" or ends in "/"
	endpoint  string // for error texts
	publicURL string // "" or without a trailing slash
	template  template
	client    *s3.Client
	presign   *s3.PresignClient
	log       *slog.Logger
}

// New checks cfg and returns the bucket it names. It dials nothing: whether the
// bucket answers is found out by [Bucket.Check]. An error names the field, its
// value (unless secret) and the remedy.
func New(cfg Config) (*Bucket, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	tmpl, err := parseTemplate(cfg.KeyTemplate)
	if err == nil {
		err = tmpl.checkLength(cfg.Prefix)
	}
	if err != nil {
		return nil, fmt.Errorf("storage: KeyTemplate %q: %w", cfg.KeyTemplate, err)
	}
	b := &Bucket{
		name:      cfg.Bucket,
		prefix:    cfg.Prefix,
		endpoint:  cfg.Endpoint,
		publicURL: cfg.PublicURL,
		template:  tmpl,
		client:    s3.New(cfg.options(cfg.Endpoint)),
		presign:   s3.NewPresignClient(s3.New(cfg.options(cfg.PublicEndpoint))),
		log:       cfg.Logger,
	}
	if b.endpoint == "" {
		b.endpoint = "AWS"
	}
	return b, nil
}

// options are the client settings under which an upload is accepted by AWS,
// Aliyun OSS, R2, MinIO, Ceph and versitygw alike: no trailing checksums (OSS
// and Ceph refuse them, others store the framing as content) and no Expect
// header (the SDK sends it without waiting for the answer).
func (c Config) options(endpoint string) s3.Options {
	o := s3.Options{
		Region:                       c.Region,
		UsePathStyle:                 usePathStyle(c.Addressing, endpoint),
		Credentials:                  credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		HTTPClient:                   c.HTTPClient,
		RequestChecksumCalculation:   aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:   aws.ResponseChecksumValidationWhenRequired,
		ContinueHeaderThresholdBytes: -1,
		RetryMode:                    aws.RetryModeStandard,
		RetryMaxAttempts:             4,

		DisableLogOutputChecksumValidationSkipped: true,
	}
	if endpoint != "" {
		o.BaseEndpoint = aws.String(endpoint)
	}
	return o
}

// defaultHTTPClient has room for many copies at once, and gives up on a server
// that has taken the whole request and says nothing for a minute. There is no
// read timeout: it would run while the body is still being written.
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
	SHA256      string // hex, as recorded by the upload; "" if not one of ours
	ContentType string
	ETag        string // without quotes
	ModifiedAt  time.Time
	Metadata    map[string]string // user metadata; names in lower case
}

// Check asks the bucket for a key that does not exist and returns nil if that
// is what it says: it then exists, knows the credentials and lets them read.
// Otherwise the error tells what to do about it. It writes nothing.
func (b *Bucket) Check(ctx context.Context) error {
	body, _, err := b.Get(ctx, b.prefix+sidecarFolder+".check")
	if err == nil {
		return body.Close()
	}
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return fmt.Errorf("check bucket %s: %w", b.name, err)
}

// Head returns what the store knows about key, or [ErrNotExist]. A HEAD has no
// body to say more, so that a missing bucket looks like a missing object:
// [Bucket.Check] and [Bucket.Get] tell them apart.
func (b *Bucket) Head(ctx context.Context, key string) (Info, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return Info{}, fmt.Errorf("head %s: %w", key, b.explain(err))
	}
	return info(key, out.ContentLength, out.ContentType, out.ETag, out.LastModified, out.Metadata), nil
}

// Get opens an object, or returns [ErrNotExist]. The caller closes the reader.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, Info, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return nil, Info{}, fmt.Errorf("get %s: %w", key, b.explain(err))
	}
	return out.Body, info(key, out.ContentLength, out.ContentType, out.ETag, out.LastModified, out.Metadata), nil
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

// explain turns the error of a call into ErrNotExist, or adds a remedy where
// one is known. Codes are those of the S3 error list; OSS, MinIO and Ceph use
// the same.
func (b *Bucket) explain(err error) error {
	var notFound *types.NotFound // a HEAD's 404, which names no code
	var apiErr smithy.APIError
	if errors.As(err, &notFound) {
		return ErrNotExist
	}
	if !errors.As(err, &apiErr) {
		return err
	}
	var remedy string
	switch apiErr.ErrorCode() {
	case "NoSuchKey":
		return ErrNotExist
	case "NoSuchBucket":
		remedy = fmt.Sprintf("bucket %q does not exist at %s: create it, or correct the bucket's name or the endpoint", b.name, b.endpoint)
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "MovedPermanently", "IllegalLocationConstraintException":
		remedy = fmt.Sprintf("bucket %q lies in another region: correct the region", b.name)
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the latter is versitygw's
		remedy = "the store does not know the access key ID: correct it, or the endpoint"
	case "SignatureDoesNotMatch":
		remedy = "the secret access key does not fit the access key ID: correct it, and check the region"
	case "ExpiredToken", "InvalidToken":
		remedy = "the session token is expired or wrong: get new credentials"
	case "RequestTimeTooSkewed":
		remedy = "this machine's clock is wrong by more than 15 minutes: set it"
	case "AccessDenied", "Forbidden":
		remedy = fmt.Sprintf("the credentials may not do this in bucket %q: they need to read, write and list it", b.name)
	case "SecondLevelDomainForbidden":
		remedy = `the store refuses path-style addressing: set it to "virtual"`
	default:
		return err
	}
	return fmt.Errorf("%s: %w", remedy, err)
}
