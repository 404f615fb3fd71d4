package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
)

var (
	// ErrNotEmpty means that the Redis database is not empty; a drill could damage its
	// contents.
	ErrNotEmpty = errors.New("the Redis database is not empty")
	// errNoQueue means that the embedded queue's process is being restarted.
	errNoQueue = errors.New("the queue's process is starting")
)

// queue is the drill's own connection to the queue, as a producer: not through the
// proxies.
type queue struct {
	drill   *drill
	options *redis.Options // of what is behind the proxies

	mu  sync.Mutex
	url string // of the embedded queue that rdb is connected to
	rdb *redis.Client
}

// openQueue connects to the queue. With QueueServer it starts the queue first.
func (d *drill) openQueue(ctx context.Context, closing func(func() error)) (err error) {
	d.queue = &queue{drill: d}
	closing(d.queue.close)
	at := d.RedisURL
	switch d.Queue {
	case QueueEmbedded:
		return nil
	case QueueServer:
		if d.server, err = openServer(ctx); err != nil {
			return err
		}
		closing(d.server.close)
		at = "unix://" + d.server.socket
	case QueueSentinel:
		if d.replicated, err = openReplicated(ctx); err != nil {
			return err
		}
		closing(d.replicated.close)
		d.queue.rdb = redis.NewFailoverClient(d.replicated.options())
		return nil
	case QueueRedis:
	}
	if d.queue.options, err = redis.ParseURL(at); err != nil { // its text may contain the password
		return errors.New("REDIS_URL must be redis://[USER:PASSWORD@]HOST:PORT[/DB], rediss://… for TLS, or unix://PATH")
	}
	o := *d.queue.options
	d.redis = &upstream{network: o.Network, address: o.Addr, tls: o.TLSConfig}
	d.queue.rdb = redis.NewClient(failFast(&o))
	if d.Queue == QueueServer {
		return nil
	}
	size, err := d.queue.rdb.DBSize(ctx).Result()
	if err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	if size > 0 {
		return fmt.Errorf("%w: it has %d keys", ErrNotEmpty, size)
	}
	closing(func() error { return d.queue.deleteKeys(context.WithoutCancel(ctx)) })
	return nil
}

// failFast bounds how long a call waits while Redis is unavailable.
func failFast(o *redis.Options) *redis.Options {
	o.MaxRetries, o.DialerRetries, o.DialTimeout = -1, 1, time.Second
	return o
}

// client returns a client of the queue's current process.
func (q *queue) client(ctx context.Context) (*jobs.Client, error) {
	rdb, err := q.connection(ctx)
	if err != nil {
		return nil, err
	}
	return jobs.NewClient(rdb), nil
}

// connection returns the connection to the queue as it is reached now.
func (q *queue) connection(ctx context.Context) (*redis.Client, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.drill.Queue != QueueEmbedded {
		return q.rdb, nil
	}
	m := q.drill.workers[0]
	pid, at, err := q.drill.Instance(ctx, m.data())
	if err != nil {
		return nil, err
	}
	if pid != m.pid() { // written by a killed process
		return nil, errNoQueue
	}
	if at != q.url {
		options, err := redis.ParseURL(at)
		if err != nil {
			return nil, errors.New("the instance's Redis URL cannot be parsed")
		}
		if q.rdb != nil {
			_ = q.rdb.Close() // its process has ended
		}
		q.url, q.rdb = at, redis.NewClient(failFast(options))
	}
	return q.rdb, nil
}

func (q *queue) close() error {
	if q.rdb == nil {
		return nil
	}
	return q.rdb.Close()
}

// deleteKeys removes the drill's keys from a Redis that was empty before.
func (q *queue) deleteKeys(ctx context.Context) error {
	for _, pattern := range []string{"danqing:*", "asynq:*"} {
		keys := q.rdb.Scan(ctx, 0, pattern, 1000).Iterator()
		for keys.Next(ctx) {
			if err := q.rdb.Del(ctx, keys.Val()).Err(); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
		}
		if err := keys.Err(); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}

// server is a redis-server that the drill has started, with an append-only file.
type server struct {
	binary, dir, socket string

	mu  sync.Mutex // held while restarting
	cmd *exec.Cmd
}

// serverStart bounds a start, which loads the append-only file.
const serverStart = 30 * time.Second

func openServer(ctx context.Context) (*server, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("redis-server is not on the PATH: install it, or drill without --redis-server: %w", err)
	}
	dir, err := os.MkdirTemp("", "danqing-redis-") // a socket's path may have at most 107 bytes
	if err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	s := &server{binary: binary, dir: dir, socket: filepath.Join(dir, "socket")}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *server) start(ctx context.Context) error {
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), s.binary, //nolint:gosec // from the PATH
		"--port", "0", "--unixsocket", s.socket, "--dir", s.dir, "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
		"--logfile", filepath.Join(s.dir, "log"))
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	rdb := redis.NewClient(failFast(&redis.Options{Network: "unix", Addr: s.socket}))
	defer rdb.Close() //nolint:errcheck // used for Ping only
	for deadline := time.Now().Add(serverStart); ; {
		err := rdb.Ping(ctx).Err() // LOADING until the file is read
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || !wait(ctx, 20*time.Millisecond) {
			return fmt.Errorf("redis-server does not answer: %w", err)
		}
	}
}

// restart kills the server and starts it from the append-only file.
func (s *server) restart(ctx context.Context, downTime time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill()
	wait(ctx, downTime)
	return s.start(ctx)
}

// fillRedis lets Redis refuse every write that needs memory, for fullTime.
func (d *drill) fillRedis(ctx context.Context) {
	set := func(ctx context.Context, limit string) {
		if err := d.queue.rdb.ConfigSet(ctx, "maxmemory", limit).Err(); err != nil {
			d.log.Warn("maxmemory not set", "limit", limit, "err", err) // being restarted: without a limit
		}
	}
	set(ctx, "1")
	d.thawing.Go(func() {
		wait(context.WithoutCancel(ctx), fullTime)
		set(context.WithoutCancel(ctx), "0")
	})
}

func (s *server) kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill() // it may already have ended
		_ = s.cmd.Wait()         // killed on purpose
	}
}

func (s *server) close() error {
	s.kill()
	return os.RemoveAll(s.dir)
}

// isNotFound reports whether the queue answered that a job does not exist.
func isNotFound(err error) bool {
	return errors.Is(err, jobs.ErrNotFound) && !strings.Contains(err.Error(), errNoQueue.Error())
}
