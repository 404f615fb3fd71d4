package gateway_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/gateway"
)

// Forms are read whatever the order of their fields, and whatever else OSS would know,
// as long as the file is last.
func TestUploadFieldOrder(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	p := s.policy()
	_, content := picture(t, "girl", 1)
	parts := append(partsOf(p, p.UploadDir+"/a.png"), part{"x-oss-meta-of-ours", "x"})
	slices.Reverse(parts)
	got := s.sendForm(p, parts, content)
	assert.Equal(t, http.StatusOK, got.status, got.body)
	s.create(`{"model":"wanx-v1","input":{"prompt":"a cat","ref_img":"oss://` + p.UploadDir + `/a.png"}}`)
	s.sendForm(p, slices.DeleteFunc(parts, func(f part) bool { return f.name == "policy" }), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
}

// A few bytes that say they are a vast picture are believed, and refused, before any
// room is made for it.
func TestUploadOfAVastPicture(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	p := s.policy()
	_, content := picture(t, "girl", 1)
	const header = 12 // of the chunk's type, which its checksum begins with
	vast := bytes.Clone(content)
	binary.BigEndian.PutUint32(vast[header+4:], 60_000)
	binary.BigEndian.PutUint32(vast[header+8:], 60_000)
	binary.BigEndian.PutUint32(vast[header+17:], crc32.ChecksumIEEE(vast[header:header+17]))
	message := s.sendForm(p, partsOf(p, p.UploadDir+"/a.png"), vast).requireRefused(t, http.StatusBadRequest, "InvalidParameter")
	assert.Contains(t, message, "60000")
}

// A file that never ends is read no further than a reference may reach, and leaves
// nothing on the disk.
func TestUploadWithoutEnd(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	s := newService(t, func(api *gateway.API) { api.TempDir = temp })
	p := s.policy()
	start, contentType := form(t, partsOf(p, p.UploadDir+"/a.png"), "girl.png", nil)
	start = start[:bytes.LastIndex(start, []byte("\r\n--"))] // the file goes on
	rest := &endless{}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/api/v1/uploads/form", io.MultiReader(bytes.NewReader(start), rest))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	s.gateway.ServeHTTP(w, r)
	assert.Equal(t, http.StatusBadRequest, w.Code, w.Body.String())
	assert.LessOrEqual(t, rest.read.Load(), int64(11<<20))
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left)
}
