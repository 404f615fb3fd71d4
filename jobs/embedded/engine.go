package embedded

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis identifies scripts by SHA-1
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// kind classifies commands for the log.
type kind int

const (
	// kindRead reads data.
	kindRead kind = iota
	// kindSession is about the connection and changes no data.
	kindSession
	// kindData changes data, deterministically, so that it can be replayed.
	kindData
	// kindScript runs commands of kindData.
	kindScript
	// kindRefused cannot be replayed from the log, or is unknown to miniredis.
	kindRefused
)

// kindOf classifies a command. Writes that are not listed here are refused.
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
	if q.miniServer.IsReadOnlyCommand(cmd) {
		return kindRead
	}
	return kindRefused
}

// isNoOp reports whether a reply means that the command changed nothing. So the polls of
// an idle worker are not logged.
func isNoOp(cmd, reply string) bool {
	switch cmd {
	case "DEL", "EXPIRE", "HDEL", "HSETNX", "LREM", "PERSIST", "PEXPIRE", "SADD", "SETNX", "SREM", "UNLINK",
		"ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE":
		return reply == ":0\r\n"
	case "LMOVE", "LPOP", "RPOP", "RPOPLPUSH":
		return reply == "$-1\r\n" || reply == "_\r\n"
	}
	return false
}

// engine is the state for executing writes, one at a time. Queue.writeMu guards it.
type engine struct {
	// dispatching is the peer of the current command. Commands that a script calls have
	// other peers.
	dispatching *server.Peer
	// effects are the writes of the current script, if recording.
	recording bool
	effects   [][]string
	// scripts are the texts of the clients' scripts, by SHA-1.
	scripts map[string]string
	// clock is miniredis's time, for TTLs. It was set at movedAt by the machine's clock,
	// and moves by at least step.
	clock, movedAt time.Time
	step           time.Duration
}

const (
	// clockStep is the smallest step of the clock. The value is our choice.
	clockStep = 100 * time.Millisecond
	// clockShare times the duration of the last move is the time to the next one, so
	// that moves cost at most 2 % of a core. A move takes 1.8 ms at 10,000 keys.
	clockShare = 50
)

// startClock sets the clock at the start. If it is already later, because the machine's
// clock was set back, it continues from there.
func (q *Queue) startClock() {
	q.movedAt, q.step = time.Now(), clockStep
	q.moveClock(q.movedAt.Round(0).Truncate(time.Millisecond))
}

// advance moves the clock to now, if the step has passed.
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

// moveClock sets the clock and expires keys. at is in whole milliseconds, as in the log.
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

// run executes a command for a connection and returns the raw reply.
func (q *Queue) run(c *server.Peer, args []string) string {
	p, buf := bufferedPeer(c)
	return q.runAs(p, buf, c, args)
}

func (q *Queue) runAs(p *server.Peer, buf *bytes.Buffer, c *server.Peer, args []string) string {
	q.miniServer.Dispatch(p, args)
	p.Flush()
	c.Ctx = p.Ctx
	return buf.String()
}

// bufferedPeer returns a peer with c's state whose replies are written to the buffer.
func bufferedPeer(c *server.Peer) (*server.Peer, *bytes.Buffer) {
	var buf bytes.Buffer
	p := server.NewPeer(bufio.NewWriterSize(&buf, 64))
	p.Ctx, p.Resp3 = c.Ctx, c.Resp3
	return p, &buf
}

// runWrite is run for callers that hold writeMu.
func (q *Queue) runWrite(c *server.Peer, args []string) string {
	p, buf := bufferedPeer(c)
	q.dispatching = p
	return q.runAs(p, buf, c, args)
}

// intercept is miniredis's hook before every command, including those in scripts.
func (q *Queue) intercept(c *server.Peer, cmd string, args ...string) bool {
	command := append([]string{cmd}, args...)
	switch q.kindOf(cmd, command) {
	case kindRefused:
		if !q.miniServer.IsRegisteredCommand(cmd) {
			return false // miniredis replies with an error
		}
		c.WriteError("ERR the embedded queue does not support " + cmd + ": use a Redis server")
		return true
	case kindData:
	default:
		return false
	}
	if c == q.dispatching {
		return false
	}
	text := q.runWrite(c, command)
	if q.recording && !isNoOp(cmd, text) {
		q.effects = append(q.effects, command)
	}
	c.WriteRaw(text)
	return true
}

// write executes a write and logs its changes. The reply may be sent when the log is
// synced up to the returned number.
func (q *Queue) write(s *session, cmd string, args []string) (reply, uint64) {
	q.writeMu.Lock()
	defer q.writeMu.Unlock()
	if err := q.log.failed(); err != nil && (!s.multi || cmd == "EXEC") {
		return reply{text: q.refuseWrite(s, cmd, args, err)}, 0
	}
	q.advance(time.Now())
	q.recording, q.effects = cmd == "EVAL" || cmd == "EVALSHA", nil
	text := q.runWrite(s.peer, args)
	q.cacheScript(cmd, args)
	switch {
	case text == "+QUEUED\r\n":
		s.queued = append(s.queued, args)
	case cmd == "EXEC" && strings.HasPrefix(text, "*") && text != "*-1\r\n":
		q.effects = q.executedCommands(s.peer, s.queued)
	case q.kindOf(cmd, args) == kindData && !isNoOp(cmd, text):
		q.effects = [][]string{args}
	}
	if len(q.effects) > 0 {
		q.log.append(entry{q.clock, q.effects})
	}
	return reply{text, true}, q.log.lastEntry()
}

// refuseWrite replies to commands that may write while the log cannot be written. A script
// that only reads is run.
func (q *Queue) refuseWrite(s *session, cmd string, args []string, err error) string {
	switch {
	case s.multi:
		q.run(s.peer, []string{"DISCARD"})
	case cmd == "EVAL" || cmd == "EVALSHA":
		text := q.run(s.peer, append([]string{cmd + "_RO"}, args[1:]...))
		q.cacheScript(cmd, args)
		if !strings.Contains(text, "Write commands are not allowed") { // miniredis's text
			return text
		}
	}
	return misconfReply(err)
}

// cacheScript stores a script's text.
func (q *Queue) cacheScript(cmd string, args []string) {
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

// executedCommands returns the commands that EXEC has executed, in a form that can be
// replayed: with the texts of scripts, and without unknown scripts.
func (q *Queue) executedCommands(c *server.Peer, queued [][]string) [][]string {
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

// misconfReply is the reply to a write while the log cannot be written, with Redis's code
// for the same.
func misconfReply(err error) string {
	return "-MISCONF the embedded queue cannot write its log, and refuses writes until it can: " +
		strings.Join(strings.Fields(err.Error()), " ") + "\r\n"
}
