package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/config"
)

var update = flag.Bool("update", false, "rewrite the reference pages in docs/")

func TestEnvironmentPage(t *testing.T) {
	t.Parallel()
	path, page := filepath.Join("docs", "environment.md"), environmentPage()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), page, "%s is out of date: go test ./cmd/danqing -run Page -update", path)
}

func environmentPage() string {
	var b strings.Builder
	b.WriteString(`# Environment

<!-- Made from config/variables.go by go test ./cmd/danqing -run Page -update. -->

White space around a value does not count. A misspelled ` + "`DANQING_`" + ` variable is an error, an unknown one a warning.
More than one account comes from a [file](operations.md#accounts).
`)
	for _, group := range config.Variables() {
		fmt.Fprintf(&b, "\n## %s\n\n| variable | meaning | default |\n| --- | --- | --- |\n", group.Title)
		for _, v := range group.Variables {
			name := "`" + v.Name + "`"
			if v.Fallback != "" {
				name += ", else `" + v.Fallback + "`"
			}
			otherwise := v.Default
			if otherwise == "" {
				otherwise = "–"
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", name, v.Meaning, otherwise)
		}
	}
	return b.String()
}
