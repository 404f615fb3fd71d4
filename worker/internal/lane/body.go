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

// createBody converts the request to a create's body. It uploads staged reference images to
// DashScope's temporary store.
func (l *lane) createBody(ctx context.Context, rec *jobs.Record, req jobs.Request) (*dashscope.CreateRequest, error) {
	region := l.cfg.Account.Client.Region()
	model, sold := l.cfg.Model.NameIn(region)
	if !sold {
		// The service would answer that the model is unknown.
		return nil, l.fail(ctx, rec, jobs.CodeModelNotInRegion, l.cfg.Model.CheckRegion(region).Error())
	}
	uploaded := map[string]string{}
	for _, name := range req.References() {
		sum, staged := strings.CutPrefix(name, jobs.StagedPrefix)
		if !staged {
			continue
		}
		var err error
		if uploaded[name], err = l.uploadReference(ctx, rec.Producer, model, sum); err != nil {
			return nil, l.referenceFailed(ctx, rec, name, err)
		}
	}
	if len(uploaded) > 0 {
		l.cfg.ReferenceRefusedAt.Delete(rec.ID)
	}
	req, _ = req.WithReferences(func(_, name string) (string, error) {
		if at, ok := uploaded[name]; ok {
			return at, nil
		}
		return name, nil
	})
	n, seed := imagesToBuy(l.cfg.Model, rec, req)
	return newBody(l.cfg.Model, model, req, n, seed), nil
}

// newBody returns the body of a create of n images.
func newBody(m jobs.Model, name string, req jobs.Request, n int, seed *int64) *dashscope.CreateRequest {
	body := &dashscope.CreateRequest{
		Protocol: dashscope.Protocol(m.Protocol), Model: name,
		Input: dashscope.Input{
			Prompt: req.Prompt, NegativePrompt: req.NegativePrompt, RefImg: req.RefImg,
			Images: req.RefImages, Function: req.Function, MaskImageURL: req.MaskImageURL,
		},
		Parameters: dashscope.Parameters{
			Style: req.Style, Size: req.Size, N: &n, Seed: seed, RefStrength: req.RefStrength, RefMode: req.RefMode,
			PromptExtend: req.PromptExtend, Watermark: req.Watermark, PromptExtendMode: req.PromptExtendMode,
			EnableThinking: req.EnableThinking, ThinkingMode: req.ThinkingMode, EnableSequential: req.EnableSequential,
			Strength: req.Strength, UpscaleFactor: req.UpscaleFactor, IsSketch: req.IsSketch,
			TopScale: req.TopScale, BottomScale: req.BottomScale, LeftScale: req.LeftScale, RightScale: req.RightScale,
		},
	}
	if len(m.Functions) > 0 && len(req.RefImages) > 0 {
		body.Input.Images, body.Input.BaseImageURL = nil, req.RefImages[0]
	}
	return body
}

// referenceFailed ends or delays a job whose reference image could not be uploaded. Nothing was
// spent.
func (l *lane) referenceFailed(ctx context.Context, rec *jobs.Record, name string, err error) error {
	var refused *dashscope.Error
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return l.fail(ctx, rec, jobs.CodeReferenceMissing, "the staged reference image "+name+" is missing from the bucket: stage it again and enqueue the job under a new ID")
	case errors.As(err, &refused) && refused.Kind == dashscope.KindTerminal:
		return l.fail(ctx, rec, refused.Code, withHint("the reference image was rejected", refused.Message))
	case errors.As(err, &refused) && (refused.Kind == dashscope.KindAccount || refused.Kind == dashscope.KindModel):
		return l.refusedPause(refused.Kind, refused.Code, refused.RetryAfter, err)
	case refused != nil && refused.Status != 0 && refused.Kind != dashscope.KindThrottled:
		return l.referenceRejected(ctx, rec, err)
	}
	return &pauseError{backoff: &l.waits.unreachable, reason: jobs.PauseService, message: referenceNotUploaded, cause: err}
}

func (l *lane) uploadReference(ctx context.Context, producer, model, sum string) (string, error) {
	content, info, err := l.recorder.Bucket.OpenReference(ctx, sum, storage.Owner(producer), "")
	if err != nil {
		return "", err
	}
	defer content.Close() //nolint:errcheck // read only
	return l.cfg.Account.Client.Upload(ctx, model, sum+"."+path.Base(info.ContentType), info.ContentType, info.Bytes, content)
}
