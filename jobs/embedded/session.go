package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

const (
	// strangerTimeout is how long a connection may take to name the password.
	strangerTimeout = 10 * time.Second
	// strangerBytes bounds a command of somebody who has not.
	strangerBytes = 16 << 10
	// commandBytes bounds any other; Redis's proto-max-bulk-len.
	commandBytes = 512 << 20
	// commandArgs bounds a command's words; Redis's own limit.
	commandArgs = 1 << 20
	// heldReplies bounds how much of a pipeline shares one sync; ours.
	heldReplies = 1000
	// stuckTimeout is how long a client may take in nothing. go-redis gives a
	// subscriber's own channel one minute before it drops a message.
	stuckTimeout = 2 * time.Minute
)

// sessions are the open connections.
type sessions struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// begin serves a connection, unless the queue is closed.
func (q *Queue) begin(conn net.Conn, trusted bool) error {
	q.sessions.mu.Lock()
	defer q.sessions.mu.Unlock()
	if q.sessions.closed {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	q.sessions.open[conn] = struct{}{}
	q.running.Go(func() { q.serve(conn, trusted) })
	return nil
}

func (s *sessions) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
}

// close ends all connections.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.open {
		_ = conn.Close() // its session notices
	}
}

// dial connects a client of this process.
func (q *Queue) dial() (net.Conn, error) {
	theirs, ours := net.Pipe()
	if err := q.begin(ours, true); err != nil {
		return nil, err
	}
	return theirs, nil
}

// accept lets other processes in, until the listener is closed.
func (q *Queue) accept() {
	for {
		conn, err := q.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, say
			q.logger.Warn("queue connection not accepted", "err", err)
			select {
			case <-q.stop:
				return
			case <-time.After(time.Second):
			}
			continue
		}
		if q.begin(conn, false) != nil {
			return
		}
	}
}

// session is one connection's.
type session struct {
	queue *Queue
	conn  net.Conn
	// peer is what miniredis knows of the connection.
	peer *server.Peer
	out  *outbox
	// stranger has not named the password yet.
	stranger bool
	// subscribed says that it may have subscriptions, which outlive it.
	subscribed bool
	// multi says that commands are being queued for EXEC; queued are the writes
	// among them.
	multi  bool
	queued [][]string
	// held are the replies that go out once the log is synced up to seq.
	held []reply
	seq  uint64
}

// reply is an answer that is not given yet.
type reply struct {
	text string
	// wrote says that it acknowledges a write.
	wrote bool
}

// serve answers a connection until either side ends it.
func (q *Queue) serve(conn net.Conn, trusted bool) {
	s := &session{queue: q, conn: conn, out: newOutbox(conn), stranger: !trusted}
	s.peer = server.NewPeer(bufio.NewWriter(s.out))
	defer s.end()
	if trusted {
		q.run(s.peer, []string{"AUTH", q.password})
	} else {
		_ = conn.SetReadDeadline(time.Now().Add(strangerTimeout)) // else Read fails
	}
	in := bufio.NewReader(conn)
	for !s.peer.Closed() {
		if in.Buffered() == 0 || len(s.held) >= heldReplies {
			s.settle()
		}
		limit := commandBytes
		if s.stranger {
			limit = strangerBytes
		}
		args, err := readCommand(in, limit)
		if err != nil {
			s.settle()
			if errors.Is(err, errProtocol) {
				s.send("-ERR " + err.Error() + "\r\n")
			}
			return
		}
		s.handle(args)
	}
}

// end lets go of the connection.
func (s *session) end() {
	if s.subscribed {
		for _, command := range []string{"UNSUBSCRIBE", "PUNSUBSCRIBE"} {
			s.queue.run(s.peer, []string{command})
		}
	}
	s.out.close()
	s.queue.sessions.remove(s.conn)
}

// handle executes a command. Its reply goes out now, or waits in held.
func (s *session) handle(args []string) {
	cmd := strings.ToUpper(args[0])
	kind := s.queue.kindOf(cmd, args)
	if s.stranger && cmd != "AUTH" && cmd != "HELLO" && cmd != "QUIT" {
		s.send("-NOAUTH Authentication required.\r\n")
		return
	}
	switch kind {
	case kindData, kindScript:
		s.hold(s.queue.write(s, cmd, args))
	case kindRead:
		text := s.queue.run(s.peer, args)
		s.hold(reply{text: text}, s.queue.log.last()) // it may have seen that one
	case kindSession, kindRefused:
		if kind == kindRefused && s.multi {
			s.queue.run(s.peer, []string{"EVAL"}) // malformed: EXEC will abort
		}
		s.settle()
		s.queue.inner.Dispatch(s.peer, args)
		s.peer.Flush()
	}
	switch {
	case cmd == "MULTI":
		s.multi = true
	case cmd == "DISCARD" || cmd == "EXEC":
		s.multi, s.queued = false, nil
	case cmd == "SUBSCRIBE" || cmd == "PSUBSCRIBE":
		s.subscribed = true
	case s.stranger && !strings.HasPrefix(s.queue.run(s.peer, []string{"PING"}), "-"):
		s.stranger = false
		_ = s.conn.SetReadDeadline(time.Time{}) // else Read fails
	}
}

func (s *session) hold(r reply, seq uint64) {
	s.held, s.seq = append(s.held, r), max(s.seq, seq)
}

// settle waits until what was executed is synced, and answers.
func (s *session) settle() {
	if len(s.held) == 0 {
		return
	}
	err := s.queue.log.wait(s.seq)
	for _, r := range s.held {
		if err != nil && r.wrote {
			r.text = misconf(err)
		}
		s.send(r.text)
	}
	s.held = nil
}

func (s *session) send(text string) {
	s.peer.WriteRaw(text)
	s.peer.Flush()
}

var errProtocol = errors.New("Protocol error") //nolint:staticcheck // Redis's own words

// readCommand reads an array of bulk strings, as all client libraries send it,
// of at most limit bytes.
func readCommand(in *bufio.Reader, limit int) ([]string, error) {
	n, err := readCount(in, '*', commandArgs)
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

// readCount reads a line of kind and a number from 0 to limit.
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

// outbox sends what is written to it, in the background: miniredis writes to
// its clients while it holds the lock on everything.
type outbox struct {
	conn net.Conn
	sent chan struct{} // closed once nothing more is sent

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

// Write keeps p to be sent; it does not block.
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
	defer o.conn.Close() //nolint:errcheck // the other end is gone or told
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
		_ = o.conn.SetWriteDeadline(time.Now().Add(stuckTimeout)) // else Write fails
		if _, err := o.conn.Write(p); err != nil {
			o.mu.Lock()
			o.closed, o.pending = true, nil
			o.mu.Unlock()
			return
		}
	}
}

// close sends what is left and waits for that.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.more.Signal()
	o.mu.Unlock()
	<-o.sent
}
