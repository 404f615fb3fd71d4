// Package jobid defines which job IDs are valid, and derives readable ones. An ID is also a
// file name, a part of S3 keys, of Redis keys and of URLs. The page jobs/docs/digest.md
// describes the IDs byte for byte; they never change.
package jobid

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxBytes is the maximum length of an ID in UTF-8. With the additions of sidecars, of the
// spool and of quarantined images it stays below the 255 bytes of a file name.
const MaxBytes = 200

// maxBatchBytes and maxLineBytes limit the two parts of a batch job's ID. Longer ones are
// shortened and get a hash.
const (
	maxBatchBytes = 80
	maxLineBytes  = MaxBytes - maxBatchBytes - 1
)

// hashDigits is how many hex digits of a SHA-256 tell apart names that are otherwise equal: 48
// bits, so that not even 100,000 such names of a batch meet.
const hashDigits = 12

// hashedPattern matches a name to which a hash was added.
var hashedPattern = regexp.MustCompile(`(^|-)x[0-9a-f]{12}$`)

// devicePattern matches the names that Windows reserves, with any extension.
var devicePattern = regexp.MustCompile(`(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)`)

// Device reports whether Windows reserves a file name for a device, as in CON or nul.txt.
func Device(name string) bool { return devicePattern.MatchString(name) }

// Valid reports whether a job may have this ID: 1 to 200 bytes of letters, their marks and
// digits of any script, "_" and "-", with single dots between them. The part before the first
// dot must not be a device name of Windows.
func Valid(id string) bool {
	if len(id) > MaxBytes || Device(id) {
		return false
	}
	for part := range strings.SplitSeq(id, ".") {
		first, _ := utf8.DecodeRuneInString(part)
		if part == "" || unicode.IsMark(first) || strings.ContainsFunc(part, func(r rune) bool { return !Allowed(r) }) {
			return false
		}
	}
	return true
}

// Allowed reports whether a character may be in an ID, beside dots. Unicode's letters and marks
// that are not shown, such as fillers and variation selectors, may not.
func Allowed(r rune) bool {
	if r < utf8.RuneSelf {
		return r == '_' || r == '-' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
	}
	return unicode.In(r, unicode.L, unicode.N, unicode.Mn, unicode.Mc) &&
		!unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Of is the ID of a line of a batch: the batch's name, a dot and the line's own id. A name
// that cannot be a part of an ID as it is gets a hash, see [part]. Different pairs have
// different IDs, except with a probability of 2^-48 for two names that are otherwise equal.
func Of(batch, line string) string {
	// A line's part has no dot, so that the last dot of the ID separates the two.
	return part(batch, maxBatchBytes, true) + "." + part(line, maxLineBytes, false)
}

// part returns a name as it is if it can be a part of an ID. Else other characters become
// "_", and "-x" and a hash of the exact name are added; so they are to a name that ends like
// that itself.
func part(name string, maxBytes int, dots bool) string {
	if len(name) <= maxBytes && Valid(name) && (dots || !strings.Contains(name, ".")) && !hashedPattern.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte("danqing/name/1\n" + name))
	hash := "x" + hex.EncodeToString(sum[:])[:hashDigits]
	if readable := words(name, "_", maxBytes-len(hash)-1); readable != "" {
		return readable + "-" + hash
	}
	return hash
}

// maxTextBytes is how many bytes of a text are in the name of a line without an own id: some
// 16 Chinese characters, or 8 English words.
const maxTextBytes = 48

// OfText is the name of a line without an own id: the beginning of its prompt and the
// beginning of its digest, in hex.
func OfText(prompt, digest string) string {
	digest = digest[:min(len(digest), hashDigits)]
	if readable := words(prompt, "-", maxTextBytes); readable != "" {
		return readable + "-" + digest
	}
	return digest
}

// words returns a text of at most maxBytes in which a separator takes the place of all other
// characters. It neither begins nor ends with one.
func words(text, separator string, maxBytes int) string {
	var b strings.Builder
	gap := false
	for _, r := range text {
		if !Allowed(r) || r == '_' || string(r) == separator || b.Len() == 0 && unicode.IsMark(r) {
			gap = b.Len() > 0
			continue
		}
		size := utf8.RuneLen(r)
		if gap {
			size += len(separator)
		}
		if b.Len()+size > maxBytes {
			break
		}
		if gap {
			b.WriteString(separator)
		}
		gap = false
		b.WriteRune(r)
	}
	return b.String()
}

// Split returns the folder and the name of a job's images: the ID before and after its last
// dot. The folder is "" if the ID has none.
func Split(id string) (folder, name string) {
	at := strings.LastIndexByte(id, '.')
	return id[:max(at, 0)], id[at+1:]
}
