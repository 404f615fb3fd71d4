package config

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "**redacted**"

// Secret is a value that only Reveal returns: fmt, encoding/json and log/slog print
// **redacted**, or nothing if it is empty. The zero value is empty.
//
// It is not a string type, because fmt does not call the methods of strings in unexported
// fields, or for some verbs.
type Secret struct{ value *string }

// NewSecret returns value as a Secret.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{&value}
}

// IsSet reports whether the value is not empty.
func (s Secret) IsSet() bool { return s.value != nil }

// Reveal returns the value.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// String returns **redacted**, or "" if the value is empty.
func (s Secret) String() string {
	if s.value == nil {
		return ""
	}
	return redacted
}

// Format prints String for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns String, for encoding/json.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
