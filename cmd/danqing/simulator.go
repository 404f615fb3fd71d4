package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

type simulatorFlags struct {
	listen, stateDir  string
	shortest, longest time.Duration
	fail              []string
	log               logFlags
}

func (p *program) simulatorCommand() *cobra.Command {
	var f simulatorFlags
	cmd := &cobra.Command{
		Use:   "simulator",
		Short: "Serve a simulated DashScope that costs nothing",
		Long: `Simulator serves DashScope's image API with its limits and errors. Every answer has the
header X-Danqing-Simulated. It accepts any key.

To rehearse a bad day, --fail makes trouble for all requests, or for a share of them, and
the words [fail:NAME] in a prompt make it for that job alone:

` + troubleHelp(),
		Example: `  danqing simulator &
  danqing simulator --fail review=0.1 --fail slow
  DASHSCOPE_HTTP_BASE_URL=http://127.0.0.1:8766/api/v1 DASHSCOPE_API_KEY=sk-any danqing batch prompts.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.simulator(cmd.Context(), f) },
	}
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:8766", "address to listen on; port 0 picks a free one")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "folder that keeps tasks over restarts (default: memory)")
	cmd.Flags().DurationVar(&f.shortest, "shortest", 0, "duration of the shortest task (default: as measured, about 27s)")
	cmd.Flags().DurationVar(&f.longest, "longest", 0, "duration of the longest task")
	addFail(cmd, &f.fail)
	f.log.add(cmd)
	return cmd
}

func (p *program) simulator(ctx context.Context, f simulatorFlags) error {
	log, _, err := f.log.logger(p.stderr)
	if err != nil {
		return err
	}
	sim := &simulator.Simulator{StateDir: f.stateDir, Logger: log}
	switch {
	case f.shortest < 0 || f.longest < 0 || f.longest > 0 && f.longest < f.shortest:
		return usageErrorf("as in: --shortest 1s --longest 12s", "--shortest %s --longest %s: not a range", f.shortest, f.longest)
	case f.longest > 0 || f.shortest > 0:
		sim.TaskTime = simulator.Between(f.shortest, max(f.shortest, f.longest))
	}
	if err := makeTrouble(sim, f.fail); err != nil {
		return err
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
