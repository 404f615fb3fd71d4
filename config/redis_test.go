package config

import (
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSentinelURL(t *testing.T) {
	t.Parallel()
	r, err := ParseRedisURL("redis-sentinel://danqing:p%2Fw%40%23@a,b:26380,[::1],[fe80::1]:7/3?master=mymaster&sentinel_username=watch&sentinel_password=s%26w&pool_size=7&read_timeout=4s")
	require.NoError(t, err)
	o := r.Sentinel
	assert.Nil(t, r.Server)
	assert.Equal(t, []string{"a:26379", "b:26380", "[::1]:26379", "[fe80::1]:7"}, o.SentinelAddrs)
	assert.Equal(t, []string{"mymaster", "danqing", "p/w@#", "watch", "s&w"}, []string{o.MasterName, o.Username, o.Password, o.SentinelUsername, o.SentinelPassword})
	assert.Equal(t, 3, o.DB)
	assert.Equal(t, 7, o.PoolSize)
	assert.Equal(t, 4*time.Second, o.ReadTimeout)
	assert.Nil(t, o.TLSConfig)
	assert.Equal(t, `the primary "mymaster" of the Sentinels at a:26379,b:26380,[::1]:26379,[fe80::1]:7`, r.Address)

	// Each server proves its own name.
	r, err = ParseRedisURL("rediss-sentinel://a:1,b:2?master=m")
	require.NoError(t, err)
	require.NotNil(t, r.Sentinel.TLSConfig)
	assert.Empty(t, r.Sentinel.TLSConfig.ServerName)
	assert.Empty(t, r.Sentinel.Password+r.Sentinel.Username+r.Sentinel.SentinelPassword)

	for text, problem := range map[string]string{
		"redis-sentinel://a:1,b:2":                       "lacks ?master=NAME",
		"redis-sentinel://a:1/mymaster/0?master=m":       "must be redis://",
		"redis-sentinel://:p/hush@a:1?master=m":          "must be redis://",
		"redis-sentinel://:p?hush@a:1?master=m":          "must be redis://",
		"redis-sentinel://:hush@a:1,?master=m":           "must be redis://",
		"redis-sentinel://:hush@a:x?master=m":            "must be redis://",
		"redis-sentinel://:hush@?master=m":               "must be redis://",
		"redis-sentinel://:hush%zz@a?master=m":           "must be redis://",
		"redis-sentinel://a?master=m&password=hush":      "must be redis://",
		"redis-sentinel://a?master=m&replica_only=true":  "must be redis://",
		"redis-sentinel://a?master=m&route_randomly=1":   "must be redis://",
		"redis-sentinel://a?master=m&hush=1":             "must be redis://",
		"redis-sentinel://a?master=m;hush=1":             "must be redis://",
		"redis+sentinel://:hush@a:1,b:2/m":               "redis-sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT[/DB]?master=NAME",
		"redis-sentinel://:hush@a?master=m&pool_size=xx": "must be redis://",
	} {
		_, err := ParseRedisURL(text)
		require.ErrorContains(t, err, problem, text)
		assert.NotContains(t, err.Error(), "hush")
	}
}

// Certificates are settings of a Redis with TLS, and each mistake names its variable.
func TestRedisCertificates(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, tc := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"REDIS_URL": "redis://a", "DANQING_REDIS_CA": empty}, "DANQING_REDIS_CA is set, but REDIS_URL has no TLS: write rediss://"},
		{map[string]string{"REDIS_URL": "redis-sentinel://a?master=m", "DANQING_REDIS_KEY": empty}, "DANQING_REDIS_KEY is set, but REDIS_URL has no TLS: write rediss://"},
		{map[string]string{"REDIS_URL": "rediss://a", "DANQING_REDIS_CA": "/no/such"}, "DANQING_REDIS_CA open /no/such: no such file"},
		{map[string]string{"REDIS_URL": "rediss-sentinel://a?master=m", "DANQING_REDIS_CA": empty}, "DANQING_REDIS_CA " + empty + " has no certificate: it must be a PEM file"},
		{map[string]string{"REDIS_URL": "rediss://a", "DANQING_REDIS_CERT": empty}, "DANQING_REDIS_CERT and DANQING_REDIS_KEY must both be set"},
		{map[string]string{"REDIS_URL": "rediss://a", "DANQING_REDIS_CERT": empty, "DANQING_REDIS_KEY": empty}, "DANQING_REDIS_CERT tls: "},
	} {
		_, err := load(tc.env)
		require.ErrorContains(t, err, tc.want)
	}
}

// echo is a server that repeats what it reads in an error, like a Redis before 6.0, or
// without any form, like another kind of server.
func echo(tb testing.TB, prefix string) string {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, listener.Close()) })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close() //nolint:errcheck // a test's own
				buffer := make([]byte, 4096)
				for {
					n, err := conn.Read(buffer)
					if err != nil {
						return
					}
					if _, err := io.WriteString(conn, prefix+strings.ReplaceAll(string(buffer[:n]), "\r\n", " ")+"\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	return listener.Addr().String()
}

// checkNoPart fails if a text has five characters of a password in a row.
func checkNoPart(t *testing.T, text, password string) {
	t.Helper()
	for at := 0; at+minSecretPart <= len(password); at++ {
		require.NotContains(t, text, password[at:at+minSecretPart])
	}
}

// No error contains a part of a password: not of a URL that cannot be parsed, nor of a
// server that repeats the greeting.
func FuzzRedisPasswords(f *testing.F) {
	logging.Disable()
	servers := []string{echo(f, "-ERR unknown command, with args beginning with: "), echo(f, "-"), echo(f, ""), echo(f, "+")}
	for _, password := range []string{"h/u/s/h?x@y#z", "hush%2Fhush", "密码密码", "\x00\x01hush\n", "AUTH default", "hush hush:hush", "%zz,hush"} {
		f.Add(password)
	}
	f.Fuzz(func(t *testing.T, password string) {
		if len(password) < minSecretPart {
			return
		}
		for _, form := range []string{"redis://:%s@127.0.0.1:1", "rediss://u:%s@127.0.0.1:1/0", "unix://:%s@/no/such", "redis-sentinel://u:%s@127.0.0.1:1,127.0.0.2?master=m", "redis-sentinel://127.0.0.1:1?master=m&sentinel_password=%s", "redis://u:%s", "%s"} {
			_, err := load(map[string]string{"REDIS_URL": strings.ReplaceAll(form, "%s", password)})
			if err != nil {
				text := strings.NewReplacer(redisForm, "", sentinelForm, "", "lacks ?master=NAME, the name that the Sentinels have for the primary: ", "", "REDIS_URL", "").Replace(err.Error())
				assert.Empty(t, strings.TrimSpace(text), "%q", text)
			}
		}
		escaped := url.QueryEscape(password)
		for _, server := range servers {
			for _, text := range []string{"redis://:" + escaped + "@" + server, "redis-sentinel://" + server + "?master=m&sentinel_password=" + escaped} {
				r, err := ParseRedisURL(text)
				if err != nil {
					continue
				}
				r.FailFast(time.Second)
				rdb := r.Client(1)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				errs := []error{rdb.Ping(ctx).Err(), rdb.Set(ctx, "a", "b", 0).Err()}
				_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "a"); return nil })
				for _, err := range append(errs, err) {
					if err != nil {
						checkNoPart(t, err.Error(), password)
					}
				}
				cancel()
				require.NoError(t, rdb.Close())
			}
		}
	})
}

// A password of words that Redis uses does not hide what Redis says.
func TestRedactorKeepsReplies(t *testing.T) {
	t.Parallel()
	r := newRedactor("password", "ab", "")
	wrong := replyError("WRONGPASS invalid username-password pair or user is disabled.")
	assert.Equal(t, wrong, r.clean(wrong))
	assert.Equal(t, redis.Nil, r.clean(redis.Nil))
	refused := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "password"}}
	assert.Equal(t, error(refused), r.clean(refused))
	err := r.clean(replyError("ERR unknown command 'HELLO', with args beginning with: 'passw"))
	assert.EqualError(t, err, "ERR an answer that repeats a part of the password, and is not shown")
	assert.ErrorAs(t, err, new(redis.Error))
}

type replyError string

func (r replyError) Error() string { return string(r) }
func (replyError) RedisError()     {}
