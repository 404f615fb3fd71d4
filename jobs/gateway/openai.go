package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

const (
	// defaultOpenAIWait is how long a request waits for its images by default.
	defaultOpenAIWait = 5 * time.Minute
	codeTimeout       = "timeout"
)

// openAIFields are the fields of a request: OpenAI's, the models', and Danqing's.
func openAIFields() []string {
	fields := append(ignoredOpenAIFields(),
		"model", "prompt", "n", "size", "response_format", "output_format", "stream", "style",
		"negative_prompt", "seed", "ref_img", "ref_strength", "ref_mode", "prompt_extend", "watermark",
		"ref_images", "mask_image_url", "function",
		"priority", "labels", "callback", "not_before", "deadline", "stage")
	for _, m := range jobs.Models() {
		options := m.Options
		for _, f := range m.Functions {
			options = append(options, f.Options...)
		}
		for _, o := range options {
			if !slices.Contains(fields, o.Name) {
				fields = append(fields, o.Name)
			}
		}
	}
	return fields
}

// ignoredOpenAIFields are OpenAI's fields that no DashScope model has. They are accepted
// and ignored, since tools send them by default.
func ignoredOpenAIFields() []string {
	return []string{"user", "quality", "background", "moderation", "output_compression", "partial_images", "input_fidelity"}
}

func (a *api) handleOpenAI(mux *http.ServeMux) {
	a.route(mux, encodeOpenAIError, "/v1/images/generations", methods{http.MethodPost: a.generations})
	a.route(mux, encodeOpenAIError, "/v1/images/edits", methods{http.MethodPost: a.edits})
	a.route(mux, encodeOpenAIError, "/v1/images/variations", methods{http.MethodPost: a.variations})
	a.route(mux, encodeOpenAIError, "/v1/models", methods{http.MethodGet: a.models})
	a.route(mux, encodeOpenAIError, "/v1/models/{id}", methods{http.MethodGet: a.model})
	a.route(mux, encodeOpenAIError, "/v1/", nil)
}

// generation is a request of OpenAI's API.
type generation struct {
	request jobs.Request
	encoded bool     // the images are wanted in base64
	stream  bool     // as server-sent events
	ignored []string // the fields that change nothing
	event   string   // the event of an image, with stream
	alias   string   // the client's name of the model, if it is an alias
	// identity tells the request from others: its body, or what stands for it.
	identity []byte
	names    fieldNames
	// chooseModel is set if the client named no model, and the gateway chose one.
	chooseModel bool
}

// ParseOpenAI parses the body of a request for images of OpenAI's API, for other ways to send
// one. The result is not normalized. ignored are the names of the fields that change nothing,
// except those that say how an answer is sent.
func ParseOpenAI(body []byte) (req jobs.Request, ignored []string, err error) {
	g, err := parseBody(body, nil)
	return g.request, g.ignored, err
}

// parseGeneration parses a request for a model that exists.
func parseGeneration(body []byte, aliases map[string]string) (generation, error) {
	g, err := parseBody(body, aliases)
	if err == nil && g.request.Model != "" {
		_, err = findModel(g.request.Model)
	}
	return g, err
}

func parseBody(body []byte, aliases map[string]string) (generation, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &fields); err != nil {
		return generation{}, newAPIError(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is not a JSON object: %v", err), 0)
	}
	g, err := parseFields(fields, aliases)
	g.identity, g.event = body, "image_generation.completed"
	return g, err
}

// resolveModel replaces an alias in the fields of a request, and returns it; "" if the model has
// another name.
func resolveModel(fields map[string]json.RawMessage, aliases map[string]string) (alias string) {
	if json.Unmarshal(fields["model"], &alias) != nil {
		return ""
	}
	alias = strings.TrimSpace(alias)
	name, known := aliases[alias]
	if !known {
		return ""
	}
	fields["model"], _ = json.Marshal(name) // a string
	return alias
}

// isGPTImage reports whether a model's name is of OpenAI's GPT image models, whose clients expect
// images in base64, and how they were made.
func isGPTImage(name string) bool {
	return strings.HasPrefix(name, "gpt-image-") || strings.HasPrefix(name, "chatgpt-image-")
}

func parseFields(fields map[string]json.RawMessage, aliases map[string]string) (generation, error) {
	var g generation
	g.alias = resolveModel(fields, aliases)
	for name := range fields {
		if !slices.Contains(openAIFields(), name) {
			shown := name[:min(len(name), 64)]
			return g, &jobs.InvalidError{Fields: []jobs.FieldError{{Field: shown, Value: "unknown", Allowed: strings.Join(openAIFields(), ", ")}}}
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
		if g.encoded = isGPTImage(g.alias); g.encoded && format != "" {
			g.ignored = append(g.ignored, "response_format")
		}
	default:
		return g, invalidField("response_format", format, "url, b64_json")
	}
	if format := text("output_format"); format != "" && format != "png" {
		return g, invalidField("output_format", format, "png")
	}
	switch stream := string(fields["stream"]); stream {
	case "true":
		g.stream = true
	case "", "false", "null":
	default:
		return g, invalidField("stream", stream, "true, false")
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
	g.request, more, err = jobs.ParseServiceRequest(rest)
	g.ignored = append(g.ignored, more...)
	return g, err
}

// openAIModel is a model in the format of OpenAI's API.
type openAIModel struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func newOpenAIModel(name string) openAIModel { return openAIModel{name, "model", 0, "alibaba"} }

func (a *api) models(_ http.ResponseWriter, r *request) (any, error) {
	list := struct {
		Object string        `json:"object"`
		Data   []openAIModel `json:"data"`
	}{Object: "list", Data: []openAIModel{}}
	worked := map[string]bool{}
	for _, m := range a.workedModels(r.Context(), recheckWorkers) {
		worked[m.Name] = true
		list.Data = append(list.Data, newOpenAIModel(m.Name))
	}
	for _, alias := range slices.Sorted(maps.Keys(a.cfg.Aliases)) {
		if worked[a.cfg.Aliases[alias]] {
			list.Data = append(list.Data, newOpenAIModel(alias))
		}
	}
	return list, nil
}

func (a *api) model(_ http.ResponseWriter, r *request) (any, error) {
	asked := r.PathValue("id")
	name, known := a.cfg.Aliases[asked]
	if !known {
		name = asked
	}
	m, err := findModel(name)
	if err == nil && !a.isWorked(r.Context(), m.Name) {
		err = a.modelNotWorked(r.Context(), m.Name)
	}
	if err != nil {
		return nil, err
	}
	return newOpenAIModel(asked), nil
}

// findModel is [jobs.LookupModel] with OpenAI's error.
func findModel(name string) (jobs.Model, error) {
	m, err := jobs.LookupModel(name)
	if err == nil {
		return m, nil
	}
	e := newAPIError(http.StatusNotFound, codeNoModel, err.Error()+"; or the operator gives a model this name by DANQING_MODEL_ALIASES", 0)
	e.param = "model"
	return m, e
}
