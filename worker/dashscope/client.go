package dashscope

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// DefaultBaseURL is the shared host in Beijing, the only region with wanx-v1
// (text-to-image API reference).
const DefaultBaseURL = "https://dashscope.aliyuncs.com/api/v1"

const (
	// defaultCreateTimeout is longer than the service's own limit for a request, 300 s
	// (error-code page, RequestTimeOut): a create that is abandoned earlier may still
	// create its task later.
	defaultCreateTimeout = 330 * time.Second
	// defaultQueryTimeout is short because a query can be repeated at no cost.
	defaultQueryTimeout  = 10 * time.Second
	defaultUploadTimeout = 2 * time.Minute
	// defaultQueriesPerSecond is half of the account's 20 QPS for query, list and
	// cancel (manage-asynchronous-tasks page); it leaves the rest to other programs on
	// the account.
	defaultQueriesPerSecond = 10
	// queryBurst is how many of them may follow each other at once, such as those of a start.
	queryBurst = 3
	// dialTimeout is shorter than a create's timeout: a host that drops packets then
	// leads to a certain refusal instead of using up the whole timeout.
	dialTimeout = 10 * time.Second
	// maxBodyBytes is the size of two thousand list entries of 500 bytes.
	maxBodyBytes = 1 << 20
)

// tokenPlanPrefix begins the keys of Token Plans. Besides what their terms say, an exhausted one
// asks to wait for up to 21 days (reports of users).
const tokenPlanPrefix = "sk-sp-"

// Config configures a [Client]. The zero value of every field but APIKey means
// its default.
type Config struct {
	// BaseURL is the prefix of all paths: http or https, ending in /api/v1 like the
	// official SDKs' DASHSCOPE_HTTP_BASE_URL. "" means [DefaultBaseURL].
	BaseURL string
	// APIKey is sent only to BaseURL's host. Required. fmt, log/slog and encoding/json
	// do not print it.
	APIKey string `json:"-"`
	// Workspace is sent as X-DashScope-WorkSpace; "" sends none. Required for a RAM
	// sub-account's key.
	Workspace string
	// DialContext opens connections, within 10 s. nil means a net.Dialer, through the
	// proxy named by HTTPS_PROXY, HTTP_PROXY and NO_PROXY (never for a loopback host).
	// If set, proxies are not used.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error) `json:"-"`
	// UserAgent identifies the program to the service. "" means "danqing".
	UserAgent string
	// CreateTimeout bounds a create, including the connection; 0 means 330 s, longer
	// than the service's own limit. After a shorter timeout the task may still be
	// created.
	CreateTimeout time.Duration
	// QueryTimeout bounds a query, list, cancel or request for an upload policy,
	// without the wait for the rate limit; 0 means 10 s.
	QueryTimeout time.Duration
	// UploadTimeout bounds the transfer of a file; 0 means 2 minutes.
	UploadTimeout time.Duration
	// QueriesPerSecond limits queries, lists and cancels together, evenly spaced; 0
	// means 10, half of an account's limit.
	QueriesPerSecond float64
	// Observe is called after each request, with 0 as the status if no answer came; op is
	// create, query, cancel, list, upload, models or limits. nil means that nobody observes.
	Observe func(op string, status int, took time.Duration) `json:"-"`
	// Logger receives a debug line per call; nil logs nothing.
	Logger *slog.Logger `json:"-"`
}

// Format prints the configuration without the key, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{BaseURL:%s APIKey:**redacted** Workspace:%s}", c.BaseURL, c.Workspace)
}

// LogValue logs the configuration without the key.
func (c Config) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// FieldError describes an invalid field of a [Config].
type FieldError struct {
	Field   string // its name, such as BaseURL
	Problem string // what is wrong, without secrets
}

// Error returns the field's name and the problem.
func (e FieldError) Error() string { return e.Field + ": " + e.Problem }

// FieldErrors lists all invalid fields of a [Config].
type FieldErrors []FieldError

// Error has one line per field.
func (e FieldErrors) Error() string {
	lines := make([]string, len(e))
	for i, field := range e {
		lines[i] = field.Error()
	}
	return strings.Join(lines, "\n")
}

// Validate returns every invalid field, in a stable order.
func (c Config) Validate() (refused FieldErrors) {
	bad := func(field, problem string) { refused = append(refused, FieldError{field, problem}) }
	if _, err := parseBaseURL(c.BaseURL); err != nil {
		bad("BaseURL", err.Error())
	}
	switch {
	case c.APIKey == "":
		bad("APIKey", "required")
	case strings.HasPrefix(c.APIKey, tokenPlanPrefix):
		bad("APIKey", "is a key of a Token Plan ("+tokenPlanPrefix+"…): its terms forbid automated use, and it may be banned; create a pay-as-you-go key in the Model Studio (百炼) console, which begins with sk- alone")
	}
	for _, f := range [][2]string{{"APIKey", c.APIKey}, {"Workspace", c.Workspace}} {
		if !isHeaderValue(f[1]) {
			bad(f[0], "contains a space or a character other than printable ASCII")
		}
	}
	if c.CreateTimeout < 0 || c.QueryTimeout < 0 || c.UploadTimeout < 0 || c.QueriesPerSecond < 0 {
		bad("CreateTimeout, QueryTimeout, UploadTimeout, QueriesPerSecond", "must not be negative")
	}
	return refused
}

// Client is a client for one account of the service. It is safe for concurrent use.
type Client struct {
	base           *url.URL
	authorize      func(*http.Request)   // a closure, so that %v of a Client shows no key
	scrub          func(s string) string // removes the key and signed queries from a text
	keyFingerprint string
	userAgent      string
	timeouts       struct{ create, query, upload time.Duration }
	limiter        *rate.Limiter
	// queriesPerSecond is the limit of the whole budget.
	queriesPerSecond float64
	observe          func(op string, status int, took time.Duration)
	log              *slog.Logger
	// pooled keeps connections open. oneShot opens one per request: a stale connection
	// can then never make a create ambiguous, and net/http, which retries requests only
	// on reused connections, cannot retry one.
	pooled, oneShot  *http.Client
	oneShotTransport *http.Transport
	warm             *warmPool // of oneShot
}

// New validates cfg and returns a client. It does not connect. The error names every
// invalid field.
func New(cfg Config) (*Client, error) {
	if refused := cfg.Validate(); len(refused) > 0 {
		return nil, fmt.Errorf("dashscope configuration: %w", refused)
	}
	base, err := parseBaseURL(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("dashscope configuration: %w", err)
	}
	pooled, oneShot := newTransport(cfg.DialContext, true), newTransport(cfg.DialContext, false)
	c := &Client{
		base:             base,
		userAgent:        cmp.Or(cfg.UserAgent, "danqing"),
		limiter:          rate.NewLimiter(rate.Limit(cmp.Or(cfg.QueriesPerSecond, defaultQueriesPerSecond)), queryBurst),
		queriesPerSecond: cmp.Or(cfg.QueriesPerSecond, defaultQueriesPerSecond),
		observe:          cfg.Observe,
		log:              cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)),
		pooled:           newHTTPClient(pooled),
		oneShot:          newHTTPClient(oneShot),
		oneShotTransport: oneShot,
		warm:             newWarmPool(oneShot, net.JoinHostPort(base.Hostname(), cmp.Or(base.Port(), portOf(base.Scheme))), base.Scheme == "https"),
		authorize: func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+cfg.APIKey)
			if cfg.Workspace != "" {
				r.Header.Set(HeaderWorkspace, cfg.Workspace)
			}
		},
		scrub:          func(s string) string { return scrub(s, cfg.APIKey) },
		keyFingerprint: keyFingerprint(cfg.APIKey),
	}
	c.timeouts.create = cmp.Or(cfg.CreateTimeout, defaultCreateTimeout)
	c.timeouts.query = cmp.Or(cfg.QueryTimeout, defaultQueryTimeout)
	c.timeouts.upload = cmp.Or(cfg.UploadTimeout, defaultUploadTimeout)
	return c, nil
}

// isHeaderValue reports whether s is a valid header value and a single word in a log
// line.
func isHeaderValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func parseBaseURL(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(cmp.Or(s, DefaultBaseURL), "/"))
	switch {
	case err != nil: // its text may contain a password
		return nil, errors.New("not a URL")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("must have no user, query or fragment")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", !strings.HasSuffix(u.Path, "/api/v1"):
		return nil, fmt.Errorf("%q must start with https:// or http:// and end in /api/v1", s)
	}
	return u, nil
}

// portOf returns the default port of a scheme.
func portOf(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

func newHTTPClient(transport *http.Transport) *http.Client {
	// A redirect would repeat a POST or send the key to another host.
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func newTransport(dial func(context.Context, string, string) (net.Conn, error), keepAlive bool) *http.Transport {
	proxy := proxyFromEnvironment
	if dial == nil {
		dial = new(net.Dialer).DialContext
	} else {
		proxy = nil
	}
	var http1 http.Protocols
	http1.SetHTTP1(true) // HTTP/2 retries requests after GOAWAY
	return &http.Transport{
		Proxy: proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			// net/http lets a dial outlive its request.
			ctx, cancel := withTimeout(ctx, dialTimeout)
			defer cancel()
			return dial(ctx, network, addr)
		},
		Protocols:              &http1,
		DisableKeepAlives:      !keepAlive,
		DisableCompression:     true,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        90 * time.Second, // as http.DefaultTransport
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// proxyFromEnvironment is http.ProxyFromEnvironment without the variable's value in its
// error, which may contain a password.
func proxyFromEnvironment(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if err != nil {
		return nil, errors.New("HTTPS_PROXY or HTTP_PROXY is not a valid proxy address")
	}
	return u, nil
}

// SetQueryShare sets the share of Config.QueriesPerSecond that the client may use, above 0
// up to 1, for a budget that several clients share. A new client uses all of it.
func (c *Client) SetQueryShare(share float64) {
	c.limiter.SetLimit(rate.Limit(share * c.queriesPerSecond))
}

// BaseURL returns a copy of the prefix of all paths, without a trailing slash.
func (c *Client) BaseURL() *url.URL {
	u := *c.base
	return &u
}

// KeyFingerprint identifies the client's API key without disclosing it: 8 bytes of a hash, in
// hex. Keys have more than a hundred random bits, so a key cannot be guessed from its
// hash.
func (c *Client) KeyFingerprint() string { return c.keyFingerprint }

func keyFingerprint(key string) string {
	sum := sha256.Sum256([]byte("danqing key mark\x00" + key))
	return hex.EncodeToString(sum[:8])
}

// CloseIdleConnections closes idle connections.
func (c *Client) CloseIdleConnections() {
	c.pooled.CloseIdleConnections()
}

// answer is the result of a request.
type answer struct {
	connected bool // the request may have been sent, at least in part
	status    int  // 0 if no answer came
	header    http.Header
	body      []byte
	err       error // why there is no complete answer
}

func (a answer) simulated() bool { return a.header.Get(HeaderSimulated) == "true" }

// date returns the service's clock, or the zero time if absent.
func (a answer) date() time.Time {
	t, err := http.ParseTime(a.header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// request prepares an authenticated call of the service.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, error) {
	u := c.BaseURL()
	u.Path += path
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	c.authorize(r)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", c.userAgent)
	return r, nil
}

// exchange sends r and reads the answer.
func (c *Client) exchange(hc *http.Client, op string, r *http.Request) (a answer) {
	ctx, started := r.Context(), time.Now()
	defer func() {
		if c.observe != nil {
			c.observe(op, a.status, time.Since(started))
		}
		c.log.LogAttrs(ctx, slog.LevelDebug, "dashscope call", slog.String("op", op),
			slog.Int("status", a.status), slog.Duration("duration", time.Since(started)), slog.Bool("err", a.err != nil))
	}()
	// GotConn runs on this goroutine once the connection, including TLS and proxy, is
	// established; nothing of the request is written before.
	r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { a.connected = true },
	}))
	resp, err := hc.Do(r)
	if err != nil {
		a.err = c.transportError(ctx, err)
		return a
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.header = resp.StatusCode, resp.Header
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes+1))
	switch {
	case err != nil:
		a.err = fmt.Errorf("answer cut short: %w", c.transportError(ctx, err))
	case len(a.body) > maxBodyBytes:
		a.err = fmt.Errorf("answer longer than %d bytes", maxBodyBytes)
	}
	return a
}

// transportError removes the URL that net/http adds to an error, and the key, which a
// server may have sent back.
func (c *Client) transportError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	if text := err.Error(); c.scrub(text) != text {
		return errors.New(c.scrub(text))
	}
	return err
}

// withTimeout bounds ctx; its cause says how long the answer was waited for.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %s: %w", d, context.DeadlineExceeded))
}
