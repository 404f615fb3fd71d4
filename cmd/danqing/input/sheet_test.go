package input

import (
	"archive/zip"
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xuri/excelize/v2"
)

// A sheet is read as a person sees it: numbers and dates in their format, formulas as their
// values, merged cells in each row, hidden rows not at all.
func TestSheet(t *testing.T) {
	t.Parallel()
	content := workbook(t, [][]any{
		{"春季主图需求"},
		{nil},
		{"编号", "提示词", "风格", "张数", "日期", "价格", "合计"},
		{"007", "猫", "水彩", 2, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), 19.9, nil},
		{8, "狗", nil, 1.0, nil, 20, nil},
		{9, "藏", "素描", 1},
		{10, "鸟", "素描", 1},
		{11, "鱼", "素描", 1},
	}, func(f *excelize.File) {
		require.NoError(t, f.MergeCell("Sheet1", "A1", "G1"))
		require.NoError(t, f.MergeCell("Sheet1", "C8", "C20"))
		require.NoError(t, f.MergeCell("Sheet1", "C4", "C5"))
		require.NoError(t, f.SetRowVisible("Sheet1", 6, false))
		price, err := f.NewStyle(&excelize.Style{CustomNumFmt: new("¥#,##0.00")})
		require.NoError(t, err)
		require.NoError(t, f.SetCellStyle("Sheet1", "F4", "F5", price))
		date, err := f.NewStyle(&excelize.Style{NumFmt: 14}) // the everyday one
		require.NoError(t, err)
		require.NoError(t, f.SetCellStyle("Sheet1", "E4", "E4", date))
		require.NoError(t, f.SetCellFormula("Sheet1", "G4", "F4*2"))
		require.NoError(t, f.UpdateLinkedValue())
	})
	got := readFile(t, "a.xlsx", content, Flags{})
	assert.Equal(t, `4 {"id":"007","prompt":"猫","style":"水彩","n":2,"日期":"2026-03-01","价格":"¥19.90"}
5 {"id":"8","prompt":"狗","style":"水彩","n":1,"价格":"¥20.00"}
7 {"id":"10","prompt":"鸟","style":"素描","n":1}
8 {"id":"11","prompt":"鱼","style":"素描","n":1}
`, got.raw(t))
	assert.Equal(t, []string{"the header is row 3; 编号 → id, 提示词 → prompt, 风格 → style, 张数 → n; kept for the results: 日期, 价格, 合计"}, got.Notes)
	assert.Equal(t, []string{"1 hidden rows are left out; --hidden-rows takes them too"}, got.Warnings())
	all := readFile(t, "a.xlsx", content, Flags{HiddenRows: true})
	assert.Contains(t, all.raw(t), `6 {"id":"9","prompt":"藏"`)
	assert.Empty(t, all.Warnings())
}

// A tall cell is one prompt: the rows below it are jobs only if they have something of their own.
func TestMergedPrompts(t *testing.T) {
	t.Parallel()
	rows := [][]any{{"提示词", "尺寸", "备注"}, {"猫", "1024*1024"}, {nil, "720*1280"}, {nil}, {"狗"}, {nil}}
	tall := func(f *excelize.File) {
		require.NoError(t, f.MergeCell("Sheet1", "A2", "A4"))
		require.NoError(t, f.MergeCell("Sheet1", "A5", "A6"))
		require.NoError(t, f.SetRowHeight("Sheet1", 6, 30))
	}
	assert.Equal(t, `2 {"prompt":"猫","size":"1024*1024"}
3 {"prompt":"猫","size":"720*1280"}
5 {"prompt":"狗"}
`, readFile(t, "a.xlsx", workbook(t, rows, tall), Flags{}).raw(t))

	rows[5] = []any{nil, nil, "白色更好"}
	assert.Contains(t, readFile(t, "a.xlsx", workbook(t, rows, tall), Flags{}).refusal(t), "row 6: prompt: merged with the row above; the same would be made twice: unmerge the cell, or leave this row empty")
}

func TestSheetErrors(t *testing.T) {
	t.Parallel()
	merged := workbook(t, [][]any{{"提示词", "尺寸", "备注"}, {"猫", "1024*1024"}, {"春季系列"}, {"狗"}}, func(f *excelize.File) {
		require.NoError(t, f.MergeCell("Sheet1", "A3", "C3"))
	})
	assert.Contains(t, readFile(t, "a.xlsx", merged, Flags{}).refusal(t), "row 3: prompt: \"春季系列\"; the cell is merged over several columns, as a heading is: delete the row, or unmerge it")

	formula := workbook(t, [][]any{{"提示词", "尺寸"}, {"猫", nil}, {"狗", "1024*1024"}}, func(f *excelize.File) {
		require.NoError(t, f.SetCellFormula("Sheet1", "B2", `"720"&"*"&"1280"`))
	})
	assert.Contains(t, readFile(t, "a.xlsx", formula, Flags{}).refusal(t), "row 2: size: a formula; its value is not in the file: open it in Excel or WPS, and save it again")

	alone := workbook(t, [][]any{{"提示词"}, {"猫"}}, func(f *excelize.File) {
		require.NoError(t, f.SetCellFormula("Sheet1", "A3", `A2&"狗"`))
	})
	assert.Contains(t, readFile(t, "a.xlsx", alone, Flags{}).refusal(t), "row 3: prompt: a formula")

	book := unzip(t, workbook(t, nil, nil)) // as openpyxl writes it, and as Excel writes an empty text
	book["xl/worksheets/sheet1.xml"] = `<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>` +
		`<row r="1"><c r="A1" t="str"><v>prompt</v></c><c r="B1" t="str"><v>style</v></c><c r="C1" t="str"><v>n</v></c></row>` +
		`<row r="2"><c r="A2" t="str"><v>cat</v></c><c r="B2" t="str"><f>""</f><v></v></c><c r="C2"><f>1+1</f><v /></c></row></sheetData></worksheet>`
	assert.Equal(t, "row 2: n: a formula; its value is not in the file: open it in Excel or WPS, and save it again", readFile(t, "a.xlsx", zipped(t, book), Flags{}).refusal(t))

	picture := workbook(t, [][]any{{"提示词", "参考图"}, {"猫", `=DISPIMG("ID_1",1)`}}, nil)
	assert.Contains(t, readFile(t, "a.xlsx", picture, Flags{}).refusal(t), "this is a picture in the cell")
}

// The first visible sheet is read, or the one that is named.
func TestSheets(t *testing.T) {
	t.Parallel()
	content := workbook(t, [][]any{{"说明"}, {"第一列", "x"}}, func(f *excelize.File) {
		for _, name := range []string{"主图", "隐藏"} {
			_, err := f.NewSheet(name)
			require.NoError(t, err)
			require.NoError(t, f.SetSheetCol(name, "A1", &[]string{"提示词", name}))
		}
		require.NoError(t, f.SetSheetVisible("隐藏", false))
	})
	assert.Contains(t, readFile(t, "a.xlsx", content, Flags{}).refusal(t), "the first sheet, Sheet1, has no column that is known to have the prompts, and the sheet 主图 has one → name the sheet: --sheet 主图")
	assert.Equal(t, "2 {\"prompt\":\"主图\"}\n", readFile(t, "a.xlsx", content, Flags{Sheet: " 主图"}).raw(t))
	assert.Equal(t, "2 {\"prompt\":\"隐藏\"}\n", readFile(t, "a.xlsx", content, Flags{Sheet: "隐藏"}).raw(t))
	assert.Contains(t, readFile(t, "a.xlsx", content, Flags{Sheet: "x"}).refusal(t), "--sheet x: there is none; the sheets are: Sheet1, 主图, 隐藏")
	hidden := workbook(t, [][]any{{"x"}}, func(f *excelize.File) {
		_, err := f.NewSheet("主图")
		require.NoError(t, err)
		require.NoError(t, f.SetSheetCol("主图", "A1", &[]string{"提示词", "猫"}))
		f.SetActiveSheet(1)
		require.NoError(t, f.SetSheetVisible("Sheet1", false))
	})
	assert.Equal(t, "2 {\"prompt\":\"猫\"}\n", readFile(t, "a.xlsx", hidden, Flags{}).raw(t))
	assert.Contains(t, readFile(t, "a.xlsx", workbook(t, nil, nil), Flags{}).refusal(t), "the sheet Sheet1 is empty")
}

// Other formats that are zip archives are refused with what to save them as.
func TestArchives(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"word/document.xml": "it is a Word file (.docx)", "Index/Document.iwa": "it is a file of Numbers or Pages", "xl/workbook.bin": "it is a binary Excel file (.xlsb)",
		"ppt/presentation.xml": "it is a presentation", "prompts.csv": "it is a zip archive, which is not read → unpack it, and name the file in it",
		"xl/workbook.xml": "the .xlsx file cannot be read",
	} {
		var out bytes.Buffer
		w := zip.NewWriter(&out)
		_, err := w.Create(file)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		assert.Contains(t, readFile(t, "a.xlsx", out.String(), Flags{}).refusal(t), want)
	}
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, name := range []string{"mimetype", "content.xml"} {
		_, err := w.Create(name)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	assert.Contains(t, readFile(t, "a.ods", out.String(), Flags{}).refusal(t), "it is an OpenDocument file (.ods, .odt), which is not read → save it as .xlsx")
}
