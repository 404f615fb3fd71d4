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
	s.sendForm(p, slices.DeleteFunc(parts, func(f part) bool { return f.name == "policy" }), content).requireRefused(t, http.StatusForbidden, "AccessDenied")
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
	start, contentType := form(t, formParts(p, p.UploadDir+"/a.png"), "girl.png", nil)
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
