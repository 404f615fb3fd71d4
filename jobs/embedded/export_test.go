package embedded

import "net"

// Compact rewrites the log as a snapshot, now.
func (q *Queue) Compact() error {
	q.writing.Lock()
	defer q.writing.Unlock()
	return q.log.rewrite(q.snapshot)
}

// Dial connects as the queue's own client does.
func (q *Queue) Dial() (net.Conn, error) { return q.dial() }
