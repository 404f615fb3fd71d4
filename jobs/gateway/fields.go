package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// fieldNames are the client's names of a request's fields, by their names in [jobs.Request].
// Those of the zero value are the same.
type fieldNames struct {
	// given are the names of the fields in the body, and missing those that it should have.
	given, missing map[string]string
	// images are the names of the reference images, in their order.
	images []string
}

// serviceNames returns the names in a body in DashScope's shape. That of
// [dashscope.ProtocolImageGeneration] is flattened first.
func serviceNames(p dashscope.Protocol, input, parameters map[string]json.RawMessage) fieldNames {
	n := fieldNames{given: map[string]string{}, missing: map[string]string{
		"prompt": "input.prompt", "function": "input.function", "mask_image_url": "input.mask_image_url", "ref_images": "input.images",
	}}
	if p == dashscope.ProtocolImageGeneration {
		n.missing = map[string]string{"prompt": "input.messages[0].content", "ref_images": "input.messages[0].content"}
	}
	for name := range parameters {
		n.given[name] = "parameters." + name
	}
	for name := range input {
		n.given[name] = "input." + name
	}
	for _, name := range []string{"ref_img", "ref_image", "sketch_image_url"} { // the first wins
		if _, ok := input[name]; ok {
			n.images, n.given["ref_img"] = []string{"input." + name}, "input."+name
			break
		}
	}
	for _, name := range []string{"ref_images", "images", "base_image_url"} {
		var list []json.RawMessage
		if value, ok := input[name]; !ok {
			continue
		} else if json.Unmarshal(value, &list) != nil {
			n.images = append(n.images, "input."+name)
		}
		for i := range list {
			n.images = append(n.images, fmt.Sprintf("input.%s[%d]", name, i))
		}
		n.given["ref_images"] = "input." + name
	}
	return n
}

// of returns the client's name of a field in an error of package jobs.
func (n fieldNames) of(field string) string {
	if position, ok := strings.CutPrefix(field, "ref_images "); ok { // counted from 1
		if i, err := strconv.Atoi(position); err == nil && i >= 1 && i <= len(n.images) {
			return n.images[i-1]
		}
	}
	switch {
	case field == "ref_img" && len(n.images) > 0:
		return n.images[0]
	case n.given[field] != "":
		return n.given[field]
	case n.missing[field] != "":
		return n.missing[field]
	}
	return field
}

// rename gives the fields of an error the client's names.
func (n fieldNames) rename(err error) error {
	var invalid *jobs.InvalidError
	var busy *referenceUnavailableError
	switch {
	case errors.As(err, &invalid):
		fields := make([]jobs.FieldError, len(invalid.Fields))
		for i, f := range invalid.Fields {
			f.Field = n.of(f.Field)
			fields[i] = f
		}
		return &jobs.InvalidError{Fields: fields}
	case errors.As(err, &busy):
		return &referenceUnavailableError{n.of(busy.field), busy.err}
	}
	return err
}

// serviceBody is the body of a create in DashScope's shape.
type serviceBody struct {
	top, input, parameters map[string]json.RawMessage
}

// readServiceBody splits a body. What is no object is empty: [jobs.ParseServiceRequest] refuses it.
func readServiceBody(body []byte) (b serviceBody) {
	if json.Unmarshal(body, &b.top) == nil {
		_ = json.Unmarshal(b.top["input"], &b.input)
		_ = json.Unmarshal(b.top["parameters"], &b.parameters)
	}
	return b
}

// model returns the name of the model, "" if there is none.
func (b serviceBody) model() (name string) {
	_ = json.Unmarshal(b.top["model"], &name)
	return strings.TrimSpace(name)
}

// flatten returns the body of [dashscope.ProtocolImageGeneration] in the shape of the others, with
// the text and the images of its message in input. The other names in input are ignored there, as
// by the service.
func (b serviceBody) flatten() (flat []byte, names fieldNames, ignored []string, problems []jobs.FieldError) {
	names = serviceNames(dashscope.ProtocolImageGeneration, nil, b.parameters)
	m := message{images: []string{}}
	m.read(b.input["messages"])
	for _, name := range slices.Sorted(maps.Keys(b.input)) {
		if name != "messages" && string(b.input[name]) != "null" {
			ignored = append(ignored, name)
		}
	}
	names.images = m.imageNames
	names.given["ref_images"] = "input.messages[0].content"
	if m.textName != "" {
		names.given["prompt"] = m.textName
	}
	input := map[string]any{"prompt": m.text}
	if len(m.images) > 0 {
		input["images"] = m.images
	}
	top := map[string]any{}
	for name, value := range b.top {
		top[name] = value
	}
	top["input"] = input
	flat, err := json.Marshal(top)
	if err != nil {
		m.problem("input.messages", []byte(err.Error()), "JSON")
	}
	return flat, names, ignored, m.problems
}

// message is the only message of a body of [dashscope.ProtocolImageGeneration].
type message struct {
	text, textName     string
	images, imageNames []string
	problems           []jobs.FieldError
}

// messageSample is shown with what is wrong with a message.
const messageSample = `one message, as in [{"role":"user","content":[{"text":"…"},{"image":"https://…"}]}]`

func (m *message) problem(field string, value []byte, allowed string) {
	const most = 80 // bytes of JSON that are shown
	shown := strings.ToValidUTF8(string(value[:min(len(value), most)]), "")
	if len(value) > most {
		shown += "…"
	}
	if before, _, query := strings.Cut(shown, "?"); query { // perhaps a signature
		shown = before + "?…"
	}
	if len(value) == 0 {
		shown = "missing"
	}
	if len(m.problems) < maxMessageProblems {
		m.problems = append(m.problems, jobs.FieldError{Field: field, Value: shown, Allowed: allowed})
	}
}

// maxMessageProblems limits the problems that one message is refused with.
const maxMessageProblems = 20

func (m *message) read(value json.RawMessage) {
	const at = "input.messages"
	var messages []struct {
		Role    json.RawMessage `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(value, &messages) != nil || len(messages) == 0 {
		m.problem(at, value, messageSample)
		return
	}
	if len(messages) > 1 {
		m.problem(at, fmt.Appendf(nil, "%d messages", len(messages)), messageSample)
		return
	}
	if role := messages[0].Role; len(role) > 0 && string(role) != `"user"` {
		m.problem(at+"[0].role", role, `"user"`)
	}
	content := at + "[0].content"
	var parts []map[string]json.RawMessage
	if json.Unmarshal(messages[0].Content, &parts) != nil {
		m.problem(content, messages[0].Content, `a list of texts and images, as in [{"text":"…"},{"image":"https://…"}]`)
		return
	}
	for i, part := range parts {
		m.part(fmt.Sprintf("%s[%d]", content, i), part)
	}
}

// part reads one text or image. A type beside it is what answers have.
func (m *message) part(at string, part map[string]json.RawMessage) {
	var kind, value string
	for name, raw := range part {
		switch {
		case name == "type", string(raw) == "null":
		case name != "text" && name != "image", kind != "":
			encoded, _ := json.Marshal(part) // it was JSON
			m.problem(at, encoded, `either {"text":"…"} or {"image":"https://…"}`)
			return
		default:
			if kind = name; json.Unmarshal(raw, &value) != nil {
				m.problem(at+"."+name, raw, "text in quotes")
				return
			}
		}
	}
	switch {
	case kind == "image":
		m.images, m.imageNames = append(m.images, value), append(m.imageNames, at+".image")
	case kind == "":
		m.problem(at, []byte("{}"), `either {"text":"…"} or {"image":"https://…"}`)
	case m.textName != "":
		m.problem(at+".text", part["text"], "one text: "+m.textName+" is another")
	default:
		m.text, m.textName = value, at+".text"
	}
}
