package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// given is a value with its path in the body.
type given struct {
	path  string
	value json.RawMessage
}

// decoder reads named values and collects their problems.
type decoder struct {
	given    map[string]given
	problems []FieldError
	// honors reports whether the service reads a name in input and parameters. The others
	// are ignored then, as by the service; if it is nil, they are problems.
	honors  func(name string) bool
	ignored []string
}

// maxProblems limits the problems of one request: a body of a megabyte can have many.
const maxProblems = 20

func (d *decoder) problem(field string, value []byte, allowed, remedy string) {
	if len(d.problems) >= maxProblems {
		return
	}
	field = shorten(field)
	d.problems = append(d.problems, FieldError{
		Field: field, Value: showJSON(field, value), Allowed: allowed, Remedy: remedy,
	})
}

// collect adds the members of one object, whose paths begin with prefix.
func (d *decoder) collect(prefix string, object []byte, known []string) {
	list, err := members(object)
	if err != nil {
		d.problem(strings.TrimSuffix(prefix, "."), object, "JSON", err.Error())
		return
	}
	seen := map[string]bool{}
	for _, m := range list {
		path := prefix + m.name
		if seen[m.name] {
			d.problem(path, m.value, "each name once", "this is the second")
			continue
		}
		seen[m.name] = true
		switch {
		case m.name == resultKey && prefix == "":
		case string(m.value) == "null":
		case d.honors != nil && !d.honors(m.name) && (prefix != "" || slices.Contains(shapingNames(), m.name)):
			d.ignore(m.name)
		case !slices.Contains(known, m.name):
			d.unknown(prefix, m, known)
		case m.name == "input" || m.name == "parameters":
			if m.value[0] != '{' {
				d.problem(path, m.value, "an object, as in DashScope's own body", "")
				continue
			}
			d.collect(path+".", m.value, serviceNames())
		default:
			d.add(path, m)
		}
	}
}

// ignore notes that a name is ignored.
func (d *decoder) ignore(name string) {
	if name = shorten(name); len(d.ignored) < maxProblems && !slices.Contains(d.ignored, name) {
		d.ignored = append(d.ignored, name)
	}
}

// foreignNames are parameters of other image services, and Chinese names of fields, with what
// to do. A line of a batch that has one expects an effect.
var foreignNames = sync.OnceValue(func() map[string]string {
	names := map[string]string{}
	for remedy, list := range map[string]string{
		`use "size", as in "1024*1024"`: "width height aspectratio imagesize resolution ratio 宽 高 宽度 高度 图片宽度 图片高度 宽高 宽高比 长宽比 画幅 尺寸 分辨率",
		`use "n"`:                       "numimages numberofimages numimagesperprompt nimages batchsize 张数",
		"DashScope has no such parameter: remove it": "quality steps numinferencesteps inferencesteps samplingsteps scale cfg cfgscale guidance guidancescale sampler scheduler " +
			"clipskip denoisingstrength responseformat outputformat lora loras 画质 步数 采样步数 迭代步数 采样器 采样方法 引导系数 提示词引导系数 提示词相关性 重绘幅度",
		`use "prompt"`:          "提示词 正向提示词 正面提示词",
		`use "negative_prompt"`: "反向提示词 负面提示词 负向提示词",
		`use "style"`:           "风格",
		`use "seed"`:            "种子 随机种子",
		`use "ref_img"`:         "参考图",
		`use "model"`:           "模型",
	} {
		for name := range strings.FieldsSeq(list) {
			names[name] = remedy
		}
	}
	return names
})

// foreignRemedy returns what to do about a name of other image services, or "".
func foreignRemedy(name string) string { return foreignNames()[squashName(name)] }

// ColumnRemedy returns what to do about a column of the producer whose name a batch file cannot
// have at the top level, because it is a field, a likely misspelling of one, or a parameter of
// other image services. It is "" for any other name.
func ColumnRemedy(name string) string {
	known := topNames()
	if slices.Contains(known, name) {
		return "it is the name of a field"
	}
	return columnRemedy(name, known)
}

func columnRemedy(name string, known []string) string {
	if remedy := foreignRemedy(name); remedy != "" {
		return remedy
	}
	switch similar := suggestion(name, known); similar {
	case "", "batch", "line_id", "producer", stageName: // set by Danqing only, or a likely column: not suggested
		return ""
	default:
		return fmt.Sprintf("did you mean %q?", similar)
	}
}

// unknown handles an unknown name: at the top level it is a column of the producer, unless it
// is probably a misspelling or a parameter of another service. In DashScope's objects it is an
// error.
func (d *decoder) unknown(prefix string, m member, known []string) {
	if prefix == "" && d.honors == nil {
		if remedy := columnRemedy(m.name, known); remedy != "" {
			d.problem(m.name, m.value, "", remedy+" (a column of your own needs another name)")
		}
		return
	}
	switch similar := suggestion(m.name, known); {
	case similar == "batch", similar == "line_id", similar == "producer", similar == stageName:
	case similar != "" && prefix == "":
		d.problem(m.name, m.value, "", fmt.Sprintf("did you mean %q? (a column of your own needs another name)", similar))
	case similar != "":
		d.problem(prefix+m.name, m.value, "", fmt.Sprintf("did you mean %q?", similar))
	case prefix != "":
		d.problem(prefix+m.name, m.value, "here only "+strings.Join(known, ", "), foreignRemedy(m.name))
	case d.honors != nil:
		d.ignore(m.name)
	}
}

// add adds a known name. The same value in two places is fine: the official Java SDK writes
// negative_prompt into input and parameters.
func (d *decoder) add(path string, m member) {
	before, twice := d.given[m.name]
	if !twice {
		d.given[m.name] = given{path, m.value}
		return
	}
	if !bytes.Equal(before.value, m.value) {
		d.problem(path, m.value, "one value", fmt.Sprintf("%s says %s", before.path, showJSON(m.name, before.value)))
	}
}

func (d *decoder) text(name string) string {
	g, ok := d.given[name]
	if !ok {
		return ""
	}
	var s string
	if json.Unmarshal(g.value, &s) != nil {
		d.problem(g.path, g.value, "text in quotes", "")
	}
	return s
}

// id reads a text, or a whole number: spreadsheets convert one to the other.
func (d *decoder) id() string {
	g, ok := d.given["id"]
	if _, err := strconv.ParseInt(string(g.value), 10, 64); ok && err == nil {
		return string(g.value)
	}
	return d.text("id")
}

func (d *decoder) flag(name string) *bool {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	var b bool
	if json.Unmarshal(g.value, &b) != nil {
		d.problem(g.path, g.value, "true or false without quotes", "")
		return nil
	}
	return &b
}

// flagOrFalse reads a flag; absent means false.
func (d *decoder) flagOrFalse(name string) bool {
	b := d.flag(name)
	return b != nil && *b
}

func (d *decoder) timestamp(name string) time.Time {
	g, ok := d.given[name]
	if !ok {
		return time.Time{}
	}
	var at time.Time
	if json.Unmarshal(g.value, &at) != nil {
		d.problem(g.path, g.value, "a time with its zone in quotes, as in 2026-11-28T18:30:00+08:00", "")
		return time.Time{}
	}
	return at.UTC()
}

func (d *decoder) followUp() *FollowUp {
	g, ok := d.given["follow_up"]
	if !ok {
		return nil
	}
	var f FollowUp
	dec := json.NewDecoder(bytes.NewReader(g.value))
	if dec.DisallowUnknownFields(); dec.Decode(&f) != nil {
		d.problem(g.path, g.value, `a type and a queue of your own asynq server, as in {"type": "image:ready", "queue": "shop"}`, "")
		return nil
	}
	return &f
}

func (d *decoder) number(name string) *float64 {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	var f float64
	if json.Unmarshal(g.value, &f) != nil {
		d.problem(g.path, g.value, "a number without quotes", "")
		return nil
	}
	return &f
}

// integer reads an integer in any notation: 2, 2.0 and 2e0 are the same.
func (d *decoder) integer(name string) *int64 {
	g, ok := d.given[name]
	if !ok {
		return nil
	}
	if v, err := strconv.ParseInt(string(g.value), 10, 64); err == nil {
		return &v
	}
	const exact = 1 << 53 // beyond, float64 has gaps
	var f float64
	if json.Unmarshal(g.value, &f) != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		d.problem(g.path, g.value, "a whole number without quotes", "")
		return nil
	}
	v := int64(f)
	return &v
}

// count reads the number of images. 0 means absent in a [Request], so an explicit 0 is refused
// here.
func (d *decoder) count(name string) int {
	v := d.integer(name)
	if v == nil {
		return 0
	}
	if *v < 1 || *v > math.MaxInt32 {
		d.problem(d.given[name].path, d.given[name].value, fmt.Sprintf("1 to %d", mostImages()), "leave it out for the default")
		return 0
	}
	return int(*v)
}

// mostImages is the largest n of all models.
func mostImages() int {
	most := 0
	for _, m := range Models() {
		most = max(most, m.ImagesAtMost())
	}
	return most
}

// reference reads the three names of the reference image. DashScope lets
// ref_img win (wanx-v1 API reference, sample comment).
func (d *decoder) reference() string {
	if ref := d.text("ref_img"); ref != "" {
		return ref
	}
	image, sketch := d.text("ref_image"), d.text("sketch_image_url")
	if image != "" && sketch != "" && image != sketch {
		g := d.given["sketch_image_url"]
		d.problem(g.path, g.value, "one reference image",
			fmt.Sprintf("ref_image says %s; name the one that is meant ref_img", showJSON("ref_image", d.given["ref_image"].value)))
	}
	if image != "" {
		return image
	}
	return sketch
}

// images reads the reference images of a model that edits, by the names that differ between its
// protocols. They name the same images, so that only one may be given.
func (d *decoder) images() []string {
	first := ""
	var images []string
	for _, name := range []string{"ref_images", "images", "base_image_url"} {
		g, ok := d.given[name]
		if !ok {
			continue
		}
		if first != "" {
			d.problem(g.path, g.value, "one of "+first+" and "+name, "both are the reference images")
			continue
		}
		first = name
		var one string
		switch {
		case json.Unmarshal(g.value, &one) == nil: // a table has no lists
			images = []string{one}
		case name == "base_image_url":
			d.problem(g.path, g.value, "text in quotes", "")
		case json.Unmarshal(g.value, &images) != nil:
			d.problem(g.path, g.value, `a list of texts, as in ["a.png", "b.png"]`, "")
			images = nil
		}
	}
	return images
}

func (d *decoder) labels() map[string]string {
	g, ok := d.given["labels"]
	if !ok {
		return nil
	}
	const allowed = `an object of texts, as in {"sku": "A-17"}`
	if g.value[0] != '{' {
		d.problem(g.path, g.value, allowed, "")
		return nil
	}
	list, err := members(g.value)
	if err != nil {
		d.problem(g.path, g.value, allowed, err.Error())
		return nil
	}
	labels := make(map[string]string, len(list))
	for _, m := range list {
		var s string
		if _, twice := labels[m.name]; twice {
			d.problem("labels."+m.name, m.value, "each name once", "this is the second")
		} else if m.value[0] != '"' || json.Unmarshal(m.value, &s) != nil {
			d.problem("labels."+m.name, m.value, "text in quotes", "")
		}
		labels[m.name] = s
	}
	return labels
}
