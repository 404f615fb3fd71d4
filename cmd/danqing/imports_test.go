package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	module = "github.com/danqing-queue/danqing"
	root   = "../.."
)

// importMap says which packages of ours a package may import. Its tests may
// import what stands in for the services too.
func importMap() map[string][]string {
	return map[string][]string{
		"cmd/danqing":                        {"cmd/danqing/drill", "config", "jobs", "jobs/embedded", "jobs/gateway", "jobs/ledger", "jobs/redishealth", "jobs/rediskey", "storage", "storage/embedded", "worker", "worker/dashscope", "worker/dashscope/simulator", "worker/journal"},
		"cmd/danqing/drill":                  {"jobs", "jobs/ledger", "storage", "storage/embedded", "worker/dashscope", "worker/dashscope/simulator", "worker/dashscope/simulator/painter"},
		"config":                             {"jobs", "jobs/ledger", "jobs/webhook", "storage", "worker", "worker/dashscope"},
		"worker":                             {"jobs", "jobs/ledger", "jobs/redishealth", "jobs/rediskey", "jobs/webhook", "storage", "worker/dashscope", "worker/internal/reconcile", "worker/journal"},
		"worker/internal/reconcile":          {"jobs", "worker/dashscope"},
		"worker/journal":                     {"jobs", "jobs/ledger"},
		"worker/dashscope":                   {},
		"worker/dashscope/simulator":         {"worker/dashscope", "worker/dashscope/simulator/painter"}, // the wire structs, the images
		"worker/dashscope/simulator/painter": {},
		"jobs":                               {"jobs/ledger", "jobs/rediskey"},
		"jobs/embedded":                      {},
		"jobs/gateway":                       {"jobs", "jobs/ledger", "jobs/rediskey", "storage", "worker/dashscope"},
		"jobs/ledger":                        {"jobs/rediskey"},
		"jobs/redishealth":                   {"jobs/rediskey"},
		"jobs/rediskey":                      {},
		"jobs/redistest":                     {"jobs/embedded"},
		"jobs/webhook":                       {},
		"storage":                            {},
		"storage/embedded":                   {},
		"storage/storagetest":                {},
	}
}

// standIns may be imported by every test.
func standIns() []string {
	return []string{"jobs/embedded", "jobs/redistest", "storage/embedded", "storage/storagetest", "worker/dashscope/simulator", "worker/dashscope/simulator/painter"}
}

// servedBy says what a package's tests may import besides: those that it serves.
func servedBy() map[string][]string {
	return map[string][]string{"jobs/embedded": {module + "/jobs", "github.com/hibiken/asynq"}}
}

// homes says where alone a module of others may be imported. A home that ends in
// a slash is a folder with all below it, any other is one package.
func homes() map[string][]string {
	return map[string][]string{
		"github.com/hibiken/asynq":        {"jobs", "jobs/gateway", "worker"},
		"github.com/hibiken/asynqmon":     {"jobs/gateway"},
		"github.com/aws":                  {"storage/", "storage"},
		"github.com/rclone/gofakes3":      {"storage/embedded"},
		"github.com/alicebob/miniredis":   {"jobs/embedded"},
		"github.com/standard-webhooks":    {"worker", "jobs/webhook"},
		"github.com/hajimehoshi":          {"worker/dashscope/simulator/painter"},
		"github.com/spf13/cobra":          {"cmd/"},
		"github.com/rogpeppe/go-internal": {"cmd/"},
	}
}

// enqueuerMayNeed is what jobs may bring into a service that enqueues.
func enqueuerMayNeed() []string {
	return []string{"github.com/hibiken/asynq", "github.com/redis/go-redis/v9"}
}

// below reports whether an import path is a module's or of a package in it.
func below(path, module string) bool {
	return path == module || strings.HasPrefix(path, module+"/")
}

// broken tells the rule that an import in a package breaks, or "".
func broken(pkg string, test bool, imported string) string {
	if test && slices.Contains(servedBy()[pkg], imported) {
		return ""
	}
	if below(imported, module) {
		return brokenByOurs(pkg, test, strings.TrimPrefix(strings.TrimPrefix(imported, module), "/"))
	}
	for theirs, at := range homes() {
		home := slices.ContainsFunc(at, func(h string) bool {
			return pkg == h || strings.HasSuffix(h, "/") && strings.HasPrefix(pkg, h)
		})
		if below(imported, theirs) && !home && (!test || theirs != "github.com/alicebob/miniredis") {
			return fmt.Sprintf("%s is for %s only", theirs, strings.Join(at, ", "))
		}
	}
	domain, _, _ := strings.Cut(imported, "/")
	if pkg == "jobs" && !test && strings.Contains(domain, ".") &&
		!slices.ContainsFunc(enqueuerMayNeed(), func(m string) bool { return below(imported, m) }) {
		return "jobs may bring only asynq and go-redis into a service that enqueues"
	}
	return ""
}

func brokenByOurs(pkg string, test bool, imported string) string {
	may, known := importMap()[pkg]
	switch {
	case !known:
		return "importMap in cmd/danqing/imports_test.go has no row for package " + pkg
	case slices.Contains(may, imported), test && (imported == pkg || slices.Contains(standIns(), imported)):
		return ""
	case len(may) == 0:
		return pkg + " may import nothing of ours"
	default:
		return fmt.Sprintf("of ours %s may import only %s", pkg, strings.Join(may, ", "))
	}
}

// Who may import whom holds for every file, whatever its build tags.
func TestImportMap(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() {
			if name == "testdata" || file != root && strings.HasPrefix(name, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		pkg := path.Dir(relative)
		seen[pkg] = true
		for _, spec := range source.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if rule := broken(pkg, strings.HasSuffix(file, "_test.go"), imported); rule != "" {
				t.Errorf("%s imports %s, but %s", relative, imported, rule)
			}
		}
		return nil
	})
	require.NoError(t, err)
	assert.ElementsMatch(t, slices.Collect(maps.Keys(importMap())), slices.Collect(maps.Keys(seen)),
		"rows of importMap against the packages that exist")
}

func TestImportMapRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pkg      string
		test     bool
		imported string
		want     string
	}{
		{"jobs", false, module + "/storage", "of ours jobs may import only jobs/ledger, jobs/rediskey"},
		{"jobs", true, module + "/storage", "of ours jobs may import only jobs/ledger, jobs/rediskey"},
		{"jobs", true, module + "/jobs", ""},
		{"jobs", true, module + "/jobs/embedded", ""},
		{"jobs", false, module + "/jobs/embedded", "of ours jobs may import only jobs/ledger, jobs/rediskey"},
		{"jobs/embedded", true, module + "/jobs", ""},
		{"jobs/embedded", false, module + "/jobs", "jobs/embedded may import nothing of ours"},
		{"jobs", false, "golang.org/x/time/rate", "jobs may bring only asynq and go-redis into a service that enqueues"},
		{"jobs", true, "github.com/stretchr/testify/require", ""},
		{"jobs", false, "github.com/hibiken/asynq", ""},
		{"jobs", false, "github.com/hibiken/asynqmon", "github.com/hibiken/asynqmon is for jobs/gateway only"},
		{"jobs", false, "crypto/sha256", ""},
		{"storage", false, module, "storage may import nothing of ours"},
		{"storage", false, module + "/jobs", "storage may import nothing of ours"},
		{"worker", false, module + "/config", "of ours worker may import only jobs, jobs/ledger, jobs/redishealth, jobs/rediskey, jobs/webhook, storage, worker/dashscope, worker/internal/reconcile, worker/journal"},
		{"worker", false, module + "/worker/dashscope/simulator", "of ours worker may import only jobs, jobs/ledger, jobs/redishealth, jobs/rediskey, jobs/webhook, storage, worker/dashscope, worker/internal/reconcile, worker/journal"},
		{"worker", true, module + "/worker/dashscope/simulator", ""},
		{"cmd/danqing", true, "github.com/hibiken/asynq", "github.com/hibiken/asynq is for jobs, jobs/gateway, worker only"},
		{"worker", true, "github.com/aws/smithy-go", "github.com/aws is for storage/, storage only"},
		{"storage/embedded", true, "github.com/aws/smithy-go", ""},
		{"storage", true, "github.com/rclone/gofakes3", "github.com/rclone/gofakes3 is for storage/embedded only"},
		{"worker", false, "github.com/alicebob/miniredis/v2", "github.com/alicebob/miniredis is for jobs/embedded only"},
		{"worker", true, "github.com/alicebob/miniredis/v2", ""},
		{"config", false, "github.com/spf13/cobra", "github.com/spf13/cobra is for cmd/ only"},
		{"util", false, module + "/jobs", "importMap in cmd/danqing/imports_test.go has no row for package util"},
	} {
		assert.Equal(t, c.want, broken(c.pkg, c.test, c.imported), "%s (test: %t) imports %s", c.pkg, c.test, c.imported)
	}
}

// Whoever opens the repository finds five folders, and each says what it is for.
func TestTopLevel(t *testing.T) {
	t.Parallel()
	allowed := []string{"README.md", "cmd", "config", "docker-compose.yml", "go.mod", "go.sum", "jobs", "storage", "worker"}
	text, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		allowed = append(allowed, strings.Trim(strings.TrimSpace(line), "/"))
	}
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	for _, entry := range entries {
		name := entry.Name()
		known := slices.ContainsFunc(allowed, func(pattern string) bool {
			match, err := path.Match(pattern, name)
			require.NoError(t, err)
			return match
		})
		assert.True(t, known || strings.HasPrefix(name, "."), "%s has no place at the top of the repository", name)
	}
}
