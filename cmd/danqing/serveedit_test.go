package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// requireRed fails unless a picture shows the red image that it was made from: the simulator's edits
// do so at this place.
func requireRed(t *testing.T, content []byte) {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(content))
	require.NoError(t, err)
	red, green, blue, _ := picture.At(20, picture.Bounds().Dy()/2).RGBA()
	assert.Greater(t, red>>8, uint32(170))
	assert.Less(t, max(green>>8, blue>>8), uint32(90))
}

// edits edits a local picture by a sentence in each front: the answers have the edited picture.
// Repeats with the same key buy nothing. It makes four tasks.
func (s *serveStack) edits() {
	t := s.t
	t.Helper()
	paper := image.NewNRGBA(image.Rect(0, 0, 640, 640))
	draw.Draw(paper, paper.Bounds(), image.NewUniform(color.NRGBA{R: 255, A: 255}), image.Point{}, draw.Src)
	var red bytes.Buffer
	require.NoError(t, png.Encode(&red, paper))
	file := filepath.Join(t.TempDir(), "red.png")
	require.NoError(t, os.WriteFile(file, red.Bytes(), 0o600))

	const parameters = `"parameters":{"n":1,"size":"1024*1024"}}`
	for range 2 { // with its picture uploaded anew
		name := s.uploadFor("wan2.7-image", file)
		task := s.createAndWait(dashscope.ProtocolImageGeneration.Path(), `{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[{"text":"加一顶帽子"},{"image":"`+name+`"}]}]},`+parameters,
			"X-DashScope-OssResourceResolve", "enable", "Idempotency-Key", "edit 1")
		require.Len(t, task.Choices, 1, task.Message)
		requireRed(t, s.download(task.Choices[0].Message.Content[0].Image))
	}
	name := s.uploadFor("wan2.5-i2i-preview", file)
	task := s.createAndWait(dashscope.ProtocolImage2Image.Path(), `{"model":"wan2.5-i2i-preview","input":{"prompt":"加一顶帽子","images":["`+name+`"]},`+parameters, "X-DashScope-OssResourceResolve", "enable")
	require.Len(t, task.Results, 1, task.Message)
	requireRed(t, s.download(task.Results[0].URL))

	for range 2 {
		requireRed(t, s.openAIEdit("wan2.7-image", red.Bytes(), "Idempotency-Key", "edit 2"))
	}
	requireRed(t, s.openAIEdit("wanx2.1-imageedit", red.Bytes()))
}

// download returns what is at a link.
func (s *serveStack) download(link string) []byte {
	s.t.Helper()
	resp, err := noRedirects().Get(link) //nolint:noctx // on this machine
	require.NoError(s.t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	require.NoError(s.t, resp.Body.Close())
	require.Equal(s.t, http.StatusOK, resp.StatusCode, string(content))
	return content
}

// openAIEdit edits a picture with OpenAI's API, and returns the edited one.
func (s *serveStack) openAIEdit(model string, picture []byte, headers ...string) []byte {
	s.t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, field := range [][2]string{{"model", model}, {"prompt", "add a hat"}, {"size", "1024x1024"}, {"response_format", "b64_json"}} {
		require.NoError(s.t, form.WriteField(field[0], field[1]))
	}
	part, err := form.CreateFormFile("image", "red.png")
	require.NoError(s.t, err)
	_, err = part.Write(picture)
	require.NoError(s.t, err)
	require.NoError(s.t, form.Close())
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.address+"/v1/images/edits", &body)
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+serveToken)
	req.Header.Set("Content-Type", form.FormDataContentType())
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	require.NoError(s.t, resp.Body.Close())
	require.Equal(s.t, http.StatusOK, resp.StatusCode, string(answer))
	var images struct {
		Data []struct {
			B64JSON string `json:"b64_json"`
		} `json:"data"`
	}
	require.NoError(s.t, json.Unmarshal(answer, &images))
	require.Len(s.t, images.Data, 1)
	content, err := base64.StdEncoding.DecodeString(images.Data[0].B64JSON)
	require.NoError(s.t, err)
	return content
}
