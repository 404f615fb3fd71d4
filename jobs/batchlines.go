package jobs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode/utf8"
)

// SourceLine is a line of JSON for [ReadBatchLines].
type SourceLine struct {
	// Number is where a person finds the line in the file that it was made from.
	Number int
	// Text is a JSON object. It may be blank: the line is skipped.
	Text []byte
	// Problems are those that were found while the line was made. The line is wrong if there
	// are any.
	Problems []FieldError
}

// ReadBatch reads and checks a file of requests with one JSON object per line (JSON Lines).
// Blank lines, a byte order mark and CRLF are allowed. Unknown fields are kept for the
// results. A line may have 1 MiB.
//
// It fails with a [*BatchError] that has every wrong line, or with the error of r. A file
// without requests is an error.
func ReadBatch(r io.Reader, opts BatchOptions) (*Batch, error) {
	return ReadBatchLines(JSONLines(r), opts)
}

// ReadBatchLines is [ReadBatch] with lines that were made from a file in another format. A
// [LineError] of lines is the error of that line; any other error ends the reading.
func ReadBatchLines(lines iter.Seq2[SourceLine, error], opts BatchOptions) (*Batch, error) {
	if opts.Name == "" {
		return nil, errors.New("read batch: the name is missing")
	}
	if opts.Normalize == nil {
		opts.Normalize = func(name string) string { return name }
	}
	opts.Name = opts.Normalize(opts.Name)
	b := batchReader{
		opts:    opts,
		batch:   &Batch{Name: opts.Name},
		numbers: map[string]seenLine{},
		equal:   map[string]int{},
		staged:  map[[2]string]staged{},
	}
	for l, err := range lines {
		var wrong LineError
		switch {
		case errors.As(err, &wrong):
			b.wrong = append(b.wrong, LineError{wrong.Number, opts.Unit, wrong.Err})
		case err != nil:
			return nil, fmt.Errorf("read batch: %w", err)
		case len(bytes.TrimSpace(l.Text)) > 0:
			if problem := b.line(l); problem != nil {
				b.wrong = append(b.wrong, LineError{l.Number, opts.Unit, problem})
			}
		}
	}
	switch {
	case len(b.wrong) > 0:
		return nil, &BatchError{Lines: b.wrong}
	case b.valid == 0:
		return nil, errors.New("read batch: it contains no request")
	}
	return b.batch, nil
}

// JSONLines returns the lines of a file of JSON Lines, with their numbers. A line above 1 MiB
// is a [LineError].
func JSONLines(r io.Reader) iter.Seq2[SourceLine, error] {
	return func(yield func(SourceLine, error) bool) {
		in := bufio.NewReaderSize(r, 64<<10)
		for number := 1; ; number++ {
			text, err := readLine(in)
			if number == 1 {
				text = bytes.TrimPrefix(text, []byte("\ufeff"))
			}
			last := errors.Is(err, io.EOF)
			switch {
			case errors.Is(err, errLongLine):
				err = LineError{Number: number, Err: errLongLine}
			case last:
				err = nil
			case err != nil:
				err, last = fmt.Errorf("line %d: %w", number, err), true
			}
			if !yield(SourceLine{Number: number, Text: text}, err) || last {
				return
			}
		}
	}
}

// errLongLine is the error of a line above the limit.
var errLongLine = fmt.Errorf("longer than %d bytes; write one JSON object per line", maxLineBytes)

// readLine returns the next line without its end, and io.EOF with the last one. A line that
// is too long is skipped.
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

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
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
