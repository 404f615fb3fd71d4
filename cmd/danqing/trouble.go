package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// addFail adds the flag of the simulator's trouble.
func addFail(cmd *cobra.Command, fail *[]string) {
	cmd.Flags().StringSliceVar(fail, "fail", nil, "make trouble: NAME, or NAME=SHARE as in review=0.1; see danqing simulator --help")
}

// checkFail fails if trouble is asked for without the simulator.
func checkFail(fail []string, simulate bool) error {
	if len(fail) > 0 && !simulate {
		return usageErrorf("give --simulate too", "--fail %s: only the simulator makes trouble", strings.Join(fail, ","))
	}
	return nil
}

// makeTrouble makes a simulator fail: each text is NAME or NAME=SHARE.
func makeTrouble(sim *simulator.Simulator, fail []string) error {
	for _, text := range fail {
		name, part, shared := strings.Cut(text, "=")
		share := 1.0
		if shared {
			var err error
			if share, err = strconv.ParseFloat(part, 64); err != nil {
				return usageErrorf("as in: --fail review=0.1", "--fail %s: %q is not a share from 0 to 1", text, part)
			}
		}
		if err := sim.Trouble(name, share); err != nil {
			return usageErrorf("see: danqing simulator --help", "--fail: %w", err)
		}
	}
	return nil
}

// troubleHelp lists the simulator's trouble.
func troubleHelp() string {
	var b strings.Builder
	for _, t := range simulator.Troubles() {
		fmt.Fprintf(&b, "  %-8s %s\n", t.Name, t.Meaning)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
