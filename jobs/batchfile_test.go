package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// read reads a valid batch named "sheet".
func read(t *testing.T, text string) *Batch {
	t.Helper()
	b, err := ReadBatch(strings.NewReader(text), BatchOptions{Name: "sheet"})
	require.NoError(t, err)
	return b
}

// readErr returns the error of an invalid batch.
func readErr(t *testing.T, text string) error {
	t.Helper()
	b, err := ReadBatch(strings.NewReader(text), BatchOptions{Name: "sheet"})
	require.Error(t, err)
	require.Nil(t, b)
	return err
}

func TestReadBatch(t *testing.T) {
	t.Parallel()
	b := read(t, "\ufeff{\"id\": \"A-17\", \"prompt\": \"猫\", \"sku\": 1.50}\r\n\n  \t\r\n{\"prompt\":\"猫\"}")
	require.Len(t, b.Lines, 2)
	first, second := b.Lines[0], b.Lines[1]

	assert.Equal(t, "sheet", b.Name)
	assert.Equal(t, 1, first.Number)
	assert.Equal(t, `{"id":"A-17","prompt":"猫","sku":1.50}`, string(first.Raw))
	assert.Equal(t, "sheet.A-17", first.ID)
	assert.Equal(t, "sheet.A-17", first.Request.ID)
	assert.Equal(t, "1024*1024", first.Request.Size, "normalized")

	assert.Equal(t, 4, second.Number)
	assert.Equal(t, first.Digest, second.Digest, "the same request")
	assert.Equal(t, "sheet.猫-"+second.Digest[:12], second.ID)
}

// A batch file may have columns with the names of ReadBatch's own fields.
func TestReadBatchNames(t *testing.T) {
	t.Parallel()
	l := read(t, `{"id":"红","prompt":"a","batch":7,"line_id":[1],"match":1}`).Lines[0]
	assert.Equal(t, "sheet", l.Request.Batch)
	assert.Equal(t, "红", l.Request.LineID)
	assert.Equal(t, `{"id":"红","prompt":"a","batch":7,"line_id":[1],"match":1}`, string(l.Raw))
}

func TestReadBatchDefaultModel(t *testing.T) {
	t.Parallel()
	in := `{"prompt":"a"}` + "\n" + `{"prompt":"b","model":"wanx-v1"}`
	_, err := ReadBatch(strings.NewReader(in), BatchOptions{Name: "sheet", Model: "wanx-v9"})
	var batch *BatchError
	require.ErrorAs(t, err, &batch)
	require.Len(t, batch.Lines, 1, "the line that names a model keeps it")
	assert.ErrorContains(t, batch.Lines[0], `model: "wanx-v9"`)
}

func TestReadBatchWarnings(t *testing.T) {
	t.Parallel()
	b := read(t, `{"prompt":"`+strings.Repeat("猫", 501)+`"}`)
	require.Len(t, b.Lines[0].Warnings, 1)
	assert.Contains(t, b.Lines[0].Warnings[0], "501 characters")
}

// The model of a line decides its errors and warnings.
func TestReadBatchByModel(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("猫", 501)
	b := read(t, `{"model":"wan2.5-t2i-preview","prompt":"`+long+`"}
{"model":"wan2.2-t2i-flash","prompt":"`+long+`"}
{"model":"wan2.1-t2i-plus","prompt":"猫","watermark":true,"parameters":{"prompt_extend":false}}
{"model":"wanx2.1-t2i-plus","prompt":"猫","watermark":true,"prompt_extend":false}
`)
	assert.Empty(t, b.Lines[0].Warnings)
	assert.Equal(t, []string{"prompt has 501 characters and is sent whole, but the service reads 500 and drops the rest (another page says 800)"}, b.Lines[1].Warnings)
	assert.Equal(t, b.Lines[2].Digest, b.Lines[3].Digest, "a region's spelling is the same model")
	assert.Equal(t, new(false), b.Lines[2].Request.PromptExtend)

	err := readErr(t, `{"model":"qwen-image","prompt":"猫","n":2,"size":"1024*1024"}
{"prompt":"猫","parameters":{"watermark":false}}
{"model":"z-image-turbo","prompt":"猫"}
`)
	assert.EqualError(t, err, `line 1: size: "1024*1024"; allowed: 1664*928, 1472*1104, 1328*1328, 1104*1472, 928*1664 | n: 2; allowed: 1; qwen-image creates one image per request: use another job for another image
line 2: watermark: false; allowed: none: wanx-v1 has no watermark; remove it
line 3: model: "z-image-turbo"; allowed: models with asynchronous tasks; z-image-turbo answers with the image itself: if that reply is lost, so is the image, which is paid for, and nothing can find it; use wan2.6-t2i`)
}

// ids maps each line's raw JSON to the job IDs of these lines, in order.
func ids(b *Batch) map[string][]string {
	m := map[string][]string{}
	for _, l := range b.Lines {
		m[string(l.Raw)] = append(m[string(l.Raw)], l.ID)
	}
	return m
}

// Sorting the lines, or inserting or deleting one, buys nothing again.
func TestReadBatchIDsDoNotDependOnPosition(t *testing.T) {
	t.Parallel()
	lines := []string{
		`{"prompt":"猫"}`, `{"id":"A-17","prompt":"猫"}`, `{"prompt":"狗","style":"水彩"}`, `{"prompt":"猫"}`,
		`{"id":"红","prompt":"鸟"}`, `{"prompt":"猫","n":2}`, `{"prompt":"猫"}`,
	}
	want := ids(read(t, strings.Join(lines, "\n")))
	assert.Len(t, want[`{"prompt":"猫"}`], 3, "equal lines are different jobs")

	sorted := slices.Sorted(slices.Values(lines))
	assert.Equal(t, want, ids(read(t, strings.Join(sorted, "\n"))), "sorted")
	slices.Reverse(sorted)
	assert.Equal(t, want, ids(read(t, strings.Join(sorted, "\n"))), "sorted backwards")

	for i := range len(lines) + 1 {
		more := ids(read(t, strings.Join(slices.Insert(slices.Clone(lines), i, `{"prompt":"鱼"}`), "\n")))
		require.Len(t, more[`{"prompt":"鱼"}`], 1)
		delete(more, `{"prompt":"鱼"}`)
		assert.Equal(t, want, more, "with a row inserted before row %d", i)
	}
	fewer := ids(read(t, strings.Join(lines[:6], "\n")))
	assert.Equal(t, want[`{"prompt":"猫"}`][:2], fewer[`{"prompt":"猫"}`], "with one of three equal rows deleted")
}

func TestReadBatchIDsAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, l := range read(t, `{"id":"红","prompt":"a"}
{"id":"蓝","prompt":"a"}
{"id":"红.蓝","prompt":"a"}
{"id":"a b","prompt":"a"}
{"id":"a_b","prompt":"a"}
{"id":17,"prompt":"a"}
{"prompt":"a"}
{"prompt":"a"}`).Lines {
		assert.NoError(t, ValidID(l.ID))
		assert.False(t, seen[l.ID], l.ID)
		seen[l.ID] = true
	}
}

func TestReadBatchReportsAllLines(t *testing.T) {
	t.Parallel()
	err := readErr(t, `{"prompt":"fine"}
{"prompt":"猫","size":"1000*1000","n":"2"}

{"prompt":"猫",}
plain text
{"promt":"猫"}
{"prompt":"`+"\xc3\xa8\xd7"+`"}
{"parameters":{"n":0,"seed":-1},"input":{"prompt":"a"}}
`)
	assert.EqualError(t, err, `line 2: n: "2"; allowed: a whole number without quotes | size: "1000*1000"; allowed: `+sizeAllowed+`
line 4: column 15: not a JSON object: invalid character '}' looking for beginning of object key string
line 5: column 1: not a JSON object: invalid character 'p' looking for beginning of value
line 6: promt: "猫"; did you mean "prompt"? (a column of your own needs another name) | prompt: missing; allowed: a description of the image
line 7: column 13: not UTF-8; save the file as UTF-8 (it may be GBK or UTF-16)
line 8: parameters.n: 0; allowed: 1 to 12; leave it out for the default | seed: -1; allowed: 0 to 2147483647`)
	var batch *BatchError
	require.ErrorAs(t, err, &batch)
	assert.Len(t, batch.Lines, 6)
	assert.ErrorAs(t, batch.Lines[0], new(*InvalidError))
	assert.ErrorAs(t, batch.Lines[1], new(*json.SyntaxError))
}

func TestReadBatchSyntaxColumns(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"prompt":"猫`:           "column 12: not a JSON object: unexpected end",
		`春天的猫`:                   "column 1: not a JSON object: invalid character '春' looking for beginning of value",
		`{"prompt":"a"` + "\r\n": "column 13: not a JSON object: unexpected end",
		`{"prompt":"猫"} x`:       "column 16: ",
		`[{"prompt":"猫"}]`:       `request: [{"prompt":"猫"}]; allowed: a JSON object`,
		`{"prompt":"a` + "\t":    "column 13: ",
		"{\"prompt\":\"猫\xff":    "column 13: not UTF-8",
		"\xff\xfe{\x00":          "column 1: not UTF-8",
	} {
		assert.ErrorContains(t, readErr(t, text), "line 1: "+want, "%q", text)
	}
}

func TestBatchErrorIsCapped(t *testing.T) {
	t.Parallel()
	var in strings.Builder
	for n := range 53 {
		fmt.Fprintf(&in, "{\"prompt\":\"a\",\"n\":%d}\n", n+5)
	}
	lines := strings.Split(readErr(t, in.String()).Error(), "\n")
	require.Len(t, lines, 51)
	assert.Contains(t, lines[49], "line 50: n: 54")
	assert.Equal(t, "and 3 more", lines[50])
}

// The same mistake in many lines is one sentence.
func TestBatchErrorNamesEqualMistakesTogether(t *testing.T) {
	t.Parallel()
	const missing = ": prompt: missing; allowed: a description of the image"
	require.EqualError(t, readErr(t, strings.Repeat("{}\n", 3)), "lines 1, 2 and 3"+missing)
	require.EqualError(t, readErr(t, strings.Repeat("{}\n", 6)), "lines 1, 2, 3, 4, 5 and 6"+missing)
	err := readErr(t, "{}\n{\"prompt\":\"a\",\"n\":9}\n"+strings.Repeat("{}\n", 300))
	require.EqualError(t, err, "lines 1, 3, 4, 5, 6 and 296 more"+missing+"\nline 2: n: 9; allowed: 1 to 4")

	lines := func(yield func(SourceLine, error) bool) {
		_ = yield(SourceLine{Number: 4, Text: []byte("{}")}, nil) &&
			yield(SourceLine{}, LineError{Number: 7, Err: io.ErrUnexpectedEOF}) &&
			yield(SourceLine{Number: 9, Text: []byte(`{"prompt":"a","n":9}`), Problems: []FieldError{{Field: "n", Value: "9", Allowed: "1"}}}, nil)
	}
	_, err = ReadBatchLines(lines, BatchOptions{Name: "sheet", Unit: "row"})
	require.EqualError(t, err, "row 4"+missing+"\nrow 7: unexpected EOF\nrow 9: n: 9; allowed: 1")
}

func TestReadBatchDuplicateIDs(t *testing.T) {
	t.Parallel()
	err := readErr(t, `{"id":"a","prompt":"猫"}
{"id":"b","prompt":"猫"}
{"id":"a","prompt":"狗"}
{"id":" b ","prompt":"猫","priority":"bulk"}
{"id":"c","prompt":""}
{"id":"c","prompt":"猫"}`)
	assert.EqualError(t, err, `line 3: id: "a"; allowed: each id once; line 1 has the same id and another request
line 4: id: "b"; allowed: each id once; line 2 has the same id and the same request: delete one, or change its id to make it twice
line 5: prompt: missing; allowed: a description of the image
line 6: id: "c"; allowed: each id once; line 5 has the same id`)
}

// Where images are files, ids that some disks cannot tell apart are refused, with both lines.
func TestReadBatchIDsThatDifferInCase(t *testing.T) {
	t.Parallel()
	const text = `{"id":"A","prompt":"a red cup"}
{"id":"b","prompt":"a red cup"}
{"id":"a","prompt":"a blue cup"}`
	_, err := ReadBatch(strings.NewReader(text), BatchOptions{Name: "cups", Fold: strings.ToLower})
	require.EqualError(t, err, `line 3: id: "a"; allowed: each id once; the id of line 1 differs from it only in case, and their images would be one file on some disks: rename one of them`)
	batch, err := ReadBatch(strings.NewReader(text), BatchOptions{Name: "cups"})
	require.NoError(t, err)
	assert.Len(t, batch.Lines, 3)
}

// Names that look the same are the same, whichever system has written them.
func TestReadBatchNormalizesNames(t *testing.T) {
	t.Parallel()
	compose := strings.NewReplacer("e\u0301", "é").Replace
	text := "{\"id\":\"cafe\u0301\",\"prompt\":\"a\",\"redo_of\":\"cafe\u0301.1\"}\n{\"prompt\":\"cafe\u0301\"}"
	batch, err := ReadBatch(strings.NewReader(text), BatchOptions{Name: "cafe\u0301", Normalize: compose})
	require.NoError(t, err)
	assert.Equal(t, "café", batch.Name)
	assert.Equal(t, []string{"café", "café", "café.1"}, []string{batch.Lines[0].Request.Batch, batch.Lines[0].Request.LineID, batch.Lines[0].Request.RedoOf})
	assert.Equal(t, "café.café", batch.Lines[0].ID)
	assert.Equal(t, "cafe\u0301", batch.Lines[1].Request.Prompt, "the prompt is sent as it is")
	_, err = ReadBatch(strings.NewReader(text+"\n{\"id\":\"café\",\"prompt\":\"b\"}"), BatchOptions{Name: "café", Normalize: compose})
	require.ErrorContains(t, err, "line 1 has the same id and another request")
}

// An own id that was copied from a generated one is another job.
func TestReadBatchOwnIDLikeAGeneratedOne(t *testing.T) {
	t.Parallel()
	digest := Request{Prompt: "猫"}.Digest()
	err := readErr(t, `{"prompt":"猫"}`+"\n"+`{"id":"猫-`+digest[:12]+`","prompt":"狗"}`)
	assert.ErrorContains(t, err, "line 2: id: ")
	assert.ErrorContains(t, err, "line 1 has the same id and another request")
}

func TestReadBatchRedoOfItself(t *testing.T) {
	t.Parallel()
	assert.ErrorContains(t, readErr(t, `{"id":"a","prompt":"p","redo_of":"sheet.a"}`), `redo_of: "sheet.a"; allowed: another job`)
}

func TestReadBatchResolvesPaths(t *testing.T) {
	t.Parallel()
	name := "sha256:" + strings.Repeat("0a", 32)
	var staged []string
	opts := BatchOptions{Name: "sheet", Resolve: func(_, path string) (string, error) {
		staged = append(staged, path)
		if path == "gone.png" {
			return "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return name, nil
	}}
	in := `{"prompt":"a","ref_img":"./house.png"}
{"prompt":"b","sketch_image_url":" ./house.png "}
{"prompt":"c","ref_img":"file:///tmp/a.png"}
{"prompt":"d","ref_img":"C:\\图\\a.png"}
{"prompt":"e","ref_img":"https://example.com/a.png"}
{"prompt":"f","ref_img":"` + name + `"}`
	b, err := ReadBatch(strings.NewReader(in), opts)
	require.NoError(t, err)
	assert.Equal(t, []string{"./house.png", "/tmp/a.png", `C:\图\a.png`}, staged, "once per path; URLs and staged names never")
	for _, i := range []int{0, 1, 2, 3, 5} {
		assert.Equal(t, name, b.Lines[i].Request.RefImg)
	}
	assert.Equal(t, "https://example.com/a.png", b.Lines[4].Request.RefImg)
	assert.Contains(t, string(b.Lines[0].Raw), "./house.png", "the line stays as given")

	_, err = ReadBatch(strings.NewReader(`{"prompt":"a","ref_img":"gone.png","ref_strength":2}`), opts)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.EqualError(t, err, `line 1: ref_img: "gone.png": open gone.png: file does not exist | ref_strength: 2; allowed: 0.0 to 1.0`,
		"not that there is no reference image")

	_, err = ReadBatch(strings.NewReader(`{"prompt":"a","model":"wan2.7-image","ref_img":"./house.png","mask_image_url":"mask.png"}`), opts)
	assert.ErrorContains(t, err, `mask_image_url: "mask.png"; allowed: none: wan2.7-image takes no mask`, "not its staged name")

	for _, ref := range []string{"oss://a/b", "data:image/png;base64,AA", "sha256:12", "file://"} {
		_, err = ReadBatch(strings.NewReader(`{"prompt":"a","ref_img":"`+ref+`"}`), opts)
		assert.ErrorContains(t, err, "line 1: ref_img: ", ref)
	}
	assert.Len(t, staged, 6)
	assert.ErrorContains(t, readErr(t, in), "lines 1 and 2: ref_img: \"./house.png\"; allowed: an http or https URL", "without Resolve")
}

// A line with stage has the staged name of its reference. Each URL is staged once.
func TestReadBatchStages(t *testing.T) {
	t.Parallel()
	name := "sha256:" + strings.Repeat("0a", 32)
	var staged []string
	opts := BatchOptions{Name: "sheet", Stage: func(_, url string) (string, error) {
		staged = append(staged, url)
		if strings.Contains(url, "gone") {
			return "", errors.New("HTTP status 404")
		}
		return name, nil
	}}
	in := `{"prompt":"a","ref_img":"https://example.com/a.png?Signature=hush","stage":true}
{"prompt":"b","ref_img":"https://example.com/a.png?Signature=hush","stage":true}
{"prompt":"a","ref_img":"` + name + `","stage":true}
{"prompt":"c","ref_img":"https://example.com/c.png"}`
	b, err := ReadBatch(strings.NewReader(in), opts)
	require.NoError(t, err)
	assert.Equal(t, []string{"https://example.com/a.png?Signature=hush"}, staged)
	for _, line := range b.Lines {
		assert.False(t, line.Request.Stage, "it is done")
	}
	assert.Equal(t, name, b.Lines[0].Request.RefImg)
	assert.Equal(t, b.Lines[0].Digest, b.Lines[2].Digest, "the same bytes are the same job")
	assert.Equal(t, "https://example.com/c.png", b.Lines[3].Request.RefImg)

	_, err = ReadBatch(strings.NewReader(`{"prompt":"a","ref_img":"https://example.com/gone.png?Signature=hush","stage":true}`), opts)
	require.ErrorContains(t, err, "line 1: ref_img: ")
	require.ErrorContains(t, err, "HTTP status 404")
	assert.NotContains(t, err.Error(), "hush")
	assert.ErrorContains(t, readErr(t, in), "lines 1 and 2: ref_img: ", "without Stage")
}

func TestReadBatchLongLines(t *testing.T) {
	t.Parallel()
	fits := `{"prompt":"a","x":"` + strings.Repeat("x", maxLineBytes-22) + `"}`
	require.Len(t, fits, maxLineBytes-1)
	assert.Len(t, read(t, fits+"\n").Lines, 1, "with its line end it is just not too long")

	long := fits[:len(fits)-2] + `xxx"}`
	err := readErr(t, "{}\n"+long+"\n{}\n"+long)
	var batch *BatchError
	require.ErrorAs(t, err, &batch)
	require.Len(t, batch.Lines, 4, "what follows is read")
	for _, i := range []int{1, 3} {
		assert.Equal(t, i+1, batch.Lines[i].Number)
		assert.ErrorContains(t, batch.Lines[i], "longer than 1048576 bytes")
	}
}

// With Each the lines are delivered in order, and not collected.
func TestReadBatchEach(t *testing.T) {
	t.Parallel()
	var numbers []int
	opts := BatchOptions{Name: "sheet", Each: func(l Line) { numbers = append(numbers, l.Number) }}
	b, err := ReadBatch(strings.NewReader("{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\"}"), opts)
	require.NoError(t, err)
	assert.Empty(t, b.Lines)
	assert.Equal(t, []int{1, 3}, numbers)
	_, err = ReadBatch(strings.NewReader("{}\n{\"prompt\":\"b\"}"), opts)
	require.ErrorAs(t, err, new(*BatchError))
	_, err = ReadBatch(strings.NewReader("\n"), opts)
	require.ErrorContains(t, err, "it contains no request")
}

func TestReadBatchEmpty(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\n \r\n", "\ufeff\n"} {
		assert.EqualError(t, readErr(t, text), "read batch: it contains no request")
	}
	_, err := ReadBatch(strings.NewReader(`{"prompt":"a"}`), BatchOptions{})
	assert.ErrorContains(t, err, "the name is missing")
}

func TestReadBatchReaderFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken pipe")
	in := io.MultiReader(strings.NewReader("{\"prompt\":\"a\"}\n{\"pro"), iotest.ErrReader(broken))
	_, err := ReadBatch(in, BatchOptions{Name: "sheet"})
	assert.ErrorIs(t, err, broken)
	assert.ErrorContains(t, err, "line 2")
}
