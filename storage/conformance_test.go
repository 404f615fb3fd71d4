package storage_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/storage/storagetest"
)

func openEmbedded(tb testing.TB) *embedded.Server {
	tb.Helper()
	server, err := embedded.Open(embedded.Config{Dir: tb.TempDir()})
	require.NoError(tb, err)
	tb.Cleanup(func() { assert.NoError(tb, server.Close()) })
	return server
}

func embeddedConfig(server *embedded.Server, endpoint string, client storage.HTTPClient) storage.Config {
	id, secret := server.Credentials()
	return storage.Config{
		Bucket: server.Bucket(), Prefix: "图/p", Endpoint: endpoint, AccessKeyID: id, SecretAccessKey: secret, HTTPClient: client,
	}
}

func inProcess(tb testing.TB) storage.Config {
	tb.Helper()
	server := openEmbedded(tb)
	return embeddedConfig(server, "http://bucket.invalid", server.HTTPClient())
}

func overTLS(tb testing.TB) storage.Config {
	tb.Helper()
	server := openEmbedded(tb)
	front := httptest.NewTLSServer(server)
	tb.Cleanup(front.Close)
	return embeddedConfig(server, front.URL, front.Client())
}

func overLoopback(tb testing.TB) storage.Config {
	tb.Helper()
	server := openEmbedded(tb)
	front := httptest.NewServer(server)
	tb.Cleanup(front.Close)
	return embeddedConfig(server, front.URL, front.Client())
}

// storeConfig returns the configuration for a store with an addressing style. Each
// configuration has its own prefix, because several may use the same bucket.
func storeConfig(s *storagetest.Store, addressing string) storage.Config {
	cfg := storage.Config{
		Bucket: storagetest.Bucket, Region: storagetest.Region, Endpoint: s.Endpoint, Addressing: addressing, HTTPClient: s.Client,
		AccessKeyID: storagetest.AccessKeyID, SecretAccessKey: storagetest.SecretAccessKey,
	}
	if addressing == storage.AddressingVirtual {
		cfg.Endpoint = s.VirtualEndpoint
	}
	cfg.Prefix = "图/" + accessName(cfg)
	return cfg
}

func accessName(cfg storage.Config) string {
	scheme, _, _ := strings.Cut(cfg.Endpoint, ":")
	return cfg.Addressing + " over " + scheme
}

// accesses returns the configurations for stores with every addressing style, by name.
func accesses(stores ...*storagetest.Store) map[string]storage.Config {
	all := map[string]storage.Config{}
	for _, s := range stores {
		for _, addressing := range []string{storage.AddressingPath, storage.AddressingVirtual} {
			cfg := storeConfig(s, addressing)
			all[accessName(cfg)] = cfg
		}
	}
	return all
}

// target is a store under test.
type target struct {
	// open returns its configurations by name.
	open func(testing.TB) map[string]storage.Config
	// wrong has mistakes in the configuration that only this store detects, by the
	// expected error.
	wrong map[string]func(*storage.Config)
}

func targets() map[string]target {
	// The host is not configured in the store, nor is it in its certificate.
	misaddressed := func(c *storage.Config) {
		c.Endpoint, c.Addressing = strings.NewReplacer("s3.localtest", "localtest", "127.0.0.1", "localtest").Replace(c.Endpoint), storage.AddressingVirtual
	}
	return map[string]target{
		"embedded": {open: func(tb testing.TB) map[string]storage.Config {
			tb.Helper()
			return map[string]storage.Config{"in process": inProcess(tb), "over loopback": overLoopback(tb), "over TLS": overTLS(tb)}
		}},
		"versitygw": {open: func(tb testing.TB) map[string]storage.Config {
			tb.Helper()
			return accesses(storagetest.VersityGW(tb), storagetest.VersityGWTLS(tb))
		}, wrong: map[string]func(*storage.Config){
			"set DANQING_S3_ADDRESSING=path": misaddressed,
			`bucket "danqing" is in region "us-east-1", not in "eu-west-1": set AWS_REGION=us-east-1 (`: func(c *storage.Config) { c.Region = "eu-west-1" },
			"AWS_SESSION_TOKEN": func(c *storage.Config) { c.SessionToken = "hush-token" },
		}},
		"ceph": {open: func(tb testing.TB) map[string]storage.Config {
			tb.Helper()
			return accesses(storagetest.Ceph(tb))
		}, wrong: map[string]func(*storage.Config){
			"set DANQING_S3_ADDRESSING=path": misaddressed,
			`the access key ID "denied" may not do this in bucket "danqing"`: func(c *storage.Config) {
				c.AccessKeyID, c.SecretAccessKey = storagetest.DeniedAccessKeyID, storagetest.DeniedSecretAccessKey
			},
		}},
	}
}

// Every store passes the same tests.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, target := range targets() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for access, cfg := range target.open(t) {
				t.Run(access, func(t *testing.T) {
					t.Parallel()
					testConformance(t, cfg)
					t.Run("check", func(t *testing.T) { testCheck(t, cfg, target.wrong) })
					if access == "path over http" {
						t.Run("clock", func(t *testing.T) { testClock(t, cfg) })
					}
				})
			}
		})
	}
}

func newBucket(tb testing.TB, cfg storage.Config) *storage.Bucket {
	tb.Helper()
	b, err := storage.New(cfg)
	require.NoError(tb, err)
	return b
}

func testConformance(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Run("image", func(t *testing.T) { testImage(t, cfg) })
	t.Run("keys", func(t *testing.T) { testKeys(t, cfg) })
	t.Run("damage", func(t *testing.T) { testDamage(t, cfg) })
	t.Run("sidecar", func(t *testing.T) { testSidecar(t, cfg) })
	t.Run("reference", func(t *testing.T) { testReference(t, cfg) })
	t.Run("held", func(t *testing.T) { testHeld(t, cfg) })
	t.Run("links", func(t *testing.T) { testLinks(t, cfg) })
	t.Run("self-test", func(t *testing.T) { testSelfTest(t, cfg) })
	t.Run("mode", func(t *testing.T) { testMode(t, cfg) })
	t.Run("purge", func(t *testing.T) { testPurge(t, cfg) })
}

func testImage(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	b, ctx := newBucket(t, cfg), t.Context()
	key, err := b.ImageKey(storage.KeyVars{JobID: "image", N: 1})
	require.NoError(t, err)
	_, err = b.Head(ctx, key)
	require.ErrorIs(t, err, storage.ErrNotExist)
	_, _, err = b.Get(ctx, key)
	require.ErrorIs(t, err, storage.ErrNotExist)
	_, err = b.GetRange(ctx, key, 0, 9)
	require.ErrorIs(t, err, storage.ErrNotExist)

	for i, content := range [][]byte{pngOf(100_000, 1), pngOf(100_000, 1), pngOf(100_000, 2), pngOf(1, 3)} {
		file := verifiedFile(t, content)
		before := time.Now().Add(-2 * time.Second) // stores truncate to seconds
		require.NoError(t, b.PutImage(ctx, key, file, map[string]string{"Task-Id": "t" + strconv.Itoa(i), "source-name": "水彩 a.png"}))
		got, err := b.Head(ctx, key)
		require.NoError(t, err)
		assert.WithinRange(t, got.ModifiedAt, before, time.Now().Add(3*time.Second))
		got.ModifiedAt = time.Time{}
		want := storage.Info{
			Key: key, Bytes: int64(len(content)), SHA256: file.SHA256, ContentType: "image/png", ETag: file.MD5,
			Metadata: map[string]string{"sha256": file.SHA256, "task-id": "t" + strconv.Itoa(i), "source-name": "水彩 a.png"},
		}
		assert.Equal(t, want, got)
		part, err := b.GetRange(ctx, key, int64(len(content))/2, int64(len(content))+5)
		require.NoError(t, err)
		half, err := io.ReadAll(part)
		require.NoError(t, err)
		require.NoError(t, part.Close())
		assert.Equal(t, content[len(content)/2:], half)
		body, got, err := b.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, content, readAll(t, body))
		got.ModifiedAt = time.Time{}
		assert.Equal(t, want, got)
	}
}

// Every valid value of a job can be part of a key in every store.
func testKeys(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	cfg.KeyTemplate = "{batch}/{id}/{source_name}/{job_id}-{n}{ext}"
	b, ctx := newBucket(t, cfg), t.Context()
	file := verifiedFile(t, pngOf(10, 1))
	for _, hostile := range []string{"中国画", "a b+c%20d&e=f#g;h,i@j$k!l'm(n)*o~p", "..", `a/../b\c`, "%2e%2e", "\x00\x1f\xff", "é́"} {
		key, err := b.ImageKey(storage.KeyVars{JobID: "hostile", N: 1, Batch: hostile, ID: hostile, SourceName: hostile})
		require.NoError(t, err)
		requireStored(t, b, key, file)
	}
	cfg.KeyTemplate = ""
	b = newBucket(t, cfg)
	for _, id := range []string{"春季主图.A-017", "한글.カタカナ", "สวัสดี.é-Straße", "_jobs.a", "single.a", "single", "𠮷.①", strings.Repeat("春", 26) + "." + strings.Repeat("x", 119)} {
		key, err := b.ImageKey(storage.KeyVars{JobID: id, N: 1})
		require.NoError(t, err)
		requireStored(t, b, key, file)
		link, _, err := b.Link(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, getLink(t, cfg, link, file))
		requireStored(t, b, b.HeldKey("keys", id+".1-1"), file)
		require.NoError(t, b.PutSidecar(ctx, &storage.Sidecar{JobID: id}))
		_, err = b.Sidecar(ctx, id)
		require.NoError(t, err)
		var ids []string
		require.NoError(t, b.SidecarIDs(ctx, id, func(id string, _ time.Time) { ids = append(ids, id) }))
		assert.Contains(t, ids, id)
	}
}

// requireStored stores a file under a key and reads it back.
func requireStored(t *testing.T, b *storage.Bucket, key string, file *storage.File) {
	t.Helper()
	require.NoError(t, b.PutImage(t.Context(), key, file, nil), "%q", key)
	body, _, err := b.Get(t.Context(), key)
	require.NoError(t, err)
	assert.Len(t, readAll(t, body), int(file.Bytes))
}

// A body that differs from the signed hash is refused and not stored.
func testDamage(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	ctx := t.Context()
	key := newBucket(t, cfg).HeldKey("damage", "x.png")
	before, after := verifiedFile(t, pngOf(5000, 1)), verifiedFile(t, pngOf(5000, 2))

	honest := newBucket(t, cfg)
	cfg.HTTPClient = flipping(cfg.HTTPClient)
	damaging := newBucket(t, cfg)
	require.Error(t, damaging.PutImage(ctx, key, before, nil))
	_, err := honest.Head(ctx, key)
	require.ErrorIs(t, err, storage.ErrNotExist)

	require.NoError(t, honest.PutImage(ctx, key, before, nil))
	require.Error(t, damaging.PutImage(ctx, key, after, nil))
	got, err := honest.Head(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, before.SHA256, got.SHA256)
}

func testSidecar(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	b, ctx := newBucket(t, cfg), t.Context()
	_, err := b.Sidecar(ctx, "a.b")
	require.ErrorIs(t, err, storage.ErrNotExist)
	want := &storage.Sidecar{JobID: "a.b", State: "failed", Request: json.RawMessage(`{"prompt":"<水彩>"}`), Seed: 7}
	require.NoError(t, b.PutSidecar(ctx, want))
	want.State = "succeeded" // after a retry
	require.NoError(t, b.PutSidecar(ctx, want), "it replaces the old one")
	got, err := b.Sidecar(ctx, "a.b")
	require.NoError(t, err)
	assert.JSONEq(t, string(want.Request), string(got.Request))
	got.Request = want.Request
	assert.Equal(t, want, got)

	for _, id := range []string{"list.a", "list.b", "list-a"} {
		require.NoError(t, b.PutSidecar(ctx, &storage.Sidecar{JobID: id}))
	}
	for prefix, want := range map[string][]string{"list": {"list-a", "list.a", "list.b"}, "list.": {"list.a", "list.b"}, "list.b": {"list.b"}, "list.c": nil} {
		var ids []string
		require.NoError(t, b.SidecarIDs(ctx, prefix, func(id string, modified time.Time) {
			ids = append(ids, id)
			assert.WithinDuration(t, time.Now(), modified, time.Hour)
		}))
		assert.ElementsMatch(t, want, ids, "prefix %q", prefix)
	}
}

func testReference(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	var puts atomic.Int64
	cfg.HTTPClient = counting(cfg.HTTPClient, http.MethodPut, &puts)
	b, ctx := newBucket(t, cfg), t.Context()
	var content bytes.Buffer
	require.NoError(t, png.Encode(&content, image.NewGray(image.Rect(0, 0, 300, 256))))
	ref, err := storage.ReferenceLimits{}.Inspect(writeFile(t, "参考.dat", content.Bytes()))
	require.NoError(t, err)

	_, _, err = b.OpenReference(ctx, ref.SHA256, "")
	require.ErrorIs(t, err, storage.ErrNotExist)
	require.NoError(t, b.StageReference(ctx, ref))
	require.NoError(t, b.StageReference(ctx, ref))
	assert.EqualValues(t, 1, puts.Load(), "a second upload is skipped")
	body, got, err := b.OpenReference(ctx, ref.SHA256, "")
	require.NoError(t, err)
	assert.Equal(t, content.Bytes(), readAll(t, body))
	assert.Equal(t, "image/png", got.ContentType)
	assert.Equal(t, ref.Bytes, got.Bytes)

	require.NoError(t, os.WriteFile(ref.Path, []byte("changed"), 0o600))
	assert.ErrorContains(t, b.StageReference(ctx, ref), "has changed")
}

func testHeld(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	b, ctx := newBucket(t, cfg), t.Context()
	html := []byte("<html>no image</html>")
	_, err := b.Quarantine(ctx, "task-1", "job.1-1", writeFile(t, "x", html))
	require.NoError(t, err)
	_, err = b.Quarantine(ctx, "task-1", "empty", writeFile(t, "y", nil))
	require.NoError(t, err)
	key, err := b.Quarantine(ctx, "task-1", "job.1-1", writeFile(t, "z", []byte("something else")))
	require.NoError(t, err)
	assert.Equal(t, b.HeldKey("task-1", "job.1-1-f41f3fa6"), key, "a held file is not overwritten")
	body, got, err := b.Get(ctx, b.HeldKey("task-1", "job.1-1"))
	require.NoError(t, err)
	assert.Equal(t, html, readAll(t, body))
	assert.Equal(t, cfg.Prefix+"/_held/task-1/job.1-1", got.Key)
	assert.Equal(t, "text/html; charset=utf-8", got.ContentType)
	got, err = b.Head(ctx, b.HeldKey("task-1", "empty"))
	require.NoError(t, err)
	assert.Zero(t, got.Bytes)
}

func testLinks(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	b, ctx := newBucket(t, cfg), t.Context()
	key := b.HeldKey("links", "水彩 1.png")
	file := verifiedFile(t, pngOf(50, 1))
	require.NoError(t, b.PutImage(ctx, key, file, nil))
	link, expiresAt, err := b.Link(ctx, key)
	require.NoError(t, err)
	assert.WithinRange(t, expiresAt, time.Now().Add(storage.LinkLifetime-time.Minute), time.Now().Add(storage.LinkLifetime))
	assert.Equal(t, http.StatusOK, getLink(t, cfg, link, file))
	assert.Equal(t, http.StatusForbidden, getLink(t, cfg, link[:len(link)-4]+"0000", file), "a changed signature")
}

// getLink requests the link of a file and returns the status.
func getLink(t *testing.T, cfg storage.Config, link string, file *storage.File) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, http.NoBody)
	require.NoError(t, err)
	resp, err := cfg.HTTPClient.Do(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	if resp.StatusCode == http.StatusOK {
		assert.Len(t, body, int(file.Bytes))
	}
	return resp.StatusCode
}

// Check distinguishes the mistakes, and names the setting.
func testCheck(t *testing.T, cfg storage.Config, wrong map[string]func(*storage.Config)) {
	t.Helper()
	t.Parallel()
	require.NoError(t, newBucket(t, cfg).Check(t.Context()))
	mistakes := map[string]func(*storage.Config){
		`bucket "elsewhere" does not exist at ` + cfg.Endpoint + ": create it, or correct DANQING_S3_BUCKET": func(c *storage.Config) { c.Bucket = "elsewhere" },
		`has no access key ID "nobody": correct AWS_ACCESS_KEY_ID`:                                           func(c *storage.Config) { c.AccessKeyID = "nobody" },
		`does not match the access key ID "` + cfg.AccessKeyID + `": correct AWS_SECRET_ACCESS_KEY`:          func(c *storage.Config) { c.SecretAccessKey = "hush-secret" },
	}
	maps.Copy(mistakes, wrong)
	for want, change := range mistakes {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			_, err := requireCheckError(t, cfg, change, want).Sidecar(t.Context(), "a")
			require.Error(t, err)
			assert.NotErrorIs(t, err, storage.ErrNotExist, "an error is not taken for a missing sidecar")
		})
	}
	if wrong != nil && cfg.Addressing == storage.AddressingPath {
		for want, change := range tlsMistakes(cfg) {
			requireCheckError(t, cfg, change, want)
		}
	}
}

// requireCheckError applies change, requires Check to fail with want, and returns the
// bucket.
func requireCheckError(t *testing.T, cfg storage.Config, change func(*storage.Config), want string) *storage.Bucket {
	t.Helper()
	bad := cfg
	change(&bad)
	b := newBucket(t, bad)
	err := b.Check(t.Context())
	require.ErrorContains(t, err, want)
	assertOneSentence(t, err)
	for _, secret := range []string{cfg.SecretAccessKey, "hush", storagetest.DeniedSecretAccessKey} {
		assert.NotContains(t, fmt.Sprint(err, bad, b), secret)
	}
	return b
}

// tlsMistakes returns mistakes about TLS by the expected error.
func tlsMistakes(cfg storage.Config) map[string]func(*storage.Config) {
	if strings.HasPrefix(cfg.Endpoint, "http:") {
		return map[string]func(*storage.Config){
			"does not speak TLS: begin AWS_ENDPOINT_URL_S3 with http://": func(c *storage.Config) { c.Endpoint = strings.Replace(c.Endpoint, "http:", "https:", 1) },
		}
	}
	return map[string]func(*storage.Config){
		"if it speaks TLS, begin AWS_ENDPOINT_URL_S3 with https://":        func(c *storage.Config) { c.Endpoint = strings.Replace(c.Endpoint, "https:", "http:", 1) },
		"an authority that this machine does not trust: set SSL_CERT_FILE": func(c *storage.Config) { c.HTTPClient = nil },
	}
}

// A wrong clock is refused once: the SDK then corrects it by the store's time. In the
// synctest bubble it is the year 2000.
func testClock(t *testing.T, cfg storage.Config) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // all goroutines must end in the bubble
		var dates []string
		cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
			dates = append(dates, r.Header.Get("X-Amz-Date")[:4])
			return client.Do(r)
		})
		b := newBucket(t, cfg)
		require.NoError(t, b.Check(t.Context()))
		require.NoError(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "clock"}))
		require.Len(t, dates, 4, "two for the check")
		assert.Equal(t, "2000", dates[0])
		assert.NotContains(t, dates[1:], "2000")
	})
}
