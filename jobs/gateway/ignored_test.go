package gateway_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Parameters that DashScope ignores are accepted, dropped and named in a header, as the
// programs send them: they change neither the request nor its identity.
func TestIgnoredParameters(t *testing.T) {
	runInBubble(t, nil, func(t *testing.T, s *service) {
		key := []string{"Idempotency-Key", "order 17"}
		s.create(oneCat, key...)
		for parameters, want := range map[string]string{
			`{"n":1,"steps":40,"scale":10,"watermark":false}`:         "steps, scale, watermark",
			`{"n":1,"quality":"hd","a, b":1,"prompt_extend":"maybe"}`: "quality, a%2C%20b, prompt_extend",
			`{"n":1,"ref_mode":"repaint","similarity":null}`:          "ref_mode",
			`{"n":1,"negative_prompt":null}`:                          "",
		} {
			got := s.submit(`{"model":"wanx-v1","input":{"prompt":"有一只黑色的小猫"},"parameters":`+parameters+`}`, key...)
			require.Equal(t, http.StatusOK, got.status, got.body)
			assert.Equal(t, want, got.header.Get("X-Danqing-Ignored-Parameters"))
		}
		got := s.submit(`{"model":"wan2.2-t2i-flash","input":{"prompt":"a cat","ref_img":"/no/such/file.png"},"parameters":{"style":"<anime>","ref_strength":1.5}}`)
		assert.Equal(t, "ref_img, style, ref_strength", got.header.Get("X-Danqing-Ignored-Parameters"), got.body)
		got = s.call(t.Context(), http.MethodPost, "/v1/images/generations", strings.Replace(openAICat, "{", `{"stream":false,"watermark":true,`, 1))
		assert.Equal(t, "user, quality, style, watermark", got.header.Get("X-Danqing-Ignored-Parameters"), got.body)
	})
}

// The SDKs upload a local reference image before they send a request, also for a model that
// ignores it.
func TestIgnoredUpload(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	p := s.policyFor("qwen-image")
	_, content := writePNG(t, "girl", 1)
	got := s.sendForm(p, formParts(p, p.UploadDir+"/girl.png"), content)
	require.Equal(t, http.StatusOK, got.status, got.body)
	got = s.submit(`{"model":"qwen-image","input":{"prompt":"a cat","ref_img":"oss://` + p.UploadDir + `/girl.png"}}`)
	require.Equal(t, http.StatusOK, got.status, got.body)
	assert.Equal(t, "ref_img", got.header.Get("X-Danqing-Ignored-Parameters"))
}
