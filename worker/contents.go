package worker

import (
	"context"
	"fmt"
	"slices"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// contents are what a task that has succeeded tells of its request.
type contents struct {
	task *dashscope.Task
	size string // of its first image, "" if that was not looked at or could not be
}

// images is how many images the task was asked for.
func (c *contents) images() int {
	if m := c.task.Output.TaskMetrics; m != nil {
		return m.Total
	}
	return len(c.task.Output.Results)
}

// fit reports whether the task has made what was asked for, as far as its answer tells:
// so many images, and of that prompt where the model repeats it.
func (c *contents) fit(images int, prompt string) bool {
	for _, r := range c.task.Output.Results {
		if r.OrigPrompt != "" && !samePrompt(r.OrigPrompt, prompt) {
			return false
		}
	}
	return c.images() == images
}

// narrow leaves the intents whose requests the task fits. A size tells only if it is one
// that was asked for: with a reference image it may be another.
func (c *contents) narrow(intents []intent) []intent {
	if c == nil {
		return intents
	}
	fitting := slices.DeleteFunc(slices.Clone(intents), func(i intent) bool { return i.Images > 0 && !c.fit(i.Images, i.Prompt) })
	if slices.ContainsFunc(fitting, func(i intent) bool { return c.size != "" && i.Size == c.size }) {
		fitting = slices.DeleteFunc(fitting, func(i intent) bool { return i.Size != c.size })
	}
	return fitting
}

// inspect asks what those tasks of a listing have made that more than one job's create
// may have made. known keeps what was asked already: a task that has ended does not
// change.
func (l *lane) inspectContested(ctx context.Context, view *snapshot, known map[string]*contents) error {
	view.contents = known
	for _, task := range view.unowned {
		makers := view.creators(task, l.timing())
		several := slices.ContainsFunc(makers, func(i intent) bool { return i.JobID != makers[0].JobID })
		if !several || task.Status != dashscope.StatusSucceeded {
			continue
		}
		if known[task.TaskID] == nil {
			if err := l.ask(ctx); err != nil {
				return err
			}
			answer, err := l.account.remote.Query(ctx, task.TaskID)
			if err != nil {
				return err
			}
			if answer.Output.TaskStatus != dashscope.StatusSucceeded || isInconclusive(answer) {
				continue
			}
			known[task.TaskID] = &contents{task: answer}
			makers = view.creators(task, l.timing())
		}
		if slices.ContainsFunc(makers, func(i intent) bool { return i.Size != makers[0].Size }) {
			l.inspectSize(ctx, known[task.TaskID])
		}
	}
	return nil
}

// inspectSize looks how large a task's first image is. Without an answer the next look
// asks again.
func (l *lane) inspectSize(ctx context.Context, c *contents) {
	if c.size != "" {
		return
	}
	first := slices.IndexFunc(c.task.Output.Results, func(r dashscope.Result) bool { return r.URL != "" })
	if first < 0 {
		return
	}
	file, err := l.cfg.Spool.FetchToMemory(ctx, forceHTTPS(c.task.Output.Results[first].URL))
	if err != nil {
		l.log.Warn("image size of a contested task not read", "task_id", c.task.Output.TaskID, "err", err)
		return
	}
	c.size = fmt.Sprintf("%d*%d", file.Width, file.Height)
}
