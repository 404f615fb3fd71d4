package input

import (
	"archive/zip"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// Any bytes are read as lines that are the same when they are read again, or refused with an
// error that says why. Nothing panics.
func FuzzOpen(f *testing.F) {
	for _, content := range []string{
		"", "\ufeff", "{\"prompt\":\"猫\"}\n{\"prompt\":\"狗\",\"n\":2}\n", "[{\"prompt\":\"猫\"},\n\"狗\"]", "{\n\"prompt\":\n\"猫\"}",
		"{\"custom_id\":\"A\",\"method\":\"POST\",\"url\":\"/v1/images/generations\",\"body\":{\"prompt\":\"a\",\"quality\":\"hd\"}}",
		"编号,提示词,尺寸\r\nA-1,\"猫, \"\"黑\"\"\",1024×1024\r\n", "prompt\tn\ncat\t２\n", "sep=;\nprompt;size\ncat;1\n", "一只猫\n一只狗", "\"",
		"{\"prompt\":\"\xd2\xbb\xd6\xbb\xc3\xa8\"}\n", "\xcc\xe1\xca\xbe\xb4\xca\n\xc3\xa8\n", "\xff\xfe\x2b\x73\x0a\x00", "\xfe\xff\x73\x2b\x00\x0a", "PK\x03\x04",
	} {
		f.Add(content, "a.csv", "", "")
		f.Add(content, "a.txt", "{{.prompt}}, {{.style}}", "style=水彩,素描")
	}
	f.Add("animal\ncat\n", "-", "a {{.animal}}{{if .size}} x{{end}}", "n=1,2")
	f.Add("a,b\n1,2\n", "a.csv", "{{index . \"a\"}}", "b=x,\"y, z\"")
	f.Fuzz(func(t *testing.T, content, name, prompt, vary string) {
		if !utf8.ValidString(prompt + vary) {
			return // a terminal gives no such text
		}
		flags := Flags{Prompt: prompt}
		if vary != "" {
			flags.Vary = []string{vary}
		}
		checkFile(t, name, content, flags)
	})
}

// Any sheet in a workbook is read or refused.
func FuzzSheet(f *testing.F) {
	const start, end = `<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>`, `</worksheet>`
	for _, sheet := range []string{
		`<row r="1"><c r="A1" t="inlineStr"><is><t>prompt</t></is></c></row><row r="2" hidden="1"><c r="A2"><v>7</v></c></row></sheetData>`,
		`<row><c t="str"><v>提示词</v></c><c t="str"><v>n</v></c></row><row r="3"><c r="A3" t="e"><v>#N/A</v></c><c r="B3"><f>1+1</f></c></row></sheetData>`,
		`<row r="1"><c r="B1" t="s"><v>0</v></c></row></sheetData><mergeCells><mergeCell ref="A1:C2"/></mergeCells>`,
		`<row r="1048577"><c r="XFE1"><v>1e400</v></c></row></sheetData><mergeCells><mergeCell ref="C2:A1"/><mergeCell ref=""/></mergeCells>`,
	} {
		f.Add(sheet)
	}
	book := unzip(f, workbook(f, nil, nil))
	f.Fuzz(func(t *testing.T, sheet string) {
		book["xl/worksheets/sheet1.xml"] = start + sheet + end
		checkFile(t, "a.xlsx", zipped(t, book), Flags{})
	})
}

func unzip(tb testing.TB, content string) map[string]string {
	tb.Helper()
	archive, err := zip.NewReader(strings.NewReader(content), int64(len(content)))
	require.NoError(tb, err)
	files := map[string]string{}
	for _, file := range archive.File {
		text, err := fs.ReadFile(archive, file.Name)
		require.NoError(tb, err)
		files[file.Name] = string(text)
	}
	return files
}

func zipped(tb testing.TB, files map[string]string) string {
	tb.Helper()
	var out strings.Builder
	archive := zip.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := archive.CreateHeader(&zip.FileHeader{Name: name})
		require.NoError(tb, err)
		_, err = io.WriteString(w, files[name])
		require.NoError(tb, err)
	}
	require.NoError(tb, archive.Close())
	return out.String()
}

// checkFile reads a file, and its lines once more.
func checkFile(t *testing.T, name, content string, flags Flags) {
	t.Helper()
	o, err := flags.Parse()
	if err != nil {
		requireReason(t, err)
		return
	}
	s, err := Open(strings.NewReader(content), int64(len(content)), name, o)
	if err != nil {
		requireReason(t, err)
		return
	}
	defer func() { require.NoError(t, s.Close()) }()
	b, err := jobs.ReadBatchLines(s.Lines(), jobs.BatchOptions{Name: "sheet", Unit: s.Unit})
	if err != nil {
		requireReason(t, err)
		return
	}
	for _, l := range b.Lines {
		again, err := jobs.ReadBatch(strings.NewReader(string(l.Raw)), jobs.BatchOptions{Name: "sheet"})
		require.NoError(t, err, "%s", l.Raw)
		require.Equal(t, l.Digest, again.Lines[0].Digest)
	}
}

func requireReason(t *testing.T, err error) {
	t.Helper()
	require.NotEmpty(t, err.Error())
	require.True(t, utf8.ValidString(err.Error()), "%q", err.Error())
	var wrong *Error
	if errors.As(err, &wrong) {
		require.NotNil(t, wrong.Err)
	}
}
