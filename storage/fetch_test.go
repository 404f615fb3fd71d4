package storage_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

const secretQuery = "?Expires=1&OSSAccessKeyId=LTAIsecret&Signature=c2VjcmV0"

// source starts a server with handler, and opens a spool that trusts it.
func source(t *testing.T, handler http.HandlerFunc) (*storage.Spool, string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return openSpool(t, server.URL), server.URL
}

func serve(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, _, basic := r.BasicAuth(); basic || r.Header.Get("Authorization") != "" || r.Header.Get("Accept-Encoding") != "" {
			http.Error(w, "unasked header", http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content)
	}
}

// raw sends the answer as it is and closes the connection.
func raw(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = buf.WriteString(answer)
		_ = buf.Flush()
	}
}

func TestFetchVerifiesAndKeepsFile(t *testing.T) {
	t.Parallel()
	content := pngOf(200_000, 1)
	var asked atomic.Int64
	spool, url := source(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		sum := md5.Sum(content)
		w.Header().Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
		w.Header().Set("x-oss-hash-crc64ecma", strconv.FormatUint(crc64.Checksum(content, crc64.MakeTable(crc64.ECMA)), 10))
		serve(content)(w, r)
	})
	for range 2 { // the second time it is in the spool
		file, err := spool.Fetch(t.Context(), "..-1", url+"/1d/86/20231214/8d820c8d/u-1.png"+secretQuery)
		require.NoError(t, err)
		md5Sum, sha := md5.Sum(content), sha256.Sum256(content)
		assert.Equal(t, int64(len(content)), file.Bytes)
		assert.Equal(t, hex.EncodeToString(md5Sum[:]), file.MD5)
		assert.Equal(t, hex.EncodeToString(sha[:]), file.SHA256)
		assert.Equal(t, []int{640, 480}, []int{file.Width, file.Height})
		assert.Equal(t, "image/png", file.ContentType)
		assert.Equal(t, "u-1.png", file.SourceName)
		got, err := os.ReadFile(file.Path)
		require.NoError(t, err)
		assert.Equal(t, content, got)
	}
	assert.EqualValues(t, 1, asked.Load())

	require.NoError(t, spool.Remove("..-1"))
	require.NoError(t, spool.Remove("..-1"), "removing twice is fine")
	_, err := spool.Fetch(t.Context(), "..-1", url+"/a.png")
	require.NoError(t, err)
	assert.EqualValues(t, 2, asked.Load())
}

// A file that was damaged on disk between two runs is downloaded again.
func TestFetchReplacesDamagedSpoolFile(t *testing.T) {
	t.Parallel()
	content := pngOf(1000, 1)
	spool, url := source(t, serve(content))
	file, err := spool.Fetch(t.Context(), "a", url)
	require.NoError(t, err)
	damaged := bytes.Clone(content)
	damaged[500] ^= 4
	require.NoError(t, os.WriteFile(file.Path, damaged, 0o600))
	again, err := spool.Fetch(t.Context(), "a", url)
	require.NoError(t, err)
	assert.Equal(t, file.SHA256, again.SHA256)
}

func TestOpenSpoolRemovesOnlyPartialFiles(t *testing.T) {
	t.Parallel()
	dir, content := t.TempDir(), pngOf(1000, 1)
	server := httptest.NewServer(serve(content))
	cfg := storage.SpoolConfig{Sources: []string{server.URL}}
	spool, err := storage.OpenSpool(dir, cfg)
	require.NoError(t, err)
	_, err = spool.Fetch(t.Context(), "whole", server.URL)
	require.NoError(t, err)
	partial := filepath.Join(dir, "incoming", "123")
	require.NoError(t, os.WriteFile(partial, content[:10], 0o600))
	server.Close()

	spool, err = storage.OpenSpool(dir, cfg)
	require.NoError(t, err)
	assert.NoFileExists(t, partial)
	_, err = spool.Fetch(t.Context(), "whole", server.URL+"/x.png")
	require.NoError(t, err, "nothing is downloaded")
	free, err := spool.FreeBytes()
	require.NoError(t, err)
	assert.Positive(t, free)
}

func TestFetchErrors(t *testing.T) {
	t.Parallel()
	content := pngOf(5000, 1)
	flipped := bytes.Clone(content)
	flipped[2000] ^= 1
	http10 := "HTTP/1.0 200 OK\r\n\r\n"
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   storage.FetchKind
		status int
		kept   []byte
		text   string
	}{
		"forbidden": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>Request has expired.</Message></Error>")
		}, kind: storage.FetchGone, status: 403},
		"unauthorized": {answer: raw("HTTP/1.1 401 Unauthorized\r\n\r\n"), kind: storage.FetchGone, status: 401},
		"not found":    {answer: raw("HTTP/1.1 404 Not Found\r\n\r\n"), kind: storage.FetchGone, status: 404},
		"gone":         {answer: raw("HTTP/1.1 410 Gone\r\n\r\n"), kind: storage.FetchGone, status: 410},
		"server error": {answer: raw("HTTP/1.1 503 Slow Down\r\n\r\n"), kind: storage.FetchTemporary, status: 503},
		"throttled":    {answer: raw("HTTP/1.1 429 Too Many\r\n\r\n"), kind: storage.FetchTemporary, status: 429},
		"no answer":    {answer: raw(""), kind: storage.FetchTemporary},
		"no http":      {answer: raw("SSH-2.0-x\r\n"), kind: storage.FetchTemporary},
		"redirect":     {answer: raw("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"), kind: storage.FetchForbidden, status: 302},
		"cut": {
			answer: raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(content), content[:3000])),
			kind:   storage.FetchTemporary, status: 200, text: "unexpected EOF",
		},
		"cut in chunks": {
			answer: raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(content), content[:3000])),
			kind:   storage.FetchTemporary, status: 200, text: "unexpected EOF",
		},
		"cut unnoticed": {
			answer: raw(http10 + string(content[:3000])),
			kind:   storage.FetchTemporary, status: 200, kept: content[:3000], text: "before its last part",
		},
		"cut at the source": {
			answer: serve(content[:3000]),
			kind:   storage.FetchUnverified, status: 200, kept: content[:3000], text: "before its last part",
		},
		"nothing": {answer: serve(nil), kind: storage.FetchUnverified, status: 200, kept: []byte{}},
		"bit flip": {
			answer: serve(flipped),
			kind:   storage.FetchUnverified, status: 200, kept: flipped, text: "IDAT chunk has a wrong checksum",
		},
		"bit flip against Content-MD5": {answer: func(w http.ResponseWriter, r *http.Request) {
			sum := md5.Sum(content)
			w.Header().Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
			serve(flipped)(w, r)
		}, kind: storage.FetchTemporary, status: 200, kept: flipped, text: "Content-MD5"},
		"bit flip against CRC-64": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-oss-hash-crc64ecma", strconv.FormatUint(crc64.Checksum(content, crc64.MakeTable(crc64.ECMA)), 10))
			serve(flipped)(w, r)
		}, kind: storage.FetchTemporary, status: 200, kept: flipped, text: "crc64"},
		"trailing bytes": {
			answer: serve(append(bytes.Clone(content), 0)),
			kind:   storage.FetchUnverified, status: 200, kept: append(bytes.Clone(content), 0), text: "after the IEND",
		},
		"html": {
			answer: serve([]byte("<html>busy</html>")),
			kind:   storage.FetchUnverified, status: 200, kept: []byte("<html>busy</html>"), text: "not a PNG",
		},
		"encoded": {answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			serve(content)(w, r)
		}, kind: storage.FetchUnverified, status: 200, kept: content, text: "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spool, url := source(t, c.answer)
			_, err := spool.Fetch(t.Context(), "a", url+"/a.png"+secretQuery)
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, c.kind, failed.Kind, "%v", err)
			assert.Equal(t, c.status, failed.Status)
			assert.ErrorContains(t, err, c.text)
			assertNoSecret(t, err)
			if c.kept == nil {
				assert.Empty(t, failed.Path)
				return
			}
			got, err := os.ReadFile(failed.Path)
			require.NoError(t, err)
			assert.Equal(t, c.kept, got)
			require.NoError(t, spool.Remove("a"))
			assert.NoFileExists(t, failed.Path)
		})
	}
}

func assertNoSecret(t *testing.T, err error) {
	t.Helper()
	for e := err; e != nil; e = errors.Unwrap(e) {
		for _, secret := range []string{"LTAI", "Signature", "c2Vj", "Expires"} {
			assert.NotContains(t, fmt.Sprintf("%v %+v %#v", e, e, e), secret)
		}
	}
}

// An image above the size limit is unverified. Up to eight times the limit it is
// kept; above that it is not, so that it cannot fill the disk.
func TestFetchSizeLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bytes    int
		declared bool
		verified bool
		kept     bool
	}{
		"at the limit":           {bytes: 1000, declared: true, verified: true},
		"over it":                {bytes: 1001, declared: true, kept: true},
		"over it, undeclared":    {bytes: 1001, kept: true},
		"far over it":            {bytes: 8001, declared: true},
		"far over it undeclared": {bytes: 8001},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := pngOf(c.bytes-57, 1)
			require.Len(t, content, c.bytes)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.declared {
					w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				} else {
					w.(http.Flusher).Flush()
				}
				_, _ = w.Write(content)
			}))
			t.Cleanup(server.Close)
			dir := t.TempDir()
			spool, err := storage.OpenSpool(dir, storage.SpoolConfig{Sources: []string{server.URL}, MaxBytes: 1000})
			require.NoError(t, err)
			_, err = spool.Fetch(t.Context(), "a", server.URL)
			incoming, readErr := os.ReadDir(filepath.Join(dir, "incoming"))
			require.NoError(t, readErr)
			assert.Empty(t, incoming)
			if c.verified {
				require.NoError(t, err)
				return
			}
			var failed *storage.FetchError
			require.ErrorAs(t, err, &failed)
			assert.Equal(t, storage.FetchUnverified, failed.Kind)
			assert.Equal(t, c.kept, failed.Path != "")
		})
	}
}

// Only Aliyun and the configured services are trusted. Other hosts are requested
// with the dialer for untrusted hosts, or not at all.
func TestFetchTrustedHosts(t *testing.T) {
	t.Parallel()
	errTrusted, errUntrusted := errors.New("dialed as trusted"), errors.New("dialed as untrusted")
	open := func(sources ...string) *storage.Spool {
		spool, err := storage.OpenSpool(t.TempDir(), storage.SpoolConfig{
			Sources:     sources,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, errTrusted },
			DialPublic:  func(context.Context, string, string) (net.Conn, error) { return nil, errUntrusted },
		})
		require.NoError(t, err)
		return spool
	}
	aliyun, simulator := open("https://dashscope.aliyuncs.com/api/v1"), open("http://127.0.0.1:8766/api/v1", "https://dashscope.aliyuncs.com/api/v1", "https://proxy.example.com/api/v1")
	for url, want := range map[string]error{
		"https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/a.png":     errTrusted,
		"https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com:443/a.png": errTrusted,
		"https://dashscope-a717.oss-accelerate.aliyuncs.com/1d/8c/a_0.png":  errTrusted, // Qwen-Image 3.0, not in the documented list
		"https://DASHSCOPE-RESULT-BJ.OSS-CN-BEIJING.ALIYUNCS.COM/a.png":     errTrusted,
		"http://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/a.png":      errUntrusted,
		"https://aliyuncs.com/a.png":                                        errUntrusted,
		"https://evil-aliyuncs.com/a.png":                                   errUntrusted,
		"https://aliyuncs.com.evil.com/a.png":                               errUntrusted,
		"https://x.aliyuncs.com.evil.com/a.png":                             errUntrusted,
		"https://evil.com/x.aliyuncs.com/a.png":                             errUntrusted,
		"https://evil.com#.aliyuncs.com":                                    errUntrusted,
		"https://x.aliyuncs.com./a.png":                                     errUntrusted,
		"https://x.aliyuncs.com:8443/a.png":                                 nil,
		"https://x.aliyuncs.com@evil.com/a.png":                             nil,
		"https://user:pw@x.aliyuncs.com/a.png":                              nil,
		"https:x.aliyuncs.com/a.png":                                        nil,
		"https:///a.png":                                                    nil,
		"http://127.0.0.1:22/":                                              nil,
		"ftp://evil.com/a.png":                                              nil,
		"oss://bucket/a.png":                                                nil,
		"file:///etc/passwd":                                                nil,
		"://" + secretQuery:                                                 nil,
		"https://x.aliyuncs.com/%zz" + secretQuery:                          nil,
		"": nil,
	} {
		for _, spool := range []*storage.Spool{open(), aliyun, simulator} {
			_, err := spool.Fetch(t.Context(), "a", url)
			assertDialed(t, err, want, url)
		}
	}
	for url, want := range map[string]error{
		"http://127.0.0.1:8766/result/a.png":   errTrusted,
		"https://127.0.0.1:8766/result/a.png":  nil,
		"http://127.0.0.1:8767/result/a.png":   nil,
		"http://u@127.0.0.1:8766/result/a.png": nil,
		"http://localhost:8766/result/a.png":   nil,
		"http://localhost/result/a.png":        errUntrusted,
		"https://proxy.example.com/a.png":      errTrusted,
		"http://proxy.example.com/a.png":       errUntrusted,
	} {
		_, err := simulator.Fetch(t.Context(), "a", url)
		assertDialed(t, err, want, url)
	}
}

// assertDialed checks which dialer was used; want is nil for none.
func assertDialed(t *testing.T, err, want error, url string) {
	t.Helper()
	var failed *storage.FetchError
	require.ErrorAs(t, err, &failed, url)
	if want == nil {
		assert.Equal(t, storage.FetchForbidden, failed.Kind, url)
	} else {
		assert.Equal(t, storage.FetchTemporary, failed.Kind, url)
		assert.ErrorIs(t, err, want, url)
	}
	assertNoSecret(t, err)
}

func TestOpenSpoolValidatesConfig(t *testing.T) {
	t.Parallel()
	for _, cfg := range []storage.SpoolConfig{{MaxBytes: -1}, {StallTimeout: -1}, {HeaderTimeout: -1}, {Sources: []string{"http://h", "dashscope"}}, {Sources: []string{"http://u:p@h"}}, {Sources: []string{""}}} {
		_, err := storage.OpenSpool(t.TempDir(), cfg)
		assert.Error(t, err, "%+v", cfg)
	}
	spool := openSpool(t)
	for _, name := range []string{"", ".", "..", "a/b", `a\b`, strings.Repeat("a", 256), "ä\u200d"} {
		_, err := spool.Fetch(t.Context(), name, "https://x.aliyuncs.com/a.png")
		require.ErrorContains(t, err, "the name must be", name)
		require.ErrorContains(t, spool.Remove(name), "the name must be", name)
	}
}

// A server that stops sending in the middle of an image is timed out.
func TestFetchStallTimeout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		content := pngOf(100_000, 1)
		spool, err := storage.OpenSpool(dir, storage.SpoolConfig{Sources: []string{"http://simulator"}, Transport: trickle{content, 9, 20 * time.Second}})
		require.NoError(t, err)
		start := time.Now()
		_, err = spool.Fetch(t.Context(), "a", "http://simulator/a.png"+secretQuery)
		var failed *storage.FetchError
		require.ErrorAs(t, err, &failed)
		assert.Equal(t, storage.FetchTemporary, failed.Kind)
		assert.ErrorContains(t, err, "stopped sending")
		// Nine portions, 20 s apart, then 30 s without any bytes.
		assert.Equal(t, 8*20*time.Second+30*time.Second, time.Since(start))

		stopped := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stopped) })
		_, err = spool.Fetch(ctx, "a", "http://simulator/a.png")
		require.ErrorIs(t, err, stopped)
		assert.NotErrorAs(t, err, &failed, "a shutdown is not an error of the source")
	})
}

// trickle sends portions of content with pauses, and then stops.
type trickle struct {
	content  []byte
	portions int
	pause    time.Duration
}

func (s trickle) RoundTrip(r *http.Request) (*http.Response, error) {
	body, w := io.Pipe()
	context.AfterFunc(r.Context(), func() { _ = w.CloseWithError(r.Context().Err()) })
	go func() {
		for i := range s.portions {
			if i > 0 {
				select {
				case <-time.After(s.pause):
				case <-r.Context().Done():
				}
			}
			_, _ = w.Write(s.content[i*10 : i*10+10])
		}
	}()
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		Body: body, ContentLength: int64(len(s.content)), Request: r,
	}, nil
}

// Fetching and storing need the same memory for images of any size.
func TestMemoryIsIndependentOfImageSize(t *testing.T) { //nolint:paralleltest // measures the whole process
	server := openEmbedded(t)
	b := newBucket(t, embeddedConfig(server, "http://bucket.invalid", server.HTTPClient()))
	use := func(dataBytes int) uint64 {
		content := pngOf(dataBytes, 1)
		spool, err := newSpool(t, whole{content})
		require.NoError(t, err)
		return allocated(func() {
			file, err := spool.Fetch(t.Context(), "a", "http://simulator/a.png")
			require.NoError(t, err)
			require.NoError(t, b.PutImage(t.Context(), "memory.png", file, nil))
		})
	}
	use(1 << 20) // allocations that happen only once
	small, large := use(1<<20), use(60<<20)
	t.Logf("allocated for 1 MiB: %d KiB, for 60 MiB: %d KiB", small>>10, large>>10)
	assert.Less(t, large, small+256<<10)
}

type whole struct{ content []byte }

func (s whole) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: r,
		Body: io.NopCloser(bufio.NewReader(bytes.NewReader(s.content))), ContentLength: int64(len(s.content)),
	}, nil
}
