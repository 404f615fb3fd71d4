package storage

import "errors"

// errTruncated means that an image ends before its last part.
var errTruncated = errors.New("the image ends before its last part")

// ImageTypes returns the content types that a verified image may have.
func ImageTypes() []string { return []string{pngType, jpegType, webpType} }

const (
	pngType  = "image/png"
	jpegType = "image/jpeg"
	webpType = "image/webp"
)

var errUnknownFormat = errors.New("not a PNG, JPEG or WebP image")

// imageWalk is a writer that checks that an image is whole, in the format that its first
// byte tells: neither a URL nor a Content-Type is believed. It accepts writes of any size
// and keeps a few bytes, and the metadata that may have an AI label. After the last write,
// result returns the outcome. A success means that the file arrived as it was written, not that
// its pixels are correct.
//
// No format is decoded: the pixels of an image of 4096×4096 need 64 MB, and 16 images are
// copied at once. A PNG has a checksum for each chunk. JPEG and WebP have none, so that what
// is checked is every length and marker up to the last byte; a changed bit within the
// compressed data is found by the digests that OSS sends, see sums.compare, and later by the
// spool's own, see Spool.reuse.
type imageWalk struct {
	format  formatWalk // nil before the first byte and for an unknown format
	png     pngWalk
	jpeg    jpegWalk
	webp    webpWalk
	unknown bool // the format is
}

// formatWalk checks an image of one format.
type formatWalk interface {
	// take consumes bytes of the current part and returns how many, at least one.
	take(p []byte) int
	common() *walk
}

// walk is what the walks of all formats have.
type walk struct {
	contentType   string
	width, height int
	have          []byte // bytes so far of the fixed-size part being read
	whole         bool   // the last part was read
	broken        error
	label         labelScan
}

func (w *walk) common() *walk { return w }

// fill collects size bytes and then calls done with them.
func (w *walk) fill(p []byte, size int, done func([]byte) error) int {
	n := min(len(p), size-len(w.have))
	w.have = append(w.have, p[:n]...)
	if len(w.have) == size {
		w.broken = done(w.have)
		w.have = w.have[:0]
	}
	return n
}

// Write never fails, because invalid files are kept too. See result.
func (w *imageWalk) Write(p []byte) (int, error) {
	n := len(p)
	if w.format == nil && n > 0 && !w.unknown {
		w.recognize(p[0])
	}
	for len(p) > 0 && w.format != nil && w.format.common().broken == nil {
		p = p[w.format.take(p):]
	}
	return n, nil
}

// recognize chooses the format by the first byte. The format's own walk compares the others
// of the signature.
func (w *imageWalk) recognize(first byte) {
	switch first {
	case pngSignature[0]:
		w.png.contentType, w.format = pngType, &w.png
	case jpegSignature[0]:
		w.jpeg.contentType, w.format = jpegType, &w.jpeg
	case webpSignature[0]:
		w.webp.contentType, w.format = webpType, &w.webp
	default:
		w.unknown = true
	}
}

// result describes a complete image. It fails with errTruncated after an incomplete one, and
// otherwise with what is wrong.
func (w *imageWalk) result() (*walk, error) {
	switch {
	case w.unknown:
		return nil, errUnknownFormat
	case w.format == nil:
		return nil, errTruncated
	}
	common := w.format.common()
	if common.broken == nil && !common.whole {
		return nil, errTruncated
	}
	return common, common.broken
}
