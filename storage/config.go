package storage

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Addressing styles: where the bucket's name stands in a URL.
const (
	AddressingPath    = "path"    // https://endpoint/bucket/key
	AddressingVirtual = "virtual" // https://bucket.endpoint/key
)

// DefaultKeyTemplate is the key of an image unless Config says otherwise.
const DefaultKeyTemplate = "{job_path}-{n}{ext}"

// Config says where objects go. Bucket, AccessKeyID and SecretAccessKey are
// required.
type Config struct {
	// Bucket is 3 to 63 lower-case letters, digits and hyphens. Names with
	// dots are refused: the SDK silently uses path-style addressing for them,
	// which OSS refuses, and wildcard TLS certificates do not cover them.
	Bucket string
	// Prefix is a folder inside the bucket that everything goes under; ""
	// is the bucket's root. Slashes around it make no difference.
	Prefix string

	// Region is the region in request signatures. It is required on AWS and
	// OSS. Elsewhere "" means us-east-1, which other stores accept.
	Region string
	// Endpoint is the store's base URL, without the bucket; "" is AWS.
	Endpoint string
	// AccessKeyID, SecretAccessKey and SessionToken are the credentials. The
	// token is "" unless they are temporary.
	AccessKeyID     string
	SecretAccessKey string `json:"-"`
	SessionToken    string `json:"-"`
	// Addressing is AddressingPath or AddressingVirtual. "" means virtual for
	// AWS and for *.aliyuncs.com, which refuses path style, and path elsewhere.
	Addressing string

	// PublicURL is the base of permanent links: PublicURL/KEY must be readable
	// by anybody. "" means presigned links.
	PublicURL string
	// PublicEndpoint is the endpoint in presigned links, for stores that
	// readers reach under another host name than this process. "" means
	// Endpoint.
	PublicEndpoint string

	// KeyTemplate is the key of an image below Prefix. "" means
	// DefaultKeyTemplate. It must contain {job_path} or {job_id}, and {n}, and may
	// contain {batch} {id} {model} {date} {ext} {source_name}. {job_path} is the
	// job's ID with its last dot as a slash, so that the images of a batch are in one
	// folder; that of an ID without a dot is single/ID. {job_path} or {job_id} must
	// begin a path segment and may be followed there only by text, {n} and {ext},
	// and {n} must stand between text, so that no two images get the same key.
	KeyTemplate string

	// HTTPClient sends the requests. nil means one of the SDK's, which waits
	// one minute for a response header. It trusts the system's certificate
	// authorities; on Linux the environment variable SSL_CERT_FILE replaces
	// them by a PEM file (crypto/x509). AWS_CA_BUNDLE is not read.
	HTTPClient HTTPClient
	// Observe is called after each request, with 0 as the status if no answer came. nil means
	// that nobody observes.
	Observe func(method string, status int, took time.Duration) `json:"-"`
	// Logger receives warnings. nil discards them.
	Logger *slog.Logger
}

// String omits the secrets.
func (c Config) String() string {
	return fmt.Sprintf("bucket %q, prefix %q, region %q, endpoint %q, access key ID %q, secret **redacted**",
		c.Bucket, c.Prefix, c.Region, c.Endpoint, c.AccessKeyID)
}

// GoString returns String, so that %#v shows no secrets either.
func (c Config) GoString() string { return c.String() }

var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)

// FieldError is a field of a [Config] that cannot be used.
type FieldError struct {
	Field   string // its name, such as Bucket
	Problem string // its value, unless secret, and the remedy
}

// Error returns the field's name and the problem.
func (e FieldError) Error() string { return e.Field + " " + e.Problem }

// FieldErrors are all fields of a [Config] that cannot be used.
type FieldErrors []FieldError

// Error has one line per field.
func (e FieldErrors) Error() string {
	lines := make([]string, len(e))
	for i, field := range e {
		lines[i] = field.Error()
	}
	return strings.Join(lines, "\n")
}

// Validate returns every field that [New] refuses, in a stable order.
func (c Config) Validate() FieldErrors {
	_, refused := c.withDefaults()
	return refused
}

// withDefaults returns c completed and normalized, and the fields that are wrong.
func (c Config) withDefaults() (_ Config, refused FieldErrors) {
	bad := func(field, format string, args ...any) {
		refused = append(refused, FieldError{field, fmt.Sprintf(format, args...)})
	}

	if err := checkBucketName(c.Bucket); err != nil {
		bad("Bucket", "%v", err)
	}
	if c.Prefix = strings.Trim(c.Prefix, "/"); c.Prefix != "" {
		if path.Clean(c.Prefix) != c.Prefix || !cleanText(c.Prefix) {
			bad("Prefix", "%q: must be a plain folder such as images/2026", c.Prefix)
		}
		c.Prefix += "/"
	}
	for _, f := range []struct {
		name     string
		value    *string
		endpoint bool
	}{{"Endpoint", &c.Endpoint, true}, {"PublicEndpoint", &c.PublicEndpoint, true}, {"PublicURL", &c.PublicURL, false}} {
		*f.value = strings.TrimRight(*f.value, "/")
		if err := checkURL(*f.value, f.endpoint, c.Bucket); err != nil {
			bad(f.name, "%v", err)
		}
	}
	c.PublicEndpoint = cmp.Or(c.PublicEndpoint, c.Endpoint)
	if c.Region == "" {
		if isAWS(c.Endpoint) || isAliyun(c.Endpoint) {
			bad("Region", "is empty: AWS and OSS need the bucket's region, such as us-east-1 or cn-beijing")
		}
		c.Region = "us-east-1"
	}
	for _, f := range []struct{ name, value string }{{"AccessKeyID", c.AccessKeyID}, {"SecretAccessKey", c.SecretAccessKey}} {
		if f.value == "" {
			bad(f.name, "is empty: set it")
		} else if strings.TrimSpace(f.value) != f.value {
			bad(f.name, "has white space around it: remove that")
		}
	}
	switch c.Addressing {
	case "", AddressingPath, AddressingVirtual:
	default:
		bad("Addressing", "%q: must be %q, %q or empty", c.Addressing, AddressingPath, AddressingVirtual)
	}
	c.KeyTemplate = cmp.Or(c.KeyTemplate, DefaultKeyTemplate)
	if err := checkTemplate(c.KeyTemplate, c.Prefix); err != nil {
		bad("KeyTemplate", "%q: %v", c.KeyTemplate, err)
	}
	if c.HTTPClient == nil {
		c.HTTPClient = defaultHTTPClient()
	}
	if c.Observe != nil {
		c.HTTPClient = observedClient{c.HTTPClient, c.Observe}
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c, refused
}

func checkBucketName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty: name the bucket")
	case strings.Contains(name, "."):
		return fmt.Errorf("%q has a dot: use a bucket without, dotted names work on few stores", name)
	case !bucketPattern.MatchString(name):
		return fmt.Errorf("%q: must be 3 to 63 lower-case letters, digits and hyphens", name)
	}
	return nil
}

// checkURL accepts "" and http(s) URLs. An endpoint must have no path, and its
// host must not contain the bucket's name, which the SDK adds itself.
func checkURL(s string, endpoint bool, bucket string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	// The value is not shown: it may hold a password.
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return errors.New("must be a URL such as https://s3.example.com")
	case u.User != nil:
		return errors.New("must not hold credentials: they have their own settings")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("must have neither query nor fragment")
	case endpoint && u.Path != "":
		return fmt.Errorf("%q has a path: give scheme and host alone, the bucket has its own setting", s)
	case endpoint && bucket != "" && strings.HasPrefix(u.Hostname(), bucket+"."):
		return fmt.Errorf("%q begins with the bucket's name: leave that out, it is added automatically", s)
	}
	return nil
}

func usePathStyle(addressing, endpoint string) bool {
	if addressing != "" {
		return addressing == AddressingPath
	}
	return !isAWS(endpoint) && !isAliyun(endpoint)
}

func isAWS(endpoint string) bool {
	return endpoint == "" || hasDomain(endpoint, "amazonaws.com") || hasDomain(endpoint, "amazonaws.com.cn")
}

func isAliyun(endpoint string) bool { return hasDomain(endpoint, aliyunDomain) }

// hasDomain reports whether rawURL's host is in domain.
func hasDomain(rawURL, domain string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && inDomain(u.Hostname(), domain)
}

func inDomain(host, domain string) bool {
	return strings.HasSuffix(strings.ToLower(host), "."+domain)
}

// cleanText reports whether s is UTF-8 without control characters or backslashes.
func cleanText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' })
}
