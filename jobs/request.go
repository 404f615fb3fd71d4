package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Request is what a producer asks for: n images of one model. The zero value of
// every field but Prompt means its default. [Request.Normalize] fills the
// defaults in and checks the whole.
type Request struct {
	// ID is the job's, see [ValidID]; empty until somebody chooses one.
	ID string `json:"id,omitempty"`
	// Model is a name of the catalogue; empty is [DefaultModel].
	Model string `json:"model,omitempty"`
	// Prompt says what to paint; the one field that must be given. It is sent
	// whole, byte for byte.
	Prompt string `json:"prompt"`
	// NegativePrompt says what must not be seen.
	NegativePrompt string `json:"negative_prompt,omitempty"`
	// Style is a value of the model's, if it has styles, with or without angle brackets, or its
	// Chinese name; empty is the model's default.
	Style string `json:"style,omitempty"`
	// Size is width*height in pixels; x and × are read too. Empty is the
	// model's default.
	Size string `json:"size,omitempty"`
	// N is how many images; 0 is 1. (DashScope's own default of 4 would cost
	// four times as much.)
	N int `json:"n,omitempty"`
	// Seed is that of the first image, 0 to 2147483647; the others take the
	// seeds that follow. Nil: see [Request.WithSeed].
	Seed *int64 `json:"seed,omitempty"`
	// RefImg is a reference image: an http(s) URL that Alibaba can reach, or
	// the name of a staged file, "sha256:" and 64 hex digits.
	RefImg string `json:"ref_img,omitempty"`
	// RefStrength is how close to the reference, 0 to 1; nil leaves it to the
	// service.
	RefStrength *float64 `json:"ref_strength,omitempty"`
	// RefMode is "repaint" (keep the content; the default) or "refonly" (keep
	// the style).
	RefMode string `json:"ref_mode,omitempty"`
	// PromptExtend lets a language model of the service rewrite the prompt
	// first; for models that have it. Nil is the service's default, true, which
	// [Request.Normalize] writes out; what became of the prompt comes back as
	// actual_prompt.
	PromptExtend *bool `json:"prompt_extend,omitempty"`
	// Watermark puts the service's mark at the bottom right; for models that
	// have it. Nil is false, which [Request.Normalize] writes out.
	Watermark *bool `json:"watermark,omitempty"`
	// Priority is "critical", "default" or "bulk"; empty is "default".
	Priority string `json:"priority,omitempty"`
	// Labels are the producer's own: at most 16, names of 1 to 64 characters,
	// values of at most 256, no control characters.
	Labels map[string]string `json:"labels,omitempty"`
	// RedoOf is the ID of the job that this one does again with a new seed.
	RedoOf string `json:"redo_of,omitempty"`
	// NotBefore keeps the job from being submitted earlier; zero is at once. It is
	// looked at every second or so.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Deadline is when the job is worthless if it was not submitted before: it then
	// fails with [CodeDeadlineExceeded], and costs nothing. What is under way by then
	// is finished. Zero is none.
	Deadline time.Time `json:"deadline,omitzero"`
	// Callback is an http(s) URL that is told of the job's end by a signed POST, see
	// [Event]. Its host must have a public address, unless the worker allows others.
	Callback string `json:"callback,omitempty"`
	// FollowUp is a message of the producer's own that is queued when the job ends;
	// nil is none.
	FollowUp *FollowUp `json:"follow_up,omitempty"`
	// Stage asks to copy the reference image at RefImg, a URL, into the bucket before
	// the job is queued, so that it cannot vanish meanwhile. Whoever has the bucket
	// does so and clears it: the command line, the gateway. [Client.Enqueue], which has
	// none, refuses it.
	Stage bool `json:"stage,omitempty"`
	// Producer is the name of the gateway's token that asked for the job, which the
	// gateway sets; 1 to 64 characters of A-Z a-z 0-9 . _ -, or empty.
	Producer string `json:"producer,omitempty"`
	// Batch and LineID are the names that a batch file gave, for image keys and
	// the sidecar. [ReadBatch] sets them, whatever the line says.
	Batch  string `json:"batch,omitempty"`
	LineID string `json:"line_id,omitempty"`
}

// FollowUp names an asynq task of the producer's own: when a job has ended it is put
// into that queue, once for each [Event] while asynq remembers its ID (which is the
// event's), with the event as JSON for its payload.
type FollowUp struct {
	// Type is the task's type, 1 to 128 characters without control characters; not
	// one of Danqing's own.
	Type string `json:"type"`
	// Queue is the asynq queue, like Type; empty is asynq's "default".
	Queue string `json:"queue,omitempty"`
}

// StagedPrefix begins the name of a staged reference image; the SHA-256 of its
// bytes in hex follows.
const StagedPrefix = "sha256:"

var _ json.Unmarshaler = (*Request)(nil)

// shapingNames are the fields that DashScope's own body has below input and
// parameters; ownNames are ours. Both in the order of [Request].
func shapingNames() []string {
	return []string{
		"prompt", "negative_prompt", "style", "size", "n", "seed",
		"ref_img", "ref_image", "sketch_image_url", "ref_strength", "ref_mode",
		"prompt_extend", "watermark",
	}
}

// topNames are the names that a producer may write at the top level.
func topNames() []string {
	own := []string{"id", "model", "priority", "labels", "redo_of", "not_before", "deadline", "callback", "follow_up", stageName, "input", "parameters", resultKey}
	return append(own, shapingNames()...)
}

// stageName is one letter from a producer's own "state": it has to be spelt right.
const stageName = "stage"

// messageNames are those of a request that is ours already. In a batch file,
// "batch" and "line_id" are the producer's own columns.
func messageNames() []string { return append(topNames(), "batch", "line_id", "producer") }

// UnmarshalJSON reads a request in its flat form or as DashScope's own body
// ({"model", "input": {…}, "parameters": {…}}), or a mix. The reference image is
// read from ref_img, ref_image (the document's curl lines) and sketch_image_url
// (its Python samples); ref_img wins, as in DashScope, and two others that
// differ are an error. A null is as if absent. An ID may be a whole number.
//
// The error is an [*InvalidError] with all that is wrong: types, a name that
// comes twice, an unknown name inside input or parameters, and an unknown name
// that looks like a slip for a known one. Other unknown names are ignored, and
// so is "danqing", which a results file has.
func (r *Request) UnmarshalJSON(data []byte) error {
	got, err := readRequest(data, messageNames())
	if err == nil {
		*r = got
	}
	return err
}

// ParseRequest reads a request as a producer may write it: as [Request.UnmarshalJSON]
// does, but Batch, LineID and Producer are not the producer's to set, and ignored. It
// is not normalised.
func ParseRequest(data []byte) (Request, error) { return readRequest(data, topNames()) }

func readRequest(data []byte, names []string) (Request, error) {
	if !utf8.Valid(data) {
		return Request{}, &InvalidError{Fields: []FieldError{{Field: "request", Value: show(string(data)), Allowed: "UTF-8"}}}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	r, problems := decodeRequest(compact.Bytes(), names)
	if len(problems) > 0 {
		return Request{}, &InvalidError{Fields: problems}
	}
	return r, nil
}

// member is one name and value of an object.
type member struct {
	name  string
	both  []byte // name and value, as written
	value json.RawMessage
}

// members splits a valid, compact JSON object; nil for any other value.
func members(object []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, err
	}
	var list []member
	for dec.More() {
		start := dec.InputOffset()
		if object[start] == ',' {
			start++
		}
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: fmt.Sprint(name)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		m.both = object[start:dec.InputOffset()]
		list = append(list, m)
	}
	return list, nil
}

// decodeRequest reads a request from valid, compact JSON, by these names at the
// top level. What it returns beside problems is as far as it could be read.
func decodeRequest(data []byte, names []string) (Request, []FieldError) {
	d := decoder{given: map[string]given{}}
	if len(data) == 0 || data[0] != '{' {
		d.problem("request", data, "a JSON object, as in {\"prompt\": \"…\"}", "")
		return Request{}, d.problems
	}
	if i := loneSurrogate(data); i >= 0 {
		d.problem("request", data[i:i+6], "whole characters", "this is half of one: a text was cut within an emoji")
	}
	d.collect("", data, names)
	r := Request{
		ID:             d.id(),
		Model:          d.text("model"),
		Prompt:         d.text("prompt"),
		NegativePrompt: d.text("negative_prompt"),
		Style:          d.text("style"),
		Size:           d.text("size"),
		N:              d.count("n"),
		Seed:           d.whole("seed"),
		RefImg:         d.reference(),
		RefStrength:    d.number("ref_strength"),
		RefMode:        d.text("ref_mode"),
		PromptExtend:   d.flag("prompt_extend"),
		Watermark:      d.flag("watermark"),
		Priority:       d.text("priority"),
		Labels:         d.labels(),
		RedoOf:         d.text("redo_of"),
		NotBefore:      d.moment("not_before"),
		Deadline:       d.moment("deadline"),
		Callback:       d.text("callback"),
		FollowUp:       d.followUp(),
		Stage:          d.whether(stageName),
		Producer:       d.text("producer"),
		Batch:          d.text("batch"),
		LineID:         d.text("line_id"),
	}
	return r, d.problems
}

// loneSurrogate returns where valid JSON escapes half of a UTF-16 pair, or -1.
// encoding/json would put U+FFFD there without a word.
func loneSurrogate(data []byte) int {
	unit := func(i int) rune {
		if i+6 > len(data) || data[i] != '\\' || data[i+1] != 'u' {
			return -1
		}
		v, err := strconv.ParseUint(string(data[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return rune(v)
	}
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		switch u := unit(i); {
		case !utf16.IsSurrogate(u):
			i++ // over the escaped character
		case utf16.DecodeRune(u, unit(i+6)) == utf8.RuneError:
			return i
		default:
			i += 11
		}
	}
	return -1
}

// given is a value as it was found: where, and what.
type given struct {
	path  string
	value json.RawMessage
}

// decoder reads named values and keeps what is wrong with them.
type decoder struct {
	given    map[string]given
	problems []FieldError
}

func (d *decoder) problem(field string, value []byte, allowed, remedy string) {
	d.problems = append(d.problems, FieldError{
		Field: field, Value: showJSON(field, value), Allowed: allowed, Remedy: remedy,
	})
}

// collect takes in the members of one object whose names start with prefix.
func (d *decoder) collect(prefix string, object []byte, known []string) {
	list, err := members(object)
	if err != nil {
		d.problem(strings.TrimSuffix(prefix, "."), object, "JSON", err.Error())
		return
	}
	seen := map[string]bool{}
	for _, m := range list {
		path := prefix + m.name
		if seen[m.name] {
			d.problem(path, m.value, "each name once", "this is the second")
			continue
		}
		seen[m.name] = true
		switch {
		case m.name == resultKey && prefix == "":
		case !slices.Contains(known, m.name):
			d.unknown(prefix, m, known)
		case string(m.value) == "null":
		case m.name == "input" || m.name == "parameters":
			if m.value[0] != '{' {
				d.problem(path, m.value, "an object, as in DashScope's own body", "")
				continue
			}
			d.collect(path+".", m.value, shapingNames())
		default:
			d.add(path, m)
		}
	}
}

// unknown decides on a name that is none of ours: at the top level it is the
// producer's own, unless it looks like a slip; inside DashScope's objects there
// is nothing of the producer's.
func (d *decoder) unknown(prefix string, m member, known []string) {
	near := mistaken(m.name, known)
	switch {
	case near == "batch", near == "line_id", near == "producer": // nobody writes these by hand
	case near == stageName:
	case near != "" && prefix == "":
		d.problem(m.name, m.value, "", fmt.Sprintf("did you mean %q? (a column of your own needs another name)", near))
	case near != "":
		d.problem(prefix+m.name, m.value, "", fmt.Sprintf("did you mean %q?", near))
	case prefix != "":
		d.problem(prefix+m.name, m.value, "here only "+strings.Join(known, ", "), "")
	}
}

// add takes in a known name. The same value in two places is fine: the official
// Java SDK writes negative_prompt into input and parameters.
func (d *decoder) add(path string, m member) {
	before, twice := d.given[m.name]
	if !twice {
		d.given[m.name] = given{path, m.value}
		return
	}
	if !bytes.Equal(before.value, m.value) {
		d.problem(path, m.value, "one value", fmt.Sprintf("%s says %s", before.path, showJSON(m.name, before.value)))
	}
}

func (d *decoder) text(name string) string {
	g, ok := d.given[name]
	if !ok {
		return ""
	}
	var s string
	if json.Unmarshal(g.value, &s) != nil {
		d.problem(g.path, g.value, "text in quotes", "")
	}
	return s
}

// id is a text, or the whole number that a spreadsheet makes of it.
func (d *decoder) id() string {
	g, ok := d.given["id"]
	if _, err := strconv.ParseInt(string(g.value), 10, 64); ok && err == nil {
		return string(g.value)
	}
	return d.text("id")
}

func (d *decoder) flag(name string) *bool {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	var b bool
	if json.Unmarshal(g.value, &b) != nil {
		d.problem(g.path, g.value, "true or false without quotes", "")
		return nil
	}
	return &b
}

// whether is a flag whose absence is false.
func (d *decoder) whether(name string) bool {
	b := d.flag(name)
	return b != nil && *b
}

func (d *decoder) moment(name string) time.Time {
	g, ok := d.given[name]
	if !ok {
		return time.Time{}
	}
	var at time.Time
	if json.Unmarshal(g.value, &at) != nil {
		d.problem(g.path, g.value, "a time with its zone in quotes, as in 2026-11-28T18:30:00+08:00", "")
		return time.Time{}
	}
	return at.UTC()
}

func (d *decoder) followUp() *FollowUp {
	g, ok := d.given["follow_up"]
	if !ok {
		return nil
	}
	var f FollowUp
	dec := json.NewDecoder(bytes.NewReader(g.value))
	if dec.DisallowUnknownFields(); dec.Decode(&f) != nil {
		d.problem(g.path, g.value, `a type and a queue of your own asynq server, as in {"type": "image:ready", "queue": "shop"}`, "")
		return nil
	}
	return &f
}

func (d *decoder) number(name string) *float64 {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	var f float64
	if json.Unmarshal(g.value, &f) != nil {
		d.problem(g.path, g.value, "a number without quotes", "")
		return nil
	}
	return &f
}

// whole reads an integer, however it is written: 2, 2.0 and 2e0 are the same.
func (d *decoder) whole(name string) *int64 {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	if v, err := strconv.ParseInt(string(g.value), 10, 64); err == nil {
		return &v
	}
	const exact = 1 << 53 // beyond, float64 has gaps
	var f float64
	if json.Unmarshal(g.value, &f) != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		d.problem(g.path, g.value, "a whole number without quotes", "")
		return nil
	}
	v := int64(f)
	return &v
}

// count is a whole number of which 0 means absent in a [Request], so that a 0
// that is spelt out must be refused here.
func (d *decoder) count(name string) int {
	v := d.whole(name)
	if v == nil {
		return 0
	}
	if *v < 1 || *v > math.MaxInt32 {
		d.problem(d.given[name].path, d.given[name].value, "a whole number, 1 or more", "leave it out for 1")
		return 0
	}
	return int(*v)
}

// reference reads the three names of the reference image. DashScope lets
// ref_img win (wanx-v1 API reference, sample comment).
func (d *decoder) reference() string {
	if ref := d.text("ref_img"); ref != "" {
		return ref
	}
	image, sketch := d.text("ref_image"), d.text("sketch_image_url")
	if image != "" && sketch != "" && image != sketch {
		g := d.given["sketch_image_url"]
		d.problem(g.path, g.value, "one reference image",
			fmt.Sprintf("ref_image says %s; name the one that is meant ref_img", showJSON("ref_image", d.given["ref_image"].value)))
	}
	if image != "" {
		return image
	}
	return sketch
}

func (d *decoder) labels() map[string]string {
	g, ok := d.given["labels"]
	if !ok {
		return nil
	}
	const allowed = `an object of texts, as in {"sku": "A-17"}`
	if g.value[0] != '{' {
		d.problem(g.path, g.value, allowed, "")
		return nil
	}
	list, err := members(g.value)
	if err != nil {
		d.problem(g.path, g.value, allowed, err.Error())
		return nil
	}
	labels := make(map[string]string, len(list))
	for _, m := range list {
		var s string
		if _, twice := labels[m.name]; twice {
			d.problem("labels."+m.name, m.value, "each name once", "this is the second")
		} else if m.value[0] != '"' || json.Unmarshal(m.value, &s) != nil {
			d.problem("labels."+m.name, m.value, "text in quotes", "")
		}
		labels[m.name] = s
	}
	return labels
}
