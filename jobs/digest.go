package jobs

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// maxIDBytes is the maximum length of a job ID: a key template with it fits into the 1,024
// bytes of an S3 key, and a file name into 255.
const maxIDBytes = 128

// stagedPattern matches the name of a staged reference image.
var stagedPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// hashedPattern matches the end of an ID to which [BatchID] has appended a hash.
var hashedPattern = regexp.MustCompile(`-x[0-9a-f]{16}$`)

// Digest identifies the requested images: the SHA-256, in hex, of the canonical request,
// which has the model and every parameter of the image, but not the ID, labels, priority and
// redo_of. The page docs/digest.md has its bytes; they never change.
//
// The digest of a job is taken before [Request.WithSeed]. It is the same before and after
// [Request.Normalize], and meaningless for a request that Normalize refuses.
func (r Request) Digest() string {
	sum := sha256.Sum256(r.canonical().digestBytes())
	return hex.EncodeToString(sum[:])
}

// digestBytes returns the canonical request, see docs/digest.md.
func (r Request) digestBytes() []byte {
	b := make([]byte, 0, len(r.Prompt)+len(r.NegativePrompt)+len(r.RefImg)+256)
	b = append(b, "danqing/request/1\n"...)
	add := func(name, value string) {
		if value != "" {
			b = append(append(b, name...), '=')
			b = append(strconv.AppendInt(b, int64(len(value)), 10), ':')
			b = append(append(b, value...), '\n')
		}
	}
	add("model", r.Model)
	add("prompt", r.Prompt)
	add("negative_prompt", r.NegativePrompt)
	add("style", r.Style)
	add("size", r.Size)
	add("n", strconv.Itoa(r.N))
	if r.Seed != nil {
		add("seed", strconv.FormatInt(*r.Seed, 10))
	}
	add("ref_img", r.RefImg)
	if r.RefStrength != nil {
		add("ref_strength", strconv.FormatFloat(*r.RefStrength, 'f', -1, 64))
	}
	add("ref_mode", r.RefMode)
	if r.PromptExtend != nil {
		add("prompt_extend", strconv.FormatBool(*r.PromptExtend))
	}
	if r.Watermark != nil {
		add("watermark", strconv.FormatBool(*r.Watermark))
	}
	return b
}

// WithSeed returns the request with a seed that is derived from the job ID, so that every
// image can be requested again; unchanged if it has one. The seeds of all n images, seed to
// seed+n-1, are between 0 and the model's MaxSeed. The same ID and n give the same seed,
// forever.
func (r Request) WithSeed(jobID string) Request {
	if r.Seed != nil {
		return r
	}
	sum := sha256.Sum256([]byte("danqing/seed/1\n" + jobID))
	seeds := maxSeed - max(r.N, 1) + 2                              // 0 to maxSeed-(n-1)
	seed := int64(binary.BigEndian.Uint64(sum[:8]) % uint64(seeds)) //nolint:gosec // below 2^31
	r.Seed = &seed
	return r
}

// ValidID fails unless id is a valid job ID: 1 to 128 characters out of A-Z, a-z, 0-9, dot,
// underscore and hyphen, but neither "." nor "..", which are not file names. The error is a
// [FieldError].
func ValidID(id string) error {
	if rediskey.ValidID(id) {
		return nil
	}
	return FieldError{Field: "id", Value: show(id), Allowed: `1 to 128 of A-Z a-z 0-9 . _ -, not "." or ".."`}
}

// NewID returns a random job ID: 26 lower-case letters and digits, at least 128
// random bits.
func NewID() string { return strings.ToLower(rand.Text()) }

// IdempotencyID is the job ID for an idempotency key, which is any text, such as the number of
// an order: the same scope and key are the same job. The scope separates producers that may
// use equal keys; it may be empty.
func IdempotencyID(scope, key string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "danqing/idempotency/1\n%d:%s%d:%s", len(scope), scope, len(key), key))
	return "key-" + hex.EncodeToString(sum[:16])
}

// BatchName is the name of the batch in a file: the file's name without folder and extension,
// and without the ".results" or ".simulated.results" of a results file, which has the same
// jobs. "-" is "stdin".
func BatchName(file string) string {
	if file == "-" {
		return "stdin"
	}
	base := filepath.Base(file)
	name := strings.TrimSuffix(base, filepath.Ext(base))
	for strings.HasSuffix(name, ".results") {
		name = strings.TrimSuffix(strings.TrimSuffix(name, ".results"), ".simulated")
	}
	if name == "" {
		return base
	}
	return name
}

// BatchID is the job ID of a line of a batch: the batch's name, a dot and the line's own id.
// If that is not a valid ID (other characters, too long) or may belong to another pair (the
// line's id has a dot, or ends like such a hash), other characters become "_" and a short
// hash of the exact pair is appended. Different pairs have different IDs, except with a
// probability of 2^-64.
func BatchID(batch, line string) string {
	// Without a dot in line, the last dot separates the two.
	plain := batch + "." + line
	if batch != "" && line != "" && !strings.Contains(line, ".") &&
		rediskey.ValidID(plain) && !hashedPattern.MatchString(plain) {
		return plain
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "danqing/batch/1\n%d:%s%d:%s", len(batch), batch, len(line), line))
	suffix := "-x" + hex.EncodeToString(sum[:8])
	readable := otherPattern.ReplaceAllString(plain, "_")
	return readable[:min(len(readable), maxIDBytes-len(suffix))] + suffix
}

// otherPattern matches the characters that are invalid in an ID.
var otherPattern = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
