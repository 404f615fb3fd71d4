package gateway_test

import (
	"bytes"
	"encoding/json"
	"image"
	"image/png"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/gateway"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	editPath       = "/api/v1/services/aigc/image2image/image-synthesis"
	generationPath = "/api/v1/services/aigc/image-generation/generation"
)

// submitTo sends a create to a path like the SDKs.
func (s *service) submitTo(path, body string, headers ...string) answer {
	return s.post(path, body, append([]string{"X-DashScope-Async", "enable", "Content-Type", "application/json; charset=utf-8"}, headers...)...)
}

// createdRequest returns the request of the job that a create has made.
func (s *service) createdRequest(got answer) jobs.Request {
	s.t.Helper()
	require.Equal(s.t, http.StatusOK, got.status, got.body)
	var created dashscope.TaskResponse
	require.NoError(s.t, json.Unmarshal([]byte(got.body), &created))
	rec, err := s.jobs.Get(s.t.Context(), created.Output.TaskID)
	require.NoError(s.t, err)
	req, err := s.jobs.RequestOf(s.t.Context(), rec)
	require.NoError(s.t, err)
	return req
}

// The bodies of dashscope-sdk-python 1.26.2 (ImageGeneration.async_call, ImageSynthesis.async_call)
// and dashscope-sdk-java (ImageGenerationParam) become jobs of their models. Without n there are as many images as the gateway's default, but no
// more than DashScope would make.
func TestCreateInEachProtocol(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		for name, c := range map[string]struct {
			path, body, ignored string
			want                jobs.Request
		}{
			"several images": {
				generationPath,
				`{"model": "wan2.7-image", "parameters": {"n": 1, "size": "2K", "enable_sequential": false, "thinking_mode": true, "is_async": true}, "input": {"messages": [{"role": "user", "content": [{"text": "merge"}, {"image": "https://e.com/a.png"}, {"image": "https://e.com/b.png"}]}]}}`,
				"is_async",
				jobs.Request{Model: "wan2.7-image", Prompt: "merge", Size: "2K", N: 1, RefImages: []string{"https://e.com/a.png", "https://e.com/b.png"}, EnableSequential: new(false), ThinkingMode: new(true), Watermark: new(false)},
			},
			"text": {
				generationPath,
				`{"model": "wan2.6-t2i", "parameters": {"negative_prompt": "x", "prompt_extend": true, "watermark": false, "is_async": true}, "input": {"messages": [{"role": "user", "content": [{"text": "cat", "type": "text"}]}]}}`,
				"is_async",
				jobs.Request{Model: "wan2.6-t2i", Prompt: "cat", NegativePrompt: "x", Size: "1280*1280", N: 4, PromptExtend: new(true), Watermark: new(false)},
			},
			"Java": {
				generationPath,
				`{"model":"wan2.6-image","input":{"messages":[{"role":"user","content":[{"text":"cat"},{"image":"https://e.com/a.png"}]}]},"parameters":{"seed":7,"negative_prompt":"x","size":"1280*1280","n":1,"enable_interleave":false,"stream":false}}`,
				"enable_interleave, stream",
				jobs.Request{Model: "wan2.6-image", Prompt: "cat", NegativePrompt: "x", Size: "1280*1280", N: 1, Seed: new(int64(7)), RefImages: []string{"https://e.com/a.png"}, PromptExtend: new(true), Watermark: new(false)},
			},
			"Qwen-Image": {
				generationPath + "/",
				`{"model":"qwen-image-3.0","input":{"prompt":"not read","messages":[{"content":[{"image":"https://e.com/a.png"},{"text":"cat"}]}]},"parameters":null}`,
				"prompt",
				jobs.Request{Model: "qwen-image-3.0", Prompt: "cat", Size: "1024*1024", N: 1, RefImages: []string{"https://e.com/a.png"}, PromptExtend: new(true), Watermark: new(false), PromptExtendMode: "direct", EnableThinking: new(true)},
			},
			"function and mask": {
				editPath,
				`{"model": "wanx2.1-imageedit", "parameters": {"size": "1024*1024"}, "input": {"prompt": "hat", "function": "description_edit_with_mask", "mask_image_url": "https://e.com/m.png", "base_image_url": "https://e.com/a.png"}}`,
				"size",
				jobs.Request{Model: "wanx2.1-imageedit", Prompt: "hat", N: 1, RefImages: []string{"https://e.com/a.png"}, MaskImageURL: "https://e.com/m.png", Function: "description_edit_with_mask", Watermark: new(false)},
			},
			"function with options": {
				editPath,
				`{"model":"wanx2.1-imageedit","input":{"prompt":"hat","function":"super_resolution","base_image_url":"https://e.com/a.png"},"parameters":{"upscale_factor":3}}`,
				"",
				jobs.Request{Model: "wanx2.1-imageedit", Prompt: "hat", N: 1, RefImages: []string{"https://e.com/a.png"}, Function: "super_resolution", UpscaleFactor: new(3.0), Watermark: new(false)},
			},
			"a group": {
				generationPath,
				`{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[{"text":"a story"}]}]},"parameters":{"enable_sequential":true,"n":12}}`,
				"",
				jobs.Request{Model: "wan2.7-image", Prompt: "a story", Size: "2K", N: 12, EnableSequential: new(true), Watermark: new(false)},
			},
		} {
			got := s.submitTo(c.path, c.body)
			req := s.createdRequest(got)
			assert.Equal(t, c.ignored, got.header.Get("X-Danqing-Ignored-Parameters"), name)
			c.want.ID, c.want.Priority = req.ID, "default"
			assert.Equal(t, c.want, req, name)
		}
	})
}

// The answer about a job has the shape of its model's protocol, in the list too.
func TestAnswersInEachProtocol(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		const edit = `{"model":"%","input":{"messages":[{"role":"user","content":[{"text":"cat"},{"image":"https://e.com/a.png"}]}]},"parameters":{"n":2}}`
		for model, usage := range map[string]map[string]any{
			"wan2.7-image":       {"image_count": 2.0, "size": "256*256"},
			"qwen-image-3.0-pro": {"output_image_count": 2.0, "output_image_type": "qima_output_1k", "input_image_count": 1.0},
		} {
			req := s.createdRequest(s.submitTo(generationPath, strings.Replace(edit, "%", model, 1)))
			assert.Equal(t, map[string]any{"output": map[string]any{"task_id": req.ID, "task_status": "PENDING", "submit_time": "2000-01-01 08:00:00.000"}},
				s.request(http.MethodGet, tasksPath+req.ID, "", "Prefer", "wait=0").decode(t))
			rec := s.finish(req.ID)
			got := s.request(http.MethodGet, tasksPath+req.ID, "").decode(t)
			var parts []any
			for _, image := range rec.Images {
				parts = append(parts, map[string]any{"type": "image", "image": "http://127.0.0.1:8765" + rec.ImagePath(image)})
			}
			output := got["output"].(map[string]any)
			assert.Equal(t, []any{map[string]any{"finish_reason": "stop", "message": map[string]any{"role": "assistant", "content": parts}}}, output["choices"])
			assert.Equal(t, true, output["finished"])
			assert.NotContains(t, output, "results")
			assert.Equal(t, usage, got["usage"])
			list := s.request(http.MethodGet, "/api/v1/tasks?model_name="+model, "")
			assert.Contains(t, list.body, `"user_api_unique_key":"apikey:v1:aigc:image-generation:generation:`+model)
		}
		req := s.createdRequest(s.submitTo(editPath, `{"model":"wan2.5-i2i-preview","input":{"prompt":"hat","images":["https://e.com/a.png"]},"parameters":{"n":1}}`))
		s.finish(req.ID)
		task := s.query(req.ID)
		assert.Len(t, task.Output.Results, 1)
		assert.Empty(t, task.Output.Choices)
		assert.Equal(t, &dashscope.Usage{ImageCount: 1}, task.Usage)
	})
}

// What is wrong with a create is named as the client wrote it, all at once. A model at another
// model's path is told its own.
func TestErrorsInEachProtocol(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		message := func(content, more string) string {
			return `{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":` + content + `}]},"parameters":{` + more + `}}`
		}
		for name, c := range map[string]struct {
			path, body string
			says       []string
		}{
			"values": {generationPath, message(`[{"image":"https://e.com/a.png"},{"image":"ftp://h/x?s=hunter2"},{"text":" "}]`, `"n":9,"size":"7K"`), []string{
				`input.messages[0].content[1].image: "ftp://h/x?…"; allowed: an http`, `input.messages[0].content[2].text: " "`, `parameters.n: 9; allowed: 1 to 4`, `parameters.size: "7K"`,
			}},
			"uploads": {generationPath, message(`[{"text":"a"},{"image":"oss://x/a.png"},{"image":"https://e.com/a.png"},{"image":"data:image/png;base64,AA"}]`, ``), []string{
				`input.messages[0].content[1].image: "oss://x/a.png": unknown or expired: upload the file to this server first`, `input.messages[0].content[3].image: "data:image/png;base64,AA": is not a URL of a file: upload`,
			}},
			"too many": {generationPath, message(`[{"text":"a"}`+strings.Repeat(`,{"image":"https://e.com/a.png"}`, 10)+`]`, ``), []string{`input.messages[0].content: 10 images; allowed: 0 to 9`}},
			"parts": {generationPath, message(`[{"text":"a"},{"text":"b"},{"image":5},{"video":"https://e.com/a.mp4?s=hunter2"},{"text":"c","image":"d"},{}]`, `"n":9`), []string{
				`input.messages[0].content[1].text: "b"; allowed: one text: input.messages[0].content[0].text is another`, `input.messages[0].content[2].image: 5; allowed: text in quotes`,
				`input.messages[0].content[3]: {"video":"https://e.com/a.mp4?…; allowed: either {"text":"…"} or {"image":"https://…"}`, `input.messages[0].content[4]: {"image":"d","text":"c"}`, `input.messages[0].content[5]: {}`, `parameters.n: 9`,
			}},
			"no text":           {generationPath, message(`[{"image":"https://e.com/a.png"}]`, ``), []string{`input.messages[0].content: missing; allowed: a description of the image`}},
			"a text as content": {generationPath, message(`"a cat"`, ``), []string{`input.messages[0].content: "a cat"; allowed: a list of texts and images`}},
			"no messages":       {generationPath, `{"model":"wan2.7-image","input":{"prompt":"a cat"}}`, []string{`input.messages: missing; allowed: one message, as in [{"role":"user"`}},
			"two messages":      {generationPath, `{"model":"wan2.7-image","input":{"messages":[{},{}]}}`, []string{`input.messages: 2 messages; allowed: one message`}},
			"a system message":  {generationPath, `{"model":"wan2.7-image","input":{"messages":[{"role":"system","content":[{"text":"a"}]}]}}`, []string{`input.messages[0].role: "system"; allowed: "user"`}},
			"no image":          {generationPath, `{"model":"wan2.6-image","input":{"messages":[{"role":"user","content":[{"text":"a"}]}]}}`, []string{`input.messages[0].content: missing; allowed: 1 to 4; wan2.6-image edits images`}},
			"an old model":      {generationPath, `{"model":"wanx-v1","input":{"messages":[{"role":"user","content":[{"text":"a"}]}]}}`, []string{`url error, please check url! model: "wanx-v1": send it to ` + createPath}},
			"a new model":       {createPath, `{"model":"wan2.7-image","input":{"prompt":"a"}}`, []string{`model: "wan2.7-image": send it to ` + generationPath}},
			"a region's name":   {editPath, `{"model":"wan2.1-t2i-turbo","input":{"prompt":"a"}}`, []string{`send it to ` + createPath}},
			"an editing model":  {createPath, `{"model":"wanx2.1-imageedit","input":{"prompt":"a"}}`, []string{`send it to ` + editPath}},
			"no such model":     {generationPath, `{"model":"wan9","input":{"messages":[{"role":"user","content":[{"text":"a"}]}]}}`, []string{`model: "wan9"; allowed:`}},
			"a synchronous one": {generationPath, `{"model":"qwen-image-max","input":{"messages":[{"role":"user","content":[{"text":"a"}]}]}}`, []string{`use qwen-image-3.0-pro`}},
			"images":            {editPath, `{"model":"wan2.5-i2i-preview","input":{"prompt":"a","images":["x","https://e.com/a.png"]},"parameters":{"n":9}}`, []string{`input.images[0]: "x"`, `parameters.n: 9`}},
			"no images":         {editPath, `{"model":"wan2.5-i2i-preview","input":{}}`, []string{`input.images: missing; allowed: 1 to 3`, `input.prompt: missing`}},
			"base image":        {editPath, `{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"describe","base_image_url":"/etc/passwd"},"parameters":{"strength":"0.5"}}`, []string{`parameters.strength: "0.5"; allowed: a number`}},
			"function":          {editPath, `{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"describe","base_image_url":"/etc/passwd","mask_image_url":"m"}}`, []string{`input.function: "describe"; allowed: stylization_all`, `input.base_image_url: "/etc/passwd"`, `input.mask_image_url: "m"`}},
			"no base image":     {editPath, `{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"doodle"}}`, []string{`input.base_image_url: missing; allowed: 1`}},
			"no mask":           {editPath, `{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"description_edit_with_mask","base_image_url":"https://e.com/a.png"}}`, []string{`input.mask_image_url: missing`}},
			"ref_image":         {createPath, `{"model":"wanx-v1","input":{"prompt":"a","ref_image":"x"},"parameters":{"ref_strength":2}}`, []string{`input.ref_image: "x"`, `parameters.ref_strength: 2`}},
			"no UTF-8":          {generationPath, message("[{\"text\":\"\xff\"}]", ``), []string{"UTF-8"}},
		} {
			said := s.submitTo(c.path, c.body).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
			for _, says := range c.says {
				assert.Contains(t, said, says, name)
			}
			assert.NotContains(t, said, "hunter2", name)
			assert.Equal(t, len(c.says), strings.Count(said, " | ")+1, "%s: %s", name, said)
		}
		for _, path := range []string{generationPath, editPath} {
			assert.Contains(t, s.post(path, `{}`).requireRefused(t, http.StatusForbidden, "AccessDenied"), "X-DashScope-Async: enable")
		}
		said := s.post("/api/v1/services/aigc/multimodal-generation/generation", `{}`).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
		assert.Contains(t, said, generationPath+" (wan2.6-t2i, wan2.6-image,")
		said = s.submitTo(generationPath, message(`[{"text":"a"},{"image":"data:image/png;base64,`+strings.Repeat("A", 100<<10)+`"}]`, ``)).requireRefused(t, http.StatusRequestEntityTooLarge, "RequestTooLarge")
		assert.Contains(t, said, "upload them first")
		assertNothingQueued(t, s)
	})
}

// The longest prompt, escaped, and the most reference images fit into a body.
func TestLargestCreate(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		var body strings.Builder
		body.WriteString(`{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[{"text":"` + strings.Repeat(`\ud83d\udc31`, 5000) + `"}`)
		link := `,{"image":"https://e.com/` + strings.Repeat("a", 2000)
		for i := range 9 {
			body.WriteString(link + string(rune('0'+i)) + `"}`)
		}
		assert.Len(t, s.createdRequest(s.submitTo(generationPath, body.String()+`]}]},"parameters":{"n":1}}`)).RefImages, 9)
	})
}

// solidPNG returns a square PNG of one color.
func solidPNG(t *testing.T, side int) []byte {
	t.Helper()
	var encoded bytes.Buffer
	require.NoError(t, png.Encode(&encoded, image.NewGray(image.Rect(0, 0, side, side))))
	return encoded.Bytes()
}

// The SDKs upload all local files of a request with one policy. Each is its token's own. A repeat
// that uploads them anew is the same job.
func TestUploadsOfOneRequest(t *testing.T) {
	t.Parallel()
	tokens := []gateway.Token{{Name: "shop", Secret: "shop-secret-0123456"}, {Name: "blog", Secret: "blog-secret-0123456"}}
	s := newService(t, func(api *gateway.API) { api.Tokens = tokens })
	shop := []string{"Authorization", "Bearer shop-secret-0123456"}
	body := func() string {
		p := s.policyFor("wan2.7-image", shop...)
		assert.Equal(t, 20, p.MaxFileSizeMB)
		var content strings.Builder
		content.WriteString(`{"text":"merge"}`)
		for i, name := range []string{"a.png", "b.png"} {
			require.Equal(t, http.StatusOK, s.sendForm(p, formParts(p, p.UploadDir+"/"+name), solidPNG(t, 240+i)).status)
			content.WriteString(`,{"image":"oss://` + p.UploadDir + "/" + name + `"}`)
		}
		return `{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[` + content.String() + `]}]},"parameters":{"n":1}}`
	}
	key := append([]string{"Idempotency-Key", "order 17", "X-DashScope-OssResourceResolve", "enable"}, shop...)
	first := body()
	req := s.createdRequest(s.submitTo(generationPath, first, key...))
	require.Len(t, req.RefImages, 2)
	for _, name := range req.RefImages {
		assert.True(t, strings.HasPrefix(name, "sha256:"), name)
	}
	assert.NotEqual(t, req.RefImages[0], req.RefImages[1])
	assert.Equal(t, req.ID, s.createdRequest(s.submitTo(generationPath, body(), key...)).ID, "nothing is bought twice")
	assert.Len(t, s.jobIDs(), 1)
	s.submitTo(generationPath, strings.Replace(first, "merge", "mix", 1), key...).requireRefused(t, http.StatusUnprocessableEntity, "IdempotencyKeyReused")

	said := s.submitTo(generationPath, first, "Authorization", "Bearer blog-secret-0123456").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, said, "input.messages[0].content[1].image")
	assert.Contains(t, said, "input.messages[0].content[2].image")
	staged := strings.NewReplacer("A", req.RefImages[0], "B", req.RefImages[1]).Replace(`{"model":"wan2.5-i2i-preview","input":{"prompt":"a","images":["A","B"]},"parameters":{"n":1}}`)
	said = s.submitTo(editPath, staged, "Authorization", "Bearer blog-secret-0123456").requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Equal(t, 2, strings.Count(said, "staged image does not exist: upload it first"))
	// Another model may need larger ones.
	said = s.submitTo(editPath, staged, shop...).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, said, "input.images[0]")
	assert.Contains(t, said, "is 241×241, allowed are 384×384 to 5000×5000")
	p := s.policyFor("wanx2.1-imageedit", shop...)
	said = s.sendForm(p, formParts(p, p.UploadDir+"/a.png"), solidPNG(t, 500)).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, said, "is 500×500, allowed are 512×512 to 4096×4096")
	assert.Len(t, s.jobIDs(), 1)
}

// A worker's record of a model that is no longer offered is answered like wanx-v1's.
func TestAnswerOfARetiredModel(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		id := s.create(oneCat)
		rec := s.finish(id)
		retired := *rec
		retired.Model, retired.FinishedAt = "wanx-v0", time.Now()
		require.NoError(t, s.redis.Del(t.Context(), "danqing:job:"+id).Err())
		s.sidecars[id] = &retired
		assert.Len(t, s.query(id).Output.Results, 1)
	})
}
