package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const pngSignature = "\x89PNG\r\n\x1a\n"

// maxPNGLength bounds chunk lengths and sides: the specification's 2^31 - 1.
const maxPNGLength = 1<<31 - 1

// pngWalk checks a PNG's structure: signature, IHDR first, the CRC of every chunk, image
// data, IEND and nothing after it. It does not inflate.
type pngWalk struct {
	walk

	part    pngPart
	kind    string // type of the current chunk
	left    int64  // remaining bytes of its data
	crc     uint32 // of type and data so far
	hasData bool   // an IDAT was seen
}

type pngPart int

const (
	pngStart pngPart = iota
	pngHeader
	pngData
	pngCRC
	pngEnd
)

func (w *pngWalk) take(p []byte) int {
	switch w.part {
	case pngData:
		if w.kind == "IHDR" {
			return w.fill(p, 13, w.ihdr)
		}
		n := int(min(int64(len(p)), w.left))
		w.crc = crc32.Update(w.crc, crc32.IEEETable, p[:n])
		w.label.add(p[:n])
		if w.left -= int64(n); w.left == 0 {
			w.part = pngCRC
		}
		return n
	case pngStart:
		return w.fill(p, len(pngSignature), w.signature)
	case pngHeader:
		return w.fill(p, 8, w.header)
	case pngCRC:
		return w.fill(p, 4, w.checksum)
	case pngEnd:
	}
	w.broken = errors.New("bytes after the IEND chunk")
	return len(p)
}

func (w *pngWalk) signature(b []byte) error {
	if string(b) != pngSignature {
		return errUnknownFormat
	}
	w.part = pngHeader
	return nil
}

func (w *pngWalk) header(b []byte) error {
	first := w.kind == ""
	w.kind, w.left = string(b[4:]), int64(binary.BigEndian.Uint32(b))
	w.crc = crc32.ChecksumIEEE(b[4:])
	switch {
	case first != (w.kind == "IHDR") || w.kind == "IHDR" && w.left != 13:
		return errors.New("the PNG's IHDR chunk is missing, repeated or of a wrong length")
	case w.left > maxPNGLength:
		return fmt.Errorf("a PNG chunk claims %d bytes", w.left)
	case w.kind == "IEND" && (w.left != 0 || !w.hasData):
		return errors.New("the PNG's IEND chunk has data or comes before any image data")
	}
	for _, c := range b[4:] {
		if (c|0x20) < 'a' || (c|0x20) > 'z' {
			return fmt.Errorf("a PNG chunk has the type %q", w.kind)
		}
	}
	switch w.kind {
	case "tEXt":
		w.label.begin(labelJSON, aigcKeyword)
	case "iTXt":
		w.label.begin(labelITXt, pngXMPKeyword)
	}
	w.hasData = w.hasData || w.kind == "IDAT" && w.left > 0
	w.part = pngData
	if w.left == 0 {
		w.part = pngCRC
	}
	return nil
}

func (w *pngWalk) ihdr(b []byte) error {
	width, height := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if width == 0 || height == 0 || width > maxPNGLength || height > maxPNGLength {
		return fmt.Errorf("the PNG is %d×%d", width, height)
	}
	w.width, w.height = int(width), int(height)
	w.crc = crc32.Update(w.crc, crc32.IEEETable, b)
	w.part = pngCRC
	return nil
}

func (w *pngWalk) checksum(b []byte) error {
	if binary.BigEndian.Uint32(b) != w.crc {
		return fmt.Errorf("the PNG's %s chunk has a wrong checksum", w.kind)
	}
	w.label.end()
	w.part = pngHeader
	if w.kind == "IEND" {
		w.part, w.whole = pngEnd, true
	}
	return nil
}
