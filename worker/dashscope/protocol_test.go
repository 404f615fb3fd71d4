package dashscope

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Each protocol's create is at its path, in the official SDKs' shape, and is read back as it was.
func TestCreateInEachProtocol(t *testing.T) {
	t.Parallel()
	for protocol, c := range map[Protocol]struct {
		path, body string
		input      Input
		parameters Parameters
	}{
		ProtocolText2Image: {
			"/services/aigc/text2image/image-synthesis",
			`{"model":"m","input":{"prompt":"猫","negative_prompt":"雾","ref_img":"u"},"parameters":{"size":"1024*1024","n":2}}`,
			Input{Prompt: "猫", NegativePrompt: "雾", RefImg: "u"}, Parameters{Size: "1024*1024", N: new(2)},
		},
		ProtocolImage2Image: {
			"/services/aigc/image2image/image-synthesis",
			`{"model":"m","input":{"prompt":"猫","function":"description_edit_with_mask","base_image_url":"u","mask_image_url":"v"},"parameters":{"n":1,"strength":0.5}}`,
			Input{Prompt: "猫", Function: "description_edit_with_mask", BaseImageURL: "u", MaskImageURL: "v"}, Parameters{N: new(1), Strength: new(0.5)},
		},
		ProtocolImageGeneration: {
			"/services/aigc/image-generation/generation",
			`{"model":"m","input":{"messages":[{"role":"user","content":[{"text":"猫"},{"image":"u"},{"image":"v"}]}]},"parameters":{"negative_prompt":"雾","size":"2K","n":4,"enable_sequential":true}}`,
			Input{Prompt: "猫", NegativePrompt: "雾", Images: []string{"u", "v"}}, Parameters{Size: "2K", N: new(4), EnableSequential: new(true)},
		},
	} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, c.path, protocol.Path())
			req := CreateRequest{Protocol: protocol, Model: "m", Input: c.input, Parameters: c.parameters}
			body, err := req.Encode()
			require.NoError(t, err)
			assert.Equal(t, c.body, string(body))
			got, err := DecodeCreate(protocol, body)
			require.NoError(t, err)
			assert.Equal(t, req, got)
		})
	}
}

// image-generation takes one message with exactly one text.
func TestDecodeRefusesOtherMessages(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"model":"m","input":{"messages":[]}}`:                                                      "0 messages: exactly one is allowed",
		`{"model":"m","input":{"messages":[{"content":[{"image":"u"}]}]}}`:                           "a message must have exactly one text",
		`{"model":"m","input":{"messages":[{"content":[{"text":"a"},{"text":"b"}]}]}}`:               "a message must have exactly one text",
		`{"model":"m","input":{"messages":[{"content":[{"text":"a"}]},{"content":[{"text":"b"}]}]}}`: "2 messages: exactly one is allowed",
	} {
		_, err := DecodeCreate(ProtocolImageGeneration, []byte(body))
		assert.EqualError(t, err, want)
	}
}

// The images of choices are results, in their order, over several choices or parts; what is no
// image, and parts of another shape, hide none.
func TestChoicesAreResults(t *testing.T) {
	t.Parallel()
	for name, choices := range map[string]string{
		"one choice":    `[{"finish_reason":"stop","message":{"role":"assistant","content":[{"image":"u","type":"image"},{"image":"v","type":"image"}]}}]`,
		"two choices":   `[{"message":{"content":[{"image":"u"}]}},{"message":{"content":[{"image":"v"}]}}]`,
		"with a text":   `[{"message":{"content":[{"text":"t","type":"text"},{"image":"u"},{"image":"v"}]}}]`,
		"repeated":      `[{"message":{"content":[{"image":"u"},{"image":"u"}]}},{"message":{"content":[{"image":"v"}]}}]`,
		"with oddities": `[{"message":{"content":"text"}},{"message":{"content":[{"image":"u"},7,{"image":{}},{"image":"v"}]}}]`,
	} {
		var task Task
		require.NoError(t, json.Unmarshal([]byte(`{"output":{"task_id":"t","task_status":"SUCCEEDED","finished":true,"choices":`+choices+`}}`), &task.TaskResponse), name)
		task.Output.flattenChoices()
		assert.Equal(t, []Result{{URL: "u"}, {URL: "v"}}, task.Output.Results, name)
		assert.Equal(t, 2, task.ChargedImages(), name)
		assert.False(t, task.IsInconclusive(), name)
	}
	qwen := Task{TaskResponse: TaskResponse{Usage: &Usage{OutputImageCount: 3}}}
	assert.Equal(t, 3, qwen.ChargedImages())
	assert.True(t, qwen.IsInconclusive(), "charged, and no image")
}

// A succeeded task with fewer images than it was charged for, or one that is not finished, may name
// the others later; one whose other images have failed does not.
func TestTaskMayNameMore(t *testing.T) {
	t.Parallel()
	one := []Result{{URL: "u"}}
	for name, c := range map[string]struct {
		task TaskResponse
		want bool
	}{
		"all":          {TaskResponse{Output: TaskOutput{Results: []Result{{URL: "u"}, {URL: "v"}}, Finished: new(false)}, Usage: &Usage{ImageCount: 4}}, false},
		"charged":      {TaskResponse{Output: TaskOutput{Results: one, Finished: new(true)}, Usage: &Usage{ImageCount: 2}}, true},
		"not finished": {TaskResponse{Output: TaskOutput{Results: one, Finished: new(false)}}, true},
		"failed":       {TaskResponse{Output: TaskOutput{Results: append(one, Result{Code: "c"})}, Usage: &Usage{ImageCount: 1}}, false},
		"no usage":     {TaskResponse{Output: TaskOutput{Results: one}}, false},
	} {
		assert.Equal(t, c.want, (&Task{TaskResponse: c.task}).MayNameMore(2), name)
	}
}

// A server answers in the protocol's shape, without the images that failed.
func TestAnswerInEachProtocol(t *testing.T) {
	t.Parallel()
	answer := TaskResponse{Output: TaskOutput{TaskID: "t", TaskStatus: StatusSucceeded, Results: []Result{{URL: "u"}, {Code: "c"}, {URL: "v"}}}, Usage: &Usage{ImageCount: 2}}
	assert.Equal(t, answer, answer.InProtocol(ProtocolImage2Image))
	encoded, err := json.Marshal(answer.InProtocol(ProtocolImageGeneration))
	require.NoError(t, err)
	assert.JSONEq(t, `{"output":{"task_id":"t","task_status":"SUCCEEDED","finished":true,"choices":[{"finish_reason":"stop","message":{"role":"assistant","content":[{"image":"u","type":"image"},{"image":"v","type":"image"}]}}]},"usage":{"image_count":2}}`, string(encoded))
	pending := TaskResponse{Output: TaskOutput{TaskID: "t", TaskStatus: StatusPending}}
	assert.Equal(t, pending, pending.InProtocol(ProtocolImageGeneration))
}

// A key of a Token Plan is refused before anything is sent.
func TestTokenPlanKeysAreRefused(t *testing.T) {
	t.Parallel()
	_, err := New(Config{APIKey: "sk-sp-secret"})
	require.ErrorContains(t, err, "is a key of a Token Plan (sk-sp-…): its terms forbid automated use")
	assert.NotContains(t, err.Error(), "secret")
}
