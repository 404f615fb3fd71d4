// Package webhook signs callbacks, and verifies them for their receivers. The
// scheme is that of https://www.standardwebhooks.com, version 1, with a shared secret.
//
//	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
//	if err == nil {
//		err = webhook.Verify(r.Header, body, []string{secret}, time.Now())
//	}
//	if err != nil {
//		http.Error(w, "not signed", http.StatusUnauthorized)
//		return
//	}
//	var event jobs.Event
//	err = json.Unmarshal(body, &event)
//
// The same event may arrive more than once, with the same [HeaderID].
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of a signed request.
const (
	// HeaderID is the event's ID, the same in every delivery of it.
	HeaderID = "webhook-id"
	// HeaderTimestamp is when the request was signed, in Unix seconds.
	HeaderTimestamp = "webhook-timestamp"
	// HeaderSignature has a signature for each secret, separated by spaces.
	HeaderSignature = "webhook-signature"
)

const (
	// Tolerance is how far [Verify] lets the timestamp and the receiver's clock differ, as
	// the specification's libraries do. A recorded request cannot be replayed later.
	Tolerance = 5 * time.Minute

	secretPrefix    = "whsec_"
	signaturePrefix = "v1,"
	// The specification's limits of a secret.
	minSecretBytes = 24
	maxSecretBytes = 64
)

// Errors of [Verify].
var (
	// ErrUnsigned means that a header is missing or malformed.
	ErrUnsigned = errors.New("not a signed request: a webhook-* header is missing or malformed")
	// ErrTimestamp means that the request was signed more than [Tolerance] before or after
	// the current time.
	ErrTimestamp = errors.New("the timestamp is too far from the present")
	// ErrSignature means that no signature is that of this body with one of the secrets.
	ErrSignature = errors.New("no signature matches")
)

// ValidSecret fails unless the secret is "whsec_" and the base64 of 24 to 64 bytes. The
// error does not repeat it.
func ValidSecret(secret string) error {
	_, err := decodeSecret(secret)
	return err
}

func decodeSecret(secret string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(secret, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < minSecretBytes || len(key) > maxSecretBytes {
		return nil, fmt.Errorf(`must be %s and the base64 of %d to %d random bytes, as made by: echo "%s$(openssl rand -base64 32)"`,
			secretPrefix, minSecretBytes, maxSecretBytes, secretPrefix)
	}
	return key, nil
}

// Sign sets the three headers of a request: the event's ID, the time and a signature of
// each secret over the body. While a secret is rotated there are two, and a receiver needs
// one of them. It fails if there is no secret, or an invalid one.
func Sign(header http.Header, body []byte, secrets []string, eventID string, at time.Time) error {
	if len(secrets) == 0 {
		return errors.New("sign webhook: no secret")
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		key, err := decodeSecret(secret)
		if err != nil {
			return fmt.Errorf("sign webhook: secret %d: %w", i, err)
		}
		signatures[i] = signature(key, eventID, timestamp, body)
	}
	header.Set(HeaderID, eventID)
	header.Set(HeaderTimestamp, timestamp)
	header.Set(HeaderSignature, strings.Join(signatures, " "))
	return nil
}

// Verify reports whether the request is signed with one of the secrets. Call it with the
// body as received, before decoding it. now is the receiver's time.
//
// It fails with [ErrUnsigned], [ErrTimestamp] or [ErrSignature], or if a secret is invalid.
func Verify(header http.Header, body []byte, secrets []string, now time.Time) error {
	id, timestamp := header.Get(HeaderID), header.Get(HeaderTimestamp)
	given := strings.Fields(header.Get(HeaderSignature))
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || err != nil || len(given) == 0 {
		return ErrUnsigned
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > Tolerance || age < -Tolerance {
		return ErrTimestamp
	}
	for i, secret := range secrets {
		key, err := decodeSecret(secret)
		if err != nil {
			return fmt.Errorf("verify webhook: secret %d: %w", i, err)
		}
		want := []byte(signature(key, id, timestamp, body))
		for _, s := range given {
			if hmac.Equal([]byte(s), want) {
				return nil
			}
		}
	}
	return ErrSignature
}

func signature(key []byte, id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	return signaturePrefix + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
