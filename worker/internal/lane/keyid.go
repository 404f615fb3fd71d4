package lane

import (
	"context"
	"errors"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// recordKeyID records the api_key_id under which the service lists the tasks of a key of
// this worker. mark is the key's fingerprint.
func (l *lane) recordKeyID(ctx context.Context, mark, keyID string) {
	journal := l.recorder.Data.Journal
	if keyID == "" || journal.KeyID(mark) == keyID {
		return
	}
	if err := errors.Join(journal.SetKeyID(mark, keyID), l.recorder.Store.SetKeyID(context.WithoutCancel(ctx), mark, keyID)); err != nil {
		l.log.Warn("api_key_id not recorded", "err", err)
	}
}

// keyID returns the api_key_id of the key with a fingerprint, "" if it is unknown.
func (l *lane) keyID(ctx context.Context, mark string) (string, error) {
	if known := l.recorder.Data.Journal.KeyID(mark); known != "" || mark == "" {
		return known, nil
	}
	return l.recorder.Store.KeyID(ctx, mark)
}

// discoverKeyID learns the api_key_id of the lane's key from a task that was created with
// it, once.
func (l *lane) discoverKeyID(ctx context.Context, rec *jobs.Record) {
	mark := l.cfg.Account.Client.KeyFingerprint()
	if rec.KeyFingerprint != mark || rec.Adopted || !rec.ResolvedAt.IsZero() || l.recorder.Data.Journal.KeyID(mark) != "" {
		return
	}
	if err := l.ask(ctx); err != nil {
		return
	}
	page, err := l.cfg.Account.Client.List(ctx, dashscope.ListFilter{TaskID: rec.TaskID})
	if err != nil || len(page.Data) != 1 || page.Data[0].TaskID != rec.TaskID {
		return // the list lags behind; the next poll tries again
	}
	l.recordKeyID(ctx, mark, page.Data[0].APIKeyID)
}
