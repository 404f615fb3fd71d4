package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aws/smithy-go"
)

// ImageProblem is an image that is not as its sidecar says.
type ImageProblem struct {
	Key string
	// Missing is set if there is no object; otherwise it differs from what was stored.
	Missing bool
	// Text says what is wrong.
	Text string
}

// VerifyImages reads the images of a finished job, compares them with the sizes and SHA-256
// digests in its sidecar, and returns how many are intact and what is wrong. Images that
// [Bucket.PruneImages] has deleted are left out. It fails if that is not known of an image.
func (b *Bucket) VerifyImages(ctx context.Context, s *Sidecar) (intact int, problems []ImageProblem, err error) {
	if !s.PrunedAt.IsZero() {
		return 0, nil, nil
	}
	for _, image := range s.Images {
		if image.State != ImageStored {
			continue
		}
		problem, err := b.verifyImage(ctx, image)
		if err != nil {
			return intact, problems, err
		}
		if problem == nil {
			intact++
			continue
		}
		problems = append(problems, *problem)
	}
	return intact, problems, nil
}

func (b *Bucket) verifyImage(ctx context.Context, image SidecarImage) (*ImageProblem, error) {
	changed := func(text string) *ImageProblem { return &ImageProblem{Key: image.Key, Text: text} }
	body, _, err := b.Get(ctx, image.Key)
	if errors.Is(err, ErrNotExist) {
		return &ImageProblem{Key: image.Key, Missing: true, Text: "it is not in the bucket"}, nil
	}
	if damaged := smithy.APIError(nil); errors.As(err, &damaged) && damaged.ErrorCode() == "BadDigest" { // the embedded bucket
		return changed(damaged.ErrorMessage()), nil
	}
	if err != nil {
		return nil, err
	}
	defer body.Close() //nolint:errcheck // read only
	sum := sha256.New()
	size, err := io.Copy(sum, body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", image.Key, err)
	}
	switch got := hex.EncodeToString(sum.Sum(nil)); {
	case size != image.Bytes:
		return changed(fmt.Sprintf("it has %d bytes instead of %d", size, image.Bytes)), nil
	case got != image.SHA256:
		return changed(fmt.Sprintf("its SHA-256 is %s instead of %s", got, image.SHA256)), nil
	}
	return nil, nil //nolint:nilnil // no problem
}

// PruneImages deletes the images of a finished job and then records in its sidecar that it did
// so. The sidecar stays, so that the job counts as finished and is not bought again. It does
// nothing if the job has ended again since s was read. It may be repeated after an error.
func (b *Bucket) PruneImages(ctx context.Context, s *Sidecar, now time.Time) error {
	current, err := b.Sidecar(ctx, s.JobID)
	if err != nil || !current.FinishedAt.Equal(s.FinishedAt) {
		return err
	}
	for _, image := range s.Images {
		if image.State != ImageStored {
			continue
		}
		if !strings.HasPrefix(image.Key, b.prefix) {
			return fmt.Errorf("sidecar of job %s: image %s is not below the prefix %s: it is not deleted", s.JobID, image.Key, b.prefix)
		}
		if err := b.delete(ctx, image.Key); err != nil {
			return err
		}
	}
	pruned := *s
	pruned.PrunedAt = now.UTC()
	return b.PutSidecar(ctx, &pruned)
}
