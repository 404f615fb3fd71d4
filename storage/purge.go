package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs/jobid"
)

// purgeConcurrency is how many objects are looked at or deleted concurrently. The value is
// our choice.
const purgeConcurrency = 16

// ErrRealJob means that a prefix has the sidecar of a job that was paid for, so that nothing
// is deleted there.
var ErrRealJob = errors.New("it is the sidecar of a real job that was paid for: the bucket prefix is not simulated")

// SimulatedKeys returns the keys of the objects under the prefix that this package has
// stored, but that of the mode, and how many others there are. It lists all objects and asks
// for the metadata of each. A prefix within this one that has a mode of its own is left out.
// It fails with [ErrRealJob] whatever the mode is.
func (b *Bucket) SimulatedKeys(ctx context.Context) (own []string, others int, err error) {
	keys, err := b.keys(ctx)
	if err != nil {
		return nil, 0, err
	}
	var mu sync.Mutex
	err = each(ctx, keys, func(ctx context.Context, key string) error {
		if err := b.checkNotPaid(ctx, key); err != nil {
			return err
		}
		object, err := b.Head(ctx, key)
		if errors.Is(err, ErrNotExist) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil && object.SHA256 != "" {
			own = append(own, key)
		} else {
			others++
		}
		return err
	})
	return own, others, err
}

// checkNotPaid fails with [ErrRealJob] if an object is the sidecar of such a job.
func (b *Bucket) checkNotPaid(ctx context.Context, key string) error {
	name, ok := strings.CutPrefix(key, b.prefix+sidecarFolder)
	id, isSidecar := strings.CutSuffix(name, ".json")
	if !ok || !isSidecar || !jobid.Valid(id) {
		return nil
	}
	sidecar, err := b.Sidecar(ctx, id)
	if err == nil && !sidecar.Simulated && sidecar.CostMicroYuan > 0 {
		err = fmt.Errorf("%s: %w", key, ErrRealJob)
	}
	if errors.Is(err, ErrNotExist) || errors.Is(err, ErrUnreadable) {
		err = nil
	}
	return err
}

// keys lists the keys under the prefix, but that of the mode and those of other prefixes.
func (b *Bucket) keys(ctx context.Context) ([]string, error) {
	var keys, nested []string
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list objects: %w", b.explain(err))
		}
		for _, object := range page.Contents {
			key := aws.ToString(object.Key)
			if folder, isMode := strings.CutSuffix(key, "/"+modeObject); isMode && key != b.prefix+modeObject {
				nested = append(nested, folder+"/")
			}
			keys = append(keys, key)
		}
	}
	var ours []string
	for _, key := range keys {
		foreign := key == b.prefix+modeObject
		for _, folder := range nested {
			foreign = foreign || strings.HasPrefix(key, folder)
		}
		if !foreign {
			ours = append(ours, key)
		}
	}
	return ours, nil
}

// Purge deletes objects, and then the prefix's mode, so that the prefix can get another one.
// It may be repeated after an error.
func (b *Bucket) Purge(ctx context.Context, keys []string) error {
	if err := each(ctx, keys, b.delete); err != nil {
		return err
	}
	return b.delete(ctx, b.prefix+modeObject)
}

func (b *Bucket) delete(ctx context.Context, key string) error {
	if _, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key}); err != nil {
		return fmt.Errorf("delete %s: %w", key, b.explain(err))
	}
	return nil
}

// each calls do for each key, several at a time, until the first error.
func each(ctx context.Context, keys []string, do func(context.Context, string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(purgeConcurrency)
	for _, key := range keys {
		group.Go(func() error { return do(ctx, key) })
	}
	return group.Wait()
}
