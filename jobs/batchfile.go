package jobs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/danqing-queue/danqing/jobs/compactjson"
)

// resultKey is the field of a results line that holds what became of the job.
// On reading it is ignored.
const resultKey = "danqing"

// Bounds of a batch file; ours.
const (
	maxLineBytes  = 1 << 20 // a prompt of 500 characters is 2 KiB
	maxShownLines = 50      // lines in a BatchError's text
)

// lineDigest is how many hex digits of a digest name a line without an own id.
const lineDigest = 24

// Batch is a file of jobs, read and checked.
type Batch struct {
	Name  string
	Lines []Line
}

// Line is one job of a batch.
type Line struct {
	// Number is the line's, from 1, blank lines counted.
	Number int
	// Raw is the line as given, without blanks between its values.
	Raw []byte
	// ID is the job's. It comes from the batch's name and the line's own id,
	// or from what the line asks for; never from its position.
	ID string
	// Digest is that of Request as asked, before a seed is derived.
	Digest string
	// Request is normalized and has ID set.
	Request Request
	// Warnings are for a person.
	Warnings []string
}

// BatchOptions say how to read a batch.
type BatchOptions struct {
	// Name is the batch's, see [BatchName]. Required: job IDs are made of it.
	Name string
	// Model is for lines that name none; empty is [DefaultModel].
	Model string
	// Resolve turns a reference that is a path, as written (a file:// before it
	// taken off), into a staged name. It is called once per path. Nil: paths
	// are errors.
	Resolve func(path string) (staged string, err error)
	// Stage copies a reference image that a line asks to stage, by its URL, and returns
	// its staged name. It is called once per URL. Nil: to ask for that is an error.
	Stage func(url string) (staged string, err error)
}

// LineError is what is wrong with one line of a batch: an [*InvalidError], or
// that the line is no JSON.
type LineError struct {
	Number int // the line's, from 1
	Err    error
}

// Error names the line.
func (e LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Number, e.Err) }

// Unwrap returns Err.
func (e LineError) Unwrap() error { return e.Err }

// BatchError is a batch that cannot be run, with every line that is wrong.
type BatchError struct {
	Lines []LineError // in the order of the file
}

// Error has one line for each wrong line, 50 at most, and says how many more
// there are.
func (e *BatchError) Error() string {
	var b strings.Builder
	for i, l := range e.Lines {
		if i == maxShownLines {
			fmt.Fprintf(&b, "\nand %d more", len(e.Lines)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(l.Error())
	}
	return b.String()
}

// Unwrap returns the lines, for [errors.As] and [errors.Is].
func (e *BatchError) Unwrap() []error {
	list := make([]error, len(e.Lines))
	for i, l := range e.Lines {
		list[i] = l
	}
	return list
}

// ReadBatch reads a file of requests, one JSON object a line (JSON Lines), and
// checks all of it. Blank lines, a byte order mark and CRLF are fine; fields
// that are none of ours are kept for the results. A line may have 1 MiB.
//
// It fails with a [*BatchError] that holds every wrong line, or with the error
// of r. A file without requests is an error.
func ReadBatch(r io.Reader, opts BatchOptions) (*Batch, error) {
	if opts.Name == "" {
		return nil, errors.New("read batch: the name is missing")
	}
	b := batchReader{
		opts:    opts,
		batch:   &Batch{Name: opts.Name},
		numbers: map[string]seenLine{},
		equal:   map[string]int{},
		staged:  map[string]staged{},
	}
	in := bufio.NewReaderSize(r, 64<<10)
	for number := 1; ; number++ {
		text, err := readLine(in)
		if number == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		switch {
		case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errLongLine):
			return nil, fmt.Errorf("read batch: line %d: %w", number, err)
		case errors.Is(err, errLongLine):
			b.wrong = append(b.wrong, LineError{number, err})
		case len(bytes.TrimSpace(text)) > 0:
			if problem := b.line(number, text); problem != nil {
				b.wrong = append(b.wrong, LineError{number, problem})
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
	}
	switch {
	case len(b.wrong) > 0:
		return nil, &BatchError{Lines: b.wrong}
	case len(b.batch.Lines) == 0:
		return nil, errors.New("read batch: it contains no request")
	}
	return b.batch, nil
}

// errLongLine is a line over the limit.
var errLongLine = fmt.Errorf("longer than %d bytes; write one JSON object per line", maxLineBytes)

// readLine returns the next line without its end; io.EOF with the last one. A
// line that is too long is read to its end and dropped.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	long := false
	for {
		part, err := in.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxLineBytes; !long {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case long && err == nil:
			return nil, errLongLine
		case long && errors.Is(err, io.EOF):
			return nil, errors.Join(errLongLine, io.EOF)
		default:
			return bytes.TrimRight(line, "\r\n"), err
		}
	}
}

// batchReader is the state of one [ReadBatch].
type batchReader struct {
	opts    BatchOptions
	batch   *Batch
	wrong   []LineError
	numbers map[string]seenLine // by job ID
	equal   map[string]int      // lines without an own id, by digest
	staged  map[string]staged   // by path
}

type seenLine struct {
	number int
	digest string // empty if the line is wrong
}

type staged struct {
	name string
	err  error
}

// line takes in one line that is not blank.
func (b *batchReader) line(number int, text []byte) error {
	raw, err := compact(text)
	if err != nil {
		return err
	}
	r, problems := decodeRequest(raw, topNames())
	own := strings.TrimSpace(r.ID)
	r.ID = ""
	if r.Model == "" {
		r.Model = b.opts.Model
	}
	path, local := localPath(r.RefImg)
	isURL := !local && strings.Contains(r.RefImg, "://")
	if local && b.opts.Resolve != nil || isURL && r.Stage {
		name, err := b.stagedName(path, r.RefImg, local)
		if err != nil {
			problems = append(problems, FieldError{Field: "ref_img", Value: showURL(r.RefImg), Err: err})
			name = StagedPrefix + strings.Repeat("0", 64) // the fields about it may be right
		}
		r.RefImg = name
	}
	r.Stage = false
	r, warnings, more := r.normalize()
	for _, p := range more {
		if !slices.ContainsFunc(problems, func(q FieldError) bool { return sameField(p, q) }) {
			problems = append(problems, p)
		}
	}

	digest := ""
	if len(problems) == 0 {
		digest = r.Digest()
	}
	if own == "" && digest != "" {
		b.equal[digest]++
		own = fmt.Sprintf("%s-%d", digest[:lineDigest], b.equal[digest])
	}
	if own != "" {
		r.ID = BatchID(b.opts.Name, own)
		r.Batch, r.LineID = b.opts.Name, own
		if p, twice := b.claim(r.ID, own, seenLine{number, digest}); twice {
			problems = append(problems, p)
		}
	}
	if r.ID != "" && r.RedoOf == r.ID {
		problems = append(problems, FieldError{Field: "redo_of", Value: show(r.RedoOf), Allowed: "another job"})
	}
	if len(problems) > 0 {
		return &InvalidError{Fields: problems}
	}
	b.batch.Lines = append(b.batch.Lines, Line{
		Number: number, Raw: raw, ID: r.ID, Digest: digest, Request: r, Warnings: warnings,
	})
	return nil
}

// claim notes that a line has a job ID, and says so if an earlier one has it.
func (b *batchReader) claim(id, own string, now seenLine) (FieldError, bool) {
	before, twice := b.numbers[id]
	if !twice {
		b.numbers[id] = now
		return FieldError{}, false
	}
	problem := FieldError{Field: "id", Value: show(own), Allowed: "each id once"}
	switch {
	case before.digest == "" || now.digest == "":
		problem.Remedy = fmt.Sprintf("line %d has the same id", before.number)
	case before.digest == now.digest:
		problem.Remedy = fmt.Sprintf("line %d has the same id and the same request: delete one, or change its id to make it twice", before.number)
	default:
		problem.Remedy = fmt.Sprintf("line %d has the same id and another request", before.number)
	}
	return problem, true
}

// stagedName is the name under which a path's or a URL's image is staged.
func (b *batchReader) stagedName(path, ref string, local bool) (string, error) {
	from, stage := path, b.opts.Resolve
	if !local {
		if allowed, _ := checkURL(ref); allowed != "" {
			return ref, nil // it is refused anyway
		}
		from, stage = ref, b.opts.Stage
	}
	if stage == nil {
		return "", errors.New("staging is not available here: remove \"stage\"")
	}
	s, known := b.staged[from]
	if !known {
		s.name, s.err = stage(from)
		b.staged[from] = s
	}
	return s.name, s.err
}

// localPath says whether a reference is neither a URL nor a staged name, and
// returns the path. Official samples write file:// before one.
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

// sameField reports whether two problems are about one field, wherever in the
// body it stood.
func sameField(a, b FieldError) bool {
	last := func(f string) string { return f[strings.LastIndexByte(f, '.')+1:] }
	return last(a.Field) == last(b.Field)
}

// compact returns a line's JSON without blanks between values, which are kept
// byte for byte. The error says at which character the line is no JSON or no
// UTF-8.
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
		return nil, fmt.Errorf("column %d: not a JSON object: %w", utf8.RuneCount(text[:at])+1, err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, value); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// invalidUTF8 returns where text stops being UTF-8, or -1.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// Result returns the line's JSON with v added as its last field, "danqing". All
// other fields are as given, in their order, each value byte for byte; a
// "danqing" that the line had is replaced. So a results file can be read as a
// batch again and means the same jobs.
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
