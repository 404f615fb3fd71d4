package gateway_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Forms may have their fields in any order, and other fields of OSS, as long as the file is
// last.
func TestUploadFieldOrder(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	p := s.policy()
	_, content := writePNG(t, "girl", 1)
	parts := append(formParts(p, p.UploadDir+"/a.png"), part{"x-oss-meta-other", "x"})
	slices.Reverse(parts)
	got := s.sendForm(p, parts, content)
	assert.Equal(t, http.StatusOK, got.status, got.body)
	s.create(`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"oss://` + p.UploadDir + `/a.png"}}`)
}

// A small file whose header claims a huge image is refused before memory is allocated for
// it.
func TestUploadOfHugeImage(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	p := s.policy()
	_, content := writePNG(t, "girl", 1)
	const header = 12 // offset of the chunk's type, where its checksum begins
	huge := bytes.Clone(content)
	binary.BigEndian.PutUint32(huge[header+4:], 60_000)
	binary.BigEndian.PutUint32(huge[header+8:], 60_000)
	binary.BigEndian.PutUint32(huge[header+17:], crc32.ChecksumIEEE(huge[header:header+17]))
	message := s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), huge).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, message, "60000")
}

// An endless file is read only up to the size limit, and leaves no temporary file.
func TestUploadEndless(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	s := newService(t, func(api *gateway.API) { api.TempDir = temp })
	p := s.policy()
	start, contentType := form(t, formParts(p, p.UploadDir+"/a.png"), nil)
	start = start[:bytes.LastIndex(start, []byte("\r\n--"))] // the file goes on
	rest := &endless{}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, p.UploadHost, io.MultiReader(bytes.NewReader(start), rest))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	s.gateway.ServeHTTP(w, r)
	assert.Equal(t, http.StatusBadRequest, w.Code, w.Body.String())
	assert.LessOrEqual(t, rest.read.Load(), int64(11<<20))
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// part is one form field.
type part struct{ name, value string }

// form returns an upload form like the SDKs', with the file last.
func form(tb testing.TB, parts []part, content []byte) (body []byte, contentType string) {
	tb.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		require.NoError(tb, w.WriteField(p.name, p.value))
	}
	file, err := w.CreateFormFile("file", "girl.png")
	require.NoError(tb, err)
	_, err = file.Write(content)
	require.NoError(tb, err)
	require.NoError(tb, w.Close())
	return b.Bytes(), w.FormDataContentType()
}

// formParts returns the fields that the SDKs send, in their order.
func formParts(p dashscope.Policy, key string) []part {
	return []part{
		{"OSSAccessKeyId", p.OSSAccessKeyID}, {"Signature", p.Signature}, {"policy", p.Policy}, {"key", key}, {"x-oss-object-acl", p.XOSSObjectACL},
		{"x-oss-forbid-overwrite", p.XOSSForbidOverwrite}, {"success_action_status", "200"}, {"x-oss-content-type", "image/png"},
	}
}

// A local file is uploaded into the bucket like by the SDKs, under its hash. The oss://
// name that they send then refers to it, but not with another token.
func TestUpload(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	s := newService(t, func(api *gateway.API) { api.Tokens = tokens })
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	path, content := writePNG(t, "girl", 1)
	ref, err := storage.ReferenceLimits{}.Inspect(path)
	require.NoError(t, err)
	p := s.policy(shop...)
	assert.Equal(t, 300, p.ExpireInSeconds)
	key := p.UploadDir + "/女孩 girl.png"
	got := s.sendForm(p, formParts(p, key), content)
	assert.Equal(t, http.StatusOK, got.status, got.body)
	assert.Empty(t, got.body)

	withRef := func(name string) string {
		return `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"` + name + `"},"parameters":{"n":1}}`
	}
	id := s.create(withRef("oss://"+key), append(shop, "X-DashScope-OssResourceResolve", "enable")...)
	rec, err := s.jobs.Get(t.Context(), id)
	require.NoError(t, err)
	req, err := s.jobs.RequestOf(t.Context(), rec)
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+ref.SHA256, req.RefImg)
	staged, _, err := s.bucket.OpenReference(t.Context(), ref.SHA256, storage.Owner("shop"))
	require.NoError(t, err)
	bytesOf, err := io.ReadAll(staged)
	require.NoError(t, err)
	require.NoError(t, staged.Close())
	assert.Equal(t, content, bytesOf)

	for _, c := range [][]string{{"oss://" + key, "blog-secret-0123456"}, {"oss://dashscope-instant/x/girl.png", "shop-secret-0123456"}, {"oss://", "shop-secret-0123456"}} {
		message := s.submit(withRef(c[0]), "Authorization", "Bearer "+c[1]).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, "upload the file to this server first")
	}
	// The same file can be uploaded again; another one under the same name is refused, as
	// by OSS.
	assert.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, key), content).status)
	_, another := writePNG(t, "girl", 2)
	s.sendForm(p, formParts(p, key), another).requireRefused(t, http.StatusConflict, "FileAlreadyExists")
}

// A staged image is its token's own: its hash is of no use to another one, nor are the
// operator's images. Its use is recorded, so that a worker can delete it.
func TestReferencesBelongToTheirToken(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	s := newService(t, func(api *gateway.API) { api.Tokens = tokens })
	shop, blog := []string{"Authorization", "Bearer shop-secret-0123456"}, []string{"Authorization", "Bearer blog-secret-0123456"}
	path, content := writePNG(t, "girl", 1)
	ref, err := storage.ReferenceLimits{}.Inspect(path)
	require.NoError(t, err)
	p := s.policy(shop...)
	require.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content).status)
	name := "@shop/" + ref.SHA256
	assert.InDelta(t, float64(time.Now().UnixMilli()), s.redis.ZScore(t.Context(), "danqing:references", name).Val(), 60_000)
	assert.Empty(t, s.redis.SMembers(t.Context(), "danqing:references:"+name).Val())

	withRef := func(hash string) string {
		return `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"sha256:` + hash + `"},"parameters":{"n":1}}`
	}
	id := s.create(withRef(ref.SHA256), shop...)
	assert.Equal(t, []string{id}, s.redis.SMembers(t.Context(), "danqing:references:"+name).Val())
	message := s.submit(withRef(ref.SHA256), blog...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, message, "staged image does not exist")
	path, _ = writePNG(t, "operator", 1)
	operators, err := storage.ReferenceLimits{}.Inspect(path)
	require.NoError(t, err)
	require.NoError(t, s.bucket.StageReference(t.Context(), operators))
	s.submit(withRef(operators.SHA256), shop...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")

	// The repeat of a job that has left Redis does not need its image any more.
	req := jobs.Request{ID: jobs.IdempotencyID("shop", "k"), Prompt: "a cat", N: 1, RefImg: "sha256:" + strings.Repeat("0", 64)}
	req, _, err = req.Normalize()
	require.NoError(t, err)
	s.sidecars[req.ID] = &jobs.Job{ID: req.ID, Producer: "shop", State: jobs.StateSucceeded, Digest: req.Digest()}
	assert.Equal(t, req.ID, s.create(withRef(strings.Repeat("0", 64)), append([]string{"Idempotency-Key", "k"}, shop...)...))
}

// Uploads and staged images of a token are limited by day, in number and bytes.
func TestUploadsAreLimitedByDay(t *testing.T) {
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456", MaxUploads: 2}, {Name: "blog", Secret: "blog-secret-0123456"}}
	runInBubble(t, func(api *gateway.API) { api.Tokens = tokens }, func(t *testing.T, s *service) {
		shop, blog := []string{"Authorization", "Bearer shop-secret-0123456"}, []string{"Authorization", "Bearer blog-secret-0123456"}
		upload := func(headers []string) answer {
			_, content := writePNG(t, "girl", 1)
			p := s.policy(headers...)
			return s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content)
		}
		for range 2 {
			assert.Equal(t, http.StatusOK, upload(shop).status)
		}
		got := upload(shop)
		message := got.requireRefused(t, http.StatusTooManyRequests, "Throttling.AllocationQuota")
		assert.Equal(t, "this token has uploaded 2 reference images or 4 MiB today (UTC+8), which is the limit (DANQING_TOKEN_MAX_UPLOADS)", message)
		assert.Equal(t, "57600", got.header.Get("Retry-After"), "it is 8 o'clock in UTC+8")
		staged := `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"http://images.example/a.png"}}`
		s.submit(staged, append([]string{"X-Danqing-Stage", "true"}, shop...)...).requireRefused(t, http.StatusTooManyRequests, "Throttling.AllocationQuota")
		assert.Equal(t, http.StatusOK, upload(blog).status)
		<-time.After(16 * time.Hour)
		assert.Equal(t, http.StatusOK, upload(shop).status)
		keys := s.redis.Keys(t.Context(), "danqing:producer:shop:uploads:*").Val()
		require.NotEmpty(t, keys)
		for _, key := range keys {
			require.NoError(t, s.redis.HSet(t.Context(), key, "bytes", 4<<20).Err())
		}
		upload(shop).requireRefused(t, http.StatusTooManyRequests, "Throttling.AllocationQuota")
	})
}

// Temporary files of a killed server are removed at the next start.
func TestLeftoversOfUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	old := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"danqing-upload-1", "danqing-reference-1", "danqing-upload-new", "other"} {
		path := filepath.Join(temp, name)
		require.NoError(t, os.WriteFile(path, []byte("half"), 0o600))
		if name != "danqing-upload-new" {
			require.NoError(t, os.Chtimes(path, old, old))
		}
	}
	newService(t, func(api *gateway.API) { api.TempDir = temp })
	left, err := filepath.Glob(filepath.Join(temp, "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(temp, "danqing-upload-new"), filepath.Join(temp, "other")}, left)
}

// Forged policies and invalid files are refused. No upload leaves a temporary file.
func TestUploadRefuses(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	temp := t.TempDir()
	s := newService(t, func(api *gateway.API) { api.Tokens, api.TempDir = tokens, temp })
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	_, content := writePNG(t, "girl", 1)
	p := s.policy(shop...)
	key := p.UploadDir + "/girl.png"
	require.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, key), content).status)
	forged := p
	another := s.policy("Authorization", "Bearer blog-secret-0123456")
	ghost := base64.RawURLEncoding.EncodeToString([]byte(`{"producer":"ghost","dir":"d","expires":"2999-01-01T00:00:00Z"}`))
	for _, signed := range []string{p.Policy + "." + another.Signature, ghost + "." + p.Signature, ghost + ".", p.Policy} {
		forged.UploadHost = strings.Replace(p.UploadHost, p.Policy+"."+p.Signature, signed, 1)
		s.sendForm(forged, formParts(p, key), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	}
	for _, name := range []string{"", "..", "a/b.png", `a\b.png`, "\x00", strings.Repeat("a", 256)} {
		s.sendForm(p, formParts(p, p.UploadDir+"/"+name), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	}
	s.sendForm(p, formParts(p, "_jobs/a.json"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")

	for says, bad := range map[string][]byte{
		"not an image": []byte("GIF89a"), "at most 10485760": append(content[:len(content):len(content)], make([]byte, 10<<20)...), "broken": content[:20],
	} {
		message := s.sendForm(p, formParts(p, p.UploadDir+"/bad.png"), bad).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, says)
		assert.NotContains(t, message, temp)
	}
	s.sendForm(p, formParts(p, p.UploadDir+"/huge.png"), make([]byte, 30<<20)).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	s.sendForm(p, append(formParts(p, key), part{"policy", strings.Repeat("x", 9000)}), content).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	s.post(strings.TrimPrefix(p.UploadHost, "http://127.0.0.1:8765"), "{}", "Content-Type", "application/json").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	for _, query := range []string{"", "?action=getPolicy&model=nobody", "?action=put&model=wanx-v1"} {
		s.request(http.MethodGet, "/api/v1/uploads"+query, "", shop...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left, "no temporary file stays")
}

func TestUploadPolicyExpires(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		p := s.policy()
		<-time.After(300 * time.Second)
		_, content := writePNG(t, "girl", 1)
		message := s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
		assert.Equal(t, "Invalid according to Policy: Policy expired.", message)
	})
}

func (s *service) policy(headers ...string) dashscope.Policy {
	s.t.Helper()
	return s.policyFor("wanx-v1", headers...)
}

func (s *service) policyFor(model string, headers ...string) dashscope.Policy {
	s.t.Helper()
	got := s.request(http.MethodGet, "/api/v1/uploads?action=getPolicy&model="+model, "", headers...)
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var answer dashscope.PolicyResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &answer))
	return answer.Data
}

func (s *service) sendForm(p dashscope.Policy, parts []part, content []byte) answer {
	s.t.Helper()
	body, contentType := form(s.t, parts, content)
	host, err := url.Parse(p.UploadHost)
	require.NoError(s.t, err)
	return s.post(host.Path, string(body), "Content-Type", contentType)
}
