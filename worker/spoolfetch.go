package worker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

// holderPatience is how long after the death of its link an image waits for the
// worker whose spool has it, or for whatever else is in the way, before a person
// must look: as long as a record stays after its end.
const spoolHoldAfter = jobs.RecordLifetime

// fetched is what came of the download of one image.
type fetched struct {
	file *storage.File
	err  error
	// dead is when its link dies: the newest that the service gave.
	dead time.Time
}

// kept reports whether the spool has the bytes, proven or not.
func (f fetched) kept() bool {
	var failed *storage.FetchError
	return f.file != nil || errors.As(f.err, &failed) && failed.Kind == storage.FetchUnverified && failed.Path != ""
}

// fetchAll brings the images of a task into the spool, all at once.
func (s *deliveryServer) fetchAll(ctx context.Context, rec *jobs.Record) []fetched {
	got := make([]fetched, len(rec.Results))
	var group sync.WaitGroup
	for i, result := range rec.Results {
		if result.URL != "" {
			group.Go(func() { got[i] = s.fetch(ctx, rec, i) })
		}
	}
	group.Wait()
	return got
}

// fetch brings one image into the spool. A dead URL is asked for anew once.
func (s *deliveryServer) fetch(ctx context.Context, rec *jobs.Record, i int) fetched {
	result := rec.Results[i]
	name, got := spoolName(rec, result.N), fetched{dead: result.ExpiresAt}
	got.file, got.err = s.cfg.Spool.Fetch(ctx, name, result.URL)
	var failed *storage.FetchError
	if !errors.As(got.err, &failed) || failed.Kind != storage.FetchGone {
		return got
	}
	owner := s.accountNamed(rec.Account)
	if owner == nil {
		// Without a fresh answer of the service nothing is given up.
		got.err = fmt.Errorf("%s; its account %s is not configured here, so that no other link can be asked for", failed.Error(), rec.Account)
		return got
	}
	task, err := owner.remote.Query(ctx, rec.TaskID)
	if err != nil {
		got.err = err
		return got
	}
	if task.Output.TaskStatus != dashscope.StatusSucceeded || i >= len(task.Output.Results) || task.Output.Results[i].URL == "" {
		return got
	}
	fresh := forceHTTPS(task.Output.Results[i].URL)
	if fresh != result.URL {
		got.dead = urlExpiry(fresh)
	}
	got.file, got.err = s.cfg.Spool.Fetch(ctx, name, fresh)
	return got
}

// nameHolder has the record name this worker as the one whose spool has the images,
// as far as it has them and no other has more.
func (s *deliveryServer) claimSpool(ctx context.Context, rec *jobs.Record, got []fetched) error {
	here, wanted := 0, 0
	for i, result := range rec.Results {
		if result.URL != "" {
			wanted++
		}
		if got[i].kept() {
			here++
		}
	}
	own := s.cfg.DataDir.WorkerID
	if here == 0 || here < wanted && rec.SpoolOwner != "" || rec.SpoolOwner == own {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	next := *rec
	next.SpoolOwner, next.SpoolLocation = own, host+":"+s.cfg.DataDir.Path
	s.journal(journal.KindResults, &next)
	if err := s.transition(ctx, rec, &next); err != nil {
		return err
	}
	*rec = next
	return nil
}

// awayError says that an image is left to the worker whose spool has it.
type spoolElsewhereError struct {
	rec *jobs.Record
	why error
}

func (e *spoolElsewhereError) Error() string {
	return fmt.Sprintf("it is in the spool of %s, whose worker has to deliver it (%s)", e.rec.SpoolLocation, e.why)
}

func (e *spoolElsewhereError) Unwrap() error { return e.why }

// elsewhere reports whether another worker's spool is said to have the images.
func (s *deliveryServer) ownedElsewhere(rec *jobs.Record) bool {
	return rec.SpoolOwner != "" && rec.SpoolOwner != s.cfg.DataDir.WorkerID
}

// wait has an image tried again later, for holderPatience after the death of its
// link or after a person had the job stored once more. Then a person must look.
func (s *deliveryServer) retryOrHold(rec *jobs.Record, result jobs.Result, got fetched, err error) (jobs.Image, error) {
	since := got.dead
	if rec.ResolvedAt.After(since) {
		since = rec.ResolvedAt
	}
	if time.Since(since) < spoolHoldAfter {
		return jobs.Image{}, err
	}
	image := jobs.Image{N: result.N, Code: jobs.CodeImageUnverified}
	if away := (*spoolElsewhereError)(nil); errors.As(err, &away) {
		image.Code = jobs.CodeSpoolUnavailable
	}
	image.Message = fmt.Sprintf("image %d is paid for and could not be had since its link died on %s: %s; %s: once that is mended: danqing jobs resolve %s --adopt %s",
		result.N, got.dead.Format(time.DateOnly), err, linkText(result.URL), rec.ID, rec.TaskID)
	return image, nil
}

// sayWhy tells in the record why the images are not in the bucket, if that may
// last.
func (s *deliveryServer) publishReason(ctx context.Context, rec *jobs.Record, err error) {
	var away *spoolElsewhereError
	if !errors.As(err, &away) || rec.Code == jobs.CodeSpoolUnavailable {
		return
	}
	next := *rec
	next.Code, next.Message = jobs.CodeSpoolUnavailable, away.Error()
	if err := s.transition(ctx, rec, &next); err != nil {
		s.log.Warn("record not written", "job_id", rec.ID, "err", err)
	}
}

// forget removes from the spool the images that the job, now over, has in the
// bucket.
func (s *deliveryServer) discardSpool(journaled, over *jobs.Record) {
	for _, image := range over.Images {
		if image.Key == "" {
			continue
		}
		if err := s.cfg.Spool.Remove(spoolName(journaled, image.N)); err != nil {
			s.log.Warn("spool file not removed", "job_id", over.ID, "err", err)
		}
	}
}

// linkText names a link without its query, which is a signature.
func linkText(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "its link cannot be read"
	}
	u.User, u.RawQuery, u.Fragment, u.RawFragment = nil, "", "", ""
	return "its link, without the signature, is " + u.String()
}
