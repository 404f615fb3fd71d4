// Package gateway is the HTTP server for jobs: DashScope's API for programs written for
// it, OpenAI's images API, the images themselves, a page for operators at /, asynq's web UI
// under /ui, /healthz and /readyz.
//
// The page and the web UI show every job and can cancel it. They are for the operators that
// log in, see [Config]. Without operators they are for this machine only: requests with
// another host name (protection against DNS rebinding) and requests through a proxy are
// refused. The same holds for the API while it has no tokens. All refuse cross-origin
// requests that change something. An address other than the loopback requires tokens, see
// [Listen].
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway/dashboard"
	"github.com/danqing-queue/danqing/storage"
)

// Config configures a [Gateway].
type Config struct {
	// Redis holds the queues and records. The caller must close it, after
	// [Gateway.Close]. Required.
	Redis redis.UniversalClient
	// API configures the APIs and the images; nil disables them.
	API *API
	// UI enables the page for operators and asynq's web UI: for Operators, else under loopback
	// names only.
	UI bool
	// Operators may log in to the web UI. Without any it asks for nothing.
	Operators []Operator
	// UIReadOnly refuses everything in the web UI that changes something.
	UIReadOnly bool
	// Budgets are the daily budgets of accounts, in millionths of a yuan, for the web UI; 0 or
	// none means no limit.
	Budgets map[string]int64
	// Ready fails, with a text that anybody may read, unless the process can do its work; nil
	// means that it can if Redis answers. /readyz answers with it.
	Ready func(context.Context) error
	// Logger receives warnings; nil discards them.
	Logger *slog.Logger
}

// API configures the APIs and the images.
type API struct {
	// Bucket holds the images, and stores staged reference images. Required.
	Bucket *storage.Bucket
	// RedirectImages makes the links to images lead to presigned links of the bucket, which
	// clients must be able to reach. Otherwise the gateway sends the images itself.
	RedirectImages bool
	// LoadSidecar returns a job that is no longer in Redis from its sidecar, or fails
	// with [jobs.ErrNotFound]. Required.
	LoadSidecar func(ctx context.Context, id string) (*jobs.Job, error)
	// Tokens are the accepted tokens. Without any, every request under a loopback name
	// is accepted, and sees all jobs, unless RequireToken is set: then none is.
	Tokens       []Token
	RequireToken bool
	// DefaultN is the number of images of a request without n, limited by what its
	// model allows. 0 means 4, as at DashScope.
	DefaultN int
	// Price returns the maximum price of n images of a model, in millionths of a yuan.
	// Required.
	Price func(model jobs.Model, n int) int64
	// Depth is the maximum number of waiting jobs in total; 0 means no limit.
	Depth int
	// BaseURL is the URL at which clients and the readers of links reach the gateway,
	// such as https://danqing.example.com. "" means the host of each request.
	BaseURL string
	// TempDir is the folder for uploads in progress, 10 MB each; "" is the system's.
	TempDir string
	// Staging configures how reference images are downloaded. Its Dir is set to
	// TempDir.
	Staging storage.StageOptions
	// OpenAIWait is how long a request of OpenAI's API waits for its images. 0 means 5
	// minutes. OpenAI's clients time out after 10.
	OpenAIWait time.Duration
	// KeepAlive is how often a request of OpenAI's API that waits for its images gets white
	// space, so that proxies do not cut the connection. The status is 200 then, also of an
	// error. 0 means never.
	KeepAlive time.Duration
	// CORSOrigins are the origins whose pages may use the APIs, as in
	// https://studio.example.com.
	CORSOrigins []string
	// Aliases are other names of models for OpenAI's API, and the catalog's names that they stand
	// for.
	Aliases map[string]string
}

// Token is the credential of one producer.
type Token struct {
	// Name is the producer's name in its jobs, see [jobs.ValidAccount]. It must be
	// unique.
	Name   string
	Secret string // sent by clients as their API key; not empty
	// MaxWaiting is the maximum number of its waiting jobs, half of which may be scheduled
	// for later; 0 means an equal part of the API's Depth.
	MaxWaiting int
	// DailyBudgetMicroYuan is the maximum cost of its jobs per day (UTC+8); 0 means no
	// limit.
	DailyBudgetMicroYuan int64
	// MaxRequests is the maximum number of its open requests, among them queries that are
	// held and those that wait for images; 0 means the default, its part of the server's
	// connections but at most 256.
	MaxRequests int
	// MaxUploads is the maximum number of reference images that it may upload or have staged
	// per day (UTC+8), of 2 MiB each on average; 0 means 500.
	MaxUploads int
}

const defaultN = 4

// Gateway is the HTTP handler. It is safe for concurrent use.
type Gateway struct {
	redis     redis.UniversalClient
	jobs      *jobs.Client
	operator  *jobs.Inspector
	inspector *asynq.Inspector
	log       *slog.Logger
	handler   http.Handler
	api       *api                 // nil if disabled
	dashboard *dashboard.Dashboard // nil if disabled
}

// New returns a gateway, which the caller must Close. It opens no connection.
func New(cfg Config) (*Gateway, error) {
	if cfg.Redis == nil {
		return nil, errors.New("gateway: Redis is not set: set it to the client of the queues")
	}
	g := &Gateway{
		redis: cfg.Redis, jobs: jobs.NewClient(cfg.Redis), operator: jobs.NewInspector(cfg.Redis), inspector: asynq.NewInspectorFromRedisClient(cfg.Redis),
		log: cfg.Logger,
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	if cfg.Ready == nil {
		cfg.Ready = g.pingRedis
	}
	HandleHealth(mux, cfg.Ready)
	mux.HandleFunc("/", noSuchPath)
	if cfg.API != nil {
		var err error
		if g.api, err = newAPI(g, *cfg.API); err != nil {
			return nil, err
		}
		g.api.handle(mux)
	}
	if cfg.UI {
		if err := g.handleUI(mux, cfg); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	g.handler = mux
	return g, nil
}

// noSuchPath answers a request for a path of none of the APIs.
func noSuchPath(w http.ResponseWriter, _ *http.Request) {
	const paths = "/api/v1/… (DashScope's API), /v1/images/generations, /v1/images/edits, /v1/images/variations and /v1/models (OpenAI's), /images/…, /, /ui/, /healthz and /readyz"
	writeAnswer(w, http.StatusNotFound, encodeDashScopeError(uuid.NewString(), newAPIError(http.StatusNotFound, codeNotFound, "this path does not exist; there are "+paths, 0)))
}

// handleUI adds the page for operators and asynq's web UI, behind the login.
func (g *Gateway) handleUI(mux *http.ServeMux, cfg Config) error {
	ui, err := newUI(context.Background(), g.redis, cfg.UIReadOnly)
	if err != nil {
		return err
	}
	page := dashboard.Config{Redis: g.redis, Operator: operatorOf, ReadOnly: cfg.UIReadOnly, HasLogin: len(cfg.Operators) > 0, Budgets: cfg.Budgets, Logger: g.log}
	if g.api != nil {
		page.Store = dashboardStore{g.api}
	}
	if g.dashboard, err = dashboard.New(page); err != nil {
		return err
	}
	secure := g.api != nil && strings.HasPrefix(g.api.cfg.BaseURL, "https://")
	operators, err := newLogin(cfg.Operators, secure, g.dashboard)
	if err != nil {
		return err
	}
	protect := func(next http.Handler) http.Handler {
		if cfg.UIReadOnly {
			next = readOnly(next)
		}
		return operators.protect(next)
	}
	pages := g.cancelArchived(ui)
	asynqRoutes := http.NewServeMux()
	asynqRoutes.Handle(uiPath+"/", pages)
	g.handleDeletes(asynqRoutes, pages)
	mux.Handle(uiPath+"/", secureHeaders(ui.contentSecurityPolicy(), sameOrigin(protect(asynqRoutes))))

	routes := http.NewServeMux()
	operators.handle(routes)
	routes.Handle("GET /assets/", g.dashboard.Assets())
	routes.Handle("/", protect(g.dashboard))
	guarded := secureHeaders(dashboard.ContentSecurityPolicy, sameOrigin(http.MaxBytesHandler(dashboard.SwitchLanguage(routes), maxUIFormBytes)))
	for _, path := range []string{"/{$}", "/jobs", "/jobs/", "/pauses", "/events", "/assets/", dashboard.LoginPage, "/logout"} {
		mux.Handle(path, guarded)
	}
	return nil
}

// ServeHTTP answers a request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if len(r.Host) > maxHostBytes {
		http.Error(w, "the Host header is too long", http.StatusBadRequest)
		return
	}
	if r.ContentLength != 0 { // for all requests: net/http reads an unread body before it answers
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(unacceptedBodyTimeout)) // unsupported in tests
	}
	g.handler.ServeHTTP(w, r)
}

// maxHostBytes is the maximum length of a DNS name, with a port.
const maxHostBytes = 255 + len(":65535")

// Close stops the gateway's goroutines. Requests in a long poll are answered.
func (g *Gateway) Close() error {
	if g.dashboard != nil {
		g.dashboard.Close()
	}
	if g.api != nil {
		g.api.close()
	}
	return nil
}

func (cfg *API) validate() error {
	if cfg.Bucket == nil || cfg.LoadSidecar == nil || cfg.Price == nil {
		return errors.New("gateway: Bucket, LoadSidecar and Price of the API are all required")
	}
	if cfg.DefaultN < 0 || cfg.DefaultN > defaultN {
		return fmt.Errorf("gateway: DefaultN is %d, must be 1 to %d, or 0 for that", cfg.DefaultN, defaultN)
	}
	cfg.Tokens = slices.Clone(cfg.Tokens)
	names, secrets := map[string]bool{}, map[string]bool{}
	for i, t := range cfg.Tokens {
		if err := jobs.ValidAccount(t.Name); err != nil {
			return fmt.Errorf("gateway: token %d: name: %w", i+1, err)
		}
		if t.Secret == "" || names[t.Name] || secrets[t.Secret] {
			return fmt.Errorf("gateway: token %s: is empty, or its name or secret is used twice", t.Name)
		}
		if t.MaxWaiting == 0 {
			cfg.Tokens[i].MaxWaiting = (cfg.Depth + len(cfg.Tokens) - 1) / len(cfg.Tokens)
		}
		names[t.Name], secrets[t.Secret] = true, true
	}
	for alias, name := range cfg.Aliases {
		if _, err := jobs.LookupModel(name); err != nil {
			return fmt.Errorf("gateway: alias %s: %w", alias, err)
		}
	}
	cfg.BaseURL = strings.TrimRight(cfg.BaseURL, "/")
	return nil
}

// readyTimeout is how long the checks of /readyz may take. The value is our choice, as long as
// probes commonly wait.
const readyTimeout = 5 * time.Second

// HandleHealth adds /healthz, which answers while the process does, and /readyz, which answers
// 503 with the reason if ready fails. Its error must not contain a secret.
func HandleHealth(mux *http.ServeMux, ready func(context.Context) error) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, "not ready: "+strings.ReplaceAll(err.Error(), "\n", "; "), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
}

// pingRedis fails unless Redis answers.
func (g *Gateway) pingRedis(ctx context.Context) error {
	if err := g.redis.Ping(ctx).Err(); err != nil {
		g.log.Warn("redis unavailable", "err", err)
		return errors.New("redis is unavailable")
	}
	return nil
}
