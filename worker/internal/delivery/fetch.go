package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
	"github.com/danqing-queue/danqing/worker/journal"
)

// spoolHoldAfter is how long after the expiry of its link an image waits for the worker
// whose spool has it, or for another obstacle to clear, before the job is held. It is
// the lifetime of a record after its end.
const spoolHoldAfter = jobs.RecordLifetime

// fetched is the result of an image's download.
type fetched struct {
	file *storage.File
	err  error
	// linkExpiry is the expiry of the newest link that the service gave.
	linkExpiry time.Time
}

// inSpool reports whether the spool has the bytes, verified or not.
func (f fetched) inSpool() bool {
	var failed *storage.FetchError
	return f.file != nil || errors.As(f.err, &failed) && failed.Kind == storage.FetchUnverified && failed.Path != ""
}

// fetchAll downloads the images of a task into the spool, all at once.
func (s *Server) fetchAll(ctx context.Context, rec *jobs.Record) []fetched {
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

// fetch downloads one image into the spool. It requests a new URL once if the URL has
// expired.
func (s *Server) fetch(ctx context.Context, rec *jobs.Record, i int) fetched {
	result := rec.Results[i]
	name, got := recorder.SpoolName(rec, result.N), fetched{linkExpiry: result.ExpiresAt}
	got.file, got.err = s.spool.Fetch(ctx, name, result.URL)
	var failed *storage.FetchError
	if !errors.As(got.err, &failed) || failed.Kind != storage.FetchGone {
		return got
	}
	owner := s.cfg.Accounts.Named(rec.Account)
	if owner == nil {
		// Without a new answer of the service no image is given up.
		got.err = fmt.Errorf("%s; its account %s is not configured here, so no new link can be requested", failed.Error(), rec.Account)
		return got
	}
	task, err := owner.Client.Query(ctx, rec.TaskID)
	if err != nil {
		got.err = err
		return got
	}
	if task.Output.TaskStatus != dashscope.StatusSucceeded || i >= len(task.Output.Results) || task.Output.Results[i].URL == "" {
		return got
	}
	fresh := dashscope.SecureURL(task.Output.Results[i].URL)
	if fresh != result.URL {
		got.linkExpiry = dashscope.URLExpiry(fresh)
	}
	got.file, got.err = s.spool.Fetch(ctx, name, fresh)
	return got
}

// claimSpool records this worker as the owner of the images in its spool, if it has all
// of them, or some and no other worker is recorded.
func (s *Server) claimSpool(ctx context.Context, rec *jobs.Record, got []fetched) error {
	here, wanted := 0, 0
	for i, result := range rec.Results {
		if result.URL != "" {
			wanted++
		}
		if got[i].inSpool() {
			here++
		}
	}
	own := s.recorder.Data.WorkerID
	if here == 0 || here < wanted && rec.SpoolOwner != "" || rec.SpoolOwner == own {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	next := *rec
	next.SpoolOwner, next.SpoolLocation = own, host+":"+s.recorder.Data.Path
	s.recorder.Journal(journal.KindResults, &next)
	if err := s.recorder.Transition(ctx, rec, &next); err != nil {
		return err
	}
	*rec = next
	return nil
}

// spoolElsewhereError means that an image must be delivered by the worker whose spool
// has it.
type spoolElsewhereError struct {
	rec   *jobs.Record
	cause error
}

func (e *spoolElsewhereError) Error() string {
	return fmt.Sprintf("the image is in the spool of %s, whose worker must deliver it (%s)", e.rec.SpoolLocation, e.cause)
}

func (e *spoolElsewhereError) Unwrap() error { return e.cause }

// ownedElsewhere reports whether the record names another worker's spool.
func (s *Server) ownedElsewhere(rec *jobs.Record) bool {
	return rec.SpoolOwner != "" && rec.SpoolOwner != s.recorder.Data.WorkerID
}

// retryOrHold retries an image until spoolHoldAfter has passed since its link expired,
// or since an operator last resolved the job. Then it returns an image that holds the
// job.
func (s *Server) retryOrHold(rec *jobs.Record, result jobs.Result, got fetched, err error) (jobs.Image, error) {
	since := got.linkExpiry
	if rec.ResolvedAt.After(since) {
		since = rec.ResolvedAt
	}
	if time.Since(since) < spoolHoldAfter {
		return jobs.Image{}, err
	}
	image := jobs.Image{N: result.N, Code: jobs.CodeImageUnverified}
	if elsewhere := (*spoolElsewhereError)(nil); errors.As(err, &elsewhere) {
		image.Code = jobs.CodeSpoolUnavailable
	}
	image.Message = fmt.Sprintf("image %d is paid for but was not obtained before its link expired on %s: %s; %s; after fixing this run: danqing jobs resolve %s --adopt %s",
		result.N, got.linkExpiry.Format(time.DateOnly), err, linkText(result.URL), rec.ID, rec.TaskID)
	return image, nil
}

// publishReason records why the images are not in the bucket, unless the record says so.
func (s *Server) publishReason(ctx context.Context, rec *jobs.Record, err error) {
	next := *rec
	next.Code, next.Message = "", strings.ReplaceAll(err.Error(), "\n", "; ")
	if elsewhere := (*spoolElsewhereError)(nil); errors.As(err, &elsewhere) {
		next.Code, next.Message = jobs.CodeSpoolUnavailable, elsewhere.Error()
	}
	if next.Code == rec.Code && (next.Code != "" || next.Message == rec.Message) {
		return
	}
	if err := s.recorder.Transition(ctx, rec, &next); err != nil {
		s.log.Warn("record not written", "job_id", rec.ID, "err", err)
	}
}

// linkText returns a link without its query, which is a signature.
func linkText(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "its link cannot be parsed"
	}
	u.User, u.RawQuery, u.Fragment, u.RawFragment = nil, "", "", ""
	return "its link, without the signature, is " + u.String()
}
