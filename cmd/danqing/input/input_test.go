package input

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xuri/excelize/v2"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"

	"github.com/danqing-queue/danqing/jobs"
)

// batch is what a file is read as.
type batch struct {
	*Source
	lines []jobs.Line
	err   error
}

// readFile reads a file with a name.
func readFile(t *testing.T, name, content string, flags Flags) batch {
	t.Helper()
	o, err := flags.Parse()
	if err != nil {
		return batch{err: err}
	}
	s, err := Open(strings.NewReader(content), int64(len(content)), name, o)
	if err != nil {
		return batch{err: err}
	}
	defer func() { require.NoError(t, s.Close()) }()
	b, err := jobs.ReadBatchLines(s.Lines(), jobs.BatchOptions{Name: "sheet", Unit: s.Unit, Resolve: func(_, path string) (string, error) {
		return jobs.StagedPrefix + fmt.Sprintf("%064x", len(path)), nil
	}})
	if err != nil {
		return batch{Source: s, err: err}
	}
	return batch{Source: s, lines: b.Lines}
}

// raw are the lines, after their numbers.
func (b batch) raw(t *testing.T) string {
	t.Helper()
	require.NoError(t, b.err)
	var out strings.Builder
	for _, l := range b.lines {
		fmt.Fprintf(&out, "%d %s\n", l.Number, l.Raw)
	}
	return out.String()
}

// refusal is the error with its hint.
func (b batch) refusal(t *testing.T) string {
	t.Helper()
	require.Error(t, b.err)
	var wrong *Error
	if errors.As(b.err, &wrong) {
		return b.err.Error() + " → " + wrong.Hint
	}
	return b.err.Error()
}

// workbook makes an .xlsx file. change may change it before it is written.
func workbook(tb testing.TB, rows [][]any, change func(*excelize.File)) string {
	tb.Helper()
	book := excelize.NewFile()
	for i, cells := range rows {
		require.NoError(tb, book.SetSheetRow("Sheet1", fmt.Sprintf("A%d", i+1), &cells))
	}
	if change != nil {
		change(book)
	}
	var out bytes.Buffer
	require.NoError(tb, book.Write(&out))
	require.NoError(tb, book.Close())
	return out.String()
}

func csvText(t *testing.T, comma rune, rows [][]string) string {
	t.Helper()
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	w.Comma, w.UseCRLF = comma, true
	require.NoError(t, w.WriteAll(rows))
	return out.String()
}

// The same 300 rows make the same prompts from every program, without a flag.
func TestSameRowsFromEveryProgram(t *testing.T) {
	t.Parallel()
	table := [][]string{{"编号", "提示词", "尺寸", "数量", "备注"}}
	cells := [][]any{{"编号", "提示词", "尺寸", "数量", "备注"}}
	var prompts []string
	list := chinesePrompts(t)[:300]
	for i, prompt := range list {
		n := i%4 + 1
		r := []string{fmt.Sprintf("A-%03d", i+1), prompt, []string{"1024*1024", "720*1280", ""}[i%3], fmt.Sprint(n), "第" + fmt.Sprint(i) + "行, \"x\""}
		table = append(table, r)
		cells = append(cells, []any{r[0], r[1], r[2], n, r[4]})
		prompts = append(prompts, prompt)
	}
	comma := csvText(t, ',', table)
	utf16le := unicode.UTF16(unicode.LittleEndian, unicode.UseBOM)
	want := readFile(t, "a.csv", comma, Flags{})
	require.NoError(t, want.err)
	require.Len(t, want.lines, 300)
	assert.Equal(t, 2, want.lines[0].Number)
	for name, content := range map[string]string{
		"excel.xlsx": workbook(t, cells, nil), "gbk.csv": string(encode(t, simplifiedchinese.GBK, comma)), "utf8-bom.csv": "\ufeff" + comma,
		"table.tsv": csvText(t, '\t', table), "unicode.txt": string(encode(t, utf16le, csvText(t, '\t', table))), "semicolon.csv": csvText(t, ';', table),
		"csv.txt": comma, "-": comma, "wrong.jsonl": comma, "sep.csv": "sep=;\r\n" + csvText(t, ';', table),
	} {
		got := readFile(t, name, content, Flags{})
		require.NoError(t, got.err, name)
		require.Len(t, got.lines, 300, name)
		assert.Equal(t, "row", got.Unit, name)
		assert.Equal(t, want.Columns, got.Columns, name)
		for i := range want.lines {
			require.Equal(t, string(want.lines[i].Raw), string(got.lines[i].Raw), name)
			require.Equal(t, want.lines[i].Digest, got.lines[i].Digest, name)
		}
	}
	text := strings.Join(prompts, "\r\n")
	for name, content := range map[string]string{"text.txt": text, "gbk.txt": string(encode(t, simplifiedchinese.GBK, text)), "one-column.xlsx": workbook(t, column(prompts), nil), "one-column.csv": csvText(t, ',', oneColumn(prompts))} {
		got := readFile(t, name, content, Flags{})
		require.NoError(t, got.err, name)
		require.Len(t, got.lines, 300, name)
		for i, prompt := range prompts {
			require.Equal(t, prompt, got.lines[i].Request.Prompt, name)
			require.Equal(t, i+1, got.lines[i].Number, name)
		}
	}
}

func column(texts []string) (rows [][]any) {
	for _, text := range texts {
		rows = append(rows, []any{text})
	}
	return rows
}

func oneColumn(texts []string) (rows [][]string) {
	for _, text := range texts {
		rows = append(rows, []string{text})
	}
	return rows
}

// The format is found from the content, whatever the name says.
func TestFormats(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, content, want string }{
		{"a.jsonl", "{\"prompt\":\"猫\"}\n\n{\"prompt\":\"狗\",\"sku\":1.50}\n", "1 {\"prompt\":\"猫\"}\n3 {\"prompt\":\"狗\",\"sku\":1.50}\n"},
		{"a.txt", "{\"prompt\":\"猫\"}\n", "1 {\"prompt\":\"猫\"}\n"},
		{"a.csv", "\ufeff{\"prompt\": \"猫\"}\r\n", "1 {\"prompt\":\"猫\"}\n"},
		{"a.json", "[\n  {\n    \"prompt\": \"猫\"\n  },\n  {\"prompt\": \"狗\"}\n]\n", "2 {\"prompt\":\"猫\"}\n5 {\"prompt\":\"狗\"}\n"},
		{"a.json", "[{\"prompt\":\"猫\"},{\"prompt\":\"狗\"}]", "1 {\"prompt\":\"猫\"}\n2 {\"prompt\":\"狗\"}\n"},
		{"a.json", "[\"猫\",\n\"狗\"]", "1 {\"prompt\":\"猫\"}\n2 {\"prompt\":\"狗\"}\n"},
		{"a.jsonl", "{\n\"prompt\": \"猫\"\n}\n{\n\"prompt\": \"狗\"\n}\n", "1 {\"prompt\":\"猫\"}\n4 {\"prompt\":\"狗\"}\n"},
		{"a.jsonl", "{\"model\":\"wanx-v1\",\"input\":{\"prompt\":\"猫\"},\"parameters\":{\"n\":2}}\n", "1 {\"model\":\"wanx-v1\",\"input\":{\"prompt\":\"猫\"},\"parameters\":{\"n\":2}}\n"},
		{"a.txt", "a cat, black\n\n  一只狗，白色  \r\n[red] bird\n", "1 {\"prompt\":\"a cat, black\"}\n3 {\"prompt\":\"一只狗，白色\"}\n4 {\"prompt\":\"[red] bird\"}\n"},
		{"-", "a cat, black\na dog, white\n", "1 {\"prompt\":\"a cat, black\"}\n2 {\"prompt\":\"a dog, white\"}\n"},
		{"a.txt", "提示词\n一只猫, 黑色\n", "2 {\"prompt\":\"一只猫, 黑色\"}\n"},
		{"a.csv", "一只猫\n\"一只狗, 白色\"\n", "1 {\"prompt\":\"一只猫\"}\n2 {\"prompt\":\"一只狗, 白色\"}\n"},
		{"a.csv", "prompt;size\na cat, black;720*1280\n", "2 {\"prompt\":\"a cat, black\",\"size\":\"720*1280\"}\n"},
		{"a.csv", "Prompt , SIZE\na cat,720 x 1280\n", "2 {\"prompt\":\"a cat\",\"size\":\"720*1280\"}\n"},
		{"a.csv", "prompt\r\"a cat\non two lines\"\ra dog", "2 {\"prompt\":\"a cat\\non two lines\"}\n3 {\"prompt\":\"a dog\"}\n"},
		{"a.csv", "prompt,negative prompt,n,seed,ref_strength,ref_img\na 5\" cat,text,２,\"1,234\",60%,a.png\n", "2 {\"prompt\":\"a 5\\\" cat\",\"negative_prompt\":\"text\",\"n\":2,\"seed\":1234,\"ref_strength\":0.6,\"ref_img\":\"a.png\"}\n"},
		{"a.csv", "提示词（必填）,数量(张)\n猫,3张\n狗,2.0\n", "2 {\"prompt\":\"猫\",\"n\":3}\n3 {\"prompt\":\"狗\",\"n\":2}\n"},
		{"a.csv", "提示词,描述,序号\n猫,黑猫,1\n", "2 {\"prompt\":\"猫\",\"描述\":\"黑猫\",\"序号\":\"1\"}\n"},
		{"a.csv", "提示词,备注,备注,\n猫,a,b,c\n", "2 {\"prompt\":\"猫\",\"备注\":\"a\",\"备注 (own)\":\"b\",\"column D\":\"c\"}\n"},
		{"a.csv", "春季主图,,\n,,\n文案,画风,\nprompt,style,\n猫,水彩,x\n", "5 {\"prompt\":\"猫\",\"style\":\"水彩\",\"column C\":\"x\"}\n"},
	} {
		assert.Equal(t, c.want, readFile(t, c.name, c.content, Flags{}).raw(t), "%s: %s", c.name, c.content)
	}
}

// What is not read is refused in one sentence that says what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, content, want string }{
		{"a.xls", "\xd0\xcf\x11\xe0\xa1\xb1", "it is an old Office file (.xls, .et, .doc), or one with a password, which is not read → open it in Excel or WPS, and save it as .xlsx, without a password"},
		{"a.xls", "<html><table>", "it is a web page"},
		{"a.pdf", "%PDF-1.7", "it is a PDF"},
		{"a.png", "\x89PNG\r\n\x1a\n", "it is a picture"},
		{"a.gz", "\x1f\x8b\x08", "it is a compressed file"},
		{"a.xlsx", "PK\x03\x04 and nothing", "it begins as an .xlsx or zip file, and is damaged"},
		{"a.bin", "\x00\x01\x02\x03", "it is no text"},
		{"a.md", "# Title\n\ntext\n", "a file .md has no known format, and what is in it does not tell → say --format text"},
		{"a.csv", "名称,卖点\n茶杯,白瓷\n", "no column is known to have the prompts; the first row is: 名称, 卖点 → name the column in its first row prompt, or 提示词; or say which one it is, as in: --map \"名称=prompt\""},
		{"a.txt", "名称\t卖点\n茶杯\t白瓷\n", "no column is known to have the prompts"},
		{"a.csv", "a cat, on a mat\na dog\n", "no column is known to have the prompts; the first row is: a cat, on a mat"},
		{"a.csv", "提示词，尺寸\n猫，1024*1024\n", "its columns are separated by Chinese commas"},
		{"a.csv", "prompt,size\ncat,1*1\ndog,1*1\n", "rows 2 and 3: size: \"1*1\""},
		{"a.csv", "prompt,n\ncat,two\n", "row 2: n: \"two\"; allowed: a whole number"},
		{"a.csv", "prompt,n,备注\ncat,1,\n,,合计\n", "row 3: prompt: missing"},
		{"a.csv", "prompt,size\n\"cat,1\n", "row 2: column A: a quotation mark begins a text that does not end"},
		{"a.csv", "prompt,size\n\"a \"big\" cat\",1024*1024\n", "row 2: column A: after the closing quotation mark comes 'b'; write a quotation mark within a quoted text twice"},
		{"a.csv", "prompt,宽,高\ncat,1,2\n", "row 1, column B: 宽 would have no effect; use \"size\", as in \"1024*1024\" → if the column is your own: --map \"宽=-\""},
		{"a.csv", "prompt,num images\ncat,1\n", "num images would have no effect; use \"n\""},
		{"a.csv", "prompt,CFG Scale\ncat,1\n", "CFG Scale would have no effect; DashScope has no such parameter"},
		{"a.csv", "promt,size\ncat,1024*1024\n", "no column is known to have the prompts"},
		{"a.csv", "prompt,stile\ncat,x\n", "row 1, column B: stile would have no effect; did you mean \"style\"?"},
		{"a.csv", "提示词,prompt\ncat,x\n", "row 1: two columns have the prompt: 提示词 (column A) and prompt (column B) → keep one of them out: --map \"prompt=-\""},
		{"a.csv", "提示词,风格\n#N/A,\n猫,#REF!\n", "row 2: prompt: \"#N/A\"; allowed: a value: this is the error of a formula"},
		{"a.csv", "id,prompt\nA,猫\nA,狗\n", "row 3: id: \"A\"; allowed: each id once; row 2 has the same id and another request"},
		{"a.json", "[{\"prompt\":\"猫\"},\n{\"prompt\":}]", "line 2: not JSON: invalid character '}'"},
		{"a.json", "[{\"prompt\":\"猫\"}", "line 1: not JSON: the file ends within an object or a list"},
		{"a.json", "[{\"prompt\":\"猫\"}] x", "line 1: not JSON"},
		{"a.json", "[{\"prompt\":\"猫\"},[1],{\"prompt\":\"\"}]", "item 2: request: [1]; allowed: a JSON object"},
		{"a.jsonl", "{\"prompt\":\"猫\"}\n{\"prompt\":\n", "line 2: column 10: not a JSON object"},
		{"a.csv", "编号,提示词\n1,a cat, black\n", "row 2: cells: 3; allowed: 2, as the header has; put quotation marks around a text with a separator in it"},
		{"a.csv", "id,prompt\n1, \"a cat, black\"\n", "row 2: cells: 3"},
		{"a.csv", strings.Repeat("a cat\n", 30) + "a cat, black\n", "row 31: cells: 2; allowed: 1"},
		{"a.txt", "prompt\tsize\na cat\t1024*1024\ta\n", "row 2: cells: 3"},
		{"a.txt", "cat, photo\nposter, text\nbook, cover\n", "it has two readings: a table with the header in row 2, or a text with a prompt a line → say --format csv, or --format text"},
		{"a.csv", "", "it contains no request"},
		{"a.csv", "prompt,size\n", "it contains no request"},
	} {
		assert.Contains(t, readFile(t, c.name, c.content, Flags{}).refusal(t), c.want, "%s: %s", c.name, c.content)
	}
}
