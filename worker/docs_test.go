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

	"github.com/danqing-queue/danqing/worker/journal"
)

// Every test, file and function that docs/spending.md names exists, and the page has every Redis key
// and kind of entry.
func TestSpendingPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/spending.md")
	require.NoError(t, err)
	tests, declared := map[string]bool{}, map[string]bool{}
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(filepath.ToSlash(path), "../")
		declared[path] = true
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				tests[f.Name.Name] = tests[f.Name.Name] || strings.HasSuffix(path, "_test.go")
				declared[path+":"+f.Name.Name] = true
			}
		}
		return nil
	}))
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1)
	assert.Greater(t, len(named), 40)
	for _, name := range named {
		assert.True(t, tests[name[1]], "there is no test %s", name[1])
	}
	paths := regexp.MustCompile("`((?:cmd|jobs|storage|worker)/[a-z0-9/]+\\.go(?::[A-Za-z0-9]+)?)`").FindAllStringSubmatch(string(page), -1)
	assert.Greater(t, len(paths), 10)
	for _, path := range paths {
		assert.True(t, declared[path[1]], "there is no %s", path[1])
	}
	for _, kind := range []journal.Kind{
		journal.KindIntent, journal.KindRefused, journal.KindAmbiguous, journal.KindTask, journal.KindResults,
		journal.KindHeld, journal.KindAttemptOver, journal.KindNotCreated, journal.KindFinished,
	} {
		assert.Contains(t, string(page), "| `"+string(kind)+"` |")
	}
	source, err := os.ReadFile("../jobs/rediskey/keys.go")
	require.NoError(t, err)
	keys := regexp.MustCompile(`"(danqing)?(:[a-z_:]+)"|Lane[A-Za-z]+ += "([a-z_]+)"`).FindAllStringSubmatch(string(source), -1)
	assert.Greater(t, len(keys), 40)
	for _, key := range keys {
		name := key[1] + key[2]
		if key[3] != "" {
			name = ":" + key[3]
		}
		if !strings.HasSuffix(name, ":") { // more follows
			name += "`"
		}
		assert.Contains(t, string(page), name)
	}
}
