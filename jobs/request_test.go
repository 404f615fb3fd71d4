package jobs

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRequestUnmarshal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want Request
	}{
		"flat": {
			`{"id":"a","model":"wanx-v1","prompt":"p","negative_prompt":"q","style":"<anime>","size":"1024*1024","n":2,"seed":7,"ref_img":"u","ref_strength":0.5,"ref_mode":"refonly","prompt_extend":false,"watermark":true,"priority":"bulk","labels":{"sku":"A-17"},"redo_of":"b","not_before":"2026-11-28T18:00:00+08:00","deadline":"2026-11-28T11:00:00Z","callback":"https://e","follow_up":{"type":"t","queue":"q"},"stage":true,"producer":"e","batch":"c","line_id":"d","ref_images":["v","w"],"mask_image_url":"m","function":"expand","prompt_extend_mode":"direct","enable_thinking":true,"thinking_mode":false,"enable_sequential":true,"strength":0.25,"upscale_factor":2,"top_scale":1.1,"bottom_scale":1.2,"left_scale":1.3,"right_scale":1.4,"is_sketch":true}`,
			Request{
				"a", "wanx-v1", "p", "q", "<anime>", "1024*1024", 2, new(int64(7)), "u", new(0.5), "refonly", new(false), new(true),
				[]string{"v", "w"}, "m", "expand", "direct", new(true), new(false), new(true), new(0.25), new(2.0), new(1.1), new(1.2), new(1.3), new(1.4), new(true),
				"bulk", map[string]string{"sku": "A-17"}, "b",
				time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC), time.Date(2026, 11, 28, 11, 0, 0, 0, time.UTC), "https://e", &FollowUp{"t", "q"}, true, "e", "c", "d",
			},
		},
		"DashScope's own body": {
			`{"model":"wanx-v1","input":{"prompt":"p","ref_image":"u"},"parameters":{"style":"<auto>","n":1,"ref_strength":0.0}}`,
			Request{Model: "wanx-v1", Prompt: "p", RefImg: "u", Style: "<auto>", N: 1, RefStrength: new(0.0)},
		},
		"DashScope's own body, V2": {
			`{"model":"wan2.2-t2i-flash","input":{"prompt":"p"},"parameters":{"prompt_extend":false,"watermark":true}}`,
			Request{Model: "wan2.2-t2i-flash", Prompt: "p", PromptExtend: new(false), Watermark: new(true)},
		},
		"the Java SDK's body": {
			`{"input":{"prompt":"p","negative_prompt":"q"},"parameters":{"negative_prompt":"q"}}`,
			Request{Prompt: "p", NegativePrompt: "q"},
		},
		"own fields and DashScope's":   {`{"id":"a","priority":"bulk","input":{"prompt":"p"}}`, Request{ID: "a", Priority: "bulk", Prompt: "p"}},
		"the producer's own columns":   {`{"prompt":"p","sku":"A-17","site":"x","no":3,"remark":{"n":1,"n":2},"match":1}`, Request{Prompt: "p"}},
		"a results line":               {`{"prompt":"p","danqing":{"prompt":"q","id":"x"}}`, Request{Prompt: "p"}},
		"nulls":                        {`{"id":null,"prompt":"p","n":null,"seed":null,"labels":null,"input":null,"ref_strength":null,"prompt_extend":null,"watermark":null}`, Request{Prompt: "p"}},
		"whole numbers in other forms": {`{"prompt":"p","n":2.0,"seed":1e3}`, Request{Prompt: "p", N: 2, Seed: new(int64(1000))}},
		"an ID that is a number":       {`{"id":17,"prompt":"p"}`, Request{ID: "17", Prompt: "p"}},
		"ref_image":                    {`{"prompt":"p","ref_image":"u"}`, Request{Prompt: "p", RefImg: "u"}},
		"sketch_image_url":             {`{"prompt":"p","sketch_image_url":"./a.png"}`, Request{Prompt: "p", RefImg: "./a.png"}},
		"ref_img wins":                 {`{"prompt":"p","sketch_image_url":"b","ref_image":"c","ref_img":"a"}`, Request{Prompt: "p", RefImg: "a"}},
		"one reference, two names":     {`{"prompt":"p","sketch_image_url":"b","ref_image":"b","ref_img":""}`, Request{Prompt: "p", RefImg: "b"}},
		"escapes":                      {`{"\u0070rompt":"\ud83d\ude00\\ud83d \"猫\""}`, Request{Prompt: `😀\ud83d "猫"`}},
		"spaces":                       {" {\n\t\"prompt\" : \"p\" , \"labels\" : { } } ", Request{Prompt: "p", Labels: map[string]string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got Request
			require.NoError(t, json.Unmarshal([]byte(c.in), &got))
			assert.Equal(t, c.want, got)
		})
	}
}

// As at DashScope, what a model does not honor is ignored, and it changes nothing about the
// request's identity.
func TestParseServiceRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in      string
		want    Request
		ignored []string
	}{
		"wanx-v1": {
			`{"model":"wanx-v1","input":{"prompt":"p","seeds":1},"parameters":{"steps":40,"scale":[7],"quality":"hd","watermark":0,"prompt_extend":true,"style":"<anime>","n":2}}`,
			Request{Model: "wanx-v1", Prompt: "p", Style: "<anime>", N: 2}, []string{"seeds", "steps", "scale", "quality", "watermark", "prompt_extend"},
		},
		"V2": {
			`{"model":"wan2.1-t2i-turbo","input":{"prompt":"p","ref_img":7},"parameters":{"style":"<anime>","ref_mode":"repaint","watermark":true}}`,
			Request{Model: "wan2.1-t2i-turbo", Prompt: "p", Watermark: new(true)}, []string{"ref_img", "style", "ref_mode"},
		},
		"no reference":  {`{"input":{"prompt":"p"},"parameters":{"ref_mode":"repaint","ref_strength":0.5}}`, Request{Prompt: "p"}, []string{"ref_mode", "ref_strength"}},
		"flat":          {`{"prompt":"p","watermark":false,"sku":"A-17","quality":"hd","danqing":1}`, Request{Prompt: "p"}, []string{"watermark", "sku", "quality"}},
		"null":          {`{"prompt":"p","parameters":{"steps":null}}`, Request{Prompt: "p"}, nil},
		"unknown model": {`{"model":"x","prompt":"p","parameters":{"steps":1,"style":"s","watermark":true}}`, Request{Model: "x", Prompt: "p", Style: "s", Watermark: new(true)}, []string{"steps"}},
	} {
		got, ignored, err := ParseServiceRequest([]byte(c.in))
		require.NoError(t, err, name)
		assert.Equal(t, c.want, got, name)
		assert.Equal(t, c.ignored, ignored, name)
		assert.Equal(t, c.want.Digest(), got.Digest(), name)
	}
	_, _, err := ParseServiceRequest([]byte(`{"prompt":"p","priorty":"bulk","parameters":{"n":"2"}}`))
	assert.EqualError(t, err, `priorty: "bulk"; did you mean "priority"? (a column of your own needs another name) | parameters.n: "2"; allowed: a whole number without quotes`)
	for _, m := range Models() {
		for _, name := range shapingNames() {
			_, ignored, err := ParseServiceRequest(fmt.Appendf(nil, `{"model":%q,"parameters":{%q:null},"input":{%[2]q:{}}}`, m.Name, name))
			assert.Equal(t, m.Honors(name), err != nil, "%s %s", m.Name, name)
			assert.Equal(t, m.Honors(name), len(ignored) == 0, "%s %s", m.Name, name)
		}
	}
}

func TestRequestUnmarshalErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"text for a number":      {`{"prompt":"p","n":"2"}`, `n: "2"; allowed: a whole number without quotes`},
		"half an image":          {`{"prompt":"p","n":2.5}`, `n: 2.5; allowed: a whole number without quotes`},
		"no image":               {`{"prompt":"p","n":0}`, `n: 0; allowed: 1 to 12; leave it out for the default`},
		"far too many images":    {`{"prompt":"p","n":4294967297}`, `n: 4294967297; allowed: 1 to 12; leave it out for the default`},
		"seed out of range":      {`{"prompt":"p","seed":1e300}`, `seed: 1e300; allowed: a whole number without quotes`},
		"beyond float64":         {`{"prompt":"p","ref_strength":1e400}`, `ref_strength: 1e400; allowed: a number without quotes`},
		"number for a text":      {`{"prompt":12}`, `prompt: 12; allowed: text in quotes`},
		"broken ID":              {`{"id":1.5,"prompt":"p"}`, `id: 1.5; allowed: text in quotes`},
		"text for a switch":      {`{"prompt":"p","watermark":"false"}`, `watermark: "false"; allowed: true or false without quotes`},
		"number for a switch":    {`{"prompt":"p","parameters":{"prompt_extend":0}}`, `parameters.prompt_extend: 0; allowed: true or false without quotes`},
		"inside parameters":      {`{"input":{"prompt":"p"},"parameters":{"n":true}}`, `parameters.n: true; allowed: a whole number without quotes`},
		"all at once":            {`{"prompt":1,"size":2}`, `prompt: 1; allowed: text in quotes | size: 2; allowed: text in quotes`},
		"no object":              {`["p"]`, `request: ["p"]; allowed: a JSON object, as in {"prompt": "…"}`},
		"input is not an object": {`{"input":"p"}`, `input: "p"; allowed: an object, as in DashScope's own body`},
		"twice":                  {`{"prompt":"p","prompt":"p"}`, `prompt: "p"; allowed: each name once; this is the second`},
		"twice, escaped":         {`{"prompt":"p","\u0070rompt":"q"}`, `prompt: "q"; allowed: each name once; this is the second`},
		"own column twice":       {`{"prompt":"p","sku":1,"sku":2}`, `sku: 2; allowed: each name once; this is the second`},
		"label twice":            {`{"prompt":"p","labels":{"a":"b","a":"c"}}`, `labels.a: "c"; allowed: each name once; this is the second`},
		"label without quotes":   {`{"prompt":"p","labels":{"a":1}}`, `labels.a: 1; allowed: text in quotes`},
		"null label":             {`{"prompt":"p","labels":{"a":null}}`, `labels.a: null; allowed: text in quotes`},
		"labels as a list":       {`{"prompt":"p","labels":["a"]}`, `labels: ["a"]; allowed: an object of texts, as in {"sku": "A-17"}`},
		"in two places":          {`{"prompt":"p","input":{"prompt":"q"}}`, `input.prompt: "q"; allowed: one value; prompt says "p"`},
		"two references":         {`{"prompt":"p","ref_image":"a","sketch_image_url":"b"}`, `sketch_image_url: "b"; allowed: one reference image; ref_image says "a"; name the one that is meant ref_img`},
		"misspelled":             {`{"promt":"p"}`, `promt: "p"; did you mean "prompt"? (a column of your own needs another name)`},
		"misspelled capitals":    {`{"prompt":"p","NegativePrompt":"q"}`, `NegativePrompt: "q"; did you mean "negative_prompt"? (a column of your own needs another name)`},
		"misspelled parameter":   {`{"prompt":"p","parameters":{"stlye":"a"}}`, `parameters.stlye: "a"; did you mean "style"?`}, //nolint:misspell // tests misspellings
		"unknown parameter":      {`{"prompt":"p","parameters":{"quality":"hd"}}`, `parameters.quality: "hd"; allowed: here only prompt, negative_prompt, style, size, n, seed, ref_img, ref_image, sketch_image_url, ref_strength, ref_mode, prompt_extend, watermark, ref_images, mask_image_url, function, prompt_extend_mode, enable_thinking, thinking_mode, enable_sequential, strength, upscale_factor, top_scale, bottom_scale, left_scale, right_scale, is_sketch, images, base_image_url; DashScope has no such parameter: remove it`},
		"width":                  {`{"prompt":"p","width":720}`, `width: 720; use "size", as in "1024*1024" (a column of your own needs another name)`},
		"another service's":      {`{"prompt":"p","num_images":4,"Quality":"hd"}`, `num_images: 4; use "n" (a column of your own needs another name) | Quality: "hd"; DashScope has no such parameter: remove it (a column of your own needs another name)`},
		"no zone":                {`{"prompt":"p","not_before":"2026-11-28 18:30:00"}`, `not_before: "2026-11-28 18:30:00"; allowed: a time with its zone in quotes, as in 2026-11-28T18:30:00+08:00`},
		"follow-up as text":      {`{"prompt":"p","follow_up":"t"}`, `follow_up: "t"; allowed: a type and a queue of your own asynq server, as in {"type": "image:ready", "queue": "shop"}`},
		"misspelled follow-up":   {`{"prompt":"p","follow_up":{"typ":"t"}}`, `follow_up: {"typ":"t"}; allowed: a type and a queue of your own asynq server, as in {"type": "image:ready", "queue": "shop"}`},
		"half an emoji":          {`{"prompt":"cat \ud83d"}`, `request: \ud83d; allowed: whole characters; this is half of one: a text was cut within an emoji`},
		"half an emoji, middle":  {`{"prompt":"\ude00\ud83d"}`, `request: \ude00; allowed: whole characters; this is half of one: a text was cut within an emoji`},
		"misspelled with secret": {`{"prompt":"p","ref_imgs":"https://u:hunter2@h/a.png?Signature=hunter2"}`, `ref_imgs: "https://…@h/a.png?…"; did you mean "ref_img"? (a column of your own needs another name)`},
		"PHP's slashes":          {`{"prompt":"p","ref_imgs":"https:\/\/h\/a.png?Signature=hunter2"}`, `ref_imgs: "https://h/a.png?…"; did you mean "ref_img"? (a column of your own needs another name)`},
		"PHP's slashes, deeper":  {`{"prompt":"p","lables":["https:\/\/h\/a.png?Signature=hunter2"]}`, `lables: ["https://h/a.png?…"]; did you mean "labels"? (a column of your own needs another name)`},
		"escaped secrets":        {`{"prompt":"p","ref_img":{"u":"https://h/a.png\u003fSignature=hunter2"}}`, `ref_img: "{\"u\":\"https://h/a.png?…"; allowed: text in quotes`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Request{Prompt: "before"}
			err := json.Unmarshal([]byte(c.in), &got)
			var invalid *InvalidError
			require.ErrorAs(t, err, &invalid)
			assert.EqualError(t, err, c.want)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.Equal(t, Request{Prompt: "before"}, got, "a refused request changes nothing")
		})
	}
}

func TestRequestUnmarshalRefusesInvalidUTF8(t *testing.T) {
	t.Parallel()
	assert.ErrorContains(t, json.Unmarshal([]byte("{\"prompt\":\"\xc3\xa8\xd7\"}"), new(Request)), "UTF-8")
}

func TestSuggestion(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"promt": "prompt", "Prompt": "prompt", "prompts": "prompt", "pormpt": "prompt",
		"negative_promt": "negative_prompt", "negativePrompt": "negative_prompt", "negetive-promtp": "negative_prompt",
		"stlye": "style", "styl": "style", "szie": "size", "sizes": "size", "sed": "seed", "seeds": "seed", //nolint:misspell // tests misspellings
		"ID": "id", "N": "n", "refImg": "ref_img", "ref_imge": "ref_img", "ref_strenght": "ref_strength", //nolint:misspell // tests misspellings
		"lables": "labels", "prioritiy": "priority", "modell": "model", "parameter": "parameters", "redoOf": "redo_of",
		"notBefore": "not_before", "dead_line": "deadline", "callbacks": "callback", "followUp": "follow_up",
		"promptExtend": "prompt_extend", "prompt_extended": "prompt_extend", "waterMark": "watermark", "watermarks": "watermark",

		"site": "", "side": "", "need": "", "no": "", "sku": "", "idx": "", "note": "", "name": "", "title": "",
		"image": "", "url": "", "file": "", "category": "", "标题": "", "": "", strings.Repeat("seed", 1<<18): "", "type": "", "text": "", "time": "", "bookmark": "", "mark": "",
	} {
		assert.Equal(t, want, suggestion(name, topNames()), "%q", name)
	}
}

func TestRequestRoundTrip(t *testing.T) {
	t.Parallel()
	in := Request{
		ID: "a", Model: "wanx-v1", Prompt: "<p>&\u2028猫", Style: "<auto>", N: 1, Seed: new(int64),
		RefImg: "https://example.com/?a=1&b=2", RefStrength: new(float64), Labels: map[string]string{"红": "<"},
	}
	data, err := json.Marshal(in)
	require.NoError(t, err)
	var out Request
	require.NoError(t, json.Unmarshal(data, &out))
	assert.Equal(t, in, out)
}

// No input panics. Normalize is idempotent for accepted requests, and neither Normalize nor
// another encoding changes the digest.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{"prompt":"p"}`,
		`{"id":1,"prompt":"近景","style":"水彩","size":"720x1280","n":4,"seed":2147483644}`,
		`{"model":"wanx-v1","input":{"prompt":"p","ref_image":"https://a/b"},"parameters":{"ref_strength":-0.0,"ref_mode":"REFONLY"}}`,
		`{"prompt":"\ud83d\ude00","labels":{"a":"b"},"x":[{}],"danqing":1}`,
		`{"promt":"\ud83d"}`, `[]`, `null`, `{"prompt":"p","prompt":"p"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		if json.Unmarshal(data, &r) != nil {
			return
		}
		normal, _, err := r.Normalize()
		require.Equal(t, r.Digest(), normal.Digest())
		if err != nil {
			require.ErrorAs(t, err, new(*InvalidError))
			return
		}
		again, _, err := normal.Normalize()
		require.NoError(t, err)
		require.Equal(t, normal, again)

		encoded, err := json.Marshal(r)
		require.NoError(t, err)
		var back Request
		require.NoError(t, json.Unmarshal(encoded, &back))
		require.Equal(t, r.Digest(), back.Digest())

		seeded, _, err := normal.WithSeed("job").Normalize()
		require.NoError(t, err)
		require.NotNil(t, seeded.Seed)
	})
}

// A column "state" of the producer is not a misspelling.
func TestStageIsSpelledRight(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{`{"prompt":"p","state":"NY"}`: false, `{"prompt":"p","stages":2}`: false, `{"prompt":"p","stage":true}`: true} {
		r, err := ParseRequest([]byte(in))
		require.NoError(t, err, in)
		assert.Equal(t, want, r.Stage, in)
	}
}

// A producer cannot set the fields that Danqing sets.
func TestParseRequestIgnoresGatewayFields(t *testing.T) {
	t.Parallel()
	r, err := ParseRequest([]byte(`{"prompt":"p","producer":"shop","batch":"b","line_id":"c"}`))
	require.NoError(t, err)
	assert.Equal(t, Request{Prompt: "p"}, r)
	_, err = ParseRequest([]byte(`{"prompt":"p"`))
	require.Error(t, err)
}
