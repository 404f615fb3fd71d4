package gateway_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// A signed link is permanent, and a wrong signature gets no image.
func TestImages(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	id := s.create(`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"n":2}}`)
	rec := s.finish(id)
	task := s.query(id)
	require.Len(t, task.Output.Results, 2)
	for i, result := range task.Output.Results {
		link, err := url.Parse(result.URL)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("/images/%s-%d.png", id, i+1), link.Path)
		_, want := writePNG(t, id, i+1)
		for range 2 {
			got := s.request(http.MethodGet, link.RequestURI(), "")
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, "image/png", got.header.Get("Content-Type"))
			assert.Equal(t, string(want), got.body)
		}
		head := s.request(http.MethodHead, link.RequestURI(), "")
		assert.Equal(t, fmt.Sprint(len(want)), head.header.Get("Content-Length"))
		assert.Empty(t, head.body)
	}
	first, second := rec.ImagePath(rec.Images[0]), rec.ImagePath(rec.Images[1])
	_, other, _ := strings.Cut(second, "?")
	path, signature, _ := strings.Cut(first, "?")
	for _, wrong := range []string{
		path, path + "?s=", path + "?" + other, path + "?" + signature[:len(signature)-1], strings.Replace(first, "-1.png", "-3.png", 1), strings.Replace(first, "-1.png", "-01.png", 1),
		strings.Replace(first, ".png", ".jpg", 1), strings.Replace(first, ".png", "", 1), "/images/x?" + signature, "/images/nobody-1.png?" + signature, "/images/-1.png?" + signature, "/images/..%2f_jobs-1.png?" + signature,
	} {
		got := s.request(http.MethodGet, wrong, "")
		assert.Equal(t, http.StatusNotFound, got.status, wrong)
		assert.Equal(t, "there is no such image\n", got.body)
	}
	assert.Equal(t, http.StatusMethodNotAllowed, s.post(first, "").status)
	assert.Equal(t, http.StatusMisdirectedRequest, s.request(http.MethodGet, first, "", "Host", "evil.example").status)

	require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id).Err())
	s.sidecars[id] = rec
	assert.Equal(t, http.StatusOK, s.request(http.MethodGet, first, "").status, "long after its record has expired in Redis")
	s.outage.down.Store(true)
	got := s.request(http.MethodGet, first, "")
	assert.Equal(t, http.StatusServiceUnavailable, got.status)
	assert.NotEmpty(t, got.header.Get("Retry-After"))
}

// If clients can reach the bucket, the gateway redirects to a new presigned link each time.
func TestImagesRedirect(t *testing.T) {
	t.Parallel()
	s := newService(t, func(api *gateway.API) { api.Stream, api.BaseURL = false, "https://danqing.example.com" })
	id := s.create(oneCat)
	rec := s.finish(id)
	link := s.query(id).Output.Results[0].URL
	assert.Equal(t, "https://danqing.example.com"+rec.ImagePath(rec.Images[0]), link)
	got := s.request(http.MethodGet, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusFound, got.status)
	assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
	to, err := url.Parse(got.header.Get("Location"))
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(to.Path, rec.Images[0].Key))
	assert.NotEmpty(t, to.Query().Get("X-Amz-Signature"))
	head := s.request(http.MethodHead, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusOK, head.status, "the bucket's links are signed for GET only")
	assert.Equal(t, fmt.Sprint(rec.Images[0].Bytes), head.header.Get("Content-Length"))
}

// part is one form field.
type part struct{ name, value string }

// form returns an upload form like the SDKs', with the file last.
func form(t *testing.T, parts []part, fileName string, content []byte) (body []byte, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		require.NoError(t, w.WriteField(p.name, p.value))
	}
	file, err := w.CreateFormFile("file", fileName)
	require.NoError(t, err)
	_, err = file.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes(), w.FormDataContentType()
}

func (s *service) policy(headers ...string) dashscope.Policy {
	s.t.Helper()
	got := s.request(http.MethodGet, "/api/v1/uploads?action=getPolicy&model=wanx-v1", "", headers...)
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var answer dashscope.PolicyResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &answer))
	return answer.Data
}

// formParts returns the fields that the SDKs send, in their order.
func formParts(p dashscope.Policy, key string) []part {
	return []part{
		{"OSSAccessKeyId", p.OSSAccessKeyID}, {"Signature", p.Signature}, {"policy", p.Policy}, {"key", key}, {"x-oss-object-acl", p.XOSSObjectACL},
		{"x-oss-forbid-overwrite", p.XOSSForbidOverwrite}, {"success_action_status", "200"}, {"x-oss-content-type", "image/png"},
	}
}

func (s *service) sendForm(p dashscope.Policy, parts []part, content []byte) answer {
	s.t.Helper()
	body, contentType := form(s.t, parts, "girl.png", content)
	host, err := url.Parse(p.UploadHost)
	require.NoError(s.t, err)
	return s.post(host.Path, string(body), "Content-Type", contentType)
}

// A local file is uploaded into the bucket like by the SDKs, under its hash. The oss://
// name that they send then refers to it, but not with another token.
func TestUpload(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	temp := t.TempDir()
	s := newService(t, func(api *gateway.API) { api.Tokens, api.TempDir = tokens, temp })
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	path, content := writePNG(t, "girl", 1)
	ref, err := storage.InspectReference(path)
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
	staged, _, err := s.bucket.OpenReference(t.Context(), ref.SHA256)
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

	forged := p
	forged.Signature = s.policy("Authorization", "Bearer blog-secret-0123456").Signature
	s.sendForm(p, formParts(forged, key), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	forged.Policy = base64.StdEncoding.EncodeToString([]byte(`{"producer":"ghost","dir":"d","expires":"2999-01-01T00:00:00Z"}`))
	s.sendForm(p, formParts(forged, "d/a.png"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
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
	s.post("/api/v1/uploads/form", "{}", "Content-Type", "application/json").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	for _, query := range []string{"", "?action=getPolicy&model=nobody", "?action=getPolicy&model=qwen-image", "?action=put&model=wanx-v1"} {
		s.request(http.MethodGet, "/api/v1/uploads"+query, "", shop...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left, "no temporary file stays")
}

// Endless forms without a policy do not block other uploads.
func TestIdleFormsDoNotBlockUploads(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		ctx, hangUp := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 50 {
			read, write := io.Pipe()
			group.Go(func() {
				r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1/api/v1/uploads/form", read)
				r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
				s.gateway.ServeHTTP(httptest.NewRecorder(), r)
			})
			group.Go(func() {
				_, _ = io.WriteString(write, "--b\r\nContent-Disposition: form-data; name=\"policy\"\r\n\r\n")
				<-ctx.Done()
				_ = write.Close()
			})
		}
		synctest.Wait()
		p := s.policy()
		_, content := writePNG(t, "girl", 1)
		assert.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), content).status)
		hangUp()
		group.Wait()
	})
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

// A reference image is staged before its job is queued, because its source may vanish. If
// it cannot be downloaded, nothing is queued.
func TestStage(t *testing.T) {
	t.Parallel()
	path, content := writePNG(t, "girl", 1)
	ref, err := storage.InspectReference(path)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/girl.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	mux.Handle("/moved.png", http.RedirectHandler("/girl.png", http.StatusFound))
	mux.Handle("/circle.png", http.RedirectHandler("/circle.png", http.StatusFound))
	mux.Handle("/file.png", http.RedirectHandler("file:///etc/passwd", http.StatusFound))
	mux.HandleFunc("/busy.png", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/text.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("no picture")) })
	mux.HandleFunc("/huge.png", func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	source := httptest.NewServer(mux)
	t.Cleanup(source.Close)
	s := newService(t, func(api *gateway.API) {
		api.Staging.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "images.example:80" {
				return nil, errors.New("no such host")
			}
			return (&net.Dialer{}).DialContext(ctx, network, source.Listener.Addr().String())
		}
	})
	body := func(ref string) string {
		return `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"` + ref + `"},"parameters":{"n":1}}`
	}
	for _, name := range []string{"girl.png", "moved.png"} {
		id := s.create(body("http://images.example/"+name+"?Signature=hunter2"), "X-Danqing-Stage", "true")
		rec, err := s.jobs.Get(t.Context(), id)
		require.NoError(t, err)
		req, err := s.jobs.RequestOf(t.Context(), rec)
		require.NoError(t, err)
		assert.Equal(t, "sha256:"+ref.SHA256, req.RefImg)
	}
	s.create(strings.Replace(body("http://images.example/girl.png"), "{", `{"stage":true,`, 1))
	before := s.redis.DBSize(t.Context()).Val()
	for name, says := range map[string]string{
		"gone.png": "HTTP status 404", "circle.png": "redirected more than 3 times", "file.png": "unsupported URL", "text.png": "not an image", "huge.png": "at most 10485760",
	} {
		message := s.submit(body("http://images.example/"+name+"?Signature=hunter2"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, says)
		assert.NotContains(t, message, "hunter2")
	}
	s.submit(body("http://images.example/busy.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	s.submit(body("http://elsewhere.example/a.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	assert.Equal(t, before, s.redis.DBSize(t.Context()).Val())
}

// A private address is not requested, under any host name.
func TestStagePublicAddressesOnly(t *testing.T) {
	t.Parallel()
	asked := false
	source := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(source.Close)
	s := newService(t, nil)
	_, port, err := net.SplitHostPort(source.Listener.Addr().String())
	require.NoError(t, err)
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		body := `{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"http://` + host + ":" + port + `/latest/meta-data"}}`
		message := s.submit(body, "X-Danqing-Stage", "true").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, "is not public")
	}
	assert.False(t, asked)
	assertNothingQueued(t, s)
}

const openAICat = `{"model":"wanx-v1","prompt":"a black cat","n":2,"size":"1024x1024","quality":"standard","style":"vivid","user":"u-1"}`

func (s *service) generateImages(ctx context.Context, body string, headers ...string) answer {
	return s.call(ctx, http.MethodPost, "/v1/images/generations", body, append([]string{"Content-Type", "application/json"}, headers...)...)
}

// onlyJob waits until there is exactly one job.
func (s *service) onlyJob() string {
	s.t.Helper()
	for range 1000 {
		if keys := s.redis.Keys(s.t.Context(), "danqing:job:*").Val(); len(keys) == 1 {
			return strings.TrimPrefix(keys[0], "danqing:job:")
		}
		<-time.After(10 * time.Millisecond)
	}
	require.FailNow(s.t, "there is not exactly one job")
	return ""
}

// OpenAI's clients get links, or the images in base64, as soon as they are ready.
func TestOpenAI(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for _, format := range []string{"url", "b64_json"} {
			require.NoError(t, s.redis.Del(t.Context(), append(s.redis.Keys(t.Context(), "danqing:job:*").Val(), "none")...).Err())
			simulated := map[string]string{"url": "true"}[format]
			time.AfterFunc(30*time.Second, func() {
				id := s.onlyJob()
				s.update(id, func(rec *jobs.Record) { rec.Simulated = simulated != "" })
				s.finish(id)
			})
			began := time.Now()
			got := s.generateImages(t.Context(), strings.Replace(openAICat, "{", `{"response_format":"`+format+`",`, 1))
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, 30*time.Second, time.Since(began))
			assert.Equal(t, simulated, got.header.Get("X-Danqing-Simulated"))
			var answer struct {
				Created int64
				Data    []struct {
					URL string
					B64 string `json:"b64_json"`
				}
			}
			require.NoError(t, json.Unmarshal([]byte(got.body), &answer), got.body)
			require.Len(t, answer.Data, 2)
			assert.Equal(t, time.Now().Unix(), answer.Created)
			id := got.header.Get("X-Danqing-Job")
			for i, image := range answer.Data {
				_, want := writePNG(t, id, i+1)
				content, err := base64.StdEncoding.DecodeString(image.B64)
				require.NoError(t, err)
				if format == "url" {
					link, err := url.Parse(image.URL)
					require.NoError(t, err)
					content = []byte(s.request(http.MethodGet, link.RequestURI(), "").body)
				}
				assert.Equal(t, string(want), string(content))
			}
		}
	})
}

// A repeated request joins the job until a complete answer was sent. After that the same
// request is a new job.
func TestOpenAIRetries(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		jobsNow := func() int { return len(s.redis.Keys(t.Context(), "danqing:job:*").Val()) }
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Contains(t, got.body, `"code":"timeout"`)
		id := s.onlyJob()

		// The client disconnects, and gets no answer.
		ctx, hangUp := context.WithTimeout(t.Context(), time.Second)
		defer hangUp()
		s.generateImages(ctx, openAICat)
		s.finish(id)
		got = s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusOK, got.status)
		assert.Equal(t, id, got.header.Get("X-Danqing-Job"))
		assert.Equal(t, 1, jobsNow())

		got = s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Equal(t, 2, jobsNow(), "a new request")
		s.generateImages(t.Context(), strings.Replace(openAICat, "black", "white", 1))
		assert.Equal(t, 3, jobsNow(), "another body")

		// An idempotency key is the same job, also after the images were sent.
		key := []string{"Idempotency-Key", "order 17"}
		kept := s.generateImages(t.Context(), openAICat, key...).header.Get("X-Danqing-Job")
		s.finish(kept)
		for range 2 {
			got = s.generateImages(t.Context(), openAICat, key...)
			assert.Equal(t, http.StatusOK, got.status)
			assert.Equal(t, kept, got.header.Get("X-Danqing-Job"))
		}
		assert.Equal(t, 4, jobsNow())
	})
}

// After a crash between the dedupe key and the job, the repeated request creates the job,
// once.
func TestOpenAICrashBeforeEnqueue(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		s.generateImages(t.Context(), openAICat)
		id := s.onlyJob()
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id, "asynq:{"+queue+"}:t:"+id).Err())
		require.NoError(t, s.redis.Del(t.Context(), "asynq:{"+queue+"}:pending").Err())
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Equal(t, id, s.onlyJob())
	})
}

func TestOpenAIErrors(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		requireError := func(got answer, status int, code, param string) {
			t.Helper()
			require.Equal(t, status, got.status, got.body)
			e := got.decode(t)["error"].(map[string]any)
			assert.Equal(t, code, e["code"], got.body)
			if param == "" {
				assert.Nil(t, e["param"])
			} else {
				assert.Equal(t, param, e["param"])
			}
			assert.NotEmpty(t, e["message"])
			assert.NotEmpty(t, e["type"])
		}
		for body, want := range map[string][2]string{
			`{"model":"dall-e-3","prompt":"a cat"}`:             {"model_not_found", "model"},
			`{"prompt":""}`:                                     {"InvalidParameter", "prompt"},
			`{"prompt":"a cat","n":9}`:                          {"InvalidParameter", "n"},
			`{"prompt":"a cat","size":"1x1"}`:                   {"InvalidParameter", "size"},
			`{"prompt":"a cat","response_format":"gif"}`:        {"InvalidParameter", "response_format"},
			`{"prompt":"a cat","response_format":["b64_json"]}`: {"InvalidParameter", "response_format"},
			`{"prompt":"a cat","output_format":"webp"}`:         {"InvalidParameter", "output_format"},
			`{"prompt":"a cat","stream":true}`:                  {"InvalidParameter", "stream"},
			`{"prompt":"a cat","images":[]}`:                    {"InvalidParameter", "images"},
			`{"prompt":"a cat","ref_img":"file:///etc/passwd"}`: {"InvalidParameter", "ref_img"},
			`{"prompt":"a cat","input":{"prompt":"b"}}`:         {"InvalidParameter", "input"},
			`[]`: {"InvalidParameter", ""},
		} {
			status := http.StatusBadRequest
			if want[0] == "model_not_found" {
				status = http.StatusNotFound
			}
			requireError(s.generateImages(t.Context(), body), status, want[0], want[1])
		}
		requireError(s.request(http.MethodGet, "/v1/images/generations", ""), http.StatusMethodNotAllowed, "MethodNotAllowed", "")
		requireError(s.request(http.MethodGet, "/v1/files", ""), http.StatusNotFound, "NotFound", "")
		assertNothingQueued(t, s)
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:dedupe:*").Val())

		time.AfterFunc(time.Second, func() {
			s.update(s.onlyJob(), func(rec *jobs.Record) { rec.End(jobs.StateFailed, "DataInspectionFailed", "no", time.Now().UTC()) })
		})
		requireError(s.generateImages(t.Context(), openAICat), http.StatusBadRequest, "content_policy_violation", "")
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:dedupe:*").Val())
		models := s.request(http.MethodGet, "/v1/models", "")
		assert.Contains(t, models.body, `"id":"wanx-v1"`)
		assert.Contains(t, s.request(http.MethodGet, "/v1/models/wanx-v1", "").body, `"object":"model"`)
		requireError(s.request(http.MethodGet, "/v1/models/gpt-9", ""), http.StatusNotFound, "model_not_found", "model")
	})
}
