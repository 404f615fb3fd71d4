package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/danqing-queue/danqing/jobs"
)

// field is one field of a mapping.
type field struct {
	name string
	at   string     // its position, or where it is missing, for a Problem
	node *yaml.Node // nil if it is missing
}

// fileAccounts reads the accounts of the file. The file is walked node by node instead of
// decoded into structs, because yaml would stop at the first misspelled field, and its
// errors contain values, which may be secret.
func (l *loader) fileAccounts() {
	top, err := readYAML(l.file)
	if err != nil {
		l.bad("--config", "%s: %v", l.file, err)
		return
	}
	list := l.parseMapping(top, "the file", "accounts")["accounts"]
	if list.node == nil || list.node.Kind != yaml.SequenceNode || len(list.node.Content) == 0 {
		if top.Kind == yaml.MappingNode {
			l.bad(list.at, "must be a list of accounts, each with a name and api_key_env or api_key_file")
		}
		return
	}
	for _, node := range list.node.Content {
		l.fileAccount(resolveAlias(node))
	}
	for _, name := range accountVariables() {
		v, _ := l.lookup(name)
		switch {
		case v == "" || slices.Contains(l.referencedVariables, name):
		case name == "DASHSCOPE_API_KEY":
			l.bad(name, "is set, but the accounts are in %s: unset it, or refer to it there by api_key_env: %s", l.file, name)
		default:
			l.bad(name, "is set, but the accounts are in %s: unset it, and write its value there", l.file)
		}
	}
}

// readYAML returns the top node of a file with one document.
func readYAML(path string) (*yaml.Node, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the path is from the operator
	if err != nil {
		return nil, withoutPath(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	if err = decoder.Decode(&document); err == nil {
		if err = decoder.Decode(&second); err == nil {
			return nil, fmt.Errorf("line %d: only one document is allowed", second.Line)
		}
	}
	switch {
	case len(document.Content) == 0 && errors.Is(err, io.EOF):
		return nil, errors.New("is empty")
	case !errors.Is(err, io.EOF):
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return document.Content[0], nil
}

// withoutPath removes the path from an error: it may be a key that was written there by
// mistake.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// resolveAlias returns the node to which an alias refers.
func resolveAlias(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func (l *loader) position(node *yaml.Node, name string) string {
	return fmt.Sprintf("%s:%d: %s", l.file, node.Line, name)
}

// mappingFields returns the fields of a mapping in order, and reports duplicates.
func (l *loader) mappingFields(node *yaml.Node) []field {
	var all []field
	lines := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := node.Content[i]
		f := field{key.Value, l.position(key, key.Value), resolveAlias(node.Content[i+1])}
		if line, twice := lines[f.name]; twice {
			l.bad(f.at, "is a duplicate of line %d", line)
			continue
		}
		lines[f.name] = key.Line
		all = append(all, f)
	}
	return all
}

// literalKey matches names that users give to a field with a literal key.
var literalKey = regexp.MustCompile(`(?i)^(dashscope[_-]?)?(api[_-]?)?(key|token|secret)$`)

// parseMapping returns every known field of a mapping, also missing ones, and reports
// unknown ones. A field with a literal key is returned as api_key.
func (l *loader) parseMapping(node *yaml.Node, name string, known ...string) map[string]field {
	fields := map[string]field{}
	for _, k := range known {
		fields[k] = field{name: k, at: l.position(node, k)}
	}
	if node.Kind != yaml.MappingNode {
		l.bad(l.position(node, name), "must have fields: %s", strings.Join(known, ", "))
		return fields
	}
	for _, f := range l.mappingFields(node) {
		if _, ok := fields[f.name]; ok {
			fields[f.name] = f
			continue
		}
		near := closest(f.name, known)
		switch {
		case literalKey.MatchString(f.name) && slices.Contains(known, "api_key_env"):
			fields["api_key"] = f
			l.bad(f.at, "must not be in this file, because settings files are copied and committed: put the key into an environment variable and name it by api_key_env, or into a file of its own and name it by api_key_file")
		case near != "":
			l.bad(f.at, "is not a field of %s: did you mean %s?", name, near)
		default:
			l.bad(f.at, "is not a field of %s: allowed are %s", name, strings.Join(known, ", "))
		}
	}
	return fields
}

// scalar returns the value of a field, or "" if it has none.
func (l *loader) scalar(f field) string {
	switch {
	case f.node == nil || f.node.Tag == "!!null":
		return ""
	case f.node.Kind != yaml.ScalarNode:
		l.bad(f.at, "must be a single value")
		return ""
	}
	return strings.TrimSpace(f.node.Value)
}

func (l *loader) fileAccount(node *yaml.Node) {
	f := l.parseMapping(node, "an account", "name", "api_key_env", "api_key_file", "base_url", "workspace", "models", "daily_budget", "prices")
	if node.Kind != yaml.MappingNode {
		return
	}
	a := Account{Name: l.scalar(f["name"]), BaseURL: l.scalar(f["base_url"]), Workspace: l.scalar(f["workspace"])}
	if !accountName.MatchString(a.Name) {
		l.bad(f["name"].at, "%q: must be 1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit", a.Name)
	}
	keyAt := f["api_key_env"].at
	if f["api_key_file"].node != nil {
		keyAt = f["api_key_file"].at
	}
	if _, refused := f["api_key"]; !refused {
		a.APIKey = l.readKey(f["api_key_env"], f["api_key_file"])
	}
	region := l.checkService(a, fieldNames{keyAt, f["base_url"].at, f["workspace"].at})
	a.Lanes = l.parseLanes(region, f["models"])
	l.fileMoney(&a, region, f["daily_budget"], f["prices"])
	l.addAccount(a, region, f["name"].at, keyAt)
}

// variableName matches names of variables, and no keys.
var variableName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// readKey reads a key from the variable or the file that a field refers to. A problem
// contains the field's value only if it cannot be the key itself.
func (l *loader) readKey(env, file field) Secret {
	name, path := l.scalar(env), l.scalar(file)
	switch {
	case name == "" && path == "":
		l.bad(env.at, "or api_key_file is required: the name of an environment variable, or the path of a file, that holds the key")
		return Secret{}
	case name != "" && path != "":
		l.bad(env.at, "and api_key_file exclude each other: remove one")
		return Secret{}
	case path != "":
		return l.readKeyFile(path, file.at)
	case !variableName.MatchString(name):
		l.bad(env.at, "must be the name of an environment variable, as in DASHSCOPE_API_KEY_SHANGHAI; the key itself must not be here")
		return Secret{}
	}
	l.referencedVariables = append(l.referencedVariables, name)
	v, _ := l.lookup(name)
	if v == "" {
		l.bad(env.at, "names %s, which is not set: set it to the account's key", name)
	}
	return NewSecret(v)
}

// readKeyFile reads a key from a file. A relative path is relative to the accounts file.
func (l *loader) readKeyFile(path, at string) Secret {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(l.file), path)
	}
	text, err := os.ReadFile(path) //nolint:gosec // the path is from the operator
	if err != nil {
		l.bad(at, "must be the path of a file that holds the key: %v", withoutPath(err))
		return Secret{}
	}
	key := strings.TrimSpace(string(text))
	if key == "" {
		l.bad(at, "names an empty file: write the account's key into it")
	}
	if info, err := os.Stat(path); err == nil && isWorldReadable(path, info.Mode()) {
		l.warn("%s names a file that every user of this machine can read: chmod o-r it", at)
	}
	return NewSecret(key)
}

// isWorldReadable reports whether every user of the machine can read a file. Secrets in
// /run/secrets, where Docker and Podman mount them, are readable by all users of the
// container, which is intended.
func isWorldReadable(path string, mode fs.FileMode) bool {
	return mode&0o004 != 0 && runtime.GOOS != "windows" && !strings.HasPrefix(filepath.Clean(path), "/run/secrets/")
}

// parseLanes parses the models of an account in a region.
func (l *loader) parseLanes(region string, f field) []Lane {
	if f.node == nil {
		_, _ = l.lookupModel(region, jobs.DefaultModel, f.at)
		return []Lane{{Model: jobs.DefaultModel, Concurrency: 1}}
	}
	if f.node.Kind != yaml.MappingNode || len(f.node.Content) == 0 {
		l.bad(f.at, "must have at least one model, as in %s: {concurrency: 1}", jobs.DefaultModel)
		return nil
	}
	var all []Lane
	for _, entry := range l.mappingFields(f.node) {
		lane := Lane{Model: entry.name, Concurrency: 1}
		m, known := l.lookupModel(region, entry.name, entry.at)
		if entry.node.Tag != "!!null" {
			set := l.parseMapping(entry.node, "a model", "concurrency", "submits_per_second")
			if v := l.scalar(set["concurrency"]); v != "" && known {
				lane.Concurrency = l.parseConcurrency(v, set["concurrency"].at, m)
			}
			if v := l.scalar(set["submits_per_second"]); v != "" && known {
				lane.SubmitsPerSecond = l.parseSubmitRate(v, set["submits_per_second"].at, m)
			}
		}
		all = append(all, lane)
	}
	return all
}

// parseSubmitRate parses how many tasks a lane may start per second.
func (l *loader) parseSubmitRate(value, name string, m jobs.Model) float64 {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || !(n > 0 && n <= m.SubmitsPerSecond) { // NaN is neither
		l.bad(name, "%q: must be a number above 0 and at most %v, DashScope's limit for %s", value, m.SubmitsPerSecond, m.Name)
	}
	return n
}
