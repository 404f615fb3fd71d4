package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// errTruncated means that a PNG ends before its last chunk.
var errTruncated = errors.New("the PNG ends before its IEND chunk")

const pngSignature = "\x89PNG\r\n\x1a\n"

// maxPNGLength bounds chunk lengths and sides: the specification's 2^31 - 1.
const maxPNGLength = 1<<31 - 1

// pngWalk is a writer that checks a PNG's structure: signature, IHDR first, the
// CRC of every chunk, image data, IEND and nothing after it. It does not inflate,
// buffers at most 33 bytes, and accepts writes of any size. After the last write,
// err returns the result. A success means that the file arrived as it was written,
// not that its pixels are correct.
type pngWalk struct {
	width, height int

	part    pngPart
	have    []byte // bytes so far of the fixed-size part being read
	kind    string // type of the current chunk
	left    int64  // remaining bytes of its data
	crc     uint32 // of type and data so far
	hasData bool   // an IDAT was seen
	broken  error
}

type pngPart int

const (
	partSignature pngPart = iota
	partHeader
	partData
	partCRC
	partEnd
)

// Write never fails, because invalid files are kept too. See err.
func (w *pngWalk) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && w.broken == nil {
		p = p[w.take(p):]
	}
	return n, nil
}

// take consumes bytes of the current part and returns how many.
func (w *pngWalk) take(p []byte) int {
	switch w.part {
	case partData:
		if w.kind == "IHDR" {
			return w.fill(p, 13, w.ihdr)
		}
		n := int(min(int64(len(p)), w.left))
		w.crc = crc32.Update(w.crc, crc32.IEEETable, p[:n])
		if w.left -= int64(n); w.left == 0 {
			w.part = partCRC
		}
		return n
	case partSignature:
		return w.fill(p, len(pngSignature), w.signature)
	case partHeader:
		return w.fill(p, 8, w.header)
	case partCRC:
		return w.fill(p, 4, w.checksum)
	case partEnd:
	}
	w.broken = errors.New("bytes after the IEND chunk")
	return len(p)
}

// fill collects size bytes and then calls done with them.
func (w *pngWalk) fill(p []byte, size int, done func([]byte) error) int {
	n := min(len(p), size-len(w.have))
	w.have = append(w.have, p[:n]...)
	if len(w.have) == size {
		w.broken = done(w.have)
		w.have = w.have[:0]
	}
	return n
}

func (w *pngWalk) signature(b []byte) error {
	if string(b) != pngSignature {
		return errors.New("not a PNG")
	}
	w.part = partHeader
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
	w.hasData = w.hasData || w.kind == "IDAT" && w.left > 0
	w.part = partData
	if w.left == 0 {
		w.part = partCRC
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
	w.part = partCRC
	return nil
}

func (w *pngWalk) checksum(b []byte) error {
	if binary.BigEndian.Uint32(b) != w.crc {
		return fmt.Errorf("the PNG's %s chunk has a wrong checksum", w.kind)
	}
	w.part = partHeader
	if w.kind == "IEND" {
		w.part = partEnd
	}
	return nil
}

// err returns nil after a complete PNG, errTruncated after an incomplete one, and
// otherwise what is wrong.
func (w *pngWalk) err() error {
	if w.broken == nil && w.part != partEnd {
		return errTruncated
	}
	return w.broken
}
