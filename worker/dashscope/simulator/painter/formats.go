package painter

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/jpeg"
	"math/bits"
)

// PaintJPEG renders a picture as a baseline JPEG.
func PaintJPEG(p Picture) []byte {
	var out bytes.Buffer
	_ = jpeg.Encode(&out, paint(p), nil) // only a side of more than 65535 can fail
	return out.Bytes()
}

// PaintWebP renders a picture as a lossless WebP. It is not compressed: three bytes for each
// pixel. No side may have more than 16384 pixels.
func PaintWebP(p Picture) []byte {
	data := encodeVP8L(paint(p))
	data = append(data, make([]byte, len(data)%2)...)
	out := append([]byte("RIFF"), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(out[4:], uint32(len("WEBPVP8L")+4+len(data)))           //nolint:gosec // less than 2^30
	out = binary.LittleEndian.AppendUint32(append(out, "WEBPVP8L"...), uint32(len(data))) //nolint:gosec // as above
	return append(out, data...)
}

// encodeVP8L encodes an image as a VP8L bitstream (RFC 9649, section 3): without transforms,
// each color as a prefix code of 8 bits, alpha 255 and distance as codes of no bits.
func encodeVP8L(img *image.Paletted) []byte {
	w := &bitWriter{}
	size := img.Rect.Size()
	w.write(0x2F, 8)
	w.write(size.X-1, 14)
	w.write(size.Y-1, 14)
	w.write(0, 1+3)   // no alpha, version 0
	w.write(0, 1+1+1) // no transform, no color cache, one group of prefix codes
	w.eightBitCode(true)
	w.eightBitCode(false)
	w.eightBitCode(false)
	w.write(0b101|255<<3, 3+8) // alpha: a simple code of one symbol of 8 bits
	w.write(0b0001, 4)         // distance: one symbol of one bit, 0
	for _, index := range img.Pix {
		r, g, b, _ := img.Palette[index].RGBA()
		for _, value := range []uint32{g, r, b} {
			w.write(int(bits.Reverse8(uint8(value>>8))), 8) //nolint:gosec // 16 bits
		}
	}
	return w.bytes()
}

// bitWriter writes bits, the lowest first.
type bitWriter struct {
	out     []byte
	pending uint64
	count   int // of pending bits
}

func (w *bitWriter) write(value, count int) {
	w.pending |= uint64(value) << w.count //nolint:gosec // never negative
	for w.count += count; w.count >= 8; w.count -= 8 {
		w.out = append(w.out, byte(w.pending)) //nolint:gosec // its low bits
		w.pending >>= 8
	}
}

func (w *bitWriter) bytes() []byte {
	if w.count > 0 {
		w.write(0, 8-w.count)
	}
	return w.out
}

// eightBitCode writes a prefix code in which each of 256 symbols has 8 bits. The green one has
// 24 more symbols, of length 0.
func (w *bitWriter) eightBitCode(green bool) {
	w.write(0, 1)    // not a simple code
	w.write(12-4, 4) // twelve lengths of the code for lengths follow, the last is that of length 8
	w.write(0, 11*3)
	w.write(1, 3)
	if green {
		w.write(0b1|3<<1|(256-2)<<4, 1+3+8) // 256 lengths follow, a number of 8 bits
	} else {
		w.write(0, 1)
	}
	// All are 8, the code's only symbol, which takes no bits.
}
