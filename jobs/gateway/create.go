package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// What a producer may say beside DashScope's own body, by headers that the SDKs pass on.
const (
	headerKey       = "Idempotency-Key"
	headerPriority  = "X-Danqing-Priority"
	headerCallback  = "X-Danqing-Callback"
	headerLabels    = "X-Danqing-Labels"
	headerNotBefore = "X-Danqing-Not-Before"
	headerDeadline  = "X-Danqing-Deadline"
	headerStage     = "X-Danqing-Stage"
)

// ownHeaders begins all of ours.
const ownHeaders = "X-Danqing-"

const (
	// createBody bounds the body of a create: the longest prompts are 2,500 characters,
	// which \u escapes make 15 KB of. It lies in Redis while the job waits.
	createBody = 64 << 10
	// maxKeyRunes bounds an idempotency key; ours, and others'.
	maxKeyRunes = 255
	// enqueueMost is how long a create waits for a Redis that is away: the SDKs never
	// repeat one, and wait 300 s.
	enqueueMost = 20 * time.Second
)

// create makes a job of what asks DashScope for a task.
func (a *api) create(w http.ResponseWriter, r *request) (any, error) {
	if !strings.EqualFold(r.Header.Get(dashscope.HeaderAsync), "enable") {
		return nil, refuse(http.StatusForbidden, codeDenied, "current user api does not support synchronous calls: send X-DashScope-Async: enable", 0)
	}
	body, err := readBody(w, r.Request, createBody)
	if err != nil {
		return nil, err
	}
	req, err := parseCreate(body)
	if err != nil {
		return nil, err
	}
	if err := fromHeaders(&req, r.Header, r.caller); err != nil {
		return nil, err
	}
	if req.N == 0 {
		req.N = a.cfg.DefaultN
		if model, err := jobs.LookupModel(req.Model); err == nil {
			req.N = min(req.N, model.MaxImages)
		}
	}
	rec, warnings, err := a.accept(r.Context(), r.caller, req)
	if err != nil {
		return nil, err
	}
	a.say(r.Context(), w.Header(), rec, req, warnings)
	return &dashscope.TaskResponse{RequestID: r.id, Output: dashscope.TaskOutput{TaskID: rec.ID, TaskStatus: status(rec, time.Now())}}, nil
}

// parseCreate reads a create's body.
func parseCreate(body []byte) (jobs.Request, error) {
	if !json.Valid(body) {
		err := json.Unmarshal(body, new(any)) // says where
		return jobs.Request{}, refuse(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is no JSON: %v", err), 0)
	}
	req, err := jobs.ParseRequest(body)
	if err != nil {
		return req, err
	}
	if req.RefImg == "" { // DashScope takes no offence
		req.RefMode, req.RefStrength = "", nil
	}
	wrong := &jobs.InvalidError{}
	check := func(is bool, field, value, remedy string) {
		if is {
			wrong.Fields = append(wrong.Fields, jobs.FieldError{Field: field, Value: value, Remedy: remedy})
		}
	}
	check(req.Model == "", "model", "missing", "name one, as in \"wanx-v1\"")
	check(req.ID != "", "id", "is given", "the gateway chooses it: use the header "+headerKey)
	check(req.FollowUp != nil, "follow_up", "is given", "it is for services on the queue's own Redis: use the header "+headerCallback)
	if len(wrong.Fields) > 0 {
		return req, wrong
	}
	return req, nil
}

// fromHeaders adds what the headers say.
func fromHeaders(req *jobs.Request, header http.Header, c caller) error {
	var problems []jobs.FieldError
	said := func(name string, given bool, take func(value string) error) {
		value := strings.TrimSpace(header.Get(name))
		if value == "" {
			return
		}
		err := take(value)
		if err == nil && given {
			err = errors.New("the body says so too: say it once")
		}
		if err != nil {
			problems = append(problems, jobs.FieldError{Field: name, Value: strconv.Quote(value[:min(len(value), 64)]), Err: err})
		}
	}
	text := func(to *string) func(string) error {
		return func(value string) error { *to = value; return nil }
	}
	said(headerKey, false, func(key string) error {
		if !utf8.ValidString(key) || utf8.RuneCountInString(key) > maxKeyRunes || strings.ContainsFunc(key, unicode.IsControl) {
			return fmt.Errorf("must be 1 to %d characters of UTF-8, none of them a control character", maxKeyRunes)
		}
		req.ID = jobs.IdempotencyID(c.Name, key)
		return nil
	})
	said(headerPriority, req.Priority != "", text(&req.Priority))
	said(headerCallback, req.Callback != "", text(&req.Callback))
	said(headerNotBefore, !req.NotBefore.IsZero(), moment(&req.NotBefore))
	said(headerDeadline, !req.Deadline.IsZero(), moment(&req.Deadline))
	said(headerLabels, len(req.Labels) > 0, func(value string) (err error) { req.Labels, err = parseLabels(value); return err })
	said(headerStage, false, func(value string) (err error) {
		req.Stage, err = strconv.ParseBool(value)
		if err != nil {
			err = errors.New("must be true or false")
		}
		return err
	})
	for name := range header {
		if strings.HasPrefix(name, ownHeaders) && !slices.Contains(requestHeaders(), name) {
			problems = append(problems, jobs.FieldError{Field: name, Value: "is given", Allowed: strings.Join(requestHeaders(), ", ")})
		}
	}
	if len(problems) > 0 {
		return &jobs.InvalidError{Fields: problems}
	}
	return nil
}

// requestHeaders are those of ours that a request may have.
func requestHeaders() []string {
	return []string{headerPriority, headerCallback, headerLabels, headerNotBefore, headerDeadline, headerStage}
}

// moment reads RFC 3339 or Unix seconds.
func moment(to *time.Time) func(string) error {
	return func(value string) error {
		if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
			*to = time.Unix(seconds, 0).UTC()
			return nil
		}
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return errors.New("must be a time as in 2026-11-28T18:30:00+08:00, or Unix seconds")
		}
		*to = at.UTC()
		return nil
	}
}

// parseLabels reads {"name":"value"}, or name=value,name=value with what is special
// percent-encoded.
func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	if strings.HasPrefix(text, "{") {
		if err := json.Unmarshal([]byte(text), &labels); err != nil {
			return nil, errors.New(`must be an object of texts, as in {"sku":"A-17"}`)
		}
		return labels, nil
	}
	for pair := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(pair, "=")
		name, nameErr := url.PathUnescape(strings.TrimSpace(name))
		value, valueErr := url.PathUnescape(strings.TrimSpace(value))
		if _, twice := labels[name]; !ok || twice || nameErr != nil || valueErr != nil {
			return nil, errors.New("must be name=value,name=value, each name once, with commas and % percent-encoded")
		}
		labels[name] = value
	}
	return labels, nil
}

// accept checks a request whole, brings its reference image into the bucket where that
// is asked for, and queues it. It returns the job, new or known, and warnings.
func (a *api) accept(ctx context.Context, c caller, req jobs.Request) (*jobs.Record, []string, error) {
	if ref := strings.TrimSpace(req.RefImg); strings.HasPrefix(ref, ossScheme) {
		staged, err := a.uploaded(ctx, c, ref)
		if err != nil {
			return nil, nil, err
		}
		req.RefImg = staged
	}
	if req.Stage && req.ID != "" {
		a.asStaged(ctx, &req)
	}
	req.Producer = c.Name
	req, warnings, err := req.Normalize()
	if err != nil {
		return nil, warnings, err
	}
	switch hash, staged := strings.CutPrefix(req.RefImg, jobs.StagedPrefix); {
	case staged:
		err = a.staged(ctx, hash)
	case req.Stage && req.RefImg != "":
		req.RefImg, err = a.stage(ctx, c, req.RefImg)
	}
	if err != nil {
		return nil, warnings, err
	}
	req.Stage = false
	if req.ID != "" {
		if known, err := a.known(ctx, req); known != nil || err != nil {
			return known, warnings, err
		}
	}
	rec, err := a.enqueue(ctx, c, req)
	return rec, warnings, err
}

// asStaged takes the reference image from the job that a repeated request asks for, if
// it is there: it was staged then, and its source may be gone.
func (a *api) asStaged(ctx context.Context, req *jobs.Request) {
	rec, err := a.jobs.Get(ctx, req.ID)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = a.cfg.Recall(ctx, req.ID)
	}
	if err != nil {
		return // a new job
	}
	if known, err := a.jobs.RequestOf(ctx, rec); err == nil && known.RefImg != "" {
		req.RefImg, req.Stage = known.RefImg, false
	}
}

// staged fails unless the bucket has a reference image of this hash.
func (a *api) staged(ctx context.Context, hash string) error {
	body, _, err := a.cfg.Bucket.OpenReference(ctx, hash)
	if err == nil {
		return body.Close()
	}
	if errors.Is(err, storage.ErrNotExist) {
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "ref_img", Value: "names a staged image that is not there", Remedy: "upload it first"}}}
	}
	return err
}

// known returns the job of an idempotency key that Redis has forgotten, nil if there is
// none: a key is the same job for ever.
func (a *api) known(ctx context.Context, req jobs.Request) (*jobs.Record, error) {
	if _, err := a.jobs.Get(ctx, req.ID); !errors.Is(err, jobs.ErrNotFound) {
		return nil, nil //nolint:nilnil // enqueue looks at it
	}
	rec, err := a.cfg.Recall(ctx, req.ID)
	switch {
	case err != nil: // there is none, or that cannot be told: a lane looks before it buys
		return nil, nil //nolint:nilnil,nilerr // a new job
	case rec.Digest != req.Digest():
		return nil, jobs.ErrDigestConflict
	}
	return rec, nil
}

// enqueue queues a job within the caller's limits. What it began it finishes, whether
// the client still waits or not, and while Redis is away it tries again, with the same
// ID: the job is the same.
func (a *api) enqueue(ctx context.Context, c caller, req jobs.Request) (*jobs.Record, error) {
	req.Producer = c.Name
	if req.ID == "" {
		req.ID = jobs.NewID()
	}
	if price := a.price(req); c.DailyBudgetMicroYuan > 0 && price > c.DailyBudgetMicroYuan {
		return nil, &jobs.InvalidError{Fields: []jobs.FieldError{{
			Field: "n", Value: strconv.Itoa(max(req.N, 1)), Remedy: fmt.Sprintf("the job may cost %s yuan, and all jobs of this token %s a day: ask for fewer images",
				jobs.FormatYuan(price), jobs.FormatYuan(c.DailyBudgetMicroYuan)),
		}}}
	}
	limits := jobs.Limits{Depth: a.cfg.Depth, Waiting: c.MaxWaiting, DayMicroYuan: c.DailyBudgetMicroYuan, PriceMicroYuan: a.price(req)}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enqueueMost)
	defer cancel()
	for failures := 1; ; failures++ {
		rec, err := a.jobs.EnqueueWithin(ctx, req, limits)
		var invalid *jobs.InvalidError
		var limit *jobs.LimitError
		if err == nil || errors.As(err, &invalid) || errors.As(err, &limit) ||
			errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, jobs.ErrDamaged) {
			return rec, err
		}
		if !a.hub.pause(ctx, nil, recheck(failures)) {
			return nil, err
		}
	}
}

// price is what a request may cost, in millionths of a yuan.
func (a *api) price(req jobs.Request) int64 {
	model, err := jobs.LookupModel(req.Model)
	if err != nil {
		return 0
	}
	return a.cfg.Price(model, max(req.N, 1))
}

// otherEndpoint refuses DashScope's other image endpoints.
func (a *api) otherEndpoint(_ http.ResponseWriter, r *request) (any, error) {
	_, _ = io.CopyN(io.Discard, r.Body, ignoredBody) // most clients read the answer only then
	var names []string
	for _, m := range jobs.Models() {
		names = append(names, m.Name)
	}
	return nil, refuse(http.StatusBadRequest, codeParameter, "url error, please check url! Danqing makes text2image/image-synthesis alone, with the models "+strings.Join(names, ", "), 0)
}
