package config

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// redactor removes passwords from a client's errors. A Redis before 6.0, a proxy or another
// kind of server repeats in its error what it does not understand: the greeting, with the
// password.
type redactor struct{ secrets []string }

var _ redis.Hook = (*redactor)(nil)

// minSecretPart is the length from which on a part of a password is looked for; shorter ones
// occur in every text. A password may be shorter, down to minSecret.
const (
	minSecretPart = 5
	minSecret     = 3
)

func newRedactor(passwords ...string) *redactor {
	r := &redactor{}
	for _, p := range passwords {
		if len(p) < minSecret {
			continue
		}
		quoted := strconv.Quote(p) // as go-redis shows a reply
		r.secrets = append(r.secrets, p, quoted[1:len(quoted)-1], url.QueryEscape(p))
	}
	return r
}

// repeats reports whether a text contains a part of a password.
func (r *redactor) repeats(text string) bool {
	for _, secret := range r.secrets {
		size := min(len(secret), minSecretPart)
		for at := range len(secret) - size + 1 {
			if strings.Contains(text, secret[at:at+size]) {
				return true
			}
		}
	}
	return false
}

// constantReplies are replies of Redis 6 and later that repeat nothing, but have words that
// passwords have.
func constantReplies() []string {
	return []string{
		"WRONGPASS invalid username-password pair or user is disabled.", "NOAUTH Authentication required.",
		"ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
	}
}

// redactedError replaces an error whose text contained a part of a password.
type redactedError struct{ text string }

func (e *redactedError) Error() string { return e.text }

// redactedReplyError is a redactedError that was Redis's reply.
type redactedReplyError struct{ redactedError }

// RedisError implements [redis.Error].
func (*redactedReplyError) RedisError() {}

// clean returns err, or another error if its text contains a part of a password. It keeps
// the code of a reply, such as ERR, and nothing else: a mark in place of the part would say
// where a word of the text is one of the password's.
func (r *redactor) clean(err error) error {
	if err == nil || errors.Is(err, redis.Nil) || errors.As(err, new(net.Error)) {
		return err
	}
	text := err.Error()
	if !r.repeats(text) || slices.Contains(constantReplies(), text) {
		return err
	}
	const hidden = "an answer that repeats a part of the password, and is not shown"
	if reply, ok := errors.AsType[redis.Error](err); ok {
		code, _, _ := strings.Cut(reply.Error(), " ")
		if code != strings.ToUpper(code) || r.repeats(code) {
			code = "ERR"
		}
		return &redactedReplyError{redactedError{code + " " + hidden}}
	}
	return &redactedError{hidden}
}

// DialHook changes nothing: an address is no secret.
func (r *redactor) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook cleans the errors of commands, and those of opening a connection for them.
func (r *redactor) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return r.clean(next(ctx, cmd)) }
}

// ProcessPipelineHook cleans the errors of pipelines.
func (r *redactor) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if err == nil {
			return nil
		}
		for _, cmd := range cmds {
			cmd.SetErr(r.clean(cmd.Err()))
		}
		return r.clean(err)
	}
}
