package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// maxOverlayBytes limits the file of an overlay.
const maxOverlayBytes = 1 << 20

// catalogIndex is a catalog with what is looked up in it. Nothing may change it.
type catalogIndex struct {
	models []Model
	// regional are the catalog's names of the models with other names in a region, by these.
	regional map[string]string
	// styles are the service's spellings of the styles of each model, by the keys of their values
	// and names.
	styles map[string]map[string]string
	// overlay is the content of the file, nil for the built-in catalog.
	overlay []byte
}

// inUse is the catalog of the process: [LoadCatalog] sets it.
var inUse atomic.Pointer[catalogIndex]

func catalogInUse() *catalogIndex {
	if c := inUse.Load(); c != nil {
		return c
	}
	inUse.CompareAndSwap(nil, newCatalogIndex(newCatalog(), nil))
	return inUse.Load()
}

func newCatalogIndex(models []Model, overlay []byte) *catalogIndex {
	c := &catalogIndex{models: models, regional: map[string]string{}, styles: map[string]map[string]string{}, overlay: overlay}
	for _, m := range models {
		for _, regional := range m.RegionalNames {
			c.regional[regional] = m.Name
		}
		names := map[string]string{}
		for _, s := range m.Styles {
			for _, name := range append([]string{s.Value}, s.Names...) {
				names[styleKey(name)] = s.Value
			}
		}
		c.styles[m.Name] = names
	}
	return c
}

// ErrCatalogInUse means that the process uses another overlay already.
var ErrCatalogInUse = errors.New("another overlay of the catalog is in use in this process")

// LoadCatalog reads an overlay of the catalog, a JSON file that adds models or corrects fields of
// some, and uses it in this process: for every request, price and limit. Call it before anything
// else of this module, with the same file in all programs that share a Redis: a worker's lane is
// of a model that it knows, and a request that it refuses fails. The format is in
// cmd/danqing/docs/catalog.md.
//
// The error names the file, and the model and the field if one is wrong. The same file may be
// loaded again; it fails with [ErrCatalogInUse] if the process uses another.
func LoadCatalog(path string) error {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // read only
	content, err := io.ReadAll(io.LimitReader(file, maxOverlayBytes+1))
	if err != nil {
		return err
	}
	if len(content) > maxOverlayBytes {
		return fmt.Errorf("%s: longer than %d bytes", path, maxOverlayBytes)
	}
	models, err := overlaid(newCatalog(), content)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	before := inUse.Load()
	if before != nil && before.overlay != nil {
		if bytes.Equal(before.overlay, content) {
			return nil
		}
		return fmt.Errorf("%s: %w", path, ErrCatalogInUse)
	}
	if !inUse.CompareAndSwap(before, newCatalogIndex(models, content)) {
		return LoadCatalog(path)
	}
	return nil
}

// overlay is the file.
type overlay struct {
	Models map[string]json.RawMessage `json:"models"`
}

// overlayModel is a model of the file. What it leaves out stays as it is.
type overlayModel struct {
	*Model
	Like        string                 `json:"like"`
	Prices      map[string]json.Number `json:"prices"`
	LargePrices map[string]json.Number `json:"large_prices"`
	InputPrices map[string]json.Number `json:"input_prices"`
	TaskSeconds *float64               `json:"task_seconds"`
	Source      string                 `json:"source"`
}

// overlaid returns a catalog with the models of an overlay: corrected ones in their places, added
// ones at the end, by name.
func overlaid(models []Model, content []byte) ([]Model, error) {
	var file overlay
	if err := decodeStrictly(content, &file); err != nil {
		return nil, overlayError(err, "models")
	}
	if file.Models == nil {
		return nil, FieldError{Field: "models", Value: "missing", Allowed: `an object, as in {"models":{"wanx-v1":{"concurrency":2}}}`}
	}
	for _, name := range slices.Sorted(maps.Keys(file.Models)) {
		at := slices.IndexFunc(models, func(m Model) bool { return m.Name == name })
		m, err := overlayOf(models, at, name, file.Models[name])
		if err == nil {
			err = checkModel(m, models)
		}
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", show(name), err)
		}
		if at < 0 {
			models = append(models, m)
		} else {
			models[at] = m
		}
	}
	return models, nil
}

// overlayOf returns the model at a place in the catalog, or a new one if that is negative, with the
// fields that the overlay has.
func overlayOf(models []Model, at int, name string, raw json.RawMessage) (Model, error) {
	m := Model{Name: name, MaxSeed: maxSeed, SubmitsPerSecond: 1, Concurrency: 1, Sources: map[string]string{}, Unknown: []string{}}
	var head struct {
		Like string `json:"like"`
	}
	_ = json.Unmarshal(raw, &head) // what is wrong is found below
	switch like := slices.IndexFunc(models, func(m Model) bool { return m.Name == head.Like }); {
	case at >= 0 && head.Like != "":
		return m, FieldError{Field: "like", Value: show(head.Like), Allowed: "only for a model that the catalog does not have", Remedy: "leave it out"}
	case at >= 0:
		m = models[at].clone()
	case head.Like != "" && like < 0:
		_, err := lookupModel(head.Like, models)
		e, _ := errors.AsType[FieldError](err)
		return m, FieldError{Field: "like", Value: show(head.Like), Allowed: e.Allowed, Remedy: e.Remedy}
	case head.Like != "":
		m = models[like].clone()
		m.Name, m.RegionalNames = name, nil
		m.Prices, m.LargePrices, m.LargePixels, m.InputPrices = nil, nil, 0, nil // of another model
	}
	var given map[string]json.RawMessage
	if json.Unmarshal(raw, &given) != nil || given == nil {
		return m, FieldError{Field: "model", Value: showJSON("model", raw), Allowed: "an object with fields of a model"}
	}
	fields := slices.Sorted(maps.Keys(overlayFields()))
	for field := range given {
		if !slices.Contains(fields, field) {
			return m, overlayError(fmt.Errorf("json: unknown field %q", field), fields...)
		}
	}
	for field, list := range map[string]func(){ // a list replaces the one before, with all that its entries have
		"styles": func() { m.Styles = nil }, "functions": func() { m.Functions = nil }, "options": func() { m.Options = nil },
	} {
		if _, ok := given[field]; ok {
			list()
		}
	}
	in := overlayModel{Model: &m}
	if err := decodeStrictly(raw, &in); err != nil {
		return m, overlayError(err, fields...)
	}
	if err := in.setPrices(); err != nil {
		return m, err
	}
	if in.TaskSeconds != nil {
		if *in.TaskSeconds < 0 || *in.TaskSeconds > 86400 {
			return m, FieldError{Field: "task_seconds", Value: fmt.Sprint(*in.TaskSeconds), Allowed: "0 to 86400; 0 if it is not known"}
		}
		m.TaskTime = time.Duration(*in.TaskSeconds * float64(time.Second))
	}
	maps.DeleteFunc(m.RegionalNames, func(_, name string) bool { return name == "" })
	m.Overlaid = true
	m.setSources(given, in.Source)
	return m, nil
}

// setSources notes where the facts of the overlay are from: source, which the file may leave out.
func (m *Model) setSources(given map[string]json.RawMessage, source string) {
	if source == "" {
		source = "the overlay of the catalog"
	}
	if m.Sources == nil {
		m.Sources = map[string]string{}
	}
	for field := range given {
		if fact := overlayFields()[field]; fact != "" {
			m.Sources[fact] = source
			delete(m.Confidence, fact)
		}
	}
}

// overlayFields are the fields that a model of the file may have, with those of [Model].
func overlayFields() map[string]string {
	return map[string]string{
		"like": "", "source": "", "unknown": "", "regional_names": "RegionalNames", "protocol": "Protocol", "prompt_runes": "PromptRunes",
		"negative_prompt_runes": "NegativePromptRunes", "no_negative_prompt": "NoNegativePrompt", "prompt_runes_elsewhere": "PromptRunesElsewhere",
		"styles": "Styles", "sizes": "Sizes", "edit_sizes": "EditSizes", "max_images": "MaxImages", "max_group": "MaxGroup",
		"service_images": "ServiceImages", "max_seed": "MaxSeed", "ref_modes": "RefModes", "inputs": "Inputs", "functions": "Functions",
		"options": "Options", "prompt_extend": "PromptExtend", "watermark": "Watermark", "prices": "Prices", "large_prices": "LargePrices",
		"large_pixels": "LargePixels", "input_prices": "InputPrices", "submits_per_second": "SubmitsPerSecond",
		"submits_per_minute": "SubmitsPerMinute", "concurrency": "Concurrency", "task_seconds": "TaskTime",
	}
}

// decodeStrictly decodes one JSON value: unknown fields, repeated fields and anything after it are
// errors.
func decodeStrictly(content []byte, into any) error {
	if err := repeatedField(json.NewDecoder(bytes.NewReader(content))); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON object")
	}
	return nil
}

// repeatedField fails if an object of the next value has a field twice.
func repeatedField(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	open, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			token, err := d.Token()
			if err != nil {
				return err
			}
			name := fmt.Sprint(token)
			if seen[name] {
				return FieldError{Field: name, Value: "is there twice", Remedy: "leave one out"}
			}
			seen[name] = true
		}
		if err := repeatedField(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// overlayError returns the error of a JSON decoder as one of a field.
func overlayError(err error, fields ...string) error {
	if name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		name = strings.Trim(name, `"`)
		e := FieldError{Field: name, Value: "is not a field", Allowed: strings.Join(fields, ", ")}
		if similar := closest(strings.ToLower(name), fields); similar != "" {
			e.Remedy = fmt.Sprintf("did you mean %q?", similar)
		}
		return e
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := strings.TrimPrefix(wrong.Field, "Model.")
		kind := map[bool]string{true: "a whole number", false: "another type"}[strings.HasPrefix(wrong.Type.String(), "int")]
		if names := map[string]string{"string": "a text", "bool": "true or false", "float64": "a number"}; names[wrong.Type.String()] != "" {
			kind = names[wrong.Type.String()]
		}
		return FieldError{Field: field, Value: wrong.Value, Allowed: kind}
	}
	if wrong, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not valid JSON at byte %d: %w", wrong.Offset, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("not valid JSON: it ends early")
	}
	return err
}
