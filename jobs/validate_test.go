package jobs

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNormalizeDefaults(t *testing.T) {
	t.Parallel()
	got, warnings, err := Request{Prompt: " 猫\n"}.Normalize()
	require.NoError(t, err)
	assert.Empty(t, warnings)
	assert.Equal(t, Request{
		Model: "wanx-v1", Prompt: " 猫\n", Style: "<auto>", Size: "1024*1024", N: 1, Priority: "default",
	}, got, "no fields of a reference without one; the prompt untouched; no seed")

	got, _, err = Request{Prompt: "猫", NegativePrompt: " \t", RefImg: " https://example.com/a.png "}.Normalize()
	require.NoError(t, err)
	assert.Empty(t, got.NegativePrompt)
	assert.Equal(t, "https://example.com/a.png", got.RefImg)
	assert.Equal(t, "repaint", got.RefMode)
	assert.Nil(t, got.RefStrength)
}

func TestNormalizeSpellings(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"": "<auto>", "auto": "<auto>", "默认": "<auto>", "自动": "<auto>",
		"<photography>": "<photography>", "摄影": "<photography>",
		"Portrait": "<portrait>", "人像写真": "<portrait>",
		"3d cartoon": "<3d cartoon>", "3D卡通": "<3d cartoon>", "3d 卡通": "<3d cartoon>", "3d_cartoon": "<3d cartoon>",
		"ANIME": "<anime>", "动画": "<anime>",
		"oil-painting": "<oil painting>", "油画": "<oil painting>",
		" <Watercolor> ": "<watercolor>", "水彩": "<watercolor>", "＜水彩＞": "<watercolor>",
		"sketch": "<sketch>", "素描": "<sketch>",
		"< chinese painting >": "<chinese painting>", "中国画": "<chinese painting>",
		"FlatIllustration": "<flat illustration>", "扁平插画": "<flat illustration>",
	} {
		r, _, err := Request{Prompt: "a", Style: given}.Normalize()
		require.NoError(t, err, given)
		assert.Equal(t, want, r.Style, given)
	}
	for given, want := range map[string]string{
		"": "1024*1024", "1024x1024": "1024*1024", "720 X 1280": "720*1280", "768×1152": "768*1152", " 1280＊720 ": "1280*720", "01024*1024": "1024*1024",
	} {
		r, _, err := Request{Prompt: "a", Size: given}.Normalize()
		require.NoError(t, err, given)
		assert.Equal(t, want, r.Size, given)
	}
	r, _, err := Request{Prompt: "a", Priority: " Bulk", RefImg: "https://a.cn/b", RefMode: "RefOnly"}.Normalize()
	require.NoError(t, err)
	assert.Equal(t, "bulk", r.Priority)
	assert.Equal(t, "refonly", r.RefMode)
}

const sizeAllowed = "1024*1024, 720*1280, 768*1152, 1280*720"

func TestNormalizeErrors(t *testing.T) {
	t.Parallel()
	const url = "https://example.com/a.png"
	noon := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	many := map[string]string{}
	for i := range 17 {
		many[strings.Repeat("x", i+1)] = ""
	}
	for name, c := range map[string]struct {
		in   Request
		want string
	}{
		"no prompt":     {Request{}, `prompt: missing; allowed: a description of the image`},
		"blank prompt":  {Request{Prompt: " \u3000"}, `prompt: " \u3000"; allowed: a description of the image`},
		"no UTF-8":      {Request{Prompt: "\xc3\xa8\xd7"}, `prompt: "è\xd7"; allowed: UTF-8`},
		"NUL":           {Request{Prompt: "a", NegativePrompt: "b\x00"}, `negative_prompt: "b\x00"; allowed: text without NUL characters`},
		"model":         {Request{Prompt: "a", Model: "wanx-v2"}, `model: "wanx-v2"; allowed: ` + modelsAllowed + `; did you mean "wanx-v1"?`},
		"style":         {Request{Prompt: "a", Style: "cubism"}, `style: "cubism"; allowed: <auto> (默认), <photography> (摄影), <portrait> (人像写真), <3d cartoon> (3D卡通), <anime> (动画), <oil painting> (油画), <watercolor> (水彩), <sketch> (素描), <chinese painting> (中国画), <flat illustration> (扁平插画)`},
		"size":          {Request{Prompt: "a", Size: "1000*1000"}, `size: "1000*1000"; allowed: ` + sizeAllowed},
		"no size":       {Request{Prompt: "a", Size: "big"}, `size: "big"; allowed: ` + sizeAllowed},
		"too many":      {Request{Prompt: "a", N: 5}, `n: 5; allowed: 1 to 4`},
		"negative n":    {Request{Prompt: "a", N: -1}, `n: -1; allowed: 1 to 4`},
		"negative seed": {Request{Prompt: "a", Seed: new(int64(-1))}, `seed: -1; allowed: 0 to 2147483647`},
		"large seed":    {Request{Prompt: "a", Seed: new(int64(2147483648))}, `seed: 2147483648; allowed: 0 to 2147483647`},
		"seed for four": {Request{Prompt: "a", N: 4, Seed: new(int64(2147483645))}, `seed: 2147483645; allowed: 0 to 2147483644; the 4 images take the seeds that follow, up to 2147483647`},
		"strength":      {Request{Prompt: "a", RefImg: url, RefStrength: new(1.01)}, `ref_strength: 1.01; allowed: 0.0 to 1.0`},
		"NaN":           {Request{Prompt: "a", RefImg: url, RefStrength: new(math.NaN())}, `ref_strength: NaN; allowed: 0.0 to 1.0`},
		"mode":          {Request{Prompt: "a", RefImg: url, RefMode: "redo"}, `ref_mode: "redo"; allowed: repaint, refonly`},
		"without a reference": {Request{Prompt: "a", RefStrength: new(0.5), RefMode: "repaint"},
			`ref_strength: 0.5; allowed: only with a reference image; give ref_img, or remove this | ref_mode: "repaint"; allowed: only with a reference image; give ref_img, or remove this`},
		"id":        {Request{Prompt: "a", ID: "a b"}, `id: "a b"; allowed: 1 to 200 bytes of letters and digits of any script, "_", "-", and "." between two others; no device name of Windows, such as CON`},
		"redo_of":   {Request{Prompt: "a", RedoOf: "红 1"}, `redo_of: "红 1"; allowed: 1 to 200 bytes of letters and digits of any script, "_", "-", and "." between two others; no device name of Windows, such as CON`},
		"itself":    {Request{Prompt: "a", ID: "a", RedoOf: "a"}, `redo_of: "a"; allowed: another job`},
		"priority":  {Request{Prompt: "a", Priority: "high"}, `priority: "high"; allowed: critical, default, bulk`},
		"17 labels": {Request{Prompt: "a", Labels: many}, `labels: 17 labels; allowed: at most 16`},
		"labels": {Request{Prompt: "a", Labels: map[string]string{"": "x", "a": "b\n", "b": strings.Repeat("红", 257)}},
			`labels.: ""; allowed: a name of 1 to 64 characters, no control characters | labels.a: "b\n"; allowed: at most 256 characters, no control characters | labels.b: "` + strings.Repeat("红", 60) + `… (257 characters)"; allowed: at most 256 characters, no control characters`},
		"deadline first": {Request{Prompt: "a", NotBefore: noon, Deadline: noon}, `deadline: "2026-11-28T12:00:00Z"; allowed: a time after not_before`},
		"no year":        {Request{Prompt: "a", NotBefore: noon.AddDate(9000, 0, 0)}, `not_before: "11026-11-28 12:00:00 +0000 UTC"; allowed: a time from 1970 to 9999`},
		"producer":       {Request{Prompt: "a", Producer: "a b"}, `producer: "a b"; allowed: 1 to 64 of A-Z a-z 0-9 . _ -`},
		"callback":       {Request{Prompt: "a", Callback: "ftp://h/?key=hunter2"}, `callback: "ftp://h/?…"; allowed: an http or https URL without user name, password and #`},
		"callback's key": {Request{Prompt: "a", Callback: "https://u:hunter2@h/"}, `callback: "https://…@h/"; allowed: an http or https URL without user name, password and #`},
		"callback 猫":     {Request{Prompt: "a", Callback: "https://h/猫"}, `callback: "https://h/猫"; allowed: an http or https URL without user name, password and #, with other characters percent-encoded`},
		"long callback":  {Request{Prompt: "a", Callback: "https://h/?" + strings.Repeat("a", 2048)}, `callback: "https://h/?…"; allowed: an http or https URL without user name, password and #, of at most 2048 bytes`},
		"follow-up":      {Request{Prompt: "a", FollowUp: &FollowUp{" ", "q"}}, `follow_up.type: " "; allowed: the type of a task of your own, 1 to 128 characters, not danqing:…`},
		"our own queue":  {Request{Prompt: "a", FollowUp: &FollowUp{"t", "danqing:store"}}, `follow_up.queue: "danqing:store"; allowed: a queue of your own, at most 128 characters, not danqing:…`},
		"everything at once": {Request{Size: "1*1", N: 9, Priority: "x", Seed: new(int64(-2))},
			`priority: "x"; allowed: critical, default, bulk | prompt: missing; allowed: a description of the image | size: "1*1"; allowed: ` + sizeAllowed + ` | n: 9; allowed: 1 to 4 | seed: -2; allowed: 0 to 2147483647`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := c.in.Normalize()
			var invalid *InvalidError
			require.ErrorAs(t, err, &invalid)
			assert.EqualError(t, err, c.want)
			assert.ErrorAs(t, err, new(FieldError))
		})
	}
}

func TestNormalizeReference(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{
		"http://example.com/a.png", "HTTPS://example.com:8443/a%20b.png?x=1&y=%E7%8C%AB", "https://[2001:db8::1]/a.png",
		"https://example.com?to=a@b", "https://example.com/@a/b.png",
		"sha256:" + strings.Repeat("0a", 32),
	} {
		r, _, err := Request{Prompt: "a", RefImg: ref}.Normalize()
		require.NoError(t, err, ref)
		assert.Equal(t, ref, r.RefImg)
	}
	for ref, want := range map[string]string{
		"oss://dashscope-instant/x":         `"oss://dashscope-instant/x"; allowed: an http or https URL that Alibaba can reach; an oss:// name lives 48 hours`,
		"ftp://example.com/a.png":           `"ftp://example.com/a.png"; allowed: an http or https URL`,
		"file:///tmp/a.png":                 `must be staged first`,
		"./house.png":                       `"./house.png"; allowed: an http or https URL that Alibaba can reach, or a staged name`,
		"data:image/png;base64,iVBORw0KG":   `must be staged first`,
		"https://example.com/猫.png":         `without spaces and Chinese characters; percent-encode them`,
		"https://例子.cn/a.png":               `percent-encode them`,
		"https://example.com/a b.png":       `percent-encode them`,
		"https:///a.png":                    `"https:///a.png"; allowed: an http or https URL that Alibaba can reach; it has no host`,
		"https://:80/a.png":                 `it has no host`,
		"https://a:port/a.png":              `it has no host, or is not a URL`,
		"https://u:hunter2@a.cn/b":          `"https://…@a.cn/b"; allowed: an http or https URL that Alibaba can reach, without user name and password`,
		"https://@a.cn/b":                   `without user name and password`,
		"https://hunter2@a.cn/b":            `"https://…@a.cn/b"; allowed`,
		"https://a.cn/猫?Signature=hunter2":  `"https://a.cn/猫?…"; allowed`,
		"a.cn/b.png?Signature=hunter2":      `"a.cn/b.png?…"; allowed`,
		"sha256:" + strings.Repeat("0", 63): `or a staged name ("sha256:" and 64 hex digits)`,
		"sha256:" + strings.Repeat("A", 64): `or a staged name ("sha256:" and 64 hex digits)`,
	} {
		_, _, err := Request{Prompt: "a", RefImg: ref}.Normalize()
		require.ErrorContains(t, err, want, ref)
		assert.NotContains(t, err.Error(), "hunter2")
	}
}

// A prompt of more than 500 characters is sent whole, with a warning. Characters count, not
// bytes.
func TestNormalizeWarnsOfLongPrompts(t *testing.T) {
	t.Parallel()
	just := strings.Repeat("猫", 500)
	_, warnings, err := Request{Prompt: just, NegativePrompt: just}.Normalize()
	require.NoError(t, err)
	assert.Empty(t, warnings)

	long := just + "狗"
	r, warnings, err := Request{Prompt: long, NegativePrompt: long}.Normalize()
	require.NoError(t, err)
	assert.Equal(t, long, r.Prompt)
	assert.Equal(t, long, r.NegativePrompt)
	assert.Equal(t, []string{
		"prompt has 501 characters and is sent whole, but the service reads 500 and drops the rest (another page says 800)",
		"negative_prompt has 501 characters and is sent whole, but the service reads 500 and drops the rest",
	}, warnings)
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"see https://u:p@h/a?X-Amz-Signature=s and more": "see https://…@h/a?… and more",
		"https://h/a#frag":             "https://h/a?…",
		"what? a cat, 3://2":           "what? a cat, 3://2",
		"https://h/a and https://i?s=": "https://h/a and https://i?…",
	} {
		assert.Equal(t, want, redact(given))
	}
}
