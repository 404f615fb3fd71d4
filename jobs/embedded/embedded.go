// Package embedded is an in-process Redis, miniredis, that is used when no Redis is
// configured.
//
// [Open] keeps everything in memory, for runs whose state is elsewhere, and expires no
// keys. [OpenDir] adds a write log: a write is acknowledged only after it is synced, and
// survives a crash. Other processes on the machine can connect to it with [Queue.URL].
//
// Differences of the durable queue from Redis:
//
//   - Size: about ten thousand waiting jobs. A list push takes 0.9 ms at 100,000
//     (measured), and writes are blocked while the log is rewritten.
//   - It has only database 0, and refuses commands that block (BLPOP and the like),
//     choose at random (SPOP), or write what the log's snapshot does not contain
//     (consumer groups, HyperLogLogs, TTLs of hash fields).
//   - Its clock, and with it every TTL, moves in steps of 0.1 s during writes, and of 1
//     s otherwise, or longer with very many keys. A key may expire one step too early or
//     too late.
//   - A published message may arrive before the write that caused it is synced. A read
//     after that waits for the sync.
//   - A client that receives nothing for two minutes is disconnected.
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
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/gofrs/flock"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Config configures [OpenDir]. Dir is required.
type Config struct {
	// Dir is the queue's folder. It is created if it does not exist, readable by this
	// user only. Only one process at a time can use it.
	Dir string
	// Listen is the loopback address for other processes on this machine, such as
	// "127.0.0.1:0" for any free port; "" means none.
	Listen string
	// Logger receives warnings. nil discards them.
	Logger *slog.Logger

	// create creates a log file; tests replace it. nil means createFile.
	create func(path string) (logFile, error)
}

// Queue is an embedded Redis with one client.
type Queue struct {
	mini   *miniredis.Miniredis
	client *redis.Client

	// The following fields are used only with a log.
	miniServer *server.Server // of mini
	logger     *slog.Logger
	lock       *flock.Flock
	listener   net.Listener // nil without Config.Listen
	password   string
	log        *writeLog

	writeMu sync.Mutex // held during every write
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

// OpenDir opens the durable queue in cfg.Dir, with every acknowledged write. The
// caller must Close it.
//
// It fails if another process uses the folder, or if the log is corrupt before its
// end: the error says what to do. An end that was torn by a crash was never
// acknowledged; it is truncated and logged.
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
	err := q.startMiniredis()
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

// checkLoopback refuses an address that is not a loopback one.
func checkLoopback(listen string) error {
	if listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("embedded queue: Listen %q: %w; use an address such as 127.0.0.1:0", listen, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("embedded queue: Listen %q: the embedded queue is for this machine only: use an address such as 127.0.0.1:0, or run a Redis", listen)
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

// poolSize is more connections than the lanes of all models and several accounts use
// at once. The value is our choice.
const poolSize = 1000

func newClient(dial func() (net.Conn, error)) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "embedded",
		// miniredis sends no such notifications, and the handshake resolves the address.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return dial() },
		// In-process connections are cheap, and no command should wait for one:
		// go-redis waits on timers that all its clients share, which breaks tests in
		// simulated time.
		PoolSize: poolSize,
		// A command is late only where the disk or the processor is: sent again, it would be
		// carried out twice.
		ReadTimeout: 30 * time.Second, MaxRetries: -1,
	})
}

// startMiniredis starts miniredis with the hook that intercepts commands.
func (q *Queue) startMiniredis() error {
	conn, err := q.mini.Dial() // starts the server without a port
	if err != nil {
		return err
	}
	q.miniServer = q.mini.Server()
	q.miniServer.SetPreHook(q.intercept)
	return conn.Close()
}

// start accepts clients.
func (q *Queue) start() {
	q.mini.RequireAuth(q.password)
	q.client = newClient(q.dial)
	q.running.Go(q.maintain)
	if q.listener != nil {
		q.running.Go(q.accept)
	}
}

// Client returns the client for this process. Close closes it.
func (q *Queue) Client() redis.UniversalClient { return q.client }

// URL returns the URL for other processes on this machine until Close,
// redis://:PASSWORD@HOST:PORT/0, or "" without Config.Listen. It is a secret: it gives
// full access to the queue. Each OpenDir generates a new password.
func (q *Queue) URL() string {
	if q.listener == nil {
		return ""
	}
	return "redis://:" + q.password + "@" + q.listener.Addr().String() + "/0"
}

// Close stops the queue. The content of a queue in memory is lost.
func (q *Queue) Close() error {
	err := q.client.Close()
	close(q.stop)
	if q.listener != nil {
		err = errors.Join(err, q.listener.Close())
	}
	q.mini.Close() // ends blocked commands
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
