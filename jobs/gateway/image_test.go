package gateway_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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

// If clients can reach the bucket, the gateway redirects to a new presigned link each time.
func TestImagesRedirect(t *testing.T) {
	t.Parallel()
	s := newService(t, func(api *gateway.API) { api.Stream, api.BaseURL = false, "https://danqing.example.com" })
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
