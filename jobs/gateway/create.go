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
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Headers with a job's options that DashScope's body has no fields for. The SDKs can
// send them.
const (
	headerKey       = "Idempotency-Key"
	headerPriority  = "X-Danqing-Priority"
	headerCallback  = "X-Danqing-Callback"
	headerLabels    = "X-Danqing-Labels"
	headerNotBefore = "X-Danqing-Not-Before"
	headerDeadline  = "X-Danqing-Deadline"
	headerStage     = "X-Danqing-Stage"
)

// headerPrefix is the prefix of the gateway's own headers.
const headerPrefix = "X-Danqing-"

const (
	// maxCreateBytes limits the body of a create. The longest prompts have 5,000
	// characters, or 60 KB with \u escapes of pairs, and the most reference images are 9,
	// with URLs of some 2 KB. The request is kept in Redis while the job waits.
	maxCreateBytes = 96 << 10
	// maxKeyRunes limits an idempotency key. The value is our choice, and common.
	maxKeyRunes = 255
	// enqueueTimeout is how long a create waits for an unavailable Redis. The SDKs do
	// not retry a create, and time out after 300 s.
	enqueueTimeout = 20 * time.Second
)

// create returns the endpoint that enqueues a job for a request in the format of DashScope's
// create of a protocol.
func (a *api) create(p dashscope.Protocol) endpoint {
	return func(w http.ResponseWriter, r *request) (any, error) {
		if !strings.EqualFold(r.Header.Get(dashscope.HeaderAsync), "enable") {
			return nil, newAPIError(http.StatusForbidden, codeDenied, "current user api does not support synchronous calls: send X-DashScope-Async: enable", 0)
		}
		body, err := readBody(w, r.Request, maxCreateBytes)
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			return nil, newAPIError(http.StatusRequestEntityTooLarge, codeTooLarge, fmt.Sprintf("the body has more than %d bytes: name images by URLs, or upload them first, as the SDKs do with local files", large.Limit), 0)
		}
		if err != nil {
			return nil, err
		}
		c, err := parseCreate(p, body)
		if err != nil {
			return nil, err
		}
		setIgnored(w.Header(), c.ignored)
		if err := applyHeaders(&c.request, r.Header, r.caller); err != nil {
			return nil, err
		}
		if c.request.N == 0 {
			c.request.N = a.cfg.DefaultN
			if model, known := jobs.ModelNamed(c.request.Model); known {
				c.request.N = min(c.request.N, model.ServiceImages)
			}
		}
		rec, warnings, err := a.accept(r.Context(), r.caller, c.request)
		if err != nil {
			return nil, c.names.rename(err)
		}
		a.setHeaders(r.Context(), w.Header(), rec, c.request, warnings)
		return &dashscope.TaskResponse{RequestID: r.id, Output: dashscope.TaskOutput{TaskID: rec.ID, TaskStatus: status(rec, time.Now())}}, nil
	}
}

// setIgnored names the parameters that the model does not honor, percent-encoded, in a header.
func setIgnored(header http.Header, names []string) {
	encoded := make([]string, len(names))
	for i, name := range names {
		encoded[i] = url.PathEscape(name)
	}
	if len(names) > 0 {
		header.Set(headerIgnored, strings.Join(encoded, ", "))
	}
}

// serviceRequest is a request in DashScope's format.
type serviceRequest struct {
	request jobs.Request
	names   fieldNames
	ignored []string // the parameters that change nothing
}

// servicesPath is where DashScope's services are.
const servicesPath = "/api/v1"

// parseCreate parses the body of a create of a protocol.
func parseCreate(p dashscope.Protocol, body []byte) (c serviceRequest, err error) {
	if !json.Valid(body) {
		err := json.Unmarshal(body, new(any)) // for the position
		return c, newAPIError(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is not valid JSON: %v", err), 0)
	}
	b := readServiceBody(body)
	m, known := jobs.ModelNamed(b.model())
	if known && b.model() != "" && dashscope.Protocol(m.Protocol) != p {
		return c, newAPIError(http.StatusBadRequest, codeParameter, fmt.Sprintf("url error, please check url! model: %q: send it to %s", b.model(), pathOf(m)), 0)
	}
	c.names = serviceNames(p, b.input, b.parameters)
	if m.Honors("function") {
		c.names.missing["ref_images"] = "input.base_image_url"
	}
	wrong := &jobs.InvalidError{}
	if p == dashscope.ProtocolImageGeneration && utf8.Valid(body) && b.top["input"] != nil {
		body, c.names, c.ignored, wrong.Fields = b.flatten()
	}
	malformed := len(wrong.Fields) > 0
	var ignored []string
	c.request, ignored, err = jobs.ParseServiceRequest(body)
	c.ignored = append(c.ignored, ignored...)
	if invalid := (*jobs.InvalidError)(nil); errors.As(err, &invalid) {
		wrong.Fields = append(wrong.Fields, invalid.Fields...)
	} else if err != nil {
		return c, err
	}
	check := func(is bool, field, value, remedy string) {
		if is {
			wrong.Fields = append(wrong.Fields, jobs.FieldError{Field: field, Value: value, Remedy: remedy})
		}
	}
	if err == nil {
		check(c.request.Model == "", "model", "missing", "name one, as in \"wanx-v1\"")
		check(c.request.ID != "", "id", "is given", "the gateway generates it: use the header "+headerKey)
		check(c.request.FollowUp != nil, "follow_up", "is given", "it is for services with access to the queue's Redis: use the header "+headerCallback)
	}
	if malformed && err == nil { // the other fields too
		wrong.Fields = append(wrong.Fields, valueErrors(c.request)...)
	}
	if len(wrong.Fields) > 0 {
		return c, c.names.rename(wrong)
	}
	return c, nil
}

// valueErrors returns the wrong values of a request whose message could not be read.
func valueErrors(req jobs.Request) []jobs.FieldError {
	var invalid *jobs.InvalidError
	if _, _, err := req.Normalize(); !errors.As(err, &invalid) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(invalid.Fields), func(f jobs.FieldError) bool { return f.Field == "ref_images" || f.Field == "prompt" })
}

// pathOf returns the path of a model's creates.
func pathOf(m jobs.Model) string { return servicesPath + dashscope.Protocol(m.Protocol).Path() }

// applyHeaders sets the request's fields that are given by headers.
func applyHeaders(req *jobs.Request, header http.Header, c caller) error {
	var problems []jobs.FieldError
	apply := func(name string, given bool, take func(value string) error) {
		value := strings.TrimSpace(header.Get(name))
		if value == "" {
			return
		}
		err := take(value)
		if err == nil && given {
			err = errors.New("the body has it too: set it only once")
		}
		if err != nil {
			problems = append(problems, jobs.FieldError{Field: name, Value: strconv.Quote(value[:min(len(value), 64)]), Err: err})
		}
	}
	text := func(to *string) func(string) error {
		return func(value string) error { *to = value; return nil }
	}
	apply(headerKey, false, func(key string) error {
		if !utf8.ValidString(key) || utf8.RuneCountInString(key) > maxKeyRunes || strings.ContainsFunc(key, unicode.IsControl) {
			return fmt.Errorf("must be 1 to %d characters of UTF-8 without control characters", maxKeyRunes)
		}
		req.ID = jobs.IdempotencyID(c.Name, key)
		return nil
	})
	apply(headerPriority, req.Priority != "", text(&req.Priority))
	apply(headerCallback, req.Callback != "", text(&req.Callback))
	apply(headerNotBefore, !req.NotBefore.IsZero(), parseTime(&req.NotBefore))
	apply(headerDeadline, !req.Deadline.IsZero(), parseTime(&req.Deadline))
	apply(headerLabels, len(req.Labels) > 0, func(value string) (err error) { req.Labels, err = parseLabels(value); return err })
	apply(headerStage, false, func(value string) (err error) {
		req.Stage, err = strconv.ParseBool(value)
		if err != nil {
			err = errors.New("must be true or false")
		}
		return err
	})
	apply(headerDisconnect, false, func(value string) error {
		if !slices.Contains([]string{"cancel", "continue"}, strings.ToLower(value)) {
			return errors.New("must be cancel or continue")
		}
		return nil
	})
	for name := range header {
		if strings.HasPrefix(name, headerPrefix) && !slices.Contains(requestHeaders(), name) {
			problems = append(problems, jobs.FieldError{Field: name, Value: "unknown", Allowed: strings.Join(requestHeaders(), ", ")})
		}
	}
	if len(problems) > 0 {
		return &jobs.InvalidError{Fields: problems}
	}
	return nil
}

// requestHeaders are the gateway's own headers that a request may have.
func requestHeaders() []string {
	return []string{headerPriority, headerCallback, headerLabels, headerNotBefore, headerDeadline, headerStage, headerDisconnect}
}

// parseTime returns a parser for RFC 3339 or Unix seconds.
func parseTime(to *time.Time) func(string) error {
	return func(value string) error {
		if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
			*to = time.Unix(seconds, 0).UTC()
			return nil
		}
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return errors.New("must be a time such as 2026-11-28T18:30:00+08:00, or Unix seconds")
		}
		*to = at.UTC()
		return nil
	}
}

// parseLabels parses {"name":"value"}, or name=value,name=value with percent-encoding.
func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	if strings.HasPrefix(text, "{") {
		if err := json.Unmarshal([]byte(text), &labels); err != nil {
			return nil, errors.New(`must be an object of strings, such as {"sku":"A-17"}`)
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

// accept validates a request, stages its reference images if requested, and enqueues it.
// It returns the new or existing job, and warnings.
func (a *api) accept(ctx context.Context, c caller, req jobs.Request) (*jobs.Job, []string, error) {
	req, err := mapReferences(req, func(name string) (string, error) {
		if name = strings.TrimSpace(name); strings.HasPrefix(name, ossScheme) {
			return a.resolveUpload(ctx, c, name)
		}
		if strings.HasPrefix(name, dataScheme) {
			return "", &unfitError{"is not a URL of a file: upload the file to this server first, as the SDKs do with a local path"}
		}
		return name, nil
	})
	if err != nil {
		return nil, nil, err
	}
	if req.Stage && req.ID != "" {
		a.reuseStaged(ctx, &req)
	}
	req.Producer = c.Name
	req, warnings, err := req.Normalize()
	if err == nil {
		err = checkHorizon(req, time.Now())
	}
	if err != nil {
		return nil, warnings, err
	}
	if req.ID != "" { // its reference image may have expired, and its model may no longer be worked on
		if existing, err := a.jobFromSidecar(ctx, req); existing != nil || err != nil {
			return existing, warnings, err
		}
	}
	if err := a.checkWorkers(ctx, req); err != nil {
		return nil, warnings, err
	}
	limits := ReferenceLimits(req.Model)
	req, err = mapReferences(req, func(name string) (string, error) {
		if hash, staged := strings.CutPrefix(name, jobs.StagedPrefix); staged {
			return name, a.checkStaged(ctx, c, hash, limits)
		}
		if req.Stage {
			return a.stage(ctx, c, name, limits)
		}
		return name, nil
	})
	if err != nil {
		return nil, warnings, err
	}
	req.Stage = false
	rec, err := a.enqueue(ctx, c, req)
	return rec, warnings, err
}

// maxNotBefore is how far ahead a job may be scheduled: it occupies its place in the queue
// until then. The value is our choice.
const maxNotBefore = 30 * 24 * time.Hour

// checkHorizon refuses a job that is scheduled for too late a time.
func checkHorizon(req jobs.Request, now time.Time) error {
	if !req.NotBefore.After(now.Add(maxNotBefore)) {
		return nil
	}
	return &jobs.InvalidError{Fields: []jobs.FieldError{{
		Field: "not_before", Value: strconv.Quote(req.NotBefore.Format(time.RFC3339)), Allowed: "a time within the next 30 days",
	}}}
}

// reuseStaged sets a repeated request's reference image to the staged one of the
// existing job, because its source may be gone.
func (a *api) reuseStaged(ctx context.Context, req *jobs.Request) {
	rec, err := a.jobs.Get(ctx, req.ID)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = a.cfg.LoadSidecar(ctx, req.ID)
	}
	if err != nil {
		return // a new job
	}
	if existing, err := a.jobs.RequestOf(ctx, rec); err == nil && len(existing.References()) > 0 {
		req.RefImg, req.RefImages, req.MaskImageURL, req.Stage = existing.RefImg, existing.RefImages, existing.MaskImageURL, false
	}
}

// jobFromSidecar returns the job of an idempotency key that is no longer in Redis, from
// its sidecar, or nil if there is none. A key never expires.
func (a *api) jobFromSidecar(ctx context.Context, req jobs.Request) (*jobs.Job, error) {
	if _, err := a.jobs.Get(ctx, req.ID); !errors.Is(err, jobs.ErrNotFound) {
		return nil, nil //nolint:nilnil // enqueue handles it
	}
	rec, err := a.cfg.LoadSidecar(ctx, req.ID)
	switch {
	case err != nil: // no sidecar, or unknown: the worker checks again before it submits
		return nil, nil //nolint:nilnil,nilerr // a new job
	case rec.Digest != req.Digest():
		return nil, jobs.ErrDigestConflict
	}
	return rec, nil
}

// enqueue enqueues a job within the caller's limits. It continues if the client
// disconnects. While Redis is unavailable it retries with the same ID, so that there is
// only one job.
func (a *api) enqueue(ctx context.Context, c caller, req jobs.Request) (*jobs.Job, error) {
	req.Producer = c.Name
	if req.ID == "" {
		req.ID = jobs.NewID()
	}
	if price := a.price(req); c.DailyBudgetMicroYuan > 0 && price > c.DailyBudgetMicroYuan {
		return nil, &jobs.InvalidError{Fields: []jobs.FieldError{{
			Field: "n", Value: strconv.Itoa(max(req.N, 1)), Remedy: fmt.Sprintf("the job may cost %s yuan, and this token's daily budget is %s: request fewer images",
				ledger.FormatYuan(price), ledger.FormatYuan(c.DailyBudgetMicroYuan)),
		}}}
	}
	limits := jobs.Limits{Depth: a.cfg.Depth, Waiting: c.MaxWaiting, Scheduled: (c.MaxWaiting + 1) / 2, DayMicroYuan: c.DailyBudgetMicroYuan, PriceMicroYuan: a.price(req)}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enqueueTimeout)
	defer cancel()
	for failures := 1; ; failures++ {
		rec, err := a.enqueueWithReference(ctx, c, req, limits)
		var invalid *jobs.InvalidError
		var limit *jobs.LimitError
		if err == nil || errors.As(err, &invalid) || errors.As(err, &limit) ||
			errors.Is(err, jobs.ErrDigestConflict) || errors.Is(err, jobs.ErrCorrupt) {
			return rec, err
		}
		if !a.hub.wait(ctx, nil, pollDelay(failures)) {
			return nil, err
		}
	}
}

// enqueueWithReference enqueues a job that uses its staged reference image, if it has one.
func (a *api) enqueueWithReference(ctx context.Context, c caller, req jobs.Request, limits jobs.Limits) (*jobs.Job, error) {
	for _, name := range req.References() {
		if hash, staged := strings.CutPrefix(name, jobs.StagedPrefix); staged {
			if err := a.keepReference(ctx, c, hash, req.ID); err != nil {
				return nil, err
			}
		}
	}
	return a.jobs.EnqueueWithin(ctx, req, limits)
}

// price returns the maximum price of a request, in millionths of a yuan.
func (a *api) price(req jobs.Request) int64 {
	model, err := jobs.LookupModel(req.Model)
	if err != nil {
		return 0
	}
	return a.cfg.Price(model, max(req.N, 1))
}

// synchronousEndpoint refuses requests to DashScope's endpoint for synchronous calls.
func (a *api) synchronousEndpoint(_ http.ResponseWriter, r *request) (any, error) {
	_, _ = io.CopyN(io.Discard, r.Body, maxIgnoredBytes) // most clients read the answer only after they sent the body
	paths := map[string][]string{}
	for _, m := range jobs.Models() {
		paths[pathOf(m)] = append(paths[pathOf(m)], m.Name)
	}
	var texts []string
	for _, p := range dashscope.Protocols() {
		path := servicesPath + p.Path()
		texts = append(texts, path+" ("+strings.Join(paths[path], ", ")+")")
	}
	return nil, newAPIError(http.StatusBadRequest, codeParameter, "url error, please check url! Danqing has asynchronous calls only, as of the SDKs' async_call: send X-DashScope-Async: enable to "+strings.Join(texts, ", "), 0)
}
