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

	"github.com/danqing-queue/danqing/jobs/jobid"
)

// stagedPattern matches the name of a staged reference image.
var stagedPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

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
	for _, image := range r.RefImages {
		add("ref_images", image)
	}
	add("mask_image_url", r.MaskImageURL)
	add("function", r.Function)
	for _, field := range optionFields() {
		add(field.name, field.get(&r))
	}
	return b
}

// WithSeed returns the request with a seed that is derived from the job ID, so that every
// image can be requested again; unchanged if it has one. The seeds of all n images, seed to
// seed+n-1, are between 0 and the model's MaxSeed. The same ID, n and MaxSeed give the same seed,
// forever.
func (r Request) WithSeed(jobID string) Request {
	if r.Seed != nil {
		return r
	}
	most := int64(maxSeed)
	if m, err := LookupModel(r.Model); err == nil {
		most = m.MaxSeed
	}
	seed := derivedSeed(jobID, max(r.N, 1), most)
	r.Seed = &seed
	return r
}

// derivedSeed returns the first of n seeds, none of which is above most.
func derivedSeed(jobID string, n int, most int64) int64 {
	sum := sha256.Sum256([]byte("danqing/seed/1\n" + jobID))
	seeds := most - int64(n) + 2                                   // 0 to most-(n-1)
	return int64(binary.BigEndian.Uint64(sum[:8]) % uint64(seeds)) //nolint:gosec // below 2^31
}

// ValidID fails unless id is a valid job ID: 1 to 200 bytes of letters, their marks and digits
// of any script, underscores and hyphens, with single dots between them, and no device name of
// Windows before the first dot. The error is a [FieldError].
//
// IDs are compared byte by byte, so that texts that look the same may be different IDs: use
// Unicode's form NFC, as the command line does.
func ValidID(id string) error {
	if jobid.Valid(id) {
		return nil
	}
	return FieldError{Field: "id", Value: show(id), Allowed: `1 to 200 bytes of letters and digits of any script, "_", "-", and "." between two others; no device name of Windows, such as CON`}
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

// derivedPattern matches the end of the name of a file that was made from a batch file: its
// results, or lines to make again, which a browser may have numbered.
var derivedPattern = regexp.MustCompile(`(\.simulated)?(\.results|\.redo([ -]?\(?[0-9]+\)?)?)$`)

// BatchName is the name of the batch in a file: the file's name without folder and extension,
// and without the ".results", ".simulated.results" or ".redo" of a results file or a file of
// redos, whose jobs belong to the same batch. "-" is "stdin".
func BatchName(file string) string {
	if file == "-" {
		return "stdin"
	}
	base := filepath.Base(file)
	name := strings.TrimSuffix(base, filepath.Ext(base))
	for at := derivedPattern.FindStringIndex(name); at != nil; at = derivedPattern.FindStringIndex(name) {
		name = name[:at[0]]
	}
	if name == "" {
		return base
	}
	return name
}

// BatchID is the job ID of a line of a batch: the batch's name, a dot and the line's own id.
// In a name that cannot be a part of an ID (other characters, too long, a dot in the line's
// id), other characters become "_", and a short hash of the exact name is appended. Different
// pairs have different IDs, except with a probability of 2^-48 for two names that are
// otherwise equal.
func BatchID(batch, line string) string { return jobid.Of(batch, line) }
