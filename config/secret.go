package config

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "**redacted**"

// Secret is a value that shows itself to nobody who does not call Reveal: fmt,
// encoding/json and log/slog print **redacted**, or nothing if it is empty. The
// zero value is empty.
//
// It is no string, because fmt reads strings past their methods where it meets
// them in unexported fields or with a verb that does not fit.
type Secret struct{ value *string }

// NewSecret hides a value.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// IsSet tells whether there is something to hide.
func (s Secret) IsSet() bool { return s.value != nil }

// Reveal returns the value, for the one who must send it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// String returns **redacted**, or "" if there is nothing to hide.
func (s Secret) String() string {
	if s.value == nil {
		return ""
	}
	return redacted
}

// Format is String, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText is String; encoding/json uses it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
