package lane

import (
	"context"
	"errors"
	"path"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// createBody converts the request to a create's body. It uploads a staged reference
// image to DashScope's temporary store.
func (l *lane) createBody(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
	region := l.cfg.Account.Client.Region()
	model, sold := l.cfg.Model.NameIn(region)
	if !sold {
		// The service would answer that the model is unknown.
		return nil, l.fail(ctx, rec, jobs.CodeModelNotInRegion, l.cfg.Model.CheckRegion(region).Error())
	}
	n, seed := imagesToBuy(rec, req)
	body := &dashscope.CreateRequest{
		Model: model,
		Input: dashscope.Input{Prompt: req.Prompt, NegativePrompt: req.NegativePrompt, RefImg: req.RefImg},
		Parameters: dashscope.Parameters{
			Style: req.Style, Size: req.Size, N: &n, Seed: seed, RefStrength: req.RefStrength, RefMode: req.RefMode,
			PromptExtend: req.PromptExtend, Watermark: req.Watermark,
		},
	}
	sum, staged := strings.CutPrefix(req.RefImg, jobs.StagedPrefix)
	if !staged {
		return body, nil
	}
	name, err := l.uploadReference(ctx, rec.Producer, model, sum)
	var refused *dashscope.Error
	switch {
	case err == nil:
		l.cfg.ReferenceRefusedAt.Delete(rec.ID)
		body.Input.RefImg = name
		return body, nil
	case errors.Is(err, storage.ErrNotExist):
		return nil, l.fail(ctx, rec, jobs.CodeReferenceMissing, "the staged reference image "+req.RefImg+" is missing from the bucket: stage it again and enqueue the job under a new ID")
	case errors.As(err, &refused) && refused.Kind == dashscope.KindTerminal:
		return nil, l.fail(ctx, rec, refused.Code, withHint("the reference image was rejected", refused.Message))
	case errors.As(err, &refused) && refused.Kind == dashscope.KindAccount:
		return nil, &pauseError{backoff: &l.waits.account, minWait: refused.RetryAfter, reason: jobs.PauseAccount, message: accountPaused, cause: err}
	case refused != nil && refused.Status != 0 && refused.Kind != dashscope.KindThrottled:
		return nil, l.referenceRejected(ctx, rec, err)
	default:
		return nil, &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseService, message: referenceNotUploaded, cause: err}
	}
}

func (l *lane) uploadReference(ctx context.Context, producer, model, sum string) (string, error) {
	content, info, err := l.recorder.Bucket.OpenReference(ctx, sum, storage.Owner(producer), "")
	if err != nil {
		return "", err
	}
	defer content.Close() //nolint:errcheck // read only
	return l.cfg.Account.Client.Upload(ctx, model, sum+"."+path.Base(info.ContentType), info.ContentType, info.Bytes, content)
}
