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

// A link gives its image for ever, to whoever has it and to nobody else.
func TestImages(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	id := s.create(`{"model":"wanx-v1","input":{"prompt":"a cat"},"parameters":{"n":2}}`)
	rec := s.finish(id)
	task := s.look(id)
	require.Len(t, task.Output.Results, 2)
	for i, result := range task.Output.Results {
		link, err := url.Parse(result.URL)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("/images/%s-%d.png", id, i+1), link.Path)
		_, want := picture(t, id, i+1)
		for range 2 {
			got := s.ask(http.MethodGet, link.RequestURI(), "")
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, "image/png", got.header.Get("Content-Type"))
			assert.Equal(t, string(want), got.body)
		}
		head := s.ask(http.MethodHead, link.RequestURI(), "")
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
		got := s.ask(http.MethodGet, wrong, "")
		assert.Equal(t, http.StatusNotFound, got.status, wrong)
		assert.Equal(t, "there is no such image\n", got.body)
	}
	assert.Equal(t, http.StatusMethodNotAllowed, s.post(first, "").status)
	assert.Equal(t, http.StatusMisdirectedRequest, s.ask(http.MethodGet, first, "", "Host", "evil.example").status)

	require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id).Err())
	s.recalled[id] = rec
	assert.Equal(t, http.StatusOK, s.ask(http.MethodGet, first, "").status, "long after its record has left Redis")
	s.outage.down.Store(true)
	got := s.ask(http.MethodGet, first, "")
	assert.Equal(t, http.StatusServiceUnavailable, got.status)
	assert.NotEmpty(t, got.header.Get("Retry-After"))
}

// Where clients reach the bucket, a link of ours leads there afresh each time.
func TestImagesRedirect(t *testing.T) {
	t.Parallel()
	s := newService(t, func(api *gateway.API) { api.Stream, api.BaseURL = false, "https://danqing.example.com" })
	id := s.create(oneCat)
	rec := s.finish(id)
	link := s.look(id).Output.Results[0].URL
	assert.Equal(t, "https://danqing.example.com"+rec.ImagePath(rec.Images[0]), link)
	got := s.ask(http.MethodGet, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusFound, got.status)
	assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
	to, err := url.Parse(got.header.Get("Location"))
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(to.Path, rec.Images[0].Key))
	assert.NotEmpty(t, to.Query().Get("X-Amz-Signature"))
	head := s.ask(http.MethodHead, rec.ImagePath(rec.Images[0]), "")
	assert.Equal(t, http.StatusOK, head.status, "links of a bucket are signed for one method")
	assert.Equal(t, fmt.Sprint(rec.Images[0].Bytes), head.header.Get("Content-Length"))
}

// part is a field of a form.
type part struct{ name, value string }

// form is an upload as the SDKs send it: the file last.
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
	got := s.ask(http.MethodGet, "/api/v1/uploads?action=getPolicy&model=wanx-v1", "", headers...)
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var answer dashscope.PolicyResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &answer))
	return answer.Data
}

// partsOf are the fields that the SDKs send, in their order.
func partsOf(p dashscope.Policy, key string) []part {
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

// A local file goes by the SDKs' own way into the bucket, under its hash, and the name
// that they then send leads to it; for nobody else's token.
func TestUpload(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	temp := t.TempDir()
	s := newService(t, func(api *gateway.API) { api.Tokens, api.TempDir = tokens, temp })
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	path, content := picture(t, "girl", 1)
	ref, err := storage.InspectReference(path)
	require.NoError(t, err)
	p := s.policy(shop...)
	assert.Equal(t, 300, p.ExpireInSeconds)
	key := p.UploadDir + "/女孩 girl.png"
	got := s.sendForm(p, partsOf(p, key), content)
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
		assert.Contains(t, message, "upload it here first")
	}
	// The same file again is no harm; another under the same name is refused, as by OSS.
	assert.Equal(t, http.StatusOK, s.sendForm(p, partsOf(p, key), content).status)
	_, another := picture(t, "girl", 2)
	s.sendForm(p, partsOf(p, key), another).requireRefused(t, http.StatusConflict, "FileAlreadyExists")

	forged := p
	forged.Signature = s.policy("Authorization", "Bearer blog-secret-0123456").Signature
	s.sendForm(p, partsOf(forged, key), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	forged.Policy = base64.StdEncoding.EncodeToString([]byte(`{"producer":"ghost","dir":"d","expires":"2999-01-01T00:00:00Z"}`))
	s.sendForm(p, partsOf(forged, "d/a.png"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	for _, name := range []string{"", "..", "a/b.png", `a\b.png`, "\x00", strings.Repeat("a", 256)} {
		s.sendForm(p, partsOf(p, p.UploadDir+"/"+name), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
	}
	s.sendForm(p, partsOf(p, "_jobs/a.json"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")

	for says, bad := range map[string][]byte{
		"not an image": []byte("GIF89a"), "at most 10485760": append(content[:len(content):len(content)], make([]byte, 10<<20)...), "broken": content[:20],
	} {
		message := s.sendForm(p, partsOf(p, p.UploadDir+"/bad.png"), bad).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, says)
		assert.NotContains(t, message, temp)
	}
	s.sendForm(p, partsOf(p, p.UploadDir+"/vast.png"), make([]byte, 30<<20)).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	s.sendForm(p, append(partsOf(p, key), part{"policy", strings.Repeat("x", 9000)}), content).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	s.post("/api/v1/uploads/form", "{}", "Content-Type", "application/json").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	for _, query := range []string{"", "?action=getPolicy&model=nobody", "?action=getPolicy&model=qwen-image", "?action=put&model=wanx-v1"} {
		s.ask(http.MethodGet, "/api/v1/uploads"+query, "", shop...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left, "nothing stays on the disk")
}

// Forms that never end and have no credential keep nobody else from uploading.
func TestIdleForms(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *service) {
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
		_, content := picture(t, "girl", 1)
		assert.Equal(t, http.StatusOK, s.sendForm(p, partsOf(p, p.UploadDir+"/a.png"), content).status)
		hangUp()
		group.Wait()
	})
}

func TestUploadPolicyExpires(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *service) {
		p := s.policy()
		<-time.After(300 * time.Second)
		_, content := picture(t, "girl", 1)
		message := s.sendForm(p, partsOf(p, p.UploadDir+"/a.png"), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
		assert.Equal(t, "Invalid according to Policy: Policy expired.", message)
	})
}

// A reference that is staged is in the bucket before its job is queued: its source may
// vanish. What cannot be had, or must not be asked for, queues nothing.
func TestStage(t *testing.T) {
	t.Parallel()
	path, content := picture(t, "girl", 1)
	ref, err := storage.InspectReference(path)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/girl.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	mux.Handle("/moved.png", http.RedirectHandler("/girl.png", http.StatusFound))
	mux.Handle("/circle.png", http.RedirectHandler("/circle.png", http.StatusFound))
	mux.Handle("/file.png", http.RedirectHandler("file:///etc/passwd", http.StatusFound))
	mux.HandleFunc("/busy.png", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/text.png", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("no picture")) })
	mux.HandleFunc("/vast.png", func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	source := httptest.NewServer(mux)
	t.Cleanup(source.Close)
	s := newService(t, func(api *gateway.API) {
		api.StageFrom.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
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
		"gone.png": "HTTP status 404", "circle.png": "redirected more than 3 times", "file.png": "unsupported URL", "text.png": "not an image", "vast.png": "at most 10485760",
	} {
		message := s.submit(body("http://images.example/"+name+"?Signature=hunter2"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, message, says)
		assert.NotContains(t, message, "hunter2")
	}
	s.submit(body("http://images.example/busy.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	s.submit(body("http://elsewhere.example/a.png"), "X-Danqing-Stage", "true").requireRefused(t, http.StatusServiceUnavailable, "ServiceUnavailable")
	assert.Equal(t, before, s.redis.DBSize(t.Context()).Val())
}

// An own address is not asked, whatever name leads to it.
func TestStageAsksPublicAddressesAlone(t *testing.T) {
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

// onlyJob waits for the one job that is there.
func (s *service) onlyJob() string {
	s.t.Helper()
	for range 1000 {
		if keys := s.redis.Keys(s.t.Context(), "danqing:job:*").Val(); len(keys) == 1 {
			return strings.TrimPrefix(keys[0], "danqing:job:")
		}
		<-time.After(10 * time.Millisecond)
	}
	require.FailNow(s.t, "there is not one job")
	return ""
}

// OpenAI's clients get links, or the images themselves, when they are made.
func TestOpenAI(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *service) {
		for _, format := range []string{"url", "b64_json"} {
			require.NoError(t, s.redis.Del(t.Context(), append(s.redis.Keys(t.Context(), "danqing:job:*").Val(), "none")...).Err())
			simulated := map[string]string{"url": "true"}[format]
			time.AfterFunc(30*time.Second, func() {
				id := s.onlyJob()
				s.move(id, func(rec *jobs.Record) { rec.Simulated = simulated != "" })
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
				_, want := picture(t, id, i+1)
				content, err := base64.StdEncoding.DecodeString(image.B64)
				require.NoError(t, err)
				if format == "url" {
					link, err := url.Parse(image.URL)
					require.NoError(t, err)
					content = []byte(s.ask(http.MethodGet, link.RequestURI(), "").body)
				}
				assert.Equal(t, string(want), string(content))
			}
		}
	})
}

// A repeat joins the job as long as nobody has got its images whole; from then on the
// same wish is a new one.
func TestOpenAIRepeats(t *testing.T) {
	bubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		jobsNow := func() int { return len(s.redis.Keys(t.Context(), "danqing:job:*").Val()) }
		got := s.generateImages(t.Context(), openAICat)
		assert.Equal(t, http.StatusGatewayTimeout, got.status)
		assert.Contains(t, got.body, `"code":"timeout"`)
		id := s.onlyJob()

		// A client that hangs up gets nothing, whatever becomes of the job.
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
		assert.Equal(t, 2, jobsNow(), "a new wish")
		s.generateImages(t.Context(), strings.Replace(openAICat, "black", "white", 1))
		assert.Equal(t, 3, jobsNow(), "another body")

		// A key is the same job for ever, whoever has got its images.
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

// A process that died between the mark and the job has bought nothing; the repeat does,
// once.
func TestOpenAIDiedBeforeTheJob(t *testing.T) {
	bubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
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
	bubble(t, nil, func(t *testing.T, s *service) {
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
		requireError(s.ask(http.MethodGet, "/v1/images/generations", ""), http.StatusMethodNotAllowed, "MethodNotAllowed", "")
		requireError(s.ask(http.MethodGet, "/v1/files", ""), http.StatusNotFound, "NotFound", "")
		assertNothingQueued(t, s)
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:openai:*").Val())

		time.AfterFunc(time.Second, func() {
			s.move(s.onlyJob(), func(rec *jobs.Record) { rec.End(jobs.StateFailed, "DataInspectionFailed", "no", time.Now().UTC()) })
		})
		requireError(s.generateImages(t.Context(), openAICat), http.StatusBadRequest, "content_policy_violation", "")
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:openai:*").Val())
		models := s.ask(http.MethodGet, "/v1/models", "")
		assert.Contains(t, models.body, `"id":"wanx-v1"`)
		assert.Contains(t, s.ask(http.MethodGet, "/v1/models/wanx-v1", "").body, `"object":"model"`)
		requireError(s.ask(http.MethodGet, "/v1/models/gpt-9", ""), http.StatusNotFound, "model_not_found", "model")
	})
}
