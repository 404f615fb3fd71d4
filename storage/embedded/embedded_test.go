package embedded_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage/embedded"
)

func open(tb testing.TB, dir string) *embedded.Server {
	tb.Helper()
	server, err := embedded.Open(embedded.Config{Dir: dir})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = server.Close() }) // fails if the test has closed it
	return server
}

// client returns an S3 client of server; change adjusts its options.
func client(server *embedded.Server, change ...func(*s3.Options)) *s3.Client {
	id, secret := server.Credentials()
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("http://bucket.invalid"), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
		HTTPClient:  server.HTTPClient(),
		// Most tests check the first response.
		RetryMaxAttempts:           1,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
	}, change...)
}

var bucketName = aws.String(embedded.DefaultBucket)

func put(ctx context.Context, c *s3.Client, key, content string) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucketName, Key: &key, Body: strings.NewReader(content)})
	return err
}

func get(t *testing.T, c *s3.Client, key string) string {
	t.Helper()
	out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: &key})
	require.NoError(t, err, key)
	defer func() { require.NoError(t, out.Body.Close()) }()
	content, err := io.ReadAll(out.Body)
	require.NoError(t, err)
	return string(content)
}

// refusal returns the status and code of a failed call, 0 and "" for success.
func refusal(err error) (status int, code string) {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	return status, code
}

func TestObjectsAreFilesAndSurviveRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, dir)
	_, err := client(server).PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: bucketName, Key: aws.String("春/a-1.png"), Body: strings.NewReader("content"),
		ContentType: aws.String("image/png"), CacheControl: aws.String("no-cache"), Metadata: map[string]string{"job": "a"},
	})
	require.NoError(t, err)
	path := server.Path("春/a-1.png")
	assert.Equal(t, filepath.Join(dir, "danqing", "春", "a-1.png"), path)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "content", string(got))

	_, err = embedded.Open(embedded.Config{Dir: dir})
	require.ErrorContains(t, err, "in use by another process")
	require.NoError(t, server.Close())
	server = open(t, dir)
	head, err := client(server).HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucketName, Key: aws.String("春/a-1.png")})
	require.NoError(t, err)
	assert.Equal(t, "image/png", *head.ContentType)
	assert.Equal(t, "no-cache", *head.CacheControl)
	assert.Equal(t, map[string]string{"job": "a"}, head.Metadata)
	assert.Equal(t, etag("content"), *head.ETag)
	assert.Equal(t, "content", get(t, client(server), "春/a-1.png"))
}

func etag(content string) string {
	sum := md5.Sum([]byte(content))
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func TestOpenValidatesConfig(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for want, cfg := range map[string]embedded.Config{
		"Dir is empty":     {},
		`Bucket "Images"`:  {Dir: t.TempDir(), Bucket: "Images"},
		"at least 3":       {Dir: t.TempDir(), AccessKeyID: "ab", SecretAccessKey: "s"},
		"go together":      {Dir: t.TempDir(), AccessKeyID: "abc"},
		"not a directory":  {Dir: file},
		"leave both empty": {Dir: t.TempDir(), SecretAccessKey: "s3cr3t"},
	} {
		_, err := embedded.Open(cfg)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, fmt.Sprintf("%v %v %+v %#v", err, cfg, cfg, cfg), "s3cr3t")
	}
}

// Files that are edited, added or removed by hand are served as they are.
func TestFilesChangedByHand(t *testing.T) {
	t.Parallel()
	server := open(t, t.TempDir())
	c := client(server)
	require.NoError(t, put(t.Context(), c, "a.png", "before"))
	require.NoError(t, put(t.Context(), c, "gone.png", "before"))
	require.NoError(t, os.WriteFile(server.Path("a.png"), []byte("edited by hand"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Dir(server.Path("dir/x")), 0o700))
	require.NoError(t, os.WriteFile(server.Path("dir/dropped.jpg"), []byte("dropped"), 0o600))
	require.NoError(t, os.WriteFile(server.Path("dir/html"), []byte("<html></html>"), 0o600))
	require.NoError(t, os.WriteFile(server.Path("dir")+"/not-utf8-\xff", []byte("x"), 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", server.Path("link")))
	require.NoError(t, os.Remove(server.Path("gone.png")))

	for key, want := range map[string][2]string{
		"a.png": {"edited by hand", "image/png"}, "dir/dropped.jpg": {"dropped", "image/jpeg"}, "dir/html": {"<html></html>", "text/html; charset=utf-8"},
	} {
		assert.Equal(t, want[0], get(t, c, key))
		head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucketName, Key: &key})
		require.NoError(t, err)
		assert.Equal(t, etag(want[0]), *head.ETag)
		assert.Equal(t, want[1], *head.ContentType)
	}
	for _, key := range []string{"gone.png", "link", "dir"} {
		_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: &key})
		_, code := refusal(err)
		assert.Equal(t, "NoSuchKey", code, key)
	}
	list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucketName})
	require.NoError(t, err)
	var keys []string
	for _, o := range list.Contents {
		keys = append(keys, *o.Key)
	}
	assert.Equal(t, []string{"a.png", "dir/dropped.jpg", "dir/html"}, keys)
	require.NoError(t, put(t.Context(), c, "a.png", "after"))
	assert.Equal(t, "after", get(t, c, "a.png"))
}

// Two versions with the same size and time keep their own metadata.
func TestVersionsWithEqualTimeAndSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // the clock stands still
		server := open(t, dir)
		c := client(server)
		var before time.Time // identifies a version after a crash
		for i := range 5 {
			content := strconv.Itoa(i)
			_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucketName, Key: aws.String("a"), Body: strings.NewReader(content), Metadata: map[string]string{"i": content}})
			require.NoError(t, err)
			head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucketName, Key: aws.String("a")})
			require.NoError(t, err)
			assert.Equal(t, content, head.Metadata["i"])
			assert.Equal(t, etag(content), *head.ETag)
			stat, err := os.Stat(server.Path("a"))
			require.NoError(t, err)
			assert.NotEqual(t, before, stat.ModTime())
			before = stat.ModTime()
		}
		require.NoError(t, server.Close())
	})
}

func TestInvalidKeysAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, filepath.Join(dir, "store"))
	c := client(server)
	require.NoError(t, put(t.Context(), c, "f", "file"))
	require.NoError(t, put(t.Context(), c, "d/x", "file"))
	long := strings.Repeat("n", 256)
	for _, key := range []string{"../x", "a/../../x", "a/./b", "a//b", "a/", "..", ".", long, "a/" + long + "/b", "f/g", "f/g/h", "d", "a\x00b", strings.Repeat("ab/", 400) + "c"} {
		err := put(t.Context(), c, key, "x")
		status, _ := refusal(err)
		assert.Equal(t, http.StatusBadRequest, status, "%q: %v", key, err)
	}
	for _, key := range []string{".danqing/lock", ".danqing/meta/x"} { // an ordinary folder of the bucket
		require.NoError(t, put(t.Context(), c, key, "x"))
		assert.Equal(t, "x", get(t, c, key))
	}
	assert.Empty(t, server.Path("../x"))
	assert.Equal(t, "file", get(t, c, "f"))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing outside of the store")

	// Reading and deleting invalid keys has no effect.
	for _, key := range []string{"../../etc/passwd", "f/g", "a//b"} {
		_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: &key})
		status, _ := refusal(err)
		assert.Contains(t, []int{http.StatusBadRequest, http.StatusNotFound}, status, key)
	}
}

// The file of every valid key is below the bucket's folder and belongs to that key only.
func FuzzPath(f *testing.F) {
	for _, key := range []string{"a/b.png", "../x", "..", ".", "", "a//b", "/a", "a/", "a\x00b", "春/水", "C:\\x", ".danqing/lock"} {
		f.Add(key)
	}
	dir := f.TempDir()
	server := open(f, dir)
	f.Fuzz(func(t *testing.T, key string) {
		path := server.Path(key)
		if path == "" {
			return
		}
		rel, err := filepath.Rel(filepath.Join(dir, embedded.DefaultBucket), path)
		if err != nil || !filepath.IsLocal(rel) || filepath.ToSlash(rel) != key {
			t.Fatalf("key %q is at %q: %v", key, path, err)
		}
		if !fs.ValidPath(key) || key == "." {
			t.Fatalf("key %q is accepted", key)
		}
	})
}

func TestRangesAndConditions(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	require.NoError(t, put(t.Context(), c, "a", "0123456789"))
	for rng, want := range map[string]string{"bytes=0-3": "0123", "bytes=7-": "789", "bytes=-2": "89", "bytes=4-99": "456789"} {
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("a"), Range: &rng})
		require.NoError(t, err)
		got, err := io.ReadAll(out.Body)
		require.NoError(t, err)
		assert.Equal(t, want, string(got), rng)
		assert.EqualValues(t, len(want), *out.ContentLength)
	}
	_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("a"), Range: aws.String("bytes=10-")})
	status, _ := refusal(err)
	assert.Equal(t, http.StatusRequestedRangeNotSatisfiable, status)
	_, err = c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("a"), IfNoneMatch: aws.String(etag("0123456789"))})
	status, _ = refusal(err)
	assert.Equal(t, http.StatusNotModified, status)
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucketName, Key: aws.String("a"), Body: strings.NewReader("x"), IfMatch: aws.String(etag("other"))})
	status, _ = refusal(err)
	assert.Equal(t, http.StatusPreconditionFailed, status)
}

// Exactly one of many concurrent conditional writes succeeds.
func TestConditionalWritesRace(t *testing.T) {
	t.Parallel()
	server := open(t, t.TempDir())
	c := client(server)
	for round := range 10 {
		key := fmt.Sprintf("race/%d", round)
		var wins atomic.Int64
		var winner atomic.Value
		var writers sync.WaitGroup
		for i := range 16 {
			writers.Go(func() {
				content := strconv.Itoa(i)
				_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucketName, Key: &key, Body: strings.NewReader(content), IfNoneMatch: aws.String("*")})
				if err == nil {
					wins.Add(1)
					winner.Store(content)
					return
				}
				status, _ := refusal(err)
				assert.Equal(t, http.StatusPreconditionFailed, status)
			})
		}
		writers.Wait()
		assert.EqualValues(t, 1, wins.Load())
		assert.Equal(t, winner.Load(), get(t, c, key))
	}
}

// Readers see a complete version while writers replace it, deletes remove folders, and
// other keys are put into them.
func TestConcurrentReadersWritersAndDeletes(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	require.NoError(t, put(t.Context(), c, "d/e/a", version(0, 0)))
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 25 {
				assert.NoError(t, put(t.Context(), c, "d/e/a", version(w, i)))
				other := fmt.Sprintf("d/%d/x", w)
				assert.NoError(t, put(t.Context(), c, other, "x"))
				_, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucketName, Key: &other})
				assert.NoError(t, err)
			}
		})
		all.Go(func() {
			for range 100 {
				out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("d/e/a")})
				if !assert.NoError(t, err) {
					return
				}
				content, err := io.ReadAll(out.Body)
				assert.NoError(t, err)
				assert.Equal(t, etag(string(content)), *out.ETag)
			}
		})
	}
	all.Wait()
}

func version(w, i int) string { return strings.Repeat(fmt.Sprintf("%d.%d,", w, i), 20_000) }

func TestDeleteRemovesEmptyFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, dir)
	c := client(server)
	require.NoError(t, put(t.Context(), c, "a/b/c", "x"))
	require.NoError(t, put(t.Context(), c, "a/d", "x"))
	for range 2 { // deleting a missing object is not an error
		_, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucketName, Key: aws.String("a/b/c")})
		require.NoError(t, err)
	}
	assert.NoDirExists(t, filepath.Dir(server.Path("a/b/c")))
	assert.FileExists(t, server.Path("a/d"))
	metas, err := os.ReadDir(filepath.Join(dir, ".danqing", "meta", "danqing"))
	require.NoError(t, err)
	assert.Len(t, metas, 1)
}

func TestOpenRemovesCrashLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, dir)
	c := client(server)
	require.NoError(t, put(t.Context(), c, "kept", "x"))
	require.NoError(t, put(t.Context(), c, "gone", "x"))
	require.NoError(t, os.Remove(server.Path("gone")))
	require.NoError(t, server.Close())
	temp := filepath.Join(dir, ".danqing", "temp", "77")
	require.NoError(t, os.WriteFile(temp, []byte("half"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".danqing", "meta", "danqing", "garbage.json"), []byte("{"), 0o600))

	open(t, dir)
	assert.NoFileExists(t, temp)
	metas, err := os.ReadDir(filepath.Join(dir, ".danqing", "meta", "danqing"))
	require.NoError(t, err)
	assert.Len(t, metas, 1)
}

func TestCopyAndDeleteMany(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucketName, Key: aws.String("a b"), Body: strings.NewReader("content"), Metadata: map[string]string{"k": "v"}})
	require.NoError(t, err)
	_, err = c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: bucketName, Key: aws.String("c/d"), CopySource: aws.String("danqing/a%20b")})
	require.NoError(t, err)
	head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucketName, Key: aws.String("c/d")})
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"k": "v"}, head.Metadata)
	assert.Equal(t, "content", get(t, c, "c/d"))
}

func TestOnlyOneBucket(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	list, err := c.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	require.NoError(t, err)
	require.Len(t, list.Buckets, 1)
	assert.Equal(t, embedded.DefaultBucket, *list.Buckets[0].Name)
	_, err = c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("other"), Key: aws.String("a")})
	_, code := refusal(err)
	assert.Equal(t, "NoSuchBucket", code)
	_, err = c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("other")})
	_, code = refusal(err)
	assert.Equal(t, "NotImplemented", code)
	_, err = c.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: bucketName})
	_, code = refusal(err)
	assert.Equal(t, "NotImplemented", code)
}

// When a key and a key below it are put concurrently, one of them is refused and the
// other is complete.
func TestKeyAndFolderRace(t *testing.T) {
	t.Parallel()
	c := client(open(t, t.TempDir()))
	for round := range 30 {
		keys := []string{fmt.Sprintf("%d/f", round), fmt.Sprintf("%d/f/g", round), fmt.Sprintf("%d/f/g/h", round)}
		errs := make([]error, len(keys))
		var writers sync.WaitGroup
		for i, key := range keys {
			writers.Go(func() { errs[i] = put(t.Context(), c, key, key) })
		}
		writers.Wait()
		stored := 0
		for i, key := range keys {
			if errs[i] == nil {
				stored++
				assert.Equal(t, key, get(t, c, key))
				continue
			}
			status, _ := refusal(errs[i])
			assert.Equal(t, http.StatusBadRequest, status, "%v", errs[i])
		}
		assert.Equal(t, 1, stored, "%v", errs)
	}
}

// A byte that changed on the disk, in an object or in its metadata, is never served: the
// object is refused, or its metadata is made again from the object.
func TestDamageOnTheDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := open(t, dir)
	c := client(server)
	require.NoError(t, put(t.Context(), c, "a/b.json", `{"key": "a-1.png"}`))
	files, err := filepath.Glob(filepath.Join(dir, ".danqing", "meta", "*", "*.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	refused := 0
	for _, file := range append(files, server.Path("a/b.json")) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		stat, err := os.Stat(file)
		require.NoError(t, err)
		for at := range text {
			damaged := slices.Clone(text)
			damaged[at] ^= 1
			require.NoError(t, os.WriteFile(file, damaged, 0o600))
			require.NoError(t, os.Chtimes(file, stat.ModTime(), stat.ModTime()))
			out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: aws.String("a/b.json")})
			if err != nil {
				var answer smithy.APIError
				require.ErrorAs(t, err, &answer)
				require.Equal(t, "BadDigest", answer.ErrorCode())
				require.Contains(t, answer.ErrorMessage(), "The file of a/b.json was damaged on the disk: restore it")
				refused++
				continue
			}
			content, err := io.ReadAll(out.Body)
			require.NoError(t, err)
			require.Equal(t, `{"key": "a-1.png"}`, string(content), "byte %d of %s", at, file)
		}
		require.NoError(t, os.WriteFile(file, text, 0o600))
		require.NoError(t, os.Chtimes(file, stat.ModTime(), stat.ModTime()))
	}
	require.Equal(t, len(`{"key": "a-1.png"}`), refused)
}
