package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Request is a producer's request for n images of one model. The zero value of every field
// except Prompt means its default. [Request.Normalize] sets the defaults and checks the
// request.
type Request struct {
	// ID is the job's ID, see [ValidID]; empty until one is chosen.
	ID string `json:"id,omitempty"`
	// Model is a name of the catalog; empty is [DefaultModel].
	Model string `json:"model,omitempty"`
	// Prompt describes the image. It is required, and sent unchanged.
	Prompt string `json:"prompt"`
	// NegativePrompt describes what the image must not show.
	NegativePrompt string `json:"negative_prompt,omitempty"`
	// Style is a style of the model, with or without angle brackets, or its Chinese name;
	// empty is the model's default.
	Style string `json:"style,omitempty"`
	// Size is width*height in pixels; x and × are accepted too. Empty is the
	// model's default.
	Size string `json:"size,omitempty"`
	// N is the number of images; 0 means 1. (DashScope's own default is 4, which costs four
	// times as much.)
	N int `json:"n,omitempty"`
	// Seed is the seed of the first image, 0 to 2147483647; the others have the following
	// seeds. Nil: see [Request.WithSeed].
	Seed *int64 `json:"seed,omitempty"`
	// RefImg is a reference image: an http(s) URL that Alibaba can reach, or
	// the name of a staged file, "sha256:" and 64 hex digits.
	RefImg string `json:"ref_img,omitempty"`
	// RefStrength is the similarity to the reference, 0 to 1; nil is the service's default.
	RefStrength *float64 `json:"ref_strength,omitempty"`
	// RefMode is "repaint" (keep the content; the default) or "refonly" (keep
	// the style).
	RefMode string `json:"ref_mode,omitempty"`
	// PromptExtend lets a language model of the service rewrite the prompt first; for
	// models that have it. Nil is the service's default, true, which [Request.Normalize]
	// sets. The rewritten prompt is [Image.ActualPrompt].
	PromptExtend *bool `json:"prompt_extend,omitempty"`
	// Watermark puts the service's mark at the bottom right; for models that
	// have it. Nil is false, which [Request.Normalize] sets.
	Watermark *bool `json:"watermark,omitempty"`
	// RefImages are the reference images of a model that edits, each as RefImg, in the order in
	// which the prompt may count them. A single one may be RefImg as well.
	RefImages []string `json:"ref_images,omitempty"`
	// MaskImageURL is the mask of a function that needs one, as RefImg: white where the image
	// is to be edited, black elsewhere.
	MaskImageURL string `json:"mask_image_url,omitempty"`
	// Function is what a model with functions does with the image, see [Model.Functions].
	Function string `json:"function,omitempty"`
	// The following are for the models and functions whose [Option] they are. Nil and "" are
	// the option's default, which [Request.Normalize] sets.

	// PromptExtendMode is how the prompt is rewritten.
	PromptExtendMode string `json:"prompt_extend_mode,omitempty"`
	// EnableThinking (Qwen-Image) and ThinkingMode (Wan) let the model think first.
	EnableThinking *bool `json:"enable_thinking,omitempty"`
	ThinkingMode   *bool `json:"thinking_mode,omitempty"`
	// EnableSequential asks for a group of at most N images that belong together.
	EnableSequential *bool `json:"enable_sequential,omitempty"`
	// Strength is how much is changed.
	Strength *float64 `json:"strength,omitempty"`
	// UpscaleFactor is by how much the image is enlarged.
	UpscaleFactor *float64 `json:"upscale_factor,omitempty"`
	// TopScale, BottomScale, LeftScale and RightScale are by how much the image is expanded to
	// each side, as a multiple of the image.
	TopScale    *float64 `json:"top_scale,omitempty"`
	BottomScale *float64 `json:"bottom_scale,omitempty"`
	LeftScale   *float64 `json:"left_scale,omitempty"`
	RightScale  *float64 `json:"right_scale,omitempty"`
	// IsSketch is whether the image is a sketch already.
	IsSketch *bool `json:"is_sketch,omitempty"`
	// Priority is "critical", "default" or "bulk"; empty is "default".
	Priority string `json:"priority,omitempty"`
	// Labels are the producer's own: at most 16, names of 1 to 64 characters,
	// values of at most 256, no control characters.
	Labels map[string]string `json:"labels,omitempty"`
	// RedoOf is the ID of the job that this job repeats with a new seed.
	RedoOf string `json:"redo_of,omitempty"`
	// NotBefore is the earliest time of the submit; zero is at once. It is checked about
	// every second.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Deadline is the latest time of the submit: a job that still waits then fails with
	// [CodeDeadlineExceeded], and costs nothing. A submitted job is finished. Zero means no
	// deadline.
	Deadline time.Time `json:"deadline,omitzero"`
	// Callback is an http(s) URL that receives a signed POST at the job's end, see [Event].
	// Its host must have a public address, unless the worker allows others.
	Callback string `json:"callback,omitempty"`
	// FollowUp is a task in a queue of the producer that is enqueued at the job's end; nil
	// means none.
	FollowUp *FollowUp `json:"follow_up,omitempty"`
	// Stage is whether the reference image at RefImg, a URL, is copied into the bucket
	// before the job is enqueued, so that it is still there at the submit. The command line
	// and the gateway copy it and clear Stage. [Client.Enqueue] has no bucket and refuses
	// it.
	Stage bool `json:"stage,omitempty"`
	// Producer is the name of the gateway's token that enqueued the job; the gateway sets
	// it. 1 to 64 characters of A-Z a-z 0-9 . _ -, or empty.
	Producer string `json:"producer,omitempty"`
	// Batch and LineID are the names in a batch file, for image keys and the sidecar.
	// [ReadBatch] sets them; fields of the line with these names are ignored.
	Batch  string `json:"batch,omitempty"`
	LineID string `json:"line_id,omitempty"`
}

// FollowUp is an asynq task for the producer. At the end of the job it is enqueued with the
// [Event] as JSON. Its ID is the event's, so that asynq accepts it only once while it keeps
// the task.
type FollowUp struct {
	// Type is the task's type, 1 to 128 characters without control characters; it must not
	// begin with "danqing:".
	Type string `json:"type"`
	// Queue is the asynq queue, with the same rules as Type; empty is asynq's "default".
	Queue string `json:"queue,omitempty"`
}

// StagedPrefix begins the name of a staged reference image; the SHA-256 of its
// bytes in hex follows.
const StagedPrefix = "sha256:"

var _ json.Unmarshaler = (*Request)(nil)

// shapingNames are the fields in input and parameters of DashScope's body, in the order of
// [Request].
func shapingNames() []string {
	names := []string{
		"prompt", "negative_prompt", "style", "size", "n", "seed",
		"ref_img", "ref_image", "sketch_image_url", "ref_strength", "ref_mode",
		"prompt_extend", "watermark", "ref_images", "mask_image_url", "function",
	}
	return append(names, OptionNames()...)
}

// serviceNames are the names in input and parameters of DashScope's body. Those that are only
// there are likely columns of a producer at the top level.
func serviceNames() []string { return append(shapingNames(), "images", "base_image_url") }

// topNames are the names that a producer may write at the top level.
func topNames() []string {
	own := []string{"id", "model", "priority", "labels", "redo_of", "not_before", "deadline", "callback", "follow_up", stageName, "input", "parameters", resultKey}
	return append(own, shapingNames()...)
}

// stageName is never suggested: it is one letter from "state", a likely column of a producer.
const stageName = "stage"

// messageNames are the names in an encoded [Request]. In a batch file, "batch" and "line_id"
// are columns of the producer.
func messageNames() []string { return append(topNames(), "batch", "line_id", "producer") }

// UnmarshalJSON reads a request in its flat form or as DashScope's own body
// ({"model", "input": {…}, "parameters": {…}}), or a mix. The reference image is read from
// ref_img, ref_image (the curl samples of the API reference) and sketch_image_url (its Python
// samples); ref_img wins, as in DashScope, and different values of the other two are an
// error. The images of a model that edits are read from ref_images, or from images
// or base_image_url in input. A null counts as absent. An ID may be a whole number.
//
// The error is an [*InvalidError] with every wrong type, duplicate name, unknown name in
// input or parameters, and unknown name that is probably a misspelling of a known one. Other
// unknown names are ignored, and so is "danqing", which a results file has.
func (r *Request) UnmarshalJSON(data []byte) error {
	got, err := readRequest(data, messageNames(), &decoder{})
	if err == nil {
		*r = got
	}
	return err
}

// ParseRequest reads a producer's request like [Request.UnmarshalJSON], but ignores Batch,
// LineID and Producer, which a producer must not set. The result is not normalized.
func ParseRequest(data []byte) (Request, error) { return readRequest(data, topNames(), &decoder{}) }

// ParseServiceRequest reads a request like [ParseRequest], but as DashScope does: names that
// its model does not honor are ignored, whatever their values, and so are ref_mode and
// ref_strength without a reference image. It returns the ignored names in the order of the
// body, without "input." and "parameters.". At the top level, where Danqing's own fields are,
// a misspelling is still an error.
func ParseServiceRequest(data []byte) (r Request, ignored []string, err error) {
	d := &decoder{honors: func(name string) bool { return slices.Contains(serviceNames(), name) }}
	var head struct {
		Model string `json:"model"`
	}
	if json.Unmarshal(data, &head) == nil {
		if m, err := lookupModel(modelName(strings.TrimSpace(head.Model)), catalog()); err == nil {
			d.honors = m.Honors
		}
	}
	r, err = readRequest(data, topNames(), d)
	if err == nil && r.RefImg == "" {
		for _, name := range []string{"ref_mode", "ref_strength"} {
			if _, given := d.given[name]; given {
				d.ignore(name)
			}
		}
		r.RefMode, r.RefStrength = "", nil
	}
	return r, d.ignored, err
}

func readRequest(data []byte, names []string, d *decoder) (Request, error) {
	if !utf8.Valid(data) {
		return Request{}, &InvalidError{Fields: []FieldError{{Field: "request", Value: show(string(data)), Allowed: "UTF-8"}}}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	r := d.request(compact.Bytes(), names)
	if len(d.problems) > 0 {
		return Request{}, &InvalidError{Fields: d.problems}
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

// request reads a request from valid, compact JSON with these names at the top level. Beside
// problems it returns the fields that could be read.
func (d *decoder) request(data []byte, names []string) Request {
	d.given = map[string]given{}
	if len(data) == 0 || data[0] != '{' {
		d.problem("request", data, "a JSON object, as in {\"prompt\": \"…\"}", "")
		return Request{}
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
		Seed:           d.integer("seed"),
		RefImg:         d.reference(),
		RefStrength:    d.number("ref_strength"),
		RefMode:        d.text("ref_mode"),
		PromptExtend:   d.flag("prompt_extend"),
		Watermark:      d.flag("watermark"),
		Priority:       d.text("priority"),
		Labels:         d.labels(),
		RedoOf:         d.text("redo_of"),
		NotBefore:      d.timestamp("not_before"),
		Deadline:       d.timestamp("deadline"),
		Callback:       d.text("callback"),
		FollowUp:       d.followUp(),
		Stage:          d.flagOrFalse(stageName),
		Producer:       d.text("producer"),
		Batch:          d.text("batch"),
		LineID:         d.text("line_id"),
		RefImages:      d.images(),
		MaskImageURL:   d.text("mask_image_url"),
		Function:       d.text("function"),
	}
	for _, field := range optionFields() {
		switch {
		case field.text != nil:
			*field.text(&r) = d.text(field.name)
		case field.flag != nil:
			*field.flag(&r) = d.flag(field.name)
		default:
			*field.number(&r) = d.number(field.name)
		}
	}
	return r
}

// loneSurrogate returns where valid JSON escapes half of a UTF-16 pair, or -1.
// encoding/json would replace it by U+FFFD silently.
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
			i++ // skip the escaped character
		case utf16.DecodeRune(u, unit(i+6)) == utf8.RuneError:
			return i
		default:
			i += 11
		}
	}
	return -1
}
