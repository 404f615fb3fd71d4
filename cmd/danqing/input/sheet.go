package input

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/xuri/excelize/v2"
)

// openZip opens an .xlsx file, and refuses other files that are zip archives.
func (o *Options) openZip(file io.ReaderAt, size int64) (*Source, error) {
	archive, err := zip.NewReader(file, size)
	if err != nil {
		return nil, errorf("copy it again, or save it again as .xlsx", "it begins as an .xlsx or zip file, and is damaged: %w", err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(archive.File, func(f *zip.File) bool { return strings.EqualFold(f.Name, name) })
	}
	refuse := func(what, hint string) (*Source, error) {
		return nil, errorf(hint, "it is %s, which is not read", what)
	}
	switch {
	case has("xl/workbook.xml"):
		return o.openWorkbook(archive, io.NewSectionReader(file, 0, size))
	case has("xl/workbook.bin"):
		return refuse("a binary Excel file (.xlsb)", "open it in Excel, and save it as .xlsx")
	case has("word/document.xml"):
		return refuse("a Word file (.docx)", "copy the prompts into a table, or save it as plain text (.txt, UTF-8) with a prompt a line")
	case has("ppt/presentation.xml"):
		return refuse("a presentation (.pptx)", "copy the prompts into a table or a text file")
	case has("Index/Document.iwa") || has("Index.zip"):
		return refuse("a file of Numbers or Pages", "in Numbers: File, Export To, Excel")
	case has("mimetype") && has("content.xml"):
		return refuse("an OpenDocument file (.ods, .odt)", saveAsTable)
	}
	return refuse("a zip archive", "unpack it, and name the file in it")
}

// spreadsheet is an .xlsx file.
type spreadsheet struct {
	archive *zip.Reader
	book    *excelize.File
}

// openWorkbook opens a sheet of an .xlsx file.
func (o *Options) openWorkbook(archive *zip.Reader, file io.Reader) (*Source, error) {
	book, err := excelize.OpenReader(file, excelize.Options{
		CultureInfo: excelize.CultureNameZhCN, ShortDatePattern: "yyyy-mm-dd", LongDatePattern: "yyyy-mm-dd", LongTimePattern: "hh:mm:ss",
	})
	if err != nil {
		return nil, errorf("open it in Excel or WPS, and save it again as .xlsx", "the .xlsx file cannot be read: %w", err)
	}
	s, err := o.openSheet(&spreadsheet{archive, book})
	if err != nil {
		return nil, errors.Join(err, book.Close())
	}
	s.close = book.Close
	return s, nil
}

// openSheet opens the sheet that the options name, or the first visible one.
func (o *Options) openSheet(file *spreadsheet) (*Source, error) {
	book := file.book
	var visible []string
	for _, name := range book.GetSheetList() {
		if shown, err := book.GetSheetVisible(name); err == nil && shown {
			visible = append(visible, name)
		}
	}
	name := o.Sheet
	switch {
	case name != "":
		at := slices.IndexFunc(book.GetSheetList(), func(sheet string) bool { return headerKey(sheet) == headerKey(name) })
		if at < 0 {
			return nil, errorf("name one of them", "--sheet %s: there is none; the sheets are: %s", name, listed(book.GetSheetList()))
		}
		name = book.GetSheetList()[at]
	case len(visible) == 0:
		return nil, errorf("", "it has no visible sheet")
	default:
		name = visible[0]
	}
	w, err := file.sheet(name)
	if err != nil {
		return nil, err
	}
	first, err := firstRows(w.rows)
	if err != nil {
		return nil, err
	}
	h, err := o.findHeader(first)
	if err != nil {
		return nil, err
	}
	if h == nil {
		if h, err = o.singleColumn(first, visible, file, name); err != nil {
			return nil, err
		}
	}
	s := o.openTable(h, w.rows)
	if len(visible) > 1 && o.Sheet == "" {
		s.Notes = append([]string{fmt.Sprintf("sheet %s; --sheet names another of: %s", name, listed(visible))}, s.Notes...)
	}
	return s, nil
}

// singleColumn is the header of a sheet without one: all rows of a single column are prompts.
func (o *Options) singleColumn(first []row, visible []string, file *spreadsheet, name string) (*header, error) {
	wide := slices.ContainsFunc(first, func(r row) bool { return len(r.cells) > 1 })
	filled := slices.ContainsFunc(first, func(r row) bool { return !r.empty() })
	for _, other := range visible {
		if other == name || o.Sheet != "" {
			continue
		}
		w, err := file.sheet(other)
		if err != nil {
			continue
		}
		if rows, err := firstRows(w.rows); err == nil {
			if h, _ := o.findHeader(rows); h != nil {
				return nil, errorf("name the sheet: --sheet "+other, "the first sheet, %s, has no column that is known to have the prompts, and the sheet %s has one", name, other)
			}
		}
	}
	switch {
	case !filled:
		return nil, errorf("--sheet names another", "the sheet %s is empty", name)
	case wide || o.needsColumns():
		return nil, o.errNoHeader(first)
	}
	return &header{columns: []headerColumn{{Column: Column{Header: "prompt", Name: "prompt"}, field: "prompt"}}}, nil
}

// sheet is a sheet of a workbook.
type sheet struct {
	sheetExtras
	book *excelize.File
	name string
}

func (w *spreadsheet) sheet(name string) (*sheet, error) {
	extras, err := scanSheet(w.archive, name)
	if err != nil {
		return nil, errorf("open it in Excel or WPS, and save it again as .xlsx", "the sheet %s cannot be read: %w", name, err)
	}
	return &sheet{extras, w.book, name}, nil
}

// rows reads the rows of the sheet as a person sees them: numbers and dates in their format,
// formulas as their values. A cell that is merged over several rows is in each of them that has
// a cell of its own: else a tall cell would be several jobs.
func (w *sheet) rows(yield func(row, error) bool) {
	list, err := w.book.Rows(w.name)
	if err != nil {
		yield(row{}, err)
		return
	}
	defer list.Close() //nolint:errcheck // read only
	above := map[int]string{}
	merged := w.merged
	var open []mergedCells
	for number := 1; list.Next(); number++ {
		cells, err := list.Columns()
		if err != nil {
			yield(row{}, fmt.Errorf("row %d: %w", number, err))
			return
		}
		r := row{number: number, cells: cells, hidden: list.GetRowOpts().Hidden}
		for len(merged) > 0 && merged[0].top <= number {
			open, merged = append(open, merged[0]), merged[1:]
		}
		open = slices.DeleteFunc(open, func(m mergedCells) bool { return m.bottom < number })
		own := !r.empty()
		for _, m := range open {
			r.merge(m, above, own)
		}
		r.broken = w.broken[number]
		if !yield(r, nil) {
			return
		}
	}
	if err := list.Error(); err != nil {
		yield(row{}, err)
	}
}

// merge gives a row the text of a cell that is merged with it. above has the texts of merged
// cells by their column; own is set if the row has a cell of its own.
func (r *row) merge(m mergedCells, above map[int]string, own bool) {
	if m.right > m.left {
		for column := m.left; column <= m.right; column++ {
			r.wide = append(r.wide, column)
		}
	}
	switch {
	case r.number > m.top && !own:
	case r.number > m.top:
		r.below = append(r.below, m.left)
		for len(r.cells) <= m.left {
			r.cells = append(r.cells, "")
		}
		r.cells[m.left] = above[m.left]
	case m.left < len(r.cells):
		above[m.left] = r.cells[m.left]
	default:
		above[m.left] = ""
	}
}
