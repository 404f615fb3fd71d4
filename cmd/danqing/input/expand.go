package input

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"

	"github.com/danqing-queue/danqing/jobs"
)

// record is what a line or row of a file asks for, before templates and variations.
type record struct {
	number int
	object object
	// columns are the texts of the columns, by header, for the template.
	columns  map[string]string
	problems []jobs.FieldError
}

// lines makes the lines of a record: one for each combination of the variations.
func (o *Options) lines(r record) []jobs.SourceLine {
	for _, v := range o.Vary {
		if o.isField(v.Name) && r.object.asks(v.Name) {
			r.problems = append(r.problems, jobs.FieldError{
				Field: v.Name, Value: showJSON(r.object.get(v.Name)), Allowed: "none, because --vary gives it", Remedy: "remove it here, or leave out --vary " + v.Name,
			})
		}
	}
	var list []jobs.SourceLine
	for _, choice := range o.combinations() {
		line := jobs.SourceLine{Number: r.number, Problems: r.problems}
		made := r.object
		for i, v := range o.Vary {
			value := quote(choice[i])
			if o.isField(v.Name) {
				value, _ = convert(v.Name, choice[i]) // addVariation has checked it
			}
			made = made.set(v.Name, value)
		}
		if o.template != nil {
			prompt, problem := o.prompt(r, choice)
			if problem.Field != "" {
				line.Problems = append(slices.Clone(line.Problems), problem)
			} else {
				made = made.set("prompt", quote(prompt))
			}
		}
		for _, d := range o.Defaults {
			if !made.asks(d.Field) {
				made = made.set(d.Field, d.Value)
			}
		}
		if id := idText(made.get("id")); id != "" && len(choice) > 0 {
			made = made.set("id", quote(id+"-"+strings.Join(o.idNames(choice), "-")))
		}
		line.Text = made.text()
		list = append(list, line)
		if len(line.Problems) > 0 { // each line is reported once
			break
		}
	}
	return list
}

// isField reports whether a variation is of a field, and not of a word of the template.
func (o *Options) isField(name string) bool {
	return scalarFields()[name] != nil && (o.template == nil || !slices.Contains(o.template.names, name))
}

// prompt makes the prompt of a record from the template.
func (o *Options) prompt(r record, choice []string) (string, jobs.FieldError) {
	if own := r.columns["prompt"]; own != "" && len(o.template.names) == 0 {
		return "", jobs.FieldError{Field: "prompt", Value: showText(own), Remedy: "--prompt would replace it by the same text in all lines: write {{.prompt}} where it belongs"}
	}
	values := map[string]string{}
	for _, name := range o.template.names {
		text, known := r.columns[name]
		if i := o.variation(name); i >= 0 {
			text, known = choice[i], true
		}
		needed := slices.Contains(o.template.needed, name)
		switch {
		case !known && needed:
			return "", jobs.FieldError{Field: name, Value: "missing", Remedy: "--prompt needs it"}
		case strings.TrimSpace(text) == "" && needed:
			return "", jobs.FieldError{Field: name, Value: "empty", Remedy: "--prompt needs it; fill it in, or write {{if ." + name + "}} … {{end}} around it"}
		}
		values[name] = text
	}
	prompt, err := o.template.prompt(values)
	if err != nil {
		return "", jobs.FieldError{Field: "prompt", Value: "--prompt", Err: err}
	}
	return strings.TrimSpace(prompt), jobs.FieldError{}
}

// idText is an id that is a text or a number.
func idText(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return strings.TrimSpace(s)
	}
	return string(value)
}

// showJSON shows a value for people.
func showJSON(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return showText(s)
	}
	return showText(string(value))
}

// idNames are the names of a choice for an id, in the order of the variations' names: the order
// of the flags must not change an id, for which the job would be bought again.
func (o *Options) idNames(choice []string) []string {
	order := make([]int, len(o.Vary))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(o.Vary[a].Name, o.Vary[b].Name) })
	values := make([]string, len(order))
	for i, at := range order {
		values[i] = choice[at]
	}
	return shortNames(values)
}

// maxShortName is how many characters of a value are in an id.
const maxShortName = 24

// shortNames are values for an id: with x for *, a hyphen for what is no letter or digit, and
// the end of long values as a hash.
func shortNames(values []string) []string {
	var names []string
	for _, value := range values {
		value = norm.NFKC.String(value)
		name := strings.Map(func(r rune) rune {
			switch {
			case r == '*' || r == '×':
				return 'x'
			case isWord(r) || r >= '0' && r <= '9' || r == '.' || r == '_':
				return r
			}
			return '-'
		}, value)
		name = strings.Join(strings.FieldsFunc(name, func(r rune) bool { return r == '-' }), "-")
		if runes := []rune(name); len(runes) > maxShortName || name == "" {
			sum := sha256.Sum256([]byte(value))
			name = strings.TrimPrefix(string(runes[:min(len(runes), maxShortName-7)])+"-"+hex.EncodeToString(sum[:3]), "-")
		}
		names = append(names, name)
	}
	return names
}

// values are the members of an object that are texts, numbers or flags, for the template.
func (o object) values() map[string]string {
	columns := map[string]string{}
	for _, m := range o {
		var s string
		switch {
		case json.Unmarshal(m.value, &s) == nil:
			columns[m.name] = s
		case len(m.value) > 0 && m.value[0] != '{' && m.value[0] != '[':
			columns[m.name] = string(m.value)
		}
	}
	return columns
}
