package jobs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Option is a parameter that only some models, or functions, have.
type Option struct {
	// Name is the field of [Request] and DashScope's parameter.
	Name string `json:"name"`
	// Default is the value of a request without one, as text; "" sends nothing.
	Default string `json:"default"`
	// Min and Max limit a number; Whole numbers have no fraction.
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	Whole bool    `json:"whole"`
	// Values are the allowed texts. TextOnly are those of them that are refused with reference
	// images.
	Values   []string `json:"values"`
	TextOnly []string `json:"text_only"`
	// With is the name of a switch that must be on, unless it is "".
	With string `json:"with"`
}

// Allowed describes the values for people.
func (o Option) Allowed() string {
	switch {
	case len(o.Values) > 0:
		return strings.Join(o.Values, ", ")
	case o.Max > 0:
		whole := ""
		if o.Whole {
			whole = ", a whole number"
		}
		return fmt.Sprintf("%g to %g%s", o.Min, o.Max, whole)
	}
	return "true, false"
}

// optionField is a field of [Request] that is an [Option]: a switch, a number or a text.
type optionField struct {
	name   string
	flag   func(*Request) **bool
	number func(*Request) **float64
	text   func(*Request) *string
}

// optionFields are in the order of the digest, whose end is the only place for a new one.
var optionFields = sync.OnceValue(func() []optionField {
	return []optionField{
		{name: "prompt_extend_mode", text: func(r *Request) *string { return &r.PromptExtendMode }},
		{name: "enable_thinking", flag: func(r *Request) **bool { return &r.EnableThinking }},
		{name: "thinking_mode", flag: func(r *Request) **bool { return &r.ThinkingMode }},
		{name: "enable_sequential", flag: func(r *Request) **bool { return &r.EnableSequential }},
		{name: "strength", number: func(r *Request) **float64 { return &r.Strength }},
		{name: "upscale_factor", number: func(r *Request) **float64 { return &r.UpscaleFactor }},
		{name: "top_scale", number: func(r *Request) **float64 { return &r.TopScale }},
		{name: "bottom_scale", number: func(r *Request) **float64 { return &r.BottomScale }},
		{name: "left_scale", number: func(r *Request) **float64 { return &r.LeftScale }},
		{name: "right_scale", number: func(r *Request) **float64 { return &r.RightScale }},
		{name: "is_sketch", flag: func(r *Request) **bool { return &r.IsSketch }},
	}
})

func isOption(name string) bool {
	return slices.ContainsFunc(optionFields(), func(f optionField) bool { return f.name == name })
}

// get returns the field's value as text, "" if the request has none.
func (f optionField) get(r *Request) string {
	switch {
	case f.text != nil:
		return *f.text(r)
	case f.flag != nil && *f.flag(r) != nil:
		return strconv.FormatBool(**f.flag(r))
	case f.number != nil && *f.number(r) != nil:
		return strconv.FormatFloat(**f.number(r), 'f', -1, 64)
	}
	return ""
}

// set sets the field to a valid text.
func (f optionField) set(r *Request, value string) {
	switch {
	case f.text != nil:
		*f.text(r) = value
	case f.flag != nil:
		*f.flag(r) = new(value == "true")
	default:
		number, _ := strconv.ParseFloat(value, 64) // the caller has checked it
		*f.number(r) = &number
	}
}

// OptionNames are the names of the parameters that only some models have.
func OptionNames() []string {
	var names []string
	for _, field := range optionFields() {
		names = append(names, field.name)
	}
	return names
}

// SetOption sets one of [OptionNames] from its text, as in "strength" and "0.7". Whether the model
// has it, and within which limits, [Request.Normalize] checks. The error is a [FieldError].
func (r *Request) SetOption(name, value string) error {
	i := slices.Index(OptionNames(), name)
	if i < 0 {
		return FieldError{Field: name, Value: show(value), Allowed: strings.Join(OptionNames(), ", ")}
	}
	field := optionFields()[i]
	switch {
	case field.flag != nil && value != "true" && value != "false":
		return FieldError{Field: name, Value: show(value), Allowed: "true, false"}
	case field.number != nil:
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return FieldError{Field: name, Value: show(value), Allowed: "a number"}
		}
	}
	field.set(r, value)
	return nil
}

// hasOption reports whether the model or one of its functions has an option.
func (m Model) hasOption(name string) bool {
	named := func(o Option) bool { return o.Name == name }
	return slices.ContainsFunc(m.Options, named) ||
		slices.ContainsFunc(m.Functions, func(f Function) bool { return slices.ContainsFunc(f.Options, named) })
}

// option returns an option of a request's model or function.
func (m Model) option(r Request, name string) (Option, bool) {
	f, _ := m.function(r.Function)
	for _, options := range [][]Option{m.Options, f.Options} {
		if i := slices.IndexFunc(options, func(o Option) bool { return o.Name == name }); i >= 0 {
			return options[i], true
		}
	}
	return Option{}, false
}

// switchedOff reports whether the switch that an option needs is off.
func (o Option) switchedOff(r Request) bool {
	return o.With == "prompt_extend" && r.PromptExtend != nil && !*r.PromptExtend
}

// setOptions sets the defaults of the options that the request has not.
func (r *Request) setOptions(m Model) {
	r.PromptExtendMode = strings.ToLower(strings.TrimSpace(r.PromptExtendMode))
	for _, field := range optionFields() {
		o, has := m.option(*r, field.name)
		if has && o.Default != "" && field.get(r) == "" && !o.switchedOff(*r) {
			field.set(r, o.Default)
		}
	}
}

// options checks the options of a request.
func (c *checks) options(r Request, m Model) {
	for _, field := range optionFields() {
		value := field.get(&r)
		if value == "" {
			continue
		}
		o, has := m.option(r, field.name)
		show := value
		if field.text != nil {
			show = strconv.Quote(shorten(value))
		}
		switch {
		case !m.hasOption(field.name):
			c.require(false, field.name, show, "none: "+m.Name+" has no "+field.name, "remove it")
		case !has:
			c.require(false, field.name, show, "only with function "+strings.Join(m.functionsWith(field.name), " or "), "remove it")
		case o.switchedOff(r):
			c.require(false, field.name, show, "only with "+o.With, "remove it, or "+o.With)
		case slices.Contains(o.TextOnly, value) && len(r.RefImages) > 0:
			c.require(false, field.name, show, "only without reference images", "leave it out")
		case len(o.Values) > 0:
			c.require(slices.Contains(o.Values, value), field.name, show, o.Allowed(), "")
		case field.number != nil:
			number := **field.number(&r)
			ok := number >= o.Min && number <= o.Max && (!o.Whole || number == float64(int64(number)))
			c.require(ok, field.name, show, o.Allowed(), "")
		}
	}
}

// functionsWith returns the names of the functions that have an option.
func (m Model) functionsWith(option string) []string {
	var names []string
	for _, f := range m.Functions {
		if slices.ContainsFunc(f.Options, func(o Option) bool { return o.Name == option }) {
			names = append(names, f.Name)
		}
	}
	return names
}

// IsGroup reports whether the request asks for a group of images that belong together: at most
// N, as many as the model makes of it.
func (r Request) IsGroup() bool { return r.EnableSequential != nil && *r.EnableSequential }

// References returns the names of all reference images and of the mask, each once, in their
// order.
func (r Request) References() []string {
	var names []string
	for _, name := range slices.Concat([]string{r.RefImg}, r.RefImages, []string{r.MaskImageURL}) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// WithReferences returns the request with other names for its reference images and its mask.
// field is the name of the field, as in an error. It returns the errors of all of them.
func (r Request) WithReferences(replace func(field, name string) (string, error)) (Request, []FieldError) {
	var problems []FieldError
	change := func(field, name string) string {
		if name == "" {
			return ""
		}
		other, err := replace(field, name)
		if err != nil {
			problems = append(problems, FieldError{Field: field, Value: showURL(name), Err: err})
		}
		return other
	}
	r.RefImg = change("ref_img", r.RefImg)
	r.RefImages = slices.Clone(r.RefImages)
	for i, name := range r.RefImages {
		r.RefImages[i] = change(refImagesField(i), name)
	}
	r.MaskImageURL = change("mask_image_url", r.MaskImageURL)
	return r, problems
}

// NameGiven puts the reference images and the mask of given into errors about replaced, which is
// given after [Request.WithReferences]: people know those names.
func NameGiven(problems []FieldError, given, replaced Request) {
	images := func(r Request) []string { return append([]string{r.RefImg}, r.RefImages...) }
	for i, p := range problems {
		old, names := images(replaced), images(given)
		if p.Field == "mask_image_url" { // it may be the same image
			old, names = []string{replaced.MaskImageURL}, []string{given.MaskImageURL}
		}
		if n := slices.IndexFunc(old, func(name string) bool { return p.Value == showURL(name) }); n >= 0 {
			problems[i].Value = showURL(names[n])
		}
	}
}

// refImagesField is the name of an element of ref_images, counted from 1 for people.
func refImagesField(i int) string { return fmt.Sprintf("ref_images %d", i+1) }

// setReferences moves the reference images to the field that the model reads: one of wanx-v1 is
// ref_img, those of a model that edits are ref_images. So both spellings are the same request.
func (r *Request) setReferences(m Model) {
	images := make([]string, 0, len(r.RefImages)+1)
	for _, image := range append([]string{r.RefImg}, r.RefImages...) {
		if image = strings.TrimSpace(image); image != "" {
			images = append(images, image)
		}
	}
	switch {
	case m.Inputs.Max > 0 && len(images) > 0:
		r.RefImg, r.RefImages = "", images
	case len(images) == 1:
		r.RefImg, r.RefImages = images[0], nil
	case len(images) == 0:
		r.RefImages = nil
	}
	r.MaskImageURL, r.Function = strings.TrimSpace(r.MaskImageURL), strings.ToLower(strings.TrimSpace(r.Function))
}

// inputs checks the reference images, the function and the mask of a model that edits.
func (c *checks) inputs(r Request, m Model) {
	if r.RefStrength != nil {
		c.require(false, "ref_strength", strconv.FormatFloat(*r.RefStrength, 'g', -1, 64), "none: "+m.Name+" has no ref_strength", "remove it")
	}
	c.requireText(r.RefMode == "", "ref_mode", r.RefMode, "none: "+m.Name+" has no ref_mode", "remove it")
	if n := len(r.RefImages); n < m.Inputs.Min || n > m.Inputs.Max {
		value, allowed := strconv.Itoa(n)+" images", fmt.Sprintf("%d to %d", m.Inputs.Min, m.Inputs.Max)
		if m.Inputs.Min == m.Inputs.Max {
			allowed = strconv.Itoa(m.Inputs.Min)
		}
		remedy := ""
		if n == 0 {
			value, remedy = "missing", m.Name+" edits images: name the image to edit, or a model that needs none"
		}
		c.require(false, "ref_images", value, allowed, remedy)
	}
	for i, image := range r.RefImages {
		c.image(refImagesField(i), image)
	}
}

// functions checks the function of a request, and its mask.
func (c *checks) functions(r Request, m Model) {
	f, known := m.function(r.Function)
	names := make([]string, len(m.Functions))
	for i, f := range m.Functions {
		names[i] = f.Name
	}
	switch {
	case len(names) == 0:
		c.requireText(r.Function == "", "function", r.Function, "none: "+m.Name+" has no function", "remove it")
	case r.Function == "":
		c.require(false, "function", "missing", strings.Join(names, ", "), "")
	default:
		c.requireText(known, "function", r.Function, strings.Join(names, ", "), "")
	}
	switch {
	case r.MaskImageURL == "":
		c.require(!f.Mask, "mask_image_url", "missing", "an image of the base image's size, white where it is to be edited, black elsewhere", "")
	case !m.Honors("mask_image_url"):
		c.require(false, "mask_image_url", showURL(r.MaskImageURL), "none: "+m.Name+" takes no mask", "remove it, or name a model that takes one: "+strings.Join(maskModels(), ", "))
	case known && !f.Mask:
		c.require(false, "mask_image_url", showURL(r.MaskImageURL), "none: "+f.Name+" takes no mask", "remove it")
	default:
		c.image("mask_image_url", r.MaskImageURL)
	}
}

// maskModels returns the names of the models that take a mask.
func maskModels() []string {
	var names []string
	for _, m := range catalog() {
		if m.Honors("mask_image_url") {
			names = append(names, m.Name)
		}
	}
	return names
}

// image checks the name of a reference image.
func (c *checks) image(field, name string) {
	if !stagedPattern.MatchString(name) {
		allowed, remedy := checkURL(name)
		c.require(allowed == "", field, showURL(name), allowed, remedy)
	}
}

// synchronousModel explains why a model that has no asynchronous tasks is not offered.
func synchronousModel(name string) (FieldError, bool) {
	for _, family := range []struct{ prefix, nearest string }{
		{"qwen-image-plus-2026-01-09", "qwen-image-plus"},
		{"qwen-image-2.0-pro", "qwen-image-3.0-pro"},
		{"qwen-image-2.0", "qwen-image-3.0"},
		{"qwen-image-max", "qwen-image-3.0-pro"},
		{"qwen-image-edit-max", "qwen-image-3.0-pro"},
		{"qwen-image-edit", "qwen-image-3.0"},
		{"z-image-turbo", "wan2.6-t2i"},
	} {
		if name != family.prefix && !strings.HasPrefix(name, family.prefix+"-") {
			continue
		}
		return FieldError{
			Field: "model", Value: show(name), Allowed: "models with asynchronous tasks",
			Remedy: fmt.Sprintf("%s answers with the image itself: if that reply is lost, so is the image, which is paid for, and nothing can find it; use %s", cmp.Or(name, family.prefix), family.nearest),
		}, true
	}
	return FieldError{}, false
}
