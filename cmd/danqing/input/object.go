package input

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/danqing-queue/danqing/jobs/compactjson"
)

// member is a name and a value of an object.
type member struct {
	name  string
	value json.RawMessage
}

// object is a JSON object that keeps its order.
type object []member

var errNoObject = errors.New("not a JSON object")

// parseObject reads a JSON object.
func parseObject(text []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, errNoObject
	}
	var o object
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: fmt.Sprint(name)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		o = append(o, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	return o, nil
}

// text encodes the object.
func (o object) text() []byte {
	b := bytes.NewBufferString("{")
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(m.name))
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// get returns a value, or nil if there is none, or null.
func (o object) get(name string) json.RawMessage {
	for _, m := range o {
		if m.name == name && string(m.value) != "null" {
			return m.value
		}
	}
	return nil
}

// set returns the object with a value, in its place or at the end.
func (o object) set(name string, value json.RawMessage) object {
	o = slices.Clone(o)
	for i := range o {
		if o[i].name == name {
			o[i].value = value
			return o
		}
	}
	return append(o, member{name, value})
}

// asks reports whether the object has a value for a field of a job, in any of the places and
// spellings that [jobs.Request.UnmarshalJSON] reads.
func (o object) asks(field string) bool {
	names := []string{field}
	if all := referenceNames(); slices.Contains(all, field) {
		names = all
	}
	places := []object{o}
	for _, name := range []string{"input", "parameters"} {
		if inner, err := parseObject(o.get(name)); err == nil {
			places = append(places, inner)
		}
	}
	for _, place := range places {
		for _, name := range names {
			if place.get(name) != nil {
				return true
			}
		}
	}
	return false
}

// referenceNames are the spellings of the reference images.
func referenceNames() []string {
	return []string{"ref_img", "ref_image", "sketch_image_url", "ref_images", "images", "base_image_url"}
}

// quote encodes a text as JSON.
func quote(s string) json.RawMessage {
	text, err := compactjson.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`) // a string always has an encoding
	}
	return text
}
