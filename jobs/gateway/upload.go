package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// formPath takes the form that an upload is, as DashScope's temporary store does.
	formPath = "/api/v1/uploads/form"
	// policyLifetime and uploadMegabytes are DashScope's own (the page on temporary
	// file URLs; 10 MB is what a reference image may have).
	policyLifetime  = 300 * time.Second
	uploadMegabytes = 10
	formBytes       = uploadMegabytes<<20 + 256<<10
	fieldBytes      = 8 << 10
	fieldsMost      = 32
	fileNameBytes   = 255
	// unknownBytes is what is read of a form before its credential: fields, and the headers
	// of parts, which are kept in memory.
	unknownBytes = 512 << 10
	// uploadTime bounds an upload, and bodyTimeout each pause in it.
	uploadTime = 2 * time.Minute
	// uploadLifetime is how long an oss:// name is known, as at DashScope.
	uploadLifetime = 48 * time.Hour
	uploadPrefix   = "danqing:upload:"
	ossScheme      = "oss://"
)

// uploadPolicy is what an upload's credential says.
type uploadPolicy struct {
	Producer string    `json:"producer"`
	Model    string    `json:"model"`
	Dir      string    `json:"dir"`
	Expires  time.Time `json:"expires"`
}

// uploadNote is what Redis knows of an uploaded file.
type uploadNote struct {
	SHA256   string `json:"sha256"`
	Producer string `json:"producer"`
}

// policySignature signs a policy with a key that is made of the token: all gateways
// that know the token agree, and nothing is kept.
func (a *api) policySignature(producer, policy string) string {
	secret := ""
	for _, t := range a.tokens {
		if t.token.Name == producer {
			secret = t.token.Secret
		}
	}
	key := sha256.Sum256([]byte("danqing/upload/1\n" + secret))
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(policy))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// policy answers with the credential for an upload, as DashScope does.
func (a *api) policy(_ http.ResponseWriter, r *request) (any, error) {
	q := r.URL.Query()
	if action := q.Get("action"); action != "getPolicy" {
		return nil, invalid("action", action, "getPolicy")
	}
	model, err := jobs.LookupModel(q.Get("model"))
	if wrong := (jobs.FieldError{}); errors.As(err, &wrong) {
		return nil, &jobs.InvalidError{Fields: []jobs.FieldError{wrong}}
	}
	if len(model.RefModes) == 0 {
		return nil, invalid("model", model.Name, "a model that takes a reference image, such as "+jobs.DefaultModel)
	}
	says := uploadPolicy{Producer: r.caller.Name, Model: model.Name, Dir: "danqing-instant/" + strings.ToLower(rand.Text()), Expires: time.Now().Add(policyLifetime).UTC()}
	encoded, err := json.Marshal(says)
	if err != nil {
		return nil, fmt.Errorf("make upload policy: %w", err)
	}
	policy := base64.StdEncoding.EncodeToString(encoded)
	return dashscope.PolicyResponse{RequestID: r.id, Data: dashscope.Policy{
		Policy: policy, Signature: a.policySignature(says.Producer, policy), UploadDir: says.Dir, UploadHost: a.base(r.Request) + formPath,
		ExpireInSeconds: int(policyLifetime.Seconds()), MaxFileSizeMB: uploadMegabytes, CapacityLimitMB: 999999999,
		OSSAccessKeyID: "danqing", XOSSObjectACL: "private", XOSSForbidOverwrite: "true",
	}}, nil
}

// upload takes a form with a reference image, and stages that under its hash. The
// policy in the form is the credential. It answers with nothing, as OSS does.
func (a *api) upload(w http.ResponseWriter, r *request) (any, error) {
	control := http.NewResponseController(w)
	body := &patient{ReadCloser: r.Body, control: control, end: time.Now().Add(uploadTime), left: unknownBytes}
	r.Body = http.MaxBytesReader(w, body, formBytes)
	form, err := r.MultipartReader()
	if err != nil {
		return nil, refuse(http.StatusBadRequest, codeParameter, "the body must be a form, multipart/form-data, with the file last", 0)
	}
	fields := map[string]string{}
	for range fieldsMost {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, refuse(http.StatusBadRequest, codeParameter, "the form has no file: it must be there, and last", 0)
		}
		if err != nil {
			return nil, formFailed(err)
		}
		if part.FormName() == "file" {
			if err := a.takeFile(r.Context(), fields, part, body); err != nil {
				return nil, err
			}
			w.WriteHeader(http.StatusOK)
			return nil, nil //nolint:nilnil // it is answered
		}
		value, err := io.ReadAll(io.LimitReader(part, fieldBytes+1))
		if err != nil {
			return nil, formFailed(err)
		}
		if len(value) > fieldBytes {
			return nil, refuse(http.StatusBadRequest, codeParameter, "a field of the form is too long", 0)
		}
		fields[strings.ToLower(part.FormName())] = string(value)
	}
	return nil, refuse(http.StatusBadRequest, codeParameter, "the form has too many fields", 0)
}

// formFailed is why a form could not be read.
func formFailed(err error) error {
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return err
	}
	return refuse(http.StatusBadRequest, codeParameter, "the form did not arrive whole", 0)
}

// patient gives a body as long as something comes, and not more than is left to it.
type patient struct {
	io.ReadCloser
	control *http.ResponseController
	end     time.Time
	left    int64
}

var errTooMuch = errors.New("too much came before the form's credential")

func (p *patient) Read(b []byte) (int, error) {
	deadline := time.Now().Add(bodyTimeout)
	if p.end.Before(deadline) {
		deadline = p.end
	}
	_ = p.control.SetReadDeadline(deadline) // not every reader has one
	if p.left <= 0 {
		return 0, errTooMuch
	}
	n, err := p.ReadCloser.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	return n, err
}

// takeFile stages the file of a form whose policy lets it in.
func (a *api) takeFile(ctx context.Context, fields map[string]string, content io.Reader, body *patient) error {
	says, err := a.checkPolicy(fields)
	if err != nil {
		return err
	}
	body.left = formBytes
	name, ok := strings.CutPrefix(fields["key"], says.Dir+"/")
	if !ok || !fileName(name) {
		return refuse(http.StatusForbidden, codeDenied, "Invalid according to Policy: the key must be upload_dir, a slash and a file's name", 0)
	}
	leave, err := a.transfers[says.Producer].enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	ref, err := a.stageFile(ctx, content)
	if err != nil {
		return err
	}
	note, err := json.Marshal(uploadNote{SHA256: ref.SHA256, Producer: says.Producer})
	if err != nil {
		return fmt.Errorf("note upload: %w", err)
	}
	_, err = a.redis.SetArgs(ctx, uploadPrefix+fields["key"], note, redis.SetArgs{Mode: "NX", TTL: uploadLifetime}).Result()
	if errors.Is(err, redis.Nil) {
		if before, err := a.redis.Get(ctx, uploadPrefix+fields["key"]).Result(); err == nil && before != string(note) {
			return refuse(http.StatusConflict, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.", 0)
		}
		return nil
	}
	return err
}

// fileName reports whether a name is one file's, in no other folder.
func fileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= fileNameBytes && utf8.ValidString(name) &&
		!strings.ContainsAny(name, `/\`) && !strings.ContainsFunc(name, unicode.IsControl)
}

func (a *api) checkPolicy(fields map[string]string) (uploadPolicy, error) {
	var says uploadPolicy
	denied := refuse(http.StatusForbidden, codeDenied, "The request signature we calculated does not match the signature you provided.", 0)
	decoded, err := base64.StdEncoding.DecodeString(fields["policy"])
	if err != nil || json.Unmarshal(decoded, &says) != nil {
		return says, denied
	}
	want := a.policySignature(says.Producer, fields["policy"])
	if !hmac.Equal([]byte(want), []byte(fields["signature"])) || len(a.tokens) > 0 && !a.knows(says.Producer) {
		return says, denied
	}
	if !time.Now().Before(says.Expires) {
		return says, refuse(http.StatusForbidden, codeDenied, "Invalid according to Policy: Policy expired.", 0)
	}
	return says, nil
}

func (a *api) knows(producer string) bool {
	for _, t := range a.tokens {
		if t.token.Name == producer {
			return true
		}
	}
	return false
}

// stageFile copies a file by way of the disk into the bucket.
func (a *api) stageFile(ctx context.Context, content io.Reader) (*storage.Reference, error) {
	file, err := os.CreateTemp(a.cfg.TempDir, "upload-*")
	if err != nil {
		return nil, fmt.Errorf("take upload: %w", err)
	}
	defer os.Remove(file.Name()) //nolint:errcheck // it is nobody's any more
	_, err = io.Copy(file, io.LimitReader(content, uploadMegabytes<<20+1))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return nil, fmt.Errorf("take upload: %w", err)
	}
	if err != nil {
		return nil, formFailed(err)
	}
	ref, err := storage.InspectReference(file.Name())
	if err != nil {
		return nil, refuse(http.StatusBadRequest, codeParameter, strings.ReplaceAll(err.Error(), " "+file.Name(), ""), 0)
	}
	return ref, a.cfg.Bucket.StageReference(ctx, ref)
}

// uploaded returns the staged name of what the caller has uploaded.
func (a *api) uploaded(ctx context.Context, c caller, name string) (string, error) {
	const remedy = "names another's file, or one of long ago: upload it here first, as the SDKs do with a path"
	unknown := &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "ref_img", Value: "oss://…", Remedy: remedy}}}
	encoded, err := a.redis.Get(ctx, uploadPrefix+strings.TrimPrefix(name, ossScheme)).Result()
	if errors.Is(err, redis.Nil) {
		return "", unknown
	}
	if err != nil {
		return "", fmt.Errorf("look for upload: %w", err)
	}
	var note uploadNote
	if json.Unmarshal([]byte(encoded), &note) != nil || !c.all && note.Producer != c.Name {
		return "", unknown
	}
	return jobs.StagedPrefix + note.SHA256, nil
}
