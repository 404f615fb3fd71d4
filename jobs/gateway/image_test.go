package gateway_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// A signed link is permanent, and a wrong signature gets no image.
func TestImages(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	id := s.create(`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"n":2}}`)
	rec := s.finish(id)
	task := s.query(id)
	require.Len(t, task.Output.Results, 2)
	for i, result := range task.Output.Results {
		link, err := url.Parse(result.URL)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("/images/%s-%d.png", id, i+1), link.Path)
		_, want := writePNG(t, id, i+1)
		for range 2 {
			got := s.request(http.MethodGet, link.RequestURI(), "")
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, "image/png", got.header.Get("Content-Type"))
			assert.Equal(t, string(want), got.body)
		}
		head := s.request(http.MethodHead, link.RequestURI(), "")
		assert.Equal(t, fmt.Sprint(len(want)), head.header.Get("Content-Length"))
		assert.Empty(t, head.body)
	}
	first, second := rec.ImagePath(rec.Images[0]), rec.ImagePath(rec.Images[1])
	_, other, _ := strings.Cut(second, "?")
	path, signature, _ := strings.Cut(first, "?")
	for _, wrong := range []string{
		path, path + "?s=", path + "?" + other, path + "?" + signature[:len(signature)-1], strings.Replace(first, "-1.png", "-3.png", 1), strings.Replace(first, "-1.png", "-01.png", 1),
		strings.Replace(first, ".png", ".jpg", 1), strings.Replace(first, ".png", "", 1), "/images/x?" + signature, "/images/nobody-1.png?" + signature, "/images/-1.png?" + signature, "/images/..%2f_jobs-1.png?" + signature,
	} {
		got := s.request(http.MethodGet, wrong, "")
		assert.Equal(t, http.StatusNotFound, got.status, wrong)
		assert.Equal(t, "there is no such image\n", got.body)
	}
	assert.Equal(t, http.StatusMethodNotAllowed, s.post(first, "").status)
	assert.Equal(t, http.StatusMisdirectedRequest, s.request(http.MethodGet, first, "", "Host", "evil.example").status)

	require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id).Err())
	s.sidecars[id] = rec
	assert.Equal(t, http.StatusOK, s.request(http.MethodGet, first, "").status, "long after its record has expired in Redis")
	s.outage.down.Store(true)
	got := s.request(http.MethodGet, first, "")
	assert.Equal(t, http.StatusServiceUnavailable, got.status)
	assert.NotEmpty(t, got.header.Get("Retry-After"))
}

// A link ends in the extension of the image's format and serves it as that; the other
// extensions name no image.
func TestImageFormats(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	for contentType, ext := range map[string]string{"image/jpeg": ".jpg", "image/webp": ".webp"} {
		rec := s.finish(s.create(oneCat), contentType)
		path := rec.ImagePath(rec.Images[0])
		assert.Contains(t, path, "-1"+ext+"?s=")
		assert.Contains(t, s.query(rec.ID).Output.Results[0].URL, path)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			got := s.request(method, path, "")
			assert.Equal(t, http.StatusOK, got.status)
			assert.Equal(t, contentType, got.header.Get("Content-Type"))
		}
		assert.Equal(t, http.StatusNotFound, s.request(http.MethodGet, strings.Replace(path, ext+"?", ".png?", 1), "").status)
	}
}

// The jobs of a batch, with readable IDs, are queried and their images served too.
func TestImagesOfReadableIDs(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	const id = "春季主图.A-017"
	_, err := jobs.NewClient(s.redis).Enqueue(t.Context(), jobs.Request{ID: id, Prompt: "a cat", Batch: "春季主图", LineID: "A-017"})
	require.NoError(t, err)
	rec := s.finish(id)
	_, want := writePNG(t, id, 1)
	got := s.request(http.MethodGet, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusOK, got.status)
	assert.Equal(t, string(want), got.body)
	task := s.request(http.MethodGet, "/api/v1/tasks/"+url.PathEscape(id), "")
	assert.Equal(t, http.StatusOK, task.status)
	assert.Contains(t, task.body, rec.ImagePath(rec.Images[0]))
}

// A link serves the bytes itself, so that programs that follow no redirects get the image:
// with length, ranges, ETag and conditions.
func TestImageRanges(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	rec := s.finish(s.create(oneCat))
	path := rec.ImagePath(rec.Images[0])
	_, png := writePNG(t, rec.ID, 1)
	whole := string(png)
	etag, size := `"`+rec.Images[0].SHA256+`"`, len(whole)
	for name, c := range map[string]struct {
		headers []string
		status  int
		body    string
		content string // Content-Range
	}{
		"whole":          {nil, http.StatusOK, whole, ""},
		"begin":          {[]string{"Range", "bytes=0-99"}, http.StatusPartialContent, whole[:100], fmt.Sprintf("bytes 0-99/%d", size)},
		"resumed":        {[]string{"Range", "bytes=100-"}, http.StatusPartialContent, whole[100:], fmt.Sprintf("bytes 100-%d/%d", size-1, size)},
		"end":            {[]string{"Range", "bytes=-7"}, http.StatusPartialContent, whole[size-7:], fmt.Sprintf("bytes %d-%d/%d", size-7, size-1, size)},
		"beyond the end": {[]string{"Range", fmt.Sprintf("bytes=%d-%d", size-5, size+100)}, http.StatusPartialContent, whole[size-5:], fmt.Sprintf("bytes %d-%d/%d", size-5, size-1, size)},
		"no such bytes":  {[]string{"Range", "bytes=9999999-"}, http.StatusRequestedRangeNotSatisfiable, "invalid range: failed to overlap\n", fmt.Sprintf("bytes */%d", size)},
		"same":           {[]string{"If-None-Match", etag}, http.StatusNotModified, "", ""},
		"same, weak":     {[]string{"If-None-Match", `"x", W/` + etag}, http.StatusNotModified, "", ""},
		"another":        {[]string{"If-None-Match", `"x"`}, http.StatusOK, whole, ""},
		"range of it":    {[]string{"Range", "bytes=1-2", "If-Range", etag}, http.StatusPartialContent, whole[1:3], fmt.Sprintf("bytes 1-2/%d", size)},
		"range of other": {[]string{"Range", "bytes=1-2", "If-Range", `"x"`}, http.StatusOK, whole, ""},
	} {
		got := s.request(http.MethodGet, path, "", c.headers...)
		assert.Equal(t, c.status, got.status, name)
		assert.Equal(t, c.body, got.body, name)
		assert.Equal(t, c.content, got.header.Get("Content-Range"), name)
		if c.status == http.StatusOK || c.status == http.StatusPartialContent {
			assert.Equal(t, fmt.Sprint(len(c.body)), got.header.Get("Content-Length"), name)
			assert.Equal(t, "image/png", got.header.Get("Content-Type"), name)
			assert.Equal(t, etag, got.header.Get("ETag"), name)
			assert.Contains(t, got.header.Get("Cache-Control"), "immutable", name)
			assert.Equal(t, "bytes", got.header.Get("Accept-Ranges"), name)
		}
	}
	two := s.request(http.MethodGet, path, "", "Range", "bytes=1-2,40-49")
	assert.Equal(t, http.StatusPartialContent, two.status)
	assert.Contains(t, two.body, "\r\n\r\n"+whole[40:50]+"\r\n")

	gone := s.create(oneCat)
	rec = s.update(gone, func(rec *jobs.Record) {
		rec.State, rec.FinishedAt = jobs.StateSucceeded, time.Now().UTC()
		rec.Images = []jobs.Image{{N: 1, Key: "gone-1.png", Bytes: 1000, SHA256: strings.Repeat("0", 64)}}
	})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		got := s.request(method, rec.ImagePath(rec.Images[0]), "")
		assert.Equal(t, http.StatusGone, got.status)
		assert.Equal(t, "text/plain; charset=utf-8", got.header.Get("Content-Type"))
		assert.Empty(t, got.header.Get("ETag")+got.header.Get("Cache-Control")+got.header.Get("Content-Length"))
		assert.NotContains(t, got.body, "gone-1.png")
	}
}

// If the operator asked for it, a link redirects to a new presigned link each time.
func TestImagesRedirect(t *testing.T) {
	t.Parallel()
	s := newService(t, func(api *gateway.API) { api.RedirectImages, api.BaseURL = true, "https://danqing.example.com" })
	id := s.create(oneCat)
	rec := s.finish(id)
	link := s.query(id).Output.Results[0].URL
	assert.Equal(t, "https://danqing.example.com"+rec.ImagePath(rec.Images[0]), link)
	got := s.request(http.MethodGet, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusFound, got.status)
	assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
	to, err := url.Parse(got.header.Get("Location"))
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(to.Path, rec.Images[0].Key))
	assert.NotEmpty(t, to.Query().Get("X-Amz-Signature"))
	head := s.request(http.MethodHead, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusOK, head.status, "the bucket's links are signed for GET only")
	assert.Equal(t, fmt.Sprint(rec.Images[0].Bytes), head.header.Get("Content-Length"))
}
