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

// importMap has the packages of this module that a package may import. Tests may also import
// testOnlyPackages.
func importMap() map[string][]string {
	return map[string][]string{
		"cmd/danqing":                        {"cmd/danqing/bench", "cmd/danqing/drill", "cmd/danqing/gallery", "cmd/danqing/input", "cmd/danqing/terminal", "config", "jobs", "jobs/compactjson", "jobs/editdistance", "jobs/embedded", "jobs/gateway", "jobs/jobid", "jobs/ledger", "jobs/redishealth", "jobs/rediskey", "storage", "storage/atomicfile", "storage/embedded", "worker", "worker/dashscope", "worker/dashscope/simulator", "worker/journal", "worker/metrics"},
		"cmd/danqing/bench":                  {"jobs", "jobs/embedded", "storage", "storage/embedded", "storage/embedded/inprocess", "worker", "worker/dashscope", "worker/dashscope/simulator", "worker/dashscope/simulator/painter", "worker/journal"},
		"cmd/danqing/drill":                  {"jobs", "jobs/ledger", "storage", "storage/atomicfile", "storage/embedded", "worker/dashscope", "worker/dashscope/simulator", "worker/dashscope/simulator/painter"},
		"cmd/danqing/input":                  {"jobs", "jobs/compactjson", "jobs/gateway"},
		"cmd/danqing/gallery":                {},
		"cmd/danqing/terminal":               {},
		"config":                             {"jobs", "jobs/editdistance", "jobs/ledger", "jobs/webhook", "storage", "worker", "worker/dashscope"},
		"worker":                             {"jobs", "jobs/ledger", "jobs/rediskey", "storage", "worker/dashscope", "worker/internal/account", "worker/internal/delivery", "worker/internal/lane", "worker/internal/lease", "worker/internal/loop", "worker/internal/notify", "worker/internal/quarantine", "worker/internal/reconcile", "worker/internal/recorder", "worker/internal/watch", "worker/journal", "worker/metrics"},
		"worker/internal/lane":               {"jobs", "jobs/compactjson", "jobs/ledger", "jobs/rediskey", "storage", "worker/dashscope", "worker/internal/account", "worker/internal/lease", "worker/internal/loop", "worker/internal/pollschedule", "worker/internal/quarantine", "worker/internal/reconcile", "worker/internal/recorder", "worker/internal/watch", "worker/journal"},
		"worker/internal/delivery":           {"jobs", "storage", "worker/dashscope", "worker/internal/account", "worker/internal/loop", "worker/internal/recorder", "worker/internal/watch", "worker/journal"},
		"worker/internal/notify":             {"jobs", "jobs/compactjson", "jobs/webhook", "storage", "worker/internal/loop", "worker/internal/watch", "worker/metrics"},
		"worker/internal/quarantine":         {"jobs", "jobs/compactjson", "jobs/rediskey", "storage", "worker/dashscope", "worker/internal/loop", "worker/internal/recorder", "worker/internal/watch"},
		"worker/internal/reconcile":          {"jobs", "jobs/compactjson", "jobs/rediskey", "worker/dashscope", "worker/journal"},
		"worker/internal/recorder":           {"jobs", "jobs/compactjson", "jobs/ledger", "jobs/rediskey", "storage", "worker/internal/loop", "worker/journal", "worker/metrics"},
		"worker/internal/account":            {"jobs", "worker/dashscope", "worker/internal/loop"},
		"worker/internal/lease":              {"jobs/redishealth", "jobs/rediskey", "worker/internal/loop", "worker/journal"},
		"worker/internal/loop":               {},
		"worker/internal/watch":              {"jobs/rediskey", "worker/internal/loop"},
		"worker/internal/pollschedule":       {},
		"worker/metrics":                     {"jobs", "jobs/ledger", "worker/dashscope"},
		"worker/metrics/metricstest":         {},
		"worker/journal":                     {"jobs", "jobs/compactjson", "jobs/ledger", "storage/atomicfile"},
		"worker/dashscope":                   {},
		"worker/dashscope/simulator":         {"jobs", "jobs/compactjson", "storage/embedded/inprocess", "worker/dashscope", "worker/dashscope/simulator/painter"}, // the honored parameters, the wire structs, the images
		"worker/dashscope/simulator/painter": {},
		"jobs":                               {"jobs/compactjson", "jobs/editdistance", "jobs/jobid", "jobs/ledger", "jobs/rediskey"},
		"jobs/compactjson":                   {},
		"jobs/editdistance":                  {},
		"jobs/embedded":                      {"storage/atomicfile"},
		"jobs/jobid":                         {},
		"jobs/ledger":                        {"jobs/compactjson", "jobs/jobid", "jobs/rediskey"},
		"jobs/redishealth":                   {"jobs/rediskey"},
		"jobs/rediskey":                      {},
		"jobs/redistest":                     {"jobs/embedded"},
		"jobs/webhook":                       {},
		"jobs/gateway":                       {"jobs", "jobs/compactjson", "jobs/gateway/dashboard", "jobs/ledger", "jobs/rediskey", "storage", "worker/dashscope"},
		"jobs/gateway/dashboard":             {"jobs", "jobs/jobid", "jobs/ledger"},
		"storage":                            {"jobs/jobid", "storage/atomicfile"},
		"storage/atomicfile":                 {},
		"storage/embedded":                   {"storage/embedded/inprocess"},
		"storage/embedded/inprocess":         {},
		"storage/storagetest":                {},
	}
}

// testOnlyPackages may be imported by every test.
func testOnlyPackages() []string {
	return []string{"jobs/embedded", "jobs/redistest", "storage/embedded", "storage/storagetest", "worker/dashscope/simulator", "worker/dashscope/simulator/painter", "worker/metrics/metricstest"}
}

// extraTestImports are packages that only the tests of a package may import.
func extraTestImports() map[string][]string {
	return map[string][]string{
		"jobs/embedded":          {module + "/jobs", "github.com/hibiken/asynq"},
		"jobs/gateway/dashboard": {"github.com/hibiken/asynq"},
		"worker":                 {"github.com/hibiken/asynqmon"},
	}
}

// allowedImporters are the only packages that may import a module. One that ends in a slash
// is a folder with everything below it.
func allowedImporters() map[string][]string {
	return map[string][]string{
		"github.com/hibiken/asynq":        {"cmd/danqing/bench", "jobs", "jobs/gateway", "worker", "worker/internal/"},
		"github.com/hibiken/asynqmon":     {"jobs/gateway"},
		"github.com/aws":                  {"storage/", "storage"},
		"github.com/rclone/gofakes3":      {"storage/embedded"},
		"github.com/alicebob/miniredis":   {"jobs/embedded"},
		"github.com/standard-webhooks":    {"worker", "jobs/webhook"},
		"github.com/hajimehoshi":          {"worker/dashscope/simulator/painter"},
		"github.com/prometheus":           {"worker/metrics", "worker"},
		"github.com/spf13/cobra":          {"cmd/"},
		"github.com/mattn/go-runewidth":   {"cmd/danqing/terminal"},
		"github.com/vbauerster/mpb":       {"cmd/danqing/terminal"},
		"github.com/rogpeppe/go-internal": {"cmd/"},
	}
}

// jobsMayDependOn are the modules that package jobs may add to a service that uses it.
func jobsMayDependOn() []string {
	return []string{"github.com/hibiken/asynq", "github.com/redis/go-redis/v9"}
}

// below reports whether an import path is a module or a package in it.
func below(path, module string) bool {
	return path == module || strings.HasPrefix(path, module+"/")
}

// violation returns the rule that an import violates, or "".
func violation(pkg string, test bool, imported string) string {
	if test && slices.Contains(extraTestImports()[pkg], imported) {
		return ""
	}
	if below(imported, module) {
		return violationWithin(pkg, test, strings.TrimPrefix(strings.TrimPrefix(imported, module), "/"))
	}
	for theirs, at := range allowedImporters() {
		home := slices.ContainsFunc(at, func(h string) bool {
			return pkg == h || strings.HasSuffix(h, "/") && strings.HasPrefix(pkg, h)
		})
		if below(imported, theirs) && !home && (!test || theirs != "github.com/alicebob/miniredis") {
			return fmt.Sprintf("%s is for %s only", theirs, strings.Join(at, ", "))
		}
	}
	domain, _, _ := strings.Cut(imported, "/")
	if pkg == "jobs" && !test && strings.Contains(domain, ".") &&
		!slices.ContainsFunc(jobsMayDependOn(), func(m string) bool { return below(imported, m) }) {
		return "jobs may bring only asynq and go-redis into a service that enqueues"
	}
	return ""
}

func violationWithin(pkg string, test bool, imported string) string {
	may, known := importMap()[pkg]
	switch {
	case !known:
		return "importMap in cmd/danqing/imports_test.go has no row for package " + pkg
	case slices.Contains(may, imported), test && (imported == pkg || slices.Contains(testOnlyPackages(), imported)):
		return ""
	case len(may) == 0:
		return pkg + " may import nothing of ours"
	default:
		return fmt.Sprintf("of ours %s may import only %s", pkg, strings.Join(may, ", "))
	}
}

// The import map holds for every file, with any build tags.
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
			if rule := violation(pkg, strings.HasSuffix(file, "_test.go"), imported); rule != "" {
				t.Errorf("%s imports %s, but %s", relative, imported, rule)
			}
		}
		return nil
	})
	require.NoError(t, err)
	assert.ElementsMatch(t, slices.Collect(maps.Keys(importMap())), slices.Collect(maps.Keys(seen)),
		"rows of importMap against the packages that exist")
}

func TestImportMapViolations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pkg      string
		test     bool
		imported string
		want     string
	}{
		{"jobs", false, module + "/storage", "of ours jobs may import only jobs/compactjson, jobs/editdistance, jobs/jobid, jobs/ledger, jobs/rediskey"},
		{"jobs", true, module + "/storage", "of ours jobs may import only jobs/compactjson, jobs/editdistance, jobs/jobid, jobs/ledger, jobs/rediskey"},
		{"jobs", true, module + "/jobs", ""},
		{"jobs", true, module + "/jobs/embedded", ""},
		{"jobs", false, module + "/jobs/embedded", "of ours jobs may import only jobs/compactjson, jobs/editdistance, jobs/jobid, jobs/ledger, jobs/rediskey"},
		{"jobs/embedded", true, module + "/jobs", ""},
		{"jobs/embedded", false, module + "/jobs", "of ours jobs/embedded may import only storage/atomicfile"},
		{"jobs", false, "golang.org/x/time/rate", "jobs may bring only asynq and go-redis into a service that enqueues"},
		{"jobs", true, "github.com/stretchr/testify/require", ""},
		{"jobs", false, "github.com/hibiken/asynq", ""},
		{"jobs", false, "github.com/hibiken/asynqmon", "github.com/hibiken/asynqmon is for jobs/gateway only"},
		{"jobs", false, "crypto/sha256", ""},
		{"storage", false, module, "of ours storage may import only jobs/jobid, storage/atomicfile"},
		{"storage", false, module + "/jobs", "of ours storage may import only jobs/jobid, storage/atomicfile"},
		{"worker/dashscope", false, module + "/jobs", "worker/dashscope may import nothing of ours"},
		{"worker/internal/loop", false, module + "/config", "worker/internal/loop may import nothing of ours"},
		{"worker/internal/notify", false, module + "/worker/internal/lane", "of ours worker/internal/notify may import only jobs, jobs/compactjson, jobs/webhook, storage, worker/internal/loop, worker/internal/watch, worker/metrics"},
		{"worker/internal/account", false, module + "/worker/dashscope/simulator", "of ours worker/internal/account may import only jobs, worker/dashscope, worker/internal/loop"},
		{"worker", true, module + "/worker/dashscope/simulator", ""},
		{"cmd/danqing", true, "github.com/hibiken/asynq", "github.com/hibiken/asynq is for cmd/danqing/bench, jobs, jobs/gateway, worker, worker/internal/ only"},
		{"worker", true, "github.com/aws/smithy-go", "github.com/aws is for storage/, storage only"},
		{"storage/embedded", true, "github.com/aws/smithy-go", ""},
		{"storage", true, "github.com/rclone/gofakes3", "github.com/rclone/gofakes3 is for storage/embedded only"},
		{"worker", false, "github.com/alicebob/miniredis/v2", "github.com/alicebob/miniredis is for jobs/embedded only"},
		{"worker", true, "github.com/alicebob/miniredis/v2", ""},
		{"config", false, "github.com/spf13/cobra", "github.com/spf13/cobra is for cmd/ only"},
		{"util", false, module + "/jobs", "importMap in cmd/danqing/imports_test.go has no row for package util"},
	} {
		assert.Equal(t, c.want, violation(c.pkg, c.test, c.imported), "%s (test: %t) imports %s", c.pkg, c.test, c.imported)
	}
}

// The repository has five top-level folders with descriptive names.
func TestTopLevelFolders(t *testing.T) {
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
