package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLineResult(t *testing.T) {
	t.Parallel()
	result := struct {
		URL string `json:"url"`
	}{"https://h/a?b=1&c=<2>"}
	for in, want := range map[string]string{
		`{"sku": "A-17", "prompt": "\u732b<猫>", "price": 1.50, "big": 12345678901234567890, "tags": [ 1, {"a" : null} ], "\u0061b": 1e2}`: `{"sku":"A-17","prompt":"\u732b<猫>","price":1.50,"big":12345678901234567890,"tags":[1,{"a":null}],"\u0061b":1e2,"danqing":{"url":"https://h/a?b=1&c=<2>"}}`,
		`{"danqing":{"a":[1]},"prompt":"p"}`:                    `{"prompt":"p","danqing":{"url":"https://h/a?b=1&c=<2>"}}`,
		`{"prompt":"p","danqing":"old","z":{"danqing":"kept"}}`: `{"prompt":"p","z":{"danqing":"kept"},"danqing":{"url":"https://h/a?b=1&c=<2>"}}`,
	} {
		out, err := read(t, in).Lines[0].Result(result)
		require.NoError(t, err)
		assert.Equal(t, want, string(out))
	}
	_, err := read(t, `{"prompt":"p"}`).Lines[0].Result(func() {})
	assert.ErrorContains(t, err, "line 1")
}

// A results file, read as a batch, has the same jobs.
func TestResultsAreABatch(t *testing.T) {
	t.Parallel()
	b := readExample(t, "wanx-v1.jsonl")
	var results strings.Builder
	for _, l := range b.Lines {
		out, err := l.Result(map[string]any{"id": l.ID, "state": "succeeded"})
		require.NoError(t, err)
		results.Write(append(out, '\n'))
	}
	again, err := ReadBatch(strings.NewReader(results.String()), exampleOptions("wanx-v1.results.jsonl"))
	require.NoError(t, err)
	require.Len(t, again.Lines, len(b.Lines))
	for i, l := range again.Lines {
		assert.Equal(t, b.Lines[i].ID, l.ID)
		assert.Equal(t, b.Lines[i].Digest, l.Digest)
		assert.Equal(t, b.Lines[i].Request, l.Request)
	}
}

func exampleOptions(file string) BatchOptions {
	return BatchOptions{Name: BatchName(file), Resolve: func(_, path string) (string, error) {
		if path != "./house.png" {
			return "", fmt.Errorf("%s is not in the example", path)
		}
		return "sha256:" + strings.Repeat("0", 64), nil
	}}
}

func readExample(t *testing.T, file string) *Batch {
	t.Helper()
	text, err := fs.ReadFile(os.DirFS("../cmd/danqing/examples"), file)
	require.NoError(t, err)
	b, err := ReadBatch(bytes.NewReader(text), exampleOptions(file))
	require.NoError(t, err)
	return b
}

// The example file has the examples of the API reference.
func TestExampleFile(t *testing.T) {
	t.Parallel()
	b := readExample(t, "wanx-v1.jsonl")
	find := func(id string) Request {
		for _, l := range b.Lines {
			if l.ID == "wanx-v1."+id {
				assert.Empty(t, l.Warnings)
				return l.Request
			}
		}
		t.Fatalf("no line %s", id)
		return Request{}
	}
	assert.Equal(t, "不要使用红色元素", find("portrait-no-red").NegativePrompt)
	assert.Equal(t, new(0.0), find("portrait-repaint-0").RefStrength)
	assert.Equal(t, new(1.0), find("butterflies-repaint-1").RefStrength)
	assert.Contains(t, find("butterflies-repaint-1").RefImg, "/girl.png")
	assert.Equal(t, "refonly", find("cat-refonly").RefMode)
	assert.Equal(t, "sha256:"+strings.Repeat("0", 64), find("cat-refonly-file").RefImg)
	assert.Equal(t, "<watercolor>", find("portrait-watercolor").Style)
	assert.Equal(t, "1280*720", find("butterflies-chinese-painting").Size)
}

// The examples of all models are valid without warnings.
func TestExampleFilesOfAllModels(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, file := range []string{"wanx-v1.jsonl", "wanx2.jsonl", "wan2.2.jsonl", "wan2.5.jsonl", "qwen-image.jsonl", "wan2.6.jsonl", "wan2.7.jsonl", "image-edit.jsonl", "qwen-image-3.0.jsonl"} {
		for _, l := range readExample(t, file).Lines {
			used[l.Request.Model] = true
			assert.Empty(t, l.Warnings, l.ID)
			assert.Len(t, l.Request.Batch+"."+l.Request.LineID, len(l.ID), "%s has a readable ID", l.ID)
		}
	}
	for _, m := range Models() {
		assert.True(t, used[m.Name], "no example for %s", m.Name)
	}
}

// No file panics. An accepted batch has valid, unique IDs, and its results file has the same
// jobs.
func FuzzReadBatch(f *testing.F) {
	for _, seed := range []string{
		"{\"prompt\":\"p\"}\n{\"prompt\":\"p\"}\n", "\ufeff{\"id\":\"红\",\"prompt\":\"p\"}\r\n\r\n{\"id\":1,\"prompt\":\"q\",\"sku\":[1]}",
		"{\"prompt\":\"p\",\"danqing\":{},\"x\":\"\\u0061\"}", "{\"prompt\":\"p\",\"ref_img\":\"./a\"}", "[]\n{}\nnull\n\xff", "{\"\":1,\"prompt\":\"p\"}",
	} {
		f.Add(seed)
	}
	opts := exampleOptions("wanx-v1.jsonl")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ReadBatch(strings.NewReader(text), opts)
		if err != nil {
			_ = err.Error()
			return
		}
		var results strings.Builder
		seen := map[string]bool{}
		for _, l := range b.Lines {
			require.NoError(t, ValidID(l.ID))
			require.False(t, seen[l.ID])
			seen[l.ID] = true
			require.Equal(t, l.Digest, l.Request.Digest())
			out, err := l.Result(map[string]string{"id": l.ID})
			require.NoError(t, err)
			require.True(t, json.Valid(out))
			results.Write(append(out, '\n'))
		}
		again, err := ReadBatch(strings.NewReader(results.String()), opts)
		require.NoError(t, err)
		require.Len(t, again.Lines, len(b.Lines))
		for i := range again.Lines {
			require.Equal(t, b.Lines[i].ID, again.Lines[i].ID)
			require.Equal(t, b.Lines[i].Request, again.Lines[i].Request)
		}
	})
}

// A redo is another job of the same batch with the same request and a seed of its own.
func TestLineRedo(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"sku":"A","id":"17","prompt":"猫","seed":7,"n":2,"danqing":{"job_id":"x"}}`:          `{"id":"17-redo-1","redo_of":"sheet.17","sku":"A","prompt":"猫","n":2}`,
		`{"id":"17","redo_of":"sheet.16","prompt":"猫"}`:                                       `{"id":"17-redo-1","redo_of":"sheet.17","prompt":"猫"}`,
		`{"id":17,"model":"wanx-v1","input":{"prompt":"猫"},"parameters":{"seed":7,"n":2}}`:    `{"id":"17-redo-1","redo_of":"sheet.17","model":"wanx-v1","input":{"prompt":"猫"},"parameters":{"n":2}}`,
		`{"id":"17","input":{"prompt":"猫","seed":7},"parameters":{"seed":7}, "x":"\u732b<>"}`: `{"id":"17-redo-1","redo_of":"sheet.17","input":{"prompt":"猫"},"parameters":{},"x":"\u732b<>"}`,
	} {
		line := read(t, in).Lines[0]
		redo, err := line.Redo(RedoID(line.Request.LineID, 1))
		require.NoError(t, err)
		assert.Equal(t, want, string(redo))
		again := read(t, string(redo)).Lines[0]
		assert.Equal(t, "sheet.17-redo-1", again.ID)
		assert.Equal(t, line.ID, again.Request.RedoOf)
		assert.Nil(t, again.Request.Seed)
		assert.Equal(t, line.Request.Prompt, again.Request.Prompt)
		assert.Equal(t, line.Request.N, again.Request.N)
		assert.NotEqual(t, line.Request.WithSeed(line.ID).Seed, again.Request.WithSeed(again.ID).Seed)
	}
	line := read(t, `{"prompt":"有一只黑色的小猫"}`).Lines[0]
	redo, err := line.Redo(RedoID(line.Request.LineID, 2))
	require.NoError(t, err)
	assert.Equal(t, `{"id":"有一只黑色的小猫-e75ac4d3f6ac-redo-2","redo_of":"sheet.有一只黑色的小猫-e75ac4d3f6ac","prompt":"有一只黑色的小猫"}`, string(redo))
}
