package simulator_test

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"mime/multipart"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

func (c *client) policy(t *testing.T) dashscope.Policy {
	t.Helper()
	r := c.get(t, dashscope.PathUploads+"/?action=getPolicy&model=wanx-v1")
	require.Equal(t, http.StatusOK, r.status, "body %s", r.body)
	return decode[dashscope.PolicyResponse](t, r).Data
}

// upload posts a file as the SDKs do; change modifies the fields first.
func (c *client) upload(t *testing.T, p dashscope.Policy, name string, content []byte, change func(map[string]string)) reply {
	t.Helper()
	fields := map[string]string{
		"OSSAccessKeyId": p.OSSAccessKeyID, "policy": p.Policy, "Signature": p.Signature, "key": p.UploadDir + "/" + name,
		"x-oss-object-acl": p.XOSSObjectACL, "x-oss-forbid-overwrite": p.XOSSForbidOverwrite,
		"success_action_status": "200", "x-oss-content-type": "image/png",
	}
	if change != nil {
		change(fields)
	}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for field, value := range fields {
		require.NoError(t, form.WriteField(field, value))
	}
	if content != nil {
		file, err := form.CreateFormFile("file", name)
		require.NoError(t, err)
		_, err = file.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, form.Close())
	r, err := c.send(t.Context(), http.MethodPost, p.UploadHost, body.Bytes(), map[string]string{"Content-Type": form.FormDataContentType()})
	require.NoError(t, err)
	assert.Equal(t, "true", r.header.Get(dashscope.HeaderSimulated))
	return r
}

// plain returns a picture of one color.
func plain(width, height int, c color.Color) image.Image {
	img := image.NewPaletted(image.Rect(0, 0, width, height), color.Palette{c})
	return img
}

func pngOf(t *testing.T, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, img))
	return b.Bytes()
}

// withRef returns a create with a reference image.
func withRef(name string) string {
	return fmt.Sprintf(`{"model":"wanx-v1","input":{"prompt":"a","ref_img":%q},"parameters":{"n":1,"ref_strength":1}}`, name)
}

func TestUploadedReferenceIsUsed(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(time.Second), func(c *client) {
		t := c.t
		p := c.policy(t)
		assert.Equal(t, 300, p.ExpireInSeconds)
		assert.Equal(t, "private", p.XOSSObjectACL)
		assert.Equal(t, "true", p.XOSSForbidOverwrite)
		r := c.upload(t, p, "girl.png", pngOf(t, plain(640, 480, color.RGBA{R: 255, A: 255})), nil)
		assert.Equal(t, http.StatusOK, r.status, "body %s", r.body)
		assert.Empty(t, r.body)
		var photo bytes.Buffer
		require.NoError(t, jpeg.Encode(&photo, plain(256, 4096, color.RGBA{B: 255, A: 255}), nil))
		assert.Equal(t, http.StatusOK, c.upload(t, p, "tall.jpg", photo.Bytes(), nil).status, "one credential serves for several files")

		for name, want := range map[string]color.RGBA{"girl.png": {R: 255, A: 255}, "tall.jpg": {B: 255, A: 255}} {
			link := c.links(t, withRef("oss://"+p.UploadDir+"/"+name))[0]
			img, err := png.Decode(bytes.NewReader(c.download(t, link, nil).body))
			require.NoError(t, err)
			red, _, blue, _ := img.At(20, 512).RGBA()
			assert.InDelta(t, want.R, red>>8, 60)
			assert.InDelta(t, want.B, blue>>8, 60)
		}
	})
}

func TestUploadBelongsToItsAccountForTwoDays(t *testing.T) {
	t.Parallel()
	sim := fixed(time.Second)
	sim.Keys = map[string]simulator.Key{"sk-test": {}, "sk-other": {Account: "other"}}
	bubble(t, sim, func(c *client) {
		t := c.t
		p := c.policy(t)
		c.upload(t, p, "a.png", pngOf(t, plain(256, 256, color.White)), nil)
		status := func() string {
			id := c.create(t, withRef("oss://"+p.UploadDir+"/a.png"))
			time.Sleep(2 * time.Second)
			return c.status(t, id)
		}
		assert.Equal(t, dashscope.StatusSucceeded, status())
		c.key = "sk-other"
		assert.Equal(t, dashscope.StatusFailed, status())
		c.key = "sk-test"
		time.Sleep(48*time.Hour - 5*time.Second)
		assert.Equal(t, dashscope.StatusSucceeded, status())
		time.Sleep(5 * time.Second)
		assert.Equal(t, dashscope.StatusFailed, status())
	})
}

func TestUploadsThatNoTaskCanUse(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		content []byte
		code    string
	}{
		"no image":  {[]byte("hello"), "InvalidImageFormat"},
		"torn":      {pngOf(t, plain(256, 256, color.White))[:100], "InvalidImageFormat"},
		"too small": {pngOf(t, plain(255, 256, color.White)), "InvalidImageResolution"},
		"too wide":  {pngOf(t, plain(4097, 256, color.White)), "InvalidImageResolution"},
		"too large": {make([]byte, 10<<20+1), "InvalidFile.Size"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, fixed(time.Second), func(c *client) {
				t := c.t
				p := c.policy(t)
				require.Equal(t, http.StatusOK, c.upload(t, p, "a.png", test.content, nil).status, "OSS takes anything")
				id := c.create(t, withRef("oss://"+p.UploadDir+"/a.png"))
				time.Sleep(time.Second)
				assert.Equal(t, test.code, c.query(t, id).Output.Code)
			})
		})
	}
}

func TestUploadRefusals(t *testing.T) {
	t.Parallel()
	bubble(t, fixed(time.Second), func(c *client) {
		t := c.t
		refused(t, c.get(t, dashscope.PathUploads+"?model=wanx-v1"), http.StatusBadRequest, "InvalidParameter")
		refused(t, c.get(t, dashscope.PathUploads+"?action=getPolicy"), http.StatusBadRequest, "InvalidParameter")
		refused(t, c.get(t, dashscope.PathUploads+"?action=getPolicy&model=x"), http.StatusNotFound, "ModelNotFound")

		p := c.policy(t)
		content := pngOf(t, plain(256, 256, color.White))
		for name, test := range map[string]struct {
			change func(map[string]string)
			status int
			code   string
		}{
			"foreign key ID":  {func(f map[string]string) { f["OSSAccessKeyId"] = "LTAI" }, http.StatusForbidden, "InvalidAccessKeyId"},
			"wrong signature": {func(f map[string]string) { f["Signature"] = "AAAA" }, http.StatusForbidden, "SignatureDoesNotMatch"},
			"changed policy":  {func(f map[string]string) { f["policy"] += "AAAA" }, http.StatusForbidden, "SignatureDoesNotMatch"},
			"other folder":    {func(f map[string]string) { f["key"] = "dashscope-instant/a.png" }, http.StatusForbidden, "AccessDenied"},
			"no key":          {func(f map[string]string) { delete(f, "key") }, http.StatusForbidden, "AccessDenied"},
			"public":          {func(f map[string]string) { f["x-oss-object-acl"] = "public-read" }, http.StatusForbidden, "AccessDenied"},
			"overwriting":     {func(f map[string]string) { delete(f, "x-oss-forbid-overwrite") }, http.StatusForbidden, "AccessDenied"},
		} {
			t.Log(name)
			refusedByOSS(t, c.upload(t, p, "a.png", content, test.change), test.status, test.code)
		}
		refusedByOSS(t, c.upload(t, p, "a.png", nil, nil), http.StatusBadRequest, "IncorrectNumberOfFilesInPOSTRequest")
		noForm, err := c.send(t.Context(), http.MethodPost, p.UploadHost, []byte("hello"), map[string]string{"Content-Type": "text/plain"})
		require.NoError(t, err)
		refusedByOSS(t, noForm, http.StatusBadRequest, "MalformedPOSTRequest")

		assert.Equal(t, http.StatusNoContent, c.upload(t, p, "a.png", content, func(f map[string]string) { delete(f, "success_action_status") }).status)
		refusedByOSS(t, c.upload(t, p, "a.png", content, nil), http.StatusConflict, "FileAlreadyExists")
		time.Sleep(300 * time.Second)
		expired := c.upload(t, p, "b.png", content, nil)
		refusedByOSS(t, expired, http.StatusForbidden, "AccessDenied")
		assert.Contains(t, string(expired.body), "Invalid according to Policy: Policy expired.")
	})
}
