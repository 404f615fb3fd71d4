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

// internet is a spool to which every host but 127.0.0.1 is the server that it
// returns too.
func internet(t *testing.T, handler http.HandlerFunc) (*storage.Spool, *httptest.Server) {
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

// requireUnproven checks that the file was kept for a person, and why.
func requireUnproven(t *testing.T, err error, content []byte, why string) {
	t.Helper()
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, storage.FetchUnproven, failed.Kind, "%v", err)
	require.ErrorContains(t, err, why)
	got, err := os.ReadFile(failed.Path)
	require.NoError(t, err)
	require.Equal(t, content, got)
	assertNoSecret(t, failed)
}

// An image on a host that is none of ours is downloaded, without anything that
// could tell who asks, and kept unproven. It is downloaded once.
func TestRule12UnknownHostIsKept(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	var asked atomic.Int64
	spool, _ := internet(t, func(w http.ResponseWriter, r *http.Request) {
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
		requireUnproven(t, err, content, "it comes from a host that is neither of *.aliyuncs.com nor")
	}
	assert.EqualValues(t, 1, asked.Load())
	_, err := spool.Fetch(t.Context(), "b", "https://pictures.example/a.png"+secretQuery)
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed, "the server speaks no TLS")
	assert.Equal(t, storage.FetchTemporary, failed.Kind)
}

// Redirects are followed, each looked at like a first link.
func TestRule12RedirectsAreLookedAt(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	spool, server := internet(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" || r.Header.Get("Authorization") != "" {
			http.Error(w, "unasked header", http.StatusTeapot)
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
	ours := server.URL + "/to/"
	require.NoError(t, fetch("ours", ours+"/a.png"+secretQuery), "it never left the source")
	requireUnproven(t, fetch("stranger", ours+"http://pictures.example/a.png"), content, "it comes from a host")
	requireUnproven(t, fetch("back", "http://pictures.example/to/"+server.URL+"/a.png"), content, "it comes from a host")
	for name, url := range map[string]string{
		"circle":     ours + "/to//to//to//to//to//a.png",
		"file":       ours + "file:///etc/passwd",
		"port":       ours + "http://pictures.example:22/",
		"credential": ours + "http://u:p@pictures.example/",
	} {
		err := fetch(name, url)
		var failed *storage.FetchError
		require.ErrorAs(t, err, &failed, name)
		assert.Equal(t, storage.FetchForbidden, failed.Kind, "%s: %v", name, err)
	}
}

// What a link leads to inside one's own network is not asked for, whatever its
// name says.
func TestRule12PrivateAddressesAreRefused(t *testing.T) {
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
		assert.ErrorContains(t, err, "not a public one", url)
		assertNoSecret(t, err)
	}
}

// What is allowed is connected to although it is not public, and nothing beside it; a
// name is looked at once it is an address.
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

// A stranger cannot fill the disk, and what it sends up to a limit is kept.
func TestRule12StrangersAreLimited(t *testing.T) {
	t.Parallel()
	for size, kept := range map[int]bool{20_000: true, 80_001: false} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			content := pngOf(size-57, 1)
			spool, _ := internet(t, serve(content))
			_, err := spool.Fetch(t.Context(), "a", "http://pictures.example/a.png")
			if kept {
				requireUnproven(t, err, content, "at most 10000 are proven")
				return
			}
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, storage.FetchUnproven, failed.Kind)
			assert.Empty(t, failed.Path)
			assert.ErrorContains(t, err, "80001 bytes are announced, at most 10000")
		})
	}
}

// What came and could not be proven is not replaced by what comes later, unless
// somebody doubts it; and it is what there is once its link is dead.
func TestRule12UnprovenIsNotReplaced(t *testing.T) {
	t.Parallel()
	first, answer := []byte("GIF89a, say"), atomic.Pointer[http.HandlerFunc]{}
	set := func(h http.HandlerFunc) { answer.Store(&h) }
	spool, url := source(t, func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) })
	set(serve(first))
	_, err := spool.Fetch(t.Context(), "a", url)
	requireUnproven(t, err, first, "not a PNG")

	set(serve([]byte("<html>busy</html>")))
	_, err = spool.Fetch(t.Context(), "a", url)
	requireUnproven(t, err, first, "not a PNG")

	require.NoError(t, spool.Doubt("a"))
	require.NoError(t, spool.Doubt("a"), "doubting twice is fine")
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
	require.ErrorContains(t, spool.Doubt("../a"), "must match")
}

// A disk that fails loses nothing: the image can still be had in memory, for a
// bucket that takes it, and is kept once there is room.
func TestRule11DiskThatFails(t *testing.T) {
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
	file, err := spool.FetchUnkept(t.Context(), server.URL+"/a.png")
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

// In memory nothing is kept that cannot be proven, or is large.
func TestRule11UnkeptIsProven(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{"html": []byte("<html>busy</html>"), "large": pngOf(20_000, 1)} {
		spool, server := internet(t, serve(content))
		_, err := spool.FetchUnkept(t.Context(), server.URL+secretQuery)
		require.Error(t, err, name)
		assertNoSecret(t, err)
	}
	spool, _ := internet(t, serve(pngOf(1000, 1)))
	_, err := spool.FetchUnkept(t.Context(), "http://pictures.example/a.png")
	require.ErrorIs(t, err, storage.ErrDisk)
}
