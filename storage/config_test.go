package storage_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

func goodConfig() storage.Config {
	return storage.Config{Bucket: "images", Region: "cn-beijing", Endpoint: "https://s3.example.com", AccessKeyID: "AKID", SecretAccessKey: "s3cr3t", SessionToken: "t0k3n"}
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*storage.Config){
		"Bucket is empty: name":                     func(c *storage.Config) { c.Bucket = "" },
		`Bucket "my.images" has a dot: use`:         func(c *storage.Config) { c.Bucket = "my.images" },
		`Bucket "Images": must be 3 to 63`:          func(c *storage.Config) { c.Bucket = "Images" },
		`Prefix "a/../b": must be a plain`:          func(c *storage.Config) { c.Prefix = "/a/../b/" },
		`Prefix "a//b": must be a plain`:            func(c *storage.Config) { c.Prefix = "a//b" },
		"Region is empty: AWS and OSS need":         func(c *storage.Config) { c.Region, c.Endpoint = "", "https://s3.oss-cn-beijing.aliyuncs.com" },
		"Endpoint must be a URL such as":            func(c *storage.Config) { c.Endpoint = "s3.example.com" },
		"Endpoint must not hold credentials":        func(c *storage.Config) { c.Endpoint = "https://u:s3cr3t@h" },
		`Endpoint "https://h/images" has a path`:    func(c *storage.Config) { c.Endpoint = "https://h/images/" },
		"begins with the bucket's name: leave that": func(c *storage.Config) { c.Endpoint = "https://images.s3.oss-cn-beijing.aliyuncs.com" },
		"PublicEndpoint must be a URL":              func(c *storage.Config) { c.PublicEndpoint = "h" },
		"PublicURL must have neither query":         func(c *storage.Config) { c.PublicURL = "https://cdn/x?y" },
		"AccessKeyID is empty: set it":              func(c *storage.Config) { c.AccessKeyID = "" },
		"SecretAccessKey has white space around it": func(c *storage.Config) { c.SecretAccessKey = "s3cr3t\n" },
		`Addressing "vhost": must be`:               func(c *storage.Config) { c.Addressing = "vhost" },
		"must hold {job_path} or {job_id}, and {n}": func(c *storage.Config) { c.KeyTemplate = "{job_id}{ext}" },
		"unknown variable {jobid}: use {job_path}":  func(c *storage.Config) { c.KeyTemplate = "{jobid}-{n}" },
		"stray brace":                     func(c *storage.Config) { c.KeyTemplate = "{job_id}-{n}}" },
		"an empty folder":                 func(c *storage.Config) { c.KeyTemplate = "/{job_id}-{n}" },
		"those folders are reserved":      func(c *storage.Config) { c.KeyTemplate = "_jobs/{job_id}-{n}" },
		"two jobs could get the same key": func(c *storage.Config) { c.KeyTemplate = "{id}-{job_id}-{n}" },
		"{n} must stand between text":     func(c *storage.Config) { c.KeyTemplate = "{job_id}/{source_name}{n}{ext}" },
		"makes names of up to 256 bytes":  func(c *storage.Config) { c.KeyTemplate = "{job_id}-{n}/{id}{batch}{model}{source_name}" },
		"makes keys of up to 1":           func(c *storage.Config) { c.KeyTemplate = strings.Repeat("{id}/", 15) + "{job_id}-{n}" },
	} {
		cfg := goodConfig()
		change(&cfg)
		_, err := storage.New(cfg)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "s3cr3t")
	}
	_, err := storage.New(storage.Config{Addressing: "x"})
	for _, field := range []string{"Bucket", "Region", "AccessKeyID", "SecretAccessKey", "Addressing"} {
		assert.ErrorContains(t, err, field, "all of them at once")
	}
}

func TestConfigStringOmitsSecrets(t *testing.T) {
	t.Parallel()
	cfg := goodConfig()
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "config", cfg)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "config", cfg)
	text, err := json.Marshal(cfg)
	require.NoError(t, err)
	for _, shown := range []string{log.String(), string(text), fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, cfg)} {
		assert.NotContains(t, shown, "s3cr3t")
		assert.NotContains(t, shown, "t0k3n")
		assert.Contains(t, shown, "AKID")
	}
}

// The bucket's name is in the host or in the path, depending on the store.
func TestAddressing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ endpoint, addressing, want string }{
		{"", "", "https://images.s3.cn-beijing.amazonaws.com/k?"},
		{"https://s3.oss-cn-beijing.aliyuncs.com", "", "https://images.s3.oss-cn-beijing.aliyuncs.com/k?"},
		{"http://127.0.0.1:9000/", "", "http://127.0.0.1:9000/images/k?"},
		{"https://acct.r2.cloudflarestorage.com", "", "https://acct.r2.cloudflarestorage.com/images/k?"},
		{"https://minio.example.com", "virtual", "https://images.minio.example.com/k?"},
		{"https://s3.us-east-1.amazonaws.com", "path", "https://s3.us-east-1.amazonaws.com/images/k?"},
	} {
		cfg := goodConfig()
		cfg.Endpoint, cfg.Addressing = c.endpoint, c.addressing
		link, _, err := newBucket(t, cfg).Link(t.Context(), "k")
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(link, c.want), link)
	}
}

func TestLinksArePublicOrPresigned(t *testing.T) {
	t.Parallel()
	cfg := goodConfig()
	cfg.PublicEndpoint = "https://public.example.com"
	link, expiresAt, err := newBucket(t, cfg).Link(t.Context(), "a/水 1.png")
	require.NoError(t, err)
	assert.Contains(t, link, "https://public.example.com/images/a/%E6%B0%B4%201.png?")
	assert.Contains(t, link, "X-Amz-Expires=604800&")
	assert.NotContains(t, link, "Checksum")
	assert.WithinDuration(t, time.Now().Add(storage.LinkLifetime), expiresAt, time.Minute)

	cfg.PublicURL = "https://cdn.example.com/pics/"
	link, expiresAt, err = newBucket(t, cfg).Link(t.Context(), "a/水 1?#.png")
	require.NoError(t, err)
	assert.Equal(t, "https://cdn.example.com/pics/a/%E6%B0%B4%201%3F%23.png", link)
	assert.Zero(t, expiresAt)
}

func TestImageKey(t *testing.T) {
	t.Parallel()
	full := storage.KeyVars{
		JobID: "spring.a-1", N: 2, Batch: "春 天", ID: "../a", Model: "wanx-v1", SourceName: "8d82-1.png",
		Date: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), Ext: ".png",
	}
	for template, want := range map[string]string{
		"":                                "p/spring/a-1-2.png",
		"{date}/{job_path}/{n}":           "p/2026-11-22/spring/a-1/2",
		"{job_id}-{n}":                    "p/spring.a-1-2",
		"{date}/{batch}/{job_id}.{n}.png": "p/2026-11-22/春 天/spring.a-1.2.png",
		"{job_id}/{n}/{id}-{model}-{source_name}{ext}": "p/spring.a-1/2/_a-wanx-v1-8d82-1.png",
	} {
		cfg := goodConfig()
		cfg.Prefix, cfg.KeyTemplate = "/p/", template
		key, err := newBucket(t, cfg).ImageKey(full)
		require.NoError(t, err)
		assert.Equal(t, want, key)
	}

	b := newBucket(t, goodConfig())
	for id, want := range map[string]string{
		"a": "single/a-1.png", "_jobs": "single/_jobs-1.png", "_jobs.a": "~_jobs/a-1.png", "Single.a": "~Single/a-1.png",
		"春季主图.A-017": "春季主图/A-017-1.png", "spring.v2.nul": "spring.v2/nul-1.png", "aux_.a": "aux_/a-1.png",
	} {
		key, err := b.ImageKey(storage.KeyVars{JobID: id, N: 1})
		require.NoError(t, err)
		assert.Equal(t, want, key)
	}
	for _, vars := range []storage.KeyVars{{JobID: "a"}, {JobID: "a", N: -1}, {JobID: "a", N: 100}, {N: 1}, {JobID: "a/b", N: 1}, {JobID: "..", N: 1}, {JobID: strings.Repeat("a", 201), N: 1}} {
		_, err := b.ImageKey(vars)
		assert.Error(t, err, "%+v", vars)
	}
	assert.Equal(t, "_held/-/a_b", b.HeldKey("..", "a/b"))
	cfg := goodConfig()
	cfg.KeyTemplate = "{batch}/{id}/{job_id}-{n}"
	key, err := newBucket(t, cfg).ImageKey(storage.KeyVars{JobID: "a", N: 1, Batch: "Con.v2", ID: " .\u202e猫\u0000. "})
	require.NoError(t, err)
	assert.Equal(t, "~Con.v2/_猫_/a-1", key, "valid on every file system")
}

// Names of held files are whole: two images of a job with a long ID are two objects.
func TestHeldKeyOfALongName(t *testing.T) {
	t.Parallel()
	b, id := newBucket(t, goodConfig()), strings.Repeat("春", 66)
	assert.NotEqual(t, b.HeldKey("task", id+".1-1"), b.HeldKey("task", id+".1-2"))
	assert.Contains(t, b.HeldKey("task", id+".1-2-f41f3fa6"), id+".1-2-f41f3fa6")
}

// No two images of valid jobs have the same key, and no key is in a reserved folder,
// for any values of the other variables.
func FuzzImageKey(f *testing.F) {
	f.Add("a", "a-1", "b", "../x", uint8(1), uint8(2))
	f.Add("_jobs.a", "single.a", "_jobs", "", uint8(1), uint8(1))
	f.Add("a.b-1", "a.b", "春", "nul", uint8(1), uint8(11))
	f.Add("single", "single.single", "春", "nul", uint8(1), uint8(11))
	f.Fuzz(func(t *testing.T, jobA, jobB, batch, id string, nA, nB uint8) {
		for _, template := range []string{"", "{batch}/{job_path}-{n}{ext}", "{batch}/{job_id}-{n}{ext}", "{id}/{job_id}/{n}", "{job_path}{ext}/{source_name}-{n}{ext}"} {
			cfg := goodConfig()
			cfg.KeyTemplate = template
			b := newBucket(t, cfg)
			a, errA := b.ImageKey(storage.KeyVars{JobID: jobA, N: int(nA), Batch: batch, ID: id, SourceName: id})
			other, errB := b.ImageKey(storage.KeyVars{JobID: jobB, N: int(nB), Batch: id, ID: batch, SourceName: batch})
			if errA != nil || errB != nil {
				return
			}
			if strings.EqualFold(a, other) && (!strings.EqualFold(jobA, jobB) || nA != nB) || a == other && (jobA != jobB || nA != nB) {
				t.Fatalf("image %d of %q and %d of %q are both %q", nA, jobA, nB, jobB, a)
			}
			for segment := range strings.SplitSeq(a, "/") {
				if strings.Trim(segment, ". ") != segment || segment == "" || len(segment) > 255 {
					t.Fatalf("key %q", a)
				}
			}
			if strings.HasPrefix(a, "_") || len(a) > 1024 {
				t.Fatalf("key %q", a)
			}
		}
	})
}

// PutImage sends one PUT with the unencoded bytes and the digests that stores verify
// in its headers, the same over http and https.
func TestPutImageRequest(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]func(testing.TB) storage.Config{"http": overLoopback, "https": overTLS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := target(t)
			next := cfg.HTTPClient
			var sent []*http.Request
			cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
				sent = append(sent, r.Clone(context.WithoutCancel(r.Context())))
				return next.Do(r)
			})
			file := verifiedFile(t, pngOf(3<<20, 1))
			require.NoError(t, newBucket(t, cfg).PutImage(t.Context(), "a.png", file, map[string]string{"task-id": "t"}))
			require.Len(t, sent, 2, "a PUT and a HEAD")
			assert.Equal(t, http.MethodHead, sent[1].Method)
			put := sent[0]
			assert.Equal(t, http.MethodPut, put.Method)
			assert.Equal(t, file.Bytes, put.ContentLength)
			assert.Equal(t, file.SHA256, put.Header.Get("X-Amz-Content-Sha256"))
			assert.Len(t, put.Header.Get("Content-Md5"), 24)
			assert.Equal(t, file.SHA256, put.Header.Get("X-Amz-Meta-Sha256"))
			assert.Equal(t, "image/png", put.Header.Get("Content-Type"))
			assert.Empty(t, put.TransferEncoding)
			for _, absent := range []string{"Content-Encoding", "X-Amz-Trailer", "X-Amz-Decoded-Content-Length", "X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Checksum-Crc32", "Expect", "If-None-Match", "If-Match"} {
				assert.Empty(t, put.Header.Values(absent), absent)
			}
		})
	}
}

// The stored object is checked: a store that answers 200 and stores something else is
// detected.
func TestPutImageVerifiesStoredObject(t *testing.T) {
	t.Parallel()
	file := verifiedFile(t, pngOf(1000, 1))
	for name, spoil := range map[string]func(http.Header){
		"size":   func(h http.Header) { h.Set("Content-Length", "999") },
		"sha256": func(h http.Header) { h.Del("X-Amz-Meta-Sha256"); delete(h, "x-amz-meta-sha256") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := inProcess(t)
			next := cfg.HTTPClient
			cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
				resp, err := next.Do(r)
				if err == nil && r.Method == http.MethodHead {
					spoil(resp.Header)
				}
				return resp, err
			})
			assert.ErrorContains(t, newBucket(t, cfg).PutImage(t.Context(), "a.png", file, nil), "put it again")
		})
	}
}

// An encrypting store's ETag is not an MD5: the object is read back and compared.
func TestPutImageReadsBackOnOtherETag(t *testing.T) {
	t.Parallel()
	file := verifiedFile(t, pngOf(1000, 1))
	for _, damaged := range []bool{false, true} {
		cfg := inProcess(t)
		next := cfg.HTTPClient
		gets := 0
		cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
			resp, err := next.Do(r)
			if err == nil && r.Method == http.MethodPut {
				resp.Header.Set("ETag", `"0123456789abcdef0123456789abcdef"`)
			}
			if err == nil && r.Method == http.MethodGet {
				gets++
				if damaged {
					resp.Body = readCloser{&flipAt{r: resp.Body, left: resp.ContentLength}, resp.Body}
				}
			}
			return resp, err
		})
		err := newBucket(t, cfg).PutImage(t.Context(), "a.png", file, nil)
		assert.Equal(t, 1, gets)
		if damaged {
			assert.ErrorContains(t, err, "the stored bytes differ from those sent")
		} else {
			assert.NoError(t, err)
		}
	}
}

func TestPutImageAcceptsOnlyVerifiedFiles(t *testing.T) {
	t.Parallel()
	b := newBucket(t, inProcess(t))
	forged := &storage.File{Path: writeFile(t, "a.png", pngOf(10, 1)), Bytes: 67, SHA256: strings.Repeat("0", 64)}
	require.ErrorContains(t, b.PutImage(t.Context(), "a.png", forged, nil), "not a verified file")
	require.ErrorContains(t, b.PutImage(t.Context(), "a.png", nil, nil), "not a verified file")
	_, err := b.Head(t.Context(), "a.png")
	assert.ErrorIs(t, err, storage.ErrNotExist)
}
