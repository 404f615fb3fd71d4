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
	// snapshotWords bounds the words of a snapshot's command; ours.
	snapshotWords = 1000
	// idleStep is how often the clock moves if nobody writes; ours.
	idleStep = time.Second
	// retryEvery is how often a log that failed is tried again; ours.
	retryEvery = 5 * time.Second
)

// load reads the log, or starts one.
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
			q.runTop(&peer, command)
		}
	})
	if err != nil {
		return fmt.Errorf("%s: %w", q.log.path, err)
	}
	if torn := len(data) - size; torn > 0 {
		q.logger.Warn("queue log repaired: its end was torn by a crash and held nothing that was acknowledged", "path", q.log.path, "bytes", torn)
	}
	if err := q.log.resume(data, size); err != nil {
		return err
	}
	q.startClock()
	if q.log.wantsRewrite() {
		q.compact()
	}
	q.logger.Info("queue opened", "path", q.log.path, "bytes", size, "entries", entries, "duration", time.Since(began))
	return nil
}

// maintain moves the clock and keeps the log short and writable, until stop.
func (q *Queue) maintain() {
	tick := time.NewTicker(idleStep)
	defer tick.Stop()
	var tried time.Time
	for {
		select {
		case <-q.stop:
			return
		case <-tick.C:
		}
		q.writing.Lock()
		q.advance(time.Now())
		if q.log.wantsRewrite() && time.Since(tried) >= retryEvery {
			tried = time.Now()
			q.compact()
		}
		q.writing.Unlock()
	}
}

// compact rewrites the log as a snapshot; writing is held.
func (q *Queue) compact() {
	failed := q.log.failed()
	switch err := q.log.rewrite(q.snapshot); {
	case err != nil && failed == nil:
		q.logger.Warn("queue log not shortened", "path", q.log.path, "err", err)
	case err == nil && failed != nil:
		q.logger.Info("queue log can be written again", "path", q.log.path)
	}
}

// snapshot gives what is stored as entries that make it anew.
func (q *Queue) snapshot(add func(entry)) {
	for _, key := range q.mini.Keys() {
		commands := q.commandsOf(key)
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

// commandsOf makes a key anew, without its TTL. The accessors' errors say that
// the key is absent or of another type; it is neither.
func (q *Queue) commandsOf(key string) [][]string {
	switch q.mini.Type(key) {
	case "string":
		value, _ := q.mini.Get(key)
		return [][]string{{"SET", key, value}}
	case "list":
		values, _ := q.mini.List(key)
		return chunks("RPUSH", key, 1, values)
	case "set":
		members, _ := q.mini.SMembers(key)
		return chunks("SADD", key, 1, members)
	case "hash":
		var words []string
		fields, _ := q.mini.HKeys(key)
		for _, field := range fields {
			words = append(words, field, q.mini.HGet(key, field))
		}
		return chunks("HSET", key, 2, words)
	case "zset":
		var words []string
		members, _ := q.mini.ZMembers(key)
		scores, _ := q.mini.SortedSet(key)
		for _, member := range members {
			words = append(words, strconv.FormatFloat(scores[member], 'g', -1, 64), member)
		}
		return chunks("ZADD", key, 2, words)
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

// chunks are commands that each append some of words to key, never parting a
// group of so many.
func chunks(cmd, key string, group int, words []string) [][]string {
	var commands [][]string
	var command []string
	bytes := 0
	for part := range slices.Chunk(words, group) {
		if command == nil || len(command) > snapshotWords || bytes > snapshotFrame {
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
