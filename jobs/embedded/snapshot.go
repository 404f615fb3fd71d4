package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

const (
	// maxSnapshotWords limits the words of a command in a snapshot. The value is our
	// choice.
	maxSnapshotWords = 1000
	// idleClockStep is how often the clock moves without writes. The value is our choice.
	idleClockStep = time.Second
	// logRetryInterval is how often a failed log is retried. The value is our choice.
	logRetryInterval = 5 * time.Second
)

// load reads the log, or creates one.
func (q *Queue) load() error {
	began := time.Now()
	data, err := os.ReadFile(q.log.path)
	if errors.Is(err, fs.ErrNotExist) {
		q.startClock()
		return q.log.rewrite(q.snapshot)
	}
	if err != nil {
		return err
	}
	var peer server.Peer
	var entries int
	size, err := readLog(data, func(e entry) {
		entries++
		q.moveClock(e.clock)
		for _, command := range e.commands {
			q.runWrite(&peer, command)
		}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", q.log.path, err)
	}
	if torn := len(data) - size; torn > 0 {
		q.logger.Warn("queue log truncated: its end was torn by a crash and was not acknowledged", "path", q.log.path, "bytes", torn)
	}
	if err := q.log.openForAppend(data, size); err != nil {
		return err
	}
	q.startClock()
	if q.log.needsRewrite() {
		q.compact()
	}
	q.logger.Info("queue opened", "path", q.log.path, "bytes", size, "entries", entries, "duration", time.Since(began))
	return nil
}

// maintain moves the clock, compacts the log and retries a failed one, until stop.
func (q *Queue) maintain() {
	tick := time.NewTicker(idleClockStep)
	defer tick.Stop()
	var lastTry time.Time
	for {
		select {
		case <-q.stop:
			return
		case <-tick.C:
		}
		q.writeMu.Lock()
		q.advance(time.Now())
		if q.log.needsRewrite() && time.Since(lastTry) >= logRetryInterval {
			lastTry = time.Now()
			q.compact()
		}
		q.writeMu.Unlock()
	}
}

// compact rewrites the log as a snapshot. The caller holds writeMu.
func (q *Queue) compact() {
	failed := q.log.failed()
	switch err := q.log.rewrite(q.snapshot); {
	case err != nil && failed == nil:
		q.logger.Warn("queue log not compacted", "path", q.log.path, "err", err)
	case err == nil && failed != nil:
		q.logger.Info("queue log recovered", "path", q.log.path)
	}
}

// snapshot passes entries to add that restore the whole content.
func (q *Queue) snapshot(add func(entry)) {
	for _, key := range q.mini.Keys() {
		commands := q.commandsFor(key)
		if ttl := q.mini.TTL(key); ttl > 0 {
			ms := (ttl + time.Millisecond - 1).Milliseconds()
			commands = append(commands, []string{"PEXPIRE", key, strconv.FormatInt(ms, 10)})
		}
		for _, command := range commands {
			add(entry{q.clock, [][]string{command}})
		}
	}
	add(entry{clock: q.clock})
}

// commandsFor returns commands that restore a key without its TTL. The accessors fail
// only if the key is missing or of another type, which is not the case.
func (q *Queue) commandsFor(key string) [][]string {
	switch q.mini.Type(key) {
	case "string":
		value, _ := q.mini.Get(key)
		return [][]string{{"SET", key, value}}
	case "list":
		values, _ := q.mini.List(key)
		return chunkCommands("RPUSH", key, 1, values)
	case "set":
		members, _ := q.mini.SMembers(key)
		return chunkCommands("SADD", key, 1, members)
	case "hash":
		var words []string
		fields, _ := q.mini.HKeys(key)
		for _, field := range fields {
			words = append(words, field, q.mini.HGet(key, field))
		}
		return chunkCommands("HSET", key, 2, words)
	case "zset":
		var words []string
		members, _ := q.mini.ZMembers(key)
		scores, _ := q.mini.SortedSet(key)
		for _, member := range members {
			words = append(words, strconv.FormatFloat(scores[member], 'g', -1, 64), member)
		}
		return chunkCommands("ZADD", key, 2, words)
	case "stream":
		var commands [][]string
		entries, _ := q.mini.Stream(key)
		for _, e := range entries {
			commands = append(commands, append([]string{"XADD", key, e.ID}, e.Values...))
		}
		return commands
	}
	return nil
}

// chunkCommands returns commands that each append some of words to key, without splitting
// groups of group words.
func chunkCommands(cmd, key string, group int, words []string) [][]string {
	var commands [][]string
	var command []string
	bytes := 0
	for part := range slices.Chunk(words, group) {
		if command == nil || len(command) > maxSnapshotWords || bytes > snapshotFrameBytes {
			commands, bytes = append(commands, nil), 0
			command = []string{cmd, key}
		}
		for _, word := range part {
			command = append(command, word)
			bytes += len(word)
		}
		commands[len(commands)-1] = command
	}
	return commands
}
