package input

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// The encodings of texts, as --encoding names them.
const (
	utf8Name  = "utf-8"
	gbName    = "gb18030"
	utf16Name = "utf-16"
)

// charset is how the bytes of a text are read.
type charset struct {
	name string
	// decode is nil for UTF-8.
	decode encoding.Encoding
}

func utf8Text() charset { return charset{name: utf8Name} }
func gbText() charset   { return charset{gbName, simplifiedchinese.GB18030} }
func utf16Text(order unicode.Endianness) charset {
	return charset{utf16Name, unicode.UTF16(order, unicode.UseBOM)}
}

// reader returns a text in UTF-8.
func (c charset) reader(r io.Reader) io.Reader {
	if c.decode == nil {
		return r
	}
	return transform.NewReader(r, c.decode.NewDecoder())
}

// text is a file of text.
type text struct {
	file io.ReaderAt
	size int64
}

func (t text) bytes() io.Reader { return io.NewSectionReader(t.file, 0, t.size) }

// head returns the first bytes, at most n.
func (t text) head(n int64) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(t.file, 0, min(n, t.size)))
}

// invalidLine returns the number of the first line that is not text in an encoding, 0 for
// none, and whether all bytes are ASCII.
func (t text) invalidLine(c charset) (line int, ascii bool, err error) {
	in := bufio.NewReaderSize(c.reader(t.bytes()), 64<<10)
	line, ascii = 1, true
	for {
		r, size, err := in.ReadRune()
		switch {
		case errors.Is(err, io.EOF):
			return 0, ascii, nil
		case err != nil:
			return 0, false, err
		case r == utf8.RuneError && (size == 1 || c.decode != nil): // the decoders write it for what they cannot read
			return line, false, nil
		case r == '\n':
			line++
		case r >= utf8.RuneSelf:
			ascii = false
		}
	}
}

// charsetNamed returns the encoding with a name that a person gives.
func (t text) charsetNamed(name string) (charset, error) {
	var c charset
	switch strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(name)) {
	case "utf8":
		c = utf8Text()
	case "gb18030", "gbk", "gb2312", "cp936", "ansi":
		c = gbText()
	case "utf16", "utf16le", "utf16be", "unicode":
		head, err := t.head(sniffBytes)
		if err != nil {
			return c, err
		}
		if order, ok := utf16Order(head); ok {
			c = utf16Text(order)
		} else {
			c = utf16Text(unicode.LittleEndian)
		}
	default:
		return c, errorf("name one of them", "--encoding %q is not known: utf-8, gb18030 and utf-16 are", name)
	}
	line, _, err := t.invalidLine(c)
	if err == nil && line > 0 {
		err = errorf("leave --encoding out, or save the file as UTF-8", "line %d is not %s", line, c.name)
	}
	return c, err
}

// charset finds the encoding of a text. A text that has two readings is an error, unless one
// of them is clearly none.
func (t text) charset() (charset, error) {
	head, err := t.head(sniffBytes)
	if err != nil {
		return charset{}, err
	}
	if order, ok := utf16Order(head); ok {
		c := utf16Text(order)
		line, _, err := t.invalidLine(c)
		if err == nil && line > 0 {
			err = errorf(saveAsUTF8, "it begins as UTF-16, but its line %d is not", line)
		}
		return c, err
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return charset{}, errorf("name a table (.xlsx, .csv), a text or a file of JSON lines", "it is no text")
	}
	notUTF8, ascii, err := t.invalidLine(utf8Text())
	if err != nil || ascii {
		return utf8Text(), err
	}
	notGB, _, err := t.invalidLine(gbText())
	switch marked := bytes.HasPrefix(head, []byte("\ufeff")); {
	case err != nil:
		return charset{}, err
	case marked && notUTF8 > 0:
		return charset{}, errorf(saveAsUTF8, "it begins as UTF-8, but its line %d is not", notUTF8)
	case notUTF8 > 0 && notGB > 0:
		return charset{}, errorf(saveAsUTF8, "its line %d is not UTF-8, and its line %d is not GB18030", notUTF8, notGB)
	case notUTF8 > 0:
		return t.onlyGB(notUTF8)
	case marked, notGB > 0:
		return utf8Text(), nil
	}
	ordinary, err := t.isOrdinaryUTF8()
	if err != nil || ordinary {
		return utf8Text(), err
	}
	return charset{}, t.ambiguous()
}

const saveAsUTF8 = `save the file as UTF-8 (in Excel: "CSV UTF-8", or as .xlsx)`

// onlyGB accepts a text that is not UTF-8 if it reads as Chinese.
func (t text) onlyGB(notUTF8 int) (charset, error) {
	plain, err := t.isOrdinaryGB()
	if err != nil || plain {
		return gbText(), err
	}
	shown, err := t.line(gbText(), notUTF8)
	if err != nil {
		return charset{}, err
	}
	return charset{}, errorf(saveAsUTF8+"; or, if that is right, say --encoding gb18030",
		"line %d is not UTF-8, and reads strangely as GB18030:\n  %s", notUTF8, shown)
}

// ambiguous is the error of a text with two readings. It shows both of the first line that
// differs.
func (t text) ambiguous() error {
	number, err := t.firstNonASCII()
	if err != nil {
		return err
	}
	var readings [2]string
	for i, c := range []charset{utf8Text(), gbText()} {
		if readings[i], err = t.line(c, number); err != nil {
			return err
		}
	}
	return errorf("nothing was spent; say which one is right: --encoding utf-8, or --encoding gb18030 (or save the file as UTF-8 with a byte order mark, as Excel's \"CSV UTF-8\" is)",
		"it has two readings, and line %d differs:\n  utf-8:   %s\n  gb18030: %s", number, readings[0], readings[1])
}

// firstNonASCII returns the number of the first line that is not all ASCII.
func (t text) firstNonASCII() (int, error) {
	in := bufio.NewReader(t.bytes())
	for line := 1; ; {
		switch b, err := in.ReadByte(); {
		case err != nil:
			return line, err
		case b >= utf8.RuneSelf:
			return line, nil
		case b == '\n':
			line++
		}
	}
}

// shownRunes is how much of a line an error shows.
const shownRunes = 100

// line returns the beginning of a line, and if its first non-ASCII character is further, what
// is around that.
func (t text) line(c charset, number int) (string, error) {
	in := bufio.NewReader(c.reader(t.bytes()))
	var shown []rune
	special := -1
	for line := 1; line <= number; {
		r, _, err := in.ReadRune()
		switch {
		case errors.Is(err, io.EOF):
			line = number + 1
		case err != nil:
			return "", err
		case r == '\n':
			line++
		case line == number && (special < 0 || len(shown) < special+shownRunes/2):
			if shown = append(shown, r); r >= utf8.RuneSelf && r != '\ufeff' && special < 0 {
				special = len(shown) - 1
			}
			if special < 0 && len(shown) > shownRunes {
				shown = shown[1:]
			}
		}
	}
	return strings.TrimRight(fmt.Sprintf("%.*s", shownRunes, string(shown)), "\r"), nil
}

// utf16Order reports whether a text begins as UTF-16: with a byte order mark, or with a NUL
// and, in one order of the bytes alone, nothing but everyday characters.
func utf16Order(head []byte) (unicode.Endianness, bool) {
	switch {
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}):
		return unicode.LittleEndian, true
	case bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		return unicode.BigEndian, true
	case bytes.IndexByte(head, 0) < 0 || len(head)%2 != 0:
		return unicode.LittleEndian, false
	}
	little, big := everyday(head, binary.LittleEndian), everyday(head, binary.BigEndian)
	if little > big {
		return unicode.LittleEndian, little*20 >= len(head)/2*19
	}
	return unicode.BigEndian, big*20 >= len(head)/2*19
}

// everyday counts the code units of UTF-16 that are printable ASCII, white space, European
// letters, Chinese characters and punctuation, kana, Hangul or halves of emoji.
func everyday(head []byte, order binary.ByteOrder) int {
	n := 0
	for ; len(head) >= 2; head = head[2:] {
		switch u := order.Uint16(head); {
		case u == '\t', u == '\n', u == '\r', u >= ' ' && u < 0x7f, u >= 0xa0 && u < 0x180, u >= 0x370 && u < 0x700, u >= 0x900 && u < 0xa00, u >= 0xe00 && u < 0xe80, u >= 0x1ea0 && u < 0x1f00,
			u >= 0x2010 && u < 0x2700, u >= 0x3000 && u < 0x3100, u >= 0x4e00 && u < 0xa000, u >= 0xac00 && u < 0xe000, u >= 0xfe0f:
			n++
		}
	}
	return n
}
