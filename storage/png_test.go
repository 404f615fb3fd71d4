package storage

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/png"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func pngChunk(kind, data string) string {
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), kind+data...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:])))
}

const ihdrData = "\x00\x00\x02\x00\x00\x00\x01\x00\x08\x02\x00\x00\x00" // 512×256

func TestPNGWalk(t *testing.T) {
	t.Parallel()
	ihdr, idat, iend := pngChunk("IHDR", ihdrData), pngChunk("IDAT", "abc"), pngChunk("IEND", "")
	var made bytes.Buffer
	require.NoError(t, png.Encode(&made, image.NewGray(image.Rect(0, 0, 512, 256))))
	for name, c := range map[string]struct{ content, want string }{
		"real":            {content: made.String()},
		"least":           {content: pngSignature + ihdr + idat + iend},
		"more chunks":     {content: pngSignature + ihdr + pngChunk("tEXt", "x") + idat + idat + iend},
		"empty chunk":     {content: pngSignature + ihdr + pngChunk("IDAT", "") + idat + iend},
		"nothing":         {want: "ends before"},
		"signature alone": {content: pngSignature, want: "ends before"},
		"half signature":  {content: pngSignature[:5], want: "ends before"},
		"no end":          {content: pngSignature + ihdr + idat, want: "ends before"},
		"half end":        {content: pngSignature + ihdr + idat + iend[:11], want: "ends before"},
		"text mode":       {content: "\x89PNG\n\x1a\n" + ihdr, want: "not a PNG"},
		"no header":       {content: pngSignature + idat + iend, want: "IHDR"},
		"two headers":     {content: pngSignature + ihdr + ihdr + idat + iend, want: "IHDR"},
		"short header":    {content: pngSignature + pngChunk("IHDR", ihdrData[:12]) + idat + iend, want: "IHDR"},
		"no width":        {content: pngSignature + pngChunk("IHDR", "\x00\x00\x00\x00"+ihdrData[4:]) + idat + iend, want: "0×256"},
		"huge":            {content: pngSignature + pngChunk("IHDR", "\x80\x00\x00\x00"+ihdrData[4:]) + idat + iend, want: "2147483648×256"},
		"wrong checksum":  {content: pngSignature + ihdr + idat[:11] + "xxxx" + iend, want: "IDAT chunk has a wrong checksum"},
		"header checksum": {content: pngSignature + ihdr[:21] + "xxxx" + idat + iend, want: "IHDR chunk has a wrong checksum"},
		"no image data":   {content: pngSignature + ihdr + iend, want: "before any image data"},
		"end with data":   {content: pngSignature + ihdr + idat + pngChunk("IEND", "x"), want: "has data"},
		"odd type":        {content: pngSignature + ihdr + pngChunk("ID\x00T", "x") + iend, want: "has the type"},
		"endless chunk":   {content: pngSignature + ihdr + "\xff\xff\xff\xffIDAT", want: "claims 4294967295 bytes"},
		"more behind":     {content: pngSignature + ihdr + idat + iend + "x", want: "after the IEND"},
		"two images":      {content: pngSignature + ihdr + idat + iend + pngSignature, want: "after the IEND"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requireWalk(t, c.content, c.want, 512, 256)
		})
	}
}

// requireWalk checks that an image is accepted with its size, or refused if want is not empty.
func requireWalk(t *testing.T, content, want string, width, height int) {
	t.Helper()
	for _, portion := range []int{1, 7, 1 << 20} {
		_, got, err := walkImage([]byte(content), portion)
		if want != "" {
			assert.ErrorContains(t, err, want, "portions of %d", portion)
			continue
		}
		require.NoError(t, err, "portions of %d", portion)
		assert.Equal(t, []int{width, height}, []int{got.width, got.height})
	}
}

// Every flipped bit and missing byte of a PNG is detected, with writes of any size.
func FuzzPNGWalk(f *testing.F) {
	f.Add([]byte(pngSignature+pngChunk("IHDR", ihdrData)+pngChunk("IDAT", "abc")+pngChunk("IEND", "")), uint16(1), uint(70))
	f.Add([]byte("no png"), uint16(3), uint(0))
	f.Fuzz(func(t *testing.T, content []byte, portion uint16, bit uint) {
		if got := requireSteady(t, content, int(portion)+1); got == nil || got.contentType != pngType {
			return
		}
		flipped := bytes.Clone(content)
		flipped[bit/8%uint(len(content))] ^= 1 << (bit % 8)
		if _, _, err := walkImage(flipped, 1<<20); err == nil {
			t.Fatalf("accepted with bit %d flipped", bit)
		}
	})
}
