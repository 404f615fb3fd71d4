package storage

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// RecentSidecars calls visit with every sidecar that was written since a point in
// time, in no particular order, and stops at the first error of visit or of the
// bucket. It lists all sidecars, a thousand per request, so it must not be called
// often. Unreadable sidecars are skipped.
func (b *Bucket) RecentSidecars(ctx context.Context, since time.Time, visit func(*Sidecar) error) error {
	if err := b.checkMode(ctx); err != nil {
		return err
	}
	folder := b.prefix + sidecarFolder
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(folder)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("list sidecars: %w", b.explain(err))
		}
		for _, object := range page.Contents {
			id, isSidecar := strings.CutSuffix(path.Base(aws.ToString(object.Key)), ".json")
			if !isSidecar || aws.ToTime(object.LastModified).Before(since) || checkJobID(id) != nil {
				continue
			}
			sidecar, err := b.Sidecar(ctx, id)
			if errors.Is(err, ErrNotExist) || errors.Is(err, ErrUnreadable) {
				continue
			}
			if err != nil {
				return err
			}
			if err := visit(sidecar); err != nil {
				return err
			}
		}
	}
	return nil
}
