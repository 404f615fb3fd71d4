package gateway_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/storage"
)

// formFile is a file of a form.
type formFile struct {
	field   string
	content []byte
}

// editForm returns a form like that of openai-python's images.edit: texts, then files.
func editForm(t *testing.T, fields []part, files ...formFile) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, f := range fields {
		require.NoError(t, w.WriteField(f.name, f.value))
	}
	for _, f := range files {
		file, err := w.CreateFormFile(f.field, "upload")
		require.NoError(t, err)
		_, err = file.Write(f.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.String(), w.FormDataContentType()
}

func (s *service) editImages(ctx context.Context, t *testing.T, fields []part, files []formFile, headers ...string) answer {
	t.Helper()
	body, contentType := editForm(t, fields, files...)
	return s.call(ctx, http.MethodPost, "/v1/images/edits", body, append([]string{"Content-Type", contentType}, headers...)...)
}

// requestOf returns the request of a job.
func (s *service) requestOf(id string) jobs.Request {
	s.t.Helper()
	rec, err := s.jobs.Get(s.t.Context(), id)
	require.NoError(s.t, err)
	req, err := s.jobs.RequestOf(s.t.Context(), rec)
	require.NoError(s.t, err)
	return req
}

// staged returns the bytes of a staged image.
func (s *service) staged(name string) []byte {
	s.t.Helper()
	body, _, err := s.bucket.OpenReference(s.t.Context(), strings.TrimPrefix(name, "sha256:"), storage.Owner(""))
	require.NoError(s.t, err)
	content, err := io.ReadAll(body)
	require.NoError(s.t, err)
	require.NoError(s.t, body.Close())
	return content
}

// halfMask returns OpenAI's mask: its left half is transparent, the rest opaque.
func halfMask(t *testing.T, side int) []byte {
	t.Helper()
	paper := image.NewNRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := side / 2; x < side; x++ {
			paper.SetNRGBA(x, y, color.NRGBA{A: 255})
		}
	}
	var encoded bytes.Buffer
	require.NoError(t, png.Encode(&encoded, paper))
	return encoded.Bytes()
}

// The images of an edit are stored, and its job edits them with a model that is worked on, or the one
// that is named. Its answer is that of a generation.
func TestEdits(t *testing.T) {
	temp := t.TempDir()
	runInBubble(t, func(api *gateway.API) { api.TempDir = temp }, func(t *testing.T, s *service) {
		red, blue := solidPNG(t, 600), solidPNG(t, 601)
		var want jobs.Request
		var event string
		edit := func(fields []part, files ...formFile) answer {
			require.NoError(t, s.redis.Del(t.Context(), append(s.redis.Keys(t.Context(), "danqing:job:*").Val(), "none")...).Err())
			time.AfterFunc(time.Second, func() {
				id := s.onlyJob()
				want = s.requestOf(id)
				s.finish(id)
			})
			got := s.editImages(t.Context(), t, fields, files)
			require.Equal(t, http.StatusOK, got.status, got.body)
			return got
		}
		got := edit([]part{{"model", "wan2.7-image"}, {"prompt", "2"}, {"n", "2"}, {"size", "1024x1024"}, {"user", "u"}, {"input_fidelity", "high"}, {"thinking_mode", "true"}, {"quality", ""}}, formFile{"image[]", red}, formFile{"image[]", blue})
		assert.Equal(t, []any{"wan2.7-image", "2", 2, "1024*1024", true}, []any{want.Model, want.Prompt, want.N, want.Size, *want.ThinkingMode})
		require.Len(t, want.RefImages, 2)
		assert.Equal(t, red, s.staged(want.RefImages[0]))
		assert.Equal(t, blue, s.staged(want.RefImages[1]))
		assert.Equal(t, 2, strings.Count(got.body, `"url":"http`))
		assert.ElementsMatch(t, []string{"user", "input_fidelity"}, strings.Split(got.header.Get("X-Danqing-Ignored-Parameters"), ", "))

		got = edit([]part{{"prompt", "a hat"}, {"stream", "true"}, {"response_format", "b64_json"}}, formFile{"image", red})
		assert.Equal(t, "wan2.6-image", want.Model, "the first that edits by a prompt")
		event = "event: image_edit.completed\ndata: {\"type\":\"image_edit.completed\""
		assert.Contains(t, got.body, event)

		edit([]part{{"prompt", "a hat"}}, formFile{"image", red}, formFile{"mask", halfMask(t, 600)})
		assert.Equal(t, []string{"wanx2.1-imageedit", "description_edit_with_mask"}, []string{want.Model, want.Function})
		mask, err := png.Decode(bytes.NewReader(s.staged(want.MaskImageURL)))
		require.NoError(t, err)
		assert.Equal(t, []color.Color{color.Gray{Y: 255}, color.Gray{}}, []color.Color{mask.At(10, 10), mask.At(500, 10)}, "white where it is edited")

		edit([]part{{"prompt", "a hat"}, {"model", "wanx2.1-imageedit"}}, formFile{"image", red})
		assert.Equal(t, "description_edit", want.Function)
		edit([]part{{"prompt", "a hat"}, {"model", "wanx2.1-imageedit"}, {"function", "colorization"}}, formFile{"image", red})
		assert.Equal(t, "colorization", want.Function)

		// Only wanx-v1 is worked on.
		require.NoError(t, jobs.NewStore(s.redis).AnnounceWorker(t.Context(), "w", jobs.WorkerStatus{Models: []string{"wanx-v1"}}))
		<-time.After(time.Minute)
		edit([]part{{"prompt", "a hat"}}, formFile{"image", red})
		assert.Equal(t, "wanx-v1", want.Model)
		assert.Equal(t, red, s.staged(want.RefImg))
		left, err := os.ReadDir(temp)
		require.NoError(t, err)
		assert.Empty(t, left, "no temporary file stays")
	})
}

// A variation is an edit with a prompt of the gateway's.
func TestVariations(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		body, contentType := editForm(t, []part{{"n", "2"}}, formFile{"image", solidPNG(t, 600)})
		var req jobs.Request
		time.AfterFunc(time.Second, func() { req = s.requestOf(s.onlyJob()); s.finish(req.ID) })
		got := s.post("/v1/images/variations", body, "Content-Type", contentType)
		require.Equal(t, http.StatusOK, got.status, got.body)
		assert.Equal(t, 2, req.N)
		assert.Equal(t, "Make a variation of this picture: keep its subject, style and composition, and change the details.", req.Prompt)
		body, contentType = editForm(t, []part{{"prompt", "a hat"}}, formFile{"image", solidPNG(t, 600)}, formFile{"mask", halfMask(t, 600)})
		got = s.post("/v1/images/variations", body, "Content-Type", contentType)
		assert.Equal(t, http.StatusBadRequest, got.status)
		assert.Contains(t, got.body, "prompt: is given; a variation has none: use /v1/images/edits | mask: is given")
	})
}

// Edits may be JSON, with images by URL or in base64.
func TestEditsInJSON(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		red := solidPNG(t, 600)
		data := func(content []byte) string {
			return "data:image/png;base64," + base64.StdEncoding.EncodeToString(content)
		}
		body := `{"model":"wan2.7-image","prompt":"a hat","n":1,"images":[{"image_url":"https://e.com/a.png"},{"image_url":"` + data(red) + `"}]}`
		var req jobs.Request
		time.AfterFunc(time.Second, func() { req = s.requestOf(s.onlyJob()); s.finish(req.ID) })
		got := s.post("/v1/images/edits", body, "Content-Type", "application/json")
		require.Equal(t, http.StatusOK, got.status, got.body)
		require.Len(t, req.RefImages, 2)
		assert.Equal(t, "https://e.com/a.png", req.RefImages[0])
		assert.Equal(t, red, s.staged(req.RefImages[1]))
		for body, says := range map[string]string{
			`{"prompt":"a","images":[{"file_id":"f"}]}`:                             "images[0]: a file_id; allowed: an image_url: Danqing has no files API",
			`{"prompt":"a","images":["https://e.com/a.png"]}`:                       "images[0]: is not an image; allowed: {",
			`{"prompt":"a","images":[{"image_url":"data:text/plain,x"}]}`:           "images[0].image_url: a data: URL; allowed: data:image/png;base64,",
			`{"prompt":"a","images":[{"image_url":"data:image/png;base64,?"}]}`:     "base64 after the comma",
			`{"prompt":"a","images":[{"image_url":"` + data([]byte("GIF")) + `"}]}`: "images[0].image_url: the image: not an image in an accepted format",
			`{"prompt":"a","images":[{"image_url":"ftp://h/x"}]}`:                   `images[0].image_url: "ftp://h/x"; allowed: an http or https URL`,
			`{"prompt":"a","images":{}}`:                                            "images: is not a list",
			`{"prompt":"a"}`:                                                        "image: missing",
			`null`:                                                                  "image: missing",
			`[]`:                                                                    "neither a form",
			`{"prompt":"a","model":5,"images":[{"image_url":"https://e.com/a.png"}]}`:                                                                                     "model: 5; allowed: text in quotes",
			`{"prompt":"a","ref_img":"https://e.com/b.png","images":[{"image_url":"https://e.com/a.png"}]}`:                                                               "ref_img: is given; here the images are image and mask",
			`{"prompt":"a","images":[` + strings.Repeat(`{"image_url":"https://e.com/a.png"},`, 16) + `{}]}`:                                                              "images: is not a list of images",
			`{"model":"wan2.2-t2i-flash","prompt":"a","images":[{"image_url":"https://e.com/a.png"}]}`:                                                                    `images[0].image_url: "https://e.com/a.png"; allowed: none: wan2.2-t2i-flash takes no reference image`,
			`{"model":"wan2.5-i2i-preview","prompt":"a","images":[` + strings.Repeat(`{"image_url":"https://e.com/a.png"},`, 3) + `{"image_url":"https://e.com/a.png"}]}`: "images: 4 images; allowed: 1 to 3",
		} {
			got := s.post("/v1/images/edits", body, "Content-Type", "application/json")
			assert.Equal(t, http.StatusBadRequest, got.status, body)
			message, _ := got.decode(t)["error"].(map[string]any)["message"].(string)
			assert.Contains(t, message, says, body)
		}
		assert.Len(t, s.jobIDs(), 1)
	})
}

// What is wrong with an edit is refused before anything is queued or stored, all at once, with the
// names of its form.
func TestEditErrors(t *testing.T) {
	temp := t.TempDir()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456", MaxUploads: 1}}
	runInBubble(t, func(api *gateway.API) { api.TempDir, api.Tokens = temp, tokens }, func(t *testing.T, s *service) {
		good := formFile{"image", solidPNG(t, 600)}
		shop := []string{"Authorization", "Bearer shop-secret-0123456"}
		for name, c := range map[string]struct {
			fields []part
			files  []formFile
			status int
			says   []string
		}{
			"no image":       {[]part{{"prompt", "a"}}, nil, 400, []string{"image: missing; allowed: a file of a form"}},
			"values":         {[]part{{"model", "wan2.7-image"}, {"prompt", " "}, {"n", "9"}, {"size", "9x9"}}, []formFile{{"image[]", solidPNG(t, 100)}, {"image[]", []byte("GIF89a")}}, 400, []string{"prompt: ", "n: 9", `size: "9*9"`, "image[0]: the image: is 100×100, allowed are 240×240 to 8000×8000", "image[1]: the image: not an image in an accepted format, allowed are JPEG"}},
			"model's limits": {[]part{{"model", "wanx2.1-imageedit"}, {"prompt", "a"}}, []formFile{{"image", solidPNG(t, 500)}}, 400, []string{"image: the image: is 500×500, allowed are 512×512"}},
			"no mask":        {[]part{{"model", "wan2.7-image"}, {"prompt", "a"}}, []formFile{good, {"mask", halfMask(t, 600)}}, 400, []string{"mask: ", "wan2.7-image takes no mask; remove it, or name a model that takes one: wanx2.1-imageedit"}},
			"no text2image":  {[]part{{"model", "wanx-v1"}, {"prompt", "a"}}, []formFile{good, {"mask", halfMask(t, 600)}}, 400, []string{"mask: ", "wanx-v1 takes no mask"}},
			"a small mask":   {[]part{{"prompt", "a"}}, []formFile{good, {"mask", halfMask(t, 601)}}, 400, []string{"mask: the mask: is 601×601, and the first image 600×600"}},
			"an opaque mask": {[]part{{"prompt", "a"}}, []formFile{good, {"mask", solidPNG(t, 600)}}, 400, []string{"mask: the mask: has no transparent pixel: make those transparent"}},
			"two masks":      {[]part{{"prompt", "a"}}, []formFile{good, {"mask", halfMask(t, 600)}, {"mask", halfMask(t, 600)}}, 400, []string{"mask: is given too often"}},
			"twice":          {[]part{{"prompt", "a"}, {"prompt", "b"}}, []formFile{good}, 400, []string{"prompt: is given too often"}},
			"unknown field":  {[]part{{"prompt", "a"}, {"pormpt", "b"}}, []formFile{good}, 400, []string{"pormpt: unknown; allowed: "}},
			"a large image":  {[]part{{"prompt", "a"}}, []formFile{{"image", make([]byte, 20<<20+1)}}, 400, []string{"image: the image; allowed: at most 20971520 bytes"}},
			"a large form":   {[]part{{"prompt", "a"}}, slices.Repeat([]formFile{{"image[]", make([]byte, 16<<20)}}, 4), 413, []string{"more than 67108864 bytes"}},
			"unknown model":  {[]part{{"prompt", "a"}, {"model", "dall-e-2"}}, []formFile{good}, 404, []string{"dall-e-2"}},
		} {
			got := s.editImages(t.Context(), t, c.fields, c.files, shop...)
			require.Equal(t, c.status, got.status, "%s: %s", name, got.body)
			message, _ := got.decode(t)["error"].(map[string]any)["message"].(string)
			for _, says := range c.says {
				assert.Contains(t, message, says, name)
			}
			assert.NotContains(t, message, temp, name)
		}
		got := s.post("/v1/images/edits", "--x\r\n", append(shop, "Content-Type", "multipart/form-data; boundary=x")...)
		assert.Equal(t, http.StatusBadRequest, got.status, got.body)
		assertNothingQueued(t, s)
		assert.Empty(t, s.redis.Keys(t.Context(), "danqing:references*").Val(), "nothing was stored")
		got = s.editImages(t.Context(), t, []part{{"prompt", "a"}, {"model", "wan2.7-image"}}, []formFile{{"image[]", good.content}, {"image[]", solidPNG(t, 601)}}, shop...)
		assert.Equal(t, http.StatusTooManyRequests, got.status, "of the uploads of a day")
		assertNothingQueued(t, s)
		left, err := os.ReadDir(temp)
		require.NoError(t, err)
		assert.Empty(t, left)
	})
}

// A repeated edit buys nothing: neither with its idempotency key, also once other models are
// worked on, nor as the retry of a request whose images were not delivered. Its form may be separated
// by other boundaries.
func TestEditRetries(t *testing.T) {
	runInBubble(t, func(api *gateway.API) { api.OpenAIWait = time.Minute }, func(t *testing.T, s *service) {
		fields, files := []part{{"prompt", "a hat"}}, []formFile{{"image", solidPNG(t, 600)}}
		send := func(headers ...string) answer { return s.editImages(t.Context(), t, fields, files, headers...) }
		got := send("X-Stainless-Retry-Count", "0")
		assert.Equal(t, http.StatusGatewayTimeout, got.status, got.body)
		id := s.onlyJob()
		s.finish(id)
		require.NoError(t, jobs.NewStore(s.redis).AnnounceWorker(t.Context(), "w", jobs.WorkerStatus{Models: []string{"wanx-v1", "wanx2.1-imageedit"}}))
		<-time.After(time.Minute)
		got = send("X-Stainless-Retry-Count", "1")
		assert.Equal(t, http.StatusOK, got.status, got.body)
		assert.Equal(t, id, got.header.Get("X-Danqing-Job"))
		require.Equal(t, id, s.onlyJob(), "the retry bought nothing")

		key := []string{"Idempotency-Key", "order 17"}
		kept := send(key...).header.Get("X-Danqing-Job")
		assert.Equal(t, "wanx2.1-imageedit", s.requestOf(kept).Model)
		rec := s.finish(kept)
		require.NoError(t, jobs.NewStore(s.redis).AnnounceWorker(t.Context(), "w", jobs.WorkerStatus{Models: []string{"wanx-v1"}}))
		<-time.After(time.Minute)
		for range 2 {
			got = send(key...)
			assert.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, kept, got.header.Get("X-Danqing-Job"))
			require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+kept).Err())
			s.sidecars[kept] = rec // it is in the bucket only
		}
		assert.Equal(t, id, s.onlyJob())
		files = []formFile{{"image", solidPNG(t, 601)}}
		got = send(key...)
		assert.Equal(t, http.StatusUnprocessableEntity, got.status, "another image")
		encoded, err := json.Marshal(got.body)
		require.NoError(t, err)
		assert.Contains(t, string(encoded), "IdempotencyKeyReused", fmt.Sprint(got.header))
	})
}
