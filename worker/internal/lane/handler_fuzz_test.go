package lane

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
)

// payloadOf returns a message's payload as a producer encodes it.
func payloadOf(tb testing.TB, id string, req jobs.Request) []byte {
	tb.Helper()
	normal, _, err := req.Normalize()
	require.NoError(tb, err)
	payload, err := json.Marshal(jobs.GenerateMessage{JobID: id, Digest: normal.Digest()[:32], Request: normal})
	require.NoError(tb, err)
	return payload
}

// A payload is accepted only if it has a job ID and a valid request that matches its digest.
// The request's ID is the job's.
func FuzzGenerateMessage(f *testing.F) {
	seed, strength := int64(7), 0.5
	for _, req := range []jobs.Request{
		{Prompt: "有一只黑色的小猫"}, {Prompt: "cat", N: 4, Style: "水彩", Size: "720*1280", Seed: &seed},
		{Prompt: "cat", RefImg: "https://example.com/a.png", RefMode: "repaint", RefStrength: &strength, Labels: map[string]string{"sku": "A"}},
		{Prompt: "<cat> & \"dog\"", Model: "qwen-image-plus", Batch: "shop", RedoOf: "shop.cat"},
	} {
		payload := payloadOf(f, "shop.cat", req)
		f.Add(payload)
		f.Add(payload[:len(payload)-2])
		var m map[string]any
		require.NoError(f, json.Unmarshal(payload, &m))
		for _, field := range []string{"job_id", "digest", "request"} {
			changed := map[string]any{"job_id": m["job_id"], "digest": m["digest"], "request": m["request"]}
			changed[field] = ".."
			text, err := json.Marshal(changed)
			require.NoError(f, err)
			f.Add(text)
			delete(changed, field)
			text, err = json.Marshal(changed)
			require.NoError(f, err)
			f.Add(text)
		}
	}
	for _, text := range []string{"", "null", "{}", "[]", `{"job_id":"a/b"}`, `{"job_id":"a","request":{"prompt":"x","n":-1}}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := decodeMessage(payload)
		if err != nil {
			return
		}
		require.NoError(t, jobs.ValidID(m.JobID))
		model, err := jobs.LookupModel(m.Request.Model)
		require.NoError(t, err)
		require.True(t, m.Request.N >= 1 && m.Request.N <= model.MaxImages, "n %d", m.Request.N)
		normal, _, err := m.Request.Normalize()
		require.NoError(t, err)
		require.Equal(t, m.Request, normal)
		require.Equal(t, m.JobID, m.Request.ID)
		require.Equal(t, m.Digest, normal.Digest()[:len(m.Digest)])
		encoded, err := json.Marshal(m)
		require.NoError(t, err)
		again, err := decodeMessage(encoded)
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}
