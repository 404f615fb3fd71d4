package drill

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// upstream is the Redis behind the proxies.
type upstream struct {
	network, address string
	tls              *tls.Config
}

func (u *upstream) dial(ctx context.Context) (net.Conn, error) {
	if u.tls != nil {
		return (&tls.Dialer{Config: u.tls}).DialContext(ctx, u.network, u.address)
	}
	return (&net.Dialer{}).DialContext(ctx, u.network, u.address)
}

// proxy is one worker's connection to Redis.
type proxy struct {
	*drill
	worker   *process
	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	group sync.WaitGroup
}

// slowDelay is the delay of each command while Redis is slow.
const slowDelay = 200 * time.Millisecond

func (d *drill) openProxy(ctx context.Context, m *process) (*proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("drill: %w", err)
	}
	p := &proxy{drill: d, worker: m, listener: listener, conns: map[net.Conn]bool{}}
	p.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			p.group.Go(func() { p.serve(context.WithoutCancel(ctx), conn) })
		}
	})
	return p, nil
}

func (p *proxy) close() error {
	err := p.listener.Close()
	p.cut()
	p.group.Wait()
	return err
}

// cut closes every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close() // closing is intended
	}
}

func (p *proxy) track(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range conns {
		p.conns[conn] = true
	}
}

func (p *proxy) untrack(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range conns {
		delete(p.conns, conn)
		_ = conn.Close() // the other side may have closed it
	}
}

// serve forwards commands and replies until either side has closed.
func (p *proxy) serve(ctx context.Context, client net.Conn) {
	if p.outages.active(redisOutage) {
		_ = client.Close() // as if Redis did not answer
		return
	}
	server, err := p.redis.dial(ctx)
	if err != nil {
		_ = client.Close() // Redis is down
		return
	}
	p.track(client, server)
	line := &line{proxy: p, client: client, server: server}
	var both sync.WaitGroup
	both.Go(func() { line.commands(ctx); p.untrack(client, server) })
	both.Go(func() { line.replies(); p.untrack(client, server) })
	both.Wait()
}

// line is one connection to Redis. Its client sends a command after it has received the
// replies to the previous one.
type line struct {
	*proxy
	client, server net.Conn

	mu sync.Mutex
	// armed is the fault for the next reply.
	armed *armedFault
}

func (l *line) commands(ctx context.Context) {
	from := bufio.NewReaderSize(l.client, 64<<10)
	for {
		raw, args, err := readCommand(from)
		if err != nil {
			return
		}
		if l.outages.active(redisSlow) {
			wait(ctx, slowDelay)
		}
		if fault := l.injector.match("redis." + commandName(args)); fault != nil && !l.injectCommand(ctx, fault) {
			return
		}
		if _, err := l.server.Write(raw); err != nil {
			return
		}
	}
}

// injectCommand applies a fault to a command, and reports whether the command is still
// forwarded.
func (l *line) injectCommand(ctx context.Context, fault *armedFault) bool {
	switch fault.action {
	case killBefore:
		l.kill(l.worker, 0)
	case resetBefore:
	case delayed:
		defer close(fault.done)
		return wait(ctx, delayTime)
	default:
		l.mu.Lock()
		l.armed = fault
		l.mu.Unlock()
		return true
	}
	close(fault.done)
	return false
}

func (l *line) replies() {
	buffer := make([]byte, 64<<10)
	defer func() {
		if fault := l.takeArmed(); fault != nil {
			close(fault.done) // Redis closed before it replied
		}
	}()
	for {
		n, err := l.server.Read(buffer)
		if n > 0 && !l.reply(buffer[:n]) || err != nil {
			return
		}
	}
}

func (l *line) takeArmed() *armedFault {
	l.mu.Lock()
	defer l.mu.Unlock()
	fault := l.armed
	l.armed = nil
	return fault
}

// reply forwards a reply unless a fault applies to it, and reports whether the
// connection stays open.
func (l *line) reply(data []byte) bool {
	fault := l.takeArmed()
	if fault != nil && fault.route == "redis.dequeue" && (data[0] == '_' || strings.HasPrefix(string(data), "$-1")) {
		l.injector.rearm(fault) // the queue was empty
		fault = nil
	}
	if fault == nil || fault.action == killAfter {
		if _, err := l.client.Write(data); err != nil && fault == nil {
			return false
		}
	}
	if fault == nil {
		return true
	}
	if fault.kills() {
		l.kill(l.worker, 0)
	}
	close(fault.done)
	return false
}

// errProtocol means that a client sends other commands than go-redis does.
var errProtocol = errors.New("not a Redis command")

// readCommand reads one command: its bytes and its arguments.
func readCommand(from *bufio.Reader) (raw []byte, args []string, err error) {
	number := func(kind byte) (int, error) {
		text, err := from.ReadBytes('\n')
		if err != nil {
			return 0, err
		}
		raw = append(raw, text...)
		if text[0] != kind {
			return 0, errProtocol
		}
		return strconv.Atoi(strings.TrimSpace(string(text[1:])))
	}
	count, err := number('*')
	if err != nil {
		return nil, nil, err
	}
	for range count {
		size, err := number('$')
		if err != nil {
			return nil, nil, err
		}
		if size < 0 || size > wireBytes {
			return nil, nil, errProtocol
		}
		text := make([]byte, size+2) // with its line end
		if _, err := io.ReadFull(from, text); err != nil {
			return nil, nil, err
		}
		raw, args = append(raw, text...), append(args, string(text[:size]))
	}
	return raw, args, nil
}

// commandName returns which of the writes that matter a command is, "" for none. It
// goes by the keys that the command uses, as package jobs and asynq v0.26 name them.
func commandName(args []string) string {
	if len(args) < 2 {
		return ""
	}
	if !strings.HasPrefix(strings.ToUpper(args[0]), "EVAL") {
		reads := []string{"GET", "HGET", "HGETALL", "SMEMBERS", "ZRANGE", "EXISTS"}
		if lane(args[1], ":in_flight") && !slices.Contains(reads, strings.ToUpper(args[0])) {
			return "in-flight"
		}
		return ""
	}
	if len(args) < 4 {
		return ""
	}
	count, err := strconv.Atoi(args[2])
	if err != nil || count < 1 || len(args) < 3+count {
		return ""
	}
	return scriptName(args[3 : 3+count])
}

func lane(key, ending string) bool {
	return strings.HasPrefix(key, "danqing:lane:") && strings.HasSuffix(key, ending)
}

// scriptName returns which script uses these keys.
func scriptName(keys []string) string {
	key := func(i int) string {
		if i < len(keys) {
			return keys[i]
		}
		return ""
	}
	switch {
	case lane(key(0), ":lease"):
		return "lease"
	case lane(key(0), ":in_flight"):
		return "in-flight"
	case strings.HasPrefix(key(0), "danqing:ledger:") && strings.HasPrefix(key(2), "danqing:task:"):
		return "settle"
	case strings.HasPrefix(key(0), "danqing:ledger:"): // reserve or release
		return "ledger"
	case strings.HasPrefix(key(0), "danqing:task:") && len(keys) == 1:
		return "claim"
	case strings.HasPrefix(key(0), "danqing:job:"):
		return stateChange(keys)
	case strings.HasPrefix(key(0), "asynq:{danqing:store}:t:") && strings.HasSuffix(key(1), ":pending"):
		return "enqueue-store"
	case strings.HasSuffix(key(0), ":pending") && strings.HasSuffix(key(1), ":paused"):
		return "dequeue"
	case strings.HasSuffix(key(0), ":active") && strings.HasSuffix(key(2), ":completed"):
		return "done"
	}
	return ""
}

// stateChange returns the state that a record changes to: the second and third keys of the
// script that writes records are the indexes of the old and the new state. A new record, or a
// write that keeps the state, is no change.
func stateChange(keys []string) string {
	const index = "danqing:jobs:"
	if len(keys) < 3 || !strings.HasPrefix(keys[1], index) || !strings.HasPrefix(keys[2], index) || keys[1] == keys[2] {
		return ""
	}
	return strings.TrimPrefix(keys[2], index)
}
