package jobs

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// showRunes is the maximum length of a value in an error.
const showRunes = 60

// shorten truncates a long value for an error, and appends its length.
func shorten(s string) string {
	runes := utf8.RuneCountInString(s)
	if runes <= showRunes {
		return s
	}
	end := 0
	for range showRunes {
		_, size := utf8.DecodeRuneInString(s[end:])
		end += size
	}
	return fmt.Sprintf("%s… (%d characters)", s[:end], runes)
}

// show quotes a value for an error, shortened and without secrets.
func show(s string) string { return strconv.Quote(shorten(redact(s))) }

// showJSON shows a field's JSON, shortened and without secrets.
func showJSON(field string, value []byte) string {
	var text string
	isText := json.Unmarshal(value, &text) == nil && value[0] == '"'
	if !isText {
		text = strings.ReplaceAll(string(value), `\/`, "/")
	}
	switch name := field[strings.LastIndexByte(field, '.')+1:]; {
	case name == "ref_img" || name == "ref_image" || name == "sketch_image_url":
		return showURL(text)
	case isText:
		return show(text)
	}
	return shorten(redact(text))
}

// showURL shows a reference without its query, even if it is not a valid URL.
func showURL(ref string) string {
	ref = redact(ref)
	if i := strings.IndexAny(ref, "?#"); i >= 0 {
		ref = ref[:i] + "?…"
	}
	return show(ref)
}

// Secrets of a URL in a text: a password before the host, a signature after the path. A
// backslash may be a JSON escape of "?".
var (
	userPattern  = regexp.MustCompile(`://[^/\s"?#]*@`)
	queryPattern = regexp.MustCompile(`(://[^\s"?#\\]*)[?#\\][^\s"]*`)
)

// redact removes the secrets of the URLs in a text.
func redact(s string) string {
	return queryPattern.ReplaceAllString(userPattern.ReplaceAllString(s, "://…@"), "$1?…")
}
