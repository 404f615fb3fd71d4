package compactjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// sumField begins the last field of a line: the CRC-32C of all bytes before it, in hex.
const sumField = `,"sum":"`

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of [UnmarshalLine].
var (
	// ErrTorn means that a line has no end: a crash interrupted its write.
	ErrTorn = errors.New("it has no end")
	// ErrSum means that a line is not what was written.
	ErrSum = errors.New("its checksum does not match")
)

// MarshalLine returns the JSON of v, an object with at least one field, with a checksum as
// its last field, and a newline. It fails as [json.Marshal] does.
func MarshalLine(v any) ([]byte, error) {
	line, err := Marshal(v)
	if err != nil {
		return nil, err
	}
	line = line[:len(line)-1]
	return fmt.Appendf(line, "%s%08x\"}\n", sumField, crc32.Checksum(line, castagnoli)), nil
}

// UnmarshalLine decodes a line of [MarshalLine] into v. It fails with [ErrTorn] if only the
// beginning of the line is given, with [ErrSum] if any byte of it was changed, or as
// [json.Unmarshal] does.
func UnmarshalLine(line []byte, v any) error {
	text, ended := bytes.CutSuffix(line, []byte("\n"))
	switch {
	case !ended && len(line) > 0 && hasSum(line[:len(line)-1]):
		return ErrSum // the newline was changed
	case !ended:
		return ErrTorn
	case !hasSum(text):
		return ErrSum
	}
	return json.Unmarshal(text, v)
}

// hasSum reports whether a line without its newline ends with its checksum.
func hasSum(text []byte) bool {
	at := bytes.LastIndex(text, []byte(sumField))
	return at >= 0 && string(text[at:]) == fmt.Sprintf("%s%08x\"}", sumField, crc32.Checksum(text[:at], castagnoli))
}
