package simulator_test

import (
	"bytes"
	"fmt"
	"image/color"
	"image/png"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// An edited picture shows the image that it was made from, in the shape of its protocol. At another
// model's path a create is refused.
func TestEditsBuildOnTheirInput(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(time.Second), func(c *client) {
		t := c.t
		for model, create := range map[string]struct {
			protocol dashscope.Protocol
			body     string
		}{
			"wan2.7-image":       {dashscope.ProtocolImageGeneration, `{"model":"wan2.7-image","input":{"messages":[{"role":"user","content":[{"text":"a"},{"image":%q}]}]},"parameters":{"n":1,"size":"768*768"}}`},
			"wanx2.1-imageedit":  {dashscope.ProtocolImage2Image, `{"model":"wanx2.1-imageedit","input":{"prompt":"a","function":"description_edit","base_image_url":%q},"parameters":{"n":1}}`},
			"qwen-image-3.0-pro": {dashscope.ProtocolImageGeneration, `{"model":"qwen-image-3.0-pro","input":{"messages":[{"role":"user","content":[{"text":"a"},{"image":%q}]}]},"parameters":{"n":1,"size":"1024*1024"}}`},
		} {
			r := c.get(t, dashscope.PathUploads+"/?action=getPolicy&model="+model)
			require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
			p := decode[dashscope.PolicyResponse](t, r).Data
			require.Equal(t, http.StatusOK, c.upload(t, p, "red.png", pngOf(t, plain(640, 640, color.RGBA{R: 255, A: 255})), nil).status)
			body := fmt.Appendf(nil, create.body, "oss://"+p.UploadDir+"/red.png")
			refused(t, c.call(t, http.MethodPost, dashscope.PathText2Image, body, asyncHeader()), http.StatusBadRequest, "InvalidParameter")
			r = c.call(t, http.MethodPost, create.protocol.Path(), body, asyncHeader())
			require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
			time.Sleep(2 * time.Second)
			task := c.query(t, decode[dashscope.TaskResponse](t, r).Output.TaskID)
			require.Equal(t, dashscope.StatusSucceeded, task.Output.TaskStatus, task.Output.Message)
			link := ""
			if create.protocol == dashscope.ProtocolImageGeneration {
				require.Empty(t, task.Output.Results)
				link = task.Output.Choices[0].Message.Content[0].Image
			} else {
				link = task.Output.Results[0].URL
			}
			img, err := png.Decode(bytes.NewReader(c.download(t, link, nil).body))
			require.NoError(t, err)
			red, green, blue, _ := img.At(20, 512).RGBA()
			assert.Greater(t, red>>8, uint32(170), model)
			assert.Less(t, green>>8, uint32(90), model)
			assert.Less(t, blue>>8, uint32(90), model)
			if model == "qwen-image-3.0-pro" {
				assert.Equal(t, &dashscope.Usage{OutputImageCount: 1, OutputImageType: dashscope.LargeImageType, InputImageCount: new(1)}, task.Usage, "the size that was asked for does not count")
				assert.Equal(t, 2048, img.Bounds().Dx())
			}
		}
	})
}

// The list leaves out the tasks of the paths that it does not know.
func TestUnlistedProtocols(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.Unlisted = []dashscope.Protocol{dashscope.ProtocolImageGeneration}
	bubble(t, sim, func(c *client) {
		t := c.t
		listed := c.create(t, create("wanx-v1", `"n":1`))
		r := c.call(t, http.MethodPost, dashscope.ProtocolImageGeneration.Path(), []byte(`{"model":"wan2.6-t2i","input":{"messages":[{"role":"user","content":[{"text":"a"}]}]}}`), asyncHeader())
		require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
		list := c.list(t, "")
		require.Len(t, list.Data, 1)
		assert.Equal(t, listed, list.Data[0].TaskID)
		assert.Equal(t, 4, sim.Tasks()[1].N, "of a create without n")
	})
}
