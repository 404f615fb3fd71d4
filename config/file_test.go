package config

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// writeFile writes a file that is readable by its owner only.
func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// loadFile loads the text of an accounts file, together with env.
func loadFile(t *testing.T, text string, env map[string]string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir, "good.key", " sk-hush-file\r\n")
	writeFile(t, dir, "empty.key", "\n")
	writeFile(t, dir, "two.key", "sk-hush-1\nsk-hush-2\n")
	path := writeFile(t, dir, "accounts.yaml", text)
	get := map[string]string{"KEY_A": "sk-hush-a", "KEY_B": "sk-hush-b", "KEY_SPACE": "sk hush"}
	maps.Copy(get, env)
	var environ []string
	for name, value := range get {
		environ = append(environ, name+"="+value)
	}
	return LoadWithFile(path, func(name string) string { return get[name] }, environ)
}

// The example file has the settings that its comments describe.
func TestExampleAccounts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../cmd/danqing/examples/accounts.yaml")
	require.NoError(t, err)
	dir := t.TempDir()
	path := writeFile(t, dir, "accounts.yaml", string(text))
	writeFile(t, dir, "singapore.key", "sk-singapore\n")
	env := map[string]string{"DASHSCOPE_API_KEY_BEIJING": "sk-beijing", "REDIS_URL": "redis://redis:6379"}
	c, err := LoadWithFile(path, func(name string) string { return env[name] }, nil)
	require.NoError(t, err)
	assert.Equal(t, []Account{{
		Name: "beijing", APIKey: NewSecret("sk-beijing"), DailyBudgetMicroYuan: 200_000_000, PricesMicroYuan: map[string]int64{"wanx-v1": 120_000},
		Lanes: []Lane{{Model: "wanx-v1", Concurrency: 1}, {Model: "wan2.2-t2i-flash", Concurrency: 2, SubmitsPerSecond: 1.5}},
	}, {
		Name: "singapore", APIKey: NewSecret("sk-singapore"), Workspace: "llm-0123456789abcdef",
		BaseURL: "https://dashscope-intl.aliyuncs.com/api/v1",
		Lanes:   []Lane{{Model: "wan2.2-t2i-plus", Concurrency: 2}},
	}}, c.Accounts)
	assert.Empty(t, c.Warnings)
	assert.True(t, c.RedisURL.IsSet(), "all else is of the environment")
	require.NoError(t, c.CheckReal())
	assert.Equal(t, dashscope.Config{
		BaseURL: "https://dashscope-intl.aliyuncs.com/api/v1", APIKey: "sk-singapore", Workspace: "llm-0123456789abcdef",
	}, c.Accounts[1].DashScope())
}

func TestFileDefaults(t *testing.T) {
	t.Parallel()
	c, err := loadFile(t, `
accounts:
  - {name: a, api_key_env: KEY_A, base_url: , workspace: ~}
  - {name: B.2_c-d, api_key_file: ./good.key, models: {wanx-v1: , wan2.2-t2i-plus: {}}}
`, nil)
	require.NoError(t, err)
	assert.Equal(t, []Account{
		{Name: "a", APIKey: NewSecret("sk-hush-a"), Lanes: []Lane{{Model: "wanx-v1", Concurrency: 1}}},
		{Name: "B.2_c-d", APIKey: NewSecret("sk-hush-file"), Lanes: []Lane{
			{Model: "wanx-v1", Concurrency: 1}, {Model: "wan2.2-t2i-plus", Concurrency: 1},
		}},
	}, c.Accounts)
	assert.Empty(t, c.Warnings)
}

// Accounts may share their models by an anchor, and two regions may have equal keys.
func TestFileAnchors(t *testing.T) {
	t.Parallel()
	c, err := loadFile(t, `
accounts:
  - name: a
    api_key_env: KEY_A
    models: &models {wan2.2-t2i-flash: {concurrency: 2}}
  - name: b
    api_key_env: KEY_A
    base_url: https://dashscope-intl.aliyuncs.com/api/v1
    models: *models
`, nil)
	require.NoError(t, err)
	assert.Equal(t, []Lane{{Model: "wan2.2-t2i-flash", Concurrency: 2}}, c.Accounts[0].Lanes)
	assert.Equal(t, c.Accounts[0].Lanes, c.Accounts[1].Lanes)
}

// Each mistake in the file is one problem, with its line and field and what to do, without
// values that may be a key.
func TestFileProblems(t *testing.T) {
	t.Parallel()
	const (
		good  = "accounts:\n- name: a\n  api_key_env: KEY_A\n"
		other = good + "- name: b\n  api_key_env: KEY_B\n"
	)
	for _, tc := range []struct{ file, at, text string }{
		{"", "--config", "is empty"},
		{"# nothing\n", "--config", "is empty"},
		{"a: [", "--config", "line 1: did not find"},
		{good + "---\nx: 1\n", "--config", "line 4: only one document is allowed"},
		{"sk-hush", "1: the file", "must have fields: accounts"},
		{"accounts:\n", "1: accounts", "must be a list of accounts"},
		{"accounts: []\n", "1: accounts", "must be a list of accounts"},
		{"accounts: {a: 1}\n", "1: accounts", "must be a list of accounts"},
		{"accounts:\n- sk-hush\n", "2: an account", "must have fields: name, api_key_env"},
		{good + "acounts: 1\n", "4: acounts", "is not a field of the file: did you mean accounts?"},
		{good + "  base_ulr: x\n", "4: base_ulr", "is not a field of an account: did you mean base_url?"},
		{good + "  region: x\n", "4: region", "is not a field of an account: allowed are name, api_key_env"},
		{good + "  name: b\n", "4: name", "is a duplicate of line 2"},
		{good + "  workspace: [a]\n", "4: workspace", "must be a single value"},
		{good + "  workspace: a b\n", "4: workspace", "printable ASCII"},
		{"accounts:\n- api_key_env: KEY_A\n", "2: name", `"": must be 1 to 64 letters`},
		{"accounts:\n- name: 'a:b'\n  api_key_env: KEY_A\n", "2: name", `"a:b": must be 1 to 64 letters`},
		{"accounts:\n- name: " + strings.Repeat("x", 65) + "\n  api_key_env: KEY_A\n", "2: name", "must be 1 to 64 letters"},
		{good + "- name: A\n  api_key_env: KEY_B\n", "4: name", `"A": an account "a" exists already`},

		{"accounts:\n- name: a\n", "2: api_key_env", "or api_key_file is required"},
		{good + "  api_key_file: good.key\n", "3: api_key_env", "and api_key_file exclude each other"},
		{"accounts:\n- name: a\n  api_key: sk-hush\n", "3: api_key", "must not be in this file, because"},
		{good + "  APIKey: sk-hush\n", "4: APIKey", "must not be in this file, because"},
		{"accounts:\n- name: a\n  api_key_env: sk-hush\n", "3: api_key_env", "must be the name of an environment variable"},
		{"accounts:\n- name: a\n  api_key_env: KEY_C\n", "3: api_key_env", "names KEY_C, which is not set"},
		{"accounts:\n- name: a\n  api_key_env: KEY_SPACE\n", "3: api_key_env", "printable ASCII"},
		{"accounts:\n- name: a\n  api_key_file: sk-hush\n", "3: api_key_file", "must be the path of a file that holds the key: "},
		{"accounts:\n- name: a\n  api_key_file: .\n", "3: api_key_file", "must be the path of a file that holds the key: "},
		{"accounts:\n- name: a\n  api_key_file: empty.key\n", "3: api_key_file", "names an empty file"},
		{"accounts:\n- name: a\n  api_key_file: two.key\n", "3: api_key_file", "printable ASCII"},
		{good + "- name: b\n  api_key_env: KEY_A\n", "5: api_key_env", `is also the key of account "a"`},
		{good + "- name: b\n  api_key_env: KEY_A\n  base_url: https://llm-1.cn-beijing.maas.aliyuncs.com/api/v1", "5: api_key_env", `is also the key of account "a"`},

		{good + "  base_url: https://dashscope.aliyuncs.com\n", "4: base_url", "must start with https:// or http:// and end in /api/v1"},
		{good + "  base_url: https://u:hush@a/api/v1\n", "4: base_url", "must have no user"},
		{good + "  base_url: https://dashscope-intl.aliyuncs.com/api/v1\n", "2: models", `"wanx-v1" is not offered in the account's region: allowed in ap-southeast-1 only `},
		{other + "  base_url: https://dashscope-intl.aliyuncs.com/api/v1\n  models:\n    wanx2.0-t2i-turbo:\n", "8: wanx2.0-t2i-turbo", "is not offered in the account's region"},
		{good + "  models: {wanx-v1: , wanx-v2: }\n", "4: wanx-v2", `did you mean "wanx-v1"?`},
		{good + "  models:\n", "4: models", "must have at least one model"},
		{good + "  models: {}\n", "4: models", "must have at least one model"},
		{good + "  models: [wanx-v1]\n", "4: models", "must have at least one model, as in wanx-v1: {concurrency: 1}"},
		{good + "  models:\n    wanx-v1:\n    wanx-v1:\n", "6: wanx-v1", "is a duplicate of line 5"},
		{good + "  models:\n    wanx-v1: 1\n", "5: a model", "must have fields: concurrency, submits_per_second"},
		{good + "  models:\n    wanx-v1: {concurency: 1}\n", "5: concurency", "did you mean concurrency?"},
		{good + "  models:\n    wanx-v1: {concurrency: 2}\n", "5: concurrency", "2: of wanx-v1 an account may have 1 at once, set at most that"},
		{good + "  models:\n    wanx-v1: {concurrency: 0}\n", "5: concurrency", `"0": must be a whole number from 1`},
		{good + "  models:\n    wanx-v1: {submits_per_second: 2.1}\n", "5: submits_per_second", `"2.1": must be a number above 0 and at most 2, DashScope's limit for wanx-v1`},
		{good + "  models:\n    wanx-v1: {submits_per_second: 0}\n", "5: submits_per_second", "must be a number above 0"},
		{good + "  models:\n    wanx-v1: {submits_per_second: NaN}\n", "5: submits_per_second", "must be a number above 0"},
		{good + "  models:\n    wanx-v1: {submits_per_second: fast}\n", "5: submits_per_second", "must be a number above 0"},
	} {
		_, err := loadFile(t, tc.file, nil)
		var e *Error
		require.ErrorAs(t, err, &e, "%v", tc)
		require.Len(t, e.Problems, 1, "%v: %v", tc, err)
		at := filepath.Base(e.Problems[0].Variable)
		assert.Equal(t, tc.at, strings.TrimPrefix(at, "accounts.yaml:"))
		assert.Contains(t, e.Problems[0].Text, tc.text)
		assert.NotContains(t, err.Error(), "hush")
	}

	_, err := LoadWithFile("absent.yaml", func(string) string { return "" }, nil)
	assert.EqualError(t, err, "--config absent.yaml: no such file or directory")
}

// The variables that describe an account are refused together with an accounts file.
func TestFileAgainstEnvironment(t *testing.T) {
	t.Parallel()
	const file = "accounts:\n- name: a\n  api_key_env: KEY_A\n"
	for name, value := range map[string]string{
		"DASHSCOPE_API_KEY": "sk-hush", "DASHSCOPE_HTTP_BASE_URL": "https://dashscope.aliyuncs.com/api/v1",
		"DASHSCOPE_WORKSPACE": "llm-1", "DANQING_MODELS": "wanx-v1", "DANQING_CONCURRENCY": "1",
		"DANQING_DAILY_BUDGET": "50", "DANQING_PRICES": "wanx-v1=0.12",
	} {
		_, err := loadFile(t, file, map[string]string{name: value})
		var e *Error
		require.ErrorAs(t, err, &e, name)
		require.Len(t, e.Problems, 1, "%v", err)
		assert.Equal(t, name, e.Problems[0].Variable)
		assert.Contains(t, e.Problems[0].Text, "accounts.yaml: unset it")
		assert.NotContains(t, err.Error(), "hush")

		_, err = loadFile(t, file, map[string]string{name: " "})
		require.NoError(t, err, "an empty variable is none")
	}

	c, err := loadFile(t, "accounts:\n- name: a\n  api_key_env: DASHSCOPE_API_KEY\n", map[string]string{"DASHSCOPE_API_KEY": "sk-hush"})
	require.NoError(t, err, "the file says which account it is")
	assert.Equal(t, "sk-hush", c.Accounts[0].APIKey.Reveal())
}

// A variable with a key may have any name, also one similar to a DANQING_ variable.
func TestFileKeyVariables(t *testing.T) {
	t.Parallel()
	c, err := loadFile(t, "accounts:\n- name: a\n  api_key_env: DANQING_MODEL\n", map[string]string{"DANQING_MODEL": "sk-hush"})
	require.NoError(t, err)
	assert.Empty(t, c.Warnings)
}

func TestFileReportsEveryProblemAtOnce(t *testing.T) {
	t.Parallel()
	_, err := loadFile(t, `accounts:
- name: a b
  api_key: sk-hush
  base_url: x
  models: {wanx-v1: {concurrency: 2, speed: 1}, wanx-v2: }
- api_key_env: KEY_C
  basis: x
`, map[string]string{"DANQING_MODELS": "wanx-v1", "DANQING_S3_BUCKET": "X"})
	var e *Error
	require.ErrorAs(t, err, &e)
	var at []string
	for _, p := range e.Problems {
		at = append(at, strings.TrimPrefix(filepath.Base(p.Variable), "accounts.yaml:"))
	}
	assert.Equal(t, []string{
		"3: api_key", "2: name", "4: base_url", "5: speed", "5: concurrency", "5: wanx-v2",
		"7: basis", "6: name", "6: api_key_env", "DANQING_MODELS",
		"DANQING_S3_BUCKET", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
	}, at, "%v", err)
	assert.NotContains(t, err.Error(), "hush")
}

func TestFileWarnings(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // files have no such modes there
	}
	dir := t.TempDir()
	key := writeFile(t, dir, "a.key", "sk-hush")
	path := writeFile(t, dir, "accounts.yaml", "accounts:\n- name: a\n  base_url: http://proxy/api/v1\n  api_key_file: "+key)
	for _, mode := range []os.FileMode{0o644, 0o604} {
		require.NoError(t, os.Chmod(key, mode))
		c, err := LoadWithFile(path, func(string) string { return "" }, nil)
		require.NoError(t, err)
		assert.Equal(t, []string{
			path + ":4: api_key_file names a file that every user of this machine can read: chmod o-r it",
			path + ":3: base_url is http://: the API key travels unencrypted",
		}, c.Warnings)
	}
	require.NoError(t, os.Chmod(key, 0o640))
	c, err := LoadWithFile(path, func(string) string { return "" }, nil)
	require.NoError(t, err)
	assert.Len(t, c.Warnings, 1)
}

func TestIsWorldReadable(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{"/etc/a.key": true, "/run/secrets/danqing/a.key": false, "/run/secrets/../a.key": true, "a.key": true} {
		assert.Equal(t, want && runtime.GOOS != "windows", isWorldReadable(path, 0o644), path)
		assert.False(t, isWorldReadable(path, 0o640), path)
	}
}

// Every file gives either valid accounts or an error that contains no key.
func FuzzFile(f *testing.F) {
	// Short seeds: Go takes up to a minute to shorten one that finds something.
	f.Add("accounts:\n- name: a\n  api_key_env: A\n  models: {wanx-v1: {concurrency: 1, submits_per_second: .5}}, daily_budget: 1, prices: {wanx-v1: .1}")
	f.Add("accounts: &a [*a, {<<: *a}]")
	f.Add("accounts:\n- {name: a, api_key_env: A, models: &m {wanx-v1: }}\n- {name: b, api_key_env: B, models: *m}\n---\n")
	path := filepath.Join(f.TempDir(), "accounts.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		c, err := LoadWithFile(path, func(name string) string {
			if strings.HasPrefix(name, "AWS_") || slices.Contains(variables(), name) {
				return ""
			}
			return "canary" + name
		}, nil)
		if err != nil {
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.NotContains(t, err.Error(), "canary")
			return
		}
		require.NotEmpty(t, c.Accounts)
		for _, a := range c.Accounts {
			assert.Regexp(t, accountName, a.Name)
			assert.True(t, a.APIKey.IsSet())
			require.NotEmpty(t, a.Lanes)
			assert.GreaterOrEqual(t, a.DailyBudgetMicroYuan, int64(0))
			for model, price := range a.PricesMicroYuan {
				assert.Positive(t, price, model)
			}
			_, err := dashscope.New(a.DashScope())
			require.NoError(t, err)
			for _, lane := range a.Lanes {
				assert.Positive(t, lane.Concurrency)
			}
		}
	})
}
