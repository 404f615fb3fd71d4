package input

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"slices"
	"sort"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
)

// jsonLines makes the lines of a file with one object a line.
func (o *Options) jsonLines(r io.Reader, s *Source) iter.Seq2[jobs.SourceLine, error] {
	return o.jsonSource(s, jobs.JSONLines(r))
}

// jsonSource makes lines of objects.
func (o *Options) jsonSource(s *Source, objects iter.Seq2[jobs.SourceLine, error]) iter.Seq2[jobs.SourceLine, error] {
	return func(yield func(jobs.SourceLine, error) bool) {
		j := jsonReader{options: o, source: s, mapped: map[string]bool{}}
		for l, err := range objects {
			if err != nil || len(bytes.TrimSpace(l.Text)) == 0 {
				if !yield(l, err) {
					return
				}
				continue
			}
			for _, line := range j.lines(l) {
				if !yield(line, nil) {
					return
				}
			}
		}
		for _, m := range o.Map {
			if !j.mapped[m.Column] {
				yield(jobs.SourceLine{}, errorf("", "--map %s=%s: no object has the name %s", m.Column, m.Field, m.Column))
				return
			}
		}
	}
}

// jsonReader makes lines of objects.
type jsonReader struct {
	options *Options
	source  *Source
	mapped  map[string]bool // columns of --map that were seen
}

// lines makes the lines of an object. What nothing changes is left as it is written.
func (j *jsonReader) lines(l jobs.SourceLine) []jobs.SourceLine {
	openAI := bytes.Contains(l.Text, []byte(`"custom_id"`))
	if !openAI && !j.options.changesLines() {
		return []jobs.SourceLine{l}
	}
	var compact bytes.Buffer
	if json.Compact(&compact, l.Text) != nil {
		return []jobs.SourceLine{l} // ReadBatchLines says what is wrong
	}
	object, err := parseObject(compact.Bytes())
	if err != nil {
		return []jobs.SourceLine{l}
	}
	r := record{number: l.Number, object: object}
	if openAI && object.get("body") != nil {
		r.object, r.problems = j.source.openAI(object)
	}
	r.object = j.mapNames(r.object)
	if j.options.template != nil {
		r.columns = r.object.values()
		if inner, err := parseObject(r.object.get("input")); err == nil && r.columns["prompt"] == "" {
			r.columns["prompt"] = inner.values()["prompt"]
			inner = slices.DeleteFunc(inner, func(m member) bool { return m.name == "prompt" }) // the template's replaces it
			r.object = r.object.set("input", inner.text())
		}
	}
	return j.options.lines(r)
}

// mapNames gives members the names that --map says.
func (j *jsonReader) mapNames(o object) object {
	if len(j.options.Map) == 0 {
		return o
	}
	o = slices.Clone(o)
	for i, m := range o {
		at := j.options.mapping(m.name)
		if at < 0 {
			continue
		}
		to := j.options.Map[at]
		j.mapped[to.Column] = true
		if o[i].name = to.Field; to.Field == ignored {
			o[i].name = m.name + " (own)"
		}
	}
	return o
}

// jsonValues returns the objects of a JSON array, or of a file with objects over many lines.
// byItem is set to number them by their place, and not by the line on which they begin.
func jsonValues(r io.Reader, byItem bool) iter.Seq2[jobs.SourceLine, error] {
	return func(yield func(jobs.SourceLine, error) bool) {
		in := bufio.NewReaderSize(r, 64<<10)
		if first, _, err := in.ReadRune(); err == nil && first != '\ufeff' {
			_ = in.UnreadRune()
		}
		lines := &lineCounter{in: in}
		dec := json.NewDecoder(lines)
		array := false
		fail := func(err error) {
			at := dec.InputOffset()
			if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
				at = syntax.Offset
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("the file ends within an object or a list")
			}
			yield(jobs.SourceLine{}, errorf("correct it, or write one JSON object a line", "line %d: not JSON: %w", lines.line(at), err))
		}
		if c, err := firstByte(in); err == nil && c == '[' {
			array = true
			if _, err := dec.Token(); err != nil {
				fail(err)
				return
			}
		}
		for number := 1; ; number++ {
			if array && !dec.More() {
				if _, err := dec.Token(); err != nil {
					fail(err)
				} else if _, err := dec.Token(); !errors.Is(err, io.EOF) {
					fail(errors.New("there is more after the end of the list"))
				}
				return
			}
			var value json.RawMessage
			if err := dec.Decode(&value); errors.Is(err, io.EOF) && !array {
				return
			} else if err != nil {
				fail(err)
				return
			}
			at := lines.line(dec.InputOffset() - int64(len(value)))
			if byItem {
				at = number
			}
			if value[0] == '"' {
				value = object{{"prompt", value}}.text()
			}
			if !yield(jobs.SourceLine{Number: at, Text: value}, nil) {
				return
			}
		}
	}
}

// firstByte returns the first byte that is no white space, without reading it.
func firstByte(in *bufio.Reader) (byte, error) {
	head, err := in.Peek(in.Size())
	if head = bytes.TrimSpace(head); len(head) > 0 {
		return head[0], nil
	}
	return 0, err
}

// lineCounter counts lines up to an offset that does not decrease. It keeps the line ends that
// were read beyond.
type lineCounter struct {
	in     io.Reader
	offset int64
	passed int     // line ends before those of ends
	ends   []int64 // offsets of line ends
}

func (l *lineCounter) Read(p []byte) (int, error) {
	n, err := l.in.Read(p)
	for i, b := range p[:n] {
		if b == '\n' {
			l.ends = append(l.ends, l.offset+int64(i))
		}
	}
	l.offset += int64(n)
	return n, err
}

// line returns the number of the line with an offset.
func (l *lineCounter) line(offset int64) int {
	n := sort.Search(len(l.ends), func(i int) bool { return l.ends[i] >= offset })
	l.passed += n
	l.ends = slices.Delete(l.ends, 0, n)
	return l.passed + 1
}

// isOneLine reports whether the first objects of a list are on one line.
func isOneLine(head string) bool {
	start := strings.IndexByte(head, '{')
	if start < 0 {
		return false
	}
	next := strings.Index(head[start+1:], "{")
	return next >= 0 && !strings.Contains(head[start:start+1+next], "\n")
}

// hasJSONLine reports whether a line of a text is a JSON object by itself.
func hasJSONLine(head string) bool {
	for line := range strings.Lines(head) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "{") && json.Valid([]byte(line)) {
			return true
		}
	}
	return false
}
