// Package gateway serves jobs over HTTP: asynq's web UI under /ui, and /healthz.
//
// Everything here can cancel what others have asked for and is behind no
// password, so it is for this machine alone: [Listen] binds loopback addresses
// only, requests that name another host are refused (a foreign page whose name
// was pointed at this machine), and so are changes asked for by a foreign page.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
)

// Config says what a gateway serves.
type Config struct {
	// Redis holds the queues and records. It stays the caller's to close, after
	// the last request. Required.
	Redis redis.UniversalClient
	// Logger gets what an operator should know; nil logs nothing.
	Logger *slog.Logger
}

// Gateway is the HTTP handler. It is safe for concurrent use.
type Gateway struct {
	redis     redis.UniversalClient
	jobs      *jobs.Client
	inspector *asynq.Inspector
	log       *slog.Logger
	handler   http.Handler
}

// New makes a gateway. It dials nothing.
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
	ui, err := newUI(context.Background(), cfg.Redis)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", g.health)
	mux.Handle("GET /{$}", http.RedirectHandler(uiPath+"/", http.StatusFound))
	pages := g.endingArchived(ui)
	mux.Handle(uiPath+"/", pages)
	g.handleDeletes(mux, pages)
	g.handler = guard(ui.policy(), mux)
	return g, nil
}

// ServeHTTP answers a request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.handler.ServeHTTP(w, r) }

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
