package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/redistest"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// Secrets that are allowed in some places: the link to the reference image, which DashScope
// needs, as the value of its field only; a result's link while its image is being stored, as
// the value of its field only; a callback in the queue, likewise, but not in a sidecar nor in
// output; and the session token in a presigned link, which SigV4 requires, and which is
// useless without the secret key.
var (
	refImgField = regexp.MustCompile(`\\*"ref_img\\*":\s*\\*"(?:[^"\\]|\\+u0026)*\\*"`)
	callback    = regexp.MustCompile(`\\*"callback\\*":\s*\\*"(?:[^"\\]|\\+u0026)*\\*"`)
	linkField   = regexp.MustCompile(`\\*"url\\*":\s*\\*"(?:[^"\\]|\\+u0026)*\\*"`)
	linkToken   = regexp.MustCompile(`X-Amz-Security-Token=[^&"\s]*`)
)

// newSecret returns a random secret with special characters of URLs and shells, or without
// them if plain.
func newSecret(plain bool) string {
	if plain {
		return rand.Text()
	}
	return rand.Text() + "/+@:" + rand.Text()
}

// encodings returns the encoded forms in which a secret may appear in a text, by itself or
// within a longer encoded text.
func encodings(secret string) []string {
	all := []string{
		secret, strings.ToLower(secret), url.QueryEscape(secret), url.PathEscape(secret), url.UserPassword("", secret).String()[1:],
		hex.EncodeToString([]byte(secret)), strings.ReplaceAll(secret, "/", `\/`),
	}
	for before := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, before), secret...))
			text = text[(before*8+5)/6:] // shared with the preceding text
			if (before+len(secret))%3 != 0 {
				text = text[:len(text)-1] // and with the following one
			}
			all = append(all, text)
		}
	}
	return all
}

// leakDetector records everything that is visible, and searches it for secrets at the end,
// because some of them are generated during the test.
type leakDetector struct {
	mu      sync.Mutex
	secrets map[string]string // by kind
	seen    map[string][]byte // by place
}

// add records a text that is visible in a place, without the parts that are allowed there.
func (w *leakDetector) add(where string, text []byte, allowed ...*regexp.Regexp) {
	for _, a := range allowed {
		text = a.ReplaceAll(text, []byte("…"))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[where] = append(append(w.seen[where], '\n'), text...)
}

// leaks returns which secrets appear in which places.
func (w *leakDetector) leaks() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []string
	for name, secret := range w.secrets {
		disguised := encodings(secret)
		for where, text := range w.seen {
			for _, guise := range disguised {
				if at := bytes.Index(text, []byte(guise)); at >= 0 {
					from, to := max(at-200, 0), min(at+len(guise)+100, len(text))
					found = append(found, fmt.Sprintf("%s in %s: …%q…", name, where, text[from:to]))
					break
				}
			}
		}
	}
	return found
}

// addFiles records the names and contents of a file, or of all files in a folder except skip.
// It also checks that files with links are readable by their owner only.
func (w *leakDetector) addFiles(t *testing.T, root string, allowed []*regexp.Regexp, skip ...string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case slices.Contains(skip, entry.Name()) && entry.IsDir():
			return fs.SkipDir
		case slices.Contains(skip, entry.Name()), entry.IsDir():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if info, err := entry.Info(); assert.NoError(t, err) && linkSignature.Match(text) {
			assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "%s holds links", path)
		}
		w.add("file name "+path, []byte(path))
		w.add("file "+path, text, allowed...)
		return nil
	}))
}

// addRedis records all keys and values, and returns them with the allowed parts.
func (w *leakDetector) addRedis(t *testing.T, when string, rdb *redis.Client, allowed ...*regexp.Regexp) string {
	t.Helper()
	var all strings.Builder
	ctx := t.Context()
	keys := rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for keys.Next(ctx) {
		key := keys.Val()
		value, err := redisValue(ctx, rdb, key)
		require.NoError(t, err, key)
		fmt.Fprintf(&all, "%s\n%s\n", key, value)
		w.add("redis "+when+" "+key, []byte(key+"\n"+value), allowed...)
	}
	require.NoError(t, keys.Err())
	return all.String()
}

func redisValue(ctx context.Context, rdb *redis.Client, key string) (string, error) {
	kind, err := rdb.Type(ctx, key).Result()
	if err != nil {
		return "", err
	}
	var value any
	switch kind {
	case "string":
		value, err = rdb.Get(ctx, key).Result()
	case "hash":
		value, err = rdb.HGetAll(ctx, key).Result()
	case "list":
		value, err = rdb.LRange(ctx, key, 0, -1).Result()
	case "set":
		value, err = rdb.SMembers(ctx, key).Result()
	case "zset":
		value, err = rdb.ZRange(ctx, key, 0, -1).Result()
	case "stream":
		value, err = rdb.XRange(ctx, key, "-", "+").Result()
	case "none": // expired in the meantime
	default:
		err = fmt.Errorf("a %s, which this test cannot read", kind)
	}
	return fmt.Sprint(value), err
}

// addUI records everything in the web UI, and returns it with the allowed parts.
func (w *leakDetector) addUI(t *testing.T, when, base string) string {
	t.Helper()
	var all strings.Builder
	get := func(path string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close() //nolint:errcheck // read only
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		text := fmt.Appendf(nil, "%d %v\n%s", resp.StatusCode, resp.Header, body)
		all.Write(text)
		w.add("web UI "+when+" "+path, text, refImgField, callback)
		return body
	}
	for _, path := range []string{"/", "/jobs", "/jobs?state=failed", "/jobs?state=held"} { // of our own page nothing is allowed
		page := get(path)
		w.add("page "+when+" "+path, page)
		for _, job := range jobLink.FindAllSubmatch(page, -1) {
			w.add("page "+when+" "+string(job[1]), get(string(job[1])))
		}
	}
	for _, path := range []string{"/healthz", "/ui/", "/ui/api/queue_stats", "/ui/api/servers", "/ui/api/scheduler_entries", "/ui/api/redis_info", "/ui/api/metrics", "/ui/api/none"} {
		get(path)
	}
	var queues struct {
		Queues []struct{ Queue string }
	}
	require.NoError(t, json.Unmarshal(get("/ui/api/queues"), &queues))
	require.NotEmpty(t, queues.Queues)
	for _, q := range queues.Queues {
		queue := "/ui/api/queues/" + q.Queue
		get(queue)
		for _, list := range []string{"active", "pending", "scheduled", "retry", "archived", "completed"} {
			var page struct{ Tasks []struct{ ID string } }
			require.NoError(t, json.Unmarshal(get(queue+"/"+list+"_tasks?size=100"), &page))
			for _, task := range page.Tasks {
				get(queue + "/tasks/" + task.ID)
			}
		}
	}
	return all.String()
}

// jobLink matches the links to jobs in the page for operators.
var jobLink = regexp.MustCompile(`href="(/jobs/[^"?]+)"`)

// linkSignature matches the signatures of DashScope's links to results.
var linkSignature = regexp.MustCompile(`(?:&|\\u0026)Signature=([^&"\\]+)`)

// addLinks adds the links in a journal as secrets.
func (w *leakDetector) addLinks(t *testing.T, journal string) {
	t.Helper()
	text, err := os.ReadFile(journal)
	require.NoError(t, err)
	found := linkSignature.FindAllSubmatch(text, -1)
	require.NotEmpty(t, found, "the journal names the results until they are stored")
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, match := range found {
		signature, err := url.QueryUnescape(string(match[1]))
		require.NoError(t, err)
		w.secrets["signature of the link "+signature] = signature
	}
}

// canaryStack is a Redis with a password, a DashScope and a bucket. A proxy in front of them
// repeats parts of requests in its errors.
type canaryStack struct {
	leakDetector
	t      *testing.T
	dir    string // the program's working directory
	store  string // the bucket's folder
	env    []string
	redis  *redis.Client // of a user without a password
	socket string
	sim    *simulator.Simulator
	files  *bucket.Server
	server *httptest.Server

	mu      sync.Mutex
	asked   map[string]bool // paths
	refused string          // an API key that is refused
	// storing is closed when the image of shop.ok arrives, which waits for stored.
	storing, stored chan struct{}
	once            sync.Once
}

func newCanaryStack(t *testing.T) *canaryStack {
	t.Helper()
	p := &canaryStack{t: t, dir: t.TempDir(), store: t.TempDir(), socket: redistest.Start(t).Socket, asked: map[string]bool{}, storing: make(chan struct{}), stored: make(chan struct{})}
	p.seen = map[string][]byte{}
	p.secrets = map[string]string{
		"API key": newSecret(false), "second API key": newSecret(false), "Redis password": newSecret(false), "S3 secret": newSecret(false),
		"S3 session token": newSecret(false), "signature of ref_img": newSecret(true), "wrong secret": newSecret(true),
		"callback secret": base64.StdEncoding.EncodeToString([]byte(newSecret(true))), "token of callback": newSecret(true),
		"token of robot": newSecret(true), "secret of robot": newSecret(true),
	}
	p.redis = redis.NewClient(&redis.Options{Network: "unix", Addr: p.socket})
	var rule []any
	for word := range strings.FieldsSeq(redishealth.ACLRule("danqing")) {
		rule = append(rule, strings.Replace(word, "PASSWORD", p.secrets["Redis password"], 1))
	}
	require.NoError(t, p.redis.Do(t.Context(), rule...).Err())
	p.sim = &simulator.Simulator{
		TaskTime: simulator.Between(20*time.Millisecond, 40*time.Millisecond), SubmitsPerSecond: -1,
		Keys: map[string]simulator.Key{p.secrets["API key"]: {Account: "first"}, p.secrets["second API key"]: {Account: "second"}},
		Render: func(picture painter.Picture) []byte {
			picture.Width, picture.Height = 8, 8
			return painter.Paint(picture)
		},
		Outcome: func(req dashscope.CreateRequest) simulator.Outcome {
			if strings.Contains(req.Input.Prompt, "refused") {
				return simulator.Outcome{Code: "DataInspectionFailed", Message: "not allowed: " + req.Input.RefImg}
			}
			return simulator.Outcome{}
		},
	}
	var err error
	p.files, err = bucket.Open(bucket.Config{Dir: p.store, AccessKeyID: "AKIATEST", SecretAccessKey: p.secrets["S3 secret"]})
	require.NoError(t, err)
	p.server = httptest.NewServer(p)
	t.Cleanup(func() {
		p.server.Close()
		assert.NoError(t, p.sim.Close())
		assert.NoError(t, p.files.Close())
		assert.NoError(t, p.redis.Close())
	})
	p.env = []string{
		"HOME=" + p.dir, "PATH=" + os.Getenv("PATH"), noExitSleep, "DASHSCOPE_HTTP_BASE_URL=" + p.server.URL + "/api/v1",
		"REDIS_URL=" + p.redisURL(p.secrets["Redis password"]), "DANQING_S3_BUCKET=" + bucket.DefaultBucket, "DANQING_SUBMIT_LIMIT=2s",
		"AWS_ENDPOINT_URL_S3=" + p.server.URL, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=AKIATEST",
		"AWS_SECRET_ACCESS_KEY=" + p.secrets["S3 secret"], "AWS_SESSION_TOKEN=" + p.secrets["S3 session token"],
		"DANQING_CALLBACK_SECRET=whsec_" + p.secrets["callback secret"], "DANQING_CALLBACK_ALLOW=127.0.0.1",
		"DANQING_ALERT_URL=dingtalk+" + p.server.URL + "/robot?access_token=" + p.secrets["token of robot"] + "#" + p.secrets["secret of robot"],
	}
	return p
}

func (p *canaryStack) redisURL(password string) string {
	return (&url.URL{Scheme: "unix", User: url.UserPassword("danqing", password), Path: p.socket}).String()
}

// refImg returns a presigned link, like a producer's.
func (p *canaryStack) refImg() string {
	return "https://refs.example.com/cat.png?X-Amz-Expires=600&X-Amz-Signature=" + p.secrets["signature of ref_img"]
}

// callback returns a producer's callback URL with a token.
func (p *canaryStack) callback() string {
	return p.server.URL + "/hook?a=b&token=" + p.secrets["token of callback"]
}

// refuse makes the service refuse a key from now on.
func (p *canaryStack) refuse(secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = p.secrets[secret]
}

// ServeHTTP answers like DashScope and the bucket. For a refused key, a create that becomes
// ambiguous, the first request of each link, a callback, an alert, and an unknown session token, it
// repeats the request in its error.
func (p *canaryStack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	create := strings.HasSuffix(r.URL.Path, dashscope.PathText2Image)
	p.mu.Lock()
	refused := p.refused != "" && key == p.refused
	link := strings.HasPrefix(r.URL.Path, "/1d/") && !p.asked[r.URL.Path]
	p.asked[r.URL.Path] = true
	p.mu.Unlock()
	switch {
	case refused:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"code":"InvalidApiKey","message":"Incorrect API key provided: %s."}`, key)
	case create && bytes.Contains(body, []byte("nobody knows")):
		for range 2 { // two tasks of which one may be the job's: it is held
			again := r.Clone(r.Context())
			again.Body = io.NopCloser(bytes.NewReader(body))
			p.sim.ServeHTTP(httptest.NewRecorder(), again)
		}
		p.writeGarbage(w, key+r.RequestURI)
	case link, r.URL.Path == "/hook", r.URL.Path == "/robot":
		p.writeGarbage(w, key+r.RequestURI)
	case strings.HasPrefix(r.URL.Path, "/foreign"):
		w.WriteHeader(http.StatusBadRequest)
		token := r.Header.Get("X-Amz-Security-Token")
		_, _ = fmt.Fprintf(w, "<Error><Code>InvalidToken</Code><Message>bad token %s</Message><Token-0>%s</Token-0></Error>", token, token)
	case strings.HasPrefix(r.URL.Path, "/"+bucket.DefaultBucket):
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/shop/ok-1.png") {
			p.once.Do(func() { close(p.storing) })
			select {
			case <-p.stored:
			case <-r.Context().Done():
			}
		}
		p.files.ServeHTTP(w, r)
	default:
		p.sim.ServeHTTP(w, r)
	}
}

// writeGarbage answers with a text that is not HTTP, which errors then quote.
func (p *canaryStack) writeGarbage(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if assert.NoError(p.t, err) {
		_, _ = fmt.Fprintf(conn, "%s\r\n\r\n", text)
		_ = conn.Close()
	}
}

// command returns the program as a command, with additional environment variables.
func (p *canaryStack) command(env []string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(p.t, err)
	cmd := exec.CommandContext(p.t.Context(), self)
	cmd.Args, cmd.Dir, cmd.Env = append([]string{"danqing"}, args...), p.dir, append(p.env[:len(p.env):len(p.env)], env...)
	return cmd
}

// run runs the program to its end, records its output, and returns standard error.
func (p *canaryStack) run(want int, env []string, args ...string) string {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := p.command(env, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code is checked below
	allowed := []*regexp.Regexp{refImgField, linkToken}
	if args[0] == "batch" { // its results contain the lines of the file
		allowed = append(allowed, callback)
	}
	p.add("stdout of "+strings.Join(args, " "), out.Bytes(), allowed...)
	p.add("stderr of "+strings.Join(args, " "), errs.Bytes())
	require.Equal(p.t, want, cmd.ProcessState.ExitCode(), "%v: %s", args, errs.String())
	return errs.String()
}

// process is a program that runs in the background.
type process struct {
	cmd *exec.Cmd
	log string // file with its output
}

// start starts the program.
func (p *canaryStack) start(env []string, args ...string) *process {
	p.t.Helper()
	log, err := os.CreateTemp(p.t.TempDir(), "*.log")
	require.NoError(p.t, err)
	b := &process{cmd: p.command(env, args...), log: log.Name()}
	b.cmd.Stdout, b.cmd.Stderr = log, log
	require.NoError(p.t, b.cmd.Start())
	require.NoError(p.t, log.Close())
	return b
}

// waitOutput waits until the program's output matches pattern, and returns the first group.
func (p *canaryStack) waitOutput(b *process, pattern string) string {
	p.t.Helper()
	wanted, found := regexp.MustCompile(pattern), []string(nil)
	for deadline := time.Now().Add(8 * time.Second); len(found) < 2; <-time.After(10 * time.Millisecond) {
		text, err := os.ReadFile(b.log)
		require.NoError(p.t, err)
		require.True(p.t, time.Now().Before(deadline), "%v never said %s: %s", b.cmd.Args, pattern, text)
		found = wanted.FindStringSubmatch(string(text))
	}
	return found[1]
}

// stop stops the program and records its output.
func (p *canaryStack) stop(b *process) {
	p.t.Helper()
	require.NoError(p.t, b.cmd.Process.Signal(syscall.SIGTERM))
	err := b.cmd.Wait()
	text, readErr := os.ReadFile(b.log)
	require.NoError(p.t, readErr)
	require.NoError(p.t, err, "%s", text)
	p.add("log of "+strings.Join(b.cmd.Args, " "), text)
}

// monitor records every command that is sent to Redis from now on.
func (p *canaryStack) monitor() (stop func()) {
	p.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(p.t.Context(), "unix", p.socket)
	require.NoError(p.t, err)
	_, err = io.WriteString(conn, "MONITOR\r\n")
	require.NoError(p.t, err)
	var text bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(&text, conn) // until the connection is closed
	}()
	return func() {
		_ = conn.Close()
		<-ended
		require.Contains(p.t, text.String(), "danqing:events")
		p.add("commands to redis", text.Bytes(), refImgField, callback, linkField)
	}
}
