package input

import (
	"archive/zip"
	"encoding/xml"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/xuri/excelize/v2"
)

// mergedCells is a range of cells that are shown as one, with columns from 0 and rows from 1.
type mergedCells struct{ left, right, top, bottom int }

// sheetExtras are what the rows of a sheet do not tell. They are read from its XML: excelize
// would keep the whole sheet in memory for them, and search it for each cell.
type sheetExtras struct {
	merged []mergedCells // by their first row
	// broken are the columns of formulas without a value, by row, as programs other than Excel
	// and WPS write them.
	broken map[int][]int
}

// scanSheet reads the extras of a sheet.
func scanSheet(archive *zip.Reader, name string) (sheetExtras, error) {
	extras := sheetExtras{broken: map[int][]int{}}
	file, err := sheetPath(archive, name)
	if err != nil {
		return extras, err
	}
	in, err := archive.Open(file)
	if err != nil {
		return extras, err
	}
	defer in.Close() //nolint:errcheck // read only
	err = extras.scan(xml.NewDecoder(in))
	slices.SortFunc(extras.merged, func(a, b mergedCells) int { return a.top - b.top })
	return extras, err
}

// scan reads the XML of a sheet. Rows and cells without a place follow the one before.
func (e *sheetExtras) scan(dec *xml.Decoder) error {
	dec.Strict = false
	row, column := 0, -1
	formula, value, isText, within := false, false, false, false
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch element := token.(type) {
		case xml.StartElement:
			switch element.Name.Local {
			case "row":
				row, column = row+1, -1
				if _, number, err := excelize.CellNameToCoordinates("A" + attribute(element.Attr, "r")); err == nil {
					row = number
				}
			case "c":
				column++
				if at, _, err := excelize.CellNameToCoordinates(attribute(element.Attr, "r")); err == nil {
					column = at - 1
				}
				formula, value, within = false, false, false
				isText = attribute(element.Attr, "t") == "str"
			case "f":
				formula = true
			case "v", "is": // openpyxl writes an empty value, Excel only that of an empty text
				within, value = true, value || isText
			case "mergeCell":
				e.addMerged(attribute(element.Attr, "ref"))
			}
		case xml.CharData:
			value = value || within && len(element) > 0
		case xml.EndElement:
			if element.Name.Local == "c" && formula && !value {
				e.broken[row] = append(e.broken[row], column)
			}
		}
	}
}

// addMerged adds a range such as A1:C2.
func (e *sheetExtras) addMerged(ref string) {
	start, end, _ := strings.Cut(ref, ":")
	left, top, err1 := excelize.CellNameToCoordinates(start)
	right, bottom, err2 := excelize.CellNameToCoordinates(end)
	if err1 == nil && err2 == nil {
		e.merged = append(e.merged, mergedCells{min(left, right) - 1, max(left, right) - 1, min(top, bottom), max(top, bottom)})
	}
}

// sheetPath returns the file of a sheet in the archive.
func sheetPath(archive *zip.Reader, name string) (string, error) {
	var book struct {
		Sheets []struct {
			Attrs []xml.Attr `xml:",any,attr"`
		} `xml:"sheets>sheet"`
	}
	var relations struct {
		List []struct {
			ID     string `xml:"Id,attr"`
			Target string `xml:"Target,attr"`
		} `xml:"Relationship"`
	}
	if err := errors.Join(readXML(archive, "xl/workbook.xml", &book), readXML(archive, "xl/_rels/workbook.xml.rels", &relations)); err != nil {
		return "", err
	}
	for _, s := range book.Sheets {
		if attribute(s.Attrs, "name") != name {
			continue
		}
		for _, r := range relations.List {
			if r.ID == attribute(s.Attrs, "id") {
				if strings.HasPrefix(r.Target, "/") {
					return strings.TrimPrefix(path.Clean(r.Target), "/"), nil
				}
				return path.Join("xl", r.Target), nil
			}
		}
	}
	return "", errors.New("its place in the file is not known")
}

func readXML(archive *zip.Reader, name string, v any) error {
	in, err := archive.Open(name)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // read only
	return xml.NewDecoder(in).Decode(v)
}

// attribute returns an attribute's value, whatever its namespace.
func attribute(list []xml.Attr, name string) string {
	for _, a := range list {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}
