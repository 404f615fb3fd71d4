package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/gateway"
)

// The page and its files contain no other host, except for what is never loaded: XML
// namespaces, links for the user, and error texts.
func TestUILoadsNothingFromOtherHosts(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	status, kind, page := w.request(t, http.MethodGet, "/ui/", "")
	require.Equal(t, http.StatusOK, status)
	assert.Equal(t, "text/html; charset=utf-8", kind)
	assert.NotContains(t, page, "//", "no foreign address in the page")
	files := regexp.MustCompile(`(?:href|src)="(/ui/[^"]+)"`).FindAllStringSubmatch(page, -1)
	require.Len(t, files, 8)
	types := map[string]string{}
	foreign := regexp.MustCompile(`https?://(?:[a-z0-9-]+\.)+[a-z]{2,}`)
	never := regexp.MustCompile(`^http://www\.w3\.org$|^https?://(github\.com|redis\.io|reactjs\.org|redux\.js\.org|material-ui\.com|fb\.me|bit\.ly|axios-http\.com)$`)
	for _, file := range files {
		status, kind, text := w.request(t, http.MethodGet, file[1], "")
		assert.Equal(t, http.StatusOK, status, file[1])
		types[file[1]] = kind
		assert.NotContains(t, text, "googleapis", file[1])
		for _, name := range foreign.FindAllString(text, -1) {
			assert.Regexp(t, never, name, "in %s", file[1])
		}
	}
	assert.Equal(t, map[string]string{
		"/ui/favicon.ico": "image/x-icon", "/ui/favicon-16x16.png": "image/png", "/ui/favicon-32x32.png": "image/png",
		"/ui/apple-touch-icon.png": "image/png", "/ui/manifest.json": "application/json",
		"/ui/fonts.css":                        "text/css; charset=utf-8",
		"/ui/static/js/2.83624df2.chunk.js":    "text/javascript; charset=utf-8",
		"/ui/static/js/main.5adda2da.chunk.js": "text/javascript; charset=utf-8",
	}, types)
	status, _, _ = w.request(t, http.MethodGet, "/ui/static/js/main.5adda2da.chunk.js.map", "")
	assert.Equal(t, http.StatusNotFound, status)
}

// The UI truncates IDs at their first hyphen; the served script does not.
func TestUIShowsWholeIDs(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	_, _, script := w.request(t, http.MethodGet, "/ui/static/js/main.5adda2da.chunk.js", "")
	assert.Contains(t, script, `var t=e.indexOf("-");return e}`)
}

func TestUIPageAtEveryPath(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	_, _, page := w.request(t, http.MethodGet, "/ui/", "")
	for _, path := range []string{"/ui/queues/" + queue, "/ui/queues/" + queue + "/tasks/cat.v1", "/ui/servers"} {
		status, kind, text := w.request(t, http.MethodGet, path, "")
		assert.Equal(t, http.StatusOK, status, path)
		assert.Equal(t, "text/html; charset=utf-8", kind, path)
		assert.Equal(t, page, text, path)
	}
	status, _, text := w.request(t, http.MethodGet, "/", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, text, `href="/ui/"`)
}

// asynqmon answers unknown routes with its page and 200.
func TestUIUnknownRoutes(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	for path, method := range map[string]string{"/no/such/route": http.MethodGet, "/queues/mail/pending_tasks/a%2Fb": http.MethodDelete} {
		status, kind, body := w.request(t, method, "/ui/api"+path, "")
		assert.Equal(t, http.StatusNotFound, status, path)
		assert.Equal(t, "text/plain; charset=utf-8", kind, path)
		assert.NotContains(t, body, "googleapis", path)
	}
	status, kind, body := w.request(t, http.MethodGet, "/ui/api/queues", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "application/json", kind)
	assert.JSONEq(t, `{"queues":[]}`, body)
}

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	w := newTestGateway(t, embeddedRedis(t))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+"/ui/", nil)
	require.NoError(t, err)
	resp, err := w.server.Client().Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Regexp(t, `^default-src 'none'; script-src 'self' 'sha256-[^']+' 'sha256-[^']+'; style-src `, resp.Header.Get("Content-Security-Policy"))
	assert.NotContains(t, resp.Header.Get("Content-Security-Policy"), "http")
	assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
	assert.Equal(t, "same-origin", resp.Header.Get("Referrer-Policy"))
	assert.Equal(t, "same-origin", resp.Header.Get("Cross-Origin-Resource-Policy"))
}

// Without operators the web UI answers nothing that came through a proxy: neither what says
// so, nor what nginx sends by default, HTTP/1.0 with the host of its configuration, nor a
// browser's request to another host.
func TestUIThroughAProxy(t *testing.T) {
	t.Parallel()
	g, err := gateway.New(gateway.Config{UI: true, Redis: embeddedRedis(t)})
	require.NoError(t, err)
	pause := func(proto int, headers ...string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:8765/ui/api/queues/mail:pause", nil)
		r.ProtoMinor = proto
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code
	}
	assert.Equal(t, http.StatusMisdirectedRequest, pause(0, "Connection", "close"))
	for _, headers := range [][]string{
		{"X-Forwarded-Proto", "https"}, {"X-Forwarded-Host", "a.example"}, {"X-Real-IP", "192.0.2.1"}, {"Via", "1.1 a"}, {"Forwarded", "for=192.0.2.1"},
		{"Sec-Fetch-Site", "same-origin", "Origin", "https://a.example"}, {"Sec-Fetch-Site", "same-origin", "Referer", "https://a.example/ui/"},
	} {
		assert.Equal(t, http.StatusMisdirectedRequest, pause(1, headers...), headers)
	}
	for _, path := range []string{"/", "/jobs", "/events", "/ui/"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://rebound.example"+path, nil)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		assert.Equal(t, http.StatusMisdirectedRequest, w.Code, path)
	}
	assert.Equal(t, http.StatusNoContent, pause(1, "Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8765", "Referer", "http://127.0.0.1:8765/ui/"))
}
