package input

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A text in GB18030 is seldom valid UTF-8, and one in UTF-8 is often valid GB18030, as mojibake.
// These rules tell which of two readings was written. They are one-sided: where they are not
// sure, a person must say. TestEncodings measures them.

// isOrdinaryGB reports whether a text in GB18030 reads as Chinese: nearly all characters are
// in GB2312, the set of simplified Chinese, or are emoji. Big5, Shift JIS and Latin-1 read as
// GB18030 give characters of the extensions, and of the private area.
func (t text) isOrdinaryGB() (bool, error) {
	in := bufio.NewReaderSize(t.bytes(), 64<<10)
	var common, other int
	for {
		lead, err := in.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return common >= 2*other, nil
		case err != nil:
			return false, err
		case lead < 0x80:
			continue
		}
		trail, err := in.ReadByte()
		switch {
		case err != nil:
			return false, err
		case trail >= '0' && trail <= '9': // the first half of four bytes
			if _, err := in.Discard(2); err != nil {
				return false, err
			}
			if lead >= 0x90 { // beyond the Basic Multilingual Plane
				common++
			}
		case lead >= 0xa1 && lead <= 0xf7 && trail >= 0xa1:
			common++
		default:
			other++
		}
	}
}

// isOrdinaryUTF8 reports whether a text that is also valid GB18030 is ordinary UTF-8: two
// thirds of its characters beyond ASCII, at least, are such as mojibake does not give. What
// GB2312 has reads as pairs of the letters U+00A1 to U+07FF, of many scripts in one word.
func (t text) isOrdinaryUTF8() (bool, error) {
	in := bufio.NewReaderSize(t.bytes(), 64<<10)
	var total judgement
	segment := make([]rune, 0, maxSegment)
	for {
		r, _, err := in.ReadRune()
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if err == nil && !strings.ContainsRune("\n\"\t,;:{}[]<>", r) {
			if segment = append(segment, r); len(segment) < maxSegment {
				continue
			}
		}
		total.judge(segment)
		segment = segment[:0]
		if err != nil {
			return total.ordinary > 0 && total.ordinary >= 2*total.doubtful, nil
		}
	}
}

// maxSegment is how many characters are judged together.
const maxSegment = 4096

// judgement counts the characters beyond ASCII.
type judgement struct{ ordinary, doubtful int }

// judge counts the characters of a piece of text without separators of JSON and CSV.
func (j *judgement) judge(segment []rune) {
	var letters, others int
	for _, r := range segment {
		switch {
		case r >= utf8.RuneSelf:
			others++
		case isASCIILetter(r):
			letters++
		}
	}
	if others == 0 {
		return
	}
	// A Latin sentence with few other characters. In Chinese there would be more of them.
	sentence := letters >= lettersPerAccent*others
	for start := 0; start < len(segment); {
		end := start + 1
		for end < len(segment) && isWord(segment[start]) && isWord(segment[end]) {
			end++
		}
		j.word(segment[start:end], sentence)
		start = end
	}
}

// lettersPerAccent is how many letters of ASCII a sentence has for each accent.
const lettersPerAccent = 8

// word counts the characters of a word, or one character between words.
func (j *judgement) word(word []rune, sentence bool) {
	foreign := isForeignWord(word) || isLatinWord(word)
	for i, r := range word {
		between := isWithinLatin(word, i)
		switch {
		case r < utf8.RuneSelf || r == '\ufeff':
		case isBeyondTwoBytes(r), foreign, isLatin(r) && (between || sentence), r < 0x100 && sentence, isAccent(r) && i > 0 && isASCIILetter(word[i-1]):
			j.ordinary++
		default:
			j.doubtful++
		}
	}
}

// isBeyondTwoBytes reports whether a character has three or four bytes in UTF-8, and is in a
// script of today, a symbol or an emoji.
func isBeyondTwoBytes(r rune) bool {
	return r >= 0x2010 || r >= 0x900 && r <= 0xe5b || r >= 0x1ea0 && r <= 0x1ef9 // Indian scripts and Thai; Vietnamese
}

// isLatinWord reports whether a word is of European letters, and two of them with accents are
// apart, or the bytes of one of them are none of GB2312.
func isLatinWord(word []rune) bool {
	accents, below, ascii := 0, false, false
	for _, r := range word {
		switch {
		case isASCIILetter(r):
			ascii = true
		case !isLatin(r):
			return false
		default:
			below = below || isBelowGB2312(r)
			if accents == 0 || ascii {
				accents++
			}
			ascii = false
		}
	}
	return accents > 1 || below
}

// isWithinLatin reports whether a letter, or it and one beside it, stand between two letters
// of ASCII.
func isWithinLatin(word []rune, i int) bool {
	before, after := i-1, i+1
	switch {
	case before >= 0 && isLatin(word[before]):
		before--
	case after < len(word) && isLatin(word[after]):
		after++
	}
	return before >= 0 && after < len(word) && isASCIILetter(word[before]) && isASCIILetter(word[after])
}

// isForeignWord reports whether all letters of a word are in the everyday part of one
// alphabet, and the bytes of one of them at least are none of GB2312.
func isForeignWord(word []rune) bool {
	for _, alphabet := range []struct{ first, last rune }{
		{0x386, 0x3ce}, {0x400, 0x45f}, {0x5d0, 0x5ea}, {0x621, 0x652}, // Greek, Cyrillic, Hebrew, Arabic
	} {
		same, below := 0, false
		for _, r := range word {
			if r >= alphabet.first && r <= alphabet.last {
				same++
				below = below || isBelowGB2312(r)
			}
		}
		if same == len(word) && below {
			return true
		}
	}
	return false
}

// isBelowGB2312 reports whether the last byte of a character in UTF-8 is too small for GB2312.
func isBelowGB2312(r rune) bool { return 0x80|r&0x3f < 0xa1 }

func isWord(r rune) bool        { return unicode.IsLetter(r) || unicode.IsMark(r) }
func isASCIILetter(r rune) bool { return r|0x20 >= 'a' && r|0x20 <= 'z' }
func isAccent(r rune) bool      { return r >= 0x300 && r <= 0x30c } // combining

// isLatin reports whether a letter is one of the European languages, with an accent.
func isLatin(r rune) bool { return r >= 0xc0 && r <= 0x17f && unicode.IsLetter(r) }
