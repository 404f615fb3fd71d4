package jobs

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// vectors reads a file of testdata. They were computed by another program from
// docs/digest.md and must never change: finished jobs have these digests, seeds and IDs.
func vectors[T any](t *testing.T, file string) []T {
	t.Helper()
	data, err := fs.ReadFile(os.DirFS("testdata"), file)
	require.NoError(t, err)
	var list []T
	require.NoError(t, json.Unmarshal(data, &list))
	require.NotEmpty(t, list)
	return list
}

func TestDigestVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		Name, Canonical, Digest string
		Request                 Request
	}
	for _, v := range vectors[vector](t, "digest.json") {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, v.Canonical, string(v.Request.canonical().digestBytes()))
			assert.Equal(t, v.Digest, v.Request.Digest())

			normal, _, err := v.Request.Normalize()
			require.NoError(t, err)
			assert.Equal(t, v.Digest, normal.Digest(), "after Normalize")
		})
	}
}

func TestDigestDistinguishesRequests(t *testing.T) {
	t.Parallel()
	ref := "https://example.com/a.png"
	seen := map[string]int{}
	for i, r := range []Request{
		{Prompt: "a"},
		{Prompt: "b"},
		{Prompt: "a "},
		{Prompt: "a", Model: "wanx2.1-t2i-turbo"},
		{Prompt: "a", NegativePrompt: "b"},
		{Prompt: "a", Style: "油画"},
		{Prompt: "a", Size: "720*1280"},
		{Prompt: "a", N: 2},
		{Prompt: "a", Seed: new(int64)},
		{Prompt: "a", RefImg: ref},
		{Prompt: "a", RefImg: ref + "2"},
		{Prompt: "a", RefImg: ref, RefStrength: new(float64)},
		{Prompt: "a", RefImg: ref, RefMode: "refonly"},
	} {
		other, twice := seen[r.Digest()]
		assert.False(t, twice, "%d and %d have one digest", i, other)
		seen[r.Digest()] = i
	}
}

func TestDigestOfMinusZero(t *testing.T) {
	t.Parallel()
	r := Request{Prompt: "a", RefImg: "https://example.com/a.png", RefStrength: new(0.0)}
	want := r.Digest()
	r.RefStrength = new(math.Copysign(0, -1))
	assert.Equal(t, want, r.Digest())
}

func TestSeedVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		JobID string `json:"job_id"`
		N     int
		Seed  int64
	}
	for _, v := range vectors[vector](t, "seed.json") {
		r := Request{Prompt: "a", N: v.N}.WithSeed(v.JobID)
		require.NotNil(t, r.Seed)
		assert.Equal(t, v.Seed, *r.Seed, "%s, n=%d", v.JobID, v.N)
	}
}

func TestSeedLeavesRoomForAllImages(t *testing.T) {
	t.Parallel()
	for i := range 20_000 {
		r := Request{Prompt: "a", N: i%4 + 1}.WithSeed(fmt.Sprint("job-", i))
		if _, _, err := r.Normalize(); err != nil || *r.Seed < 0 {
			require.Fail(t, "no seed of its own", "%d, %v", *r.Seed, err)
		}
	}
}

func TestWithSeedKeepsAGivenSeed(t *testing.T) {
	t.Parallel()
	zero := new(int64)
	r := Request{Prompt: "a", Seed: zero}
	assert.Same(t, zero, r.WithSeed("job").Seed)

	plain := Request{Prompt: "a"}
	plain.WithSeed("job")
	assert.Nil(t, plain.Seed, "the receiver is left alone")
}

// U+1C89 and U+2EBF0 are letters since Unicode 16 and 15.1: if a release of Go makes them
// letters of IDs, exclude them, so that no ID changes.
func TestBatchIDVectors(t *testing.T) {
	t.Parallel()
	type vector struct{ Batch, Line, ID string }
	for _, v := range vectors[vector](t, "batchid.json") {
		id := BatchID(v.Batch, v.Line)
		assert.Equal(t, v.ID, id, "%q, %q", v.Batch, v.Line)
		assert.NoError(t, ValidID(id))
	}
}

// Different pairs of names have different IDs, even if one was copied from an ID.
func TestBatchIDsDoNotCollide(t *testing.T) {
	t.Parallel()
	parts := []string{
		"", "a", ".", "..", "a.b", "b", "b.c", "a-b", "-", "红", "蓝", "红.", "a b", "a_b", "_", "A", "nul", "con.a", "é", "e\u0301", "\u0301", "a\u200db",
		strings.Repeat("a", 79), strings.Repeat("a", 80), strings.Repeat("a", 81), strings.Repeat("a", 119), strings.Repeat("a", 120), strings.Repeat("a", 300),
	}
	for _, p := range parts[:12] {
		for _, q := range parts[:12] {
			id := BatchID(p, q)
			parts = append(parts, id)
			if _, line, ok := strings.Cut(id, "."); ok {
				parts = append(parts, line)
			}
		}
	}
	unique := map[string]bool{}
	for _, p := range parts {
		unique[p] = true
	}
	owner := map[string][2]string{}
	for batch := range unique {
		for line := range unique {
			id := BatchID(batch, line)
			if err := ValidID(id); err != nil {
				require.NoError(t, err)
			}
			if before, met := owner[id]; met {
				require.Fail(t, "they meet", "%q and %q both give %s", before, [2]string{batch, line}, id)
			}
			owner[id] = [2]string{batch, line}
		}
	}
}

func TestValidID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "A-17_x.y", "-", "_.-", "猫", "春季主图.A-017", "한글.สวัสดี", "é.e\u0301", "①", "conx", "a.con", strings.Repeat("x", 200), NewID()} {
		assert.NoError(t, ValidID(id), "%q", id)
	}
	for _, id := range []string{
		"", ".", "..", "...", ".a", "a.", "a..b", "a b", "a/b", "a\\b", "a:b", "~", "a\n", "a\x00", "a\xff", "\ufffd", "猫!", "😀", "\u0301a", "a.\u0301",
		"a\u202eb", "a\u200db", "\u3164", "a\ufe0f", "con", "NUL.a", "com1", "lpt¹.x", strings.Repeat("x", 201), strings.Repeat("春", 67),
	} {
		assert.ErrorAs(t, ValidID(id), new(FieldError), "%q", id)
	}
}

func TestNewID(t *testing.T) {
	t.Parallel()
	a, b := NewID(), NewID()
	assert.NotEqual(t, a, b)
	assert.Regexp(t, `^[a-z2-7]{26,}$`, a)
}

func TestBatchName(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"wanx-v1.jsonl":                 "wanx-v1",
		"examples/wanx-v1.jsonl":        "wanx-v1",
		"/tmp/spring.v2.jsonl":          "spring.v2",
		"wanx-v1.results.jsonl":         "wanx-v1",
		"wanx-v1.results.results.jsonl": "wanx-v1",
		"春季.jsonl":                      "春季",
		"春季.redo.jsonl":                 "春季",
		"春季.redo (2).jsonl":             "春季",
		"春季.redo(1).jsonl":              "春季",
		"春季.redo-1.jsonl":               "春季",
		"春季.simulated.redo.results.csv": "春季",
		"春季.redo.simulated.results.csv": "春季",
		"春季.redone.jsonl":               "春季.redone",
		"prompts":                       "prompts",
		".jsonl":                        ".jsonl",
		".results.jsonl":                ".results.jsonl",
		"-":                             "stdin",
	} {
		assert.Equal(t, want, BatchName(file), file)
	}
}

func TestIdempotencyID(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "key-0577258a9130ca2c5e4d1eaa4e9d1957", IdempotencyID("shop", "order 17/猫"), "forever")
	seen := map[string]bool{}
	for _, pair := range [][2]string{{"", ""}, {"", "a"}, {"a", ""}, {"a", "b"}, {"ab", ""}, {"", "ab"}, {"", "1:a0:"}} {
		id := IdempotencyID(pair[0], pair[1])
		require.NoError(t, ValidID(id))
		assert.False(t, seen[id], "%q", pair)
		seen[id] = true
	}
}
