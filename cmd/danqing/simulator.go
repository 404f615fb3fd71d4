package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

type simulatorFlags struct {
	listen, stateDir  string
	shortest, longest time.Duration
}

func (p *program) simulatorCommand() *cobra.Command {
	var f simulatorFlags
	cmd := &cobra.Command{
		Use:   "simulator",
		Short: "Serve a simulated DashScope that costs nothing",
		Long: `Simulator serves DashScope's image API with its limits and errors. Every answer has the
header X-Danqing-Simulated. It accepts any key.`,
		Example: `  danqing simulator &
  DASHSCOPE_HTTP_BASE_URL=http://127.0.0.1:8766/api/v1 DASHSCOPE_API_KEY=sk-any danqing batch prompts.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.simulator(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:8766", "address to listen on; port 0 picks a free one")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "folder that keeps tasks over restarts (default: memory)")
	cmd.Flags().DurationVar(&f.shortest, "shortest", 0, "duration of the shortest task (default: as measured, about 27s)")
	cmd.Flags().DurationVar(&f.longest, "longest", 0, "duration of the longest task")
	return cmd
}

func (p *program) simulator(ctx context.Context, f simulatorFlags) error {
	sim := &simulator.Simulator{StateDir: f.stateDir, Logger: slog.New(slog.NewTextHandler(p.stderr, nil))}
	switch {
	case f.shortest < 0 || f.longest < 0 || f.longest > 0 && f.longest < f.shortest:
		return usageErrorf("as in: --shortest 1s --longest 12s", "--shortest %s --longest %s: not a range", f.shortest, f.longest)
	case f.longest > 0 || f.shortest > 0:
		sim.TaskTime = simulator.Between(f.shortest, max(f.shortest, f.longest))
	}
	if err := sim.Load(); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return usageErrorf("choose another --listen address", "%w", err)
	}
	if _, err := fmt.Fprintf(p.stdout, "http://%s/api/v1\n", listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: sim, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-p.signals:
		err = server.Close()
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
	}
	return errors.Join(err, sim.Close())
}
