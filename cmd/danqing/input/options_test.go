package input

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

const animals = "编号,动物,画家,主色 调,备注\nA-1,猫,梵高,蓝,x\nA-2,狗,莫奈,,y\n"

// A template makes the prompts from the columns, which are kept.
func TestPromptTemplate(t *testing.T) {
	t.Parallel()
	flags := Flags{Prompt: "一只{{.动物}}，{{.画家}}的风格{{if index . \"主色 调\"}}，{{index . \"主色 调\"}}色{{end}}"}
	got := readFile(t, "a.csv", animals, flags)
	assert.Equal(t, "2 {\"id\":\"A-1\",\"动物\":\"猫\",\"画家\":\"梵高\",\"主色 调\":\"蓝\",\"备注\":\"x\",\"prompt\":\"一只猫，梵高的风格，蓝色\"}\n"+
		"3 {\"id\":\"A-2\",\"动物\":\"狗\",\"画家\":\"莫奈\",\"备注\":\"y\",\"prompt\":\"一只狗，莫奈的风格\"}\n", got.raw(t))
	assert.Equal(t, []Column{{"编号", "id"}, {"动物", "动物"}, {"画家", "画家"}, {"主色 调", "主色 调"}, {"备注", "备注"}, {"prompt", "prompt"}}, got.Columns)

	json := readFile(t, "a.jsonl", `{"animal":"cat","n":2}`+"\n", Flags{Prompt: "{{.n}} {{.animal}}s"})
	assert.Equal(t, "1 {\"animal\":\"cat\",\"n\":2,\"prompt\":\"2 cats\"}\n", json.raw(t))
	own := readFile(t, "a.csv", "提示词,尺寸\n猫,720*1280\n", Flags{Prompt: "{{.提示词}}、{{.prompt}}、{{.size}}"})
	assert.Equal(t, "2 {\"提示词 (own)\":\"猫\",\"size\":\"720*1280\",\"prompt\":\"猫、猫、720*1280\"}\n", own.raw(t))
	body := readFile(t, "a.jsonl", `{"input":{"prompt":"猫","negative_prompt":"x"}}`, Flags{Prompt: "{{.prompt}}，水彩"})
	assert.Equal(t, "1 {\"input\":{\"negative_prompt\":\"x\"},\"prompt\":\"猫，水彩\"}\n", body.raw(t))
	text := readFile(t, "a.txt", "猫\n狗\n", Flags{Prompt: "{{.prompt}}，水彩"})
	assert.Equal(t, "1 {\"prompt\":\"猫，水彩\"}\n2 {\"prompt\":\"狗，水彩\"}\n", text.raw(t))
	same := readFile(t, "a.csv", "参考图,编号\na.png,1\n", Flags{Prompt: "水彩"})
	assert.Equal(t, "2 {\"ref_img\":\"a.png\",\"id\":\"1\",\"prompt\":\"水彩\"}\n", same.raw(t))

	for template, want := range map[string]string{
		"{{.动物":                              "--prompt: ",
		"{{.画师}}":                            "--prompt: there is no column 画师; the columns are: 编号, 动物, 画家, 主色 调, 备注",
		"{{index . \"主色 调\"}}":               "row 3: 主色 调: empty; --prompt needs it; fill it in, or write {{if .主色 调}}",
		"{{range .动物}}x{{end}}":              "is not available",
		"{{range 1000000000}}{{end}}{{.动物}}": "is not available",
		"{{printf \"%1000000000s\" .动物}}":    "the function printf is not available",
		"{{define \"a\"}}{{end}}{{.动物}}":     "it has no text of its own",
		"{{.}}":                              "{{.}} is no column",
		"{{$a := .动物}}{{$a}}":                "variables are not available",
		"{{.动物.x}}":                          "is no column",
		"{{template \"prompt\"}}":            "is not available",
		"{{index . 1}}":                      "is no column",
	} {
		assert.Contains(t, readFile(t, "a.csv", animals, Flags{Prompt: template}).refusal(t), want, template)
	}
	assert.Contains(t, readFile(t, "a.jsonl", `{"animal":"cat"}`, Flags{Prompt: "{{.animel}}"}).refusal(t), "line 1: animel: missing; --prompt needs it")
	assert.Contains(t, readFile(t, "a.txt", "猫\n", Flags{Prompt: "水彩"}).refusal(t), "--prompt would replace it")
}

// Variations multiply the lines, and an id says which one.
func TestVary(t *testing.T) {
	t.Parallel()
	flags := Flags{Vary: []string{"style=水彩,素描", "尺寸=1024*1024,720*1280"}}
	got := readFile(t, "a.csv", "编号,prompt\nA-017,猫\n", flags)
	assert.Equal(t, `2 {"id":"A-017-1024x1024-水彩","prompt":"猫","style":"水彩","size":"1024*1024"}
2 {"id":"A-017-720x1280-水彩","prompt":"猫","style":"水彩","size":"720*1280"}
2 {"id":"A-017-1024x1024-素描","prompt":"猫","style":"素描","size":"1024*1024"}
2 {"id":"A-017-720x1280-素描","prompt":"猫","style":"素描","size":"720*1280"}
`, got.raw(t))
	assert.Equal(t, []Column{{"编号", "id"}, {"prompt", "prompt"}, {"style", "style"}, {"size", "size"}}, got.Columns)

	// The order of the flags changes no id.
	swapped := readFile(t, "a.csv", "编号,prompt\nA-017,猫\n", Flags{Vary: []string{flags.Vary[1], flags.Vary[0]}})
	for _, l := range swapped.lines {
		assert.Contains(t, got.raw(t), `"id":"`+l.Request.LineID+`"`)
	}

	// Without an id the content is the name, whatever the order of the values.
	ids := func(flags Flags) map[string]string {
		list := map[string]string{}
		for _, l := range readFile(t, "a.txt", "猫\n狗\n", flags).lines {
			list[l.ID] = string(l.Raw)
		}
		return list
	}
	first, second := ids(Flags{Vary: []string{"style=水彩,素描"}}), ids(Flags{Vary: []string{"style=素描", "style=水彩"}})
	assert.Len(t, first, 4)
	assert.Equal(t, first, second)

	words := readFile(t, "a.csv", "id,animal\n7,cat\n", Flags{Prompt: "a {{.animal}} in {{.scene}}", Vary: []string{`scene="a lake, at night",a street`, "n=1,2"}})
	assert.Equal(t, `2 {"id":"7-1-a-lake-at-night","animal":"cat","scene":"a lake, at night","n":1,"prompt":"a cat in a lake, at night"}
2 {"id":"7-2-a-lake-at-night","animal":"cat","scene":"a lake, at night","n":2,"prompt":"a cat in a lake, at night"}
2 {"id":"7-1-a-street","animal":"cat","scene":"a street","n":1,"prompt":"a cat in a street"}
2 {"id":"7-2-a-street","animal":"cat","scene":"a street","n":2,"prompt":"a cat in a street"}
`, words.raw(t))
	long := strings.Repeat("很", 40)
	assert.Equal(t, []string{strings.Repeat("很", 17) + "-052512", "x-y"}, shortNames([]string{long, " x /y "}))

	for _, c := range []struct {
		vary, want string
	}{
		{"style", "--vary style: it is not NAME=VALUE,VALUE"},
		{"style=", "cannot be read"},
		{"style=水彩,", "a value is empty"},
		{"style=水彩,水彩", "the value 水彩 is there twice, and would be bought twice"},
		{"n=1,two", "--vary n: \"two\"; allowed: a whole number"},
		{"stile=a,b", "stile is neither a field nor a word of --prompt"},
		{"id=a,b", "the field id cannot vary"},
		{"size=1024*1024,720*1280", "row 2: size: \"768*1152\"; allowed: none, because --vary gives it; remove it here, or leave out --vary size"},
	} {
		assert.Contains(t, readFile(t, "a.csv", "prompt,size\n猫,768*1152\n狗,\n", Flags{Vary: []string{c.vary}}).refusal(t), c.want, c.vary)
	}
	clash := readFile(t, "a.csv", "id,prompt\nA,猫\nA-水彩,猫\n", Flags{Vary: []string{"style=水彩,水彩-水彩"}})
	assert.Contains(t, clash.refusal(t), "each id once")
}

// Flags are for the lines that do not say otherwise.
func TestDefaults(t *testing.T) {
	t.Parallel()
	flags := Flags{Defaults: map[string]string{"style": "水彩", "n": "2", "ref_img": "a.png"}}
	got := readFile(t, "a.csv", "prompt,风格,n\n猫,,\n狗,素描,3\n", flags)
	assert.Equal(t, `2 {"prompt":"猫","n":2,"ref_img":"a.png","style":"水彩"}
3 {"prompt":"狗","style":"素描","n":3,"ref_img":"a.png"}
`, got.raw(t))
	assert.Equal(t, []Column{{"prompt", "prompt"}, {"风格", "style"}, {"n", "n"}, {"ref_img", "ref_img"}}, got.Columns)
	json := readFile(t, "a.jsonl", `{"prompt":"猫","n":null,"sku":{"a":1}}
{"input":{"prompt":"狗","sketch_image_url":"b.png"},"parameters":{"n":4,"style":"<sketch>"}}
{"prompt":`, flags)
	require.ErrorContains(t, json.err, "line 3: ")
	json = readFile(t, "a.jsonl", `{"prompt":"猫","n":null,"sku":{"a":1}}
{"input":{"prompt":"狗","sketch_image_url":"b.png"},"parameters":{"n":4,"style":"<sketch>"}}`, flags)
	assert.Equal(t, `1 {"prompt":"猫","n":2,"sku":{"a":1},"ref_img":"a.png","style":"水彩"}
2 {"input":{"prompt":"狗","sketch_image_url":"b.png"},"parameters":{"n":4,"style":"<sketch>"}}
`, json.raw(t))
	assert.Contains(t, readFile(t, "a.txt", "猫", Flags{Defaults: map[string]string{"style": "x"}, Vary: []string{"style=a"}}).refusal(t), "--style and --vary both set the style")
	assert.Contains(t, readFile(t, "a.txt", "猫\n狗", Flags{Defaults: map[string]string{"size": "1*1"}}).refusal(t), "lines 1 and 2: size: \"1*1\"")
}

// A table has the fields of models that edit. Several images are in one cell, one a line or with |
// between them, and as a list where a results table is read again.
func TestEditColumns(t *testing.T) {
	t.Parallel()
	const model = "wan2.7-image"
	got := readFile(t, "a.csv", "提示词,多张参考图,thinking_mode\n猫,\"a.png\nb.png\",是\n狗,\"https://example.com/a,b;c.png | d.png\",否\n鸟,\"[\"\"a.png\"\",\"\"b.png\"\"]\",\n", Flags{Defaults: map[string]string{"model": model}})
	assert.Equal(t, `2 {"prompt":"猫","ref_images":["a.png","b.png"],"thinking_mode":true,"model":"wan2.7-image"}
3 {"prompt":"狗","ref_images":["https://example.com/a,b;c.png","d.png"],"thinking_mode":false,"model":"wan2.7-image"}
4 {"prompt":"鸟","ref_images":["a.png","b.png"],"model":"wan2.7-image"}
`, got.raw(t))
	assert.Contains(t, readFile(t, "a.csv", "prompt,参考图\n猫,\"a.png\nb.png\"\n", Flags{}).refusal(t), "several are for a column ref_images")
	assert.Contains(t, readFile(t, "a.csv", "prompt,ref_images\n猫,|\n", Flags{}).refusal(t), "one a line or with | between them")

	got = readFile(t, "a.csv", "prompt,编辑方式,蒙版,参考图,strength\n改,description_edit_with_mask,m.png,a.png,\n画,description_edit,,a.png,70%\n", Flags{Defaults: map[string]string{"model": "wanx2.1-imageedit"}})
	assert.Equal(t, `2 {"prompt":"改","function":"description_edit_with_mask","mask_image_url":"m.png","ref_img":"a.png","model":"wanx2.1-imageedit"}
3 {"prompt":"画","function":"description_edit","ref_img":"a.png","strength":0.7,"model":"wanx2.1-imageedit"}
`, got.raw(t))

	// Images of flags are for the lines that name none, in any spelling.
	flags := Flags{Defaults: map[string]string{"model": model, "ref_images": "a.png\nb.png"}}
	got = readFile(t, "a.jsonl", `{"prompt":"猫"}
{"prompt":"狗","ref_img":"c.png"}
{"prompt":"鸟","input":{"images":["d.png"]}}`, flags)
	assert.Equal(t, `1 {"prompt":"猫","model":"wan2.7-image","ref_images":["a.png","b.png"]}
2 {"prompt":"狗","ref_img":"c.png","model":"wan2.7-image"}
3 {"prompt":"鸟","input":{"images":["d.png"]},"model":"wan2.7-image"}
`, got.raw(t))
	o, err := Flags{Defaults: map[string]string{"ref_images": "a.png|b.png", "mask_image_url": "m.png"}, Vary: []string{"ref_img=c.png,d.png"}}.Parse()
	require.NoError(t, err)
	moved := o.WithReferences(func(name string) string { return "../" + name })
	assert.Equal(t, []Default{{"mask_image_url", json.RawMessage(`"../m.png"`)}, {"ref_images", json.RawMessage(`["../a.png","../b.png"]`)}}, moved.Defaults)
	assert.Equal(t, []Variation{{"ref_img", []string{"../c.png", "../d.png"}}}, moved.Vary)
}

// Each field of a request can be a column, but for those that are no single value.
func TestEveryFieldCanBeAColumn(t *testing.T) {
	t.Parallel()
	fields := scalarFields()
	for field := range reflect.TypeFor[jobs.Request]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !slices.Contains([]string{"labels", "follow_up", "producer", "batch", "line_id"}, name) {
			assert.Contains(t, fields, name)
			assert.Equal(t, name, fieldNamed(name, aliases()).field)
		}
	}
}

func TestMap(t *testing.T) {
	t.Parallel()
	const goods = "名称,卖点,宽,数量\n茶杯,白瓷茶杯,30,50\n"
	got := readFile(t, "a.csv", goods, Flags{Map: []string{"卖点=提示词", "宽=-", "数量=-", "名称=id"}})
	assert.Equal(t, "2 {\"id\":\"茶杯\",\"prompt\":\"白瓷茶杯\",\"宽 (own)\":\"30\",\"数量\":\"50\"}\n", got.raw(t))
	assert.Equal(t, []Column{{"名称", "id"}, {"卖点", "prompt"}, {"宽", "宽 (own)"}, {"数量", "数量"}}, got.Columns)
	assert.Equal(t, map[string]string{"id": "名称", "prompt": "卖点"}, got.Headers)

	// What is kept under its header does not ask for anything when the results are read again.
	again := readFile(t, "a.results.jsonl", string(got.lines[0].Raw), Flags{})
	require.NoError(t, again.err)
	assert.Equal(t, got.lines[0].Digest, again.lines[0].Digest)
	assert.Equal(t, got.lines[0].ID, again.lines[0].ID)

	json := readFile(t, "a.jsonl", `{"text":"猫","width":7}`, Flags{Map: []string{"text=prompt", "width=-"}})
	assert.Equal(t, "1 {\"prompt\":\"猫\",\"width (own)\":7}\n", json.raw(t))

	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"卖点"}, "--map 卖点: it is not COLUMN=FIELD"},
		{[]string{"卖点=promt"}, "there is no field \"promt\" → the fields are: bottom_scale, callback, "},
		{[]string{"卖点=prompt", "名称=prompt"}, "--map gives two columns the field prompt: 卖点 and 名称"},
		{[]string{"卖点=prompt", "卖点=style"}, "--map names the column 卖点 twice"},
		{[]string{"卖点=prompt", "宽=-", "高=-"}, "--map 高=-: row 1 has no column 高 → the columns are: 名称, 卖点, 宽, 数量"},
	} {
		assert.Contains(t, readFile(t, "a.csv", goods, Flags{Map: c.flags}).refusal(t), c.want)
	}
	assert.Contains(t, readFile(t, "a.jsonl", `{"prompt":"猫"}`, Flags{Map: []string{"x=style"}}).refusal(t), "no object has the name x")
	assert.Contains(t, readFile(t, "a.jsonl", `{"prompt":"猫"}`, Flags{Format: "yaml"}).refusal(t), "--format \"yaml\" is not known: json, csv, text are")
	assert.Contains(t, readFile(t, "a.jsonl", `{"prompt":"猫"}`, Flags{Sheet: "x"}).refusal(t), "--sheet is for .xlsx files")
}

// Lines of OpenAI's Batch API are read as the gateway reads their bodies.
func TestOpenAILines(t *testing.T) {
	t.Parallel()
	got := readFile(t, "a.jsonl", `{"custom_id":"A-1","method":"POST","url":"/v1/images/generations","body":{"model":"wanx-v1","prompt":"猫","size":"1024x1024","n":2,"quality":"hd","response_format":"b64_json","style":"vivid"}}
{"custom_id":"A-2","method":"POST","url":"/v1/images/generations","body":{"prompt":"狗","size":"auto","user":"u"},"sku":7}
`, Flags{Defaults: map[string]string{"size": "720*1280"}})
	assert.Equal(t, `1 {"id":"A-1","model":"wanx-v1","prompt":"猫","size":"1024x1024","n":2}
2 {"id":"A-2","sku":7,"prompt":"狗","size":"720*1280"}
`, got.raw(t))
	assert.Equal(t, []string{"quality has no effect, and is left out of 1 lines", "style has no effect, and is left out of 1 lines", "user has no effect, and is left out of 1 lines"}, got.Warnings())
	for line, want := range map[string]string{
		`{"custom_id":"A","method":"POST","url":"/v1/chat/completions","body":{"messages":[]}}`:                        "line 1: url: \"/v1/chat/completions\"; allowed: /v1/images/generations",
		`{"custom_id":"A","method":"GET","url":"/v1/images/generations","body":{"prompt":"a"}}`:                        "line 1: method: \"GET\"; allowed: POST",
		`{"custom_id":"A","method":"POST","url":"/v1/images/generations","body":{"prompt":"a","x":1}}`:                 "line 1: x: unknown; allowed: ",
		`{"custom_id":"A","method":"POST","url":"/v1/images/generations","body":7}`:                                    "line 1: body: ",
		`{"custom_id":"A","method":"POST","url":"/v1/images/generations","body":{"model":"gpt-image-1","prompt":"a"}}`: "line 1: model: \"gpt-image-1\"",
		`{"custom_id":"A","method":"POST","url":"/v1/images/generations","body":{"prompt":"a","n":9}}`:                 "line 1: n: 9",
	} {
		err := readFile(t, "a.jsonl", line, Flags{}).refusal(t)
		assert.Contains(t, err, want)
		assert.NotContains(t, err, "prompt: missing")
	}
}

func TestEncodingFlag(t *testing.T) {
	t.Parallel()
	const gb = "{\"prompt\":\"\xd2\xbb\xd6\xbb\xc3\xa8\"}\n"
	assert.Contains(t, readFile(t, "a.jsonl", gb, Flags{}).refusal(t), "→ nothing was spent; say which one is right: --encoding utf-8, or --encoding gb18030")
	got := readFile(t, "a.jsonl", gb, Flags{Encoding: "gbk"})
	assert.Equal(t, "1 {\"prompt\":\"一只猫\"}\n", got.raw(t))
	assert.Equal(t, []string{"read as gb18030"}, got.Notes)
	assert.Equal(t, "1 {\"prompt\":\"һֻè\"}\n", readFile(t, "a.jsonl", gb, Flags{Encoding: "UTF-8"}).raw(t))
	assert.Contains(t, readFile(t, "a.jsonl", "a\n\xff", Flags{Encoding: "UTF-8"}).refusal(t), "line 2 is not utf-8")
}
