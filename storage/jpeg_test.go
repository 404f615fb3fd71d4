package storage

import (
	"bytes"
	"image/jpeg"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// segment returns a JPEG's segment.
func segment(marker byte, content string) string {
	n := len(content) + 2
	return string([]byte{0xFF, marker, byte(n >> 8), byte(n)}) + content
}

const (
	soi = "\xff\xd8"
	eoi = "\xff\xd9"
	// sofData is of 512×256 in three components, scanData begins a scan of them.
	sofData  = "\x08\x01\x00\x02\x00\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
	scanData = "\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
)

func TestJPEGWalk(t *testing.T) {
	t.Parallel()
	sof, sos := segment(jpegSOF0, sofData), segment(jpegSOS, scanData)
	tables := segment(jpegDQT, "q") + segment(jpegDHT, "h")
	frame := soi + tables + sof
	restarts := frame + segment(jpegDRI, "\x00\x01") + sos
	one := func(id string) string { return segment(jpegSOS, "\x01"+id+"\x00\x00\x3f\x00") }
	gray := segment(jpegSOF0, "\x08\x01\x00\x02\x00\x01\x01\x11\x00")
	for name, c := range map[string]struct{ content, want string }{
		"least":                   {content: frame + sos + "data" + eoi},
		"extended":                {content: soi + tables + segment(0xC1, sofData) + sos + "data" + eoi},
		"progressive":             {content: soi + tables + segment(jpegSOF2, sofData) + sos + "a" + segment(jpegDHT, "h") + sos + "b" + eoi},
		"fill bytes":              {content: soi + "\xff\xff" + tables + sof + sos + "data\xff\xff" + eoi},
		"stuffed":                 {content: frame + sos + "\xff\x00a\xff\x00" + eoi},
		"metadata":                {content: soi + segment(jpegAPP0, "JFIF") + segment(jpegCOM, "") + tables + sof + segment(jpegAPPF, "x") + sos + "data" + eoi},
		"thumbnail":               {content: soi + segment(0xE1, "Exif\x00\x00"+frame+sos+"small"+eoi) + tables + sof + sos + "data" + eoi},
		"restarts":                {content: restarts + "0\xff\xd01\xff\xd12\xff\xd23\xff\xd34\xff\xd45\xff\xd56\xff\xd67\xff\xd78\xff\xd09" + eoi},
		"a scan a component":      {content: frame + one("\x01") + "a" + one("\x02") + "b" + one("\x03") + "c" + eoi},
		"signature alone":         {content: soi, want: "ends before"},
		"half a marker":           {content: frame + sos + "data\xff", want: "ends before"},
		"thumbnail's end":         {content: soi + segment(0xE1, frame+sos+"small"+eoi), want: "ends before"},
		"no end":                  {content: frame + sos + "data", want: "ends before"},
		"end within a segment":    {content: soi + tables + "\xff\xc0\x00\x11" + sofData[:7] + eoi, want: "ends before"},
		"end before the scan":     {content: frame + eoi, want: "comes before its image data"},
		"end before all":          {content: soi + eoi, want: "comes before its image data"},
		"a component is missing":  {content: frame + one("\x01") + "a" + one("\x03") + "c" + eoi, want: "comes before its image data"},
		"an empty scan":           {content: frame + sos + eoi, want: "a JPEG scan has no data"},
		"an empty second scan":    {content: soi + tables + segment(jpegSOF2, sofData) + sos + "a" + sos + eoi, want: "a JPEG scan has no data"},
		"scan before the frame":   {content: soi + tables + sos + "data" + eoi, want: "before its frame or its tables"},
		"no Huffman table":        {content: soi + segment(jpegDQT, "q") + sof + sos + "data" + eoi, want: "before its frame or its tables"},
		"no quantization table":   {content: soi + segment(jpegDHT, "h") + sof + sos + "data" + eoi, want: "before its frame or its tables"},
		"two frames":              {content: frame + sof + sos + "data" + eoi, want: "second frame"},
		"two images":              {content: frame + sos + "data" + eoi + soi, want: "after the EOI marker"},
		"an image within":         {content: frame + sos + "data" + soi + eoi, want: "unexpected marker FFD8"},
		"more behind":             {content: frame + sos + "data" + eoi + "\n", want: "after the EOI marker"},
		"lossless":                {content: soi + tables + segment(0xC3, sofData) + sos + "data" + eoi, want: "unexpected marker FFC3"},
		"arithmetic":              {content: soi + tables + segment(0xC9, sofData) + sos + "data" + eoi, want: "unexpected marker FFC9"},
		"no marker":               {content: soi + "x" + tables, want: "begins with the byte 0x78"},
		"a segment too short":     {content: soi + strings.Replace(tables, "\x00\x03q", "\x00\x02q", 1), want: "wrong length"},
		"a segment of no length":  {content: soi + "\xff\xe0\x00\x01" + tables, want: "wrong length"},
		"no width":                {content: soi + tables + segment(jpegSOF0, "\x08\x01\x00\x00\x00"+sofData[5:]), want: "the JPEG is 0×256"},
		"no height":               {content: soi + tables + segment(jpegSOF0, "\x08\x00\x00"+sofData[3:]), want: "the JPEG is 512×0"},
		"five components":         {content: soi + tables + segment(jpegSOF0, "\x08\x01\x00\x02\x00\x05"+strings.Repeat("\x01\x11\x00", 5)), want: "FFC0 has a wrong length"},
		"no components":           {content: soi + tables + segment(jpegSOF0, "\x08\x01\x00\x02\x00\x00"), want: "FFC0 has a wrong length"},
		"fewer components":        {content: soi + tables + segment(jpegSOF0, strings.Replace(sofData, "\x00\x03", "\x00\x02", 1)), want: "frame has a wrong number"},
		"a component twice":       {content: soi + tables + segment(jpegSOF0, strings.Replace(sofData, "\x02\x11", "\x01\x11", 1)), want: "repeats a component"},
		"a foreign component":     {content: frame + one("\x07") + "a" + eoi, want: "not the frame's"},
		"a scan of more":          {content: soi + tables + gray + sos + "data" + eoi, want: "FFDA has a wrong length"},
		"a scan of fewer":         {content: frame + segment(jpegSOS, "\x02"+scanData[1:]), want: "scan has a wrong number"},
		"restart without them":    {content: frame + sos + "0\xff\xd01" + eoi, want: "unexpected restart marker"},
		"restarts switched off":   {content: frame + segment(jpegDRI, "\x00\x01") + segment(jpegDRI, "\x00\x00") + sos + "0\xff\xd01" + eoi, want: "unexpected restart marker"},
		"a restart is missing":    {content: restarts + "0\xff\xd02\xff\xd23" + eoi, want: "unexpected restart marker"},
		"restart before the data": {content: restarts + "\xff\xd01" + eoi, want: "unexpected restart marker"},
		"restart between scans":   {content: restarts + "0\xff\xd01" + segment(jpegCOM, "x") + "\xff\xd1" + eoi, want: "unexpected marker FFD1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireWalk(t, c.content, c.want, 512, 256)
		})
	}
}

// A flipped bit in a marker, a length or the frame's header is detected, but where it makes
// another valid JPEG.
func TestJPEGFlipsInStructure(t *testing.T) {
	t.Parallel()
	all := testImages(t)
	content := all["baseline.jpg"]
	at := bytes.Index(content, []byte("\xff\xc0"))
	lengths := []int{0, 1, 2, 3, 4, 5, at, at + 1, at + 2, at + 3, at + 9, bytes.Index(content, []byte("\xff\xda")) + 4, len(content) - 2, len(content) - 1}
	for _, at := range lengths {
		for bit := range 8 {
			flipped := bytes.Clone(content)
			flipped[at] ^= 1 << bit
			if at == bytes.Index(content, []byte("\xff\xc0"))+1 && (flipped[at] == 0xC1 || flipped[at] == 0xC2) {
				continue // another process of the same structure
			}
			if at == 3 && flipped[at] >= jpegAPP0 && flipped[at] <= jpegAPPF {
				continue // metadata of another kind
			}
			_, _, err := walkImage(flipped, 1<<20)
			require.Error(t, err, "byte %d is %#02x instead of %#02x", at, flipped[at], content[at])
		}
	}
	restart := all["restart.jpg"]
	for n := range len(restart) - 3 {
		if restart[n] == 0xFF && restart[n+1]&0xF8 == 0xD0 {
			gone := append(bytes.Clone(restart[:n]), restart[n+2:]...)
			_, _, err := walkImage(gone, 1<<20)
			if next := bytes.Index(restart[n+2:], []byte{0xFF, 0xD0 | (restart[n+1]+1)&7}); next >= 0 {
				require.Error(t, err, "without the restart marker at byte %d", n)
			}
		}
	}
}

// What is accepted as a JPEG has the size that Go reads, if Go reads it, and no beginning of it
// is accepted.
func FuzzJPEGWalk(f *testing.F) {
	for name, content := range testImages(f) {
		if filepath.Ext(name) == ".jpg" {
			f.Add(content, uint16(100))
		}
	}
	f.Add([]byte(soi+segment(jpegDQT, "q")+segment(jpegDHT, "h")+segment(jpegSOF0, sofData)+segment(jpegSOS, scanData)+"data"+eoi), uint16(1))
	f.Fuzz(func(t *testing.T, content []byte, portion uint16) {
		got := requireSteady(t, content, int(portion)+1)
		if got == nil || got.contentType != jpegType {
			return
		}
		if read, err := jpeg.DecodeConfig(bytes.NewReader(content)); err == nil && (read.Width != got.width || read.Height != got.height) {
			t.Fatalf("%d×%d, Go reads %d×%d", got.width, got.height, read.Width, read.Height)
		}
	})
}
