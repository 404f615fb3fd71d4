package config

// Variable is an environment variable that Danqing reads.
type Variable struct {
	Name string
	// Fallback is the variable that is read if Name is not set; "" if there is none.
	Fallback string
	// Meaning and Default are Markdown for people. An empty Default means that the
	// variable has none.
	Meaning, Default string
}

// VariableGroup is a subject with its variables.
type VariableGroup struct {
	Title     string
	Variables []Variable
}

// Variables returns all variables that Danqing reads, in the order of the
// documentation. A DANQING_ variable that is not here is reported as misspelled or
// unknown. The last group is read by Go's standard library.
func Variables() []VariableGroup {
	return []VariableGroup{
		{"The account", []Variable{
			{Name: "DASHSCOPE_API_KEY", Meaning: "the account's key, from the Model Studio (百炼) console"},
			{Name: "DASHSCOPE_HTTP_BASE_URL", Meaning: "DashScope's address, ending in `/api/v1`; Singapore is `https://dashscope-intl.aliyuncs.com/api/v1` and needs `DANQING_MODELS`", Default: "`https://dashscope.aliyuncs.com/api/v1` (Beijing)"},
			{Name: "DASHSCOPE_WORKSPACE", Meaning: "the Model Studio workspace (`llm-…`) that is billed", Default: "the key's own"},
			{Name: "DANQING_MODELS", Meaning: "the models to work on, separated by commas", Default: "`up`: all of the region; `batch`: those of its files; `worker`: `wanx-v1`"},
			{Name: "DANQING_CONCURRENCY", Meaning: "tasks at once of each lane, at most what DashScope allows for the model", Default: "`1`"},
			{Name: "DANQING_DAILY_BUDGET", Meaning: "yuan that the account may spend a day (UTC+8)", Default: "no limit"},
			{Name: "DANQING_CONFIRM_ABOVE", Meaning: "yuan above which `batch`, `generate` and `enqueue` ask on a terminal before they begin, unless `--yes` is given; `0`: whenever it costs something", Default: "`10`"},
			{Name: "DANQING_MODEL_CATALOG", Meaning: "a JSON file that adds models or corrects figures of the [catalog](catalog.md), for all processes of a queue", Default: "the built-in catalog"},
			{Name: "DANQING_PRICES", Meaning: "yuan per image by your contract, as in `wanx-v1=0.12,qwen-image=0.2`", Default: "the catalog's"},
		}},
		{"Queue, bucket and disk", []Variable{
			{Name: "REDIS_URL", Meaning: "`redis://[USER:PASSWORD@]HOST:PORT[/DB]`, `rediss://…` for TLS, `unix://PATH`, or `redis-sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT[/DB]?master=NAME`: see [Sentinel](redis.md#sentinel)", Default: "the embedded queue"},
			{Name: "DANQING_REDIS_CA", Meaning: "a PEM file of the authorities that have signed the certificates of Redis and its Sentinels, for `rediss://` and `rediss-sentinel://`", Default: "the system's"},
			{Name: "DANQING_REDIS_CERT", Meaning: "a PEM file of this client's certificate, for a Redis with `tls-auth-clients`"},
			{Name: "DANQING_REDIS_KEY", Meaning: "a PEM file of that certificate's key"},
			{Name: "DANQING_S3_BUCKET", Meaning: "the bucket for images and sidecars; required with `REDIS_URL`", Default: "the embedded bucket"},
			{Name: "DANQING_S3_PREFIX", Meaning: "a prefix of every key in the bucket"},
			{Name: "DANQING_S3_KEY_TEMPLATE", Meaning: "the key of an image, from `{job_path}` `{job_id}` `{n}` `{batch}` `{id}` `{model}` `{date}` `{ext}` `{source_name}`", Default: "`{job_path}-{n}{ext}`"},
			{Name: "DANQING_S3_ADDRESSING", Meaning: "`path` or `virtual`", Default: "by endpoint"},
			{Name: "DANQING_S3_PUBLIC_URL", Meaning: "the base of permanent links to a public bucket or CDN"},
			{Name: "DANQING_S3_PUBLIC_ENDPOINT", Meaning: "the endpoint of presigned links (7 days), if clients reach the bucket by another name"},
			{Name: "AWS_ACCESS_KEY_ID", Meaning: "the bucket's access key"},
			{Name: "AWS_SECRET_ACCESS_KEY", Meaning: "its secret"},
			{Name: "AWS_SESSION_TOKEN", Meaning: "the token of temporary credentials"},
			{Name: "AWS_REGION", Fallback: "AWS_DEFAULT_REGION", Meaning: "the bucket's region"},
			{Name: "AWS_ENDPOINT_URL_S3", Fallback: "AWS_ENDPOINT_URL", Meaning: "the bucket's endpoint", Default: "AWS"},
			{Name: "DANQING_DATA_DIR", Meaning: "journal, spool, embedded queue and bucket; one process at a time; **keep it**", Default: "`" + DefaultDataDir + "`"},
			{Name: "DANQING_OPERATOR", Meaning: "who decides with `danqing jobs retry`, `cancel`, `resolve`, `pause` and `resume`, kept with the decision", Default: "the user who called `sudo`, else the user of the machine"},
			{Name: "DANQING_SUBMIT_LIMIT", Meaning: "how long after a create was sent DashScope may still create its task; less than the default is used with the simulator only", Default: "`330s`"},
		}},
		{"Metrics and health (`worker`, `serve` and `up`)", []Variable{
			{Name: "DANQING_METRICS_LISTEN", Meaning: "the address of `/metrics`, `/healthz` and `/readyz`, as in `127.0.0.1:9464`; beyond loopback `DANQING_METRICS_TOKEN` is required", Default: "none"},
			{Name: "DANQING_METRICS_TOKEN", Meaning: "what readers of `/metrics` send as a bearer token, 16 characters or more"},
		}},
		{"The HTTP API (`serve` and `up`)", []Variable{
			{Name: "DANQING_LISTEN", Meaning: "the address to listen on", Default: "`127.0.0.1:8765`"},
			{Name: "DANQING_SERVE_TOKENS", Meaning: "`NAME:TOKEN,NAME:TOKEN`, 16 characters or more each", Default: "none: loopback only"},
			{Name: "DANQING_SERVE_TOKENS_FILE", Meaning: "a YAML file of tokens with limits of their own"},
			{Name: "DANQING_TOKEN_MAX_QUEUED", Meaning: "jobs that a token may have waiting, half of them scheduled for later, unless the file says otherwise", Default: "an equal part of `DANQING_SERVE_MAX_QUEUED`"},
			{Name: "DANQING_TOKEN_DAILY_BUDGET", Meaning: "yuan that a token's jobs of a day (UTC+8) may cost, unless the file says otherwise", Default: "no limit"},
			{Name: "DANQING_TOKEN_MAX_REQUESTS", Meaning: "requests that a token may have open, among them queries that are held and requests that wait for images, unless the file says otherwise", Default: "an equal part of half the server's connections, 8 to 256"},
			{Name: "DANQING_TOKEN_MAX_UPLOADS", Meaning: "reference images that a token may upload or have staged a day (UTC+8), of 2 MiB each on average, unless the file says otherwise", Default: "`500`"},
			{Name: "DANQING_SERVE_MAX_QUEUED", Meaning: "jobs that may wait in all before new ones get 429", Default: "`100000`; `10000` with the embedded queue"},
			{Name: "DANQING_SERVE_URL", Meaning: "where clients reach the API: links begin with it, those in callbacks too (set it for workers as well)", Default: "the host of each request"},
			{Name: "DANQING_OPERATOR_TOKENS", Meaning: "`NAME:TOKEN,NAME:TOKEN`, 16 characters or more each, of those who run Danqing: for the login of the [web UI](dashboard.md), and as `Authorization: Bearer` for programs. They see all jobs", Default: "none: the web UI is for loopback only, and not served beside `DANQING_SERVE_TOKENS`"},
			{Name: "DANQING_UI_WRITE", Meaning: "`true`: operators who log in may decide, pause and cancel in the web UI", Default: "`false`"},
			{Name: "DANQING_CORS_ORIGINS", Meaning: "origins whose pages may use the API in browsers, as in `https://studio.example.com,http://localhost:5173`"},
			{Name: "DANQING_KEEPALIVE_WHITESPACE", Meaning: "how often a request of OpenAI's API that waits gets white space, as in `15s`, against proxies that cut silent connections; errors then have the status 200", Default: "never"},
			{Name: "DANQING_MODEL_ALIASES", Meaning: "other names of models for [OpenAI's API](http-api.md#aliases), as in `gpt-image-1=wan2.7-image,dall-e-3=wanx-v1`", Default: "none"},
			{Name: "DANQING_IMAGE_LINKS", Meaning: "`serve`: links to images send the bytes; `redirect`: they lead to presigned links of the bucket, which clients must reach (not the embedded one)", Default: "`serve`"},
			{Name: "DANQING_GATEWAY_DEFAULT_N", Meaning: "images of a DashScope request without `n`, 1 to 4", Default: "`4`, as DashScope; `1` for Qwen-Image"},
		}},
		{"Callbacks (workers)", []Variable{
			{Name: "DANQING_CALLBACK_SECRET", Meaning: "the signing secret, `whsec_…`; several separated by commas while you rotate them"},
			{Name: "DANQING_CALLBACK_ALLOW", Meaning: "addresses and networks that may be called back although they are not public, as in `10.0.0.0/8`"},
		}},
		{"Alerts (`worker`, `serve` and `up`)", []Variable{
			{Name: "DANQING_ALERT_URL", Meaning: "where [alerts](alerts.md) are sent: robots of 飞书, 钉钉 and 企业微信, Slack, programs of yours; several separated by commas. The URLs are secrets", Default: "none"},
			{Name: "DANQING_ALERT_LANGUAGE", Meaning: "the language of alerts, `en` or `zh`", Default: "`zh` for 飞书, 钉钉 and 企业微信, else `en`"},
		}},
		{"Read by Go's standard library", []Variable{
			{Name: "SSL_CERT_FILE", Meaning: "a PEM file of certificate authorities, for a bucket or proxy with a private one (Linux)", Default: "the system's"},
			{Name: "HTTPS_PROXY", Meaning: "the proxy for DashScope, its images and the bucket; `HTTP_PROXY` and `NO_PROXY` apply too"},
		}},
	}
}

// variables returns the names of all variables that Danqing reads.
func variables() []string {
	var names []string
	for _, group := range Variables() {
		for _, v := range group.Variables {
			names = append(names, v.Name)
		}
	}
	return names
}
