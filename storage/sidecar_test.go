package storage_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"github.com/danqing-queue/danqing/storage"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func fullSidecar() *storage.Sidecar {
	at := func(second int) time.Time { return time.Date(2026, 11, 22, 8, 0, second, 5e8, time.UTC) }
	return &storage.Sidecar{
		JobID: "spring.1", Digest: strings.Repeat("d", 64), State: "succeeded", Simulated: true, Account: "main", Model: "wanx-v1",
		Request: json.RawMessage(`{"prompt":"近景镜头,18岁的中国女孩 <&>","n":2,"ref_strength":0.0}`),
		Batch:   "spring", Labels: map[string]string{"系列": "春"}, Priority: "bulk", Seed: 0, RedoOf: "spring.0",
		Attempts: []storage.SidecarAttempt{
			{Attempt: 1, Term: 3, RequestID: "r-1", SubmittedAt: at(1), EndedAt: at(2), Outcome: "refused", Code: "Throttling", Message: "slow down"},
			{Attempt: 2, Term: 4, TaskID: "t-2", RequestID: "r-2", SubmittedAt: at(3), EndedAt: at(30), Outcome: "succeeded"},
		},
		CreatedAt: at(0), SubmittedAt: at(3), FinishedAt: at(31), CostMicroYuan: 160_000,
		Images: []storage.SidecarImage{
			{
				N: 1, State: storage.ImageStored, Key: "spring/1-1.png", Bytes: 1234, SHA256: strings.Repeat("a", 64), Width: 1024, Height: 1024,
				ContentType: "image/png", AILabel: storage.AILabelPresent, SourceName: "u-1.png", Seed: 0, ActualPrompt: "改写",
			},
			{N: 2, State: storage.ImageFailed, Seed: 1, Code: "DataInspectionFailed", Message: "不当内容"},
		},
		Warnings: []string{"prompt has 612 characters, the document says 500"},
	}
}

// The sidecar format is stable: this test compares it with a golden file.
func TestSidecarFormat(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	cfg := embeddedConfig(server, "http://bucket.invalid", server.HTTPClient())
	cfg.Prefix = ""
	b := newBucket(t, cfg)
	want := fullSidecar()
	require.NoError(t, b.PutSidecar(t.Context(), want))
	written, err := os.ReadFile(server.Path("_jobs/spring.1.json"))
	require.NoError(t, err)
	golden := filepath.Join("testdata", "sidecar.json")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o750))
		require.NoError(t, os.WriteFile(golden, written, 0o600))
	}
	recorded, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(recorded), string(written))

	got, err := b.Sidecar(t.Context(), "spring.1")
	require.NoError(t, err)
	assert.JSONEq(t, string(want.Request), string(got.Request))
	got.Request = want.Request
	assert.Equal(t, want, got)
	assert.Equal(t, "t-2", got.TaskID())
	assert.Empty(t, (&storage.Sidecar{}).TaskID())
}

func TestSidecarReading(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	cfg := embeddedConfig(server, "http://bucket.invalid", server.HTTPClient())
	cfg.Prefix = "p"
	b := newBucket(t, cfg)
	require.NoError(t, os.MkdirAll(filepath.Dir(server.Path("p/_jobs/x")), 0o750))
	for id, text := range map[string]string{
		"newer":  `{"job_id":"newer","state":"succeeded","from_the_future":{"a":[1]},"images":[{"n":1,"aura":"x"}]}`,
		"broken": `{"job_id":"broken"`, "other": `{"job_id":"another"}`, "empty": "",
	} {
		require.NoError(t, os.WriteFile(server.Path("p/_jobs/"+id+".json"), []byte(text), 0o600))
	}
	got, err := b.Sidecar(t.Context(), "newer")
	require.NoError(t, err, "unknown fields are ignored")
	assert.Equal(t, "succeeded", got.State)
	for _, id := range []string{"broken", "other", "empty", "a/b", ""} {
		_, err := b.Sidecar(t.Context(), id)
		require.Error(t, err, id)
		assert.NotErrorIs(t, err, storage.ErrNotExist, "%q must not look like an unfinished job", id)
	}
	assert.Error(t, b.PutSidecar(t.Context(), &storage.Sidecar{JobID: "../x"}))
}

// An error response without an S3 body does not mean that there is no sidecar.
func TestSidecarNoAnswerIsNotErrNotExist(t *testing.T) {
	t.Parallel()
	for _, answer := range []int{http.StatusForbidden, http.StatusBadRequest, http.StatusMovedPermanently, http.StatusNotFound} {
		cfg := goodConfig()
		cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: answer, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("<html>proxy</html>")), Request: r}, nil
		})
		_, err := newBucket(t, cfg).Sidecar(t.Context(), "a")
		require.Error(t, err)
		assert.NotErrorIs(t, err, storage.ErrNotExist, "status %d without S3's body", answer)
		assert.Error(t, newBucket(t, cfg).Check(t.Context()), "status %d", answer)
	}
}

func TestReferenceLimits(t *testing.T) {
	t.Parallel()
	picture := func(w, h int) image.Image {
		img := image.NewGray(image.Rect(0, 0, w, h))
		img.Set(1, 1, color.White)
		return img
	}
	encode := func(f func(io.Writer, image.Image) error, w, h int) []byte {
		var b bytes.Buffer
		require.NoError(t, f(&b, picture(w, h)))
		return b.Bytes()
	}
	asJPEG := func(w io.Writer, m image.Image) error { return jpeg.Encode(w, m, nil) }
	asTIFF := func(w io.Writer, m image.Image) error { return tiff.Encode(w, m, nil) }
	asGIF := func(w io.Writer, m image.Image) error { return gif.Encode(w, m, nil) }
	webp := []byte("RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\xff\xc0\x3f\x00\x00\x00\x00\x00\x00\x00\x00\x00") // 256×256

	for name, c := range map[string]struct {
		content []byte
		want    string // content type, or what the error says
	}{
		"least.png":     {encode(png.Encode, 256, 256), "image/png"},
		"most.png":      {encode(png.Encode, 4096, 4096), "image/png"},
		"wrong.png":     {encode(asJPEG, 300, 400), "image/jpeg"},
		"a.bmp":         {encode(bmp.Encode, 300, 400), "image/bmp"},
		"a.tif":         {encode(asTIFF, 300, 400), "image/tiff"},
		"a.webp":        {webp, "image/webp"},
		"narrow.png":    {encode(png.Encode, 255, 300), "is 255×300, allowed are 256×256 to 4096×4096"},
		"wide.png":      {encode(png.Encode, 4097, 300), "is 4097×300, allowed"},
		"a.gif":         {encode(asGIF, 300, 300), "allowed are JPEG, PNG, BMP, TIFF and WEBP"},
		"text.png":      {[]byte("no image"), "allowed are JPEG"},
		"empty.png":     {nil, "allowed are JPEG"},
		"cut.png":       {encode(png.Encode, 300, 300)[:20], "broken"},
		"10MiB.png":     {append(encode(png.Encode, 300, 300), make([]byte, 10<<20-1000)...), "image/png"},
		"too large.png": {append(encode(png.Encode, 300, 300), make([]byte, 10<<20)...), "at most 10485760 (10 MiB) are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, name, c.content)
			ref, err := storage.ReferenceLimits{}.Inspect(path)
			if !strings.HasPrefix(c.want, "image/") {
				require.ErrorContains(t, err, c.want)
				assert.ErrorContains(t, err, name)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, ref.ContentType)
			assert.EqualValues(t, len(c.content), ref.Bytes)
			assert.Len(t, ref.SHA256, 64)
			assert.NotEmpty(t, storage.Extension(ref.ContentType))
		})
	}
	_, err := storage.ReferenceLimits{}.Inspect(t.TempDir())
	require.ErrorContains(t, err, "not a regular file")
	_, err = storage.ReferenceLimits{}.Inspect(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, _, err = newBucket(t, goodConfig()).OpenReference(t.Context(), "../x", "")
	assert.ErrorContains(t, err, "must be a SHA-256")
}

// A sidecar that was damaged on the disk is not taken for a finished job, nor for none.
func TestSidecarDamagedOnTheDisk(t *testing.T) {
	t.Parallel()
	server := openEmbedded(t)
	cfg := embeddedConfig(server, "http://bucket.invalid", server.HTTPClient())
	cfg.Prefix = ""
	b := newBucket(t, cfg)
	require.NoError(t, b.PutSidecar(t.Context(), fullSidecar()))
	file := server.Path("_jobs/spring.1.json")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	stat, err := os.Stat(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, bytes.Replace(text, []byte("spring/1-1.png"), []byte("spring/2-1.png"), 1), 0o600))
	require.NoError(t, os.Chtimes(file, stat.ModTime(), stat.ModTime()))
	_, err = b.Sidecar(t.Context(), "spring.1")
	require.ErrorIs(t, err, storage.ErrUnreadable)
	require.ErrorContains(t, err, "damaged on the disk: restore it from a backup")
}

// A sidecar that the bucket cannot have, because the disk takes its name for another one's, is
// unreadable: it is not taken for missing, and the bucket is not taken for unavailable.
func TestSidecarOfAnotherSpelling(t *testing.T) {
	t.Parallel()
	cfg := goodConfig()
	const body = `<?xml version="1.0"?><Error><Code>InvalidArgument</Code><Message>another key differs from it only in case</Message></Error>`
	cfg.HTTPClient = clientFunc(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusBadRequest, Request: r, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
	_, err := newBucket(t, cfg).Sidecar(t.Context(), "cups.a")
	require.ErrorIs(t, err, storage.ErrUnreadable)
	assert.ErrorContains(t, err, "only in case")
}
