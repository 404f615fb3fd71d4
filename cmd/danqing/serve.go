package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
)

const (
	// defaultListen is the default address of the API.
	defaultListen = "127.0.0.1:8765"
	listenUsage   = "address to listen on, host:port; port 0 picks a free one; beyond loopback tokens are required (default: DANQING_LISTEN, else " + defaultListen + ")"
	// headerTimeout limits the time until a client has sent a request's header, and
	// idleTimeout the time between requests.
	headerTimeout  = 20 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 32 << 10
	// shutdownTimeout limits requests in progress when the program ends.
	shutdownTimeout = 2 * time.Second
	// defaultMaxQueued is the maximum number of waiting jobs in a Redis, unless
	// DANQING_SERVE_MAX_QUEUED is set: about 170 MB of memory, and weeks of work.
	defaultMaxQueued = 100_000
)

type serveFlags struct {
	listen string
	log    logFlags
}

// uiEnabled reports whether the web UI is served: to operators who log in, or, without tokens of
// anybody, on this machine.
func uiEnabled(cfg *config.Config) bool {
	return len(cfg.Serve.Operators) > 0 || len(cfg.Serve.Tokens) == 0
}

func (p *program) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve DashScope's and OpenAI's image APIs over HTTP",
		Long: `Serve accepts jobs over HTTP and queues them in the Redis at REDIS_URL. Programs that
call DashScope, by its SDKs or by hand, run unchanged: set their
DASHSCOPE_HTTP_BASE_URL to http://HOST:PORT/api/v1, and give them a token of
DANQING_SERVE_TOKENS in place of the key. Tools for OpenAI's images API use
http://HOST:PORT/v1.

On loopback no tokens are needed. A page for operators is at /: with
DANQING_OPERATOR_TOKENS they log in, without any tokens it is for this machine only. No
DashScope key is needed.`,
		Example: `  REDIS_URL=redis://127.0.0.1:6379/0 DANQING_S3_BUCKET=images danqing serve
  DANQING_SERVE_TOKENS=shop:$(openssl rand -hex 24) danqing serve --listen 0.0.0.0:8765`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.serve(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.listen, "listen", "", listenUsage)
	f.log.add(cmd)
	return cmd
}

func (p *program) serve(ctx context.Context, f serveFlags) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if !cfg.RedisURL.IsSet() {
		return usageErrorf("set it to the workers' Redis, as in redis://127.0.0.1:6379/0; for all in one process use: danqing up", "REDIS_URL is not set")
	}
	if cfg.Bucket == "" {
		return usageErrorf("set it to the workers' bucket: links to images lead there", "DANQING_S3_BUCKET is not set")
	}
	log, outages, err := f.log.logger(p.stderr)
	if err != nil {
		return err
	}
	observed := newMetrics()
	settings := cfg.Storage()
	settings.Observe = observed.BucketRequest
	bucket, err := storage.New(settings)
	if err != nil {
		return err
	}
	at, err := cfg.Redis()
	if err != nil {
		return err
	}
	rdb := at.Client(basePoolSize)
	defer rdb.Close() //nolint:errcheck // the process ends
	rdb.AddHook(observed.RedisHook())
	observed.WatchQueue(rdb)
	if err := errors.Join(ping(ctx, rdb, at.Address), bucket.Check(ctx)); err != nil {
		return err
	}
	switch mode, err := modeOf(ctx, jobs.NewInspector(rdb), bucket); {
	case err != nil:
		return err
	case mode == jobs.ModeSimulated:
		p.stderrf(simulatedNotice)
	}
	defer outages.watch(ctx, outageChecks(rdb, bucket))()
	logRedisHealth(ctx, rdb, log)
	ready := func(ctx context.Context) error {
		if err := ping(ctx, rdb, at.Address); err != nil {
			return err
		}
		return bucket.Check(ctx)
	}
	server, err := listen(ctx, cfg, f.listen)
	if err != nil {
		return err
	}
	if err := server.open(cfg, serverConfig{
		redis: rdb, bucket: bucket, ready: ready, price: func(model jobs.Model, n int) int64 { return maxPrice(cfg.Accounts, model, n) }, depth: cmp.Or(cfg.Serve.MaxQueued, defaultMaxQueued), log: log,
	}); err != nil {
		return err
	}
	monitor, err := openMonitor(ctx, cfg, observed, log, ready)
	if err != nil {
		return errors.Join(err, server.listener.Close())
	}
	defer monitor.Close() //nolint:errcheck // the process ends
	stopAlerts, err := worker.StartAlerts(ctx, worker.AlertConfig{Redis: rdb, Receivers: cfg.Alerts, Metrics: observed, Log: log})
	if err != nil {
		return errors.Join(err, server.listener.Close())
	}
	defer stopAlerts()
	stopped := make(chan struct{})
	served := server.serve(func() { close(stopped) })
	server.announce(p)
	select {
	case <-p.signals:
	case <-stopped:
	}
	return errors.Join(server.shutdown(ctx), <-served)
}

// serverConfig configures a server.
type serverConfig struct {
	redis  redis.UniversalClient
	bucket *storage.Bucket
	ready  func(context.Context) error // for /readyz
	local  bool                        // the bucket is embedded: clients cannot reach it
	price  func(jobs.Model, int) int64
	depth  int
	temp   string // folder for uploads; "" is the system's
	log    *slog.Logger
}

// httpServer is a gateway with its listener.
type httpServer struct {
	gateway  *gateway.Gateway
	listener net.Listener
	local    bool // the address is a loopback one
	server   *http.Server
	ui       bool
}

// listen listens on the flag's address, or else the configured one. It serves nothing yet.
func listen(ctx context.Context, cfg *config.Config, flag string) (*httpServer, error) {
	address := cmp.Or(flag, cfg.Serve.Listen, defaultListen)
	listener, local, err := gateway.Listen(ctx, address, len(cfg.Serve.Tokens)+len(cfg.Serve.Operators) > 0)
	if err != nil {
		return nil, usageErrorf("choose another address by --listen, as in --listen 127.0.0.1:0; to serve other machines set DANQING_SERVE_TOKENS for the API, or DANQING_OPERATOR_TOKENS for the web UI", "%w", err)
	}
	return &httpServer{listener: listener, local: local}, nil
}

// open creates the gateway. After an error the listener is closed.
func (h *httpServer) open(cfg *config.Config, s serverConfig) error {
	if s.temp != "" {
		if err := os.MkdirAll(s.temp, 0o700); err != nil {
			return errors.Join(fmt.Errorf("make room for uploads: %w", err), h.listener.Close())
		}
	}
	api := &gateway.API{
		Bucket: s.bucket, RedirectImages: cfg.Serve.RedirectImages && !s.local, Price: s.price, Depth: s.depth, TempDir: s.temp,
		RequireToken: !h.local, DefaultN: cfg.Serve.DefaultN, BaseURL: cfg.Serve.URL, KeepAlive: cfg.Serve.KeepAlive, CORSOrigins: cfg.Serve.CORSOrigins, Aliases: cfg.Serve.Aliases,
		LoadSidecar: func(ctx context.Context, id string) (*jobs.Job, error) {
			return loadSidecar(ctx, s.bucket, cfg.Serve.URL, id)
		},
	}
	for _, t := range cfg.Serve.Tokens {
		api.Tokens = append(api.Tokens, gateway.Token{Name: t.Name, Secret: t.Secret.Reveal(), MaxWaiting: t.MaxQueued, DailyBudgetMicroYuan: t.DailyBudgetMicroYuan, MaxRequests: t.MaxRequests, MaxUploads: t.MaxUploads})
	}
	h.ui = uiEnabled(cfg)
	ui := gateway.Config{Redis: s.redis, Ready: s.ready, API: api, UI: h.ui, UIReadOnly: len(cfg.Serve.Operators) > 0 && !cfg.Serve.UIWrite, Budgets: map[string]int64{}, Logger: s.log}
	for _, o := range cfg.Serve.Operators {
		ui.Operators = append(ui.Operators, gateway.Operator{Name: o.Name, Secret: o.Secret.Reveal()})
	}
	for _, a := range cfg.Accounts {
		ui.Budgets[a.Name] = a.DailyBudgetMicroYuan
	}
	var err error
	h.gateway, err = gateway.New(ui)
	if err != nil {
		return errors.Join(err, h.listener.Close())
	}
	h.server = &http.Server{
		Handler: h.gateway, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ConnContext: gateway.ConnContext,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	return nil
}

// loadSidecar returns a job from its sidecar.
func loadSidecar(ctx context.Context, from *storage.Bucket, serveURL, id string) (*jobs.Job, error) {
	job, err := finishedJob(ctx, from, serveURL, id)
	if errors.Is(err, storage.ErrNotExist) {
		return nil, fmt.Errorf("job %s: %w", id, jobs.ErrNotFound)
	}
	return job, err
}

// serve handles requests until shutdown, and calls ended when it ends for any reason.
func (h *httpServer) serve(ended func()) <-chan error {
	served := make(chan error, 1)
	go func() {
		err := h.server.Serve(h.listener)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		} else {
			err = fmt.Errorf("serve: %w", err)
		}
		served <- err
		ended()
	}()
	return served
}

// shutdown answers waiting requests, and ends the server.
func (h *httpServer) shutdown(ctx context.Context) error {
	err := h.gateway.Close()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if h.server.Shutdown(closing) != nil {
		err = errors.Join(err, h.server.Close()) // the timeout has passed
	}
	return err
}

// baseURL returns the URL of the server on this machine.
func (h *httpServer) baseURL() string {
	address := h.listener.Addr().String()
	if host, port, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			address = net.JoinHostPort("127.0.0.1", port)
		}
	}
	return "http://" + address
}

func (h *httpServer) announce(p *program) {
	p.stderrf("API:     DASHSCOPE_HTTP_BASE_URL=%s/api/v1   (OpenAI's images: %s/v1)", h.baseURL(), h.baseURL())
	if h.ui {
		p.stderrf("web UI:  %s/", h.baseURL())
	}
}
