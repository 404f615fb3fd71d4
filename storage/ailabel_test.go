package storage

import (
	"bytes"
	"compress/zlib"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const labelValue = `{"Label":"1","ContentProducer":"001191110102MACQD9K64010000","ProduceID":"7","ReservedCode1":"","ContentPropagator":"","PropagateID":"","ReservedCode2":""}`

// xmp returns an XMP packet with content in its rdf:RDF.
func xmp(content string) string {
	return "<?xpacket begin=\"\ufeff\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>" +
		`<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">` + content +
		`</rdf:RDF></x:xmpmeta><?xpacket end="w"?>`
}

// described returns an XMP packet with content in its rdf:Description.
func described(content string) string {
	return xmp(`<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">` + content + `</rdf:Description>`)
}

const labelElement = `<TC260:AIGC>` + labelValue + `</TC260:AIGC>`

func deflated(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, _ = w.Write([]byte(text)) // a buffer does not fail
	_ = w.Close()
	return b.String()
}

// labeledPNG, labeledJPEG and labeledWebP return images of 512×256 with chunks and segments
// besides what they need.
func labeledPNG(chunks ...string) string {
	return pngSignature + pngChunk("IHDR", ihdrData) + strings.Join(chunks, "") + pngChunk("IDAT", "abc") + pngChunk("IEND", "")
}

func labeledJPEG(segments ...string) string {
	return soi + strings.Join(segments, "") + segment(jpegDQT, "q") + segment(jpegDHT, "h") + segment(jpegSOF0, sofData) + segment(jpegSOS, scanData) + "data" + eoi
}

func labeledWebP(chunks ...string) string {
	return riff(append([]string{riffChunk("VP8X", vp8xData), riffChunk("VP8 ", vp8Data)}, chunks...)...)
}

func iTXt(keyword, text string) string {
	return pngChunk("iTXt", keyword+"\x00\x00\x00zh\x00\x00"+text)
}

// iTXtDeflated is an iTXt chunk with a compressed XMP packet.
func iTXtDeflated(compressed string) string {
	return pngChunk("iTXt", xmpKeyword+"\x00\x01\x00\x00\x00"+compressed)
}

const xmpKeyword = "XML:com.adobe.xmp"

// An AI label is found where the rules put it, and nowhere else.
func TestAILabel(t *testing.T) {
	t.Parallel()
	escaped := strings.ReplaceAll(labelValue, `"`, "&quot;")
	packet := described(labelElement)
	padding := strings.Repeat(" ", maxLabelBytes)
	for name, c := range map[string]struct {
		content string
		want    bool
	}{
		"PNG, XMP":               {labeledPNG(iTXt(xmpKeyword, packet)), true},
		"PNG, compressed XMP":    {labeledPNG(iTXtDeflated(deflated(packet))), true},
		"PNG, tEXt":              {labeledPNG(pngChunk("tEXt", "AIGC\x00"+labelValue)), true},
		"PNG, behind other text": {labeledPNG(pngChunk("tEXt", "prompt\x00a cat"), iTXt("Comment", "a dog"), iTXt(xmpKeyword, packet)), true},
		"PNG, behind much text":  {labeledPNG(pngChunk("tEXt", "workflow\x00"+padding), pngChunk("tEXt", "prompt\x00"+padding), iTXt(xmpKeyword, packet)), true},
		"PNG, behind the image":  {pngSignature + pngChunk("IHDR", ihdrData) + pngChunk("IDAT", "abc") + iTXt(xmpKeyword, packet) + pngChunk("IEND", ""), true},
		"JPEG":                   {labeledJPEG(segment(jpegAPP0, "JFIF"), segment(jpegAPP1, "Exif\x00\x00MM"), segment(jpegAPP1, jpegXMPHeader+packet)), true},
		"WebP":                   {labeledWebP(riffChunk("EXIF", "MM"), riffChunk("XMP ", packet)), true},
		"entities":               {labeledJPEG(segment(jpegAPP1, jpegXMPHeader+described("<TC260:AIGC>"+escaped+"</TC260:AIGC>"))), true},
		"an attribute":           {labeledWebP(riffChunk("XMP ", xmp(`<rdf:Description xmlns:t="http://www.tc260.org.cn/ns/AIGC/1.0/" t:AIGC="`+escaped+`"/>`))), true},
		"no namespace declared":  {labeledWebP(riffChunk("XMP ", xmp(`<rdf:Description TC260:AIGC="`+escaped+`"/>`))), true},
		"behind other values":    {labeledWebP(riffChunk("XMP ", described("<dc:title><rdf:Alt><rdf:li>a</rdf:li></rdf:Alt></dc:title><TC260:AIGC></TC260:AIGC>"+labelElement))), true},
		"of a second one":        {labeledWebP(riffChunk("XMP ", xmp("<rdf:Description/>"+strings.TrimSuffix(strings.SplitAfterN(packet, "syntax-ns#\">", 2)[1], `</rdf:RDF></x:xmpmeta><?xpacket end="w"?>`)))), true},
		"before damaged text":    {labeledWebP(riffChunk("XMP ", described(labelElement+"<&"))), true},
		"before much text":       {labeledWebP(riffChunk("XMP ", packet+padding)), true},

		"PNG without":             {labeledPNG(), false},
		"JPEG without":            {labeledJPEG(), false},
		"WebP without":            {labeledWebP(), false},
		"PNG, other XMP":          {labeledPNG(iTXt(xmpKeyword, described("<dc:title>AIGC</dc:title>"))), false},
		"PNG, prompt":             {labeledPNG(pngChunk("tEXt", "prompt\x00"+labelValue), iTXt("prompt", packet), pngChunk("tEXt", "parameters\x00AIGC\x00"+labelValue)), false},
		"PNG, pixels":             {labeledPNG(pngChunk("IDAT", packet), pngChunk("IDAT", "AIGC\x00"+labelValue)), false},
		"PNG, longer keyword":     {labeledPNG(pngChunk("tEXt", "AIGC2\x00"+labelValue)), false},
		"PNG, no keyword":         {labeledPNG(pngChunk("tEXt", "AIGC"), iTXt("", ""), pngChunk("iTXt", xmpKeyword), pngChunk("iTXt", xmpKeyword+"\x00\x01"), pngChunk("iTXt", "")), false},
		"PNG, another chunk":      {labeledPNG(pngChunk("zTXt", "AIGC\x00"+labelValue), pngChunk("teXt", "AIGC\x00"+labelValue)), false},
		"JPEG, pixels":            {strings.Replace(labeledJPEG(), "data", segment(jpegAPP1, jpegXMPHeader)[4:]+packet, 1), false},
		"JPEG, comment":           {labeledJPEG(segment(jpegCOM, packet), segment(jpegCOM, labelValue)), false},
		"JPEG, another segment":   {labeledJPEG(segment(0xE2, jpegXMPHeader+packet), segment(jpegAPP1, "Exif\x00\x00"+packet), segment(jpegAPP1, "")), false},
		"WebP, pixels":            {riff(riffChunk("VP8X", vp8xData), riffChunk("VP8 ", vp8Data+packet)), false},
		"WebP, another chunk":     {labeledWebP(riffChunk("EXIF", packet), riffChunk("xmp ", packet), riffChunk("XMP ", "")), false},
		"in a prompt":             {labeledWebP(riffChunk("XMP ", described("<dc:description>"+strings.ReplaceAll(labelElement, "<", "&lt;")+"</dc:description><dc:title><![CDATA["+labelElement+"]]></dc:title><!--"+labelElement+"-->"))), false},
		"within another property": {labeledWebP(riffChunk("XMP ", described("<dc:description rdf:parseType='Literal'>"+labelElement+"</dc:description>"))), false},
		"outside the RDF":         {labeledWebP(riffChunk("XMP ", labelElement)), false},
		"another namespace":       {labeledWebP(riffChunk("XMP ", described("<dc:AIGC>"+labelValue+"</dc:AIGC><AIGC>"+labelValue+"</AIGC>"))), false},
		"no value":                {labeledWebP(riffChunk("XMP ", described("<TC260:AIGC/>"))), false},
		"no label in it":          {labeledWebP(riffChunk("XMP ", described(`<TC260:AIGC>{"Label":"","ProduceID":"7"}</TC260:AIGC>`))), false},
		"no object":               {labeledPNG(pngChunk("tEXt", "AIGC\x00Label"), pngChunk("tEXt", `AIGC\x00["Label"]`), pngChunk("tEXt", "AIGC\x00")), false},
		"behind the bound":        {labeledWebP(riffChunk("XMP ", described("<dc:title>"+padding+"</dc:title>"+labelElement))), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, portion := range []int{1, 1000, 1 << 20} {
				_, got, err := walkImage([]byte(c.content), portion)
				require.NoError(t, err)
				assert.Equal(t, c.want, got.label.found, "portions of %d", portion)
			}
		})
	}
}

// Hostile metadata costs little memory and time: huge chunks, what inflates to gigabytes, many
// of them, deep XML.
func TestHostileMetadata(t *testing.T) { //nolint:paralleltest // measures the whole process
	bomb := deflated(described("<dc:title>" + strings.Repeat("x", 16<<20) + "</dc:title>" + labelElement))
	var many []string
	for range 2000 {
		many = append(many, iTXtDeflated(bomb[:500]))
	}
	for name, text := range map[string]string{
		"a bomb":      labeledPNG(iTXtDeflated(bomb)),
		"many bombs":  labeledPNG(many...),
		"a huge one":  labeledWebP(riffChunk("XMP ", strings.Repeat("x", 8<<20))),
		"deep":        labeledWebP(riffChunk("XMP ", strings.Repeat("<a>", 2<<20))),
		"attributes":  labeledWebP(riffChunk("XMP ", "<a "+strings.Repeat("b='' ", 1<<20)+"/>")),
		"a huge text": labeledPNG(pngChunk("tEXt", "AIGC\x00"+strings.Repeat("[", 8<<20))),
	} {
		content := []byte(text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, got, err := walkImage(content, copyBuffer)
		runtime.ReadMemStats(&after)
		require.NoError(t, err, name)
		assert.False(t, got.label.found, name)
		assert.LessOrEqual(t, cap(got.label.text), 2*maxLabelBytes, name)
		t.Logf("%s: allocated %d KiB", name, (after.TotalAlloc-before.TotalAlloc)>>10)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(24<<20), name)
	}
}

// Whatever an image's metadata is, reading it ends, and the size of the writes does not matter.
func FuzzAILabel(f *testing.F) {
	f.Add([]byte(described(labelElement)), uint16(7))
	f.Add([]byte(xmp(`<rdf:Description TC260:AIGC="{}"/>`)), uint16(1))
	f.Add([]byte(labelValue), uint16(1))
	f.Fuzz(func(t *testing.T, metadata []byte, portion uint16) {
		text := string(metadata)
		for _, content := range []string{
			labeledPNG(iTXt(xmpKeyword, text)), labeledPNG(iTXtDeflated(text)), labeledPNG(iTXtDeflated(deflated(text))),
			labeledPNG(pngChunk("tEXt", text)), labeledPNG(pngChunk("iTXt", text)), labeledWebP(riffChunk("XMP ", text)), labeledJPEG(segment(jpegAPP1, text[:min(len(text), 60_000)])),
		} {
			_, whole, err := walkImage([]byte(content), len(content))
			_, parts, partsErr := walkImage([]byte(content), int(portion)+1)
			if err != nil || partsErr != nil || whole.label.found != parts.label.found {
				t.Fatalf("whole: %v, in portions: %v", err, partsErr)
			}
			if cap(whole.label.text) > 2*maxLabelBytes {
				t.Fatalf("it keeps %d bytes", cap(whole.label.text))
			}
		}
	})
}
