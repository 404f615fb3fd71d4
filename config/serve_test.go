package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func writeTokens(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestServe(t *testing.T) {
	t.Parallel()
	path := writeTokens(t, `
tokens:
  - name: shop
    token: shop-0123456789abcdef
    max_queued: 500
    daily_budget: 20
    max_requests: 9
    max_uploads: 4
  - {name: blog, token_env: BLOG_TOKEN}
`)
	cfg, err := load(map[string]string{
		"DANQING_SERVE_TOKENS": " ops:ops-0123456789abcdef , ci:ci-with:colon-0123456789", "DANQING_SERVE_TOKENS_FILE": path, "BLOG_TOKEN": "blog-0123456789abcdef",
		"DANQING_TOKEN_MAX_QUEUED": "100", "DANQING_TOKEN_DAILY_BUDGET": "5", "DANQING_TOKEN_MAX_REQUESTS": "7", "DANQING_TOKEN_MAX_UPLOADS": "3", "DANQING_SERVE_MAX_QUEUED": "9000", "DANQING_GATEWAY_DEFAULT_N": "1", "DANQING_IMAGE_LINKS": "redirect", "DANQING_KEEPALIVE_WHITESPACE": "15s", "DANQING_CORS_ORIGINS": "https://a.example, http://localhost:5173",
		"DANQING_MODEL_ALIASES": "gpt-image-1=wan2.7-image, dall-e-3 = wanx-v1,",
		"DANQING_SERVE_URL":     "https://danqing.example.com/api/v1/", "DANQING_LISTEN": "0.0.0.0:80", "DANQING_OPERATOR_TOKENS": "ann:ann-0123456789abcdef,bo: bo-0123456789abcdef", "DANQING_UI_WRITE": "true",
	})
	require.NoError(t, err)
	assert.Equal(t, Serve{
		Tokens: []Token{
			{"ops", NewSecret("ops-0123456789abcdef"), 100, 5_000_000, 7, 3}, {"ci", NewSecret("ci-with:colon-0123456789"), 100, 5_000_000, 7, 3},
			{"shop", NewSecret("shop-0123456789abcdef"), 500, 20_000_000, 9, 4}, {"blog", NewSecret("blog-0123456789abcdef"), 100, 5_000_000, 7, 3},
		},
		Listen: "0.0.0.0:80", URL: "https://danqing.example.com", DefaultN: 1, MaxQueued: 9000, RedirectImages: true, KeepAlive: 15 * time.Second, CORSOrigins: []string{"https://a.example", "http://localhost:5173"}, Aliases: map[string]string{"gpt-image-1": "wan2.7-image", "dall-e-3": "wanx-v1"}, Operators: []Operator{{"ann", NewSecret("ann-0123456789abcdef")}, {"bo", NewSecret("bo-0123456789abcdef")}}, UIWrite: true,
	}, cfg.Serve)
	cfg, err = load(nil)
	require.NoError(t, err)
	assert.Equal(t, Serve{}, cfg.Serve)
}

// Every problem has its position, and contains no token.
func TestServeErrors(t *testing.T) {
	t.Parallel()
	path := writeTokens(t, `
tokens:
  - {name: shop, token: hunter2}
  - {name: blog, token: hunter2-0123456789, token_env: BLOG}
  - {name: none}
  - {name: away, token_env: AWAY_TOKEN}
  - {name: ops, token: hunter2-0123456789}
  - {name: more, token: hunter2-9876543210, max_queued: many, daily_budget: -1, tokn: hunter2}
`)
	_, err := load(map[string]string{
		"DANQING_SERVE_TOKENS": "hunter2hunter2hunter2,ops:hunter2,hunter2 hunter2:hunter2-000000000,ops:hunter2-0123456789", "DANQING_SERVE_TOKENS_FILE": path,
		"DANQING_TOKEN_MAX_QUEUED": "none", "DANQING_TOKEN_MAX_REQUESTS": "0", "DANQING_TOKEN_DAILY_BUDGET": "lots", "DANQING_SERVE_MAX_QUEUED": "0", "DANQING_GATEWAY_DEFAULT_N": "5", "DANQING_IMAGE_LINKS": "bucket", "DANQING_KEEPALIVE_WHITESPACE": "15", "DANQING_CORS_ORIGINS": "*,https://a.example/",
		"DANQING_MODEL_ALIASES": "gpt-image-1,gpt image=wanx-v1,a=wanx-v9,b=,wanx-v1=wan2.7-image,wan2.1-t2i-turbo=wanx-v1,c=wanx-v1,c=wanx-v1",
		"DANQING_SERVE_URL":     "danqing.example.com", "DANQING_OPERATOR_TOKENS": "hunter2hunter2hunter2,ann:hunter2,ops:ann-hunter2-0123456789,bob:hunter2-0123456789", "DANQING_UI_WRITE": "perhaps",
	})
	require.Error(t, err)
	for _, want := range []string{
		"DANQING_SERVE_TOKENS (entry 1) must be NAME:TOKEN", "DANQING_SERVE_TOKENS (entry 2) must have a token of 16", "DANQING_SERVE_TOKENS (entry 3) has an invalid name",
		":3: name must have a token of 16", ":4: token or token_env is required, and not both", ":5: token or token_env", ":6: token_env names AWAY_TOKEN, which is not set",
		":7: name repeats a name or a token", `:8: max_queued "many": must be a number of jobs`, ":8: daily_budget", ":8: tokn is not a field of a token: did you mean token",
		`DANQING_TOKEN_MAX_QUEUED "none"`, `DANQING_TOKEN_MAX_REQUESTS "0": must be a number of requests, 1 or more`, "DANQING_TOKEN_DAILY_BUDGET", `DANQING_SERVE_MAX_QUEUED "0"`, `DANQING_GATEWAY_DEFAULT_N "5"`, `DANQING_IMAGE_LINKS "bucket": must be "serve" or "redirect"`, `DANQING_KEEPALIVE_WHITESPACE "15": must be a time`, `DANQING_CORS_ORIGINS "*": must be origins`, `DANQING_CORS_ORIGINS "https://a.example/"`, `DANQING_MODEL_ALIASES "gpt-image-1": must be NAME=MODEL`, `DANQING_MODEL_ALIASES "gpt image=wanx-v1": must be NAME=MODEL`, `DANQING_MODEL_ALIASES "a=wanx-v9": "wanx-v9" is not a model of the catalog`, `DANQING_MODEL_ALIASES "b=": "" is not a model`,
		`DANQING_MODEL_ALIASES "wanx-v1=wan2.7-image": wanx-v1 is the name of a model: choose another`, `"wan2.1-t2i-turbo=wanx-v1": wan2.1-t2i-turbo is the name of a model`, `"c=wanx-v1": c has two models: remove one`, "DANQING_SERVE_URL must be the URL", "DANQING_OPERATOR_TOKENS (entry 1) must be NAME:TOKEN", "DANQING_OPERATOR_TOKENS (entry 2) must have a token of 16", "DANQING_OPERATOR_TOKENS (entry 3) repeats a name or a token", "DANQING_OPERATOR_TOKENS (entry 4) repeats a name or a token", `DANQING_UI_WRITE "perhaps"`,
	} {
		assert.ErrorContains(t, err, want)
	}
	assert.NotContains(t, err.Error(), "hunter2")
}
