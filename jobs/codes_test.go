package jobs_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the reference pages in docs/")

// golden compares a generated page with the one in the repository.
func golden(t *testing.T, path, page string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), page, "%s is out of date: go test ./jobs -update", path)
}

// code is one constant of codes.go with the parts of its comment.
type code struct{ name, value, happened, cost, do string }

// codeGroup is one of the blocks of codes.go.
type codeGroup struct {
	title, text string
	codes       []code
}

// codeGroups reads codes.go. Every code says what happened, what it cost and what to do.
func codeGroups(t *testing.T) []codeGroup {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, parser.ParseComments)
	require.NoError(t, err)
	var groups []codeGroup
	for _, decl := range file.Decls {
		block, ok := decl.(*ast.GenDecl)
		require.True(t, ok)
		title, text, _ := strings.Cut(oneLine(block.Doc.Text()), ". ")
		title = strings.TrimPrefix(strings.TrimSuffix(title, "."), "Codes of ")
		group := codeGroup{title: strings.ToUpper(title[:1]) + title[1:], text: text}
		for _, spec := range block.Specs {
			group.codes = append(group.codes, codeOf(t, spec))
		}
		groups = append(groups, group)
	}
	return groups
}

func codeOf(t *testing.T, spec ast.Spec) code {
	t.Helper()
	constant, ok := spec.(*ast.ValueSpec)
	require.True(t, ok)
	literal, ok := constant.Values[0].(*ast.BasicLit)
	require.True(t, ok)
	value, err := strconv.Unquote(literal.Value)
	require.NoError(t, err)
	c := code{name: constant.Names[0].Name, value: value}
	assert.Equal(t, "Code"+c.value, c.name)
	parts := strings.Split(constant.Doc.Text(), "\n\n")
	require.Len(t, parts, 3, "%s needs three paragraphs: what happened, Cost, Do", c.name)
	for i, part := range []struct {
		prefix string
		to     *string
	}{{c.name + " means that ", &c.happened}, {"Cost: ", &c.cost}, {"Do: ", &c.do}} {
		text, ok := strings.CutPrefix(oneLine(parts[i]), part.prefix)
		require.True(t, ok, "paragraph %d of %s begins with %q", i+1, c.name, part.prefix)
		*part.to = text
		if !strings.HasPrefix(text, "danqing ") {
			*part.to = strings.ToUpper(text[:1]) + text[1:]
		}
	}
	return c
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// inlineCode matches what the page sets as code: options, commands and names of files.
var inlineCode = regexp.MustCompile(`--[a-z-]+( TASK)?|danqing jobs [a-z]+|danqing:job:ID|_(held|jobs)/[A-Za-z/.]*|\bSubmitAmbiguous\b`)

func codesPage(groups []codeGroup) string {
	var b strings.Builder
	b.WriteString("# Codes\n\n<!-- Made from jobs/codes.go by go test ./jobs -update. -->\n\n" +
		"A job, an image or a past attempt that did not end well has a code and a message. These are Danqing's own codes.\n" +
		"Every other code is DashScope's, and the message says what to do about it. Held jobs have a\n[runbook](../../cmd/danqing/docs/held.md).\n")
	for _, group := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n", group.title)
		if group.text != "" {
			fmt.Fprintf(&b, "%s\n\n", markCode(group.text))
		}
		b.WriteString("| code | what happened | cost | what to do |\n| --- | --- | --- | --- |\n")
		for _, c := range group.codes {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", c.value, markCode(c.happened), markCode(c.cost), markCode(c.do))
		}
	}
	return b.String()
}

func markCode(s string) string { return inlineCode.ReplaceAllString(s, "`$0`") }

func TestCodesPage(t *testing.T) {
	t.Parallel()
	golden(t, filepath.Join("docs", "codes.md"), codesPage(codeGroups(t)))
}

// Codes are literals only in codes.go, so that the page has all of them.
func TestCodesAreConstants(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, group := range codeGroups(t) {
		for _, c := range group.codes {
			assert.False(t, known[c.value], "%s is there twice", c.value)
			known[c.value] = true
		}
	}
	// In package worker, every literal that looks like a code is one.
	looksLikeOne := regexp.MustCompile(`^([A-Z][a-z]+){2,}(: .*)?$`)
	root := ".."
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (name == "testdata" || name == "dashscope" || path != root && strings.HasPrefix(name, ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || path == filepath.Join(root, "jobs", "codes.go") {
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		inWorker := strings.HasPrefix(path, filepath.Join(root, "worker"))
		ast.Inspect(file, func(node ast.Node) bool {
			literal, ok := node.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, _ := strconv.Unquote(literal.Value) // the parser took it
			name, _, _ := strings.Cut(text, ": ")
			assert.False(t, known[name] || inWorker && looksLikeOne.MatchString(text),
				"%s: the code %q belongs in jobs/codes.go", files.Position(literal.Pos()), name)
			return true
		})
		return nil
	})
	require.NoError(t, err)
}
