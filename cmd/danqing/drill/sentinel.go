package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// primaryName is the name that the Sentinels have for the primary.
	primaryName = "drill"
	// downAfter is when a Sentinel takes a silent server for down. Its default is 30 s; a
	// failover takes that, and some two seconds.
	downAfter = 500 * time.Millisecond
	sentinels = 3
	quorum    = 2
	// failoverLimit bounds a failover, and the time until the new primary has a replica: a
	// Sentinel waits 8 s before it makes a replica of a primary that has come back.
	failoverLimit = 40 * time.Second
	// portTries is how many ports are tried: another program may take one before the server.
	portTries = 5
)

// replicated is a primary and a replica with Sentinels, all of which the drill has started.
type replicated struct {
	binary, dir string
	servers     []*node // the primary and its replica, in any order
	sentinels   []*node
	rdb         *redis.Client // of the current primary
}

// node is a redis-server process on a port of 127.0.0.1.
type node struct {
	dir, port string
	cmd       *exec.Cmd
}

func (n *node) address() string { return net.JoinHostPort("127.0.0.1", n.port) }

func (n *node) client() *redis.Client {
	return redis.NewClient(failFast(&redis.Options{Addr: n.address()}))
}

// openReplicated starts two servers and three Sentinels, and waits until all know each other.
func openReplicated(ctx context.Context) (r *replicated, err error) {
	r = &replicated{}
	if r.binary, err = exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("redis-server is not on the PATH: install it, or drill without --sentinel: %w", err)
	}
	if r.dir, err = os.MkdirTemp("", "danqing-sentinel-"); err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for i := range 2 {
		var args []string
		if i > 0 {
			args = []string{"--replicaof", "127.0.0.1", r.servers[0].port}
		}
		n := &node{dir: filepath.Join(r.dir, "server-"+strconv.Itoa(i+1))}
		r.servers = append(r.servers, n)
		if err := r.start(ctx, n, func() []string { return serverArgs(n, args...) }); err != nil {
			return nil, err
		}
	}
	for i := range sentinels {
		n := &node{dir: filepath.Join(r.dir, "sentinel-"+strconv.Itoa(i+1))}
		r.sentinels = append(r.sentinels, n)
		if err := r.start(ctx, n, func() []string { return sentinelArgs(n, r.servers[0].port) }); err != nil {
			return nil, err
		}
	}
	r.rdb = redis.NewFailoverClient(r.options())
	return r, r.awaitReplica(ctx)
}

func serverArgs(n *node, more ...string) []string {
	return append([]string{
		"--bind", "127.0.0.1", "--port", n.port, "--dir", n.dir, "--logfile", "log", "--save", "", "--appendonly", "yes",
		"--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0",
	}, more...)
}

// sentinelArgs writes a Sentinel's configuration, which it rewrites, and returns its
// arguments.
func sentinelArgs(n *node, primaryPort string) []string {
	text := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %s\nlogfile log\nsentinel monitor %s 127.0.0.1 %s %d\nsentinel down-after-milliseconds %s %d\nsentinel failover-timeout %s 5000\n",
		n.port, n.dir, primaryName, primaryPort, quorum, primaryName, downAfter.Milliseconds(), primaryName)
	file := filepath.Join(n.dir, "sentinel.conf")
	_ = os.WriteFile(file, []byte(text), 0o600) // without it the Sentinel does not start, and says so
	return []string{file, "--sentinel"}
}

// start starts a node on its port, or a free one if it has none.
func (r *replicated) start(ctx context.Context, n *node, args func() []string) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	fixed := n.port != ""
	for range portTries {
		if !fixed {
			listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
			if err != nil {
				return fmt.Errorf("drill: %w", err)
			}
			if _, n.port, err = net.SplitHostPort(listener.Addr().String()); err != nil {
				return fmt.Errorf("drill: %w", err)
			}
			_ = listener.Close() // nothing was accepted
		}
		n.cmd = exec.CommandContext(context.WithoutCancel(ctx), r.binary, args()...) //nolint:gosec // from the PATH
		if err := n.cmd.Start(); err != nil {
			return fmt.Errorf("start redis-server: %w", err)
		}
		if n.answers(ctx) {
			return nil
		}
		n.kill()
	}
	return fmt.Errorf("a redis-server on %s does not answer: see %s", n.address(), filepath.Join(n.dir, "log"))
}

// answers waits until the node, and no other program, answers on its port.
func (n *node) answers(ctx context.Context) bool {
	rdb := n.client()
	defer rdb.Close() //nolint:errcheck // used for INFO only
	own := "process_id:" + strconv.Itoa(n.cmd.Process.Pid) + "\r\n"
	for deadline := time.Now().Add(serverStart / portTries); time.Now().Before(deadline); {
		if text, err := rdb.Info(ctx, "server").Result(); err == nil {
			return strings.Contains(text, own)
		}
		if !wait(ctx, 20*time.Millisecond) {
			return false
		}
	}
	return false
}

func (n *node) kill() {
	if n.cmd != nil && n.cmd.Process != nil {
		_ = n.cmd.Process.Kill() // it may already have ended
		_ = n.cmd.Wait()         // killed on purpose
	}
}

// options are those of a client that follows the primary.
func (r *replicated) options() *redis.FailoverOptions {
	o := &redis.FailoverOptions{MasterName: primaryName, MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Second}
	for _, s := range r.sentinels {
		o.SentinelAddrs = append(o.SentinelAddrs, s.address())
	}
	return o
}

// url is the workers' REDIS_URL.
func (r *replicated) url() string {
	return "redis-sentinel://" + strings.Join(r.options().SentinelAddrs, ",") + "?master=" + primaryName
}

// primary returns the server that the Sentinels name, nil if they name none.
func (r *replicated) primary(ctx context.Context) *node {
	for _, s := range r.sentinels {
		client := redis.NewSentinelClient(failFast(&redis.Options{Addr: s.address()}))
		address, err := client.GetMasterAddrByName(ctx, primaryName).Result()
		_ = client.Close() // used once
		for _, n := range r.servers {
			if err == nil && len(address) == 2 && address[1] == n.port {
				return n
			}
		}
	}
	return nil
}

// awaitReplica waits until a failover is possible: the primary has a replica in step, and
// each Sentinel knows it and the others.
func (r *replicated) awaitReplica(ctx context.Context) error {
	return r.await(ctx, "a replica in step", func() bool {
		for _, s := range r.sentinels {
			client := s.client()
			text, err := client.Info(ctx, "sentinel").Result()
			_ = client.Close() // used once
			if err != nil || !strings.Contains(text, fmt.Sprintf("status=ok,address=%s,slaves=1,sentinels=%d", r.primaryAddress(ctx), sentinels)) {
				return false
			}
		}
		text, err := r.rdb.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(text, "state=online")
	})
}

func (r *replicated) primaryAddress(ctx context.Context) string {
	if n := r.primary(ctx); n != nil {
		return n.address()
	}
	return ""
}

// await waits for a condition.
func (r *replicated) await(ctx context.Context, what string, met func() bool) error {
	for deadline := time.Now().Add(failoverLimit); !met(); {
		if time.Now().After(deadline) || !wait(ctx, 50*time.Millisecond) {
			return fmt.Errorf("drill: no %s within %s: see the logs in %s", what, failoverLimit, r.dir)
		}
	}
	return nil
}

// failover takes the primary away and waits until the Sentinels name the other server. The
// old one comes back as a replica: after a kill at once, after a freeze once a Sentinel has
// seen that it still takes itself for the primary.
func (r *replicated) failover(ctx context.Context, how action) error {
	if err := r.awaitReplica(ctx); err != nil {
		return err
	}
	old := r.primary(ctx)
	if old == nil {
		return errors.New("drill: the Sentinels name no primary")
	}
	switch how {
	case failoverKill:
		old.kill()
	case failoverFreeze:
		_ = freeze(old.cmd.Process)
	default:
		client := redis.NewSentinelClient(failFast(&redis.Options{Addr: r.sentinels[0].address()}))
		defer client.Close() //nolint:errcheck // used for this command only
		// NOGOODSLAVE until the Sentinel has heard of the replica again.
		if err := r.await(ctx, "failover by command", func() bool { return client.Failover(ctx, primaryName).Err() == nil }); err != nil {
			return err
		}
	}
	err := r.await(ctx, "new primary", func() bool {
		now := r.primary(ctx)
		return now != nil && now != old && r.rdb.Set(ctx, "drill:failover", 1, time.Minute).Err() == nil
	})
	if how == failoverFreeze {
		_ = thaw(old.cmd.Process)
	}
	if how == failoverKill && err == nil {
		_, port, _ := net.SplitHostPort(r.primaryAddress(ctx))
		err = r.start(ctx, old, func() []string { return serverArgs(old, "--replicaof", "127.0.0.1", port) })
	}
	return err
}

func (r *replicated) close() error {
	var err error
	if r.rdb != nil {
		err = r.rdb.Close()
	}
	for _, n := range append(r.sentinels, r.servers...) {
		n.kill() // SIGKILL also ends a frozen one
	}
	return errors.Join(err, os.RemoveAll(r.dir))
}
