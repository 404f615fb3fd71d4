package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/jobid"
)

// resultKey is the field of a results line that has the result of the job. ReadBatch ignores
// it.
const resultKey = "danqing"

// Limits of a batch file. The values are our choice.
const (
	maxLineBytes  = 1 << 20 // a prompt of 500 characters is 2 KiB
	maxShownLines = 50      // lines in a BatchError's text
)

// Batch is a validated file of jobs.
type Batch struct {
	Name  string
	Lines []Line
}

// Line is one job of a batch.
type Line struct {
	// Number is the number of the line, from 1; blank lines count. Lines that were made from
	// one row of a table have the same number.
	Number int
	// Raw is the line without blanks between its values.
	Raw []byte
	// ID is the job's ID. It is derived from the batch's name and the line's own id or
	// its request, never from its position.
	ID string
	// Digest is the digest of Request, before a seed is derived.
	Digest string
	// Request is normalized and has ID set.
	Request Request
	// Warnings are for people.
	Warnings []string
}

// BatchOptions configure [ReadBatch].
type BatchOptions struct {
	// Name is the name of the batch, see [BatchName]. Required, because job IDs contain
	// it.
	Name string
	// Model is the model of lines without one; empty is [DefaultModel].
	Model string
	// Priority is the priority of lines without one; empty is [PriorityDefault].
	Priority string
	// Unit is what the numbers of lines count, for errors; empty is "line". A table has rows.
	Unit string
	// Normalize, if set, returns the form of a name that all names have which look the same:
	// Name, and the ids of lines. The command line uses Unicode's NFC.
	Normalize func(name string) string
	// Fold, if set, returns the same text for names that some file systems cannot tell apart,
	// as by case: ids of which it does so are errors then. Set it where images become files.
	Fold func(name string) string
	// Resolve stages the file at a path, without the prefix file://, for a model, as the line
	// names it, and returns its staged name. It is called once per model and path. Nil: paths are
	// errors.
	Resolve func(model, path string) (staged string, err error)
	// Stage stages the image at the URL of a line with stage, likewise. Nil: such lines are
	// errors.
	Stage func(model, url string) (staged string, err error)
	// Each, if set, is called with each valid line, in order, in place of collecting
	// [Batch.Lines]: a large file then needs little memory. Later lines may be wrong, so
	// that nothing may be queued before [ReadBatch] has returned.
	Each func(Line)
}

// LineError is the error of one line of a batch: an [*InvalidError], or the position where
// the line is not JSON.
type LineError struct {
	Number int    // of the line, from 1
	Unit   string // what Number counts, see [BatchOptions]; empty is "line"
	Err    error
}

// Error names the line.
func (e LineError) Error() string { return fmt.Sprintf("%s: %v", position(e.Unit, e.Number), e.Err) }

// position names a line for people, as in "row 17".
func position(unit string, number int) string {
	return cmp.Or(unit, "line") + " " + strconv.Itoa(number)
}

// Unwrap returns Err.
func (e LineError) Unwrap() error { return e.Err }

// BatchError is the error of an invalid batch, with every wrong line.
type BatchError struct {
	Lines []LineError // in the order of the file
}

// Error has one line for each mistake, 50 at most, and the number of the others. Lines with the
// same mistake are named together.
func (e *BatchError) Error() string {
	var texts []string
	lines := map[string][]LineError{}
	for _, l := range e.Lines {
		text := l.Err.Error()
		if lines[text] == nil {
			texts = append(texts, text)
		}
		lines[text] = append(lines[text], l)
	}
	var b strings.Builder
	for i, text := range texts {
		if i == maxShownLines {
			fmt.Fprintf(&b, "\nand %d more", len(texts)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(positions(lines[text]) + ": " + text)
	}
	return b.String()
}

// maxShownNumbers is how many lines with the same mistake are named.
const maxShownNumbers = 5

// positions names lines for people, as in "rows 3, 5 and 290 more".
func positions(lines []LineError) string {
	if len(lines) == 1 {
		return position(lines[0].Unit, lines[0].Number)
	}
	text := cmp.Or(lines[0].Unit, "line") + "s"
	for i, l := range lines {
		switch {
		case i == maxShownNumbers && i < len(lines)-1:
			return text + fmt.Sprintf(" and %d more", len(lines)-i)
		case i > 0 && i == len(lines)-1:
			text += " and"
		case i > 0:
			text += ","
		}
		text += " " + strconv.Itoa(l.Number)
	}
	return text
}

// Unwrap returns the lines, for [errors.As] and [errors.Is].
func (e *BatchError) Unwrap() []error {
	list := make([]error, len(e.Lines))
	for i, l := range e.Lines {
		list[i] = l
	}
	return list
}

// batchReader is the state of one [ReadBatch].
type batchReader struct {
	opts    BatchOptions
	batch   *Batch
	valid   int // lines
	wrong   []LineError
	numbers map[string]seenLine  // by job ID, as opts.Fold returns it
	equal   map[string]int       // lines without an own id, by digest
	staged  map[[2]string]staged // by model and path
}

type seenLine struct {
	number int
	id     string
	digest string // empty if the line is wrong
}

type staged struct {
	name string
	err  error
}

// line adds one line that is not blank.
func (b *batchReader) line(l SourceLine) error {
	raw, err := compact(l.Text)
	if err != nil {
		return err
	}
	var d decoder
	r := d.request(raw, topNames())
	problems := withoutRepeats(l.Problems, d.problems)
	own := b.opts.Normalize(strings.TrimSpace(r.ID))
	r.ID, r.RedoOf = "", b.opts.Normalize(r.RedoOf)
	r.Model, r.Priority = cmp.Or(r.Model, b.opts.Model), cmp.Or(r.Priority, b.opts.Priority)
	given := r
	r, missing := r.WithReferences(func(_, name string) (string, error) {
		path, local := localPath(name)
		isURL := !local && strings.Contains(name, "://")
		if local && b.opts.Resolve != nil || isURL && r.Stage {
			staged, err := b.stagedName(r.Model, path, name, local)
			if err != nil {
				staged = StagedPrefix + strings.Repeat("0", 64) // the other fields about it are still checked
			}
			return staged, err
		}
		return name, nil
	})
	problems = append(problems, missing...)
	r.Stage = false
	replaced := r
	r, warnings, more := r.normalize()
	NameGiven(more, given, replaced)
	problems = withoutRepeats(problems, more)

	digest := ""
	if len(problems) == 0 {
		digest = r.Digest()
	}
	if own == "" && digest != "" {
		own = b.opts.Normalize(jobid.OfText(r.Prompt, digest))
		if b.equal[digest]++; b.equal[digest] > 1 {
			own += fmt.Sprintf("-%d", b.equal[digest])
		}
	}
	if own != "" {
		r.ID = BatchID(b.opts.Name, own)
		r.Batch, r.LineID = b.opts.Name, own
		if p, twice := b.claim(r.ID, own, seenLine{number: l.Number, digest: digest}); twice {
			problems = append(problems, p)
		}
	}
	if r.ID != "" && r.RedoOf == r.ID {
		problems = append(problems, FieldError{Field: "redo_of", Value: show(r.RedoOf), Allowed: "another job"})
	}
	if len(problems) > 0 {
		return &InvalidError{Fields: problems}
	}
	b.valid++
	valid := Line{Number: l.Number, Raw: raw, ID: r.ID, Digest: digest, Request: r, Warnings: warnings}
	if b.opts.Each != nil {
		b.opts.Each(valid)
		return nil
	}
	b.batch.Lines = append(b.batch.Lines, valid)
	return nil
}

// claim records the job ID of a line. It returns a problem if an earlier line has the ID.
func (b *batchReader) claim(id, own string, now seenLine) (FieldError, bool) {
	key := id
	if b.opts.Fold != nil {
		key = b.opts.Fold(id)
	}
	before, twice := b.numbers[key]
	if !twice {
		now.id = id
		b.numbers[key] = now
		return FieldError{}, false
	}
	problem := FieldError{Field: "id", Value: show(own), Allowed: "each id once"}
	at := position(b.opts.Unit, before.number)
	switch {
	case before.id != id:
		problem.Remedy = fmt.Sprintf("the id of %s differs from it only in case, and their images would be one file on some disks: rename one of them", at)
	case before.digest == "" || now.digest == "":
		problem.Remedy = fmt.Sprintf("%s has the same id", at)
	case before.digest == now.digest:
		problem.Remedy = fmt.Sprintf("%s has the same id and the same request: delete one, or change its id to make it twice", at)
	default:
		problem.Remedy = fmt.Sprintf("%s has the same id and another request", at)
	}
	return problem, true
}

// stagedName stages the image at a path or URL for a model, and returns its name.
func (b *batchReader) stagedName(model, path, ref string, local bool) (string, error) {
	from, stage := path, b.opts.Resolve
	if !local {
		if allowed, _ := checkURL(ref); allowed != "" {
			return ref, nil // the request is refused for it
		}
		from, stage = ref, b.opts.Stage
	}
	if stage == nil {
		return "", errors.New("staging is not available here: remove \"stage\"")
	}
	key := [2]string{model, from}
	s, known := b.staged[key]
	if !known {
		s.name, s.err = stage(model, from)
		b.staged[key] = s
	}
	return s.name, s.err
}

// localPath returns the path of a reference, and whether it is a path at all: neither a URL
// nor a staged name. Official samples write file:// before a path.
func localPath(ref string) (string, bool) {
	ref = strings.TrimSpace(ref)
	if path, ok := strings.CutPrefix(ref, "file://"); ok {
		return path, path != ""
	}
	if ref == "" || strings.Contains(ref, "://") || strings.HasPrefix(ref, "data:") || strings.HasPrefix(ref, StagedPrefix) {
		return "", false
	}
	return ref, true
}

// withoutRepeats appends to problems those of others that are about other fields.
func withoutRepeats(problems, others []FieldError) []FieldError {
	list := slices.Clone(problems)
	for _, p := range others {
		if !slices.ContainsFunc(list, func(q FieldError) bool { return sameField(p, q) }) {
			list = append(list, p)
		}
	}
	return list
}

// sameField reports whether two problems are about the same field, anywhere in the body.
func sameField(a, b FieldError) bool {
	last := func(f string) string { return f[strings.LastIndexByte(f, '.')+1:] }
	return last(a.Field) == last(b.Field)
}

// compact returns a line's JSON without blanks between values. The values are unchanged. The
// error has the position of the first character that is not JSON or not UTF-8.
func compact(text []byte) ([]byte, error) {
	if i := invalidUTF8(text); i >= 0 {
		return nil, fmt.Errorf("column %d: not UTF-8; save the file as UTF-8 (it may be GBK or UTF-16)", utf8.RuneCount(text[:i])+1)
	}
	var value json.RawMessage
	if err := json.Unmarshal(text, &value); err != nil {
		var syntax *json.SyntaxError
		if !errors.As(err, &syntax) {
			return nil, err
		}
		at := max(0, min(int(syntax.Offset), len(text))-1) // Offset counts the wrong byte
		for at > 0 && !utf8.RuneStart(text[at]) {
			at--
		}
		column := utf8.RuneCount(text[:at]) + 1
		wrong, size := utf8.DecodeRune(text[at:])
		if _, where, found := strings.Cut(err.Error(), "' "); found && size > 1 { // encoding/json names the first byte
			return nil, fmt.Errorf("column %d: not a JSON object: invalid character %q %s", column, wrong, where)
		}
		return nil, fmt.Errorf("column %d: not a JSON object: %w", column, err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, value); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// RedoID is the id of the line that makes a line again for the nth time, from 1.
func RedoID(id string, n int) string { return fmt.Sprintf("%s-redo-%d", id, n) }

// Redo returns the line's JSON for making its images again, as another job of the batch: with
// this id, see [RedoID], with the job's ID as redo_of, and without the seed and the result, so
// that the new job's seed is derived from its own ID. Everything else stays as it is.
func (l Line) Redo(id string) ([]byte, error) {
	encoded, err := compactjson.Marshal(struct {
		ID     string `json:"id"`
		RedoOf string `json:"redo_of"`
	}{id, l.ID})
	if err != nil {
		return nil, err
	}
	rest, err := without(l.Raw, "id", "redo_of", "seed", resultKey)
	if err != nil {
		return nil, fmt.Errorf("redo of line %d: %w", l.Number, err)
	}
	if len(rest) > len("{}") {
		encoded = append(encoded[:len(encoded)-1], ',')
		rest = rest[1:]
		return append(encoded, rest...), nil
	}
	return encoded, nil
}

// Without returns the line's JSON without some of its fields.
func (l Line) Without(names ...string) ([]byte, error) {
	text, err := without(l.Raw, names...)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", l.Number, err)
	}
	return text, nil
}

// without returns a JSON object without some of its members, also in input and parameters.
func without(object []byte, names ...string) ([]byte, error) {
	list, err := members(object)
	if err != nil {
		return nil, err
	}
	out := []byte{'{'}
	for _, m := range list {
		if slices.Contains(names, m.name) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		if (m.name == "input" || m.name == "parameters") && m.value[0] == '{' {
			inner, err := without(m.value, names...)
			if err != nil {
				return nil, err
			}
			out = append(fmt.Appendf(out, "%q:", m.name), inner...)
			continue
		}
		out = append(out, m.both...)
	}
	return append(out, '}'), nil
}

// Result returns the line's JSON with v as its last field, "danqing", in place of an existing
// one. All other fields keep their order and their bytes, so that a results file can be read
// as a batch with the same jobs.
func (l Line) Result(v any) ([]byte, error) {
	list, err := members(l.Raw)
	if err != nil {
		return nil, fmt.Errorf("result of line %d: %w", l.Number, err)
	}
	out := bytes.NewBufferString("{")
	for _, m := range list {
		if m.name != resultKey {
			out.Write(m.both)
			out.WriteByte(',')
		}
	}
	encoded, err := compactjson.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("result of line %d: %w", l.Number, err)
	}
	fmt.Fprintf(out, "%q:%s}", resultKey, encoded)
	return out.Bytes(), nil
}
