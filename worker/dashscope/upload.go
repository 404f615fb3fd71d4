package dashscope

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"strings"
	"sync"
)

// Upload stores a reference image in the service's temporary store and returns its
// oss:// name, which is valid for 48 hours and only for this model and account. The
// filename's last element becomes part of that name; characters other than ASCII
// letters, digits, dot, dash and underscore are replaced by an underscore. It may be
// empty. body must have exactly size bytes; it is streamed.
//
// It fails with an [*Error]. After [KindTemporary] and [KindThrottled], call it again
// with the body from its start: each call gets a new credential and name, and what an
// earlier one left behind costs nothing. After [KindTerminal], do not.
func (c *Client) Upload(ctx context.Context, model, filename, contentType string, size int64, body io.Reader) (string, error) {
	if size < 0 {
		return "", invalid(opUpload, fmt.Errorf("size %d: must not be negative", size))
	}
	a, err := c.get(ctx, opUpload, http.MethodGet, PathUploads, url.Values{"action": {"getPolicy"}, "model": {model}})
	if err != nil {
		return "", err
	}
	var p PolicyResponse
	if json.Unmarshal(a.body, &p) != nil || p.Data.UploadHost == "" || p.Data.UploadDir == "" {
		return "", c.fault(opUpload, a)
	}
	if limit := int64(p.Data.MaxFileSizeMB) << 20; limit > 0 && size > limit {
		return "", invalid(opUpload, fmt.Errorf("file of %d bytes: the service accepts at most %d", size, limit))
	}
	if host, err := url.Parse(p.Data.UploadHost); err != nil || host.Host == "" ||
		host.Scheme != "https" && host.Scheme != c.base.Scheme {
		return "", &Error{Op: opUpload, Kind: KindTemporary, RequestID: clean(p.RequestID), Err: errors.New("upload_host is not an https URL")}
	}
	key := p.Data.UploadDir + "/" + safeName(filename)
	ctx, cancel := withTimeout(ctx, c.timeouts.upload)
	defer cancel()
	file := &counted{Reader: io.LimitReader(body, size+1)} // one extra byte detects a longer body
	r, err := newUploadRequest(ctx, p.Data, key, contentType, size, file)
	if err != nil {
		return "", invalid(opUpload, err)
	}
	r.Header.Set("User-Agent", c.userAgent)
	released := make(chan struct{})
	r.Body = &watched{Reader: r.Body, closed: released}
	a = c.exchange(c.oneShot, opUpload, r)
	select { // after an early answer net/http may still be reading
	case <-released:
		if a.status == http.StatusOK && file.n != size {
			a.err = fmt.Errorf("body does not have the %d bytes announced", size)
		}
	case <-ctx.Done():
	}
	if a.err != nil || a.status != http.StatusOK {
		return "", c.uploadFault(a)
	}
	return "oss://" + key, nil
}

// counted counts the bytes read.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// watched signals when net/http has closed a body.
type watched struct {
	io.Reader
	once   sync.Once
	closed chan struct{}
}

// Close may be called more than once by net/http.
func (w *watched) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// newUploadRequest returns the POST of the file. Its length is set and `file` is its last field, as
// the store requires. It does not contain the API key.
func newUploadRequest(ctx context.Context, p Policy, key, contentType string, size int64, body io.Reader) (*http.Request, error) {
	contentType = cmp.Or(contentType, "application/octet-stream")
	var head bytes.Buffer
	w := multipart.NewWriter(&head)
	for _, f := range [][2]string{ // in the SDKs' order
		{"OSSAccessKeyId", p.OSSAccessKeyID}, {"Signature", p.Signature}, {"policy", p.Policy}, {"key", key},
		{"x-oss-object-acl", p.XOSSObjectACL}, {"x-oss-forbid-overwrite", p.XOSSForbidOverwrite},
		{"success_action_status", "200"}, {"x-oss-content-type", contentType},
	} {
		if err := w.WriteField(f[0], f[1]); err != nil {
			return nil, err
		}
	}
	if _, err := w.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename=%q`, path.Base(key))},
		"Content-Type":        {contentType},
	}); err != nil {
		return nil, err
	}
	tail := strings.NewReader("\r\n--" + w.Boundary() + "--\r\n")
	length := int64(head.Len()) + size + int64(tail.Len())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.UploadHost, io.MultiReader(&head, body, tail))
	if err != nil {
		return nil, err
	}
	r.ContentLength = length // the transport fails if body is shorter
	r.Header.Set("Content-Type", w.FormDataContentType())
	return r, nil
}

// uploadFault returns the error of a rejected file. The store answers in XML. It is
// temporary by default: for example, an expired credential is replaced by the next
// call.
func (c *Client) uploadFault(a answer) *Error {
	e := &Error{Op: opUpload, Kind: KindTemporary, Status: a.status, Err: a.err, RetryAfter: retryAfter(a)}
	var x struct {
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
	}
	if a.err == nil && xml.Unmarshal(a.body, &x) == nil {
		e.Code, e.Message, e.RequestID = clean(x.Code), clean(c.scrub(x.Message)), clean(x.RequestID)
	}
	if e.Code == "EntityTooLarge" {
		e.Kind = KindTerminal
	}
	if e.Code == "" && e.Err == nil {
		e.Err = errors.New("answer is not the store's XML")
	}
	return e
}

// safeName converts the last element of a file name to characters that are safe in a
// URL and a form.
func safeName(name string) string {
	name = path.Base(strings.ReplaceAll(name, `\`, "/"))
	name = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
	if strings.Trim(name, ".") == "" {
		return "image"
	}
	return name[max(0, len(name)-128):] // the end, for its extension
}
