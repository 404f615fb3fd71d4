package simulator_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"image/png"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// download downloads a URL without a key.
func (c *client) download(t *testing.T, link string, header map[string]string) reply {
	t.Helper()
	r, err := c.send(t.Context(), http.MethodGet, link, nil, header)
	require.NoError(t, err)
	assert.Equal(t, "true", r.header.Get(dashscope.HeaderSimulated))
	return r
}

// links creates a task and returns its results' URLs.
func (c *client) links(t *testing.T, body string) []string {
	t.Helper()
	id := c.create(t, body)
	time.Sleep(2 * time.Second)
	var out []string
	for _, result := range c.query(t, id).Output.Results {
		out = append(out, result.URL)
	}
	require.NotEmpty(t, out)
	return out
}

// refusedByOSS asserts an error of OSS.
func refusedByOSS(t *testing.T, r reply, status int, code string) {
	t.Helper()
	assert.Equal(t, status, r.status, "body %s", r.body)
	assert.Equal(t, "application/xml", r.header.Get("Content-Type"))
	var e struct {
		XMLName                          xml.Name `xml:"Error"`
		Code, Message, RequestId, HostId string   //nolint:revive // OSS's names
	}
	require.NoError(t, xml.Unmarshal(r.body, &e), "body %s", r.body)
	assert.Equal(t, code, e.Code)
	assert.NotEmpty(t, e.Message)
	assert.Equal(t, r.header.Get("X-Oss-Request-Id"), e.RequestId)
}

func TestResultLinks(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(time.Second), func(c *client) {
		t := c.t
		c.base = "http://another.example:8080/api/v1"
		links := c.links(t, `{"model":"wanx-v1","input":{"prompt":"a"},"parameters":{"n":2,"size":"720*1280"}}`)
		require.Len(t, links, 2)
		for i, link := range links {
			u, err := url.Parse(link)
			require.NoError(t, err)
			assert.Equal(t, "another.example:8080", u.Host)
			assert.NotContains(t, u.Path, "/api/")
			assert.True(t, strings.HasSuffix(path.Base(u.Path), fmt.Sprintf("-%d.png", i+1)), u.Path)
			assert.Equal(t, fmt.Sprint(time.Now().Truncate(time.Second).Add(24*time.Hour-time.Second).Unix()), u.Query().Get("Expires"))
			assert.NotEmpty(t, u.Query().Get("OSSAccessKeyId"))
			assert.NotEmpty(t, u.Query().Get("Signature"))

			r := c.download(t, link, nil)
			require.Equal(t, http.StatusOK, r.status)
			assert.Equal(t, "image/png", r.header.Get("Content-Type"))
			img, err := png.Decode(bytes.NewReader(r.body))
			require.NoError(t, err)
			assert.Equal(t, "(720,1280)", img.Bounds().Max.String())
			sum := md5.Sum(r.body)
			assert.Equal(t, fmt.Sprintf("%q", fmt.Sprintf("%X", sum)), r.header.Get("ETag"))
			assert.Equal(t, base64.StdEncoding.EncodeToString(sum[:]), r.header.Get("Content-MD5"))
			assert.NotEmpty(t, r.header.Get("X-Oss-Hash-Crc64ecma"))

			part := c.download(t, link, map[string]string{"Range": "bytes=100-199", "If-Range": r.header.Get("ETag")})
			assert.Equal(t, http.StatusPartialContent, part.status)
			assert.Equal(t, r.body[100:200], part.body)
		}
	})
}

func TestResultRefusals(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	bubble(t, sim, func(c *client) {
		t := c.t
		link := c.links(t, fox)[0]
		end := sim.Tasks()[0].EndedAt
		plain, _, _ := strings.Cut(link, "?")
		refusedByOSS(t, c.download(t, plain, nil), http.StatusForbidden, "AccessDenied")
		refusedByOSS(t, c.download(t, link, map[string]string{"Authorization": "Bearer sk-test"}), http.StatusBadRequest, "InvalidArgument")
		refusedByOSS(t, c.download(t, strings.Replace(link, "-1.png", "-2.png", 1), nil), http.StatusForbidden, "SignatureDoesNotMatch")
		refusedByOSS(t, c.download(t, strings.Replace(link, "Expires=", "Expires=9", 1), nil), http.StatusForbidden, "SignatureDoesNotMatch")
		refusedByOSS(t, c.download(t, strings.Replace(link, "Expires=", "Expires=x", 1), nil), http.StatusForbidden, "AccessDenied")
		refusedByOSS(t, c.download(t, strings.Replace(link, "LTAI", "LTAJ", 1), nil), http.StatusForbidden, "InvalidAccessKeyId")
		head, err := c.send(t.Context(), http.MethodHead, link, nil, nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusForbidden, head.status, "the signature is for GET alone")

		time.Sleep(time.Until(end.Add(24*time.Hour).Truncate(time.Second)) - time.Millisecond)
		assert.Equal(t, http.StatusOK, c.download(t, link, nil).status)
		time.Sleep(time.Millisecond)
		expired := c.download(t, link, nil)
		refusedByOSS(t, expired, http.StatusForbidden, "AccessDenied")
		assert.Contains(t, string(expired.body), "<Message>Request has expired.</Message>")
		assert.Contains(t, string(expired.body), "<Expires>2000-01-02T00:00:01.000Z</Expires>")
	})
}

func TestResultLifetime(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.ResultLifetime = time.Minute
	sim.Render = func(p painter.Picture) []byte { return []byte(p.Prompt) }
	bubble(t, sim, func(c *client) {
		t := c.t
		link := c.links(t, fox)[0]
		assert.Equal(t, "一只狐狸", string(c.download(t, link, nil).body))
		time.Sleep(time.Minute)
		refusedByOSS(t, c.download(t, link, nil), http.StatusForbidden, "AccessDenied")
	})
}

func TestPicturesFollowTheRequest(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	painted := recordPictures(sim)
	bubble(t, sim, func(c *client) {
		t := c.t
		body := `{"model":"wanx-v1","input":{"prompt":"` + strings.Repeat("长", 801) + `","negative_prompt":"红","ref_image":"https://example.com/a.png"},` +
			`"parameters":{"n":2,"seed":41,"style":"<sketch>","size":"1280*720","ref_strength":0.7,"ref_mode":"refonly"}}`
		for _, link := range c.links(t, body) {
			c.download(t, link, nil)
		}
		c.download(t, c.links(t, fox)[0], nil)
	})
	got := *painted
	require.Len(t, got, 3)
	assert.Equal(t, "<auto>", got[2].Style, "wanx-v1 without a style")
	assert.NotNil(t, got[1].Ref)
	got[1].Ref = nil
	assert.Equal(t, painter.Picture{
		Model: "wanx-v1", Prompt: strings.Repeat("长", 800), NegativePrompt: "红", Style: "<sketch>",
		Width: 1280, Height: 720, Seed: 42, Index: 1, N: 2, RefMode: "refonly", RefStrength: 0.7,
	}, got[1])
}
