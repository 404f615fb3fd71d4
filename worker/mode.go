package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/internal/loop"
)

// The places that have one [jobs.Mode] for good.
const (
	PlaceRedis   = "the Redis database"
	PlaceBucket  = "the bucket prefix"
	PlaceDataDir = "the data directory"
)

// ConfiguredService is what answers at the accounts' base URLs.
const ConfiguredService = "the configured service"

// ModeError means that a place has jobs of the other mode. Nothing was queued, spent or
// stored. The operator must name another place, or empty a simulated one.
type ModeError struct {
	Places []string  // those of the other mode, at least one
	Mode   jobs.Mode // theirs
	With   string    // what they do not agree with
}

// CompareModes returns an error if a place has another mode than something else, with, or nil.
// Unknown modes agree with any.
func CompareModes(place string, mode jobs.Mode, with string, withMode jobs.Mode) *ModeError {
	if mode == "" || withMode == "" || mode == withMode {
		return nil
	}
	return &ModeError{Places: []string{place}, Mode: mode, With: with}
}

// Error says in one sentence which places are of which mode.
func (e *ModeError) Error() string {
	are, whose, other := "is", "its", jobs.ModeReal
	if len(e.Places) > 1 {
		are, whose = "are", "their"
	}
	if e.Mode == jobs.ModeReal {
		other = jobs.ModeSimulated
	}
	return fmt.Sprintf("%s %s %s since %s first use, but %s is %s: the two never share a place", enumerate(e.Places), are, e.Mode, whose, e.With, other)
}

// enumerate joins words as in a sentence.
func enumerate(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// Hint says what the operator can do.
func (e *ModeError) Hint() string {
	settings := map[string]string{
		PlaceRedis: "REDIS_URL to another Redis or database", PlaceBucket: "DANQING_S3_PREFIX to another prefix", PlaceDataDir: "DANQING_DATA_DIR to another folder",
	}
	var set []string
	for _, place := range e.Places {
		set = append(set, settings[place])
	}
	hint := "nothing was queued or spent; set " + enumerate(set)
	if e.Mode == jobs.ModeSimulated {
		hint += "; or delete the simulated jobs: danqing purge"
	}
	return hint
}

// places returns the places, in the order in which they get a mode.
func places() []string { return []string{PlaceRedis, PlaceBucket, PlaceDataDir} }

// modeTimeout limits how long the start waits for the bucket's mode, and [Worker.CheckMode]
// for the services. The value is our choice: an operator waits.
const modeTimeout = 10 * time.Second

// placeModes are the modes of the places, in their order, as far as they are known: that of Redis
// is "" after err, and the bucket's after bucketErr.
type placeModes struct {
	modes          []jobs.Mode
	bucketErr, err error
}

func (w *Worker) modes(ctx context.Context) placeModes {
	redis, err := w.recorder.Store.Mode(ctx)
	asking, cancel := context.WithTimeout(ctx, modeTimeout)
	defer cancel()
	bucket, bucketErr := w.cfg.Bucket.Mode(asking)
	return placeModes{[]jobs.Mode{redis, jobs.Mode(bucket), w.cfg.DataDir.Mode()}, bucketErr, err}
}

// throttledPause is the wait before a service that throttles is asked again. Its limits are for
// a second.
const throttledPause = time.Second

func isThrottled(err error) bool {
	refusal := (*dashscope.Error)(nil)
	return errors.As(err, &refusal) && refusal.Kind == dashscope.KindThrottled
}

// CheckMode fails with a [*ModeError] if Redis, the bucket's prefix, the data directory and
// the accounts' services are not all real or all simulated, and with [ErrGateway] or
// [ErrMixed]. A service that does not answer within ten seconds, or throttles for as long, is
// not compared; [Worker.Prepare] compares it. CheckMode writes and spends nothing.
func (w *Worker) CheckMode(ctx context.Context) error {
	probing, cancel := context.WithTimeout(ctx, modeTimeout)
	defer cancel()
	for {
		errs, err := w.accounts.ProbeOnce(probing)
		if err != nil {
			return err
		}
		if w.accounts.Mode() != "" || !slices.ContainsFunc(errs, isThrottled) || loop.Sleep(probing, throttledPause) != nil {
			break
		}
	}
	found := w.modes(ctx)
	if err := errors.Join(found.err, found.bucketErr); err != nil {
		return err
	}
	if err := w.compareModes(found.modes); err != nil {
		return err
	}
	for i, mode := range found.modes { // no service has answered
		for j, other := range found.modes[:i] {
			if err := CompareModes(places()[i], mode, places()[j], other); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareModes fails if a place has a mode other than the services'.
func (w *Worker) compareModes(modes []jobs.Mode) error {
	wrong := &ModeError{With: ConfiguredService}
	for i, mode := range modes {
		if CompareModes(places()[i], mode, "", w.accounts.Mode()) != nil {
			wrong.Places, wrong.Mode = append(wrong.Places, places()[i]), mode
		}
	}
	if len(wrong.Places) == 0 {
		return nil
	}
	return wrong
}

// claimModes gives the services' mode to the places that had none when they were read. It fails with a
// [*ModeError], before it writes anything, if one has the other. It does not wait for a
// bucket that is unavailable, because the worker may have images to save: it sets claimed
// once the bucket has the mode, and nothing is read or written there before.
func (w *Worker) claimModes(ctx context.Context, found placeModes) error {
	if wrong := w.compareModes(found.modes); wrong != nil {
		return wrong
	}
	if found.err != nil {
		return found.err
	}
	if err := w.claimRedis(ctx); err != nil {
		return err
	}
	claiming, cancel := context.WithTimeout(ctx, modeTimeout)
	defer cancel()
	err := w.cfg.Bucket.Bind(claiming, string(w.accounts.Mode()))
	if wrong := (*storage.ModeError)(nil); errors.As(err, &wrong) { // another worker was first
		return w.compareModes([]jobs.Mode{"", jobs.Mode(wrong.Mode)})
	}
	w.claimed = err == nil
	if !w.claimed && !w.prepared.Load() {
		w.log.Warn("bucket unavailable, retrying", "err", cmp.Or(found.bucketErr, err))
	}
	mode, err := w.cfg.DataDir.ClaimMode(w.accounts.Mode())
	if err != nil {
		return err
	}
	return w.compareModes([]jobs.Mode{"", "", mode})
}

// claimRedis gives Redis the services' mode if it has none, as when it has lost its data.
func (w *Worker) claimRedis(ctx context.Context) error {
	mode, err := w.recorder.Store.ClaimMode(ctx, w.accounts.Mode())
	if err != nil {
		return err
	}
	return w.compareModes([]jobs.Mode{mode})
}
