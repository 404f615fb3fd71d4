package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/storage"
)

type pruneFlags struct {
	storedFlags
	olderThan   string
	dryRun, yes bool
}

func (p *program) pruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune --older-than AGE",
		Short: "Delete old images; their jobs are not bought again",
		Long: `Prune deletes the images of jobs that ended at least AGE ago, such as 90d or 36h. The
records of the jobs stay in the bucket: the same batch does not buy them again. Deleted
images cannot be brought back.

It shows what it will delete, and asks. The embedded bucket is used by one process at a
time: stop the worker first.`,
		Example: `  danqing prune --older-than 90d --dry-run
  danqing prune --older-than 90d --batch prompts --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.untilSignal(cmd.Context(), nil, func(ctx context.Context) error { return p.prune(ctx, f) })
		},
	}
	f.add(cmd, "prune")
	cmd.Flags().StringVar(&f.olderThan, "older-than", "", "age, in days as in 90d or as in 36h (required)")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only show what would be deleted")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

// parseAge parses a positive age, in days as in 90d, or a duration.
func parseAge(text string) (time.Duration, error) {
	age, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		age = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || age <= 0 {
		return 0, usageErrorf("as in --older-than 90d or --older-than 36h", "--older-than %q: allowed: an age in days or hours", text)
	}
	return age, nil
}

func (p *program) prune(ctx context.Context, f pruneFlags) (err error) {
	age, err := parseAge(f.olderThan)
	if err != nil {
		return err
	}
	bucket, closer, err := p.openStored(f.simulate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	now := time.Now()
	var mu sync.Mutex
	var old []*storage.Sidecar
	images, bytes := 0, int64(0)
	err = f.eachStored(ctx, bucket, func(_ context.Context, sidecar *storage.Sidecar) error {
		mu.Lock()
		defer mu.Unlock()
		if !sidecar.PrunedAt.IsZero() || now.Sub(sidecar.FinishedAt) < age {
			return nil
		}
		before := images
		for _, image := range sidecar.Images {
			if image.State == storage.ImageStored {
				images++
				bytes += image.Bytes
			}
		}
		if images > before {
			old = append(old, sidecar)
		}
		return nil
	}, func(jobID string, err error) error {
		p.stderrf("warning: job %s is left out: %v", jobID, err)
		return nil
	})
	if err != nil {
		return err
	}
	p.stderrf("%s of %s that ended before %s, %.1f MB", count(images, "image"), count(len(old), "job"), now.Add(-age).Format("2006-01-02 15:04"), float64(bytes)/1e6)
	if f.dryRun || len(old) == 0 {
		p.stderrf("nothing was deleted")
		return nil
	}
	if !f.yes {
		if err := p.confirmDeletion(ctx, "delete these images for good?"); err != nil {
			return err
		}
	}
	for _, sidecar := range old {
		if err := bucket.PruneImages(ctx, sidecar, now); err != nil {
			return fmt.Errorf("%w; run it again to delete the others", err)
		}
	}
	p.stderrf("deleted; the records of the jobs stay, so that none is bought again")
	return nil
}
