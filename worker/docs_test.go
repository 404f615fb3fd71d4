package worker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker/journal"
)

// Every test, function and kind of entry that docs/spending.md names exists.
func TestSpendingPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/spending.md")
	require.NoError(t, err)
	tests, functions := map[string]bool{}, map[string]bool{}
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				tests[f.Name.Name] = tests[f.Name.Name] || strings.HasSuffix(path, "_test.go")
				functions[strings.TrimPrefix(filepath.ToSlash(path), "../")+":"+f.Name.Name] = true
			}
		}
		return nil
	}))
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1)
	assert.Greater(t, len(named), 40)
	for _, name := range named {
		assert.True(t, tests[name[1]], "there is no test %s", name[1])
	}
	paths := regexp.MustCompile("`(worker/[a-z/]+\\.go:[A-Za-z]+)`").FindAllStringSubmatch(string(page), -1)
	assert.Greater(t, len(paths), 10)
	for _, path := range paths {
		assert.True(t, functions[path[1]], "there is no %s", path[1])
	}
	for _, kind := range []journal.Kind{
		journal.KindIntent, journal.KindRefused, journal.KindAmbiguous, journal.KindTask, journal.KindResults,
		journal.KindHeld, journal.KindAttemptOver, journal.KindNotCreated, journal.KindFinished,
	} {
		assert.Contains(t, string(page), "| `"+string(kind)+"` |")
	}
	for _, name := range []string{rediskey.LaneInFlight, rediskey.LaneIntents, rediskey.LaneQuarantine, rediskey.LaneLastTask, rediskey.LaneVerifiedDataset} {
		assert.Contains(t, string(page), "`…:"+name+"`")
	}
	for _, key := range []string{rediskey.Term, rediskey.Dataset, rediskey.Maintenance} {
		assert.Contains(t, string(page), "`"+key+"`")
	}
}
