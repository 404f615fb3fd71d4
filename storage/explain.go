package storage

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// explainedError is a store's error in one sentence for an operator: what is wrong,
// and which setting to change. It wraps the SDK's error for errors.Is and errors.As,
// and does not show its long text.
type explainedError struct {
	message string
	err     error
}

func (e *explainedError) Error() string { return e.message }
func (e *explainedError) Unwrap() error { return e.err }

// explain returns ErrNotExist for a missing object, and an explainedError where a
// remedy is known. It returns any other error unchanged.
func (b *Bucket) explain(err error) error {
	var notFound *types.NotFound // a HEAD's 404, which has no code
	var noKey *types.NoSuchKey
	if errors.As(err, &notFound) || errors.As(err, &noKey) {
		return ErrNotExist
	}
	var answer *awshttp.ResponseError
	var refusal smithy.APIError
	text := ""
	switch {
	case !errors.As(err, &answer) || answer.HTTPStatusCode() == 0:
		text = b.explainNoAnswer(err)
	case !errors.As(err, &refusal) || hasNoCode(refusal, answer.HTTPStatusCode()):
		text = b.explainNoCode(answer.HTTPResponse().Response)
	default:
		if text = b.explainRefusal(refusal, answer.HTTPResponse().Header); text != "" {
			text += fmt.Sprintf(" (%s, HTTP status %d, request ID %q)", refusal.ErrorCode(), answer.HTTPStatusCode(), answer.ServiceRequestID())
		}
	}
	if text == "" {
		return err
	}
	return &explainedError{text, err}
}

// hasNoCode reports whether the response had no error code. The SDK then derives one
// from the status.
func hasNoCode(refusal smithy.APIError, status int) bool {
	code := refusal.ErrorCode()
	return code == "" || code == "UnknownError" || code == strings.ReplaceAll(http.StatusText(status), " ", "")
}

// explainRefusal explains an error code, or returns "" if no setting can fix it. The
// codes are those of the S3 error list, which OSS, MinIO and Ceph use too; others are
// marked. header is the response's.
func (b *Bucket) explainRefusal(refusal smithy.APIError, header http.Header) string {
	switch refusal.ErrorCode() {
	case "NoSuchBucket", "InvalidBucketName":
		text := fmt.Sprintf("bucket %q does not exist at %s: create it, or correct DANQING_S3_BUCKET or AWS_ENDPOINT_URL_S3", b.name, b.endpoint)
		if b.virtual { // a store without a configured domain takes the key's first folder for the bucket
			text += ", or set DANQING_S3_ADDRESSING=path"
		}
		return text
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect", "IllegalLocationConstraintException":
		return b.explainRegion(refusal.ErrorCode(), refusal.ErrorMessage(), header)
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the latter is versitygw's
		return fmt.Sprintf("%s has no access key ID %q: correct AWS_ACCESS_KEY_ID or AWS_ENDPOINT_URL_S3", b.endpoint, b.accessKeyID)
	case "SignatureDoesNotMatch":
		return fmt.Sprintf("the secret access key does not match the access key ID %q: correct AWS_SECRET_ACCESS_KEY, or AWS_REGION, which is %q", b.accessKeyID, b.region)
	case "ExpiredToken", "InvalidToken", "SecurityTokenExpired", "InvalidSecurityToken": // the latter two are OSS's
		return "the session token has expired or was issued by another store: get new credentials and set all of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (empty if they are permanent)"
	case "RequestTimeTooSkewed":
		return "this machine's clock differs by more than 15 minutes from the store's: set the clock"
	case "SecondLevelDomainForbidden": // OSS's
		return "the store refuses path-style addressing: set DANQING_S3_ADDRESSING=virtual"
	case "UserDisable": // OSS's
		return "the store has closed its account, usually for an unpaid bill: check the account, or correct AWS_ACCESS_KEY_ID"
	case "AccessDenied":
		if strings.Contains(refusal.ErrorMessage(), "must be addressed using the specified endpoint") { // OSS's words for a redirect
			return b.explainRegion(refusal.ErrorCode(), refusal.ErrorMessage(), header)
		}
		return fmt.Sprintf("the access key ID %q may not do this in bucket %q: let it read, write and list there, or correct DANQING_S3_BUCKET or AWS_ACCESS_KEY_ID", b.accessKeyID, b.name)
	}
	return ""
}

// regionHeader is the response header with the bucket's region on AWS.
const regionHeader = "X-Amz-Bucket-Region"

// expectedRegion finds the region in the message of AuthorizationHeaderMalformed:
// the region 'a' is wrong; expecting 'b'. versitygw uses other quotes.
var expectedRegion = regexp.MustCompile(`expecting ['"]([a-z0-9-]{1,50})['"]`)

// explainRegion names the right region, if the response contains it.
func (b *Bucket) explainRegion(code, message string, header http.Header) string {
	right := header.Get(regionHeader)
	if m := expectedRegion.FindStringSubmatch(message); right == "" && m != nil {
		right = m[1]
	}
	endpoint := ""
	if !b.aws {
		endpoint = ", and AWS_ENDPOINT_URL_S3 to that region's address"
	}
	if right == "" || right == b.region {
		return fmt.Sprintf("bucket %q is not served at %s in region %q: set AWS_REGION to the bucket's region%s", b.name, b.endpoint, b.region, endpoint)
	}
	if code == "AuthorizationHeaderMalformed" {
		endpoint = "" // the address was right
	}
	return fmt.Sprintf("bucket %q is in region %q, not in %q: set AWS_REGION=%s%s", b.name, right, b.region, right, endpoint)
}

// explainNoCode explains a response without an error code: to a HEAD, which has no
// body, or from a server that is not an S3 store and sends, for example, an HTML page.
func (b *Bucket) explainNoCode(answer *http.Response) string {
	head := answer.Request != nil && answer.Request.Method == http.MethodHead
	if right := answer.Header.Get(regionHeader); right != "" && right != b.region {
		return b.explainRegion("", "", answer.Header)
	}
	if head && (answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusBadRequest) {
		return fmt.Sprintf("%s refuses the request without a reason: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION, and that the credentials may read, write and list bucket %q", b.endpoint, b.name)
	}
	if head {
		return ""
	}
	kind := cmp.Or(answer.Header.Get("Content-Type"), "nothing")
	text := fmt.Sprintf("%s answers with HTTP status %d and %.60q, as no S3 store does: ", b.endpoint, answer.StatusCode, kind)
	switch {
	case answer.StatusCode >= http.StatusInternalServerError:
		text += "check the store behind it, or correct AWS_ENDPOINT_URL_S3"
	case strings.HasPrefix(b.endpoint, "http:"):
		text += "correct AWS_ENDPOINT_URL_S3, to https:// if it speaks TLS"
	default:
		text += "correct AWS_ENDPOINT_URL_S3"
	}
	return text
}

// explainNoAnswer explains why there was no response, or returns "" if no setting is
// at fault.
func (b *Bucket) explainNoAnswer(err error) string {
	var proxy *net.OpError
	if errors.As(err, &proxy) && proxy.Op == "proxyconnect" {
		return "the proxy that the environment names does not answer: correct HTTPS_PROXY or HTTP_PROXY, or exempt the store by NO_PROXY"
	}
	if text := b.explainTLS(err); text != "" {
		return text
	}
	addressing := ""
	if b.virtual {
		addressing = ", or set DANQING_S3_ADDRESSING=path if the store has no host for each bucket"
	}
	var unknown *net.DNSError
	var dial *net.OpError
	switch {
	case errors.As(err, &unknown) && unknown.IsNotFound && b.aws:
		return fmt.Sprintf("there is no host %q: correct AWS_REGION, which is %q", unknown.Name, b.region)
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return fmt.Sprintf("there is no host %q: correct AWS_ENDPOINT_URL_S3%s", unknown.Name, addressing)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s: start the store, or correct AWS_ENDPOINT_URL_S3", b.endpoint)
	case errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout():
		return fmt.Sprintf("%s does not answer: check the network between, or correct AWS_ENDPOINT_URL_S3", b.endpoint)
	case strings.HasPrefix(b.endpoint, "http:") && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)): // so do Ceph and versitygw
		return fmt.Sprintf("%s ends the connection without an answer: if it speaks TLS, begin AWS_ENDPOINT_URL_S3 with https://, otherwise check the store", b.endpoint)
	}
	return ""
}

// explainTLS explains why the TLS handshake failed.
func (b *Bucket) explainTLS(err error) string {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("%s does not speak TLS: begin AWS_ENDPOINT_URL_S3 with http://", b.endpoint)
	case strings.Contains(err.Error(), `malformed HTTP response "\x15`): // a TLS alert; net/http has no type for it
		return fmt.Sprintf("%s speaks TLS: begin AWS_ENDPOINT_URL_S3 with https://", b.endpoint)
	case errors.As(err, &authority):
		return fmt.Sprintf("the certificate of %s is signed by an authority that this machine does not trust: set SSL_CERT_FILE to a PEM file with its certificate (on Linux), or add that to the system's", b.endpoint)
	case errors.As(err, &host) && b.virtual:
		return fmt.Sprintf("the certificate of %s is not for host %q: set DANQING_S3_ADDRESSING=path, or get a certificate for each bucket's host", b.endpoint, host.Host)
	case errors.As(err, &host):
		return fmt.Sprintf("the certificate of %s is not for host %q: set AWS_ENDPOINT_URL_S3 to a name in the certificate", b.endpoint, host.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the certificate of %s has expired, or this machine's clock is wrong: renew the certificate, or set the clock", b.endpoint)
	case errors.As(err, &verification):
		return fmt.Sprintf("the certificate of %s is not valid: %v", b.endpoint, verification.Err)
	}
	return ""
}

// isVirtual reports whether the bucket's name becomes part of the host, which is never
// the case for an IP address.
func isVirtual(addressing, endpoint string) bool {
	u, err := url.Parse(endpoint)
	return !usePathStyle(addressing, endpoint) && (err != nil || net.ParseIP(u.Hostname()) == nil)
}
