package redishealth_test

import (
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// A Redis with the jobs passes, and nothing is written there.
func TestCheckPasses(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		require.NoError(t, redishealth.Check(t.Context(), rdb))
		found, err := redishealth.Rights(t.Context(), rdb)
		require.NoError(t, err)
		assert.NotContains(t, texts(found), "error")
		assert.Zero(t, rdb.DBSize(t.Context()).Val())
	})
}

// What cannot hold the jobs is named in one sentence, with what to use instead. The texts
// are those of the services' pages and issues; only Redis's own were run.
func TestCheckUnsupported(t *testing.T) {
	t.Parallel()
	ran := []any{int64(2), "danqing:doctor:1", "danqing:doctor:2", int64(0)}
	for name, test := range map[string]struct {
		info         string
		script       any
		text, remedy string
	}{
		"cluster": {
			infoOf("7.2.4", "redis_mode:cluster"), replyError("CROSSSLOT Keys in request don't hash to the same slot"),
			"this is a node of a Redis Cluster", "Sentinel",
		},
		"ElastiCache Serverless": {
			infoOf("7.1.0", "redis_mode:cluster"), replyError("ERR Script attempted to access keys that do not hash to the same slot"),
			"this is a node of a Redis Cluster", "ElastiCache: cluster mode disabled",
		},
		"a database of a cluster": {
			"", replyError("ERR SELECT is not allowed in cluster mode"),
			"this is a Redis Cluster or the proxy of one", "use one primary with replicas",
		},
		"Tair's proxy": {
			infoOf("6.0.1", "redis_mode:standalone"), replyError("ERR bad lua script for redis cluster, all the keys that the script uses should be passed using the KEYS array, and KEYS should not be in expression"),
			"this is a Redis Cluster or the proxy of one", "Aliyun and Tencent Cloud: standard architecture",
		},
		"Tair's proxy, unchecked": {
			infoOf("6.0.1", "redis_mode:standalone"), replyError("ERR 'EVAL' command keys must in same slot"),
			"this is a Redis Cluster or the proxy of one", "standard architecture",
		},
		"a proxy that splits": {infoOf("6.0.1"), []any{int64(1), "danqing:doctor:1"}, "this is a proxy that splits scripts", "standard architecture"},
		"Dragonfly": {
			infoOf("7.4.0", "dragonfly_version:df-v1.30.0"), replyError("ERR Error running script (call to f_1): @user_script:2: script tried accessing undeclared key"),
			"this Dragonfly refuses keys", "--default_lua_flags=allow-undeclared-keys",
		},
		"undeclared keys": {
			infoOf("7.4.0"), replyError("ERR all keys must be passed using the KEYS array"),
			"this server refuses keys that a script has not declared", "use one primary with replicas",
		},
		"no scripts":       {infoOf("7.0.5"), replyError("ERR unknown command 'EVAL', with args beginning with: "), "this server runs no scripts (EVAL)", "use one primary with replicas"},
		"no right to EVAL": {infoOf("7.0.5"), replyError("NOPERM this user has no permissions to run the 'eval' command"), "the user may not call EVAL", redishealth.ACLRule("danqing")},
		"Sentinel": {
			infoOf("7.0.15", "redis_mode:sentinel", "master0:name=pictures,status=ok,address=10.0.0.1:6379,slaves=1,sentinels=3"), replyError("ERR unknown command 'EVAL'"),
			"this is a Redis Sentinel", "redis-sentinel://HOST:PORT,HOST:PORT?master=pictures",
		},
		"a database of a Sentinel": {"", replyError("ERR unknown command 'select', with args beginning with: '1'"), "this is a Redis Sentinel", "?master=NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &fakeRedis{info: test.info, answers: map[string]any{"eval": test.script}}
			err := redishealth.Check(t.Context(), p.client(t))
			var unfit *redishealth.UnsupportedError
			require.ErrorAs(t, err, &unfit)
			assert.Contains(t, unfit.Text, test.text)
			assert.Contains(t, unfit.Remedy, test.remedy)
		})
	}
	t.Run("no right to INFO", func(t *testing.T) {
		t.Parallel()
		p := &fakeRedis{answers: map[string]any{"info": replyError("NOPERM this user has no permissions to run the 'info' command"), "eval": ran}}
		require.ErrorContains(t, redishealth.Check(t.Context(), p.client(t)), "the user may not call INFO")
	})
	t.Run("no answer", func(t *testing.T) {
		t.Parallel()
		p := &fakeRedis{answers: map[string]any{"info": net.ErrClosed, "eval": net.ErrClosed}}
		require.ErrorIs(t, redishealth.Check(t.Context(), p.client(t)), net.ErrClosed)
	})
	for _, text := range []string{
		"LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required.", "WRONGPASS invalid username-password pair or user is disabled.",
		"ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
		"redis: all sentinels specified in configuration are unreachable: ERR unknown command 'sentinel'",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			p := &fakeRedis{answers: map[string]any{"info": replyError(text), "eval": replyError(text)}}
			require.ErrorIs(t, redishealth.Check(t.Context(), p.client(t)), replyError(text))
		})
	}
}

// A redis-server in cluster mode is named as one.
func TestCheckRealCluster(t *testing.T) {
	t.Parallel()
	port, _ := redistest.Listen(t, "--cluster-enabled", "yes")
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, MaxRetries: 50})
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	err := redishealth.Check(t.Context(), rdb)
	require.ErrorContains(t, err, "this is a node of a Redis Cluster")

	other := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port, DB: 1})
	t.Cleanup(func() { assert.NoError(t, other.Close()) })
	require.ErrorContains(t, redishealth.Check(t.Context(), other), "this is a Redis Cluster or the proxy of one")
}

// With one of the rights of the rule left out, what is missing is named.
func TestRights(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client(t)
	rule := strings.Fields(redishealth.ACLRule("danqing"))
	for without, want := range map[string]string{
		"":            "",
		"~asynq:*":    "the user danqing may not use the keys asynq:*",
		"~danqing:*":  "the keys danqing:*",
		"&danqing:*":  "the user danqing may not use the channel danqing:events",
		"&asynq:*":    "the user danqing may not use the channel asynq:cancel",
		"+@all":       "the user may not call EVAL",
		"-publish":    "the user danqing may not use PUBLISH",
		"-wait":       "the user danqing may not use WAIT",
		"-@sortedset": "the user danqing may not use ZADD, ZCARD, ZCOUNT, ZRANGE",
		"-multi":      "the user danqing may not use MULTI",
		"-exec":       "the user danqing may not use EXEC",
		"-eval":       "the user may not call EVAL",
		"-info":       "the user may not call INFO",
	} {
		args := []any{}
		for _, word := range rule {
			if word != without && word != ">PASSWORD" {
				args = append(args, word)
			}
		}
		if args = append(args, "nopass"); strings.HasPrefix(without, "-") {
			args = append(args, without)
		}
		require.NoError(t, admin.Do(t.Context(), args...).Err())
		rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: server.Socket, Username: "danqing", Password: "any"})
		var text string
		err := redishealth.Check(t.Context(), rdb)
		if err != nil {
			text = err.Error()
		} else {
			found, err := redishealth.Rights(t.Context(), rdb)
			require.NoError(t, err)
			if text = texts(found); text != "" {
				assert.Contains(t, text, "give it the rights that Danqing needs: "+redishealth.ACLRule("danqing"))
			}
		}
		assert.Contains(t, text, want, without)
		assert.Equal(t, want == "", text == "", text)
		assert.NoError(t, rdb.Close())
	}
	assert.Zero(t, admin.DBSize(t.Context()).Val())
	found, err := redishealth.Rights(t.Context(), admin)
	require.NoError(t, err)
	assert.Contains(t, texts(found), "note: the user is default, which may do everything")
}
