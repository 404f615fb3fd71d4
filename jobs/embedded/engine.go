package embedded

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis names scripts so
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// kind is what the front must know of a command.
type kind int

const (
	// kindRead changes nothing.
	kindRead kind = iota
	// kindSession concerns the connection; it changes nothing that is stored.
	kindSession
	// kindData changes what is stored, in a way that the same command repeats.
	kindData
	// kindScript runs commands of kindData.
	kindScript
	// kindRefused is what the log could not give back, or miniredis does not know.
	kindRefused
)

// kindOf sorts a command; a write that is not named here is refused.
func (q *Queue) kindOf(cmd string, args []string) kind {
	switch cmd {
	case "EVAL", "EVALSHA", "EXEC", "SCRIPT":
		return kindScript
	case "DEL", "EXPIRE", "EXPIREAT", "PERSIST", "PEXPIRE", "PEXPIREAT", "RENAME", "RENAMENX", "UNLINK",
		"APPEND", "BITOP", "DECR", "DECRBY", "DELEX", "GETDEL", "GETEX", "GETSET", "INCR", "INCRBY", "INCRBYFLOAT",
		"MSET", "MSETNX", "PSETEX", "SET", "SETBIT", "SETEX", "SETNX", "SETRANGE",
		"HDEL", "HINCRBY", "HINCRBYFLOAT", "HMSET", "HSET", "HSETNX",
		"LINSERT", "LMOVE", "LMPOP", "LPOP", "LPUSH", "LPUSHX", "LREM", "LSET", "LTRIM", "RPOP", "RPOPLPUSH", "RPUSH", "RPUSHX",
		"SADD", "SDIFFSTORE", "SINTERSTORE", "SMOVE", "SREM", "SUNIONSTORE",
		"GEOADD", "ZADD", "ZINCRBY", "ZINTERSTORE", "ZMPOP", "ZPOPMAX", "ZPOPMIN", "ZREM",
		"ZREMRANGEBYLEX", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZUNIONSTORE",
		"XADD", "XDEL", "XTRIM", "FLUSHALL", "FLUSHDB":
		return kindData
	case "AUTH", "CLIENT", "CLUSTER", "COMMAND", "DISCARD", "ECHO", "HELLO", "INFO", "MEMORY", "MULTI", "OBJECT", "PING",
		"PSUBSCRIBE", "PUBLISH", "PUBSUB", "PUNSUBSCRIBE", "QUIT", "SUBSCRIBE", "TIME", "UNSUBSCRIBE", "UNWATCH", "WAIT", "WATCH", "XINFO":
		return kindSession
	case "SELECT":
		if len(args) == 2 && args[1] != "0" {
			return kindRefused
		}
		return kindSession
	case "XREAD":
		if slices.ContainsFunc(args, func(arg string) bool { return strings.EqualFold(arg, "BLOCK") }) {
			return kindRefused
		}
		return kindRead
	}
	if q.inner.IsReadOnlyCommand(cmd) {
		return kindRead
	}
	return kindRefused
}

// unchanged reports whether a reply says that the command found nothing to do:
// the polls of an idle worker need not be logged.
func unchanged(cmd, reply string) bool {
	switch cmd {
	case "DEL", "EXPIRE", "HDEL", "HSETNX", "LREM", "PERSIST", "PEXPIRE", "SADD", "SETNX", "SREM", "UNLINK",
		"ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE":
		return reply == ":0\r\n"
	case "LMOVE", "LPOP", "RPOP", "RPOPLPUSH":
		return reply == "$-1\r\n" || reply == "_\r\n"
	}
	return false
}

// engine is the execution of writes, one at a time; Queue.writing guards it.
type engine struct {
	// top is the peer of the dispatch under way, as against those of the
	// commands that a script calls.
	top *server.Peer
	// effects are the writes of the script under way, if noting.
	noting  bool
	effects [][]string
	// scripts are the texts of those that clients brought, by SHA-1.
	scripts map[string]string
	// clock is up to when TTLs have run; it is miniredis's time. It was there at
	// movedAt, by the machine's clock, and moves by step at least.
	clock, movedAt time.Time
	step           time.Duration
}

const (
	// clockStep is the least that the clock moves; ours.
	clockStep = 100 * time.Millisecond
	// clockShare is how many times longer than its last move the clock rests, so
	// that it costs at most 2 % of a core. A move takes 1.8 ms at 10,000 keys.
	clockShare = 50
)

// startClock sets the clock, after a time in which nothing ran. If it was later
// already, because the machine's was set back, it goes on from there.
func (q *Queue) startClock() {
	q.movedAt, q.step = time.Now(), clockStep
	q.moveClock(q.movedAt.Round(0).Truncate(time.Millisecond))
}

// advance moves the clock to now, if it is time.
func (q *Queue) advance(now time.Time) {
	elapsed := now.Sub(q.movedAt).Truncate(time.Millisecond) // monotonic
	if elapsed < q.step {
		return
	}
	q.movedAt = q.movedAt.Add(elapsed)
	began := time.Now()
	q.moveClock(q.clock.Add(elapsed))
	q.step = max(clockStep, clockShare*time.Since(began))
}

// moveClock lets the TTLs run up to at, in whole milliseconds, which is what the
// log can tell.
func (q *Queue) moveClock(at time.Time) {
	if !at.After(q.clock) {
		return
	}
	if !q.clock.IsZero() {
		q.mini.FastForward(at.Sub(q.clock))
	}
	q.clock = at
	q.mini.SetTime(at)
}

// run executes a command on behalf of a connection and returns the raw reply.
func (q *Queue) run(c *server.Peer, args []string) string {
	p, buf := scratch(c)
	return q.runAs(p, buf, c, args)
}

func (q *Queue) runAs(p *server.Peer, buf *bytes.Buffer, c *server.Peer, args []string) string {
	q.inner.Dispatch(p, args)
	p.Flush()
	c.Ctx = p.Ctx
	return buf.String()
}

// scratch is a peer in c's state whose replies can be read.
func scratch(c *server.Peer) (*server.Peer, *bytes.Buffer) {
	var buf bytes.Buffer
	p := server.NewPeer(bufio.NewWriterSize(&buf, 64))
	p.Ctx, p.Resp3 = c.Ctx, c.Resp3
	return p, &buf
}

// runTop is run for those who hold writing.
func (q *Queue) runTop(c *server.Peer, args []string) string {
	p, buf := scratch(c)
	q.top = p
	return q.runAs(p, buf, c, args)
}

// intercept sees every command before miniredis does, those that scripts call
// too.
func (q *Queue) intercept(c *server.Peer, cmd string, args ...string) bool {
	command := append([]string{cmd}, args...)
	switch q.kindOf(cmd, command) {
	case kindRefused:
		if !q.inner.IsRegisteredCommand(cmd) {
			return false // miniredis says so
		}
		c.WriteError("ERR the embedded queue does not support " + cmd + " here: use a Redis")
		return true
	case kindData:
	default:
		return false
	}
	if c == q.top {
		return false
	}
	text := q.runTop(c, command)
	if q.noting && !unchanged(cmd, text) {
		q.effects = append(q.effects, command)
	}
	c.WriteRaw(text)
	return true
}

// write executes a write and logs what it changed. The reply may be given once
// the log is synced up to the returned number.
func (q *Queue) write(s *session, cmd string, args []string) (reply, uint64) {
	q.writing.Lock()
	defer q.writing.Unlock()
	if err := q.log.failed(); err != nil && (!s.multi || cmd == "EXEC") {
		return reply{text: q.refuse(s, cmd, args, err)}, 0
	}
	q.advance(time.Now())
	q.noting, q.effects = cmd == "EVAL" || cmd == "EVALSHA", nil
	text := q.runTop(s.peer, args)
	q.keepScript(cmd, args)
	switch {
	case text == "+QUEUED\r\n":
		s.queued = append(s.queued, args)
	case cmd == "EXEC" && strings.HasPrefix(text, "*") && text != "*-1\r\n":
		q.effects = q.transaction(s.peer, s.queued)
	case q.kindOf(cmd, args) == kindData && !unchanged(cmd, text):
		q.effects = [][]string{args}
	}
	if len(q.effects) > 0 {
		q.log.append(entry{q.clock, q.effects})
	}
	return reply{text, true}, q.log.last()
}

// refuse answers what may be a write while the log cannot be written. A script
// that only reads is run.
func (q *Queue) refuse(s *session, cmd string, args []string, err error) string {
	switch {
	case s.multi:
		q.run(s.peer, []string{"DISCARD"})
	case cmd == "EVAL" || cmd == "EVALSHA":
		text := q.run(s.peer, append([]string{cmd + "_RO"}, args[1:]...))
		q.keepScript(cmd, args)
		if !strings.Contains(text, "Write commands are not allowed") { // miniredis's words
			return text
		}
	}
	return misconf(err)
}

// keepScript remembers a script's text.
func (q *Queue) keepScript(cmd string, args []string) {
	var text string
	switch {
	case cmd == "EVAL" && len(args) > 1:
		text = args[1]
	case cmd == "SCRIPT" && len(args) == 3 && strings.EqualFold(args[1], "LOAD"):
		text = args[2]
	default:
		return
	}
	sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
	q.scripts[hex.EncodeToString(sum[:])] = text
}

// transaction is what EXEC has executed, as the log can repeat it: with the
// texts of scripts, without those that were not known.
func (q *Queue) transaction(c *server.Peer, queued [][]string) [][]string {
	var done [][]string
	for _, args := range queued {
		switch strings.ToUpper(args[0]) {
		case "SCRIPT":
			continue
		case "EVALSHA":
			if q.run(c, []string{"SCRIPT", "EXISTS", args[1]}) != "*1\r\n:1\r\n" {
				continue
			}
			args = append([]string{"EVAL", q.scripts[args[1]]}, args[2:]...)
		}
		done = append(done, args)
	}
	return done
}

// misconf is the reply to a write while the log cannot be written; Redis's word
// for the same.
func misconf(err error) string {
	return "-MISCONF the embedded queue cannot write its log, and takes no writes until it can: " +
		strings.Join(strings.Fields(err.Error()), " ") + "\r\n"
}
