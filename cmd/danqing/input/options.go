package input

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Options say how files are read. The zero value finds out all by itself.
type Options struct {
	// Format is one of [Formats], or empty: it is found from the content.
	Format string
	// Encoding is utf-8, gb18030 or utf-16, or empty: it is found from the content.
	Encoding string
	// Sheet is the name of a sheet; empty is the first that is visible.
	Sheet string
	// HiddenRows includes rows that the table does not show.
	HiddenRows bool
	// Map are the columns that have a field, in addition to those with known headers.
	Map []Mapping
	// Vary are the values that each line is made with.
	Vary []Variation
	// Defaults are fields for the lines that do not have them.
	Defaults []Default

	template *promptTemplate
	known    func() map[string]alias
}

// Mapping says which field a column has.
type Mapping struct {
	Column string
	Field  string // "-" for a column of the producer
}

// Variation is a field, or a word of the template, with the values that each line is made with.
type Variation struct {
	Name   string
	Values []string
}

// Default is a field for the lines that do not have it.
type Default struct {
	Field string
	Value json.RawMessage
}

// referenceFields are the fields with names of images.
func referenceFields() []string { return []string{"ref_img", "ref_images", "mask_image_url"} }

// WithReferences returns the options with other names for the images in their defaults and
// variations.
func (o *Options) WithReferences(replace func(name string) string) *Options {
	changed := *o
	changed.Defaults, changed.Vary = slices.Clone(o.Defaults), slices.Clone(o.Vary)
	all := func(text string) string {
		value, _ := references(text) // Parse has checked it
		var names []string
		_ = json.Unmarshal(value, &names) // the same
		for i, name := range names {
			names[i] = replace(name)
		}
		return strings.Join(names, "\n")
	}
	for i, d := range changed.Defaults {
		if slices.Contains(referenceFields(), d.Field) {
			changed.Defaults[i].Value, _ = convert(d.Field, all(idText(d.Value)))
		}
	}
	for i, v := range changed.Vary {
		if !slices.Contains(referenceFields(), v.Name) {
			continue
		}
		changed.Vary[i].Values = slices.Clone(v.Values)
		for n, value := range v.Values {
			changed.Vary[i].Values[n] = all(value)
		}
	}
	return &changed
}

// Flags are options as a person writes them.
type Flags struct {
	Format, Encoding, Sheet, Prompt string
	HiddenRows                      bool
	Map, Vary                       []string // COLUMN=FIELD, and NAME=VALUE,VALUE
	// Defaults are the values of fields, by name.
	Defaults map[string]string
}

// Formats are the values of --format.
func Formats() []string { return []string{formatJSON, formatCSV, formatText} }

const (
	formatJSON = "json"
	formatCSV  = "csv"
	formatText = "text"
)

// Parse checks flags. The error is an [*Error].
func (f Flags) Parse() (*Options, error) {
	o := &Options{Format: f.Format, Encoding: f.Encoding, Sheet: f.Sheet, HiddenRows: f.HiddenRows, known: sync.OnceValue(aliases)}
	if f.Format != "" && !slices.Contains(Formats(), f.Format) {
		return nil, errorf("name one of them, or leave it out", "--format %q is not known: %s are", f.Format, strings.Join(Formats(), ", "))
	}
	for _, text := range f.Map {
		if err := o.addMapping(text); err != nil {
			return nil, err
		}
	}
	if f.Prompt != "" {
		var err error
		if o.template, err = parseTemplate(f.Prompt); err != nil {
			return nil, err
		}
	}
	for _, text := range f.Vary {
		if err := o.addVariation(text); err != nil {
			return nil, err
		}
	}
	for _, field := range slices.Sorted(maps.Keys(f.Defaults)) {
		value, allowed := convert(field, f.Defaults[field])
		if allowed != "" {
			return nil, errorf("", "--%s %s: allowed: %s", strings.ReplaceAll(field, "_", "-"), showText(f.Defaults[field]), allowed)
		}
		if o.variation(field) >= 0 {
			return nil, errorf("leave one of them out", "--%s and --vary both set the %s", strings.ReplaceAll(field, "_", "-"), field)
		}
		o.Defaults = append(o.Defaults, Default{field, value})
	}
	return o, nil
}

func (o *Options) addMapping(text string) error {
	const hint = "as in: --map 卖点=prompt, or --map 宽=- for a column of your own"
	at := strings.LastIndexByte(text, '=')
	if at <= 0 {
		return errorf(hint, "--map %s: it is not COLUMN=FIELD", text)
	}
	column, target := strings.TrimSpace(text[:at]), strings.TrimSpace(text[at+1:])
	field := target
	if target != ignored {
		field = fieldNamed(target, o.known()).field
	}
	if field == "" {
		return errorf("the fields are: "+strings.Join(fieldNames(), ", "), "--map %s: there is no field %q", text, target)
	}
	for _, m := range o.Map {
		switch {
		case headerKey(m.Column) == headerKey(column):
			return errorf(hint, "--map names the column %s twice", column)
		case m.Field == field && field != ignored:
			return errorf(hint, "--map gives two columns the field %s: %s and %s", field, m.Column, column)
		}
	}
	o.Map = append(o.Map, Mapping{column, field})
	return nil
}

// fieldNames are the fields that a column can have.
func fieldNames() []string { return slices.Sorted(maps.Keys(scalarFields())) }

func (o *Options) addVariation(text string) error {
	const hint = `as in: --vary style=水彩,素描; a value with a comma in quotation marks, as in --vary 'scene="a lake, at night",a street', or the flag once for each value`
	name, list, found := strings.Cut(text, "=")
	name = strings.TrimSpace(name)
	if !found || name == "" {
		return errorf(hint, "--vary %s: it is not NAME=VALUE,VALUE", text)
	}
	reader := csv.NewReader(strings.NewReader(list))
	reader.TrimLeadingSpace = true
	values, err := reader.Read()
	if err != nil {
		return errorf(hint, "--vary %s: its values cannot be read: %w", text, err)
	}
	if o.template == nil || !slices.Contains(o.template.names, name) {
		field := fieldNamed(name, o.known()).field
		switch field {
		case "":
			return errorf("vary a field, or a word of the template: --prompt 'a {{."+strings.ReplaceAll(name, " ", "_")+"}}'", "--vary %s: %s is neither a field nor a word of --prompt", text, name)
		case "id", "redo_of", "callback", "not_before", "deadline", "stage", "priority":
			return errorf("vary what shapes the image, as in --vary style=水彩,素描", "--vary %s: the field %s cannot vary", text, field)
		case "prompt":
			if o.template != nil {
				return errorf("vary a word of the template", "--vary %s: --prompt gives the prompt", text)
			}
		}
		name = field
	}
	at := o.variation(name)
	if at < 0 {
		at = len(o.Vary)
		o.Vary = append(o.Vary, Variation{Name: name})
	}
	for _, value := range values {
		value = strings.TrimSpace(value)
		switch {
		case value == "":
			return errorf(hint, "--vary %s: a value is empty", text)
		case slices.Contains(o.Vary[at].Values, value):
			return errorf("name it once", "--vary %s: the value %s is there twice, and would be bought twice", name, value)
		}
		if scalarFields()[name] != nil && (o.template == nil || !slices.Contains(o.template.names, name)) {
			if _, allowed := convert(name, value); allowed != "" {
				return errorf("", "--vary %s: %s; allowed: %s", name, showText(value), allowed)
			}
		}
		o.Vary[at].Values = append(o.Vary[at].Values, value)
	}
	return nil
}

// variation returns the index of a variation, or -1.
func (o *Options) variation(name string) int {
	return slices.IndexFunc(o.Vary, func(v Variation) bool { return v.Name == name })
}

func (o *Options) varies(name string) bool { return o.variation(name) >= 0 }

// changesLines reports whether lines of JSON are made anew.
func (o *Options) changesLines() bool {
	return len(o.Map)+len(o.Vary)+len(o.Defaults) > 0 || o.template != nil
}

// combinations returns every choice of one value for each variation; one empty choice if there
// are none.
func (o *Options) combinations() [][]string {
	list := [][]string{nil}
	for _, v := range o.Vary {
		var next [][]string
		for _, before := range list {
			for _, value := range v.Values {
				next = append(next, append(slices.Clone(before), value))
			}
		}
		list = next
	}
	return list
}

// errColumn is the error of a word for which there is no column.
func errColumn(name string, columns []string) error {
	return fmt.Errorf("--prompt: there is no column %s; the columns are: %s", name, listed(columns))
}
