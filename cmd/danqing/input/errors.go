package input

import (
	"fmt"
	"strings"
)

// Error is a mistake in a file or in how it is to be read.
type Error struct {
	Err error
	// Hint is what to do.
	Hint string
}

func (e *Error) Error() string { return strings.ToValidUTF8(e.Err.Error(), "\ufffd") }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func errorf(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint}
}
