package storage

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"encoding/xml"
	"io"
)

// Values of an image's AI label: whether it bears the implicit label that GB 45438-2025 asks
// for. "" means that nobody has looked.
const (
	AILabelPresent = "present"
	AILabelAbsent  = "absent"
)

// The label is the property AIGC of the namespace TC260 in the image's XMP: an iTXt chunk of a
// PNG, the APP1 segment of a JPEG, the XMP chunk of a WebP (practice guide TC260-PG-20259A).
// Some services write it as a tEXt chunk with the keyword AIGC instead.
const (
	aigcNamespace = "http://www.tc260.org.cn/ns/AIGC/1.0/"
	aigcPrefix    = "TC260" // what encoding/xml returns if it is not declared
	aigcProperty  = "AIGC"
	aigcKeyword   = "AIGC\x00"
	rdfNamespace  = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
	pngXMPKeyword = "XML:com.adobe.xmp\x00"
	jpegXMPHeader = "http://ns.adobe.com/xap/1.0/\x00"
)

// maxLabelBytes is how much metadata of an image is kept and looked at, inflated text
// included: four times the XMP that fits into a JPEG's segment. A label has less than 1 KB.
const maxLabelBytes = 256 << 10

// inflaterBytes is what an inflater needs, whatever it makes; it counts as looked at, so that
// few are made for an image.
const inflaterBytes = 40 << 10

// labelScan looks for an AI label in the parts of an image that may have one. An image's walk
// calls begin, add and end for each of them.
type labelScan struct {
	found  bool
	kind   labelKind // of the current part
	prefix string    // without which it has no label
	text   []byte    // of the current part
	looked int       // bytes of earlier parts
}

type labelKind int

const (
	labelNone labelKind = iota
	labelXMP            // an XMP packet
	labelITXt           // an iTXt chunk behind its keyword
	labelJSON           // a tEXt chunk behind its keyword
)

// begin starts a part.
func (l *labelScan) begin(kind labelKind, prefix string) {
	if !l.found && l.looked < maxLabelBytes {
		l.kind, l.prefix = kind, prefix
	}
}

// add continues a part. It keeps nothing of one that has another prefix, and nothing beyond
// maxLabelBytes.
func (l *labelScan) add(p []byte) {
	if l.kind == labelNone {
		return
	}
	l.text = append(l.text, p[:min(len(p), maxLabelBytes-l.looked-len(l.text))]...)
	n := min(len(l.text), len(l.prefix))
	if string(l.text[:n]) != l.prefix[:n] {
		l.looked, l.text, l.kind = l.looked+n, l.text[:0], labelNone
	}
}

// end ends a part and looks for the label in it.
func (l *labelScan) end() {
	kind, text := l.kind, l.text
	l.kind, l.text = labelNone, l.text[:0]
	l.looked += len(text)
	content, ok := bytes.CutPrefix(text, []byte(l.prefix))
	if !ok {
		return
	}
	switch kind {
	case labelXMP:
		l.found = hasLabel(bytes.NewReader(content))
	case labelJSON:
		l.found = isLabel(content)
	case labelITXt:
		l.found = l.inITXt(content)
	case labelNone:
	}
}

// inITXt looks for the label in an iTXt chunk (PNG specification, 11.3.3.4): compression flag
// and method, language and translated keyword, each ended by a zero byte, and the text.
func (l *labelScan) inITXt(content []byte) bool {
	if len(content) < 2 {
		return false
	}
	compressed := content[0] == 1 && content[1] == 0
	_, content, _ = bytes.Cut(content[2:], []byte{0})
	_, content, _ = bytes.Cut(content, []byte{0})
	if !compressed {
		return hasLabel(bytes.NewReader(content))
	}
	l.looked = min(l.looked+inflaterBytes, maxLabelBytes)
	inflated, err := zlib.NewReader(bytes.NewReader(content))
	if err != nil {
		return false
	}
	limited := &io.LimitedReader{R: inflated, N: int64(maxLabelBytes - l.looked)}
	found := hasLabel(limited)
	l.looked = maxLabelBytes - int(limited.N)
	return found
}

// hasLabel reports whether an XMP packet has the label: as an element or an attribute of an
// rdf:Description. A text that looks like one, in a description or a prompt, is none. What
// stands before damaged XML, or before the end of what was read, counts.
func hasLabel(packet io.Reader) bool {
	decoder := xml.NewDecoder(packet)
	depth, rdf, description := 0, 0, 0 // how deep they are, 0 outside
	for {
		token, err := decoder.Token()
		if err != nil {
			return false
		}
		switch t := token.(type) {
		case xml.StartElement:
			depth++
			switch {
			case rdf == 0 && t.Name == xml.Name{Space: rdfNamespace, Local: "RDF"}:
				rdf = depth
			case depth == rdf+1 && t.Name == xml.Name{Space: rdfNamespace, Local: "Description"}:
				description = depth
				for _, attr := range t.Attr {
					if isAIGC(attr.Name) && isLabel([]byte(attr.Value)) {
						return true
					}
				}
			case description > 0 && depth == description+1 && isAIGC(t.Name):
				var value string
				if decoder.DecodeElement(&value, &t) != nil {
					return false
				}
				if depth--; isLabel([]byte(value)) {
					return true
				}
			}
		case xml.EndElement:
			if depth == description {
				description = 0
			}
			if depth == rdf {
				rdf = 0
			}
			depth--
		}
	}
}

func isAIGC(name xml.Name) bool {
	return name.Local == aigcProperty && (name.Space == aigcNamespace || name.Space == aigcPrefix)
}

// isLabel reports whether a value is a label: a JSON object with a Label (GB 45438-2025,
// annex E).
func isLabel(value []byte) bool {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return false
	}
	label := string(fields["Label"])
	return label != "" && label != `""` && label != "null"
}
