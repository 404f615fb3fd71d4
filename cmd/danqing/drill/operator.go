package drill

import (
	"context"

	"github.com/danqing-queue/danqing/jobs"
)

// operate does what a person does whose model was paused because data was lost and the list does not
// show its tasks: it cancels the waiting jobs whose tasks the console shows, and resumes the model.
func (l *load) operate(ctx context.Context) {
	rdb, err := l.queue.connection(ctx)
	if err != nil {
		return
	}
	if pause, err := jobs.NewStore(rdb).LanePause(ctx, account, editModel); err != nil || pause == nil {
		return
	}
	paid := map[string]bool{}
	for _, task := range l.sim.Tasks() {
		paid[task.Request.Input.Prompt] = paid[task.Request.Input.Prompt] || task.Images > 0
	}
	operator := jobs.NewInspector(rdb)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		if j.request.Model != editModel || !paid[j.request.Prompt] || !j.state().Waiting() {
			continue
		}
		if _, err := jobs.NewClient(rdb).Cancel(ctx, j.request.ID, jobs.Decider{By: "drill", Why: "the console shows its task"}); err != nil {
			return // the next poll goes on
		}
		j.canceled, j.paid = true, true
	}
	if err := operator.ResumeModel(ctx, editModel, jobs.Decider{By: "drill"}); err != nil {
		l.log.Warn("model not resumed", "err", err)
	}
}
