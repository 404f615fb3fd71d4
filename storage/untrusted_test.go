package storage_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// untrustedServer returns a server, and a spool that connects to it for every host
// name. The spool trusts it only as 127.0.0.1.
func untrustedServer(t *testing.T, handler http.HandlerFunc) (*storage.Spool, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	spool, err := storage.OpenSpool(t.TempDir(), storage.SpoolConfig{
		Sources: []string{server.URL}, MaxBytes: 10_000,
		DialPublic: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
	})
	require.NoError(t, err)
	return spool, server
}

// requireUnverified checks that the file was kept for an operator, and why.
func requireUnverified(t *testing.T, err error, content []byte, why string) {
	t.Helper()
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, storage.FetchUnverified, failed.Kind, "%v", err)
	require.ErrorContains(t, err, why)
	got, err := os.ReadFile(failed.Path)
	require.NoError(t, err)
	require.Equal(t, content, got)
	assertNoSecret(t, failed)
}

// An image on an untrusted host is downloaded once, without identifying headers, and
// kept as unverified.
func TestUntrustedHostImageIsKeptUnverified(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	var asked atomic.Int64
	spool, _ := untrustedServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		for _, name := range []string{"Referer", "Cookie", "Origin"} {
			if r.Header.Get(name) != "" {
				http.Error(w, name, http.StatusTeapot)
				return
			}
		}
		serve(content)(w, r)
	})
	for range 2 {
		_, err := spool.Fetch(t.Context(), "a", "http://pictures.example/a.png"+secretQuery)
		requireUnverified(t, err, content, "it comes from a host that is neither in *.aliyuncs.com nor")
	}
	assert.EqualValues(t, 1, asked.Load())
	_, err := spool.Fetch(t.Context(), "b", "https://pictures.example/a.png"+secretQuery)
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed, "the server speaks no TLS")
	assert.Equal(t, storage.FetchTemporary, failed.Kind)
}

// Redirects are followed, and each target is checked like the first URL.
func TestRedirectsAreChecked(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	spool, server := untrustedServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" || r.Header.Get("Authorization") != "" {
			http.Error(w, "unexpected header", http.StatusTeapot)
			return
		}
		if to, ok := strings.CutPrefix(r.URL.Path, "/to/"); ok {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return
		}
		serve(content)(w, r)
	})
	fetch := func(name, url string) error {
		_, err := spool.Fetch(t.Context(), name, url)
		return err
	}
	base := server.URL + "/to/"
	require.NoError(t, fetch("trusted", base+"/a.png"+secretQuery), "the redirect stays on the trusted host")
	requireUnverified(t, fetch("untrusted", base+"http://pictures.example/a.png"), content, "it comes from a host")
	requireUnverified(t, fetch("back", "http://pictures.example/to/"+server.URL+"/a.png"), content, "it comes from a host")
	for name, url := range map[string]string{
		"circle":     base + "/to//to//to//to//to//a.png",
		"file":       base + "file:///etc/passwd",
		"port":       base + "http://pictures.example:22/",
		"credential": base + "http://u:p@pictures.example/",
	} {
		err := fetch(name, url)
		var failed *storage.FetchError
		require.ErrorAs(t, err, &failed, name)
		assert.Equal(t, storage.FetchForbidden, failed.Kind, "%s: %v", name, err)
	}
}

// URLs whose host resolves to a private address are not requested.
func TestPrivateAddressesAreRefused(t *testing.T) {
	t.Parallel()
	spool := openSpool(t)
	for _, url := range []string{
		"http://127.0.0.1/", "http://localhost/", "http://10.1.2.3/", "http://169.254.169.254/latest/meta-data",
		"http://100.100.100.200/latest/meta-data", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/",
	} {
		_, err := spool.Fetch(t.Context(), "a", url+secretQuery)
		var failed *storage.FetchError
		require.ErrorAs(t, err, &failed)
		assert.Equal(t, storage.FetchForbidden, failed.Kind, "%v", err)
		assert.ErrorContains(t, err, "it has no public address", url)
		assertNoSecret(t, err)
	}
}

// The dialer connects to allowed private addresses, and to no others. It checks the
// resolved address of a host name.
func TestPublicDialerAllows(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(serve(nil))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	for allow, want := range map[string]error{
		"127.0.0.1/32": nil, "127.0.0.0/8": nil,
		"127.0.0.2/32": storage.ErrNotPublic, "10.0.0.0/8": storage.ErrNotPublic, "::1/128": storage.ErrNotPublic,
	} {
		dial := storage.PublicDialer([]netip.Prefix{netip.MustParsePrefix(allow)})
		conn, err := dial(t.Context(), "tcp4", net.JoinHostPort("localhost", port))
		require.ErrorIs(t, err, want, allow)
		if err == nil {
			require.NoError(t, conn.Close())
		}
	}
}

// An untrusted host cannot fill the disk. Images up to a limit are kept.
func TestUntrustedDownloadSizeIsLimited(t *testing.T) {
	t.Parallel()
	for size, kept := range map[int]bool{20_000: true, 80_001: false} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			content := pngOf(size-57, 1)
			spool, _ := untrustedServer(t, serve(content))
			_, err := spool.Fetch(t.Context(), "a", "http://pictures.example/a.png")
			if kept {
				requireUnverified(t, err, content, "it has 20000 bytes, the limit is 10000")
				return
			}
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, storage.FetchUnverified, failed.Kind)
			assert.Empty(t, failed.Path)
			assert.ErrorContains(t, err, "Content-Length is 80001 bytes, the limit is 10000")
		})
	}
}

// An unverified file is not downloaded again, unless Recheck is called. It stays as a
// fallback if the URL is dead then.
func TestUnverifiedFileIsReplacedOnlyAfterRecheck(t *testing.T) {
	t.Parallel()
	first, answer := []byte("GIF89a, say"), atomic.Pointer[http.HandlerFunc]{}
	set := func(h http.HandlerFunc) { answer.Store(&h) }
	spool, url := source(t, func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) })
	set(serve(first))
	_, err := spool.Fetch(t.Context(), "a", url)
	requireUnverified(t, err, first, "not a PNG")

	set(serve([]byte("<html>busy</html>")))
	_, err = spool.Fetch(t.Context(), "a", url)
	requireUnverified(t, err, first, "not a PNG")

	require.NoError(t, spool.Recheck("a"))
	require.NoError(t, spool.Recheck("a"), "a second Recheck does nothing")
	set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	_, err = spool.Fetch(t.Context(), "a", url)
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed)
	assert.Equal(t, storage.FetchGone, failed.Kind)
	got, err := os.ReadFile(failed.Path)
	require.NoError(t, err)
	assert.Equal(t, first, got)

	set(serve(pngOf(1000, 1)))
	_, err = spool.Fetch(t.Context(), "a", url)
	require.NoError(t, err)
	require.NoError(t, spool.Remove("a"))
	assert.NoFileExists(t, failed.Path)
	require.ErrorContains(t, spool.Recheck("../a"), "the name must be")
}

// When the disk fails, the image can be fetched to memory, and Fetch works again once
// there is space.
func TestFetchToMemoryWhenDiskFails(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	server := httptest.NewServer(serve(content))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	spool, err := storage.OpenSpool(dir, storage.SpoolConfig{Sources: []string{server.URL}, MaxBytes: 2000})
	require.NoError(t, err)
	incoming := filepath.Join(dir, "incoming")
	require.NoError(t, os.RemoveAll(incoming))
	require.NoError(t, os.WriteFile(incoming, nil, 0o600))

	_, err = spool.Fetch(t.Context(), "a", server.URL)
	require.ErrorIs(t, err, storage.ErrDisk)
	file, err := spool.FetchToMemory(t.Context(), server.URL+"/a.png")
	require.NoError(t, err)
	assert.Equal(t, int64(len(content)), file.Bytes)
	assert.Empty(t, file.Path)
	assert.Equal(t, "a.png", file.SourceName)

	require.NoError(t, os.Remove(incoming))
	require.NoError(t, os.Mkdir(incoming, 0o750))
	kept, err := spool.Fetch(t.Context(), "a", server.URL)
	require.NoError(t, err)
	assert.Equal(t, file.SHA256, kept.SHA256)
}

// FetchToMemory refuses images that are too large or cannot be verified.
func TestFetchToMemoryVerifies(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{"html": []byte("<html>busy</html>"), "large": pngOf(20_000, 1)} {
		spool, server := untrustedServer(t, serve(content))
		_, err := spool.FetchToMemory(t.Context(), server.URL+secretQuery)
		require.Error(t, err, name)
		assertNoSecret(t, err)
	}
	spool, _ := untrustedServer(t, serve(pngOf(1000, 1)))
	_, err := spool.FetchToMemory(t.Context(), "http://pictures.example/a.png")
	require.ErrorIs(t, err, storage.ErrDisk)
}
