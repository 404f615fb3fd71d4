// Package embedded is the Redis in the process that serves when none is
// configured: miniredis.
//
// [Open] keeps everything in memory, for runs whose truth lies elsewhere, and
// lets no TTL run. [OpenDir] puts a front before it that keeps a write log: a
// write is acknowledged only once it is synced, and is there again after a
// crash. Other processes of the machine may reach it by [Queue.URL].
//
// What is different from a Redis, behind that front:
//
//   - Size: some ten thousand waiting jobs. A list push costs 0.9 ms at 100,000
//     (measured), and writes stand still while the log is rewritten.
//   - One database, 0, and no commands that wait (BLPOP and its like), choose at
//     random (SPOP), or write what the log's snapshot does not hold (consumer
//     groups, HyperLogLogs, TTLs of hash fields). They are refused.
//   - Its clock, and with it every TTL, moves in steps of 0.1 s while it is
//     written to, and of 1 s otherwise, longer if it holds very many keys. A key
//     may leave a step too early or too late.
//   - A message to a subscriber may be there before the write it tells of is
//     synced; whoever then reads waits for the sync.
//   - A client that takes in nothing for two minutes is cut off.
package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/gofrs/flock"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Config configures [OpenDir]. Dir is required.
type Config struct {
	// Dir is the queue's own folder, created if need be and readable by this
	// user alone. One process at a time can have it.
	Dir string
	// Listen is the loopback address, such as "127.0.0.1:0" for any free port,
	// at which other processes of this machine reach the queue; "" is none.
	Listen string
	// Logger takes what an operator may want to know; nil discards it.
	Logger *slog.Logger

	// create makes a log file in tests; nil is createFile.
	create func(path string) (logFile, error)
}

// Queue is an embedded Redis with one client.
type Queue struct {
	mini   *miniredis.Miniredis
	client *redis.Client

	// The rest belongs to a queue with a log.
	inner    *server.Server // mini's
	logger   *slog.Logger
	lock     *flock.Flock
	listener net.Listener // nil if only this process is served
	password string
	log      *writeLog

	writing sync.Mutex // held by whoever changes what is stored
	engine

	stop     chan struct{}
	running  sync.WaitGroup
	sessions sessions
}

// Open starts an empty queue that keeps everything in memory. The caller must
// Close it.
func Open() *Queue {
	q := newQueue()
	q.client = newClient(q.mini.Dial)
	return q
}

// OpenDir opens the durable queue in cfg.Dir, as every acknowledged write has
// left it. The caller must Close it.
//
// It fails if another process has the folder, or if the log is damaged before
// its end: the error says what to do. An end that a crash has torn was never
// acknowledged; it is cut off and logged.
func OpenDir(cfg Config) (*Queue, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded queue: Dir is empty: name a folder")
	}
	if err := checkLoopback(cfg.Listen); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.create == nil {
		cfg.create = createFile
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded queue: %w", err)
	}
	lock := flock.New(filepath.Join(cfg.Dir, "lock"), flock.SetPermissions(0o600))
	if ok, err := lock.TryLock(); err != nil {
		return nil, fmt.Errorf("embedded queue: lock %s: %w", cfg.Dir, err)
	} else if !ok {
		return nil, fmt.Errorf("embedded queue: %s is in use by another process: stop that, or use another folder", cfg.Dir)
	}
	q := newQueue()
	q.lock, q.logger, q.password = lock, cfg.Logger, rand.Text()
	q.log = newWriteLog(filepath.Join(cfg.Dir, "queue.log"), cfg.create, cfg.Logger)
	err := q.startInner()
	if err == nil {
		err = q.load()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded queue: %w", err), q.closeParts())
	}
	if cfg.Listen != "" {
		if q.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", cfg.Listen); err != nil {
			return nil, errors.Join(fmt.Errorf("embedded queue: Listen %q: %w", cfg.Listen, err), q.closeParts())
		}
	}
	q.start()
	return q, nil
}

// checkLoopback refuses an address that other machines could reach.
func checkLoopback(listen string) error {
	if listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("embedded queue: Listen %q: %w; write it like 127.0.0.1:0", listen, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("embedded queue: Listen %q: only this machine may reach the queue: write it like 127.0.0.1:0, or run a Redis", listen)
	}
	return nil
}

func newQueue() *Queue {
	return &Queue{
		mini:     miniredis.NewMiniRedis(),
		stop:     make(chan struct{}),
		engine:   engine{scripts: map[string]string{}},
		sessions: sessions{open: map[net.Conn]struct{}{}},
	}
}

// poolSize is above what the lanes of every model and several accounts need at
// once; ours.
const poolSize = 1000

func newClient(dial func() (net.Conn, error)) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "embedded",
		// There is nothing to be notified of, and asking resolves the address.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return dial() },
		// Connections in the process cost next to nothing, and nobody should wait for
		// one: go-redis waits on timers that all its clients share, which ends a test
		// in simulated time.
		PoolSize: poolSize,
	})
}

// startInner starts miniredis behind the front.
func (q *Queue) startInner() error {
	conn, err := q.mini.Dial() // what starts one that has no port
	if err != nil {
		return err
	}
	q.inner = q.mini.Server()
	q.inner.SetPreHook(q.intercept)
	return conn.Close()
}

// start lets clients in.
func (q *Queue) start() {
	q.mini.RequireAuth(q.password)
	q.client = newClient(q.dial)
	q.running.Go(q.maintain)
	if q.listener != nil {
		q.running.Go(q.accept)
	}
}

// Client returns the client that all parts of the process share. Close closes it.
func (q *Queue) Client() redis.UniversalClient { return q.client }

// URL is how other processes of this machine reach the queue until Close,
// redis://:PASSWORD@HOST:PORT/0; "" without Config.Listen. It is a secret: who
// has it can do anything to the queue. The password is a new one each time.
func (q *Queue) URL() string {
	if q.listener == nil {
		return ""
	}
	return "redis://:" + q.password + "@" + q.listener.Addr().String() + "/0"
}

// Close ends the queue. Of one in memory nothing is left.
func (q *Queue) Close() error {
	err := q.client.Close()
	close(q.stop)
	if q.listener != nil {
		err = errors.Join(err, q.listener.Close())
	}
	q.mini.Close() // ends those who wait in it
	q.sessions.close()
	q.running.Wait()
	return errors.Join(err, q.closeParts())
}

func (q *Queue) closeParts() error {
	q.mini.Close()
	var err error
	if q.log != nil {
		err = q.log.close()
	}
	if q.lock != nil {
		err = errors.Join(err, q.lock.Close())
	}
	return err
}
