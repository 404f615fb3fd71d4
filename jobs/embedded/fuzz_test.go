package embedded

import (
	"bytes"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
)

// memoryQueue returns a queue for running commands without a client or a file.
func memoryQueue(t *testing.T) *Queue {
	t.Helper()
	q := newQueue()
	require.NoError(t, q.startMiniredis())
	t.Cleanup(q.mini.Close)
	return q
}

// writes derives commands for every type of data from a text.
func writes(text []byte) [][]string {
	verbs := [][]string{{"SET"}, {"RPUSH"}, {"LPUSH"}, {"SADD"}, {"HSET"}, {"ZADD"}, {"XADD"}, {"DEL"}, {"LPOP"}, {"HDEL"}, {"ZREM"}, {"PEXPIRE"}}
	var commands [][]string
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		if len(line) < 2 {
			continue
		}
		verb := verbs[int(line[0])%len(verbs)][0]
		key, words := string(line[1:2]), bytes.Split(line[2:], []byte(" "))
		command := []string{verb, key}
		switch verb {
		case "XADD":
			command = append(command, "*", "field")
		case "PEXPIRE":
			words = [][]byte{[]byte("60000")}
		case "DEL", "LPOP":
			words = nil
		case "HSET", "ZADD":
			command = append(command, "1")
		}
		for _, word := range words {
			command = append(command, string(word))
			if verb == "SET" || verb == "HSET" || verb == "ZADD" || verb == "XADD" {
				break
			}
		}
		commands = append(commands, command)
	}
	return commands
}

// A snapshot restores all data, and the snapshot of the restored data is equal.
func FuzzSnapshot(f *testing.F) {
	f.Add([]byte("0aone\n1blist of words\n3cset set of\n4dvalue\n5emember\n6fstream\n7a\n;b"))
	f.Add([]byte("0a\n1b \xff\x00\r \n2bx\n8b\n4d\n9d1\n;d\n0d"))
	f.Add([]byte("6s1\n6s2\n;s\n5z\n5z-inf\n:z-inf"))
	f.Fuzz(func(t *testing.T, text []byte) {
		first, second := memoryQueue(t), memoryQueue(t)
		var peer server.Peer
		first.moveClock(clockAt(1_767_323_045_000))
		for _, command := range writes(text) {
			first.runWrite(&peer, command)
		}
		log := snapshotOf(first)
		for rest := log; len(rest) > 0; {
			e, behind, err := decodeEntry(rest)
			require.NoError(t, err)
			rest = behind
			second.moveClock(e.clock)
			for _, command := range e.commands {
				reply := second.runWrite(&peer, command)
				require.NotEqual(t, "-", reply[:1], "%q: %s", command, reply)
			}
		}
		require.Equal(t, first.mini.Dump(), second.mini.Dump())
		require.Equal(t, log, snapshotOf(second))
	})
}

// snapshotOf returns the log with a queue's snapshot.
func snapshotOf(q *Queue) (log []byte) {
	q.snapshot(func(e entry) { log = appendEntry(log, e) })
	return log
}
