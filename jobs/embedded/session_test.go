package embedded_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/embedded"
)

// Transactions, pipelines and scripts work over TCP like in Redis, and are restored from
// the log.
func TestTransactionsPipelinesAndScripts(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	q := open(t, embedded.Config{Dir: dir, Listen: "127.0.0.1:0"})
	rdb := overTCP(t, q)

	_, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i := range 2500 {
			pipe.RPush(ctx, "list", i)
			pipe.LLen(ctx, "list")
		}
		return nil
	})
	require.NoError(t, err)
	require.EqualValues(t, 2500, rdb.LLen(ctx, "list").Val())

	// A script with an effect before its error, one that is called by its SHA-1, and one
	// that is loaded in the transaction.
	half := redis.NewScript(`redis.call('SET', KEYS[1], 'done') return redis.call('INCR', KEYS[2])`)
	require.ErrorContains(t, half.Run(ctx, rdb, []string{"half", "list"}).Err(), "WRONGTYPE")
	count := redis.NewScript(`redis.call('SET', KEYS[1], ARGV[1]) return redis.call('INCR', KEYS[2])`)
	require.Equal(t, int64(1), count.Run(ctx, rdb, []string{"last", "count"}, "first").Val())
	_, err = rdb.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(ctx, "last", "before", 0)
		count.EvalSha(ctx, pipe, []string{"last", "count"}, "within")
		pipe.Append(ctx, "last", " after")
		half.Eval(ctx, pipe, []string{"other half", "count"})
		pipe.Get(ctx, "last")
		return nil
	})
	require.NoError(t, err)
	require.ErrorContains(t, rdb.EvalSha(ctx, "ffff", nil).Err(), "NOSCRIPT")

	raced := rdb.Watch(ctx, func(tx *redis.Tx) error {
		require.NoError(t, q.Client().Set(ctx, "watched", "by another", 0).Err())
		_, err := tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error { return pipe.Set(ctx, "watched", "mine", 0).Err() })
		return err
	}, "watched")
	require.ErrorIs(t, raced, redis.TxFailedErr)
	aborted := rdb.Conn()
	for _, wrong := range []string{"SET", "NOSUCH", "SPOP"} {
		require.NoError(t, aborted.Do(ctx, "MULTI").Err())
		require.NoError(t, aborted.Do(ctx, "SET", "aborted", 1).Err())
		require.Error(t, aborted.Do(ctx, wrong).Err())
		require.ErrorContains(t, aborted.Do(ctx, "EXEC").Err(), "EXECABORT", wrong)
	}
	require.NoError(t, aborted.Do(ctx, "MULTI").Err())
	require.NoError(t, aborted.Do(ctx, "SET", "discarded", 1).Err())
	require.NoError(t, aborted.Do(ctx, "DISCARD").Err())
	require.NoError(t, aborted.Close())

	require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: "stream", MaxLen: 1, Values: []string{"n", "1"}}).Err())
	require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: "stream", MaxLen: 1, Values: []string{"n", "2"}}).Err())
	require.NoError(t, rdb.ZAdd(ctx, "zset", redis.Z{Score: 1.0 / 3, Member: "third"}, redis.Z{Score: 1e300, Member: "far"}).Err())

	want := map[string]string{"half": "done", "other half": "done", "last": "within after", "count": "3", "watched": "by another"}
	before := dump(t, rdb)
	for key, value := range want {
		assert.Equal(t, value, before["string "+key], key)
	}
	assert.NotContains(t, before, "string aborted")
	assert.NotContains(t, before, "string discarded")
	require.NoError(t, q.Close())
	q = open(t, embedded.Config{Dir: dir})
	assert.Equal(t, before, dump(t, q.Client()))
	require.NoError(t, q.Close())
}

// Commands that cannot be replayed from the log are refused, also in scripts, and change
// nothing.
func TestRefusedCommands(t *testing.T) {
	t.Parallel()
	q := open(t, embedded.Config{Dir: t.TempDir()})
	ctx, rdb := t.Context(), q.Client()
	require.NoError(t, rdb.SAdd(ctx, "set", "a", "b").Err())
	before := dump(t, rdb)
	for _, command := range []string{
		"SPOP set", "BLPOP list 0", "SELECT 1", "SWAPDB 0 1", "MOVE set 1", "COPY set other DB 1", "XREAD BLOCK 0 STREAMS s $",
		"XGROUP CREATE s g $ MKSTREAM", "PFADD hll x", "HEXPIRE h 9 FIELDS 1 f", "RESTORE k 0 x",
	} {
		words := strings.Fields(command)
		args := make([]any, len(words))
		for i, word := range words {
			args[i] = word
		}
		require.ErrorContains(t, rdb.Do(ctx, args...).Err(), "use a Redis", command)
		err := rdb.Eval(ctx, "return redis.call(unpack(ARGV))", nil, args...).Err()
		require.ErrorContains(t, err, "use a Redis", command)
	}
	require.ErrorContains(t, rdb.Do(ctx, "NOSUCH").Err(), "unknown command")
	assert.Equal(t, before, dump(t, rdb))
	require.NoError(t, q.Close())
}

// A subscriber that reads nothing does not block others, and a message that a script
// publishes reaches the other subscribers.
func TestStuckSubscriber(t *testing.T) {
	t.Parallel()
	q := open(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	ctx := t.Context()
	at, err := url.Parse(q.URL())
	require.NoError(t, err)
	password, _ := at.User.Password()
	stuck, err := new(net.Dialer).DialContext(ctx, "tcp", at.Host)
	require.NoError(t, err)
	_, err = fmt.Fprintf(stuck, "*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n", len(password), password)
	require.NoError(t, err)
	require.NoError(t, stuck.(*net.TCPConn).SetReadBuffer(4096))
	greeting := make([]byte, len("+OK\r\n*3\r\n"))
	_, err = io.ReadFull(stuck, greeting)
	require.NoError(t, err)

	reader := overTCP(t, q).Subscribe(ctx, "c")
	_, err = reader.Receive(ctx)
	require.NoError(t, err)
	rdb := overTCP(t, q)
	message := strings.Repeat("m", 1<<20)
	for range 64 { // far more than a socket's buffers
		require.EqualValues(t, 2, rdb.Eval(ctx, `return redis.call('PUBLISH', 'c', ARGV[1])`, nil, message).Val())
		got, err := reader.ReceiveMessage(ctx)
		require.NoError(t, err)
		require.Len(t, got.Payload, len(message))
	}
	require.NoError(t, reader.Close())
	require.NoError(t, stuck.Close())
	require.NoError(t, rdb.Set(ctx, "k", "v", 0).Err())
	require.NoError(t, q.Close())
}

// A client without the password gets nothing and breaks nothing.
func TestUnauthenticatedClients(t *testing.T) {
	t.Parallel()
	q := open(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	at, err := url.Parse(q.URL())
	require.NoError(t, err)
	for sent, want := range map[string]string{
		"*0\r\n":                             "-ERR Protocol error",
		"*-1\r\n":                            "-ERR Protocol error",
		"*1\r\n$-1\r\n":                      "-ERR Protocol error",
		"*1\r\n$1025\r\n":                    "-ERR Protocol error",
		"*9\r\n":                             "-ERR Protocol error",
		"*2000000\r\n":                       "-ERR Protocol error",
		"*" + strings.Repeat("1", 5000):      "-ERR Protocol error",
		"POST / HTTP/1.1\r\nHost: x\r\n\r\n": "-ERR Protocol error",
		"PING\r\n":                           "-ERR Protocol error",
		"*1\r\n$7\r\nCOMMAND\r\n*0\r\n":      "-NOAUTH",
		"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n*0\r\n":                   "-NOAUTH",
		"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*0\r\n":              "-NOAUTH",
		"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$6\r\nDBSIZE\r\n*0\r\n": "-NOAUTH",
	} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", at.Host)
		require.NoError(t, err)
		_, err = io.WriteString(conn, sent)
		require.NoError(t, err)
		answer, _ := io.ReadAll(conn) // a reset is like EOF
		assert.Contains(t, string(answer), want, "%q", sent)
		require.NoError(t, conn.Close())
	}
	assert.Empty(t, dump(t, q.Client()))
	require.NoError(t, q.Close())
}

// Without the password nobody makes the queue hold much memory or many connections, or
// keeps others out: not with a million empty words, with commands whose answers are not
// read, or with silent connections.
func TestUnauthenticatedClientsAreBounded(t *testing.T) {
	t.Parallel()
	q := open(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	at, err := url.Parse(q.URL())
	require.NoError(t, err)
	dial := func() net.Conn {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", at.Host)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	words := dial()
	_, _ = io.WriteString(words, "*1000000\r\n"+strings.Repeat("$0\r\n\r\n", 1000)) // a reset is right
	answer, _ := io.ReadAll(words)
	assert.NotContains(t, string(answer), "NOAUTH", "it is not read to its end")

	pings := dial()
	_, _ = io.WriteString(pings, strings.Repeat("*1\r\n$4\r\nPING\r\n", 1000))
	answer, _ = io.ReadAll(pings)
	assert.LessOrEqual(t, strings.Count(string(answer), "NOAUTH"), 8)

	first := dial()
	for range 64 {
		dial()
	}
	require.NoError(t, first.SetReadDeadline(time.Now().Add(5*time.Second))) // before its own timeout
	_, err = first.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, overTCP(t, q).Ping(t.Context()).Err())
	require.NoError(t, q.Close())
}

func TestOpenDirErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := open(t, embedded.Config{Dir: dir})
	_, err := embedded.OpenDir(embedded.Config{Dir: dir})
	require.ErrorContains(t, err, "in use by another process: stop that, or use another folder")
	require.NoError(t, q.Close())
	require.NoError(t, open(t, embedded.Config{Dir: dir}).Close())

	_, err = embedded.OpenDir(embedded.Config{})
	require.ErrorContains(t, err, "Dir is empty")
	for _, listen := range []string{"0.0.0.0:0", ":6379", "example.com:1", "127.0.0.1"} {
		_, err = embedded.OpenDir(embedded.Config{Dir: dir, Listen: listen})
		require.ErrorContains(t, err, "use an address such as 127.0.0.1:0", listen)
	}
	path := filepath.Join(dir, "queue.log")
	require.NoError(t, os.WriteFile(path, []byte("something else"), 0o600))
	_, err = embedded.OpenDir(embedded.Config{Dir: dir})
	require.ErrorContains(t, err, path+": corrupt at byte 0")
	require.NoError(t, os.Remove(path))
	require.NoError(t, open(t, embedded.Config{Dir: dir}).Close(), "the lock was given back")
}

// A torn end of the log is truncated and logged, and later writes follow it.
func TestTornLogIsTruncated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	q := open(t, embedded.Config{Dir: dir})
	require.NoError(t, q.Client().Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, q.Close())
	log, err := os.OpenFile(filepath.Join(dir, "queue.log"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = log.WriteString("torn")
	require.NoError(t, err)
	require.NoError(t, log.Close())
	for round, want := range []string{"queue log truncated", ""} {
		var lines bytes.Buffer
		q := open(t, embedded.Config{Dir: dir, Listen: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		assert.Contains(t, lines.String(), want)
		assert.Equal(t, want != "", strings.Contains(lines.String(), "bytes=4"))
		assert.Len(t, dump(t, q.Client()), 1+round)
		require.NoError(t, q.Client().Set(t.Context(), fmt.Sprint(round), "v", 0).Err())
		at, err := url.Parse(q.URL())
		require.NoError(t, err)
		password, _ := at.User.Password()
		require.NoError(t, q.Close())
		assert.NotContains(t, lines.String(), password)
	}
}

// sleep lets the time of a synctest bubble pass.
func sleep(d time.Duration) { <-time.After(d) }

// The log does not grow with data that was deleted again.
func TestLogIsCompacted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	big := strings.Repeat("x", 1<<20)
	synctest.Test(t, func(t *testing.T) {
		q := open(t, embedded.Config{Dir: dir})
		for range 30 {
			require.NoError(t, q.Client().Set(t.Context(), "k", big, time.Hour).Err())
			sleep(3 * time.Second)
		}
		before := dump(t, q.Client())
		require.NoError(t, q.Close())
		info, err := os.Stat(filepath.Join(dir, "queue.log"))
		require.NoError(t, err)
		assert.Less(t, info.Size(), int64(10<<20))
		q = open(t, embedded.Config{Dir: dir})
		assert.Equal(t, before, dump(t, q.Client()))
		assert.InDelta(t, time.Hour.Seconds(), q.Client().TTL(t.Context(), "k").Val().Seconds(), 10)
		require.NoError(t, q.Close())
	})
}

// A key expires at most one step too early. Its TTL survives a restart, and includes the
// time while the queue was closed.
func TestTTL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		q := open(t, embedded.Config{Dir: dir})
		ctx := t.Context()
		left := func() time.Duration {
			began := time.Now()
			for q.Client().Exists(ctx, "lease").Val() == 1 {
				sleep(10 * time.Millisecond)
			}
			return time.Since(began)
		}
		for range 3 {
			require.NoError(t, q.Client().Set(ctx, "lease", "holder", 15*time.Second).Err())
			assert.InDelta(t, 15, left().Seconds(), 1.2)
			sleep(70 * time.Millisecond)
		}
		require.NoError(t, q.Client().Set(ctx, "lease", "holder", time.Minute).Err())
		require.NoError(t, q.Client().Set(ctx, "absolute", "v", 0).Err())
		require.NoError(t, q.Client().ExpireAt(ctx, "absolute", time.Now().Add(time.Minute)).Err())
		client := jobs.NewClient(q.Client())
		rec, err := client.Enqueue(ctx, request("job"))
		require.NoError(t, err)
		ended := jobs.Record{Job: *rec}
		ended.State = jobs.StateFailed
		require.NoError(t, jobs.NewStore(q.Client()).Update(ctx, &jobs.Record{Job: *rec}, &ended))
		sleep(20 * time.Second)
		require.NoError(t, q.Close())

		sleep(10 * time.Second)
		q = open(t, embedded.Config{Dir: dir})
		assert.InDelta(t, 30, q.Client().TTL(ctx, "lease").Val().Seconds(), 1.2)
		assert.InDelta(t, 30, q.Client().TTL(ctx, "absolute").Val().Seconds(), 1.2)
		assert.InDelta(t, 30, left().Seconds(), 1.2)
		require.NoError(t, q.Close())

		sleep(jobs.RecordLifetime - 2*time.Minute)
		q = open(t, embedded.Config{Dir: dir})
		_, err = jobs.NewClient(q.Client()).Get(ctx, "job")
		require.NoError(t, err)
		sleep(2 * time.Minute)
		_, err = jobs.NewClient(q.Client()).Get(ctx, "job")
		require.ErrorIs(t, err, jobs.ErrNotFound)
		require.NoError(t, q.Close())
	})
}

// A snapshot contains every type, of any size.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	q := open(t, embedded.Config{Dir: dir})
	big := strings.Repeat("x", 700<<10)
	_, err := q.Client().Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i := range 2501 {
			pipe.RPush(ctx, "list", i)
			pipe.SAdd(ctx, "set", i)
			pipe.HSet(ctx, "hash", i, fmt.Sprint(i, "\x00\xff\r\n"))
			pipe.ZAdd(ctx, "zset", redis.Z{Score: float64(i) / 3, Member: i})
		}
		pipe.ZAdd(ctx, "zset", redis.Z{Score: math.Inf(1), Member: "inf"}, redis.Z{Score: math.Inf(-1), Member: "-inf"})
		pipe.RPush(ctx, "big", big, big, big)
		pipe.Set(ctx, "string", "", time.Hour)
		pipe.Expire(ctx, "list", time.Hour)
		pipe.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: "1-1", Values: []string{"a", "1", "b", "2"}})
		pipe.XAdd(ctx, &redis.XAddArgs{Stream: "stream", ID: "*", Values: []string{"a", "3"}})
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, q.Compact())
	require.NoError(t, q.Client().RPush(ctx, "list", "after").Err())
	before := dump(t, q.Client())
	require.Len(t, before, 7)
	require.NoError(t, q.Close())
	q = open(t, embedded.Config{Dir: dir})
	assert.Equal(t, before, dump(t, q.Client()))
	for _, key := range []string{"string", "list"} {
		assert.InDelta(t, time.Hour.Seconds(), q.Client().PTTL(ctx, key).Val().Seconds(), 300, key)
	}
	assert.Equal(t, time.Duration(-1), q.Client().TTL(ctx, "big").Val(), "no TTL")
	require.NoError(t, q.Close())
}

// A client that receives nothing is disconnected after a timeout, so that its buffer does
// not grow without limit.
func TestStuckClientTimesOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		q := open(t, embedded.Config{Dir: dir})
		stuck, err := q.Dial()
		require.NoError(t, err)
		_, err = io.WriteString(stuck, "*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n")
		require.NoError(t, err)
		_, err = io.ReadFull(stuck, make([]byte, len("*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")))
		require.NoError(t, err)
		require.EqualValues(t, 1, q.Client().Publish(t.Context(), "c", "m").Val())
		sleep(119 * time.Second)
		require.EqualValues(t, 1, q.Client().Publish(t.Context(), "c", "m").Val())
		sleep(2 * time.Second)
		require.Zero(t, q.Client().Publish(t.Context(), "c", "m").Val())
		_, err = stuck.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, q.Close())
	})
}
