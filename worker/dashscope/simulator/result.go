package simulator

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"fmt"
	"image"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// maxNegativePrompt is the length at which the service truncates a negative prompt
// (text-to-image references). defaultRefStrength is the strength of a reference if
// absent (not documented).
const (
	maxNegativePrompt  = 500
	defaultRefStrength = 0.5
)

// resultName returns the name that a task's images share. As in the published example
// it is a UUID and not the task's ID.
func resultName(taskID string) string {
	sum := hash("simulator", "result", taskID)
	return uuid([16]byte(sum[:16]))
}

// resultURL returns the signed URL of an image, in the form of the published example:
// /1d/86/20231214/8d820c8d/<uuid>-1.png. Its host is the request's.
func (s *Simulator) resultURL(r *http.Request, t *task, index int) string {
	name := resultName(t.ID)
	path := fmt.Sprintf("%s%s/%s/%s/%s-%d.png", resultPath, name[:2], t.end.In(beijing()).Format("20060102"), name[4:8]+name[9:13], name, index+1)
	expires := strconv.FormatInt(t.end.Add(s.resultLifetime()).Unix(), 10)
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	query := url.Values{
		"Expires": {expires}, "OSSAccessKeyId": {ossAccessKeyID},
		"Signature": {ossSign(resultText(http.MethodGet, expires, path))},
	}
	return (&url.URL{Scheme: scheme, Host: r.Host, Path: path, RawQuery: query.Encode()}).String()
}

// resultText returns the text that a URL's signature signs.
func resultText(method, expires, path string) string {
	return method + "\n\n\n" + expires + "\n/" + ossBucket + path
}

// serveResult serves a download as OSS does: Range requests and conditional requests
// work, and a URL expires.
func (s *Simulator) serveResult(w http.ResponseWriter, r *http.Request, requestID string) {
	if err := checkSigned(r, wallClock()); err != nil {
		writeOSSError(w, err, requestID)
		return
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	base, number := cutLast(strings.TrimSuffix(name, ".png"), "-")
	index, _ := strconv.Atoi(number)
	index--
	s.mu.Lock()
	t := s.byResult[base]
	exists := t != nil && t.hasImage(index, wallClock())
	var ref *image.RGBA
	if exists {
		ref = s.uploaded(t.Request.Input)
	}
	s.mu.Unlock()
	if !exists {
		writeOSSError(w, &ossError{status: http.StatusNotFound, Code: "NoSuchKey", Message: "The specified key does not exist."}, requestID)
		return
	}
	render := s.Render
	if render == nil {
		render = painter.Paint
	}
	content := render(picture(t, index, ref))
	ossHeaders(w, requestID)
	contentHeaders(w, content)
	w.Header().Set("Content-Type", "image/png")
	http.ServeContent(w, r, "", t.end, bytes.NewReader(content))
}

// checkSigned validates a signed URL as OSS does.
func checkSigned(r *http.Request, now time.Time) *ossError {
	query := r.URL.Query()
	expires := query.Get("Expires")
	at, err := strconv.ParseInt(expires, 10, 64)
	switch {
	case query.Get("Signature") == "":
		return &ossError{status: http.StatusForbidden, Code: "AccessDenied", Message: "You have no right to access this object because of bucket acl."}
	case r.Header.Get("Authorization") != "":
		return &ossError{status: http.StatusBadRequest, Code: "InvalidArgument", Message: "Only one auth mechanism allowed; only the signature in the query string or the Authorization header should be specified."}
	case err != nil:
		return &ossError{status: http.StatusForbidden, Code: "AccessDenied", Message: "Invalid date (should be seconds since epoch)."}
	case now.Unix() >= at:
		return &ossError{
			status: http.StatusForbidden, Code: "AccessDenied", Message: "Request has expired.",
			Expires: isoMillis(time.Unix(at, 0)), ServerTime: isoMillis(now),
		}
	case query.Get("OSSAccessKeyId") != ossAccessKeyID:
		return &ossError{status: http.StatusForbidden, Code: "InvalidAccessKeyId", Message: "The OSS Access Key Id you provided does not exist in our records."}
	case !hmac.Equal([]byte(query.Get("Signature")), []byte(ossSign(resultText(r.Method, expires, r.URL.Path)))):
		return &ossError{status: http.StatusForbidden, Code: "SignatureDoesNotMatch", Message: "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	default:
		return nil
	}
}

// uploaded returns the uploaded reference image of a task, nil if there is none. s.mu
// must be held.
func (s *Simulator) uploaded(in dashscope.Input) *image.RGBA {
	key, _ := strings.CutPrefix(cmp.Or(reference(in), firstInput(in)), "oss://")
	if up := s.uploads[key]; up != nil {
		return up.picture
	}
	return nil
}

// firstInput returns the name of the first image that a model edits, empty if there is none.
func firstInput(in dashscope.Input) string {
	if images := inputs(in); len(images) > 0 {
		return images[0]
	}
	return ""
}

// editStrength is how much of the image that a model edits is kept.
const editStrength = 0.8

// picture returns the contents of an image. A reference that was not uploaded is at a
// URL, which is never downloaded.
func picture(t *task, index int, uploaded *image.RGBA) painter.Picture {
	in, p := t.Request.Input, t.Request.Parameters
	width, height := t.size()
	pic := painter.Picture{
		Model: t.Request.Model, Prompt: truncateRunes(in.Prompt, t.model.promptRunes), NegativePrompt: truncateRunes(in.NegativePrompt, maxNegativePrompt),
		ActualPrompt: t.actualPrompt(), Width: width, Height: height, Seed: t.Seed + int64(index), Index: index, N: t.n(),
		RefMode: p.RefMode, RefStrength: defaultRefStrength,
	}
	if t.model.hasWatermark(t.Request) {
		pic.Watermark = t.model.watermark
	}
	if t.model.honors("style") {
		pic.Style = cmp.Or(p.Style, painter.DefaultStyle)
	}
	if !t.model.honors("ref_img") {
		return pic
	}
	if p.RefStrength != nil {
		pic.RefStrength = *p.RefStrength
	}
	name := reference(in)
	if t.model.catalog != nil {
		name, pic.RefStrength = firstInput(in), editStrength
	}
	switch {
	case uploaded != nil:
		pic.Ref = uploaded
	case name != "":
		pic.Ref = painter.Placeholder(name)
	}
	return pic
}

// actualPrompt returns the rewritten prompt, empty if it was not rewritten.
func (t *task) actualPrompt() string {
	if !t.model.rewritesPrompt(t.Request) {
		return ""
	}
	return rewritePrompt(truncateRunes(t.Request.Input.Prompt, t.model.promptRunes))
}

// truncateRunes truncates a text as the service does.
func truncateRunes(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}

// cutLast splits around the last separator; after is "" if there is none.
func cutLast(text, sep string) (before, after string) {
	if i := strings.LastIndex(text, sep); i >= 0 {
		return text[:i], text[i+len(sep):]
	}
	return text, ""
}
