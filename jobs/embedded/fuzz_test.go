package embedded

import (
	"bytes"
	"testing"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/stretchr/testify/require"
)

// memory is a queue whose commands are run without a client or a file.
func memory(t *testing.T) *Queue {
	t.Helper()
	q := newQueue()
	require.NoError(t, q.startInner())
	t.Cleanup(q.mini.Close)
	return q
}

// writes are commands of every type that a snapshot must make anew, out of a text.
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

// Whatever is stored, its snapshot makes it anew, and so does the snapshot's own.
func FuzzSnapshot(f *testing.F) {
	f.Add([]byte("0aone\n1blist of words\n3cset set of\n4dvalue\n5emember\n6fstream\n7a\n;b"))
	f.Add([]byte("0a\n1b \xff\x00\r \n2bx\n8b\n4d\n9d1\n;d\n0d"))
	f.Add([]byte("6s1\n6s2\n;s\n5z\n5z-inf\n:z-inf"))
	f.Fuzz(func(t *testing.T, text []byte) {
		first, second := memory(t), memory(t)
		var peer server.Peer
		first.moveClock(clockAt(1_767_323_045_000))
		for _, command := range writes(text) {
			first.runTop(&peer, command)
		}
		log := snapshotOf(first)
		for rest := log; len(rest) > 0; {
			e, behind, err := cutEntry(rest)
			require.NoError(t, err)
			rest = behind
			second.moveClock(e.clock)
			for _, command := range e.commands {
				reply := second.runTop(&peer, command)
				require.NotEqual(t, "-", reply[:1], "%q: %s", command, reply)
			}
		}
		require.Equal(t, first.mini.Dump(), second.mini.Dump())
		require.Equal(t, log, snapshotOf(second))
	})
}

// snapshotOf is a queue's snapshot as it is written.
func snapshotOf(q *Queue) (log []byte) {
	q.snapshot(func(e entry) { log = appendEntry(log, e) })
	return log
}
