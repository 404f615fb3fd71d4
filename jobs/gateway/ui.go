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

// fontsCSS names fonts that machines have, in place of Google's.
//
//go:embed fonts.css
var fontsCSS []byte

// ui is asynqmon, with a page that needs nothing from elsewhere.
type ui struct {
	monitor *asynqmon.HTTPHandler
	page    []byte
}

// sharedRedis hands our client to asynqmon. asynqmon's Close would close it, so
// nobody calls that.
type sharedRedis struct{ client redis.UniversalClient }

// MakeRedisClient implements asynq.RedisConnOpt.
func (s sharedRedis) MakeRedisClient() any { return s.client }

var (
	foreignStyle = regexp.MustCompile(`<link rel="stylesheet" href="https://[^"]*"/>`)
	inlineScript = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
)

// newUI reads the page from asynqmon and makes it ours.
func newUI(ctx context.Context, client redis.UniversalClient) (*ui, error) {
	u := &ui{monitor: asynqmon.New(asynqmon.Options{
		RootPath: uiPath, RedisConnOpt: sharedRedis{client},
		PayloadFormatter: asynqmon.PayloadFormatterFunc(readable),
		ResultFormatter:  asynqmon.ResultFormatterFunc(readable),
	})}
	root, err := http.NewRequestWithContext(ctx, http.MethodGet, uiPath+"/", nil)
	if err != nil {
		return nil, fmt.Errorf("read asynqmon's page: %w", err)
	}
	index := answer{header: http.Header{}}
	u.monitor.ServeHTTP(&index, root)
	u.page = foreignStyle.ReplaceAll(index.body.Bytes(), nil)
	ours := `<link rel="stylesheet" href="` + uiPath + `/fonts.css"/></head>`
	u.page = bytes.Replace(u.page, []byte("</head>"), []byte(ours), 1)
	return u, nil
}

// policy is the Content-Security-Policy: everything from here, nothing from
// elsewhere, and of scripts in the page only those that it came with. Styles the
// page makes as it runs.
func (u *ui) policy() string {
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
		http.NotFound(w, r) // 5 MB of asynqmon's source, for its makers
	default:
		u.serveFile(w, r)
	}
}

// serveAPI answers with asynqmon's JSON. A route that it does not have, such as
// that of an ID with a slash, is answered by its page, as if all were well.
func (u *ui) serveAPI(w http.ResponseWriter, r *http.Request) {
	reply := answer{header: http.Header{}}
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

// shortenID is where the UI's script cuts an ID at its first hyphen, made for
// UUIDs: of the jobs autumn-1 and autumn-2 it shows autumn twice.
const shortenID = `return-1===t?e:e.substr(0,t)`

// serveFile answers with one of asynqmon's files, under its right type (asynqmon
// guesses it from the bytes), or with the page: the page routes by itself.
func (u *ui) serveFile(w http.ResponseWriter, r *http.Request) {
	file := answer{header: http.Header{}}
	u.monitor.ServeHTTP(&file, r)
	kind, body := "text/html; charset=utf-8", u.page
	if file.header.Get("Content-Type") != "" {
		kind, body = fileTypes()[path.Ext(r.URL.Path)], file.body.Bytes()
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(bytes.Replace(body, []byte(shortenID), []byte("return e"), 1))
}

// fileTypes are those of asynqmon's files. The mime package would ask the
// machine's own tables, which differ.
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

// answer keeps what a handler answers. A code of 0 is 200.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = cmp.Or(a.code, code) }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// readable shows a payload or result as it is. asynqmon's own hides a text with
// any rune that unicode.IsPrint refuses, such as the ideographic space that
// stands in many a Chinese prompt.
func readable(_ string, text []byte) string {
	if !utf8.Valid(text) {
		return fmt.Sprintf("%d bytes that are no text", len(text))
	}
	return string(text)
}
