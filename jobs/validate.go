package jobs

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of labels. The values are our choice: small enough for lists and records.
const (
	maxLabels          = 16
	maxLabelNameRunes  = 64
	maxLabelValueRunes = 256
)

// FieldError is the error of one field of a request.
type FieldError struct {
	// Field is the field's JSON name, with the prefix "input." or "parameters." if it was
	// there.
	Field string `json:"field"`
	// Value is the given value for people: texts are quoted, long values shortened, and
	// URLs lack their query. "missing" means that none was given.
	Value string `json:"value"`
	// Allowed describes the allowed values, and Remedy what to do. Either may be empty.
	Allowed string `json:"allowed,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	// Err is the cause, such as the error of a file that cannot be read; nil for none.
	Err error `json:"-"`
}

// Error is one sentence: field, value, cause, allowed values, remedy.
func (e FieldError) Error() string {
	text := e.Field + ": " + e.Value
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Allowed != "" {
		text += "; allowed: " + e.Allowed
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// Unwrap returns Err.
func (e FieldError) Unwrap() error { return e.Err }

// InvalidError is the error of a request that the service would refuse, with every wrong
// field. A retry cannot help.
type InvalidError struct {
	Fields []FieldError `json:"fields"`
}

// Error lists all fields on one line.
func (e *InvalidError) Error() string {
	texts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		texts[i] = f.Error()
	}
	return strings.Join(texts, " | ")
}

// Unwrap returns the fields, for [errors.As] and [errors.Is].
func (e *InvalidError) Unwrap() []error {
	list := make([]error, len(e.Fields))
	for i, f := range e.Fields {
		list[i] = f
	}
	return list
}

// Normalize returns the request with its defaults and with every value in the service's
// spelling, and warnings for people. It fails with an [*InvalidError] that has every field
// that the service would refuse; the returned request must not be used then. Normalize is
// idempotent.
//
// The prompt is never changed. Labels are shared with r.
func (r Request) Normalize() (Request, []string, error) {
	r, warnings, problems := r.normalize()
	if len(problems) > 0 {
		return r, warnings, &InvalidError{Fields: problems}
	}
	return r, warnings, nil
}

func (r Request) normalize() (Request, []string, []FieldError) {
	r = r.canonical()
	var c checks
	if r.ID != "" {
		c.addError("id", ValidID(r.ID))
	}
	if r.RedoOf != "" {
		c.addError("redo_of", ValidID(r.RedoOf))
		c.requireText(r.RedoOf != r.ID, "redo_of", r.RedoOf, "another job", "")
	}
	if !slices.Contains(priorities(), r.Priority) {
		c.requireText(false, "priority", r.Priority, strings.Join(priorities(), ", "), "")
	}
	c.labels(r.Labels)
	c.delivery(r)

	m, err := lookupModel(r.Model, catalog())
	if err != nil {
		// The other checks need the model.
		c.addError("model", err)
		c.texts(r, Model{})
		return r, c.warnings, c.problems
	}
	c.texts(r, m)
	c.parameters(r, m)
	c.reference(r, m)
	c.functions(r, m)
	c.options(r, m)
	return r, c.warnings, c.problems
}

// maxCallbackBytes limits the URL of a callback: servers commonly accept as much.
const maxCallbackBytes = 2048

// delivery checks the times of a job and its notifications.
func (c *checks) delivery(r Request) {
	for _, at := range []struct {
		field string
		time  time.Time
	}{{"not_before", r.NotBefore}, {"deadline", r.Deadline}} {
		// JSON and asynq's seconds have no other times.
		if !at.time.IsZero() && (at.time.Year() < 1970 || at.time.Year() > 9999) {
			c.requireText(false, at.field, at.time.String(), "a time from 1970 to 9999", "")
		}
	}
	if !r.Deadline.IsZero() && !r.Deadline.After(r.NotBefore) {
		c.requireText(false, "deadline", r.Deadline.Format(time.RFC3339), "a time after not_before", "")
	}
	if r.Producer != "" {
		c.addError("producer", ValidAccount(r.Producer)) // the same rule as for accounts
	}
	if r.Callback != "" {
		allowed := checkCallback(r.Callback)
		c.require(allowed == "", "callback", showURL(r.Callback), allowed, "")
	}
	if f := r.FollowUp; f != nil {
		name := func(s string) bool {
			return utf8.RuneCountInString(s) <= 128 && isPlain(s) && !strings.HasPrefix(s, "danqing:")
		}
		c.requireText(strings.TrimSpace(f.Type) != "" && name(f.Type), "follow_up.type", f.Type, "the type of a task of your own, 1 to 128 characters, not danqing:…", "")
		c.requireText(name(f.Queue), "follow_up.queue", f.Queue, "a queue of your own, at most 128 characters, not danqing:…", "")
	}
}

// checkCallback returns what is allowed instead of a callback's URL, "" if it is valid. The
// worker checks for each call that the address is public.
func checkCallback(callback string) string {
	const urls = "an http or https URL without user name, password and #"
	u, err := url.Parse(callback)
	switch {
	case len(callback) > maxCallbackBytes:
		return fmt.Sprintf("%s, of at most %d bytes", urls, maxCallbackBytes)
	case strings.ContainsFunc(callback, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return urls + ", with other characters percent-encoded"
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, u.Fragment != "":
		return urls
	}
	return ""
}

func priorities() []string {
	return []string{PriorityCritical, PriorityDefault, PriorityBulk}
}

// canonical sets the defaults and the service's spelling of valid values. It checks nothing.
func (r Request) canonical() Request {
	tidy := func(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
	r.Model = modelName(strings.TrimSpace(r.Model))
	if r.Model == "" {
		r.Model = DefaultModel
	}
	if strings.TrimSpace(r.NegativePrompt) == "" {
		r.NegativePrompt = ""
	}
	r.Style, r.Size, r.RefImg = strings.TrimSpace(r.Style), strings.TrimSpace(r.Size), strings.TrimSpace(r.RefImg)
	r.RefMode, r.Priority = tidy(r.RefMode), tidy(r.Priority)
	if r.Priority == "" {
		r.Priority = PriorityDefault
	}
	if r.N == 0 {
		r.N = 1
	}
	if !r.NotBefore.IsZero() {
		r.NotBefore = r.NotBefore.UTC()
	}
	if !r.Deadline.IsZero() {
		r.Deadline = r.Deadline.UTC()
	}
	r.Callback = strings.TrimSpace(r.Callback)
	if f := r.FollowUp; f != nil && f.Queue == "" {
		r.FollowUp = &FollowUp{Type: f.Type, Queue: "default"}
	}
	if r.RefStrength != nil && *r.RefStrength == 0 {
		r.RefStrength = new(float64) // -0 is 0
	}
	m, err := lookupModel(r.Model, catalog())
	if err != nil {
		return r
	}
	r.Style, _ = m.style(r.Style)
	r.setReferences(m)
	sizes := m.sizesOf(r)
	if r.Size == "" {
		r.Size = sizes.Default
	}
	if r.Size != sizes.Default {
		r.Size = sizes.canonical(r.Size)
	}
	if r.RefImg != "" && r.RefMode == "" && len(m.RefModes) > 0 {
		r.RefMode = m.RefModes[0]
	}
	if m.PromptExtend && r.PromptExtend == nil {
		r.PromptExtend = new(true)
	}
	if m.Watermark && r.Watermark == nil {
		r.Watermark = new(false)
	}
	r.setOptions(m)
	return r
}

// checks collects the problems and warnings of a request.
type checks struct {
	problems []FieldError
	warnings []string
}

// require adds a problem unless ok.
func (c *checks) require(ok bool, field, value, allowed, remedy string) {
	if !ok {
		c.problems = append(c.problems, FieldError{Field: field, Value: value, Allowed: allowed, Remedy: remedy})
	}
}

// requireText adds a problem with a text that is shown quoted, unless ok.
func (c *checks) requireText(ok bool, field, text, allowed, remedy string) {
	if !ok { // quoting takes longer than all checks
		c.require(false, field, show(text), allowed, remedy)
	}
}

// addError adds a [FieldError] of this package, with this field's name.
func (c *checks) addError(field string, err error) {
	if e, ok := err.(FieldError); ok { //nolint:errorlint // from this package, never wrapped
		e.Field = field
		c.problems = append(c.problems, e)
	}
}

func (c *checks) texts(r Request, m Model) {
	c.text("prompt", r.Prompt, m.PromptRunes, m.PromptRunesElsewhere)
	if strings.TrimSpace(r.Prompt) == "" {
		value := "missing"
		if r.Prompt != "" {
			value = show(r.Prompt)
		}
		c.require(false, "prompt", value, "a description of the image", "")
	}
	c.text("negative_prompt", r.NegativePrompt, m.NegativePromptRunes, 0)
	if m.NoNegativePrompt {
		c.requireText(r.NegativePrompt == "", "negative_prompt", r.NegativePrompt, "none: "+m.Name+" has no negative_prompt", "say in the prompt what to avoid")
	}
}

// text checks a prompt. A limit of 0 means none.
func (c *checks) text(field, value string, limit, elsewhere int) {
	c.requireText(utf8.ValidString(value), field, value, "UTF-8", "")
	c.requireText(!strings.ContainsRune(value, 0), field, value, "text without NUL characters", "")
	if limit == 0 || len(value) <= limit {
		return
	}
	runes := utf8.RuneCountInString(value)
	if runes <= limit {
		return
	}
	warning := fmt.Sprintf("%s has %d characters and is sent whole, but the service reads %d and drops the rest", field, runes, limit)
	if elsewhere > 0 {
		warning += fmt.Sprintf(" (another page says %d)", elsewhere)
	}
	c.warnings = append(c.warnings, warning)
}

func (c *checks) parameters(r Request, m Model) {
	if _, ok := m.style(r.Style); !ok {
		allowed := m.styles()
		if allowed == "" {
			allowed = "none: " + m.Name + " has no style"
		}
		c.require(false, "style", show(r.Style), allowed, "")
	}
	c.flag("prompt_extend", r.PromptExtend, m)
	c.flag("watermark", r.Watermark, m)
	if sizes := m.sizesOf(r); sizes.none() {
		c.requireText(r.Size == "", "size", r.Size, "none: the image has the size that "+m.Name+" gives it", "remove it")
	} else if !sizes.Allows(r.Size) {
		c.require(false, "size", show(r.Size), sizes.String(), sizes.remedy(r.Size))
	}
	most := m.imagesOf(r)
	inRange := r.N >= 1 && r.N <= most
	switch {
	case inRange, most == 0: // no groups: the option is refused
	case most == 1:
		c.require(false, "n", strconv.Itoa(r.N), "1", m.Name+" creates one image per request: use another job for another image")
	default:
		c.require(false, "n", strconv.Itoa(r.N), fmt.Sprintf("1 to %d", most), "")
	}
	if r.Seed == nil {
		return
	}
	last := m.MaxSeed
	remedy := ""
	if inRange && r.N > 1 {
		last -= int64(r.N - 1)
		remedy = fmt.Sprintf("the %d images take the seeds that follow, up to %d", r.N, m.MaxSeed)
	}
	if *r.Seed < 0 || *r.Seed > last {
		c.require(false, "seed", strconv.FormatInt(*r.Seed, 10), fmt.Sprintf("0 to %d", last), remedy)
	}
}

// flag refuses a switch that the model does not have, off or on.
func (c *checks) flag(field string, value *bool, m Model) {
	if value != nil && !m.Honors(field) {
		c.require(false, field, strconv.FormatBool(*value), "none: "+m.Name+" has no "+field, "remove it")
	}
}

func (c *checks) reference(r Request, m Model) {
	switch {
	case m.Inputs.Max > 0:
		c.inputs(r, m)
		return
	case len(r.RefImages) > 0: // more than one
		c.require(false, "ref_images", strconv.Itoa(len(r.RefImages))+" images", "at most one: "+m.Name+" takes no more", "name a model that takes several: "+strings.Join(editingModels(), ", "))
		return
	case !m.Honors("ref_img"):
		c.noReference(r, m)
		return
	}
	if r.RefStrength != nil {
		v := *r.RefStrength
		value := strconv.FormatFloat(v, 'g', -1, 64)
		c.require(v >= 0 && v <= 1, "ref_strength", value, "0.0 to 1.0", "")
		c.require(r.RefImg != "", "ref_strength", value, "only with a reference image", "give ref_img, or remove this")
	}
	if r.RefMode != "" {
		c.requireText(slices.Contains(m.RefModes, r.RefMode), "ref_mode", r.RefMode, strings.Join(m.RefModes, ", "), "")
		c.requireText(r.RefImg != "", "ref_mode", r.RefMode, "only with a reference image", "give ref_img, or remove this")
	}
	if r.RefImg != "" {
		c.image("ref_img", r.RefImg)
	}
}

// noReference refuses the fields of a reference for a model that takes none.
func (c *checks) noReference(r Request, m Model) {
	allowed := "none: " + m.Name + " takes no reference image"
	if r.RefImg != "" {
		c.require(false, "ref_img", showURL(r.RefImg), allowed, "leave it out, or name a model that takes one: "+strings.Join(referenceModels(), ", "))
	}
	if r.RefStrength != nil {
		c.require(false, "ref_strength", strconv.FormatFloat(*r.RefStrength, 'g', -1, 64), allowed, "")
	}
	c.requireText(r.RefMode == "", "ref_mode", r.RefMode, allowed, "")
}

// referenceModels returns the names of the models that take a reference image.
func referenceModels() []string {
	var names []string
	for _, m := range catalog() {
		if len(m.RefModes) > 0 || m.Inputs.Max > 0 {
			names = append(names, m.Name)
		}
	}
	return names
}

// editingModels returns the names of the models that take several reference images.
func editingModels() []string {
	var names []string
	for _, m := range catalog() {
		if m.Inputs.Max > 1 {
			names = append(names, m.Name)
		}
	}
	return names
}

// checkURL returns what is allowed instead of a reference's URL, and what to do; both are
// empty if the URL is valid. It cannot check whether Alibaba can reach it.
func checkURL(ref string) (allowed, remedy string) {
	const urls = "an http or https URL that Alibaba can reach"
	scheme, _, isURL := strings.Cut(ref, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case isURL && scheme == "oss":
		return urls, "an oss:// name lives 48 hours and belongs to one account and model; give the file itself or a URL"
	case !isURL || scheme != "http" && scheme != "https":
		return urls + `, or a staged name ("sha256:" and 64 hex digits)`, "a file must be staged first, as danqing batch does for paths"
	}
	if i := strings.IndexFunc(ref, func(r rune) bool { return r <= ' ' || r >= 0x7f }); i >= 0 {
		return urls + ", without spaces and Chinese characters", "percent-encode them, as in %E7%8C%AB for 猫"
	}
	u, err := url.Parse(ref)
	switch {
	case err != nil || u.Hostname() == "":
		return urls, "it has no host, or is not a URL"
	case u.User != nil:
		return urls + ", without user name and password", "give a link that needs none"
	}
	return "", ""
}

func (c *checks) labels(labels map[string]string) {
	if len(labels) > maxLabels {
		c.require(false, "labels", fmt.Sprintf("%d labels", len(labels)), fmt.Sprintf("at most %d", maxLabels), "")
	}
	names := make([]string, 0, len(labels))
	for name := range labels {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "" || utf8.RuneCountInString(name) > maxLabelNameRunes || !isPlain(name) {
			c.requireText(false, "labels."+shorten(name), name, fmt.Sprintf("a name of 1 to %d characters, no control characters", maxLabelNameRunes), "")
		}
		if value := labels[name]; utf8.RuneCountInString(value) > maxLabelValueRunes || !isPlain(value) {
			c.requireText(false, "labels."+shorten(name), value, fmt.Sprintf("at most %d characters, no control characters", maxLabelValueRunes), "")
		}
	}
}

// isPlain reports whether s is UTF-8 without control characters.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
