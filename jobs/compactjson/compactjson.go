// Package compactjson encodes JSON for programs and people: in one line, with <, > and &
// as they are.
package compactjson

import (
	"bytes"
	"encoding/json"
)

// Marshal returns the JSON of v, without a newline at its end. It fails as
// [json.Marshal] does.
func Marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}
