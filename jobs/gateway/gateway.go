// Package gateway serves jobs over HTTP: DashScope's own API for programs that speak
// it already, OpenAI's images API, the images themselves, asynq's web UI under /ui, and
// /healthz.
//
// The web UI can cancel what others have asked for and is behind no password, so it is
// for this machine alone: requests that name another host are refused (a foreign page
// whose name was pointed at this machine), and so are changes asked for by a foreign
// page. So is the API while it has no tokens: whoever may listen beyond the loopback
// must have some, see [Listen].
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// Config says what a gateway serves.
type Config struct {
	// Redis holds the queues and records. It stays the caller's to close, after
	// [Gateway.Close]. Required.
	Redis redis.UniversalClient
	// API is what programs may ask; nil serves none.
	API *API
	// UI serves asynq's web UI, to loopback names alone.
	UI bool
	// Logger gets what an operator should know; nil logs nothing.
	Logger *slog.Logger
}

// API says what the API accepts, and from whom.
type API struct {
	// Bucket has the images, and takes reference images. Required.
	Bucket *storage.Bucket
	// Stream sends the images themselves, where nobody else reaches the bucket: the
	// embedded one. Otherwise links lead to the bucket.
	Stream bool
	// Recall returns a job that Redis has forgotten, by its sidecar, or fails with
	// [jobs.ErrNotFound]. Required.
	Recall func(ctx context.Context, id string) (*jobs.Record, error)
	// Tokens are those that may use the API. With none everybody may, under loopback
	// names alone, and sees all jobs.
	Tokens []Token
	// DefaultN is how many images a request without n is for, as far as its model makes
	// so many; 0 is 4, DashScope's own.
	DefaultN int
	// Price returns what n images of a model cost at most, in millionths of a yuan.
	// Required.
	Price func(model jobs.Model, n int) int64
	// Depth is how many jobs may wait in all; 0 is no bound.
	Depth int
	// BaseURL is where clients and the readers of links reach the gateway, as in
	// https://danqing.example.com; "" is the host that a request names.
	BaseURL string
	// TempDir takes uploads on their way into the bucket, 10 MB each; "" is the
	// system's.
	TempDir string
	// StageOptions says how reference images are fetched; its Dir is TempDir.
	StageFrom storage.StageOptions
	// OpenAIWait is how long a request of OpenAI's API waits for its images; 0 is 5
	// minutes. Those clients give up after 10.
	OpenAIWait time.Duration
}

// Token is a secret by which a producer is known.
type Token struct {
	// Name is kept on the jobs, see [jobs.ValidAccount]; each once.
	Name   string
	Secret string // what a client sends as its API key; not empty
	// MaxWaiting is how many of its jobs may wait; 0 is no bound.
	MaxWaiting int
	// DailyBudgetMicroYuan is what its jobs of a day (UTC+8) may cost; 0 is no bound.
	DailyBudgetMicroYuan int64
}

const defaultN = 4

// Gateway is the HTTP handler. It is safe for concurrent use.
type Gateway struct {
	redis     redis.UniversalClient
	jobs      *jobs.Client
	inspector *asynq.Inspector
	log       *slog.Logger
	handler   http.Handler
	api       *api // nil without
}

// New makes a gateway, which the caller must Close. It dials nothing.
func New(cfg Config) (*Gateway, error) {
	if cfg.Redis == nil {
		return nil, errors.New("gateway: Redis is not set: give it the client of the queues")
	}
	g := &Gateway{
		redis: cfg.Redis, jobs: jobs.NewClient(cfg.Redis), inspector: asynq.NewInspectorFromRedisClient(cfg.Redis),
		log: cfg.Logger,
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", g.health)
	if cfg.UI {
		if err := g.handleUI(mux); err != nil {
			return nil, err
		}
	}
	if cfg.API != nil {
		var err error
		if g.api, err = newAPI(g, *cfg.API); err != nil {
			return nil, err
		}
		g.api.handle(mux)
	}
	g.handler = mux
	return g, nil
}

// handleUI adds asynq's web UI.
func (g *Gateway) handleUI(mux *http.ServeMux) error {
	ui, err := newUI(context.Background(), g.redis)
	if err != nil {
		return err
	}
	own := http.NewServeMux()
	pages := g.endingArchived(ui)
	own.Handle(uiPath+"/", pages)
	own.Handle("GET /{$}", http.RedirectHandler(uiPath+"/", http.StatusFound))
	g.handleDeletes(own, pages)
	guarded := guard(ui.policy(), own)
	mux.Handle(uiPath+"/", guarded)
	mux.Handle("GET /{$}", guarded)
	return nil
}

// ServeHTTP answers a request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if len(r.Host) > maxHostBytes {
		http.Error(w, "the Host header is too long", http.StatusBadRequest)
		return
	}
	if r.ContentLength != 0 { // also where nobody reads the body: net/http does, before it answers
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // not every reader has one
	}
	g.handler.ServeHTTP(w, r)
}

// maxHostBytes is what a name can have in DNS, with a port.
const maxHostBytes = 255 + len(":65535")

// Close ends what a gateway does by itself; requests that are held are answered.
func (g *Gateway) Close() error {
	if g.api != nil {
		return g.api.close()
	}
	return nil
}

func (cfg *API) validate() error {
	if cfg.Bucket == nil || cfg.Recall == nil || cfg.Price == nil {
		return errors.New("gateway: Bucket, Recall and Price of the API are all required")
	}
	if cfg.DefaultN < 0 || cfg.DefaultN > defaultN {
		return fmt.Errorf("gateway: DefaultN is %d, must be 1 to %d, or 0 for that", cfg.DefaultN, defaultN)
	}
	names, secrets := map[string]bool{}, map[string]bool{}
	for i, t := range cfg.Tokens {
		if err := jobs.ValidAccount(t.Name); err != nil {
			return fmt.Errorf("gateway: token %d: its name: %w", i+1, err)
		}
		if t.Secret == "" || names[t.Name] || secrets[t.Secret] {
			return fmt.Errorf("gateway: token %s: is empty, or its name or it is there twice", t.Name)
		}
		names[t.Name], secrets[t.Secret] = true, true
	}
	cfg.BaseURL = strings.TrimRight(cfg.BaseURL, "/")
	return nil
}

// healthTimeout is how long Redis may take to answer before it counts as down;
// ours, below the 5 s that probes commonly wait.
const healthTimeout = 3 * time.Second

// health answers 200 while the queue can be reached, else 503.
func (g *Gateway) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
	defer cancel()
	if err := g.redis.Ping(ctx).Err(); err != nil {
		g.log.Warn("queue does not answer", "err", err)
		http.Error(w, "the queue does not answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}
