package input

import (
	"errors"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/gateway"
)

// openAIURL is the path of the requests for images in OpenAI's Batch API.
const openAIURL = "/v1/images/generations"

// openAI returns the object of a line of OpenAI's Batch API, read as the gateway reads its
// body. What has no effect is noted.
func (s *Source) openAI(line object) (object, []jobs.FieldError) {
	wrong := object{{"prompt", quote("-")}} // the problems are of other fields
	problem := func(field, value, allowed string) (object, []jobs.FieldError) {
		return wrong, []jobs.FieldError{{Field: field, Value: value, Allowed: allowed}}
	}
	if method := idText(line.get("method")); method != "" && !strings.EqualFold(method, "POST") {
		return problem("method", showText(method), "POST")
	}
	if url := idText(line.get("url")); url != "" && strings.TrimSuffix(url, "/") != openAIURL {
		return problem("url", showText(url), openAIURL)
	}
	request, ignored, err := gateway.ParseOpenAI(line.get("body"))
	var invalid *jobs.InvalidError
	if errors.As(err, &invalid) {
		return wrong, invalid.Fields
	}
	for _, name := range ignored {
		s.ignored(name)
	}
	var fields object
	if err == nil {
		var encoded []byte
		if encoded, err = compactjson.Marshal(request); err == nil {
			fields, err = parseObject(encoded)
		}
	}
	if err != nil {
		return wrong, []jobs.FieldError{{Field: "body", Value: showJSON(line.get("body")), Err: err}}
	}
	made := object{}
	if id := line.get("custom_id"); id != nil {
		made = append(made, member{"id", id})
	}
	for _, m := range line {
		switch m.name {
		case "custom_id", "method", "url", "body":
		default:
			made = append(made, m)
		}
	}
	return append(made, fields...), nil
}

// ignored notes a field that has no effect.
func (s *Source) ignored(name string) {
	if s.without == nil {
		s.without = map[string]int{}
	}
	s.without[name]++
}
