package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

const (
	// authTimeout is how long a client may take to send the password.
	authTimeout = 10 * time.Second
	// maxUnauthenticated limits the connections without the password. Beyond it the oldest
	// one is closed: a client sends the password at once.
	maxUnauthenticated = 64
	// maxUnauthenticatedBytes, maxUnauthenticatedArgs and maxUnauthenticatedCommands limit
	// what is read before the password, of one command and in all. The longest is HELLO 3
	// AUTH USER PASSWORD SETNAME NAME.
	maxUnauthenticatedBytes    = 1 << 10
	maxUnauthenticatedArgs     = 8
	maxUnauthenticatedCommands = 8
	// maxCommandBytes limits any other command, like Redis's proto-max-bulk-len.
	maxCommandBytes = 512 << 20
	// maxCommandArgs limits a command's words, like Redis.
	maxCommandArgs = 1 << 20
	// maxPendingReplies limits how many commands of a pipeline share one sync. The value
	// is our choice.
	maxPendingReplies = 1000
	// writeTimeout is how long a client may receive nothing. go-redis waits one minute
	// for a subscriber's channel before it drops a message.
	writeTimeout = 2 * time.Minute
)

// sessions are the open connections.
type sessions struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	// unauthenticated are those without the password, oldest first.
	unauthenticated []net.Conn
	closed          bool
}

// serveConn serves a connection, unless the queue is closed.
func (q *Queue) serveConn(conn net.Conn, trusted bool) error {
	q.sessions.mu.Lock()
	defer q.sessions.mu.Unlock()
	if q.sessions.closed {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	q.sessions.open[conn] = struct{}{}
	if !trusted {
		waiting := append(q.sessions.unauthenticated, conn)
		if len(waiting) > maxUnauthenticated {
			_ = waiting[0].Close() // ends its session
			waiting = waiting[1:]
		}
		q.sessions.unauthenticated = waiting
	}
	q.running.Go(func() { q.serve(conn, trusted) })
	return nil
}

func (s *sessions) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
	s.forget(conn)
}

// authenticated records that a connection has sent the password.
func (s *sessions) authenticated(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(conn)
}

func (s *sessions) forget(conn net.Conn) {
	s.unauthenticated = slices.DeleteFunc(s.unauthenticated, func(other net.Conn) bool { return other == conn })
}

// close ends all connections.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.open {
		_ = conn.Close() // ends its session
	}
}

// dial connects a client of this process.
func (q *Queue) dial() (net.Conn, error) {
	clientConn, serverConn := net.Pipe()
	if err := q.serveConn(serverConn, true); err != nil {
		return nil, err
	}
	return clientConn, nil
}

// accept accepts connections of other processes, until the listener is closed.
func (q *Queue) accept() {
	for {
		conn, err := q.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // for example too many open files
			q.logger.Warn("queue connection not accepted", "err", err)
			select {
			case <-q.stop:
				return
			case <-time.After(time.Second):
			}
			continue
		}
		if q.serveConn(conn, false) != nil {
			return
		}
	}
}

// session is the state of one connection.
type session struct {
	queue *Queue
	conn  net.Conn
	// peer is miniredis's state of the connection.
	peer *server.Peer
	out  *outbox
	// unauthenticated is set until the client has sent the password.
	unauthenticated bool
	// subscribed is set if the session may have subscriptions, which must be ended.
	subscribed bool
	// multi is set while commands are queued for EXEC; queued are the writes among them.
	multi  bool
	queued [][]string
	// pending are the replies that are sent once the log is synced up to seq.
	pending []reply
	seq     uint64
}

// reply is a reply that is not sent yet.
type reply struct {
	text string
	// isWrite is set if it acknowledges a write.
	isWrite bool
}

// serve handles the commands of a connection until either side closes it.
func (q *Queue) serve(conn net.Conn, trusted bool) {
	s := &session{queue: q, conn: conn, out: newOutbox(conn), unauthenticated: !trusted}
	s.peer = server.NewPeer(bufio.NewWriter(s.out))
	defer s.close()
	if trusted {
		q.run(s.peer, []string{"AUTH", q.password})
	} else {
		_ = conn.SetReadDeadline(time.Now().Add(authTimeout)) // else Read fails
	}
	in := bufio.NewReader(conn)
	for commands := 0; !s.peer.Closed(); commands++ {
		if in.Buffered() == 0 || len(s.pending) >= maxPendingReplies {
			s.flushReplies()
		}
		limit, maxArgs := maxCommandBytes, maxCommandArgs
		if s.unauthenticated {
			if commands == maxUnauthenticatedCommands {
				return
			}
			limit, maxArgs = maxUnauthenticatedBytes, maxUnauthenticatedArgs
		}
		args, err := readCommand(in, limit, maxArgs)
		if err != nil {
			s.flushReplies()
			if errors.Is(err, errProtocol) {
				s.send("-ERR " + err.Error() + "\r\n")
			}
			return
		}
		s.handle(args)
	}
}

// close ends the subscriptions and the connection.
func (s *session) close() {
	if s.subscribed {
		for _, command := range []string{"UNSUBSCRIBE", "PUNSUBSCRIBE"} {
			s.queue.run(s.peer, []string{command})
		}
	}
	s.out.close()
	s.queue.sessions.remove(s.conn)
}

// handle executes a command, and sends its reply or adds it to pending.
func (s *session) handle(args []string) {
	cmd := strings.ToUpper(args[0])
	kind := s.queue.kindOf(cmd, args)
	if s.unauthenticated && cmd != "AUTH" && cmd != "HELLO" && cmd != "QUIT" {
		s.send("-NOAUTH Authentication required.\r\n")
		return
	}
	switch kind {
	case kindData, kindScript:
		s.deferReply(s.queue.write(s, cmd, args))
	case kindRead:
		text := s.queue.run(s.peer, args)
		s.deferReply(reply{text: text}, s.queue.log.lastEntry()) // it may have read that write
	case kindSession, kindRefused:
		if kind == kindRefused && s.multi {
			s.queue.run(s.peer, []string{"EVAL"}) // malformed, so that EXEC aborts
		}
		s.flushReplies()
		s.queue.miniServer.Dispatch(s.peer, args)
		s.peer.Flush()
	}
	switch {
	case cmd == "MULTI":
		s.multi = true
	case cmd == "DISCARD" || cmd == "EXEC":
		s.multi, s.queued = false, nil
	case cmd == "SUBSCRIBE" || cmd == "PSUBSCRIBE":
		s.subscribed = true
	case s.unauthenticated && !strings.HasPrefix(s.queue.run(s.peer, []string{"PING"}), "-"):
		s.unauthenticated = false
		s.queue.sessions.authenticated(s.conn)
		_ = s.conn.SetReadDeadline(time.Time{}) // else Read fails
	}
}

func (s *session) deferReply(r reply, seq uint64) {
	s.pending, s.seq = append(s.pending, r), max(s.seq, seq)
}

// flushReplies waits until the executed writes are synced, and sends the replies.
func (s *session) flushReplies() {
	if len(s.pending) == 0 {
		return
	}
	err := s.queue.log.wait(s.seq)
	for _, r := range s.pending {
		if err != nil && r.isWrite {
			r.text = misconfReply(err)
		}
		s.send(r.text)
	}
	s.pending = nil
}

func (s *session) send(text string) {
	s.peer.WriteRaw(text)
	s.peer.Flush()
}

var errProtocol = errors.New("Protocol error") //nolint:staticcheck // Redis's text

// readCommand reads an array of bulk strings, the format of all client libraries, of at
// most maxArgs words of limit bytes in all.
func readCommand(in *bufio.Reader, limit, maxArgs int) ([]string, error) {
	n, err := readCount(in, '*', maxArgs)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: empty command", errProtocol)
	}
	var args []string
	for range n {
		size, err := readCount(in, '$', limit)
		if err != nil {
			return nil, err
		}
		limit -= size
		arg := make([]byte, size+len("\r\n"))
		if _, err := io.ReadFull(in, arg); err != nil {
			return nil, err
		}
		args = append(args, string(arg[:size]))
	}
	return args, nil
}

// readCount reads a line with the byte kind and a number from 0 to limit.
func readCount(in *bufio.Reader, kind byte, limit int) (int, error) {
	line, err := in.ReadSlice('\n') // at most the reader's buffer, 4 KiB
	if errors.Is(err, bufio.ErrBufferFull) {
		return 0, fmt.Errorf("%w: line too long", errProtocol)
	}
	if err != nil {
		return 0, err
	}
	digits, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || digits == "" || digits[0] != kind {
		return 0, fmt.Errorf("%w: expected '%c'", errProtocol, kind)
	}
	n, err := strconv.Atoi(digits[1:])
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("%w: invalid length", errProtocol)
	}
	return n, nil
}

// outbox sends what is written to it in the background, because miniredis writes to its
// clients while it holds its lock.
type outbox struct {
	conn net.Conn
	sent chan struct{} // closed after everything was sent

	mu      sync.Mutex
	more    sync.Cond
	pending []byte
	closed  bool
}

func newOutbox(conn net.Conn) *outbox {
	o := &outbox{conn: conn, sent: make(chan struct{})}
	o.more.L = &o.mu
	go o.run()
	return o
}

// Write queues p for sending. It does not block.
func (o *outbox) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, net.ErrClosed
	}
	o.pending = append(o.pending, p...)
	o.more.Signal()
	return len(p), nil
}

func (o *outbox) run() {
	defer close(o.sent)
	defer o.conn.Close() //nolint:errcheck // all replies are sent, or the client has disconnected
	for {
		o.mu.Lock()
		for len(o.pending) == 0 && !o.closed {
			o.more.Wait()
		}
		p := o.pending
		o.pending = nil
		o.mu.Unlock()
		if len(p) == 0 {
			return
		}
		_ = o.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // else Write fails
		if _, err := o.conn.Write(p); err != nil {
			o.mu.Lock()
			o.closed, o.pending = true, nil
			o.mu.Unlock()
			return
		}
	}
}

// close sends what is queued and waits for that.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.more.Signal()
	o.mu.Unlock()
	<-o.sent
}
