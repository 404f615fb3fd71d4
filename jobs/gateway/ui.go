package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed" // for fontsCSS
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/hibiken/asynqmon"
	"github.com/redis/go-redis/v9"
)

// uiPath is where asynq's web UI is rooted.
const uiPath = "/ui"

// fontsCSS uses fonts that are installed on machines, in place of Google's.
//
//go:embed fonts.css
var fontsCSS []byte

// ui is asynqmon, with a page that loads nothing from other hosts.
type ui struct {
	monitor *asynqmon.HTTPHandler
	page    []byte
}

// sharedRedis passes the gateway's client to asynqmon. asynqmon's Close would close it, so
// it is never called.
type sharedRedis struct{ client redis.UniversalClient }

// MakeRedisClient implements asynq.RedisConnOpt.
func (s sharedRedis) MakeRedisClient() any { return s.client }

var (
	foreignStyle = regexp.MustCompile(`<link rel="stylesheet" href="https://[^"]*"/>`)
	inlineScript = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// newUI reads asynqmon's page and replaces its fonts.
func newUI(ctx context.Context, client redis.UniversalClient, readOnly bool) (*ui, error) {
	u := &ui{monitor: asynqmon.New(asynqmon.Options{
		RootPath: uiPath, RedisConnOpt: sharedRedis{client}, ReadOnly: readOnly,
		PayloadFormatter: asynqmon.PayloadFormatterFunc(formatPayload),
		ResultFormatter:  asynqmon.ResultFormatterFunc(formatPayload),
	})}
	root, err := http.NewRequestWithContext(ctx, http.MethodGet, uiPath+"/", nil)
	if err != nil {
		return nil, fmt.Errorf("read asynqmon's page: %w", err)
	}
	index := recorder{header: http.Header{}}
	u.monitor.ServeHTTP(&index, root)
	u.page = foreignStyle.ReplaceAll(index.body.Bytes(), nil)
	stylesheet := `<link rel="stylesheet" href="` + uiPath + `/fonts.css"/></head>`
	u.page = bytes.Replace(u.page, []byte("</head>"), []byte(stylesheet), 1)
	return u, nil
}

// contentSecurityPolicy allows resources from this server only, and of inline scripts only
// those in the page, by their hashes. Inline styles are allowed, because the page creates
// them at run time.
func (u *ui) contentSecurityPolicy() string {
	scripts := []string{"script-src 'self'"}
	for _, script := range inlineScript.FindAllSubmatch(u.page, -1) {
		sum := sha256.Sum256(script[1])
		scripts = append(scripts, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	return "default-src 'none'; " + strings.Join(scripts, " ") + "; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
		"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

func (u *ui) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, uiPath+"/api/"):
		u.serveAPI(w, r)
	case r.URL.Path == uiPath+"/fonts.css":
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		_, _ = w.Write(fontsCSS)
	case path.Ext(r.URL.Path) == ".map":
		http.NotFound(w, r) // 5 MB of asynqmon's source maps
	default:
		u.serveFile(w, r)
	}
}

// serveAPI answers with asynqmon's JSON. For unknown routes, such as that of an ID with a
// slash, asynqmon answers 200 with its page, which is replaced by 404.
func (u *ui) serveAPI(w http.ResponseWriter, r *http.Request) {
	reply := recorder{header: http.Header{}}
	u.monitor.ServeHTTP(&reply, r)
	if bytes.HasPrefix(reply.body.Bytes(), []byte("<!doctype html>")) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	maps.Copy(w.Header(), reply.header)
	w.WriteHeader(cmp.Or(reply.code, http.StatusOK))
	_, _ = w.Write(reply.body.Bytes())
}

// idShortener is the code in the UI's script that truncates an ID at its first hyphen. It
// is meant for UUIDs, and would show the jobs autumn-1 and autumn-2 both as autumn.
const idShortener = `return-1===t?e:e.substr(0,t)`

// serveFile answers with one of asynqmon's files, with its right type (asynqmon guesses it
// from the bytes), or with the page, which has client-side routing.
func (u *ui) serveFile(w http.ResponseWriter, r *http.Request) {
	file := recorder{header: http.Header{}}
	u.monitor.ServeHTTP(&file, r)
	kind, body := "text/html; charset=utf-8", u.page
	if file.header.Get("Content-Type") != "" {
		kind, body = fileTypes()[path.Ext(r.URL.Path)], file.body.Bytes()
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(bytes.Replace(body, []byte(idShortener), []byte("return e"), 1))
}

// fileTypes are the types of asynqmon's files. The mime package would use the machine's
// tables, which differ.
func fileTypes() map[string]string {
	return map[string]string{
		".ico":  "image/x-icon",
		".js":   "text/javascript; charset=utf-8",
		".json": "application/json",
		".png":  "image/png",
		".svg":  "image/svg+xml",
		".txt":  "text/plain; charset=utf-8",
	}
}

// recorder records a handler's response. A code of 0 means 200.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *recorder) Header() http.Header         { return a.header }
func (a *recorder) WriteHeader(code int)        { a.code = cmp.Or(a.code, code) }
func (a *recorder) Write(p []byte) (int, error) { return a.body.Write(p) }

// formatPayload shows a payload or result as text. asynqmon's own formatter hides texts
// with any rune that unicode.IsPrint refuses, such as the ideographic space, which is
// common in Chinese prompts.
func formatPayload(_ string, text []byte) string {
	if !utf8.Valid(text) {
		return fmt.Sprintf("%d bytes of binary data", len(text))
	}
	return string(text)
}
