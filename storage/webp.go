package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const webpSignature = "RIFF"

// webpWalk checks a WebP's structure (RFC 9649): a RIFF file of exactly the size that its
// header names, filled by chunks of their lengths, and one still image, lossy or lossless,
// of the size of the canvas. Of the image it reads the header, and does not decode it. An
// animation is refused: no model makes one.
type webpWalk struct {
	walk

	part     webpPart
	kind     string // of the current chunk; "" before the first
	size     int64  // of the current chunk's data
	left     int64  // remaining bytes of it
	riffLeft int64  // remaining bytes of the file behind the current chunk
	extended bool   // the first chunk is VP8X
	hasImage bool
}

type webpPart int

const (
	webpStart webpPart = iota
	webpChunk
	webpHead // the beginning of a chunk that has the image's size
	webpData
	webpPad
	webpEnd
)

// Flags of a VP8X chunk, and lengths of the headers that are read.
const (
	webpAnimated = 0x02
	vp8xBytes    = 10
	vp8Bytes     = 10
	vp8lBytes    = 5
)

func (w *webpWalk) take(p []byte) int {
	switch w.part {
	case webpData:
		n := int(min(int64(len(p)), w.left))
		w.label.add(p[:n])
		if w.left -= int64(n); w.left == 0 {
			w.endData()
		}
		return n
	case webpChunk:
		return w.fill(p, 8, w.chunk)
	case webpHead:
		switch w.kind {
		case "VP8X":
			return w.fill(p, vp8xBytes, w.canvas)
		case "VP8 ":
			return w.fill(p, vp8Bytes, w.lossy)
		default:
			return w.fill(p, vp8lBytes, w.lossless)
		}
	case webpPad:
		if p[0] != 0 {
			w.broken = fmt.Errorf("the WebP's %q chunk is padded with %#02x", w.kind, p[0])
		}
		w.endChunk()
		return 1
	case webpStart:
		return w.fill(p, 12, w.riff)
	case webpEnd:
	}
	w.broken = errors.New("bytes after the last chunk of the WebP")
	return len(p)
}

func (w *webpWalk) riff(b []byte) error {
	if string(b[:4]) != webpSignature || string(b[8:]) != "WEBP" {
		return errUnknownFormat
	}
	w.riffLeft = int64(binary.LittleEndian.Uint32(b[4:])) - 4
	if w.riffLeft <= 0 {
		return errors.New("the WebP has no chunks")
	}
	w.part = webpChunk
	return nil
}

func (w *webpWalk) chunk(b []byte) error {
	first := w.kind == ""
	w.kind, w.size = string(b[:4]), int64(binary.LittleEndian.Uint32(b[4:]))
	isImage := w.kind == "VP8 " || w.kind == "VP8L"
	w.left, w.riffLeft = w.size, w.riffLeft-8-w.size-w.size%2
	switch {
	case w.riffLeft < 0:
		return fmt.Errorf("the WebP's %q chunk claims %d bytes, more than the file has", w.kind, w.size)
	case first && !isImage && w.kind != "VP8X", !first && w.kind == "VP8X":
		return fmt.Errorf("the WebP's %q chunk is out of place", w.kind)
	case w.kind == "ANIM" || w.kind == "ANMF":
		return errors.New("the WebP is animated")
	case isImage && w.hasImage:
		return errors.New("the WebP has a second image")
	case w.kind == "VP8X" && w.size != vp8xBytes, w.kind == "VP8 " && w.size <= vp8Bytes, w.kind == "VP8L" && w.size <= vp8lBytes:
		return fmt.Errorf("the WebP's %q chunk has %d bytes", w.kind, w.size)
	}
	for _, c := range b[:4] {
		if c < ' ' || c > '~' {
			return fmt.Errorf("a WebP chunk has the type %q", w.kind)
		}
	}
	w.hasImage = w.hasImage || isImage
	switch {
	case isImage || w.kind == "VP8X":
		w.part = webpHead
	case w.left > 0:
		if w.part = webpData; w.kind == "XMP " {
			w.label.begin(labelXMP, "")
		}
	default:
		w.endChunk()
	}
	return w.broken
}

// canvas reads a VP8X chunk.
func (w *webpWalk) canvas(b []byte) error {
	if b[0]&webpAnimated != 0 {
		return errors.New("the WebP is animated")
	}
	uint24 := func(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }
	w.extended, w.width, w.height = true, uint24(b[4:])+1, uint24(b[7:])+1
	w.left = 0
	w.endData()
	return w.broken
}

// lossy reads the header of a VP8 key frame (RFC 6386, section 9.1).
func (w *webpWalk) lossy(b []byte) error {
	tag := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
	keyFrame, shown, firstPartition := tag&1 == 0, tag>>4&1 == 1, tag>>5
	if !keyFrame || !shown || string(b[3:6]) != "\x9d\x01\x2a" || firstPartition > w.size-vp8Bytes {
		return errors.New("the WebP's VP8 frame is damaged")
	}
	return w.image(int(binary.LittleEndian.Uint16(b[6:])&0x3FFF), int(binary.LittleEndian.Uint16(b[8:])&0x3FFF), vp8Bytes)
}

// lossless reads the header of a VP8L image (RFC 9649, section 3.4).
func (w *webpWalk) lossless(b []byte) error {
	bits := binary.LittleEndian.Uint32(b[1:])
	if b[0] != 0x2F || bits>>29 != 0 {
		return errors.New("the WebP's VP8L image is damaged")
	}
	return w.image(int(bits&0x3FFF)+1, int(bits>>14&0x3FFF)+1, vp8lBytes)
}

// image continues behind an image's header.
func (w *webpWalk) image(width, height int, header int64) error {
	if width == 0 || height == 0 || w.extended && (width != w.width || height != w.height) {
		return fmt.Errorf("the WebP's image is %d×%d, and its canvas %d×%d", width, height, w.width, w.height)
	}
	w.width, w.height, w.left, w.part = width, height, w.size-header, webpData
	return nil
}

// endData continues behind a chunk's data.
func (w *webpWalk) endData() {
	w.label.end()
	if w.size%2 == 1 {
		w.part = webpPad
		return
	}
	w.endChunk()
}

// endChunk continues behind a chunk and its padding.
func (w *webpWalk) endChunk() {
	w.part = webpChunk
	if w.riffLeft > 0 || w.broken != nil {
		return
	}
	w.part, w.whole = webpEnd, true
	if !w.hasImage {
		w.broken = errors.New("the WebP has no image")
	}
}
