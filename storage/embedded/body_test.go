package embedded_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage/embedded"
)

func TestBodyHashMismatchIsRefused(t *testing.T) {
	t.Parallel()
	server := open(t, t.TempDir())
	front := httptest.NewServer(server)
	t.Cleanup(front.Close)
	require.NoError(t, put(t.Context(), client(server), "a", "before"))
	hash := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }
	for name, c := range map[string]struct {
		payloadHash, md5 string
		body             io.Reader
		length           int64
		status           int
	}{
		"as signed":         {payloadHash: hash("after"), body: strings.NewReader("after"), length: 5, status: 200},
		"unsigned":          {payloadHash: "UNSIGNED-PAYLOAD", body: strings.NewReader("after"), length: 5, status: 200},
		"another body":      {payloadHash: hash("after"), body: strings.NewReader("aftex"), length: 5, status: 400},
		"another MD5":       {payloadHash: "UNSIGNED-PAYLOAD", md5: "1B2M2Y8AsgTpgAmY7PhCfg==", body: strings.NewReader("aftex"), length: 5, status: 400},
		"no body":           {payloadHash: hash("after"), body: http.NoBody, status: 400},
		"without a length":  {payloadHash: hash("after"), body: strings.NewReader("after"), length: -1, status: 411},
		"unsigned, endless": {payloadHash: "UNSIGNED-PAYLOAD", body: strings.NewReader("after"), length: -1, status: 411},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, put(t.Context(), client(server), "a", "before"))
			for _, h := range []*http.Client{front.Client(), server.HTTPClient()} {
				if s, ok := c.body.(io.Seeker); ok {
					_, _ = s.Seek(0, io.SeekStart)
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, front.URL+"/danqing/a", c.body)
				require.NoError(t, err)
				req.ContentLength = c.length
				if c.md5 != "" {
					req.Header.Set("Content-MD5", c.md5)
				}
				req.Header.Set("X-Amz-Content-Sha256", c.payloadHash)
				id, secret := server.Credentials()
				require.NoError(t, v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, req, c.payloadHash, "s3", "us-east-1", time.Now()))
				resp, err := h.Do(req)
				require.NoError(t, err)
				text, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				assert.Equal(t, c.status, resp.StatusCode, string(text))
				if c.status == http.StatusOK {
					assert.Equal(t, "after", get(t, client(server), "a"))
				} else {
					assert.Equal(t, "before", get(t, client(server), "a"))
				}
			}
		})
	}
}

// A truncated body is not stored, with any kind of framing.
func TestTruncatedBodyIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, dir)
	front := httptest.NewServer(server)
	t.Cleanup(front.Close)
	for _, h := range []*http.Client{front.Client(), server.HTTPClient()} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, front.URL+"/danqing/cut", io.NopCloser(strings.NewReader("half")))
		require.NoError(t, err)
		req.ContentLength = 8
		req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		id, secret := server.Credentials()
		require.NoError(t, v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, req, "UNSIGNED-PAYLOAD", "s3", "us-east-1", time.Now()))
		resp, err := h.Do(req)
		if err == nil {
			assert.GreaterOrEqual(t, resp.StatusCode, 400)
			require.NoError(t, resp.Body.Close())
		}
		assert.NoFileExists(t, server.Path("cut"))
	}
	require.NoError(t, server.Close())
	open(t, dir)
	temps, err := os.ReadDir(filepath.Join(dir, ".danqing", "temp"))
	require.NoError(t, err)
	assert.Empty(t, temps)
}

func TestRequestsMustBeSigned(t *testing.T) {
	t.Parallel()
	server := open(t, t.TempDir())
	require.NoError(t, put(t.Context(), client(server), "a", "x"))
	front := httptest.NewServer(server)
	t.Cleanup(front.Close)
	for _, path := range []string{"/", "/danqing", "/danqing/a"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, front.URL+path, http.NoBody)
		require.NoError(t, err)
		resp, err := front.Client().Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.GreaterOrEqual(t, resp.StatusCode, 400, path)
	}
	wrongKey := client(server, func(o *s3.Options) {
		id, _ := server.Credentials()
		o.Credentials = credentials.NewStaticCredentialsProvider(id, "guess", "")
	})
	_, code := refusal(put(t.Context(), wrongKey, "a", "y"))
	assert.Equal(t, "SignatureDoesNotMatch", code)
	assert.Equal(t, "x", get(t, client(server), "a"))

	first, err := embedded.Open(embedded.Config{Dir: t.TempDir()})
	require.NoError(t, err)
	defer func() { require.NoError(t, first.Close()) }()
	id, secret := first.Credentials()
	otherID, otherSecret := server.Credentials()
	assert.NotEqual(t, id, otherID)
	assert.NotEqual(t, secret, otherSecret)
	assert.GreaterOrEqual(t, len(secret), 40)
}
