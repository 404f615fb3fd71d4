package reconcile

import (
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Output is what a task that has succeeded tells of its request.
type Output struct {
	Task *dashscope.Task
	Size string // of its first image, as in 1024*1024; "" if unknown
}

// images is how many images the task was asked for.
func (c *Output) images() int {
	if m := c.Task.Output.TaskMetrics; m != nil {
		return m.Total
	}
	return len(c.Task.Output.Results)
}

// Matches reports whether the task fits a request, as far as its answer tells: the number
// of images, and the prompt where the model repeats it.
func (c *Output) Matches(images int, prompt string) bool {
	for _, r := range c.Task.Output.Results {
		if r.OrigPrompt != "" && !samePrompt(r.OrigPrompt, prompt) {
			return false
		}
	}
	return c.images() == images
}

// narrow leaves the intents whose requests match. The size counts only if one of them
// asked for it: with a reference image the model may choose another.
func (c *Output) narrow(intents []Intent) []Intent {
	if c == nil {
		return intents
	}
	fitting := slices.DeleteFunc(slices.Clone(intents), func(i Intent) bool { return i.Images > 0 && !c.Matches(i.Images, i.Prompt) })
	if len(fitting) == 0 {
		return intents // its answer is wrong, or it is of none of them: an operator must look
	}
	if slices.ContainsFunc(fitting, func(i Intent) bool { return c.Size != "" && i.Size == c.Size }) {
		fitting = slices.DeleteFunc(fitting, func(i Intent) bool { return i.Size != "" && i.Size != c.Size })
	}
	return fitting
}

// SizesDiffer reports whether the size of a task's image may tell which of the intents
// created it.
func SizesDiffer(intents []Intent) bool {
	return slices.ContainsFunc(intents, func(i Intent) bool { return i.Size != intents[0].Size })
}

// samePrompt compares what the service repeats of a prompt, which it may have cut off.
func samePrompt(repeated, asked string) bool {
	repeated, asked = strings.TrimSpace(repeated), strings.TrimSpace(asked)
	return repeated == asked || len(repeated) > 100 && strings.HasPrefix(asked, repeated)
}
