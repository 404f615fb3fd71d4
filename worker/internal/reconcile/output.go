package reconcile

import (
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Output is what the reply of a succeeded task shows of its request.
type Output struct {
	Task *dashscope.Task
	Size string // of the first image in pixels, as in 1024*1024; "" if unknown
}

// images returns the number of images that the task was to make.
func (c *Output) images() int {
	if m := c.Task.Output.TaskMetrics; m != nil {
		return m.Total
	}
	return len(c.Task.Output.Results)
}

// Fits reports whether the task's output fits an intent's request: the number of images, and the
// prompt where the model repeats it.
func (c *Output) Fits(i Intent) bool {
	for _, r := range c.Task.Output.Results {
		if r.OrigPrompt != "" && !samePrompt(r.OrigPrompt, i.Prompt) {
			return false
		}
	}
	return c.images() == i.Images || i.Fewer && c.images() < i.Images
}

// narrow returns the intents whose requests match the output; all of them if c is nil or
// none matches. The size counts only if one of the intents asked for it: with a reference
// image the model may choose another size.
func (c *Output) narrow(intents []Intent) []Intent {
	if c == nil {
		return intents
	}
	fitting := slices.DeleteFunc(slices.Clone(intents), func(i Intent) bool { return i.Images > 0 && !c.Fits(i) })
	if len(fitting) == 0 {
		return intents // wrong output, or another creator: an operator must decide
	}
	if slices.ContainsFunc(fitting, func(i Intent) bool { return c.Size != "" && i.Size == c.Size }) {
		fitting = slices.DeleteFunc(fitting, func(i Intent) bool { return i.Size != "" && i.Size != c.Size })
	}
	return fitting
}

// SizesDiffer reports whether the intents ask for different sizes, so that the image size
// may identify the creator.
func SizesDiffer(intents []Intent) bool {
	return slices.ContainsFunc(intents, func(i Intent) bool { return i.Size != intents[0].Size })
}

// samePrompt compares a prompt with the service's repetition of it, which may be truncated.
func samePrompt(repeated, asked string) bool {
	repeated, asked = strings.TrimSpace(repeated), strings.TrimSpace(asked)
	return repeated == asked || len(repeated) > 100 && strings.HasPrefix(asked, repeated)
}
