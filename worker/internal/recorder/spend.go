package recorder

import (
	"context"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

// ChargeOf returns what the ledger records of an attempt.
func ChargeOf(rec *jobs.Record, images int, microYuan int64) ledger.Charge {
	c := ledger.Charge{
		Account: rec.Account, JobID: rec.ID, Attempt: rec.Attempt, At: rec.SubmittedAt,
		Model: rec.Model, Batch: rec.Batch, Labels: rec.Labels, Images: images, MicroYuan: microYuan,
	}
	if rec.Request != nil {
		c.Batch, c.Labels = rec.Request.Batch, rec.Request.Labels
	}
	return c
}

// Release releases the reservation of an attempt that costs nothing. If Redis refuses that,
// it logs the error: the job goes on.
func (r *Recorder) Release(ctx context.Context, rec *jobs.Record) error {
	err := r.Ledger.Release(context.WithoutCancel(ctx), ChargeOf(rec, 0, 0))
	if loop.IsRefused(err) {
		r.Log.Error("reservation not released", "job_id", rec.ID, "err", err)
		return nil
	}
	return err
}

// Settle records the cost of a task, once: in the spend log, and in the ledger, whose error
// it returns. Then the same call must be made again. If Redis refuses the booking, it logs
// the error: the images are delivered all the same.
func (r *Recorder) Settle(ctx context.Context, rec *jobs.Record, taskID string, images int, microYuan int64) error {
	if err := r.Data.Spend.Append(ChargeOf(rec, images, microYuan), taskID); err != nil {
		// The ledger is authoritative; what the log lacks is missing in reports without
		// Redis.
		r.Log.Error("spend log not written", "job_id", rec.ID, "task_id", taskID, "err", err)
	}
	booked, err := r.Ledger.Settle(context.WithoutCancel(ctx), ledger.Settlement{Charge: ChargeOf(rec, images, microYuan), TaskID: taskID})
	if booked > 0 {
		r.Metrics.Booked(rec.Account, rec.Model, images, microYuan)
	}
	if loop.IsRefused(err) {
		r.Log.Error("cost not booked in the ledger", "job_id", rec.ID, "task_id", taskID, "err", err)
		return nil
	}
	return err
}
