// Package metricstest runs Prometheus's promtool for tests.
package metricstest

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promtool runs promtool with an input, and fails the test if that fails or warns. Where it is not
// installed the test is skipped; where CI is set to true, it fails.
func Promtool(tb testing.TB, input string, args ...string) {
	tb.Helper()
	binary, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal("promtool is not installed: apt-get install prometheus")
		}
		tb.Skip("promtool is not installed: apt-get install prometheus would run this")
	}
	cmd := exec.CommandContext(tb.Context(), binary, args...) //nolint:gosec // a test's own arguments
	cmd.Stdin = bytes.NewBufferString(input)
	out, err := cmd.CombinedOutput()
	require.NoError(tb, err, "%s", out)
}
