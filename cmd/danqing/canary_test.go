package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The search finds a secret in every encoding and place.
func TestCanarySearch(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{newSecret(true), newSecret(false)} {
		for _, guise := range encodings(secret) {
			w := leakDetector{secrets: map[string]string{"it": secret}, seen: map[string][]byte{}}
			w.add("here", []byte("before "+guise+" behind"))
			assert.NotEmpty(t, w.leaks(), guise)
		}
	}
	p := newCanaryStack(t)
	p.secrets = map[string]string{"it": newSecret(false)}
	it := p.secrets["it"]
	ctx := t.Context()
	require.NoError(t, p.redis.Set(ctx, "string", it, 0).Err())
	require.NoError(t, p.redis.HSet(ctx, "hash", "field", it).Err())
	require.NoError(t, p.redis.LPush(ctx, "list", it).Err())
	require.NoError(t, p.redis.SAdd(ctx, "set", it).Err())
	require.NoError(t, p.redis.Do(ctx, "ZADD", "zset", "1", it).Err())
	require.NoError(t, p.redis.Do(ctx, "XADD", "stream", "*", "field", it).Err())
	require.NoError(t, p.redis.Set(ctx, "key "+it, "", 0).Err())
	p.addRedis(t, "now", p.redis)
	assert.Len(t, leakPlaces(p.leaks()), 7, "%v", p.leaks())

	p.seen = map[string][]byte{}
	const url = "https://refs.example.com/a?b=c&d="
	for where, text := range map[string]string{
		"field":   `{"ref_img":"` + url + it + `"}`,
		"escaped": `{"payload":"{\"ref_img\":\"` + url + it + `\",\"n\":1}"}`,
		"pretty":  `"ref_img": "https://refs.example.com/a?b=c\u0026d=` + it + `",`,
	} {
		p.add(where, []byte(text), refImgField)
	}
	assert.Empty(t, p.leaks())
	p.add("beside", []byte(`{"ref_img":"`+url+`","message":"`+it+`"}`), refImgField)
	p.add("after", []byte(`"ref_img" `+it), refImgField)
	assert.Len(t, leakPlaces(p.leaks()), 2, "%v", p.leaks())
}

func leakPlaces(leaks []string) map[string]bool {
	where := map[string]bool{}
	for _, leak := range leaks {
		text, _, _ := strings.Cut(leak, ": …")
		where[text] = true
	}
	return where
}

// Jobs with every outcome run on a Redis, a bucket and a DashScope that require secrets, and
// repeat them in their errors. No secret appears in Redis, in the web UI, in the bucket, in
// the data directory, or in the output of any command.
func TestNoSecretLeaks(t *testing.T) {
	t.Parallel()
	p := newCanaryStack(t)
	stopMonitor := p.monitor()
	key := []string{"DASHSCOPE_API_KEY=" + p.secrets["API key"]}
	data := filepath.Join(p.dir, "danqing-data")
	journal := filepath.Join(data, "journal.jsonl")
	p.run(exitDone, nil, "jobs", "pause", "--account", "default", "--why", "for now")
	up := p.start(key, "up", "--listen", "127.0.0.1:0")
	base := p.waitOutput(up, `web UI:  (\S+)/`)
	p.enqueueJobs()
	p.invalidLines()
	signature := p.secrets["signature of ref_img"]
	require.True(t, strings.Contains(p.addRedis(t, "while jobs wait", p.redis, refImgField, callback), signature), "the message holds what DashScope must be told")
	require.True(t, strings.Contains(p.addUI(t, "while jobs wait", base), signature), "the payload is shown as it is")
	p.run(exitDone, nil, "jobs", "cancel", "shop.gone")
	p.run(exitDone, nil, "jobs", "resume", "--account", "default")

	select {
	case <-p.storing:
	case <-time.After(time.Minute):
		t.Fatal("no image came")
	}
	p.addLinks(t, journal)
	require.True(t, linkSignature.MatchString(p.addRedis(t, "while an image is stored", p.redis, refImgField, callback, linkField)), "another worker may have to store it")
	p.addUI(t, "while an image is stored", base)
	p.showJobs("shop.ok")
	close(p.stored)
	p.actOnJobs()
	p.run(exitDone, nil, "jobs", "notify", "shop.ok", "shop.bad", "--json")
	p.run(exitFailed, nil, "alert", "test")
	p.waitOutput(up, `(callback failed).*the response is not valid HTTP`)
	p.addUI(t, "in the end", base)
	p.stop(up)
	assert.False(t, linkSignature.MatchString(p.addRedis(t, "in the end", p.redis, refImgField, callback)), "links are gone with the last image")
	p.addFiles(t, journal, []*regexp.Regexp{refImgField, callback, linkField})

	p.run(exitPartFailed, key, "batch", "--verbose", "--json", "--gallery", "shop.jsonl", "--name", "again")
	p.addLinks(t, journal)
	p.refuse("API key")
	refused := p.start(key, "worker") // it waits until its key is accepted
	p.waitOutput(refused, `(\*\*redacted\*\*)`)
	p.stop(refused)
	text, err := os.ReadFile(journal)
	require.NoError(t, err)
	assert.False(t, linkSignature.Match(text), "a start drops what is over")

	// Worker, producers, API and web UI had no more rights than doctor says.
	denied, err := p.redis.Do(t.Context(), "ACL", "LOG").Slice()
	require.NoError(t, err)
	assert.Empty(t, denied)

	stopMonitor()
	p.addObjects("shop.ok", "shop.bad", "shop.lost", "shop.gone", "again.ok", "again.bad", "again.gone")
	p.addFiles(t, p.dir, []*regexp.Regexp{refImgField, callback, linkToken})
	assert.Empty(t, p.leaks())
}

// enqueueJobs enqueues a job for each outcome.
func (p *canaryStack) enqueueJobs() {
	p.t.Helper()
	var lines strings.Builder
	for _, job := range [][2]string{{"ok", "a cat"}, {"bad", "a cat that is refused"}, {"lost", "nobody knows"}, {"gone", "a cat that nobody wants"}} {
		fmt.Fprintf(&lines, `{"id":%q,"prompt":%q,"n":2,"ref_img":%q,"callback":%q}`+"\n", job[0], job[1], p.refImg(), p.callback())
	}
	require.NoError(p.t, os.WriteFile(filepath.Join(p.dir, "shop.jsonl"), []byte(lines.String()), 0o600))
	p.run(exitDone, nil, "enqueue", "shop.jsonl")
}

// actOnJobs waits for the jobs, and runs all commands of an operator on them.
func (p *canaryStack) actOnJobs() {
	p.t.Helper()
	all := []string{"shop.ok", "shop.bad", "shop.lost", "shop.gone"}
	p.run(exitPartFailed, nil, append([]string{"jobs", "wait"}, all...)...)
	p.run(exitDone, nil, "jobs", "wait", "--json", "shop.ok")
	p.showJobs(all...)
	p.run(exitDone, nil, "jobs", "retry", "shop.bad")
	p.run(exitPartFailed, nil, "jobs", "wait", "shop.bad")
	p.run(exitDone, nil, "jobs", "resolve", "shop.lost", "--buy-again")
	p.run(exitPartFailed, nil, "jobs", "wait", "shop.lost")
	p.run(exitDone, nil, "jobs", "resolve", "shop.lost", "--give-up")
	p.run(exitFailed, nil, "jobs", "retry", "shop.ok")
	p.run(exitUsage, nil, "enqueue", "--id", "shop.ok", "--prompt", "another", "--ref-img", p.refImg())
	require.Eventually(p.t, func() bool { _, err := os.Stat(p.files.Path("_jobs/shop.lost.json")); return err == nil }, time.Minute, 10*time.Millisecond)
	p.showJobs(all...)
}

// invalidLines are lines that are refused, by the mistake.
func (p *canaryStack) invalidLines() {
	p.t.Helper()
	var files []string
	for name, line := range map[string]string{
		"torn":   `{"prompt":"x","ref_img":"` + p.refImg(),
		"scheme": `{"prompt":"x","ref_img":"ftp` + p.refImg() + `"}`,
		"list":   `{"prompt":"x","ref_img":["` + p.refImg() + `"]}`,
		"model":  `{"prompt":"x","model":"wan2.2-t2i-flash","ref_img":"` + p.refImg() + `"}`,
		"local":  `{"prompt":"x","ref_img":"` + strings.TrimPrefix(p.refImg(), "https://") + `"}`,
		"slip":   `{"prompt":"x","ref_imgs":"` + p.refImg() + `"}`,
		"style":  `{"prompt":"x","style":"` + p.refImg() + `"}`,
		"space":  `{"prompt":"x","ref_img":"` + p.refImg() + ` y"}`,
	} {
		file := filepath.Join(p.t.TempDir(), name)
		require.NoError(p.t, os.WriteFile(file, []byte(line+"\n"), 0o600))
		files = append(files, file)
	}
	said := p.run(exitUsage, nil, append([]string{"enqueue"}, files...)...)
	for _, file := range files {
		assert.Contains(p.t, said, file+": line 1: ")
	}
	p.run(exitUsage, nil, "batch", files[0])
}

// showJobs runs all commands that print jobs.
func (p *canaryStack) showJobs(ids ...string) {
	p.t.Helper()
	p.run(exitDone, nil, "jobs", "list")
	p.run(exitDone, nil, "jobs", "list", "--json")
	for _, id := range ids {
		p.run(exitDone, nil, "jobs", "show", id)
		p.run(exitDone, nil, "jobs", "show", id, "--json")
	}
}

// addObjects records the objects of the bucket with their metadata. The jobs must have
// sidecars.
func (p *canaryStack) addObjects(ids ...string) {
	p.t.Helper()
	p.addFiles(p.t, p.store, []*regexp.Regexp{refImgField, linkToken}) // the gallery has links
	for _, id := range ids {
		require.Contains(p.t, p.seen, "file "+p.files.Path("_jobs/"+id+".json"))
	}
}

// With an accounts file whose keys are in a variable and in a file, neither key leaks when
// one of them is revoked.
func TestAccountKeysDoNotLeak(t *testing.T) {
	t.Parallel()
	p := newCanaryStack(t)
	close(p.stored)
	base := p.server.URL + "/api/v1"
	for name, text := range map[string]string{
		"accounts.yaml": "accounts:\n- {name: first, api_key_env: FIRST, base_url: " + base + "}\n- {name: second, api_key_file: second.key, base_url: " + base + "}\n",
		"second.key":    p.secrets["second API key"] + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600))
	}
	p.refuse("second API key")

	worker := p.start([]string{"DASHSCOPE_HTTP_BASE_URL=", "FIRST=" + p.secrets["API key"]}, "worker", "--config", "accounts.yaml")
	p.waitOutput(worker, `account=second.*(\*\*redacted\*\*)`)
	p.run(exitDone, nil, "enqueue", "--id", "one", "--prompt", "one")
	p.run(exitDone, nil, "jobs", "wait", "one")
	p.showJobs("one")
	p.addRedis(t, "while an account is paused", p.redis)
	p.stop(worker)
	p.addRedis(t, "in the end", p.redis)
	p.addLinks(t, filepath.Join(p.dir, "danqing-data", "journal.jsonl"))
	p.addFiles(t, filepath.Join(p.dir, "danqing-data", "journal.jsonl"), []*regexp.Regexp{linkField})
	p.addFiles(t, p.dir, nil, "second.key", "journal.jsonl")
	p.addObjects("one")
	assert.Empty(t, p.leaks())
}

// The error for a wrong setting never contains a value that may be secret.
func TestConfigErrorsContainNoSecret(t *testing.T) {
	t.Parallel()
	p := newCanaryStack(t)
	wrong := p.secrets["wrong secret"]
	key := "DASHSCOPE_API_KEY=" + p.secrets["API key"]
	for name, text := range map[string]string{
		"key.yaml":  "accounts:\n- name: a\n  api_key: sk-" + wrong + "\n",
		"env.yaml":  "accounts:\n- name: a\n  api_key_env: sk-" + wrong + "\n",
		"file.yaml": "accounts:\n- name: a\n  api_key_file: sk-" + wrong + "\n",
		"torn.yaml": "accounts:\n- name: a\n  api_key_env: [sk-" + wrong + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600))
	}
	for i, tc := range []struct {
		want int
		env  []string
		args string
		says string
	}{
		{exitFailed, []string{"REDIS_URL=" + p.redisURL(wrong)}, "jobs list", "WRONGPASS"},
		{exitFailed, []string{"REDIS_URL=redis://u:" + wrong + "@127.0.0.1:1"}, "jobs list", "nothing listens at 127.0.0.1:1"},
		{exitUsage, []string{"REDIS_URL=redis://u:" + wrong + "@127.0.0.1:port"}, "jobs list", "REDIS_URL must be"},
		{exitUsage, []string{"REDIS_URL=http://u:" + wrong + "@127.0.0.1"}, "jobs list", "REDIS_URL must be"},
		{exitUsage, []string{"DANQING_REDIS_URL=redis://u:" + wrong + "@127.0.0.1"}, "jobs list", "is not a variable of Danqing"},
		{exitUsage, []string{"DASHSCOPE_API_KEY=" + wrong + " x"}, "worker", "DASHSCOPE_API_KEY contains a space"},
		{exitUsage, []string{key, "DASHSCOPE_HTTP_BASE_URL=https://u:" + wrong + "@127.0.0.1/api/v1"}, "worker", "must have no user"},
		{exitUsage, []string{key, "DASHSCOPE_HTTP_BASE_URL=https://127.0.0.1/api/v1?token=" + wrong}, "worker", "must have no user"},
		{exitFailed, []string{"DASHSCOPE_API_KEY=" + wrong}, "up --listen 127.0.0.1:0", "DASHSCOPE_API_KEY"},
		{exitFailed, []string{key, "AWS_SECRET_ACCESS_KEY=" + wrong}, "worker", "correct AWS_SECRET_ACCESS_KEY"},
		{exitFailed, []string{key, "AWS_ENDPOINT_URL_S3=http://127.0.0.1:1"}, "worker", "127.0.0.1:1"},
		{exitUsage, []string{key, "AWS_ENDPOINT_URL_S3=http://u:" + wrong + "@127.0.0.1:1"}, "worker", "must not hold credentials"},
		{exitFailed, []string{key, "DANQING_S3_BUCKET=foreign", "DANQING_S3_ADDRESSING=path"}, "worker", "the session token has expired"},
		{exitFailed, []string{key, "HTTPS_PROXY=http://u:" + wrong + "@127.0.0.1:port", "AWS_ENDPOINT_URL_S3=https://s3.example.com"}, "worker", "proxy"},
		{exitUsage, nil, "worker --config key.yaml", "must not be in this file"},
		{exitUsage, nil, "worker --config env.yaml", "api_key_env"},
		{exitUsage, nil, "worker --config file.yaml", "api_key_file"},
		{exitUsage, nil, "worker --config torn.yaml", "torn.yaml"},
		{exitUsage, []string{key, "DANQING_SERVE_TOKEN=" + wrong}, "worker", "DANQING_SERVE_TOKENS"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			env := append(tc.env, "DANQING_DATA_DIR="+t.TempDir())
			if strings.Contains(tc.args, "--config") {
				env = append(env, "DASHSCOPE_HTTP_BASE_URL=")
			}
			said := p.run(tc.want, env, strings.Fields(tc.args)...)
			assert.Contains(t, said, tc.says)
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		t.Parallel()
		worker := p.start([]string{key, "DASHSCOPE_HTTP_BASE_URL=http://127.0.0.1:1/api/v1", "DANQING_DATA_DIR=" + t.TempDir()}, "worker")
		p.waitOutput(worker, `(dashscope unavailable)`)
		p.stop(worker)
	})
	t.Cleanup(func() { assert.Empty(t, p.leaks()) })
}

// The password of the embedded queue is only in one file, which is readable by its owner
// only.
func TestUpPasswordDoesNotLeak(t *testing.T) {
	t.Parallel()
	u := startUp(t, t.TempDir())
	where, err := redis.ParseURL(u.at.RedisURL)
	require.NoError(t, err)
	require.NotEmpty(t, where.Password)
	p := &canaryStack{t: t, dir: u.cmd.Dir, env: u.cmd.Env}
	p.seen, p.secrets = map[string][]byte{}, map[string]string{"queue password": where.Password, "signature of ref_img": newSecret(true)}
	rdb := redis.NewClient(where)
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })

	instance := filepath.Join(u.data, instanceFile)
	info, err := os.Stat(instance)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	p.run(exitDone, nil, "jobs", "pause", "--account", "default", "--simulate")
	p.run(exitDone, nil, "enqueue", "--simulate", "--id", "one", "--prompt", "a cat", "--ref-img", p.refImg())
	p.run(exitDone, nil, "jobs", "show", "--simulate", "one")
	p.addUI(t, "while the job waits", u.at.HTTP)
	p.addRedis(t, "while the job waits", rdb, refImgField)
	p.run(exitDone, nil, "jobs", "resume", "--account", "default", "--simulate")
	p.run(exitDone, nil, "jobs", "wait", "--simulate", "one")
	p.run(exitDone, nil, "jobs", "list", "--simulate", "--json")
	p.addLinks(t, filepath.Join(u.data, "journal.jsonl"))
	p.addUI(t, "in the end", u.at.HTTP)
	assert.False(t, linkSignature.MatchString(p.addRedis(t, "in the end", rdb, refImgField)), "links are gone with the last image")
	for _, file := range []string{"journal.jsonl", "queue"} {
		p.addFiles(t, filepath.Join(u.data, file), []*regexp.Regexp{refImgField, linkField})
	}
	p.addFiles(t, p.dir, []*regexp.Regexp{refImgField}, instanceFile, "journal.jsonl", "queue")
	u.stop(t)
	p.add("log of up", u.log.Bytes())

	wrong := strings.Replace(u.at.RedisURL, where.Password, newSecret(true), 1)
	require.NoError(t, os.WriteFile(instance, fmt.Appendf(nil, `{"redis_url":%q}`, wrong), 0o600))
	p.run(exitDone, nil, "jobs", "list", "--simulate") // from the files: none runs there
	require.NoError(t, os.WriteFile(instance, fmt.Appendf(nil, `{"redis_url":%q}`, "redis://:"+where.Password+"@127.0.0.1:x"), 0o600))
	p.run(exitFailed, nil, "jobs", "list", "--simulate")
	assert.Empty(t, p.leaks())
}
