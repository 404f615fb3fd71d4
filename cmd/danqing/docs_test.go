package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

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

// document is a Markdown file: its fenced blocks, and the rest.
type document struct {
	path   string // from the repository's root
	blocks []block
	prose  string
}

// block is a fenced block. Its info string is its language and words for these tests:
//
//	run           the commands are run, in order, in one folder for each document
//	background    each line is a program that goes on until the document's end
//	needs=A,B     programs without which this block and the rest are left out
//	output        what the block before prints; see normalized and outputPattern
//	file=NAME     the text is a file in the document's folder
//	receiver=NAME a program that receives callbacks
//	receivers     the commands are run with each receiver
type block struct {
	line     int
	language string
	words    map[string]string
	text     string
}

func (b block) has(word string) bool { _, ok := b.words[word]; return ok }

// documents reads all Markdown files of the repository.
func documents(t *testing.T) []document {
	t.Helper()
	var list []document
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (name == "testdata" || name == "danqing-data" || strings.HasPrefix(name, ".") && name != ".github") {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		from, err := filepath.Rel(root, path)
		list = append(list, parseDocument(filepath.ToSlash(from), string(text)))
		return err
	})
	require.NoError(t, err)
	require.Greater(t, len(list), 10)
	return list
}

func parseDocument(path, text string) document {
	d := document{path: path}
	var open *block
	var prose strings.Builder
	for i, line := range strings.Split(text, "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			words := strings.Fields(info + " text") // a fence without a language is text
			open = &block{line: i + 1, language: words[0], words: map[string]string{}}
			for _, word := range words[1 : len(words)-1] {
				name, value, _ := strings.Cut(word, "=")
				open.words[name] = value
			}
		case fence:
			d.blocks = append(d.blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		default:
			prose.WriteString(line + "\n")
		}
	}
	d.prose = prose.String()
	return d
}

func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	assert.LessOrEqual(t, len(text), 8<<10)
	lines := strings.Split(string(text), "\n")
	assert.Contains(t, strings.Join(lines[:5], "\n"), "](cmd/danqing/docs/README.zh.md)")
	assert.Contains(t, lines, "go run ./cmd/danqing batch cmd/danqing/examples/wanx-v1.jsonl --simulate")
	assert.Contains(t, lines, "go test ./...")
}

// The Chinese README has the commands and programs of the English one.
func TestReadmesAgree(t *testing.T) {
	t.Parallel()
	shown := func(path string) (texts []string) {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, b := range parseDocument(path, string(text)).blocks {
			if b.language != "text" || b.has("output") {
				texts = append(texts, b.language+": "+b.text)
			}
		}
		return texts
	}
	assert.Equal(t, shown(filepath.Join(root, "README.md")), shown(filepath.Join("docs", "README.zh.md")))
}

var (
	link       = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	codeSpan   = regexp.MustCompile("`[^`]*`")
	heading    = regexp.MustCompile(`(?m)^#{1,6} (.*)$`)
	linkInName = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// Every relative link leads to a file, and to a heading in it.
func TestLinks(t *testing.T) {
	t.Parallel()
	anchors := map[string][]string{}
	all := documents(t)
	for _, d := range all {
		anchors[d.path] = anchorsOf(d)
	}
	for _, d := range all {
		for _, match := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(d.prose, ""), -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := d.path
			if target != "" {
				path = filepath.ToSlash(filepath.Join(filepath.Dir(d.path), target))
			}
			_, err := os.Stat(filepath.Join(root, path))
			assert.NoError(t, err, "%s links to %s", d.path, match[1])
			if anchor != "" {
				assert.Contains(t, anchors[path], anchor, "%s links to %s", d.path, match[1])
			}
		}
	}
}

// anchorsOf are the names that GitHub gives to headings.
func anchorsOf(d document) []string {
	var names []string
	seen := map[string]int{}
	for _, match := range heading.FindAllStringSubmatch(d.prose, -1) {
		text := strings.ToLower(linkInName.ReplaceAllString(match[1], "$1"))
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
				return r
			}
			return -1
		}, text)
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s-%d", name, seen[name]-1)
		}
		names = append(names, name)
	}
	return names
}

// Every documented command is one, and has the options that it is shown with.
func TestDocumentedCommandsExist(t *testing.T) {
	t.Parallel()
	count := 0
	for _, d := range documents(t) {
		var lines []string
		for _, b := range d.blocks {
			if b.language == "sh" {
				lines = append(lines, strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n")...)
			}
		}
		for _, span := range codeSpan.FindAllString(d.prose, -1) {
			lines = append(lines, strings.Trim(span, "`"))
		}
		for _, line := range lines {
			for _, args := range danqingCalls(line) {
				count++
				var out, said bytes.Buffer
				p := &program{args: append(slices.Clone(args), "--help"), stdin: strings.NewReader(""), stdout: &out, stderr: &said}
				assert.Equal(t, exitDone, p.run(t.Context()), "%s: %s\n%s", d.path, line, said.String())
				usage := "\n  danqing"
				if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
					usage += " " + args[0]
					if args[0] == "jobs" && len(args) > 1 && !strings.HasPrefix(args[1], "-") {
						usage += " " + args[1]
					}
				}
				assert.Contains(t, out.String(), usage, "%s: %s", d.path, line)
			}
		}
	}
	assert.Greater(t, count, 50)
}

// callStart is where a call of danqing begins in a line of shell.
var callStart = regexp.MustCompile(`(^|[|;&(] *|[A-Z_]+=\S* )(?:go run \./cmd/)?danqing( |$)`)

// danqingCalls are the arguments of each call of danqing in a line of shell.
func danqingCalls(line string) (calls [][]string) {
	if strings.HasPrefix(line, "danqing: ") || strings.HasPrefix(line, "danqing:") {
		return nil // an output, or a key in Redis
	}
	for _, at := range callStart.FindAllStringIndex(line, -1) {
		calls = append(calls, shellWords(line[at[1]:]))
	}
	return calls
}

// shellWords splits simple shell up to the command's end.
func shellWords(text string) (words []string) {
	word, quote, inWord, depth := "", rune(0), false, 0
	end := func() {
		if inWord {
			words = append(words, word)
		}
		word, inWord = "", false
	}
	for _, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case depth > 0 || r == '(':
			depth += strings.Count(string(r), "(") - strings.Count(string(r), ")")
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case strings.ContainsRune("|;&)#>", r):
			end()
			return words
		case r == ' ':
			end()
		default:
			word, inWord = word+string(r), true
		}
	}
	end()
	return words
}

// The Go examples compile; those that are no whole program in a function.
func TestDocumentedGoCompiles(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "go" {
				continue
			}
			source := b.text
			if !strings.HasPrefix(source, "package ") {
				source = "package main\n\nimport (\n\t\"context\"\n\t\"fmt\"\n\n\t\"github.com/redis/go-redis/v9\"\n\n\t\"" + module + "/jobs\"\n)\n\n" +
					"func main() { fmt.Println(run(context.Background())) }\n\nfunc run(ctx context.Context) error {\n" + source + "\treturn nil\n}\n"
			}
			file := filepath.Join(t.TempDir(), "main.go")
			require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
			built := exec.CommandContext(t.Context(), "go", "vet", file) // in a package of this module
			out, err := built.CombinedOutput()
			assert.NoError(t, err, "%s:%d: %s", d.path, b.line, out)
		}
	}
}
