package dashscope

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// store answers the policy request and passes the file to h.
func store(h http.HandlerFunc) http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /api/v1/uploads", reply(200, policyJSON))
	m.Handle("POST store.test/", h)
	return m
}

// A large file is streamed with its length known: memory does not grow with it.
// Not parallel, since it measures what the process allocates.
func TestUploadStreams(t *testing.T) {
	const size = 64 << 20
	var got int64
	var length int64
	c, m := connect(t, store(func(_ http.ResponseWriter, r *http.Request) {
		length = r.ContentLength
		got, _ = io.Copy(io.Discard, r.Body)
	}), Config{})
	m.mute("store.test:80")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	name, err := c.Upload(t.Context(), "wanx-v1", "big.png", "image/png", size, io.LimitReader(zeros{}, size))
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	assert.Equal(t, "oss://dashscope-instant/52/2024-07-18/u1/big.png", name)
	assert.Greater(t, length, int64(size))
	assert.Equal(t, length, got)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(size/4))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The store receives the form's fields, whatever the file name, and the file last.
func TestUploadForm(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"cat.png": "cat.png", "": "image", "/": "_", "..": "image", "a/b/猫.png": "_.png", `C:\x y.png`: "x_y.png", "q\"\r\n.png": "q___.png",
		strings.Repeat("x", 200) + ".png": strings.Repeat("x", 124) + ".png",
	} {
		c, _ := connect(t, store(func(w http.ResponseWriter, r *http.Request) {
			in, err := r.MultipartReader()
			if !assert.NoError(t, err) {
				return
			}
			for {
				p, err := in.NextPart()
				if err != nil {
					break
				}
				body, err := io.ReadAll(p)
				assert.NoError(t, err)
				switch p.FormName() {
				case "key":
					assert.Equal(t, "dashscope-instant/52/2024-07-18/u1/"+want, string(body))
				case "file":
					assert.Equal(t, want, p.FileName())
					assert.Equal(t, "content", string(body))
					_, err = in.NextPart()
					assert.ErrorIs(t, err, io.EOF, "file is last")
					return
				}
			}
			w.WriteHeader(http.StatusBadRequest)
		}), Config{})
		_, err := c.Upload(t.Context(), "wanx-v1", name, "", 7, strings.NewReader("content"))
		require.NoError(t, err, name)
	}
}

func TestUploadFaults(t *testing.T) {
	t.Parallel()
	xml := func(status int, code, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<?xml version=\"1.0\"?>\n<Error><Code>"+code+"</Code><Message>"+message+"</Message><RequestId>r9</RequestId></Error>")
		}
	}
	for name, tc := range map[string]struct {
		h    http.Handler
		size int64
		body io.Reader
		want Kind
		text string
	}{
		"policy expired":     {h: store(xml(403, "AccessDenied", "Invalid according to Policy: Policy expired.")), want: KindTemporary, text: "Policy expired. (request_id r9)"},
		"too large":          {h: store(xml(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")), want: KindTerminal},
		"too large to begin": {h: store(http.NotFound), size: 101 << 20, want: KindTerminal},
		"negative size":      {h: store(http.NotFound), size: -1, want: KindTerminal},
		"no XML":             {h: store(reply(502, "<html>")), want: KindTemporary},
		"204":                {h: store(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), want: KindTemporary},
		"redirect":           {h: store(http.RedirectHandler("http://else.test/", http.StatusTemporaryRedirect).ServeHTTP), want: KindTemporary},
		"body too short":     {h: store(xml(200, "", "")), size: 4, body: strings.NewReader("123"), want: KindTemporary},
		"body too long":      {h: store(xml(200, "", "")), size: 4, body: strings.NewReader("12345"), want: KindTemporary},
		"body unreadable":    {h: store(xml(200, "", "")), size: 4, body: iotest.ErrReader(errors.New("disk gone")), want: KindTemporary, text: "disk gone"},
		"model unknown":      {h: reply(400, `{"code":"InvalidParameter","message":"Model not exist."}`), want: KindModel},
		"key wrong":          {h: reply(401, `{"code":"InvalidApiKey"}`), want: KindAccount},
		"model not found":    {h: reply(404, `{"code":"ModelNotFound"}`), want: KindModel},
		"throttled":          {h: reply(429, `{"code":"Throttling"}`), want: KindThrottled},
		"no policy":          {h: reply(200, `{"data":{}}`), want: KindTemporary},
		"garbage policy":     {h: reply(200, `{"data":[]}`), want: KindTemporary},
		"strange host":       {h: reply(200, strings.Replace(policyJSON, "http:", "ftp:", 1)), want: KindTemporary},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := connect(t, tc.h, Config{})
			body := tc.body
			if body == nil {
				body = strings.NewReader("1234")
			}
			_, err := c.Upload(t.Context(), "wanx-v1", "a.png", "image/png", cmp.Or(tc.size, 4), body)
			requireKind(t, err, tc.want)
			assert.ErrorContains(t, err, tc.text)
		})
	}
}

// A store that answers before it has read everything must not leave a reader of the
// caller's body behind.
func TestUploadLetsGoOfTheBody(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, store(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }), Config{})
	body := bytes.NewReader(make([]byte, 8<<20))
	for range 5 {
		_, err := c.Upload(t.Context(), "wanx-v1", "a.png", "image/png", body.Size(), body)
		requireKind(t, err, KindTemporary)
		_, err = body.Seek(0, io.SeekStart) // the race detector watches
		require.NoError(t, err)
	}
}
