// Package dashboard is the web page for those who run Danqing: what its lanes do, what was
// spent, which jobs wait for a decision, and the story of each job. It is rendered on the
// server, works without JavaScript, and loads nothing from elsewhere. The gateway lets
// operators in before it calls it.
package dashboard

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// ContentSecurityPolicy allows the page's own files and forms, and nothing else.
const ContentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// LoginPage is the path of the login page.
const LoginPage = "/login"

// Config configures a [Dashboard].
type Config struct {
	// Redis holds the queues, records and the ledger. The caller closes it. Required.
	Redis redis.UniversalClient
	// Operator returns who sent a request; their decisions are kept beside the name. Required.
	Operator func(*http.Request) string
	// ReadOnly hides what changes something; the caller must refuse it too.
	ReadOnly bool
	// HasLogin is set if operators can log out.
	HasLogin bool
	// Budgets are the daily budgets of accounts, in millionths of a yuan; 0 or none means no
	// limit, as far as is known here.
	Budgets map[string]int64
	// Store has the images and the jobs that have left Redis; nil means that there is none.
	Store Store
	// Logger receives warnings; nil discards them.
	Logger *slog.Logger
}

// Store is what the gateway knows of the bucket, and of prices.
type Store interface {
	// LoadSidecar returns a job that is no longer in Redis, or fails with [jobs.ErrNotFound].
	LoadSidecar(ctx context.Context, id string) (*jobs.Job, error)
	// ServeImage sends an object of the bucket as an image.
	ServeImage(w http.ResponseWriter, r *http.Request, job *jobs.Job, image jobs.Image)
	// HeldImages returns the images that are kept of a task, for [Store.ServeImage].
	HeldImages(ctx context.Context, task string) ([]jobs.Image, error)
	// Price returns the most that n images of a model cost, in millionths of a yuan.
	Price(model jobs.Model, n int) int64
}

// Dashboard is the handler of the page. It is safe for concurrent use.
type Dashboard struct {
	cfg       Config
	jobs      *jobs.Client
	inspector *jobs.Inspector
	ledger    *ledger.Ledger
	log       *slog.Logger
	templates map[string]*template.Template // by language
	routes    *http.ServeMux
	state     stateCache
	kept      *lru.Cache[string, keptImages] // by task
	watchers  watchers
}

//go:embed templates assets
var files embed.FS

// New returns a dashboard, which the caller must Close. It opens no connection.
func New(cfg Config) (*Dashboard, error) {
	if cfg.Redis == nil || cfg.Operator == nil {
		return nil, errors.New("dashboard: Redis and Operator are both required")
	}
	d := &Dashboard{
		cfg: cfg, jobs: jobs.NewClient(cfg.Redis), inspector: jobs.NewInspector(cfg.Redis), ledger: ledger.New(cfg.Redis), log: cfg.Logger,
		templates: map[string]*template.Template{}, routes: http.NewServeMux(),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.watchers.init()
	var err error
	if d.kept, err = lru.New[string, keptImages](keptTasks); err != nil {
		return nil, fmt.Errorf("dashboard: %w", err)
	}
	for _, language := range languages() {
		parsed, err := template.New("").Funcs(functions(language)).ParseFS(files, "templates/*.html")
		if err != nil {
			return nil, fmt.Errorf("dashboard: %w", err)
		}
		d.templates[language] = parsed
	}
	d.routes.HandleFunc("GET /{$}", d.overview)
	d.routes.HandleFunc("GET /jobs", d.search)
	d.routes.HandleFunc("GET /jobs/{id}", d.story)
	d.routes.HandleFunc("GET /jobs/{id}/images/{n}", d.image)
	d.routes.HandleFunc("GET /jobs/{id}/held/{task}/{n}", d.heldImage)
	d.routes.HandleFunc("GET /jobs/{id}/decide", d.ask)
	d.routes.HandleFunc("POST /jobs/{id}/decide", d.decide)
	d.routes.HandleFunc("POST /pauses", d.pause)
	d.routes.HandleFunc("GET /events", d.events)
	return d, nil
}

// ServeHTTP answers an operator's request.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.routes.ServeHTTP(w, r) }

// Assets serves the style sheet and the script, which anybody may see.
func (d *Dashboard) Assets() http.Handler {
	assets, err := fs.Sub(files, "assets")
	if err != nil {
		return http.NotFoundHandler()
	}
	serve := http.StripPrefix("/assets/", http.FileServerFS(assets))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache") // they change with the program
		serve.ServeHTTP(w, r)
	})
}

// Close ends the open streams of events.
func (d *Dashboard) Close() { d.watchers.close() }

// page is what every page shows.
type page struct {
	Title, Language  string
	Here             string // the page's path and query, for the language switch
	Operator         string
	HasLogin, Change bool
	Live             bool // it follows events
	Body             any
}

// write answers with a page.
func (d *Dashboard) write(w http.ResponseWriter, r *http.Request, status int, name string, p page) {
	p.Language, p.Here = languageOf(r), r.URL.RequestURI()
	p.HasLogin, p.Change = d.cfg.HasLogin, !d.cfg.ReadOnly
	if name != "login.html" {
		p.Operator = d.cfg.Operator(r)
	}
	var text bytes.Buffer
	if err := d.templates[p.Language].ExecuteTemplate(&text, name, p); err != nil {
		d.log.Error("page not rendered", "path", r.URL.Path, "err", err)
		http.Error(w, "the page could not be rendered", http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Vary", "Accept-Language, Cookie")
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes()) // the client has disconnected
}

// notice is a page with a message, and where to go on.
type notice struct{ Text, Detail, Back string }

// fail answers with the page of an error.
func (d *Dashboard) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, key, detail := http.StatusServiceUnavailable, "unavailable", ""
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		status, key = http.StatusNotFound, "no_such_job"
	case errors.Is(err, jobs.ErrCorrupt):
		status, key, detail = http.StatusInternalServerError, "corrupt_job", err.Error()
	case r.Context().Err() == nil:
		d.log.Warn("page not answered", "path", r.URL.Path, "err", err)
		detail = err.Error()
	}
	d.notice(w, r, status, notice{Text: messageOf(languageOf(r), key), Detail: detail, Back: "/"})
}

func (d *Dashboard) notice(w http.ResponseWriter, r *http.Request, status int, n notice) {
	d.write(w, r, status, "notice.html", page{Title: n.Text, Body: n})
}

// loginForm is what the login page shows.
type loginForm struct {
	Next  string
	Wrong bool
	Wait  int // seconds until another token may be tried; 0 if it may
}

// WriteLogin answers with the login page: with status 401 after a wrong token, or with the
// seconds to wait after too many.
func (d *Dashboard) WriteLogin(w http.ResponseWriter, r *http.Request, status, wait int) {
	form := loginForm{Next: Next(r), Wrong: status == http.StatusUnauthorized, Wait: wait}
	d.write(w, r, status, "login.html", page{Title: messageOf(languageOf(r), "log_in"), Body: form})
}

// LoginPath returns the path of the login page that leads back to a page.
func LoginPath(from *url.URL) string {
	if from.RequestURI() == "/" {
		return LoginPage
	}
	return LoginPage + "?next=" + url.QueryEscape(from.RequestURI())
}

// Next returns the page to which the login page leads: a path of this server.
func Next(r *http.Request) string {
	next := r.FormValue("next")
	if u, err := url.Parse(next); err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.Contains(next, `\`) {
		return "/"
	}
	return next
}

// job returns a job from Redis, or else from its sidecar.
func (d *Dashboard) job(ctx context.Context, id string) (*jobs.Job, error) {
	job, err := d.jobs.Get(ctx, id)
	if errors.Is(err, jobs.ErrNotFound) && d.cfg.Store != nil {
		return d.cfg.Store.LoadSidecar(ctx, id)
	}
	return job, err
}

// request returns a job's request, from its message while it waits; an empty one if it is
// lost.
func (d *Dashboard) request(ctx context.Context, job *jobs.Job) jobs.Request {
	if job.Request != nil {
		return *job.Request
	}
	req, err := d.jobs.RequestOf(ctx, job)
	if err != nil {
		return jobs.Request{}
	}
	return req
}
