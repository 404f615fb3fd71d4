package input

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/text/unicode/norm"

	"github.com/danqing-queue/danqing/jobs/compactjson"
)

// scalarFields are the fields that a cell or a flag can have, with how their text becomes
// JSON.
func scalarFields() map[string]func(string) (json.RawMessage, string) {
	return map[string]func(string) (json.RawMessage, string){
		"id": plain, "model": narrow, "style": narrow, "size": size, "ref_mode": narrow, "priority": narrow,
		"n": integer, "seed": integer, "ref_strength": decimal,
		"prompt_extend": boolean, "watermark": boolean, "stage": boolean,
		"prompt": plain, "negative_prompt": plain, "ref_img": reference, "ref_image": reference, "sketch_image_url": reference,
		"ref_images": references, "mask_image_url": reference, "function": narrow,
		"prompt_extend_mode": narrow, "enable_thinking": boolean, "thinking_mode": boolean, "enable_sequential": boolean, "is_sketch": boolean,
		"strength": decimal, "upscale_factor": decimal,
		"top_scale": decimal, "bottom_scale": decimal, "left_scale": decimal, "right_scale": decimal,
		"redo_of": plain, "not_before": plain, "deadline": plain, "callback": plain,
	}
}

// convert turns the text of a cell into the JSON of a field. allowed says what is, if the text
// is none of it.
func convert(field, text string) (value json.RawMessage, allowed string) {
	if isFormulaError(text) {
		return nil, "a value: this is the error of a formula"
	}
	if strings.HasPrefix(text, "=DISPIMG(") {
		return nil, "text: this is a picture in the cell; save it beside the table, and write the name of its file"
	}
	return scalarFields()[field](text)
}

func plain(s string) (json.RawMessage, string) { return quote(s), "" }

func reference(s string) (json.RawMessage, string) {
	if strings.Contains(s, "\n") {
		return nil, "one image; several are for a column ref_images"
	}
	return quote(s), ""
}

// references reads names of images, one a line or with | between them, or as a JSON list. A URL
// may have commas and semicolons.
func references(s string) (json.RawMessage, string) {
	var names []string
	if json.Unmarshal([]byte(s), &names) != nil {
		for name := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '\n' || r == '|' || r == '｜' }) {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, name)
			}
		}
	}
	text, err := compactjson.Marshal(names)
	if err != nil || len(names) == 0 {
		return nil, "names of images, one a line or with | between them"
	}
	return text, ""
}

// narrow reads text whose full-width letters and digits mean the same.
func narrow(s string) (json.RawMessage, string) { return quote(fold(s)), "" }

// fold replaces full-width letters, digits and signs.
func fold(s string) string { return strings.TrimSpace(norm.NFKC.String(s)) }

// sizePattern matches sizes with units, as in 1024px × 768px.
var sizePattern = regexp.MustCompile(`(?i)^(\d+)\s*(?:px|像素)?\s*([*x×✕])\s*(\d+)\s*(?:px|像素)?$`)

func size(s string) (json.RawMessage, string) {
	s = fold(s)
	if m := sizePattern.FindStringSubmatch(s); m != nil {
		s = m[1] + "*" + m[3]
	}
	return quote(s), ""
}

// groupedPattern matches a number with commas between thousands, and integerPattern one with
// zeros after its point, and the word for pieces.
var (
	groupedPattern = regexp.MustCompile(`^\d{1,3}(,\d{3})+(\.0+)?$`)
	integerPattern = regexp.MustCompile(`^(-?\d{1,19})(?:\.0*)?\s*(?:张|幅|个)?$`)
)

func integer(s string) (json.RawMessage, string) {
	s = fold(s)
	if groupedPattern.MatchString(s) {
		s = strings.ReplaceAll(s, ",", "")
	}
	m := integerPattern.FindStringSubmatch(s)
	if m == nil {
		return nil, "a whole number"
	}
	v, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return nil, "a whole number"
	}
	return json.RawMessage(strconv.FormatInt(v, 10)), ""
}

func decimal(s string) (json.RawMessage, string) {
	s, percent := strings.CutSuffix(fold(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil {
		return nil, "a number"
	}
	if percent {
		v /= 100
	}
	text, err := json.Marshal(v)
	if err != nil { // not a number, or infinite
		return nil, "a number"
	}
	return text, ""
}

func boolean(s string) (json.RawMessage, string) {
	switch strings.ToLower(fold(s)) {
	case "true", "yes", "y", "1", "on", "是", "要", "有", "开", "√":
		return json.RawMessage("true"), ""
	case "false", "no", "n", "0", "off", "否", "不要", "无", "关", "×":
		return json.RawMessage("false"), ""
	}
	return nil, "true or false, yes or no, 是 or 否"
}

// isFormulaError reports whether a text is what tables show for a formula that fails.
func isFormulaError(s string) bool {
	switch s {
	case "#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!":
		return true
	}
	return false
}

// showText shows a value for people, at most 60 characters of it.
func showText(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		s = string(runes[:60]) + "…"
	}
	return fmt.Sprintf("%q", s)
}
