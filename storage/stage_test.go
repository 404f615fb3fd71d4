package storage_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"image"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// references starts a host of reference images, and returns options that connect to
// it for any host name.
func references(t *testing.T, handler http.Handler) storage.StageOptions {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return storage.StageOptions{Dir: t.TempDir(), Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}}
}

func gray(t *testing.T, width, height int) []byte {
	t.Helper()
	var content bytes.Buffer
	require.NoError(t, png.Encode(&content, image.NewGray(image.Rect(0, 0, width, height))))
	return content.Bytes()
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "no temporary file stays")
}

// A reference image is copied into the bucket under its hash.
func TestFetchAndStageReference(t *testing.T) {
	t.Parallel()
	content := gray(t, 300, 256)
	mux := http.NewServeMux()
	mux.HandleFunc("/cat", serveReference(content))
	for from, to := range map[string]string{"/1": "/2", "/2": "/3", "/3": "http://other.example/cat?Signature=other"} {
		mux.HandleFunc(from, refuseReferer(http.RedirectHandler(to, http.StatusFound)))
	}
	from := references(t, mux)
	b, ctx := newBucket(t, inProcess(t)), t.Context()
	for _, path := range []string{"/cat", "/1"} {
		ref, err := storage.FetchReference(ctx, "http://images.example"+path+secretQuery, from)
		require.NoError(t, err)
		ref.Owner = storage.Owner("shop")
		require.NoError(t, b.StageReference(ctx, ref))
		require.NoError(t, os.Remove(ref.Path))
		_, _, err = b.OpenReference(ctx, ref.SHA256, "", storage.Owner(""), storage.Owner("blog"))
		require.ErrorIs(t, err, storage.ErrNotExist, "it is another owner's")
		body, _, err := b.OpenReference(ctx, ref.SHA256, "", storage.Owner("shop"))
		require.NoError(t, err)
		assert.Equal(t, content, readAll(t, body))
		assert.Equal(t, "image/png", ref.ContentType)
		require.NoError(t, b.DeleteReference(ctx, ref.Owner, ref.SHA256))
		require.NoError(t, b.DeleteReference(ctx, ref.Owner, ref.SHA256), "it is gone already")
		_, _, err = b.OpenReference(ctx, ref.SHA256, ref.Owner)
		require.ErrorIs(t, err, storage.ErrNotExist)
	}
	requireEmpty(t, from.Dir)
}

func serveReference(content []byte) http.HandlerFunc {
	return refuseReferer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }))
}

// refuseReferer refuses requests with a Referer header.
func refuseReferer(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Referer() != "" {
			http.Error(w, "Referer with a signature", http.StatusTeapot)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// An error contains the host and not the query, and says whether a retry can help.
func TestFetchReferenceErrors(t *testing.T) {
	t.Parallel()
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	moved := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		}
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for chunk := make([]byte, 1<<20); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		answer    http.HandlerFunc
		want      string
		temporary bool
	}{
		"gone":         {status(http.StatusNotFound), "HTTP status 404", false},
		"forbidden":    {status(http.StatusForbidden), "HTTP status 403", false},
		"too many":     {status(http.StatusTooManyRequests), "HTTP status 429", true},
		"down":         {status(http.StatusBadGateway), "HTTP status 502", true},
		"cut":          {raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), "the connection was closed without a complete response", true},
		"no HTTP":      {raw("SSH-2.0-OpenSSH_9.6\r\n\r\n"), "the response is not valid HTTP", true},
		"text":         {serveReference([]byte("<html>no image</html>")), "not an image", false},
		"small":        {serveReference(gray(t, 255, 256)), "255", false},
		"large":        {serveReference(gray(t, 256, 4097)), "4097", false},
		"says vast":    {raw("HTTP/1.1 200 OK\r\nContent-Length: 10485761\r\n\r\n"), "has 10485761 bytes, at most 10485760", false},
		"is endless":   {endless, "at most 10485760", false},
		"circle":       {moved("/" + secretQuery), "redirected more than 3 times", false},
		"to a file":    {moved("file:///etc/passwd" + secretQuery), "unsupported URL", false},
		"to a person":  {moved("http://ann:LTAI@images.example/"), "unsupported URL", false},
		"to a non-URL": {moved("http://[::1" + secretQuery), "unsupported URL", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := references(t, c.answer)
			_, err := storage.FetchReference(t.Context(), "http://images.example/cat"+secretQuery, from)
			var staged *storage.StageError
			require.ErrorAs(t, err, &staged)
			assert.Equal(t, "images.example", staged.Host)
			assert.Equal(t, c.temporary, staged.Temporary, err)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, `reference image at "images.example"`)
			assertNoSecret(t, staged.Err)
			assert.NotContains(t, err.Error(), "SSH")
			requireEmpty(t, from.Dir)
		})
	}
}

// No request is sent to a private address, or for a URL that is not http or https.
func TestFetchReferencePublicAddressesOnly(t *testing.T) {
	t.Parallel()
	var asked atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	t.Cleanup(server.Close)
	for _, link := range []string{server.URL, "http://169.254.169.254/latest", "http://[::ffff:127.0.0.1]/", "http://[fd00::1]/"} {
		_, err := storage.FetchReference(t.Context(), link+secretQuery, storage.StageOptions{Dir: t.TempDir()})
		require.ErrorIs(t, err, storage.ErrNotPublic, link)
		var staged *storage.StageError
		require.ErrorAs(t, err, &staged)
		assert.False(t, staged.Temporary)
	}
	for _, link := range []string{"", "cat.png", "file:///etc/passwd", "ftp://example.com/a", "http://", "http:example.com", "http://ann:LTAI@example.com/", "http://[::1" + secretQuery} {
		_, err := storage.FetchReference(t.Context(), link, storage.StageOptions{Dir: t.TempDir()})
		require.EqualError(t, err, "reference image: not an http or https URL without user name and password", link)
	}
	assert.False(t, asked.Load())
}

// An error reveals no address, no DNS server, no internal name, and no certificate; a name
// that is unknown is like one that is private.
func TestFetchReferenceErrorsRevealNothing(t *testing.T) {
	t.Parallel()
	resolver := &net.DNSError{Err: "no such host", Name: "git.corp", Server: "10.0.0.2:53", IsNotFound: true}
	at := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 22}
	for want, dialed := range map[string]error{
		`reference image at "git.corp": it has no public address, so no request was sent`: &net.OpError{Op: "dial", Net: "tcp", Err: resolver},
		`reference image at "git.corp": host name not resolved`:                           &net.DNSError{Err: "server misbehaving", Name: "git.corp", Server: "10.0.0.2:53"},
		`reference image at "git.corp": connection refused`:                               &net.OpError{Op: "dial", Net: "tcp", Addr: at, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		`reference image at "git.corp": no response in time`:                              &net.OpError{Op: "dial", Net: "tcp", Addr: at, Err: os.ErrDeadlineExceeded},
		`reference image at "git.corp": certificate not trusted`:                          &tls.CertificateVerificationError{Err: x509.HostnameError{Host: "git.corp", Certificate: &x509.Certificate{DNSNames: []string{"gitlab.corp"}}}},
	} {
		from := storage.StageOptions{Dir: t.TempDir(), Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dialed }}
		_, err := storage.FetchReference(t.Context(), "https://git.corp/a.png"+secretQuery, from)
		require.EqualError(t, err, want)
	}
}

// The download times out after a minute, and ends at once when the context does.
func TestFetchReferenceTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := storage.StageOptions{Dir: t.TempDir(), Dial: func(context.Context, string, string) (net.Conn, error) {
			clientSide, serverSide := net.Pipe()
			go io.Copy(io.Discard, serverSide) //nolint:errcheck // ends with the connection
			return clientSide, nil
		}}
		begun := time.Now()
		_, err := storage.FetchReference(t.Context(), "http://images.example/cat"+secretQuery, from)
		var staged *storage.StageError
		require.ErrorAs(t, err, &staged)
		assert.True(t, staged.Temporary)
		require.ErrorContains(t, err, "it did not arrive within 1m0s")
		assert.Equal(t, time.Minute, time.Since(begun))

		stopping, stop := context.WithCancelCause(t.Context())
		reason := errors.New("the program ends")
		time.AfterFunc(time.Second, func() { stop(reason) })
		_, err = storage.FetchReference(stopping, "http://images.example/cat", from)
		require.ErrorIs(t, err, reason)
		assert.False(t, errors.As(err, &staged), "the image is not at fault")
		requireEmpty(t, from.Dir)
	})
}

// A disk error is not reported as an error of the image.
func TestFetchReferenceFullDisk(t *testing.T) {
	t.Parallel()
	from := references(t, serveReference(gray(t, 256, 256)))
	from.Dir += "/gone"
	_, err := storage.FetchReference(t.Context(), "http://images.example/cat", from)
	require.ErrorIs(t, err, os.ErrNotExist)
	var staged *storage.StageError
	assert.False(t, errors.As(err, &staged))
	assert.NotContains(t, err.Error(), "images.example")
}
