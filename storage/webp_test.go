package storage

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/image/webp"
)

// riff returns a RIFF file of these chunks.
func riff(chunks ...string) string {
	var all strings.Builder
	for _, c := range chunks {
		all.WriteString(c)
	}
	return "RIFF" + string(binary.LittleEndian.AppendUint32(nil, uint32(4+len(all.String())))) + "WEBP" + all.String()
}

// riffChunk returns a chunk with its padding.
func riffChunk(kind, data string) string {
	b := kind + string(binary.LittleEndian.AppendUint32(nil, uint32(len(data)))) + data
	return b + "\x00\x00"[:len(data)%2]
}

const (
	// vp8Data is a lossy image of 512×256 with a first partition of two bytes, vp8lData a lossless
	// one of that size, vp8xData its canvas with all that a still image may have.
	vp8Data  = "\x50\x00\x00\x9d\x01\x2a\x00\x02\x00\x01ab"
	vp8lData = "\x2f\xff\xc1\x3f\x00ab"
	vp8xData = "\x3c\x00\x00\x00\xff\x01\x00\xff\x00\x00"
)

func TestWebPWalk(t *testing.T) {
	t.Parallel()
	vp8, vp8l, vp8x := riffChunk("VP8 ", vp8Data), riffChunk("VP8L", vp8lData), riffChunk("VP8X", vp8xData)
	for name, c := range map[string]struct{ content, want string }{
		"lossy":                  {content: riff(vp8)},
		"lossless":               {content: riff(vp8l)},
		"odd chunk":              {content: riff(riffChunk("VP8 ", vp8Data+"c"))},
		"extended":               {content: riff(vp8x, riffChunk("ICCP", "odd"), riffChunk("ALPH", "x"), vp8, riffChunk("EXIF", ""), riffChunk("XMP ", "odd"))},
		"unknown chunk":          {content: riff(vp8x, riffChunk("abcd", "xy"), vp8l)},
		"signature alone":        {content: "RIFF", want: "ends before"},
		"header alone":           {content: riff(vp8)[:12], want: "ends before"},
		"half of the data":       {content: riff(vp8)[:25], want: "ends before"},
		"no padding":             {content: riff(riffChunk("VP8 ", vp8Data+"c"))[:12+8+13], want: "ends before"},
		"no chunks":              {content: riff(), want: "has no chunks"},
		"canvas alone":           {content: riff(vp8x), want: "has no image"},
		"no image":               {content: riff(vp8x, riffChunk("EXIF", "abcd")), want: "has no image"},
		"metadata first":         {content: riff(riffChunk("EXIF", "abcd"), vp8), want: "out of place"},
		"canvas behind":          {content: riff(vp8, vp8x), want: "out of place"},
		"two canvases":           {content: riff(vp8x, vp8x, vp8), want: "out of place"},
		"two images":             {content: riff(vp8, vp8), want: "second image"},
		"two images in one":      {content: riff(vp8x, vp8, vp8l), want: "second image"},
		"more behind":            {content: riff(vp8) + "\x00", want: "after the last chunk"},
		"chunk behind":           {content: riff(vp8) + riffChunk("EXIF", "x"), want: "after the last chunk"},
		"wrong padding":          {content: riff(riffChunk("VP8 ", vp8Data+"c")[:8+13] + "x"), want: "padded with 0x78"},
		"chunk too long":         {content: riff("VP8 \xff\xff\xff\xff" + vp8Data), want: "claims 4294967295 bytes"},
		"chunk longer by two":    {content: riff("VP8 \x0e\x00\x00\x00" + vp8Data), want: "claims 14 bytes"},
		"odd chunk at the end":   {content: riff("VP8 \x0d\x00\x00\x00" + vp8Data + "c"), want: "claims 13 bytes"},
		"odd type":               {content: riff(vp8, riffChunk("EX\x00F", "abcd")), want: "has the type"},
		"a frame too short":      {content: riff(riffChunk("VP8 ", vp8Data[:10])), want: "has 10 bytes"},
		"a lossless one too":     {content: riff(riffChunk("VP8L", vp8lData[:5])), want: "has 5 bytes"},
		"a canvas too":           {content: riff(riffChunk("VP8X", vp8xData[:8]), vp8), want: "has 8 bytes"},
		"no key frame":           {content: riff(riffChunk("VP8 ", "\x51"+vp8Data[1:])), want: "frame is damaged"},
		"not shown":              {content: riff(riffChunk("VP8 ", "\x40"+vp8Data[1:])), want: "frame is damaged"},
		"no start code":          {content: riff(riffChunk("VP8 ", vp8Data[:3]+"\x9d\x01\x2b"+vp8Data[6:])), want: "frame is damaged"},
		"partition too long":     {content: riff(riffChunk("VP8 ", "\x70"+vp8Data[1:])), want: "frame is damaged"},
		"no width":               {content: riff(riffChunk("VP8 ", vp8Data[:6]+"\x00\x40"+vp8Data[8:])), want: "image is 0×256"},
		"lossless signature":     {content: riff(riffChunk("VP8L", "\x2e"+vp8lData[1:])), want: "image is damaged"},
		"lossless version":       {content: riff(riffChunk("VP8L", vp8lData[:4]+"\x20ab")), want: "image is damaged"},
		"another canvas":         {content: riff(riffChunk("VP8X", vp8xData[:4]+"\xfe"+vp8xData[5:]), vp8), want: "image is 512×256, and its canvas 511×256"},
		"animated":               {content: riff(riffChunk("VP8X", "\x02"+vp8xData[1:]), vp8), want: "is animated"},
		"frames":                 {content: riff(vp8x, riffChunk("ANMF", "abcd")), want: "is animated"},
		"the file is longer":     {content: "RIFF\x20\x00\x00\x00WEBP" + vp8 + "\x00\x00\x00\x00", want: "ends before"},
		"the file says too much": {content: "RIFF\xff\xff\xff\xffWEBP" + vp8, want: "ends before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireWalk(t, c.content, c.want, 512, 256)
		})
	}
}

// Every flipped bit in the file's and the chunks' headers is detected, but for the type of a
// chunk that is skipped.
func TestWebPFlipsInStructure(t *testing.T) {
	t.Parallel()
	all := testImages(t)
	for name, structure := range map[string]int{"lossy.webp": 12 + 8, "lossless.webp": 12 + 8 + 1, "alpha.webp": 12 + 8} {
		content := all[name]
		for bit := range structure * 8 {
			flipped := bytes.Clone(content)
			flipped[bit/8] ^= 1 << (bit % 8)
			_, _, err := walkImage(flipped, 1<<20)
			require.Error(t, err, "%s: byte %d is %#02x instead of %#02x", name, bit/8, flipped[bit/8], content[bit/8])
		}
	}
	alpha := all["alpha.webp"]
	for at := 24; at < 30; at++ { // width and height of the canvas
		flipped := bytes.Clone(alpha)
		flipped[at] ^= 1
		_, _, err := walkImage(flipped, 1<<20)
		require.ErrorContains(t, err, "its canvas")
	}
}

// What is accepted as a WebP has the size that Go reads, if Go reads it, and no beginning of it
// is accepted.
func FuzzWebPWalk(f *testing.F) {
	for name, content := range testImages(f) {
		if filepath.Ext(name) == ".webp" {
			f.Add(content, uint16(100))
		}
	}
	f.Add([]byte(riff(riffChunk("VP8X", vp8xData), riffChunk("ICCP", "odd"), riffChunk("VP8L", vp8lData))), uint16(1))
	f.Fuzz(func(t *testing.T, content []byte, portion uint16) {
		got := requireSteady(t, content, int(portion)+1)
		if got == nil || got.contentType != webpType {
			return
		}
		if read, err := webp.DecodeConfig(bytes.NewReader(content)); err == nil && (read.Width != got.width || read.Height != got.height) {
			t.Fatalf("%d×%d, Go reads %d×%d", got.width, got.height, read.Width, read.Height)
		}
	})
}
