package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// defaultOpenAIWait is how long a request waits for its images by default.
	defaultOpenAIWait = 5 * time.Minute
	// dedupeLifetime is how long a repeated request joins its job. Clients retry within
	// minutes.
	dedupeLifetime = 24 * time.Hour
	codeTimeout    = "timeout"
)

// openAIFields are the fields of a request: OpenAI's, the models', and Danqing's.
func openAIFields() []string {
	return append(ignoredOpenAIFields(),
		"model", "prompt", "n", "size", "response_format", "output_format", "stream", "style",
		"negative_prompt", "seed", "ref_img", "ref_strength", "ref_mode", "prompt_extend", "watermark",
		"priority", "labels", "callback", "not_before", "deadline", "stage")
}

// ignoredOpenAIFields are OpenAI's fields that no DashScope model has. They are accepted
// and ignored, since tools send them by default.
func ignoredOpenAIFields() []string {
	return []string{"user", "quality", "background", "moderation", "output_compression", "partial_images"}
}

func (a *api) handleOpenAI(mux *http.ServeMux) {
	a.route(mux, encodeOpenAIError, "/v1/images/generations", methods{http.MethodPost: a.generations})
	a.route(mux, encodeOpenAIError, "/v1/models", methods{http.MethodGet: a.models})
	a.route(mux, encodeOpenAIError, "/v1/models/{id}", methods{http.MethodGet: a.model})
	a.route(mux, encodeOpenAIError, "/v1/", nil)
}

// generations makes images while the client waits, like OpenAI's API. The default of n
// is 1, as there.
//
// Clients of that API retry by themselves, and a retry looks like a new request. So a
// request joins the job of an earlier one with the same body and token, until a complete
// answer to one of them was sent.
func (a *api) generations(w http.ResponseWriter, r *request) (any, error) {
	body, err := readBody(w, r.Request, maxCreateBytes)
	if err != nil {
		return nil, err
	}
	asked, err := parseGeneration(body)
	if err != nil {
		return nil, err
	}
	setIgnored(w.Header(), asked.ignored)
	req := asked.request
	if err := applyHeaders(&req, r.Header, r.caller); err != nil {
		return nil, err
	}
	dedupeKey, isNew := "", false
	if req.ID == "" {
		if dedupeKey, req.ID, isNew, err = a.claimDedupe(r, body); err != nil {
			return nil, err
		}
	}
	rec, _, err := a.accept(r.Context(), r.caller, req)
	if err != nil {
		if isNew && toAPIError(err).status < http.StatusInternalServerError { // certainly not queued
			a.releaseDedupe(dedupeKey, req.ID)
		}
		return nil, err
	}
	w.Header().Set("X-Danqing-Job", rec.ID)
	timeout := a.cfg.OpenAIWait
	if timeout == 0 {
		timeout = defaultOpenAIWait
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	rec, err = a.waitFor(ctx, r.caller, req.ID, func(rec *jobs.Job) bool { return rec.State.Final() })
	if rec != nil && rec.Simulated {
		w.Header().Set(dashscope.HeaderSimulated, "true")
	}
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		return nil, err
	case err != nil || !rec.State.Final():
		return nil, newAPIError(http.StatusGatewayTimeout, codeTimeout, "the images are not ready yet, and the job continues: send the same request again to join it", 0)
	case rec.State != jobs.StateSucceeded:
		writeAnswer(w, http.StatusBadRequest, encodeOpenAIError(r.id, jobError(rec)))
	default:
		err := a.sendImages(w, r, rec, asked.encoded)
		if errors.Is(err, storage.ErrNotExist) { // permanent: a retry would fail as well
			a.log.Warn("image missing from the bucket", "job_id", rec.ID, "err", err)
			gone := newAPIError(http.StatusGone, "image_removed", "the images were deleted from the bucket: send the request again for new ones", 0)
			writeAnswer(w, gone.status, encodeOpenAIError(r.id, gone))
		} else if err != nil {
			return nil, err
		}
	}
	// The key stays if the client may not have the complete answer, for its retry.
	if http.NewResponseController(w).Flush() == nil && r.Context().Err() == nil {
		a.releaseDedupe(dedupeKey, rec.ID)
	}
	return nil, nil //nolint:nilnil // already answered
}

// generation is a request of OpenAI's API.
type generation struct {
	request jobs.Request
	encoded bool     // the images are wanted in base64
	ignored []string // the fields that change nothing
}

// parseGeneration parses a request.
func parseGeneration(body []byte) (generation, error) {
	var g generation
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &fields); err != nil {
		return g, newAPIError(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is not a JSON object: %v", err), 0)
	}
	for name := range fields {
		if !slices.Contains(openAIFields(), name) {
			shown := name[:min(len(name), 64)]
			return g, &jobs.InvalidError{Fields: []jobs.FieldError{{Field: shown, Value: "is given", Allowed: strings.Join(openAIFields(), ", ")}}}
		}
	}
	text := func(name string) string {
		var s string
		if err := json.Unmarshal(fields[name], &s); err != nil {
			return string(fields[name]) // equals no valid value
		}
		return s
	}
	switch format := text("response_format"); format {
	case "b64_json":
		g.encoded = true
	case "", "url":
	default:
		return g, invalidField("response_format", format, "url, b64_json")
	}
	if format := text("output_format"); format != "" && format != "png" {
		return g, invalidField("output_format", format, "png")
	}
	if string(fields["stream"]) == "true" {
		return g, invalidField("stream", "true", "false: the images are sent together")
	}
	drop := ignoredOpenAIFields()
	if style := text("style"); style == "vivid" || style == "natural" { // OpenAI's own
		drop = append(drop, "style")
	}
	if text("size") == "auto" {
		delete(fields, "size")
	}
	for _, name := range drop {
		if value, given := fields[name]; given && string(value) != "null" {
			g.ignored = append(g.ignored, name)
		}
		delete(fields, name)
	}
	for _, name := range []string{"response_format", "output_format", "stream"} {
		delete(fields, name)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return g, fmt.Errorf("read request: %w", err)
	}
	var more []string
	if g.request, more, err = jobs.ParseServiceRequest(rest); err == nil && g.request.Model != "" {
		_, err = findModel(g.request.Model)
	}
	g.ignored = append(g.ignored, more...)
	return g, err
}

// claimDedupe returns the job ID for a request: that of an earlier one with the same body
// whose answer was not sent completely, or a new ID.
func (a *api) claimDedupe(r *request, body []byte) (dedupeKey, id string, isNew bool, err error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%q", r.caller.Name) // hashes do not fail
	for _, name := range requestHeaders() {
		_, _ = fmt.Fprintf(sum, "%q", r.Header.Get(name))
	}
	_, _ = sum.Write(body)
	dedupeKey, id = rediskey.Dedupe(hex.EncodeToString(sum.Sum(nil))), jobs.NewID()
	for range 3 { // the key may be released between the two commands
		_, err = a.redis.SetArgs(r.Context(), dedupeKey, id, redis.SetArgs{Mode: "NX", TTL: dedupeLifetime}).Result()
		if err == nil {
			return dedupeKey, id, true, nil
		}
		if !errors.Is(err, redis.Nil) {
			break
		}
		before, err := a.redis.Get(r.Context(), dedupeKey).Result()
		if err == nil {
			return dedupeKey, before, false, nil
		}
	}
	return "", "", false, fmt.Errorf("claim dedupe key: %w", err)
}

var releaseDedupeScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`)

// releaseDedupe deletes a dedupe key, so that the next request with the same body creates
// a new job.
func (a *api) releaseDedupe(dedupeKey, id string) {
	if dedupeKey == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	if err := releaseDedupeScript.Run(ctx, a.redis, []string{dedupeKey}, id).Err(); err != nil {
		a.log.Warn("dedupe key not released: a repeated request gets the same images", "job_id", id, "err", err)
	}
}

// jobError is the error for a job without images. Its status keeps clients from retrying.
func jobError(rec *jobs.Job) *apiError {
	code := rec.Code
	if strings.HasPrefix(code, "DataInspectionFailed") || code == "IPInfringementSuspect" {
		code = "content_policy_violation"
	}
	return newAPIError(http.StatusBadRequest, code, rec.Message, 0)
}

// sendImages answers with a job's images: links, or the bytes in base64, which are streamed
// from the bucket.
func (a *api) sendImages(w http.ResponseWriter, r *request, rec *jobs.Job, encoded bool) error {
	type datum struct {
		URL           string `json:"url,omitempty"`
		RevisedPrompt string `json:"revised_prompt,omitempty"`
	}
	var data []datum
	var images []jobs.Image
	for _, image := range rec.Images {
		if image.Key == "" {
			continue
		}
		d := datum{RevisedPrompt: image.ActualPrompt}
		if !encoded {
			var err error
			if d.URL, err = a.imageURL(r.Request, rec, image); err != nil {
				return err
			}
		}
		data, images = append(data, d), append(images, image)
	}
	answer := struct {
		Created int64   `json:"created"`
		Data    []datum `json:"data"`
	}{rec.FinishedAt.Unix(), data}
	if !encoded {
		writeAnswer(w, http.StatusOK, answer)
		return nil
	}
	prompts := make([]string, len(data))
	for i, d := range data {
		prompts[i] = d.RevisedPrompt
	}
	return a.sendBase64Images(w, r, rec, images, prompts)
}

// sendBase64Images answers with images in base64. It sets the Content-Length, so that the
// client has the complete answer with its last byte, and not only after the handler has
// returned: by then the dedupe key is released.
func (a *api) sendBase64Images(w http.ResponseWriter, r *request, rec *jobs.Job, images []jobs.Image, prompts []string) error {
	const end = "]}\n"
	var bodies []io.ReadCloser
	defer func() {
		for _, body := range bodies {
			_ = body.Close() // read only
		}
	}()
	before := make([]string, len(images))
	length := int64(len(end))
	for i, image := range images {
		body, info, err := a.cfg.Bucket.Get(r.Context(), image.Key)
		if err != nil {
			return err
		}
		bodies = append(bodies, body)
		prompt, err := json.Marshal(prompts[i])
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		before[i] = fmt.Sprintf(`,{"revised_prompt":%s,"b64_json":"`, prompt)
		if i == 0 {
			before[i] = fmt.Sprintf(`{"created":%d,"data":[%s`, rec.FinishedAt.Unix(), before[i][1:])
		}
		length += int64(len(before[i])+len(imageEnd)) + (info.Bytes+2)/3*4
	}
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	for i, body := range bodies {
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported in tests
		if err := writeBase64(w, before[i], body); err != nil {
			a.log.Warn("image response aborted", "job_id", rec.ID, "key", images[i].Key, "err", err)
			panic(http.ErrAbortHandler) // a truncated answer must not look complete
		}
	}
	_, _ = io.WriteString(w, end) // the caller checks Flush
	return nil
}

// imageEnd follows an image's base64.
const imageEnd = `"}`

func writeBase64(w io.Writer, before string, body io.Reader) error {
	if _, err := io.WriteString(w, before); err != nil {
		return err
	}
	enc := base64.NewEncoder(base64.StdEncoding, w)
	if _, err := io.Copy(enc, body); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(w, imageEnd)
	return err
}

// openAIModel is a model in the format of OpenAI's API.
type openAIModel struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func newOpenAIModel(m jobs.Model) openAIModel { return openAIModel{m.Name, "model", 0, "alibaba"} }

func (a *api) models(_ http.ResponseWriter, r *request) (any, error) {
	list := struct {
		Object string        `json:"object"`
		Data   []openAIModel `json:"data"`
	}{Object: "list", Data: []openAIModel{}}
	for _, m := range a.workedModels(r.Context(), recheckWorkers) {
		list.Data = append(list.Data, newOpenAIModel(m))
	}
	return list, nil
}

func (a *api) model(_ http.ResponseWriter, r *request) (any, error) {
	m, err := findModel(r.PathValue("id"))
	if err == nil && !a.isWorked(r.Context(), m.Name) {
		err = a.modelNotWorked(r.Context(), m.Name)
	}
	if err != nil {
		return nil, err
	}
	return newOpenAIModel(m), nil
}

// findModel is [jobs.LookupModel] with OpenAI's error.
func findModel(name string) (jobs.Model, error) {
	m, err := jobs.LookupModel(name)
	if err == nil {
		return m, nil
	}
	e := newAPIError(http.StatusNotFound, codeNoModel, err.Error(), 0)
	e.param = "model"
	return m, e
}
