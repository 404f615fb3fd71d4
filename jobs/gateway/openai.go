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
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// openAIWait is how long a request waits for its images unless [API] says.
	openAIWait = 5 * time.Minute
	// marksPrefix begins the keys that tell which job a request's repeat joins, and
	// marksLifetime is how long: clients repeat within minutes.
	marksPrefix   = "danqing:openai:"
	marksLifetime = 24 * time.Hour
	codeTimeout   = "timeout"
)

// openAIFields are those of a request: OpenAI's own, the model's, and ours.
func openAIFields() []string {
	return append(openAIOnly(),
		"model", "prompt", "n", "size", "response_format", "style",
		"negative_prompt", "seed", "ref_img", "ref_strength", "ref_mode", "prompt_extend", "watermark",
		"priority", "labels", "callback", "not_before", "deadline", "stage")
}

// openAIOnly are fields of OpenAI's that no model here has; they are accepted, since
// tools send them unasked, and change nothing.
func openAIOnly() []string {
	return []string{"user", "quality", "background", "moderation", "output_format", "output_compression", "partial_images", "stream"}
}

func (a *api) handleOpenAI(mux *http.ServeMux) {
	a.route(mux, openAIShape, "/v1/images/generations", methods{http.MethodPost: a.generations})
	a.route(mux, openAIShape, "/v1/models", methods{http.MethodGet: a.models})
	a.route(mux, openAIShape, "/v1/models/{id}", methods{http.MethodGet: a.oneModel})
	a.route(mux, openAIShape, "/v1/", nil)
}

// generations makes images while the client waits, as OpenAI's API does. An absent n is
// 1, as there.
//
// Clients of that API repeat a request by themselves, and there is no telling such a
// repeat from a new wish but by time: it joins the job of the same body from the same
// token until the answer to one of them has been sent whole.
func (a *api) generations(w http.ResponseWriter, r *request) (any, error) {
	body, err := readBody(w, r.Request, createBody)
	if err != nil {
		return nil, err
	}
	req, encoded, err := parseGeneration(body)
	if err != nil {
		return nil, err
	}
	if err := fromHeaders(&req, r.Header, r.caller); err != nil {
		return nil, err
	}
	mark, fresh := "", false
	if req.ID == "" {
		if mark, req.ID, fresh, err = a.mark(r, body); err != nil {
			return nil, err
		}
	}
	rec, _, err := a.accept(r.Context(), r.caller, req)
	if err != nil {
		if fresh && refuseFor(err).status < http.StatusInternalServerError { // certainly not queued
			a.unmark(mark, req.ID)
		}
		return nil, err
	}
	w.Header().Set("X-Danqing-Job", rec.ID)
	most := a.cfg.OpenAIWait
	if most == 0 {
		most = openAIWait
	}
	ctx, cancel := context.WithTimeout(r.Context(), most)
	defer cancel()
	rec, err = a.await(ctx, r.caller, req.ID, func(rec *jobs.Record) bool { return rec.State.Final() })
	if rec != nil && rec.Simulated {
		w.Header().Set(dashscope.HeaderSimulated, "true")
	}
	switch {
	case errors.Is(err, jobs.ErrNotFound):
		return nil, err
	case err != nil || !rec.State.Final():
		return nil, refuse(http.StatusGatewayTimeout, codeTimeout, "the images are not made yet; the job goes on: the same request joins it", 0)
	case rec.State != jobs.StateSucceeded:
		writeAnswer(w, http.StatusBadRequest, openAIShape(r.id, jobFailed(rec)))
	default:
		err := a.sendImages(w, r, rec, encoded)
		if errors.Is(err, storage.ErrNotExist) { // for good: a repeat of it would fail as well
			a.log.Warn("image is not in the bucket", "job_id", rec.ID, "err", err)
			gone := refuse(http.StatusGone, "image_removed", "the images were made, and have been removed from the bucket: ask again for new ones", 0)
			writeAnswer(w, gone.status, openAIShape(r.id, gone))
		} else if err != nil {
			return nil, err
		}
	}
	// Whoever has not got it whole may ask once more.
	if http.NewResponseController(w).Flush() == nil && r.Context().Err() == nil {
		a.unmark(mark, rec.ID)
	}
	return nil, nil //nolint:nilnil // it is answered
}

// parseGeneration reads a request, and whether it wants the images themselves.
func parseGeneration(body []byte) (req jobs.Request, encoded bool, err error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &fields); err != nil {
		return req, false, refuse(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is no JSON object: %v", err), 0)
	}
	for name := range fields {
		if !slices.Contains(openAIFields(), name) {
			shown := name[:min(len(name), 64)]
			return req, false, &jobs.InvalidError{Fields: []jobs.FieldError{{Field: shown, Value: "is given", Allowed: strings.Join(openAIFields(), ", ")}}}
		}
	}
	text := func(name string) string {
		var s string
		if err := json.Unmarshal(fields[name], &s); err != nil {
			return string(fields[name]) // which is none of the values that are looked for
		}
		return s
	}
	switch format := text("response_format"); format {
	case "b64_json":
		encoded = true
	case "", "url":
	default:
		return req, false, invalid("response_format", format, "url, b64_json")
	}
	if format := text("output_format"); format != "" && format != "png" {
		return req, false, invalid("output_format", format, "png")
	}
	if string(fields["stream"]) == "true" {
		return req, false, invalid("stream", "true", "false: the images come at once")
	}
	if style := text("style"); style == "vivid" || style == "natural" { // OpenAI's own
		delete(fields, "style")
	}
	if text("size") == "auto" {
		delete(fields, "size")
	}
	for _, name := range append(openAIOnly(), "response_format") {
		delete(fields, name)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return req, false, fmt.Errorf("read request: %w", err)
	}
	req, err = jobs.ParseRequest(rest)
	if err == nil && req.Model != "" {
		_, err = findModel(req.Model)
	}
	return req, encoded, err
}

// mark names the job of a request: that of an earlier one with the same body, whose
// answer was not sent whole, or a new one.
func (a *api) mark(r *request, body []byte) (mark, id string, fresh bool, err error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%q", r.caller.Name) // hashes do not fail
	for _, name := range requestHeaders() {
		_, _ = fmt.Fprintf(sum, "%q", r.Header.Get(name))
	}
	_, _ = sum.Write(body)
	mark, id = marksPrefix+hex.EncodeToString(sum.Sum(nil)), jobs.NewID()
	for range 3 { // the mark may vanish in between
		_, err = a.redis.SetArgs(r.Context(), mark, id, redis.SetArgs{Mode: "NX", TTL: marksLifetime}).Result()
		if err == nil {
			return mark, id, true, nil
		}
		if !errors.Is(err, redis.Nil) {
			break
		}
		before, err := a.redis.Get(r.Context(), mark).Result()
		if err == nil {
			return mark, before, false, nil
		}
	}
	return "", "", false, fmt.Errorf("mark request: %w", err)
}

var unmarkScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`)

// unmark lets the next request of the same body be a new one.
func (a *api) unmark(mark, id string) {
	if mark == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readMost)
	defer cancel()
	if err := unmarkScript.Run(ctx, a.redis, []string{mark}, id).Err(); err != nil {
		a.log.Warn("request not forgotten: a repeat gets the same images", "job_id", id, "err", err)
	}
}

// jobFailed tells of a job that has no images, so that no client repeats it.
func jobFailed(rec *jobs.Record) *refusal {
	code := rec.Code
	if strings.HasPrefix(code, "DataInspectionFailed") || code == "IPInfringementSuspect" {
		code = "content_policy_violation"
	}
	return refuse(http.StatusBadRequest, code, rec.Message, 0)
}

// sendImages answers with the images that a job has: links, or the bytes in base64, which
// go from the bucket to the client without being kept.
func (a *api) sendImages(w http.ResponseWriter, r *request, rec *jobs.Record, encoded bool) error {
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
	return a.sendEncoded(w, r, rec, images, prompts)
}

// sendEncoded answers with images in base64. The length is said before, so that the
// answer is whole with its last byte and not only when its request has ended: by then it
// is forgotten which job a repeat joins.
func (a *api) sendEncoded(w http.ResponseWriter, r *request, rec *jobs.Record, images []jobs.Image, prompts []string) error {
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
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
		if err := sendBase64(w, before[i], body); err != nil {
			a.log.Warn("image not sent whole", "job_id", rec.ID, "key", images[i].Key, "err", err)
			panic(http.ErrAbortHandler) // half an answer must not look like one
		}
	}
	_, _ = io.WriteString(w, end) // see Flush
	return nil
}

// imageEnd follows an image's base64.
const imageEnd = `"}`

func sendBase64(w io.Writer, before string, body io.Reader) error {
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

// openAIModel is a model as OpenAI's API lists it.
type openAIModel struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func shownModel(m jobs.Model) openAIModel { return openAIModel{m.Name, "model", 0, "alibaba"} }

func (*api) models(http.ResponseWriter, *request) (any, error) {
	list := struct {
		Object string        `json:"object"`
		Data   []openAIModel `json:"data"`
	}{Object: "list"}
	for _, m := range jobs.Models() {
		list.Data = append(list.Data, shownModel(m))
	}
	return list, nil
}

func (*api) oneModel(_ http.ResponseWriter, r *request) (any, error) {
	m, err := findModel(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return shownModel(m), nil
}

// findModel is [jobs.LookupModel] with OpenAI's own refusal.
func findModel(name string) (jobs.Model, error) {
	m, err := jobs.LookupModel(name)
	if err == nil {
		return m, nil
	}
	e := refuse(http.StatusNotFound, "model_not_found", err.Error(), 0)
	e.param = "model"
	return m, e
}
