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

// guard closes two gaps of the front: it stores the framing of a body that has
// no length, and it never compares the hash that a request is signed with to
// the body that came.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 && r.Header.Get("X-Amz-Decoded-Content-Length") == "" {
			refuse(w, http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
			return
		}
		if want, err := hex.DecodeString(r.Header.Get("X-Amz-Content-Sha256")); err == nil && len(want) == sha256.Size {
			if r.ContentLength == 0 {
				if empty := sha256.Sum256(nil); !bytes.Equal(want, empty[:]) {
					refuse(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch", mismatch)
					return
				}
			} else {
				r.Body = &signedBody{ReadCloser: r.Body, left: r.ContentLength, hash: sha256.New(), want: want}
			}
		}
		next.ServeHTTP(w, r)
	})
}

const mismatch = "The provided 'x-amz-content-sha256' header does not match what was computed."

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_ = xml.NewEncoder(w).Encode(struct { // the client has gone if this fails
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: code, Message: message})
}

// signedBody fails at the body's last byte, before anybody can take it for
// whole, if it is not the one that was signed.
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
		// The front answers an error code that it does not know with a 500.
		return n, gofakes3.ErrorMessage(gofakes3.ErrBadDigest, mismatch)
	}
	return n, err
}
