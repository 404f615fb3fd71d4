package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/storage"
)

func (p *program) verifyCommand() *cobra.Command {
	var f storedFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read all stored images and say which are missing or changed",
		Long: `Verify reads the images of finished jobs in the bucket and compares them with the sizes
and SHA-256 digests that were recorded when they were stored. It prints a line for each
image that is missing or changed, and for each record that is damaged, and changes
nothing.

The embedded bucket is used by one process at a time: stop the worker first. Exit codes:
0 all images are intact, 3 some are not.`,
		Example: `  danqing verify
  danqing verify --batch prompts`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.untilSignal(cmd.Context(), nil, func(ctx context.Context) error { return p.verify(ctx, f) })
		},
	}
	f.add(cmd, "verify")
	return cmd
}

// verification counts what verify has found.
type verification struct {
	mu                                               sync.Mutex
	jobs, intact, missing, changed, deleted, damaged int
}

func (p *program) verify(ctx context.Context, f storedFlags) (err error) {
	bucket, closer, err := p.openStored(f.simulate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	var v verification
	err = f.eachStored(ctx, bucket, func(ctx context.Context, sidecar *storage.Sidecar) error {
		intact, problems, err := bucket.VerifyImages(ctx, sidecar)
		if err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.jobs++
		v.intact += intact
		if !sidecar.PrunedAt.IsZero() {
			v.deleted++
		}
		for _, problem := range problems {
			what := "changed"
			if problem.Missing {
				v.missing++
				what = "missing"
			} else {
				v.changed++
			}
			if _, err := fmt.Fprintf(p.stdout, "%s\t%s\t%s\t%s\n", what, sidecar.JobID, problem.Key, problem.Text); err != nil {
				return err
			}
		}
		return nil
	}, func(jobID string, err error) error {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.damaged++
		_, printErr := fmt.Fprintf(p.stdout, "damaged\t%s\t\t%v\n", jobID, err)
		return printErr
	})
	if err != nil {
		return err
	}
	if f.batch != "" && v.jobs == 0 {
		return usageErrorf("the name is the batch file's without its extension, or that of --name", "no finished job of a batch %q is here", f.batch)
	}
	text := fmt.Sprintf("%s: %s intact, %d missing, %d changed", count(v.jobs, "finished job"), count(v.intact, "image"), v.missing, v.changed)
	if v.deleted > 0 {
		text += fmt.Sprintf("; the images of %s were deleted by prune", count(v.deleted, "job"))
	}
	if v.damaged > 0 {
		text += fmt.Sprintf("; %s cannot be read", count(v.damaged, "record"))
	}
	p.stderrf("%s", text)
	if v.missing+v.changed+v.damaged > 0 {
		return errPartFailed
	}
	return nil
}
