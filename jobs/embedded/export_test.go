package embedded

import "net"

// Compact rewrites the log as a snapshot.
func (q *Queue) Compact() error {
	q.writeMu.Lock()
	defer q.writeMu.Unlock()
	return q.log.rewrite(q.snapshot)
}

// Dial connects like the queue's own client.
func (q *Queue) Dial() (net.Conn, error) { return q.dial() }
