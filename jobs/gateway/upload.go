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
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// formPath is the path for upload forms, in place of DashScope's temporary store. It is
	// followed by the signed policy: the form has it too, but is not read without it.
	formPath = "/api/v1/uploads/form/"
	// policyLifetime is DashScope's (the page on temporary file URLs).
	policyLifetime = 300 * time.Second
	// maxFormExtra is what a form may have beside its file.
	maxFormExtra     = 256 << 10
	maxFieldBytes    = 8 << 10
	maxFormFields    = 32
	maxFileNameBytes = 255
	// maxBytesBeforeFile limits a form before its file: its fields and the headers of its
	// parts are held in memory.
	maxBytesBeforeFile = 512 << 10
	// uploadTimeout limits a whole upload, and bodyTimeout each pause in it.
	uploadTimeout = 2 * time.Minute
	// uploadLifetime is how long an oss:// name is valid, as at DashScope.
	uploadLifetime = 48 * time.Hour
	ossScheme      = "oss://"
	dataScheme     = "data:" // of a URL that has the file itself
)

// uploadPolicy is the content of an upload's signed policy.
type uploadPolicy struct {
	Producer string    `json:"producer"`
	Model    string    `json:"model"`
	Dir      string    `json:"dir"`
	Expires  time.Time `json:"expires"`
}

// uploadEntry is the value in Redis for an uploaded file.
type uploadEntry struct {
	SHA256   string `json:"sha256"`
	Producer string `json:"producer"`
}

// policySignature signs a policy with a key that is derived from the token, so that all
// gateways with the same token accept it without shared state.
func (a *api) policySignature(secret, policy string) string {
	key := sha256.Sum256([]byte("danqing/upload/1\n" + secret))
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(policy))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// getPolicy answers with the policy for an upload, as DashScope does: for every model, as
// the SDKs upload an image also for one that ignores it.
func (a *api) getPolicy(_ http.ResponseWriter, r *request) (any, error) {
	q := r.URL.Query()
	if action := q.Get("action"); action != "getPolicy" {
		return nil, invalidField("action", action, "getPolicy")
	}
	model, err := jobs.LookupModel(q.Get("model"))
	if wrong := (jobs.FieldError{}); errors.As(err, &wrong) {
		return nil, &jobs.InvalidError{Fields: []jobs.FieldError{wrong}}
	}
	policy := uploadPolicy{Producer: r.caller.Name, Model: model.Name, Dir: "danqing-instant/" + strings.ToLower(rand.Text()), Expires: time.Now().Add(policyLifetime).UTC()}
	encoded, err := json.Marshal(policy)
	if err != nil {
		return nil, fmt.Errorf("make upload policy: %w", err)
	}
	encodedPolicy := base64.RawURLEncoding.EncodeToString(encoded)
	signature := a.policySignature(r.caller.Secret, encodedPolicy)
	return dashscope.PolicyResponse{RequestID: r.id, Data: dashscope.Policy{
		Policy: encodedPolicy, Signature: signature, UploadDir: policy.Dir, UploadHost: a.baseURL(r.Request) + formPath + encodedPolicy + "." + signature,
		ExpireInSeconds: int(policyLifetime.Seconds()), MaxFileSizeMB: int(ReferenceLimits(model.Name).WithDefaults().MaxBytes >> 20), CapacityLimitMB: 999999999,
		OSSAccessKeyID: "danqing", XOSSObjectACL: "private", XOSSForbidOverwrite: "true",
	}}, nil
}

// upload accepts a form with a reference image, and stages it under its hash. The signed
// policy in the URL is the credential. The answer is empty, as from OSS.
func (a *api) upload(w http.ResponseWriter, r *request) (any, error) {
	policy, owner, err := a.verifyPolicy(r.PathValue("policy"))
	if err != nil {
		return nil, err
	}
	r.caller = owner
	defer a.enter(r)()
	if r.crowded {
		return nil, a.errCrowded(r)
	}
	if err := a.countUpload(r.Context(), owner); err != nil {
		return nil, err
	}
	release, err := a.shares[owner.Name].transfers.acquire(r.Context())
	if err != nil {
		return nil, err
	}
	defer release()
	control := http.NewResponseController(w)
	body := &deadlineReader{ReadCloser: r.Body, control: control, end: time.Now().Add(uploadTimeout), left: maxBytesBeforeFile}
	maxFormBytes := ReferenceLimits(policy.Model).WithDefaults().MaxBytes + maxFormExtra
	r.Body = http.MaxBytesReader(w, body, maxFormBytes)
	form, err := r.MultipartReader()
	if err != nil {
		return nil, newAPIError(http.StatusBadRequest, codeParameter, "the body must be a form, multipart/form-data, with the file last", 0)
	}
	fields := map[string]string{}
	for range maxFormFields {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, newAPIError(http.StatusBadRequest, codeParameter, "the form has no file: add it as the last field", 0)
		}
		if err != nil {
			return nil, formError(err)
		}
		if part.FormName() == "file" {
			body.left = maxFormBytes
			if err := a.storeUpload(r.Context(), owner, policy, fields, part); err != nil {
				return nil, err
			}
			w.WriteHeader(http.StatusOK)
			return nil, nil //nolint:nilnil // already answered
		}
		value, err := io.ReadAll(io.LimitReader(part, maxFieldBytes+1))
		if err != nil {
			return nil, formError(err)
		}
		if len(value) > maxFieldBytes {
			return nil, newAPIError(http.StatusBadRequest, codeParameter, "a field of the form is too long", 0)
		}
		fields[strings.ToLower(part.FormName())] = string(value)
	}
	return nil, newAPIError(http.StatusBadRequest, codeParameter, "the form has too many fields", 0)
}

// formError is the error for a form that could not be read.
func formError(err error) error {
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return err
	}
	return newAPIError(http.StatusBadRequest, codeParameter, "the form is incomplete", 0)
}

// deadlineReader reads a body with a deadline for each Read and one for the whole, up to a
// limit of bytes.
type deadlineReader struct {
	io.ReadCloser
	control *http.ResponseController
	end     time.Time
	left    int64
}

var errTooLargeForm = errors.New("the form is too large before its file")

func (p *deadlineReader) Read(b []byte) (int, error) {
	deadline := time.Now().Add(bodyTimeout)
	if p.end.Before(deadline) {
		deadline = p.end
	}
	_ = p.control.SetReadDeadline(deadline) // unsupported in tests
	if p.left <= 0 {
		return 0, errTooLargeForm
	}
	n, err := p.ReadCloser.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	return n, err
}

// storeUpload stages the file of a form.
func (a *api) storeUpload(ctx context.Context, c caller, policy uploadPolicy, fields map[string]string, content io.Reader) error {
	name, ok := strings.CutPrefix(fields["key"], policy.Dir+"/")
	if !ok || !isFileName(name) {
		return newAPIError(http.StatusForbidden, codeDenied, "Invalid according to Policy: the key must be upload_dir, a slash and a file name", 0)
	}
	ref, err := a.stageFile(ctx, c, content, ReferenceLimits(policy.Model))
	if err != nil {
		return err
	}
	entry, err := json.Marshal(uploadEntry{SHA256: ref.SHA256, Producer: policy.Producer})
	if err != nil {
		return fmt.Errorf("record upload: %w", err)
	}
	_, err = a.redis.SetArgs(ctx, rediskey.Upload(fields["key"]), entry, redis.SetArgs{Mode: "NX", TTL: uploadLifetime}).Result()
	if errors.Is(err, redis.Nil) {
		if before, err := a.redis.Get(ctx, rediskey.Upload(fields["key"])).Result(); err == nil && before != string(entry) {
			return newAPIError(http.StatusConflict, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.", 0)
		}
		return nil
	}
	return err
}

// isFileName reports whether name is a valid file name without a folder.
func isFileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxFileNameBytes && utf8.ValidString(name) &&
		!strings.ContainsAny(name, `/\`) && !strings.ContainsFunc(name, unicode.IsControl)
}

// verifyPolicy returns the policy in the URL of a form, and the token that it was made for.
func (a *api) verifyPolicy(signed string) (policy uploadPolicy, owner caller, err error) {
	denied := newAPIError(http.StatusForbidden, codeDenied, "The request signature we calculated does not match the signature you provided.", 0)
	encoded, signature, _ := strings.Cut(signed, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || json.Unmarshal(decoded, &policy) != nil {
		return policy, owner, denied
	}
	owner.all = len(a.tokens) == 0
	for _, t := range a.tokens {
		if t.token.Name == policy.Producer {
			owner.Token = t.token
		}
	}
	want := a.policySignature(owner.Secret, encoded)
	if !hmac.Equal([]byte(want), []byte(signature)) || owner.Name != policy.Producer {
		return policy, owner, denied
	}
	if !time.Now().Before(policy.Expires) {
		return policy, owner, newAPIError(http.StatusForbidden, codeDenied, "Invalid according to Policy: Policy expired.", 0)
	}
	return policy, owner, nil
}

// stageFile copies an uploaded file into the bucket, by way of a temporary file.
func (a *api) stageFile(ctx context.Context, c caller, content io.Reader, limits storage.ReferenceLimits) (*storage.Reference, error) {
	file, err := os.CreateTemp(a.cfg.TempDir, "danqing-upload-*")
	if err != nil {
		return nil, fmt.Errorf("receive upload: %w", err)
	}
	defer os.Remove(file.Name()) //nolint:errcheck // a temporary file
	_, err = io.Copy(file, io.LimitReader(content, limits.WithDefaults().MaxBytes+1))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return nil, fmt.Errorf("receive upload: %w", err)
	}
	if err != nil {
		return nil, formError(err)
	}
	ref, err := limits.Inspect(file.Name())
	if err != nil {
		return nil, newAPIError(http.StatusBadRequest, codeParameter, strings.ReplaceAll(err.Error(), " "+file.Name(), ""), 0)
	}
	return ref, a.storeReference(ctx, c, ref)
}

// resolveUpload returns the staged name of a file that the caller has uploaded.
func (a *api) resolveUpload(ctx context.Context, c caller, name string) (string, error) {
	unknown := &unfitError{"unknown or expired: upload the file to this server first, as the SDKs do with a local path"}
	encoded, err := a.redis.Get(ctx, rediskey.Upload(strings.TrimPrefix(name, ossScheme))).Result()
	if errors.Is(err, redis.Nil) {
		return "", unknown
	}
	if err != nil {
		return "", fmt.Errorf("resolve upload: %w", err)
	}
	var entry uploadEntry
	if json.Unmarshal([]byte(encoded), &entry) != nil || !c.all && entry.Producer != c.Name {
		return "", unknown
	}
	return jobs.StagedPrefix + entry.SHA256, nil
}
