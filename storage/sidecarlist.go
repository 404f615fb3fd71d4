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
	return b.listSidecars(ctx, "", func(id string, modified time.Time) error {
		if modified.Before(since) {
			return nil
		}
		sidecar, err := b.Sidecar(ctx, id)
		if errors.Is(err, ErrNotExist) || errors.Is(err, ErrUnreadable) {
			return nil
		}
		if err != nil {
			return err
		}
		return visit(sidecar)
	})
}

// SidecarIDs calls visit with the job ID of every sidecar whose job ID begins with prefix, and
// when it was written, in no particular order. It lists them, a thousand per request.
func (b *Bucket) SidecarIDs(ctx context.Context, prefix string, visit func(jobID string, modified time.Time)) error {
	return b.listSidecars(ctx, prefix, func(id string, modified time.Time) error {
		visit(id, modified)
		return nil
	})
}

// listSidecars calls visit for every sidecar whose job ID begins with prefix.
func (b *Bucket) listSidecars(ctx context.Context, prefix string, visit func(jobID string, modified time.Time) error) error {
	if err := b.checkMode(ctx); err != nil {
		return err
	}
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(b.prefix + sidecarFolder + prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("list sidecars: %w", b.explain(err))
		}
		for _, object := range page.Contents {
			id, isSidecar := strings.CutSuffix(path.Base(aws.ToString(object.Key)), ".json")
			if !isSidecar || checkJobID(id) != nil {
				continue
			}
			if err := visit(id, aws.ToTime(object.LastModified)); err != nil {
				return err
			}
		}
	}
	return nil
}
