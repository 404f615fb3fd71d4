package storage_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// assertOneSentence checks that an error explains the configuration, and is short.
func assertOneSentence(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	assert.NotContains(t, text, "\n")
	assert.NotContains(t, text, "operation error", "the SDK's words")
	assert.Less(t, len(text), 450, text)
}

// refusal returns the body of an S3 error response.
func refusal(code, message string) string {
	return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>" + code + "</Code><Message>" + message + "</Message><RequestId>r-1</RequestId></Error>"
}

// answering gives every request the same answer.
func answering(status int, header http.Header, body string) storage.HTTPClient {
	return clientFunc(func(r *http.Request) (*http.Response, error) {
		header := header.Clone() // the SDK writes to it
		if header == nil {
			header = http.Header{"Content-Type": {"application/xml"}}
		}
		text := body
		if r.Method == http.MethodHead {
			text = ""
		}
		return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: r}, nil
	})
}

// The responses are from the error lists of S3 and OSS, for errors that the test
// servers cannot produce.
func TestCheckExplainsRefusals(t *testing.T) {
	t.Parallel()
	aws := func(c *storage.Config) { c.Endpoint = "" }
	oss := func(c *storage.Config) { c.Endpoint, c.Addressing = "https://s3.oss-cn-hangzhou.aliyuncs.com", "path" }
	virtual := func(c *storage.Config) { c.Addressing = "virtual" }
	html := http.Header{"Content-Type": {"text/html; charset=utf-8"}}
	lies := http.Header{"Content-Type": {"application/xml"}, "X-Amz-Bucket-Region": {"eu-west-1"}}
	for name, c := range map[string]struct {
		change func(*storage.Config)
		status int
		header http.Header
		body   string
		want   string
	}{
		"another region of AWS": {
			aws, 301, lies, refusal("PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint."),
			`bucket "images" is in region "eu-west-1", not in "cn-beijing": set AWS_REGION=eu-west-1 (PermanentRedirect, HTTP status 301`,
		},
		"another region's address": {
			nil, 301, lies, refusal("PermanentRedirect", ""), "set AWS_REGION=eu-west-1, and AWS_ENDPOINT_URL_S3 to that region's address (",
		},
		"region of the signature": {
			aws, 400, nil, refusal("AuthorizationHeaderMalformed", "The authorization header is malformed; the region 'cn-beijing' is wrong; expecting 'eu-west-1'"),
			"set AWS_REGION=eu-west-1 (",
		},
		"another region, unnamed": {
			nil, 301, nil, refusal("PermanentRedirect", ""),
			`bucket "images" is not served at https://s3.example.com in region "cn-beijing": set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL_S3 to that region's address`,
		},
		"another region of OSS": {
			oss, 403, nil, refusal("AccessDenied", "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint."),
			`bucket "images" is not served at https://s3.oss-cn-hangzhou.aliyuncs.com in region "cn-beijing": set AWS_REGION`,
		},
		"path style at OSS": {
			oss, 403, nil, refusal("SecondLevelDomainForbidden", "The bucket you are attempting to access must be addressed using OSS third level domain."),
			"refuses path-style addressing: set DANQING_S3_ADDRESSING=virtual",
		},
		"hosts without a bucket":    {virtual, 404, nil, refusal("NoSuchBucket", ""), "or set DANQING_S3_ADDRESSING=path"},
		"expired token":             {aws, 400, nil, refusal("ExpiredToken", "The provided token has expired."), "the session token has expired or was issued by another store: get new credentials and set all of AWS_ACCESS_KEY_ID"},
		"expired token at OSS":      {oss, 403, nil, refusal("SecurityTokenExpired", ""), "AWS_SESSION_TOKEN"},
		"clock":                     {nil, 403, nil, refusal("RequestTimeTooSkewed", "The difference between the request time and the current time is too large."), "set the clock"},
		"no permission":             {nil, 403, nil, refusal("AccessDenied", "Access Denied."), `"AKID" may not do this in bucket "images": let it read, write and list there`},
		"unpaid account":            {oss, 403, nil, refusal("UserDisable", "UserDisable"), "unpaid bill"},
		"a page":                    {nil, 200, html, "<html>welcome</html>", "https://s3.example.com returns an object for a random key, as no S3 store does: correct AWS_ENDPOINT_URL_S3"},
		"a page that says no":       {nil, 404, html, "<html>not found</html>", `https://s3.example.com answers with HTTP status 404 and "text/html; charset=utf-8", as no S3 store does: correct AWS_ENDPOINT_URL_S3`},
		"a page to log in":          {nil, 302, html, "<html>moved</html>", "answers with HTTP status 302"},
		"an empty answer":           {nil, 403, http.Header{}, "", `HTTP status 403 and "nothing"`},
		"a proxy without its store": {nil, 502, html, "<html>bad gateway</html>", `HTTP status 502 and "text/html; charset=utf-8", as no S3 store does: check the store behind it, or`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := goodConfig()
			if c.change != nil {
				c.change(&cfg)
			}
			cfg.HTTPClient = answering(c.status, c.header, c.body)
			err := newBucket(t, cfg).Check(t.Context())
			require.ErrorContains(t, err, c.want)
			assertOneSentence(t, err)
			assert.NotContains(t, err.Error(), "s3cr3t")
			assert.NotContains(t, err.Error(), "t0k3n")
		})
	}
}

// The response to a HEAD has no body, so the error is explained by its headers.
func TestHeadExplainsRefusals(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusBadRequest} {
		cfg := goodConfig()
		cfg.HTTPClient = answering(status, http.Header{"X-Amz-Bucket-Region": {"eu-west-1"}}, "")
		_, err := newBucket(t, cfg).Head(t.Context(), "a")
		require.ErrorContains(t, err, "set AWS_REGION=eu-west-1")
		cfg.HTTPClient = answering(status, nil, "")
		_, err = newBucket(t, cfg).Head(t.Context(), "a")
		require.ErrorContains(t, err, "refuses the request without a reason: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
		assertOneSentence(t, err)
	}
}

// An error that no setting can fix is returned unchanged.
func TestCheckKeepsOtherErrors(t *testing.T) {
	t.Parallel()
	cfg := goodConfig()
	cfg.HTTPClient = answering(http.StatusForbidden, nil, refusal("QuotaExceeded", "no more"))
	assert.ErrorContains(t, newBucket(t, cfg).Check(t.Context()), "api error QuotaExceeded: no more")
}

// Without an S3 response, the error names the endpoint, TLS or the addressing style.
func TestCheckExplainsNoAnswer(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	const closed = "http://127.0.0.1:1"                // a port that was free before may be taken by another test
	alert := listen(t, "\x15\x03\x01\x00\x02\x02\x46") // OpenSSL's response to plain HTTP
	named := func(server *httptest.Server, host string) string {
		u, err := url.Parse(server.URL)
		require.NoError(t, err)
		return u.Scheme + "://" + host + ":" + u.Port()
	}

	for name, c := range map[string]struct {
		endpoint, addressing string
		client               storage.HTTPClient // nil is the default
		want                 string
	}{
		"nothing there":         {closed, "", nil, "nothing listens at " + closed + ": start the store, or correct AWS_ENDPOINT_URL_S3"},
		"no TLS":                {strings.Replace(plain.URL, "http:", "https:", 1), "", nil, "does not speak TLS: begin AWS_ENDPOINT_URL_S3 with http://"},
		"TLS":                   {strings.Replace(secure.URL, "https:", "http:", 1), "", nil, `answers with HTTP status 400 and "nothing", as no S3 store does: correct AWS_ENDPOINT_URL_S3, to https:// if it speaks TLS`},
		"TLS that sends alerts": {"http://" + alert, "", nil, "http://" + alert + " speaks TLS: begin AWS_ENDPOINT_URL_S3 with https://"},
		"silence":               {"http://" + listen(t, ""), "", nil, "ends the connection without an answer: if it speaks TLS, begin AWS_ENDPOINT_URL_S3 with https://, otherwise check the store"},
		"unknown authority":     {secure.URL, "", nil, "the certificate of " + secure.URL + " is signed by an authority that this machine does not trust: set SSL_CERT_FILE to a PEM file"},
		"another host's certificate": {
			named(secure, "localhost"), "path", secure.Client(),
			`is not for host "localhost": set AWS_ENDPOINT_URL_S3 to a name in the certificate`,
		},
		"no bucket's certificate": {
			named(secure, "localhost"), "virtual", loopback(secure),
			`is not for host "images.localhost": set DANQING_S3_ADDRESSING=path`,
		},
		"no such host":        {"http://store.invalid", "path", nil, `there is no host "store.invalid": correct AWS_ENDPOINT_URL_S3`},
		"no bucket's host":    {"http://store.invalid", "virtual", nil, `there is no host "images.store.invalid": correct AWS_ENDPOINT_URL_S3, or set DANQING_S3_ADDRESSING=path`},
		"no such region":      {"", "", failing(&net.DNSError{Name: "images.s3.cn-beijing.amazonaws.com", IsNotFound: true}), `correct AWS_REGION, which is "cn-beijing"`},
		"no answer":           {"http://10.0.0.1", "", failing(&net.OpError{Op: "dial", Err: timeout{}}), "http://10.0.0.1 does not answer: check the network between, or correct AWS_ENDPOINT_URL_S3"},
		"a proxy that is off": {"http://10.0.0.1", "", failing(&net.OpError{Op: "proxyconnect", Err: timeout{}}), "correct HTTPS_PROXY or HTTP_PROXY, or exempt the store by NO_PROXY"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := goodConfig()
			cfg.Endpoint, cfg.Addressing, cfg.HTTPClient = c.endpoint, c.addressing, c.client
			err := newBucket(t, cfg).Check(t.Context())
			require.ErrorContains(t, err, c.want)
			assertOneSentence(t, err)
			assert.NotContains(t, err.Error(), "s3cr3t")
		})
	}
}

// failing fails every request.
func failing(err error) storage.HTTPClient {
	return clientFunc(func(*http.Request) (*http.Response, error) { return nil, err })
}

type timeout struct{}

func (timeout) Error() string { return "i/o timeout" }
func (timeout) Timeout() bool { return true }

// loopback returns a client that trusts the server and resolves every host to it.
func loopback(server *httptest.Server) *http.Client {
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	return &http.Client{Transport: transport}
}

// listen starts a server that answers the first bytes of every connection with text.
func listen(t *testing.T, text string) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_, _ = io.WriteString(conn, text)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { require.NoError(t, listener.Close()); <-served })
	return listener.Addr().String()
}
