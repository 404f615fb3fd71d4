package redishealth

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// ACLRule returns the command that creates a user with the rights that Danqing needs: all
// that is not an administrator's, and INFO. CONFIG GET lets doctor see the settings. It
// replaces PASSWORD, and all that the user had.
func ACLRule(user string) string {
	return "ACL SETUSER " + user + " reset on >PASSWORD ~danqing:* ~asynq:* &danqing:* &asynq:* +@all -@admin -@dangerous +info +config|get"
}

// DefaultUser is the name in an [ACLRule] where the user's own is not known.
const DefaultUser = "danqing"

func explainDenied(err error, command string) error {
	what := "call " + command
	if strings.Contains(err.Error(), " key") {
		what = "use the keys danqing:*"
	}
	return &UnsupportedError{"the user may not " + what + ": " + err.Error(), giveRights(DefaultUser), err}
}

func giveRights(user string) string { return "give it the rights that Danqing needs: " + ACLRule(user) }

// probedCommands are the commands that Danqing and asynq call, in scripts too, with
// arguments of which each lies within what they use.
func probedCommands() []string {
	const key, field = rediskey.DoctorProbe, rediskey.DoctorProbe + " field "
	var commands []string
	for arguments, names := range map[string]string{
		key:                       "get mget del exists incr persist ttl type hgetall hkeys hlen hvals llen smembers scard zcard watch",
		field:                     "hget hdel hexists hmget set setnx lpos lpush rpush sadd srem sismember zrem zscore",
		field + "1":               "hset hsetnx hincrby",
		key + " 1":                "expire expireat pexpire",
		key + " 1 value":          "setex lrem zadd",
		key + " 0 1":              "lrange zcount zrange zrangebyscore zrevrange zrevrangebyscore zremrangebyrank zremrangebyscore",
		key + " " + key:           "rpoplpush",
		"":                        "dbsize time ping info",
		"0":                       "scan",
		"0 0":                     "wait",
		"0 0 0":                   "waitaof",
		"text 0":                  "eval evalsha",
		"load text":               "script",
		"usage " + key:            "memory",
		rediskey.Events + " text": "publish",
		rediskey.Events:           "subscribe",
		"asynq:cancel text":       "publish",
		"asynq:cancel":            "subscribe",
		"asynq:queues":            "exists",
	} {
		for name := range strings.FieldsSeq(names) {
			commands = append(commands, strings.TrimSpace(name+" "+arguments))
		}
	}
	slices.Sort(commands)
	return commands
}

// Rights returns what the client's user lacks, as findings, the first of them with all that
// is essential. It fails with Redis's own error. Nothing is written: the commands are sent
// as a transaction, which is discarded.
func Rights(ctx context.Context, rdb redis.UniversalClient) ([]Finding, error) {
	user, err := rdb.Do(ctx, "acl", "whoami").Text()
	if err != nil {
		if !isReply(err) {
			return nil, fmt.Errorf("read the user's rights: %w", err)
		}
		user = DefaultUser // it may not ask, or the server has no users
	}
	var missing []string
	err = rdb.Watch(ctx, func(tx *redis.Tx) error {
		if err := tx.Do(ctx, "multi").Err(); err != nil {
			missing = append(missing, "MULTI")
			return nil //nolint:nilerr // denied: the commands would be run
		}
		commands := probedCommands()
		replies, err := tx.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, command := range append(commands, "discard", "exec") {
				p.Do(ctx, anySlice(strings.Fields(command))...)
			}
			return nil
		})
		if err != nil && !isReply(err) {
			return err
		}
		for _, reply := range replies {
			if what := denied(reply); what != "" && !slices.Contains(missing, what) {
				missing = append(missing, what)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the user's rights: %w", err)
	}
	switch {
	case len(missing) > 0:
		return []Finding{{SeverityError, fmt.Sprintf("the user %s may not use %s", user, strings.Join(missing, ", ")), giveRights(user)}}, nil
	case user == "default":
		return []Finding{{SeverityNote, "the user is default, which may do everything", "for a user with no more rights than Danqing needs: " + ACLRule(DefaultUser)}}, nil
	}
	return nil, nil
}

func anySlice(words []string) []any {
	all := make([]any, len(words))
	for i, word := range words {
		all[i] = word
	}
	return all
}

// denied returns what a reply says that the user may not use, "" if it does not say so.
func denied(reply redis.Cmder) string {
	err := reply.Err()
	if err == nil || !strings.Contains(err.Error(), "NOPERM") { // EXEC answers EXECABORT … NOPERM …
		return ""
	}
	args := reply.Args()
	switch text := err.Error(); {
	case strings.Contains(text, " key"): // "No permissions to access a key"
		family, _, _ := strings.Cut(fmt.Sprint(args[len(args)-1]), ":")
		if family != "asynq" {
			family = "danqing"
		}
		return "the keys " + family + ":*"
	case strings.Contains(text, "channel"):
		return "the channel " + fmt.Sprint(args[1])
	}
	return strings.ToUpper(reply.Name())
}
