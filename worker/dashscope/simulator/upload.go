package simulator

import (
	"bytes"
	"crypto/hmac"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"image"
	_ "image/jpeg" // the formats that wanx-v1 accepts
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"time"

	_ "golang.org/x/image/bmp" // and those that the standard library lacks
	_ "golang.org/x/image/tiff"
	_ "golang.org/x/image/webp"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// Limits of the temporary store (get-temporary-file-url page) and of a
// reference image (text-to-image reference).
const (
	policyLifetime  = 300 * time.Second
	uploadLifetime  = 48 * time.Hour
	maxUploadMB     = 100
	maxRefBytes     = 10 << 20
	minRefSide      = 256
	maxRefSide      = 4096
	maxFieldBytes   = 64 << 10
	uploadACL       = "private"
	uploadDirPrefix = "dashscope-instant/"
	// uploadRetention is how long an upload is stored here: results that show it may be
	// downloaded long after its name has expired.
	uploadRetention = uploadLifetime + taskTimeout + 24*time.Hour
)

// upload is a file in the temporary store: not its bytes, only what a task needs of it.
type upload struct {
	Key       string    `json:"key"`
	CreatedAt time.Time `json:"created_at"`
	// Failure is why a task cannot use it, if it cannot.
	Failure Failure `json:"failure,omitzero"`

	picture *image.RGBA // at most 512 pixels a side
}

// belongs reports whether the upload was made for this account and model.
func (u *upload) belongs(account, model string) bool {
	return strings.HasPrefix(u.Key, uploadOwner(account, model))
}

// uploadOwner returns the key prefix of an account and model's uploads.
func uploadOwner(account, model string) string {
	sum := hash("simulator", "uploads", account, model)
	return uploadDirPrefix + hex.EncodeToString(sum[:16]) + "/"
}

// policyDocument is the content of an upload credential.
type policyDocument struct {
	Expiration time.Time `json:"expiration"`
	Conditions []any     `json:"conditions"`
}

// policy serves a request for an upload credential.
func (s *Simulator) policy(r *http.Request, c caller, requestID string) (any, error) {
	query := r.URL.Query()
	model := query.Get("model")
	_, known := s.lookupModel(model)
	switch {
	case query.Get("action") != "getPolicy":
		return nil, &apiError{http.StatusBadRequest, "InvalidParameter", "Required parameter \"action\" missing or invalid, please check the request parameters."}
	case model == "":
		return nil, &apiError{http.StatusBadRequest, "InvalidParameter", "Required parameter \"model\" missing or invalid, please check the request parameters."}
	case !known:
		return nil, &apiError{http.StatusNotFound, "ModelNotFound", "Model can not be found."}
	case s.isRetired(model):
		return nil, retiredModel()
	}
	now := wallClock()
	s.mu.Lock()
	err := s.admitPolicy(laneKey{c.account, model}, now)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	dir := uploadOwner(c.account, model) + now.In(beijing()).Format(time.DateOnly) + "/" + newID()
	document, err := json.Marshal(policyDocument{
		Expiration: now.Add(policyLifetime),
		Conditions: []any{
			[]any{"content-length-range", 0, maxUploadMB << 20},
			[]any{"starts-with", "$key", dir},
			map[string]string{"x-oss-object-acl": uploadACL},
			map[string]string{"x-oss-forbid-overwrite": "true"},
		},
	})
	if err != nil {
		return nil, err
	}
	encoded := base64.StdEncoding.EncodeToString(document)
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return dashscope.PolicyResponse{RequestID: requestID, Data: dashscope.Policy{
		Policy: encoded, Signature: ossSign(encoded), UploadDir: dir, UploadHost: scheme + r.Host + uploadPath,
		ExpireInSeconds: int(policyLifetime / time.Second), MaxFileSizeMB: maxUploadMB, CapacityLimitMB: 999999999,
		OSSAccessKeyID: ossAccessKeyID, XOSSObjectACL: uploadACL, XOSSForbidOverwrite: "true",
	}}, nil
}

// storeUpload serves the form POST of an upload as OSS does.
func (s *Simulator) storeUpload(w http.ResponseWriter, r *http.Request, requestID string) {
	fields, content, size, err := readForm(r)
	if err == nil {
		err = checkForm(fields, size, wallClock())
	}
	if err == nil {
		err = s.keepUpload(fields["key"], content, size)
	}
	if err != nil {
		refused := &ossError{status: http.StatusInternalServerError, Code: "InternalError", Message: err.Error()}
		errors.As(err, &refused)
		writeOSSError(w, refused, requestID)
		return
	}
	ossHeaders(w, requestID)
	contentHeaders(w, content)
	status := http.StatusNoContent
	if fields["success_action_status"] == "200" {
		status = http.StatusOK
	}
	w.WriteHeader(status)
}

// readForm reads the fields before the file, and the file; it keeps no more bytes than
// a reference image may have. OSS ignores what comes after the file.
func readForm(r *http.Request) (fields map[string]string, content []byte, size int64, err error) {
	malformed := &ossError{status: http.StatusBadRequest, Code: "MalformedPOSTRequest", Message: "The body of your POST request is not well-formed multipart/form-data."}
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, nil, 0, malformed
	}
	fields = map[string]string{}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, nil, 0, &ossError{status: http.StatusBadRequest, Code: "IncorrectNumberOfFilesInPOSTRequest", Message: "POST requires exactly one file upload per request."}
		}
		if err != nil || len(fields) > 20 {
			return nil, nil, 0, malformed
		}
		if part.FormName() == "file" {
			content, size, err = readFile(part)
			if err != nil {
				return nil, nil, 0, malformed
			}
			return fields, content, size, nil
		}
		value, err := io.ReadAll(io.LimitReader(part, maxFieldBytes))
		if err != nil {
			return nil, nil, 0, malformed
		}
		fields[part.FormName()] = string(value)
	}
}

func readFile(part *multipart.Part) (content []byte, size int64, err error) {
	content, err = io.ReadAll(io.LimitReader(part, maxRefBytes))
	if err != nil {
		return nil, 0, err
	}
	rest, err := io.Copy(io.Discard, io.LimitReader(part, maxUploadMB<<20))
	return content, int64(len(content)) + rest, err
}

// checkForm validates the fields against the credential.
func checkForm(fields map[string]string, size int64, now time.Time) error {
	denied := func(message string) error {
		return &ossError{status: http.StatusForbidden, Code: "AccessDenied", Message: "Invalid according to Policy: " + message}
	}
	if fields["OSSAccessKeyId"] != ossAccessKeyID {
		return &ossError{status: http.StatusForbidden, Code: "InvalidAccessKeyId", Message: "The OSS Access Key Id you provided does not exist in our records."}
	}
	if !hmac.Equal([]byte(fields["Signature"]), []byte(ossSign(fields["policy"]))) {
		return &ossError{status: http.StatusForbidden, Code: "SignatureDoesNotMatch", Message: "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	}
	text, err := base64.StdEncoding.DecodeString(fields["policy"])
	var document policyDocument
	if err != nil || json.Unmarshal(text, &document) != nil {
		return denied("Invalid Policy.") // unreachable: it is signed
	}
	dir := ""
	if condition, ok := document.Conditions[1].([]any); ok && len(condition) == 3 {
		dir, _ = condition[2].(string)
	}
	switch {
	case !now.Before(document.Expiration):
		return denied("Policy expired.")
	case !strings.HasPrefix(fields["key"], dir+"/") || fields["key"] == dir+"/":
		return denied(`Policy Condition failed: ["starts-with", "$key", "` + dir + `"]`)
	case fields["x-oss-object-acl"] != uploadACL:
		return denied(`Policy Condition failed: ["eq", "$x-oss-object-acl", "private"]`)
	case fields["x-oss-forbid-overwrite"] != "true":
		return denied(`Policy Condition failed: ["eq", "$x-oss-forbid-overwrite", "true"]`)
	case size > maxUploadMB<<20:
		return &ossError{status: http.StatusBadRequest, Code: "EntityTooLarge", Message: "Your proposed upload exceeds the maximum allowed size."}
	default:
		return nil
	}
}

// keepUpload stores what a task needs of an upload.
func (s *Simulator) keepUpload(key string, content []byte, size int64) error {
	now := wallClock()
	up := &upload{Key: key, CreatedAt: now}
	up.picture, up.Failure = readReference(content, size)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.uploads[key]; old != nil && now.Sub(old.CreatedAt) < uploadLifetime {
		return &ossError{status: http.StatusConflict, Code: "FileAlreadyExists", Message: "The object you specified already exists and can not be overwritten."}
	}
	if err := s.recordUpload(up); err != nil {
		return err
	}
	s.uploads[key] = up
	for k, old := range s.uploads {
		if now.Sub(old.CreatedAt) > uploadRetention {
			delete(s.uploads, k)
		}
	}
	return nil
}

// readReference decodes and shrinks a reference image, or returns the failure of a task
// that uses it. The codes are those of the error-code page; the messages are assumed.
func readReference(content []byte, size int64) (*image.RGBA, Failure) {
	if size > maxRefBytes {
		return nil, Failure{"InvalidFile.Size", "The size of the input image must be at most 10 MB."}
	}
	config, _, err := image.DecodeConfig(bytes.NewReader(content))
	if err != nil {
		return nil, Failure{"InvalidImageFormat", "The format of the input image must be one of JPG, JPEG, PNG, BMP, TIFF, WEBP."}
	}
	if min(config.Width, config.Height) < minRefSide || max(config.Width, config.Height) > maxRefSide {
		return nil, Failure{"InvalidImageResolution", "The width and height of the input image must be from 256 to 4096 pixels."}
	}
	img, _, err := image.Decode(bytes.NewReader(content))
	if err != nil {
		return nil, Failure{"InvalidImageFormat", "The input image cannot be decoded."}
	}
	return painter.Shrink(img), Failure{}
}
