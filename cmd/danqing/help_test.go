package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
)

// Every command is in a group, and its help fits 80 columns, but for examples.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &program{stdout: &out, stderr: &out}
	root := p.command()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		out.Reset()
		require.NoError(t, cmd.Help())
		text, _, _ := strings.Cut(out.String(), "\nExamples:\n")
		_, flags, _ := strings.Cut(out.String(), "\nFlags:\n")
		for line := range strings.Lines(text + flags) {
			assert.LessOrEqual(t, terminal.Cells(strings.TrimSpace(line)), helpWidth, "%s: %s", cmd.CommandPath(), line)
		}
		for line := range strings.Lines(cmd.Long) { // an indented line is part of a table, which wrapping breaks
			assert.True(t, !strings.HasPrefix(line, " ") || terminal.Cells(strings.TrimRight(line, "\n")) <= helpWidth, "%s: %s", cmd.CommandPath(), line)
		}
		for _, sub := range cmd.Commands() {
			assert.True(t, cmd != root || sub.GroupID != "", sub.Name())
			visit(sub)
		}
	}
	visit(root)
}

func TestAgeText(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for ago, want := range map[time.Duration]string{
		-time.Hour: "0 s ago", 59 * time.Second: "59 s ago", time.Minute: "1 min ago", 59*time.Minute + 59*time.Second: "59 min ago",
		time.Hour: "1 h ago", 47 * time.Hour: "47 h ago", 48 * time.Hour: "2 days ago",
	} {
		assert.Equal(t, want, ageText(now.Add(-ago), now), ago)
	}
}

// The commands that alert rules name exist.
func TestAlertRulesNameCommands(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile("monitoring/alerts.yml")
	require.NoError(t, err)
	named := regexp.MustCompile(`"danqing ([a-z ]+)`).FindAllStringSubmatch(string(rules), -1)
	require.NotEmpty(t, named)
	p := &program{stdout: io.Discard, stderr: io.Discard}
	for _, name := range named {
		cmd, rest, err := p.command().Find(strings.Fields(name[1]))
		if assert.NoError(t, err, name[1]) {
			assert.Empty(t, rest, name[1])
			assert.True(t, cmd.Runnable() && cmd.HasParent(), name[1])
		}
	}
}
