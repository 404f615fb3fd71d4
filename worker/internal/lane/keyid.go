package lane

import (
	"context"
	"errors"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// recordKeyID records the api_key_id under which the service lists the tasks of one of this
// worker's keys, by the key's fingerprint.
func (l *lane) recordKeyID(ctx context.Context, fingerprint, keyID string) {
	journal := l.recorder.Data.Journal
	if keyID == "" || journal.KeyID(fingerprint) == keyID {
		return
	}
	if err := errors.Join(journal.SetKeyID(fingerprint, keyID), l.recorder.Store.SetKeyID(context.WithoutCancel(ctx), fingerprint, keyID)); err != nil {
		l.log.Warn("api_key_id not recorded", "err", err)
	}
}

// keyID returns the api_key_id of the key with a fingerprint, "" if it is unknown.
func (l *lane) keyID(ctx context.Context, fingerprint string) (string, error) {
	if known := l.recorder.Data.Journal.KeyID(fingerprint); known != "" || fingerprint == "" {
		return known, nil
	}
	return l.recorder.Store.KeyID(ctx, fingerprint)
}

// discoverKeyID finds the api_key_id of the lane's key in the list entry of a task that was
// created with it, unless it is known.
func (l *lane) discoverKeyID(ctx context.Context, rec *jobs.Record) {
	fingerprint := l.cfg.Account.Client.KeyFingerprint()
	if rec.KeyFingerprint != fingerprint || rec.Adopted || !rec.ResolvedAt.IsZero() || l.recorder.Data.Journal.KeyID(fingerprint) != "" {
		return
	}
	page, err := l.cfg.Account.Client.List(ctx, dashscope.ListFilter{TaskID: rec.TaskID})
	if err != nil || len(page.Data) != 1 || page.Data[0].TaskID != rec.TaskID {
		return // the list lags behind; the next poll tries again
	}
	l.recordKeyID(ctx, fingerprint, page.Data[0].APIKeyID)
}
