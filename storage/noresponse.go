package storage

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
)

// NoResponseError is why a host that somebody else chose gave no response. Its text is short and
// shown to that somebody: it has no address, no name of a DNS server, nothing of a
// certificate and nothing that the host sent.
type NoResponseError struct {
	Text     string
	TimedOut bool
}

// Error returns the text.
func (e *NoResponseError) Error() string { return e.Text }

// Timeout reports whether the host did not respond in time.
func (e *NoResponseError) Timeout() bool { return e.TimedOut }

// ExplainNoResponse returns the reason for an error of [http.Client.Do], or of reading its
// response's body.
func ExplainNoResponse(err error) *NoResponseError {
	var (
		lookup      *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		timeout     interface{ Timeout() bool }
		errno       syscall.Errno
		network     *net.OpError
	)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return &NoResponseError{Text: "no response in time", TimedOut: true}
	case errors.As(err, &lookup):
		return &NoResponseError{Text: "host name not resolved"}
	case errors.As(err, &certificate):
		return &NoResponseError{Text: "certificate not trusted"}
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return &NoResponseError{Text: "the host does not use TLS"}
	case errors.As(err, &errno):
		return &NoResponseError{Text: errno.Error()}
	case errors.As(err, &network):
		return &NoResponseError{Text: "no connection"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &NoResponseError{Text: "the connection was closed without a complete response"}
	}
	return &NoResponseError{Text: "the response is not valid HTTP"}
}
