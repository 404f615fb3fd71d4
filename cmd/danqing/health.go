package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	healthTimeout  = 8 * time.Second // longer than the checks of /readyz
	maxHealthBytes = 4 << 10
)

func (p *program) healthCommand() *cobra.Command {
	alive := false
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the worker or server on this machine whether it is ready",
		Long: `Health asks the "danqing worker", "serve" or "up" with the same environment whether it
is ready: it reads /readyz at DANQING_METRICS_LISTEN, or at DANQING_LISTEN if that is not
set. It prints one sentence; the exit code is 0 if it is ready, else 1. It is meant for the
health checks of containers.`,
		Example: `  DANQING_METRICS_LISTEN=127.0.0.1:9464 danqing health`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.health(cmd.Context(), alive) },
	}
	cmd.Flags().BoolVar(&alive, "alive", false, "ask only whether the process answers (/healthz)")
	return cmd
}

func (p *program) health(ctx context.Context, alive bool) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	address := cmp.Or(cfg.Metrics.Listen, cfg.Serve.Listen, defaultListen)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return usageErrorf("set it to host:port, as in 127.0.0.1:8765", "DANQING_LISTEN %q: not an address", address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	path := "/readyz"
	if alive {
		path = "/healthz"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, http.NoBody)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("no danqing answers at %s: it does not run, or has another DANQING_METRICS_LISTEN", address)
	}
	defer answer.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxHealthBytes))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", address, err)
	}
	sentence := strings.TrimSpace(string(text))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", cmp.Or(sentence, answer.Status)) //nolint:err113 // the answer is the error
	}
	_, err = fmt.Fprintln(p.stdout, sentence)
	return err
}
