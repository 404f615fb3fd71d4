package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/worker/metrics"
)

// monitor serves /metrics, /healthz and /readyz on a listener of its own.
type monitor struct {
	server *http.Server
	served chan error
}

// newMetrics returns this process's metrics.
func newMetrics() *metrics.Metrics { return metrics.New(version()) }

// openMonitor listens at DANQING_METRICS_LISTEN, if that is set. ready says why the process cannot
// do its work.
func openMonitor(ctx context.Context, cfg *config.Config, m *metrics.Metrics, log *slog.Logger, ready func(context.Context) error) (*monitor, error) {
	if cfg.Metrics.Listen == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	token := cfg.Metrics.Token.Reveal()
	listener, _, err := gateway.Listen(ctx, cfg.Metrics.Listen, token != "")
	if err != nil {
		return nil, usageErrorf("set DANQING_METRICS_LISTEN to another address, as in 127.0.0.1:9464", "listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", guardMetrics(token, m.Handler(log)))
	gateway.HandleHealth(mux, ready)
	o := &monitor{served: make(chan error, 1), server: &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ConnContext: gateway.ConnContext,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	log.Info("metrics served", "address", listener.Addr().String())
	go func() { o.served <- o.server.Serve(listener) }()
	return o, nil
}

// Close ends the server. It may be called on nil.
func (o *monitor) Close() error {
	if o == nil {
		return nil
	}
	err := o.server.Close()
	if served := <-o.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// guardMetrics asks for a token, if there is one. Without one it answers this machine only, so
// that no web page reads the metrics under a name of its own.
func guardMetrics(token string, next http.Handler) http.Handler {
	if token == "" {
		return gateway.LocalOnly("DANQING_METRICS_TOKEN", next)
	}
	want := sha256.Sum256([]byte("Bearer " + token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(want[:], given[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "send the token of DANQING_METRICS_TOKEN as a bearer token", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ready fails unless the worker can work: Redis and the bucket answer, and a lane may start jobs.
func (rt *runtime) ready(ctx context.Context) error {
	if rt.remote != nil {
		if err := ping(ctx, rt.remote, rt.address); err != nil {
			return err
		}
	}
	if err := rt.worker.Ready(); err != nil {
		return err
	}
	if err := rt.bucket.Check(ctx); err != nil {
		return fmt.Errorf("bucket: %w", err)
	}
	return nil
}
