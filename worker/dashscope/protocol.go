package dashscope

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Protocol is the shape of a model's creates and results, and their path. The zero value means
// [ProtocolText2Image].
type Protocol string

// The protocols. This file has the shapes of all of them, for client, simulator and gateway; the
// gateway reads creates itself, as it names the fields of its errors.
const (
	// ProtocolText2Image has the prompt in input and the images in output.results.
	ProtocolText2Image Protocol = "text2image"
	// ProtocolImage2Image is the same at another path, with input images.
	ProtocolImage2Image Protocol = "image2image"
	// ProtocolImageGeneration has one message of one text and the input images, and the images
	// in output.choices (text-to-image V2 API reference; Python SDK 1.26.2, image_generation.py).
	ProtocolImageGeneration Protocol = "image-generation"
)

// Protocols returns all protocols.
func Protocols() []Protocol {
	return []Protocol{ProtocolText2Image, ProtocolImage2Image, ProtocolImageGeneration}
}

// Path returns the path of the protocol's creates below the base URL.
func (p Protocol) Path() string {
	switch p {
	case ProtocolImage2Image:
		return "/services/aigc/image2image/image-synthesis"
	case ProtocolImageGeneration:
		return "/services/aigc/image-generation/generation"
	case ProtocolText2Image:
	}
	return PathText2Image
}

// Choice is one answer of [ProtocolImageGeneration].
type Choice struct {
	FinishReason string  `json:"finish_reason,omitempty"`
	Message      Message `json:"message"`
}

// Message is a message of [ProtocolImageGeneration].
type Message struct {
	Role    string  `json:"role"`
	Content Content `json:"content"`
}

// Content is the parts of a message.
type Content []Part

// Part is a text or an image of a message. Type is only in answers.
type Part struct {
	Text  string `json:"text,omitempty"`
	Image string `json:"image,omitempty"`
	Type  string `json:"type,omitempty"`
}

// UnmarshalJSON reads the parts that are as documented, and skips all others: a part that is
// none, or a text of another shape beside an image, must not hide an image.
func (c *Content) UnmarshalJSON(data []byte) error {
	var parts []json.RawMessage
	*c = nil
	if json.Unmarshal(data, &parts) != nil {
		return nil //nolint:nilerr // such as a text: it has no image
	}
	for _, raw := range parts {
		var part Part
		if err := json.Unmarshal(raw, &part); err == nil || part.Image != "" {
			*c = append(*c, part)
		}
	}
	return nil
}

// generationBody is the body of a create of [ProtocolImageGeneration].
type generationBody struct {
	Model string `json:"model"`
	Input struct {
		Messages []Message `json:"messages"`
	} `json:"input"`
	Parameters struct {
		NegativePrompt string `json:"negative_prompt,omitempty"`
		Parameters
	} `json:"parameters"`
}

// Encode returns the body of a create in its protocol.
func (r CreateRequest) Encode() ([]byte, error) {
	if r.Protocol != ProtocolImageGeneration {
		return encode(r)
	}
	body := generationBody{Model: r.Model}
	parts := Content{{Text: r.Input.Prompt}}
	for _, image := range r.Input.Images {
		parts = append(parts, Part{Image: image})
	}
	body.Input.Messages = []Message{{Role: "user", Content: parts}}
	body.Parameters.NegativePrompt, body.Parameters.Parameters = r.Input.NegativePrompt, r.Parameters
	return encode(body)
}

// DecodeCreate reads the body of a create. It fails if the body is not JSON of the protocol's
// shape: for [ProtocolImageGeneration] one message with exactly one text.
func DecodeCreate(p Protocol, data []byte) (r CreateRequest, err error) {
	if p != ProtocolImageGeneration {
		err = json.Unmarshal(data, &r)
		r.Protocol = p
		return r, err
	}
	var body generationBody
	if err := json.Unmarshal(data, &body); err != nil {
		return r, err
	}
	r.Protocol, r.Model, r.Parameters = p, body.Model, body.Parameters.Parameters
	r.Input.NegativePrompt = body.Parameters.NegativePrompt
	if len(body.Input.Messages) != 1 {
		return r, fmt.Errorf("%d messages: exactly one is allowed", len(body.Input.Messages))
	}
	texts := 0
	for _, part := range body.Input.Messages[0].Content {
		if part.Image != "" {
			r.Input.Images = append(r.Input.Images, part.Image)
		} else {
			texts++
			r.Input.Prompt = part.Text
		}
	}
	if texts != 1 {
		return r, errors.New("a message must have exactly one text")
	}
	return r, nil
}

// flattenChoices moves the images of Choices to Results, in their order, each once: a repeated one
// must not take the place of another.
func (o *TaskOutput) flattenChoices() {
	for _, choice := range o.Choices {
		for _, part := range choice.Message.Content {
			known := slices.ContainsFunc(o.Results, func(r Result) bool { return r.URL == part.Image })
			if part.Image != "" && !known {
				o.Results = append(o.Results, Result{URL: part.Image})
			}
		}
	}
	o.Choices = nil
}

// InProtocol returns the answer in a protocol's shape. With [ProtocolImageGeneration] the images
// are in Choices, without those that failed: the shape has no place for them.
func (r TaskResponse) InProtocol(p Protocol) TaskResponse {
	if p != ProtocolImageGeneration || r.Output.TaskStatus != StatusSucceeded {
		return r
	}
	var parts Content
	for _, result := range r.Output.Results {
		if result.URL != "" {
			parts = append(parts, Part{Image: result.URL, Type: "image"})
		}
	}
	r.Output.Finished, r.Output.Results = new(true), nil
	r.Output.Choices = []Choice{{FinishReason: "stop", Message: Message{Role: "assistant", Content: parts}}}
	return r
}
