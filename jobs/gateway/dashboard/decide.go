package dashboard

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// actions are the decisions about one job.
func actions() []string {
	return []string{jobs.ActionAdopt, jobs.ActionBuyAgain, jobs.ActionGiveUp, jobs.ActionRetry, jobs.ActionCancel}
}

// question is the page that asks before a decision about a job.
type question struct {
	*report
	Action string
	Task   string // to adopt
	Images []jobs.Image
	// Seen is the job's last change that the operator knows of: the decision is about that.
	Seen time.Time
}

// Spends reports whether the decision may cost money.
func (q question) Spends() bool {
	return q.Action == jobs.ActionBuyAgain || q.Action == jobs.ActionRetry
}

// ask shows what a decision does and costs, and asks.
func (d *Dashboard) ask(w http.ResponseWriter, r *http.Request) {
	action, task := r.FormValue("action"), r.FormValue("task")
	if !slices.Contains(actions(), action) || d.cfg.ReadOnly {
		http.Redirect(w, r, "/jobs/"+url.PathEscape(r.PathValue("id")), http.StatusSeeOther)
		return
	}
	s, err := d.report(r.Context(), r.PathValue("id"))
	if err != nil {
		d.fail(w, r, err)
		return
	}
	q := question{report: s, Action: action, Task: task, Seen: s.UpdatedAt}
	if s.Held != nil {
		for _, c := range s.Held.Candidates {
			if c.Task == task {
				q.Images = c.Images
			}
		}
	}
	d.write(w, r, http.StatusOK, "decide.html", page{Title: s.ID, Body: q})
}

// decide makes a decision about a job, and shows the job. A form that is sent twice decides
// once: it names the change of the job that its operator has seen.
func (d *Dashboard) decide(w http.ResponseWriter, r *http.Request) {
	id, action := r.PathValue("id"), r.PostFormValue("action")
	seen, err := time.Parse(time.RFC3339Nano, r.PostFormValue("seen"))
	if err != nil || !slices.Contains(actions(), action) {
		d.notice(w, r, http.StatusBadRequest, notice{Text: messageOf(languageOf(r), "bad_form"), Back: "/jobs/" + url.PathEscape(id)})
		return
	}
	ctx := context.WithoutCancel(r.Context()) // several steps: complete them
	by := d.decider(r)
	by.Seen = seen
	err = d.act(ctx, id, action, strings.TrimSpace(r.PostFormValue("task")), by)
	var field jobs.FieldError
	var owned *jobs.TaskOwnedError
	switch {
	case err == nil:
		d.forget()
		http.Redirect(w, r, "/jobs/"+url.PathEscape(id)+"?done="+action, http.StatusSeeOther) //nolint:gosec // an escaped segment below /jobs/
	case errors.Is(err, jobs.ErrInvalidState), errors.Is(err, jobs.ErrFinished), errors.Is(err, jobs.ErrConflict), errors.Is(err, jobs.ErrRequestLost), errors.As(err, &owned):
		d.notice(w, r, http.StatusConflict, notice{Text: messageOf(languageOf(r), "job_changed"), Detail: err.Error(), Back: "/jobs/" + url.PathEscape(id)})
	case errors.As(err, &field):
		d.notice(w, r, http.StatusBadRequest, notice{Text: messageOf(languageOf(r), "bad_form"), Detail: err.Error(), Back: "/jobs/" + url.PathEscape(id)})
	default:
		d.fail(w, r, err)
	}
}

// decider is who sent a form, and why.
func (d *Dashboard) decider(r *http.Request) jobs.Decider {
	return jobs.Decider{By: d.cfg.Operator(r), Why: strings.Join(strings.Fields(r.PostFormValue("why")), " ")}
}

// act makes a decision about a job.
func (d *Dashboard) act(ctx context.Context, id, action, task string, by jobs.Decider) error {
	var resolution jobs.Resolution
	switch action {
	case jobs.ActionCancel:
		_, err := d.jobs.Cancel(ctx, id, by)
		return err
	case jobs.ActionRetry:
		job, err := d.job(ctx, id)
		if err != nil {
			return err
		}
		_, err = d.inspector.RetryJob(ctx, job, by)
		return err
	case jobs.ActionAdopt:
		resolution.Adopt = task
	case jobs.ActionBuyAgain:
		resolution.BuyAgain = true
	case jobs.ActionGiveUp:
		resolution.GiveUp = true
	}
	_, err := d.inspector.Resolve(ctx, id, resolution, by)
	return err
}

// pause pauses or resumes an account or a model.
func (d *Dashboard) pause(w http.ResponseWriter, r *http.Request) {
	account, model := r.PostFormValue("account"), r.PostFormValue("model")
	var err error
	switch by := d.decider(r); {
	case model != "" && r.PostFormValue("action") == jobs.ActionPause:
		err = d.inspector.PauseModel(r.Context(), model, by)
	case model != "":
		err = d.inspector.ResumeModel(r.Context(), model, by)
	case r.PostFormValue("action") == jobs.ActionPause:
		err = d.inspector.PauseAccount(r.Context(), account, by)
	default:
		err = d.inspector.ResumeAccount(r.Context(), account, by)
	}
	var field jobs.FieldError
	switch {
	case errors.As(err, &field):
		d.notice(w, r, http.StatusBadRequest, notice{Text: messageOf(languageOf(r), "bad_form"), Detail: err.Error(), Back: "/"})
	case err != nil:
		d.fail(w, r, err)
	default:
		d.forget()
		http.Redirect(w, r, "/#lanes", http.StatusSeeOther)
	}
}
