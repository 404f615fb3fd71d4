package redishealth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// UnsupportedError means that a server cannot hold the jobs, or not for this user.
type UnsupportedError struct {
	// Text is the reason in one sentence, and Remedy what to use instead.
	Text, Remedy string
	// Err is the server's own answer, nil if it ran the scripts and answered wrongly.
	Err error
}

func (e *UnsupportedError) Error() string { return e.Text }
func (e *UnsupportedError) Unwrap() error { return e.Err }

// instead is what to use in place of a cluster.
const instead = "use one primary with replicas: Redis or Valkey with or without Sentinel, or a managed Redis that is no cluster (Aliyun and Tencent Cloud: standard architecture; ElastiCache: cluster mode disabled)"

// dragonflyFlag lets Dragonfly run scripts whose keys are not all declared.
const dragonflyFlag = "start it with --default_lua_flags=allow-undeclared-keys"

// probeScript reads two keys of different slots, and one that is not declared, as the
// scripts of Danqing and of asynq do. It writes nothing.
const probeScript = `
local found = redis.call('EXISTS', KEYS[1]) + redis.call('EXISTS', KEYS[2]) + redis.call('EXISTS', ARGV[1])
return {#KEYS, KEYS[1], KEYS[2], found}
`

// Check fails with an [*UnsupportedError] if the server is none that can hold the jobs: a
// cluster, a proxy before one, a Sentinel, or one that refuses scripts. It costs one round
// trip and writes nothing. Without an answer it fails with the client's error.
func Check(ctx context.Context, rdb redis.UniversalClient) error {
	keys := []string{rediskey.DoctorProbe + ":1", rediskey.DoctorProbe + ":2"}
	pipe := rdb.Pipeline()
	reported := pipe.Info(ctx)
	script := pipe.Eval(ctx, probeScript, keys, rediskey.DoctorProbe+":3")
	_, err := pipe.Exec(ctx)
	if err != nil && !isReply(err) {
		return err
	}
	if script.Val() != nil || script.Err() != nil { // otherwise there is no connection
		err = script.Err()
	}
	if err != nil && strings.HasPrefix(err.Error(), "redis: all sentinels") { // their answer, not its
		return err
	}
	server := parseInfo(reported.Val())
	noSelect := err != nil && strings.Contains(strings.ToLower(err.Error()), "unknown command 'select'")
	switch mode := server["redis_mode"]; {
	case mode == "sentinel", noSelect: // no other server lacks SELECT
		return &UnsupportedError{
			Text:   "this is a Redis Sentinel, which holds no jobs",
			Remedy: "set REDIS_URL to redis-sentinel://HOST:PORT,HOST:PORT?master=" + server.sentinelMaster() + ", with the addresses of the Sentinels",
		}
	case mode == "cluster":
		return &UnsupportedError{"this is a node of a Redis Cluster, which runs no script on keys of several slots", instead, err}
	}
	if err != nil {
		return explainScript(server, err)
	}
	if got := fmt.Sprint(script.Val()); got != fmt.Sprint([]any{len(keys), keys[0], keys[1], 0}) {
		return &UnsupportedError{"this is a proxy that splits scripts, so that a job could be changed by halves: it answered " + got, instead, nil}
	}
	if err := reported.Err(); err != nil {
		return explainDenied(err, "INFO")
	}
	return nil
}

// sentinelMaster returns the name of the first primary that a Sentinel knows.
func (i info) sentinelMaster() string {
	// master0:name=mymaster,status=ok,address=10.0.0.1:6379,slaves=1,sentinels=3
	for field := range strings.SplitSeq(i["master0"], ",") {
		if name, ok := strings.CutPrefix(field, "name="); ok {
			return name
		}
	}
	return "NAME"
}

// explainScript returns why a server refused the probe's script. The texts are those of
// Redis, of the proxies of Tair (help.aliyun.com, limits on commands of cluster instances)
// and of Dragonfly (issue dragonfly#272).
func explainScript(server info, err error) error {
	text := strings.ToLower(err.Error())
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(text, part) })
	}
	switch {
	case has("wrongpass", "noauth", "without any password configured", "loading"): // the server, not the script
		return err
	case has("noperm", "acl failure", "can't run this command", "can't access"):
		return explainDenied(err, "EVAL")
	case server["dragonfly_version"] != "", has("undeclared key"):
		return &UnsupportedError{"this Dragonfly refuses keys that a script has not declared: " + err.Error(), dragonflyFlag, err}
	case has("crossslot", "moved", "same slot", "redis cluster", "cluster mode", "non local key"):
		return &UnsupportedError{"this is a Redis Cluster or the proxy of one, which runs no script on keys of several slots: " + err.Error(), instead, err}
	case has("unknown command", "not support", "unsupported", "not allowed"):
		return &UnsupportedError{"this server runs no scripts (EVAL): " + err.Error(), instead, err}
	case has("keys array", "bad lua script"):
		return &UnsupportedError{"this server refuses keys that a script has not declared: " + err.Error(), instead, err}
	}
	return err
}
