package metrics

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// RedisHook counts the commands that fail, without those that were canceled, and those of a new
// connection that an old Redis does not know.
func (m *Metrics) RedisHook() redis.Hook { return redisHook{m} }

type redisHook struct{ metrics *Metrics }

// DialHook changes nothing: a command fails where no connection can be opened.
func (redisHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h redisHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.count(cmd, err)
		return err
	}
}

func (h redisHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.count(cmds[0], err)
		return err
	}
}

// count counts the error of a command, or of a pipeline by its first one. Only the driver sends
// CLIENT: it does without if Redis is older than 7.2.
func (h redisHook) count(cmd redis.Cmder, err error) {
	answer := redis.Error(nil)
	switch {
	case err == nil, errors.Is(err, redis.Nil), errors.Is(err, context.Canceled), redis.HasErrorPrefix(err, "NOSCRIPT"):
	case errors.As(err, &answer) && cmd.Name() == "client":
	case errors.As(err, &answer):
		h.metrics.redisErrors.WithLabelValues("reply").Inc()
	default:
		h.metrics.redisErrors.WithLabelValues("connection").Inc()
	}
}
