package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const jpegSignature = "\xff\xd8"

// Markers of a JPEG (ITU-T T.81, table B.1).
const (
	jpegSOF0 = 0xC0 // baseline
	jpegSOF2 = 0xC2 // progressive
	jpegDHT  = 0xC4
	jpegRST0 = 0xD0
	jpegRST7 = 0xD7
	jpegEOI  = 0xD9
	jpegSOS  = 0xDA
	jpegDQT  = 0xDB
	jpegDRI  = 0xDD
	jpegAPP0 = 0xE0
	jpegAPP1 = 0xE1
	jpegAPPF = 0xEF
	jpegCOM  = 0xFE
)

// maxJPEGComponents is the most components of an image, and of a scan (T.81, table B.3).
const maxJPEGComponents = 4

// jpegWalk checks a JPEG's structure: segments of their lengths, a frame with its tables, at
// least one scan of each component with data in it, restart markers in their order, the EOI
// marker and nothing after it. A segment is skipped by its length, so that the EOI of a
// thumbnail within one is not taken for the end. It accepts what browsers show: baseline,
// extended and progressive DCT with Huffman coding, one frame, and a height in its header. It
// does not decode.
type jpegWalk struct {
	walk

	part       jpegPart
	marker     byte // of the current segment
	left       int  // remaining bytes of its content
	tables     [2]bool
	components []byte // the frame's, by their IDs
	scanned    [maxJPEGComponents]bool
	restarts   bool // a restart interval is defined
	restart    byte // number of the next restart marker
	hasData    bool // the current scan has data
}

type jpegPart int

const (
	jpegStart   jpegPart = iota
	jpegMarker           // the FF of a marker
	jpegCode             // the rest of it
	jpegLength           // of a segment
	jpegContent          // of a segment
	jpegScan             // entropy-coded data
	jpegScanFF           // what follows an FF in it
	jpegEnd
)

func (w *jpegWalk) take(p []byte) int {
	switch w.part {
	case jpegScan:
		at := bytes.IndexByte(p, 0xFF)
		w.hasData = w.hasData || at != 0
		if at < 0 {
			return len(p)
		}
		w.part = jpegScanFF
		return at + 1
	case jpegScanFF:
		w.broken = w.inScan(p[0])
		return 1
	case jpegContent:
		return w.content(p)
	case jpegLength:
		return w.fill(p, 2, w.length)
	case jpegCode:
		if p[0] != 0xFF { // any number of them may precede a marker
			w.broken = w.code(p[0])
		}
		return 1
	case jpegMarker:
		if p[0] != 0xFF {
			w.broken = fmt.Errorf("a JPEG segment begins with the byte %#02x", p[0])
		}
		w.part = jpegCode
		return 1
	case jpegStart:
		return w.fill(p, len(jpegSignature), w.signature)
	case jpegEnd:
	}
	w.broken = errors.New("bytes after the EOI marker")
	return len(p)
}

func (w *jpegWalk) signature(b []byte) error {
	if string(b) != jpegSignature {
		return errUnknownFormat
	}
	w.part = jpegMarker
	return nil
}

// code begins the segment of a marker.
func (w *jpegWalk) code(marker byte) error {
	w.marker, w.part = marker, jpegLength
	switch {
	case marker == jpegEOI:
		if len(w.components) == 0 || slices.Contains(w.scanned[:len(w.components)], false) {
			return errors.New("the JPEG's EOI marker comes before its image data")
		}
		w.part, w.whole = jpegEnd, true
	case marker >= jpegSOF0 && marker <= jpegSOF2:
		if len(w.components) > 0 {
			return errors.New("the JPEG has a second frame")
		}
	case marker == jpegSOS:
		if len(w.components) == 0 || w.tables != [2]bool{true, true} {
			return errors.New("the JPEG's image data comes before its frame or its tables")
		}
	case marker == jpegDHT:
		w.tables[0] = true
	case marker == jpegDQT:
		w.tables[1] = true
	case marker == jpegDRI, marker == jpegCOM, marker >= jpegAPP0 && marker <= jpegAPPF:
	default:
		return fmt.Errorf("the JPEG has an unexpected marker FF%02X", marker)
	}
	return nil
}

// length begins a segment's content.
func (w *jpegWalk) length(b []byte) error {
	w.left = int(binary.BigEndian.Uint16(b)) - 2
	valid, components := w.left >= 0, 0
	switch {
	case w.marker <= jpegSOF2:
		components = (w.left - 6) / 3
		valid = w.left == 6+3*components && components >= 1 && components <= maxJPEGComponents
	case w.marker == jpegSOS:
		components = (w.left - 4) / 2
		valid = w.left == 4+2*components && components >= 1 && components <= len(w.components)
	case w.marker == jpegDRI:
		valid = w.left == 2
	case w.marker == jpegDHT, w.marker == jpegDQT:
		valid = w.left > 0
	}
	if !valid {
		return fmt.Errorf("the JPEG's segment FF%02X has a wrong length", w.marker)
	}
	if w.marker == jpegAPP1 && w.left > 0 {
		w.label.begin(labelXMP, jpegXMPHeader)
	}
	w.part = jpegContent
	if w.left == 0 {
		w.part = jpegMarker
	}
	return nil
}

// content reads or skips a segment's content.
func (w *jpegWalk) content(p []byte) int {
	switch {
	case w.marker <= jpegSOF2:
		return w.fill(p, w.left, w.frame)
	case w.marker == jpegSOS:
		return w.fill(p, w.left, w.scan)
	case w.marker == jpegDRI:
		return w.fill(p, w.left, w.interval)
	}
	n := min(len(p), w.left)
	w.label.add(p[:n])
	if w.left -= n; w.left == 0 {
		w.label.end()
		w.part = jpegMarker
	}
	return n
}

func (w *jpegWalk) frame(b []byte) error {
	w.height, w.width = int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
	if w.width == 0 || w.height == 0 {
		return fmt.Errorf("the JPEG is %d×%d", w.width, w.height)
	}
	if 6+3*int(b[5]) != len(b) {
		return errors.New("the JPEG's frame has a wrong number of components")
	}
	for at := 6; at < len(b); at += 3 {
		if bytes.IndexByte(w.components, b[at]) >= 0 {
			return errors.New("the JPEG's frame repeats a component")
		}
		w.components = append(w.components, b[at])
	}
	w.part = jpegMarker
	return nil
}

func (w *jpegWalk) scan(b []byte) error {
	if 4+2*int(b[0]) != len(b) {
		return errors.New("a JPEG scan has a wrong number of components")
	}
	for at := 1; at < len(b)-3; at += 2 {
		i := bytes.IndexByte(w.components, b[at])
		if i < 0 {
			return errors.New("a JPEG scan has a component that is not the frame's")
		}
		w.scanned[i] = true
	}
	w.part, w.hasData, w.restart = jpegScan, false, 0
	return nil
}

func (w *jpegWalk) interval(b []byte) error {
	w.restarts = binary.BigEndian.Uint16(b) > 0
	w.part = jpegMarker
	return nil
}

// inScan continues a scan after an FF, or ends it with the next marker.
func (w *jpegWalk) inScan(b byte) error {
	switch {
	case b == 0: // an FF of the data
		w.part, w.hasData = jpegScan, true
	case b == 0xFF: // fill bytes
	case b >= jpegRST0 && b <= jpegRST7:
		if !w.restarts || b-jpegRST0 != w.restart || !w.hasData {
			return errors.New("a JPEG scan has an unexpected restart marker")
		}
		w.part, w.restart = jpegScan, (w.restart+1)%8
	case !w.hasData:
		return errors.New("a JPEG scan has no data")
	default:
		return w.code(b)
	}
	return nil
}
