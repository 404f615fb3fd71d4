package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// load loads env, and checks its names.
func load(env map[string]string) (*Config, error) {
	var environ []string
	for k, v := range env {
		environ = append(environ, k+"="+v)
	}
	return Load(func(k string) string { return env[k] }, environ)
}

// allVariables sets every variable.
func allVariables() map[string]string {
	return map[string]string{
		"DASHSCOPE_API_KEY": "sk-hush1", "DASHSCOPE_HTTP_BASE_URL": "https://llm-1.cn-beijing.maas.aliyuncs.com/api/v1",
		"DASHSCOPE_WORKSPACE": "llm-1",
		"REDIS_URL":           "rediss://danqing:hush2@redis.example.com:6380/3",
		"AWS_ACCESS_KEY_ID":   "AKID", "AWS_SECRET_ACCESS_KEY": "hush3", "AWS_SESSION_TOKEN": "hush4",
		"AWS_REGION": "cn-beijing", "AWS_DEFAULT_REGION": "us-east-1",
		"AWS_ENDPOINT_URL_S3": "https://oss-cn-beijing-internal.aliyuncs.com", "AWS_ENDPOINT_URL": "https://else.example.com",
		"DANQING_S3_BUCKET": "pictures", "DANQING_S3_PREFIX": "a/b", "DANQING_S3_KEY_TEMPLATE": "{batch}/{job_id}-{n}{ext}",
		"DANQING_S3_ADDRESSING": "virtual", "DANQING_S3_PUBLIC_URL": "https://cdn.example.com/x",
		"DANQING_S3_PUBLIC_ENDPOINT": "https://oss-cn-beijing.aliyuncs.com",
		"DANQING_DATA_DIR":           "/var/lib/danqing/", "DANQING_MODELS": " wan2.2-t2i-flash, qwen-image,wan2.2-t2i-flash ", "DANQING_CONCURRENCY": "2",
		"DANQING_MODEL_CATALOG": "testdata/catalog.json",
		"DANQING_DAILY_BUDGET":  "12.5", "DANQING_PRICES": "qwen-image=0.2",
		"DANQING_ALERT_URL": "https://oapi.dingtalk.com/robot/send?access_token=hush5#hush6", "DANQING_ALERT_LANGUAGE": "en",
		"DANQING_LISTEN": "127.0.0.1:1", "DANQING_SERVICE_HOST": "10.0.0.1", "DANQING_PORT_8765_TCP_ADDR": "10.0.0.1", "DANQING_SERVICE_PORT_HTTP": "1",
	}
}

func TestLoadDefaults(t *testing.T) {
	t.Parallel()
	c, err := load(map[string]string{
		// For other programs: DANQING_S3_BUCKET is not set.
		"AWS_REGION": "nowhere", "AWS_ENDPOINT_URL": "::", "AWS_SECRET_ACCESS_KEY": "x",
	})
	require.NoError(t, err)
	assert.Equal(t, "danqing-data", c.DataDir)
	assert.Equal(t, []Account{{Name: DefaultAccount, Lanes: []Lane{{Model: "wanx-v1", Concurrency: 1}}}}, c.Accounts)
	assert.Equal(t, []string{"wanx-v1"}, c.Models)
	assert.Equal(t, 1, c.Accounts[0].Lanes[0].Concurrency)
	assert.Empty(t, c.Warnings)
	assert.Equal(t, storage.Config{}, c.Storage())
	_, err = c.Redis()
	require.ErrorContains(t, err, "REDIS_URL")
	require.NoError(t, c.CheckSimulate())
	require.ErrorContains(t, c.CheckReal(), "DASHSCOPE_API_KEY is not set")
}

func TestLoadEverything(t *testing.T) {
	t.Parallel()
	env := allVariables()
	c, err := load(env)
	require.NoError(t, err)
	assert.Empty(t, c.Warnings)

	require.Len(t, c.Accounts, 1)
	d := c.Accounts[0].DashScope()
	assert.Equal(t, dashscope.Config{BaseURL: "https://llm-1.cn-beijing.maas.aliyuncs.com/api/v1", APIKey: "sk-hush1", Workspace: "llm-1"}, d)
	_, err = dashscope.New(d)
	require.NoError(t, err)

	s := c.Storage()
	assert.Equal(t, storage.Config{
		Bucket: "pictures", Prefix: "a/b", KeyTemplate: "{batch}/{job_id}-{n}{ext}", Region: "cn-beijing",
		Endpoint: "https://oss-cn-beijing-internal.aliyuncs.com", AccessKeyID: "AKID", SecretAccessKey: "hush3", SessionToken: "hush4",
		Addressing: "virtual", PublicURL: "https://cdn.example.com/x", PublicEndpoint: "https://oss-cn-beijing.aliyuncs.com",
	}, s)

	at, err := c.Redis()
	require.NoError(t, err)
	r := at.Server
	assert.Equal(t, "redis.example.com:6380", r.Addr)
	assert.Equal(t, "danqing", r.Username)
	assert.Equal(t, "hush2", r.Password)
	assert.Equal(t, 3, r.DB)
	assert.NotNil(t, r.TLSConfig)

	assert.Equal(t, "/var/lib/danqing", c.DataDir)
	assert.Equal(t, []Lane{{Model: "wan2.2-t2i-flash", Concurrency: 2}, {Model: "qwen-image", Concurrency: 2}}, c.Accounts[0].Lanes)
	assert.Equal(t, []string{"wan2.2-t2i-flash", "qwen-image"}, c.Models)
	require.NoError(t, c.CheckReal())
}

func TestFallbacksAndWhiteSpace(t *testing.T) {
	t.Parallel()
	env := allVariables()
	delete(env, "AWS_REGION")
	delete(env, "AWS_ENDPOINT_URL_S3")
	for k, v := range env {
		env[k] = " " + v + "\r\n" // a file from Windows
	}
	c, err := load(env)
	require.NoError(t, err)
	assert.Equal(t, "us-east-1", c.Storage().Region)
	assert.Equal(t, "https://else.example.com", c.Storage().Endpoint)
	assert.Equal(t, "hush3", c.Storage().SecretAccessKey)
	assert.Equal(t, "sk-hush1", c.Accounts[0].DashScope().APIKey)

	env = map[string]string{"REDIS_URL": "unix://user:hush2@/run/redis.sock?db=2"}
	c, err = load(env)
	require.NoError(t, err)
	at, err := c.Redis()
	require.NoError(t, err)
	r := at.Server
	assert.Equal(t, []any{"unix", "/run/redis.sock", "user", "hush2", 2}, []any{r.Network, r.Addr, r.Username, r.Password, r.DB})
}

// Each bad value is reported with its variable and what to do, without secrets.
func TestLoadProblems(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ variable, value, text string }{
		{"DASHSCOPE_API_KEY", "sk-hu sh", "printable ASCII"},
		{"DASHSCOPE_HTTP_BASE_URL", "https://dashscope.aliyuncs.com", `"https://dashscope.aliyuncs.com" must start with https:// or http:// and end in /api/v1`},
		{"DASHSCOPE_HTTP_BASE_URL", "https://u:hush@a/api/v1", "must have no user"},
		{"DASHSCOPE_WORKSPACE", "llm 1", "printable ASCII"},
		{"REDIS_URL", "http://:hush@a", "must be redis://"},
		{"REDIS_URL", "redis://:hush%zz@a", "must be redis://"},
		{"REDIS_URL", "redis://:hush@a/x", "must be redis://"},
		{"REDIS_URL", "redis://:p@hush@a:6379", "percent-encode special characters"},
		{"REDIS_URL", "redis://:p@hush#w@a:6379", "percent-encode special characters"},
		{"REDIS_URL", "redis://:p/hush@a:6379", "percent-encode special characters"},
		{"DANQING_S3_BUCKET", "a.b", `"a.b" has a dot`},
		{"DANQING_S3_BUCKET", "AB", "must be 3 to 63"},
		{"DANQING_S3_PREFIX", "a/../b", `"a/../b": must be a plain folder`},
		{"DANQING_S3_KEY_TEMPLATE", "{job_id}", "must hold {job_path} or {job_id}, and {n}"},
		{"DANQING_S3_ADDRESSING", "dns", `"dns": must be "path", "virtual"`},
		{"DANQING_S3_PUBLIC_URL", "cdn", "must be a URL"},
		{"DANQING_S3_PUBLIC_ENDPOINT", "https://a/b", "has a path"},
		{"AWS_ENDPOINT_URL_S3", "https://u:hush@a", "must not hold credentials"},
		{"AWS_ACCESS_KEY_ID", "", "is empty: set it"},
		{"AWS_SECRET_ACCESS_KEY", "", "is empty: set it"},
		{"DANQING_MODELS", "wanx-v9", `allowed: wanx-v1`},
		{"DANQING_MODELS", "qwen-image,", "empty name"},
		{"DANQING_SUBMIT_LIMIT", "300", `"300": must be a duration above 0`},
		{"DANQING_SUBMIT_LIMIT", "-1s", `"-1s": must be a duration above 0`},
		{"DANQING_CONCURRENCY", "zero", `"zero": must be a whole number from 1`},
		{"DANQING_CONCURRENCY", "0", "must be a whole number from 1"},
		{"DANQING_CONCURRENCY", "3", "3: of wan2.2-t2i-flash an account may have 2 at once, set at most that"},
		{"DANQING_S3_BUKET", "x", "is not a variable of Danqing: write DANQING_S3_BUCKET"},
		{"DANQING_BUCKET", "x", "write DANQING_S3_BUCKET"},
		{"DANQING_MODEL", "x", "write DANQING_MODELS"},
		{"DANQING_URL", "x", "write DANQING_SERVE_URL"},
		{"DANQING_TOKEN", "hush", "write DANQING_SERVE_TOKENS"},
		{"DANQING_TOKENS", "hush", "write DANQING_SERVE_TOKENS"},
		{"DANQING_REDIS_URL", "hush", "write REDIS_URL"},
		{"DANQING_DASHSCOPE_API_KEY", "hush", "write DASHSCOPE_API_KEY"},
		{"danqing_data_dir", "x", "write DANQING_DATA_DIR"},
	} {
		env := allVariables()
		if tc.variable == "danqing_data_dir" {
			delete(env, "DANQING_DATA_DIR")
		}
		env[tc.variable] = tc.value
		_, err := load(env)
		var e *Error
		require.ErrorAs(t, err, &e, "%v", tc)
		require.Len(t, e.Problems, 1, "%v", err)
		assert.Equal(t, tc.variable, e.Problems[0].Variable)
		assert.Contains(t, e.Problems[0].Text, tc.text)
		assert.NotContains(t, err.Error(), "hush")
		assert.Equal(t, e.Problems[0].Variable+" "+e.Problems[0].Text, err.Error())
	}
}

// The concurrency for all models is limited by the model with the lowest limit, and the
// models by the region of the base URL.
func TestModelsAndConcurrency(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ models, concurrency, url, want string }{
		{"wan2.5-t2i-preview,wanx-v1,qwen-image", "5", "", "DANQING_CONCURRENCY 5: of wanx-v1 an account may have 1 at once, set at most that"},
		{"wan2.5-t2i-preview", "5", "", ""},
		{"wanx2.1-t2i-plus", "", "https://dashscope-intl.aliyuncs.com/api/v1", ""},
		{"", "", "http://127.0.0.1:1/api/v1", ""},
		{"", "", "https://dashscope-intl.aliyuncs.com/api/v1", `DANQING_MODELS "wanx-v1" is not offered in the account's region: allowed in ap-southeast-1 only wanx2.1-t2i-turbo`},
	} {
		_, err := load(map[string]string{"DANQING_MODELS": tc.models, "DANQING_CONCURRENCY": tc.concurrency, "DASHSCOPE_HTTP_BASE_URL": tc.url})
		if tc.want == "" {
			require.NoError(t, err, "%v", tc)
		} else {
			require.ErrorContains(t, err, tc.want)
		}
	}
}

// An invalid prefix or template is reported once, whether the other is set or not.
func TestKeyProblemsAreReportedOnce(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"DANQING_S3_PREFIX", "DANQING_S3_KEY_TEMPLATE"} {
		_, err := load(map[string]string{variable: "a//b"})
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Len(t, e.Problems, 1, "%v", err)
		assert.Equal(t, variable, e.Problems[0].Variable)
	}
}

func TestEveryProblemIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"DASHSCOPE_API_KEY": "a b", "DASHSCOPE_HTTP_BASE_URL": "x", "REDIS_URL": "x", "AWS_DEFAULT_REGION": "",
		"AWS_ENDPOINT_URL": "x", "DANQING_S3_BUCKET": "x", "DANQING_S3_PREFIX": "a//b", "DANQING_S3_KEY_TEMPLATE": "x",
		"DANQING_S3_ADDRESSING": "x", "DANQING_S3_PUBLIC_URL": "x", "DANQING_S3_PUBLIC_ENDPOINT": "x",
		"DANQING_MODELS": "x", "DANQING_CONCURRENCY": "x", "DANQING_DAILY_BUDGET": "x", "DANQING_PRICES": "x", "DANQING_MODLES": "x",
	}
	_, err := load(env)
	var e *Error
	require.ErrorAs(t, err, &e)
	var got []string
	for _, p := range e.Problems {
		got = append(got, p.Variable)
	}
	delete(env, "AWS_DEFAULT_REGION")
	want := append(slices.Collect(maps.Keys(env)), "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
	assert.ElementsMatch(t, want, got)
	_, again := load(env)
	assert.Equal(t, err, again, "a stable order")
}

// A key template that is too long only together with the prefix is reported too.
func TestPrefixAndTemplateTogether(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 200)
	_, err := load(map[string]string{
		"DANQING_S3_PREFIX":       strings.Join([]string{long, long, long}, "/"),
		"DANQING_S3_KEY_TEMPLATE": long + "/{job_id}/{job_id}-{n}{ext}",
	})
	require.ErrorContains(t, err, "DANQING_S3_KEY_TEMPLATE")
}

func TestSettingsWithoutBucket(t *testing.T) {
	t.Parallel()
	_, err := load(map[string]string{"DANQING_S3_ADDRESSING": "path", "DANQING_S3_PUBLIC_URL": "https://a", "DANQING_S3_PUBLIC_ENDPOINT": "https://a", "DANQING_S3_PREFIX": "fine"})
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Len(t, e.Problems, 3)
	assert.ErrorContains(t, err, "DANQING_S3_PUBLIC_URL is set but DANQING_S3_BUCKET is not")
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	c, err := load(map[string]string{"DANQING_HOME": "/x", "DASHSCOPE_API_KEY": "k", "DASHSCOPE_HTTP_BASE_URL": "http://proxy:80/api/v1"})
	require.NoError(t, err)
	assert.Equal(t, []string{
		"DASHSCOPE_HTTP_BASE_URL is http://: the API key travels unencrypted",
		"DANQING_HOME is set, but Danqing does not use it",
	}, c.Warnings)
	for _, host := range []string{"localhost:1", "127.0.0.1", "[::1]:1"} {
		c, err = load(map[string]string{"DASHSCOPE_API_KEY": "k", "DASHSCOPE_HTTP_BASE_URL": "http://" + host + "/api/v1"})
		require.NoError(t, err)
		assert.Empty(t, c.Warnings)
	}
}

// A simulated run must not use a real queue or bucket.
func TestCheckSimulate(t *testing.T) {
	t.Parallel()
	c, err := load(allVariables())
	require.NoError(t, err)
	err = c.CheckSimulate()
	require.ErrorContains(t, err, "REDIS_URL is set")
	require.ErrorContains(t, err, `DANQING_S3_BUCKET "pictures" is set`)
	assert.NotContains(t, err.Error(), "hush")
	for _, variable := range []string{"REDIS_URL", "DANQING_S3_BUCKET"} {
		c, err = load(map[string]string{variable: allVariables()[variable], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c"})
		require.NoError(t, err)
		assert.ErrorContains(t, c.CheckSimulate(), variable)
	}
}

// No verb, encoder or log prints a secret, neither by itself nor inside a Config.
func TestSecretsAreRedacted(t *testing.T) {
	t.Parallel()
	c, err := load(allVariables())
	require.NoError(t, err)
	var out strings.Builder
	for _, v := range []any{c, *c, c.Accounts, c.Accounts[0].APIKey, &c.RedisURL, []Secret{c.SessionToken}, map[Secret]Secret{c.Accounts[0].APIKey: c.Accounts[0].APIKey}, struct{ hidden Secret }{c.Accounts[0].APIKey}, fmt.Errorf("x %w %v", assert.AnError, c.Accounts[0].APIKey)} {
		for _, verb := range "vTtbcdoOqxXUeEfFgGsp" {
			for _, flag := range []string{"", "+", "#", "-40", "040", ".3", " "} {
				_, _ = fmt.Fprintf(&out, "%"+flag+string(verb)+"\n", v)
			}
		}
		if b, err := json.Marshal(v); err == nil {
			_, _ = out.Write(b)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("x", slog.Any("v", v))
		}
	}
	require.Contains(t, out.String(), redacted)
	for line := range strings.Lines(strings.ToLower(out.String())) {
		require.NotContains(t, line, "hush")
		require.NotContains(t, line, fmt.Sprintf("%x", "hush"))
	}

	assert.Equal(t, "sk-hush1", c.Accounts[0].APIKey.Reveal())
	assert.Empty(t, fmt.Sprintf("%v%d%#v", Secret{}, NewSecret(""), Secret{}))
	b, err := json.Marshal(struct{ A, B Secret }{NewSecret("x"), Secret{}})
	require.NoError(t, err)
	assert.JSONEq(t, `{"A":"**redacted**","B":""}`, string(b))
}
