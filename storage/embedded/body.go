package embedded

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"hash"
	"io"
	"net/http"

	"github.com/rclone/gofakes3"
)

// verifyBody closes two gaps of gofakes3: it would store the framing of a body without
// Content-Length, and it does not compare the body with the hash in the signature.
func verifyBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 && r.Header.Get("X-Amz-Decoded-Content-Length") == "" {
			writeError(w, http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
			return
		}
		if want, err := hex.DecodeString(r.Header.Get("X-Amz-Content-Sha256")); err == nil && len(want) == sha256.Size {
			if r.ContentLength == 0 {
				if empty := sha256.Sum256(nil); !bytes.Equal(want, empty[:]) {
					writeError(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch", mismatchMessage)
					return
				}
			} else {
				r.Body = &signedBody{ReadCloser: r.Body, left: r.ContentLength, hash: sha256.New(), want: want}
			}
		}
		next.ServeHTTP(w, r)
	})
}

const mismatchMessage = "The provided 'x-amz-content-sha256' header does not match what was computed."

func writeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_ = xml.NewEncoder(w).Encode(struct { // fails only if the client has disconnected
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: code, Message: message})
}

// signedBody verifies the hash of a body. On a mismatch, the Read of the last byte
// fails, so that the body is never taken for complete.
type signedBody struct {
	io.ReadCloser

	left int64
	hash hash.Hash
	want []byte
}

func (b *signedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	_, _ = b.hash.Write(p[:n]) // hashes do not fail
	b.left -= int64(n)
	if b.left == 0 && n > 0 && !bytes.Equal(b.hash.Sum(nil), b.want) {
		// gofakes3 answers with a 500 for error codes other than its own.
		return n, gofakes3.ErrorMessage(gofakes3.ErrBadDigest, mismatchMessage)
	}
	return n, err
}
