package dashboard

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/jobid"
)

func (d *Dashboard) overview(w http.ResponseWriter, r *http.Request) {
	s, err := d.current(r.Context())
	if err != nil {
		d.fail(w, r, err)
		return
	}
	d.write(w, r, http.StatusOK, "overview.html", page{Title: messageOf(languageOf(r), "overview"), Live: true, Body: s})
}

const (
	// foundJobs is how many jobs a page of the search has, before the next batch of records is
	// read; scannedJobs and scanTime limit what one page looks through: the rest is a link away.
	foundJobs   = 50
	scannedJobs = 2000
	scanTime    = 3 * time.Second
	scanBatch   = 200
)

// results is a page of the search.
type results struct {
	Query, State string
	Jobs         []*jobs.Job
	// Next leads to older jobs, "" if there are none.
	Next string
	// Scanned is how many jobs were looked through.
	Scanned int
}

// search lists jobs, those that a text describes: an ID, words of the prompt, or a label.
func (d *Dashboard) search(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	found := results{Query: strings.TrimSpace(query.Get("q")), State: query.Get("state")}
	filter := jobs.ListFilter{Cursor: query.Get("cursor"), Limit: foundJobs}
	if slices.Contains(jobs.States(), jobs.State(found.State)) {
		filter.States = []jobs.State{jobs.State(found.State)}
	} else {
		found.State = ""
	}
	if found.Query != "" {
		filter.Limit = scanBatch
	}
	if filter.Cursor == "" && jobid.Valid(found.Query) {
		if job, err := d.job(r.Context(), found.Query); err == nil && filter.Matches(job) {
			found.Jobs = append(found.Jobs, job)
		}
	}
	cursor, err := d.scan(r.Context(), filter, &found)
	if err != nil {
		var field jobs.FieldError
		if errors.As(err, &field) {
			http.Redirect(w, r, "/jobs", http.StatusSeeOther)
			return
		}
		d.fail(w, r, err)
		return
	}
	if cursor != "" {
		found.Next = "/jobs?" + url.Values{"q": {found.Query}, "state": {found.State}, "cursor": {cursor}}.Encode()
	}
	d.write(w, r, http.StatusOK, "jobs.html", page{Title: messageOf(languageOf(r), "jobs"), Live: filter.Cursor == "" && found.Query == "", Body: found})
}

// scan adds the jobs of the filter that match the query, and returns where it stopped.
func (d *Dashboard) scan(ctx context.Context, filter jobs.ListFilter, found *results) (cursor string, err error) {
	began := time.Now()
	for {
		list, next, err := d.jobs.List(ctx, filter)
		if err != nil {
			return "", err
		}
		for _, job := range list {
			if slices.ContainsFunc(found.Jobs, func(other *jobs.Job) bool { return other.ID == job.ID }) {
				continue
			}
			if shown := d.withRequest(ctx, job); matches(shown, found.Query) {
				found.Jobs = append(found.Jobs, shown)
			}
		}
		found.Scanned += len(list)
		if filter.Cursor = next; next == "" || len(found.Jobs) >= foundJobs || found.Scanned >= scannedJobs || time.Since(began) > scanTime {
			return next, nil
		}
	}
}

// withRequest returns a job with its request, which a waiting job has in its message alone.
func (d *Dashboard) withRequest(ctx context.Context, job *jobs.Job) *jobs.Job {
	if job.Request != nil {
		return job
	}
	shown, req := *job, d.request(ctx, job)
	if req.Model == "" {
		return job
	}
	shown.Request = &req
	return &shown
}

// matches reports whether each word of a query is in the job's ID, prompt, labels or names.
func matches(job *jobs.Job, query string) bool {
	text := strings.ToLower(strings.Join(append(labelsOf(job), job.ID, job.TaskID, job.Batch, job.Producer, job.Model, job.Account, job.Code, promptOf(job)), "\n"))
	for word := range strings.FieldsSeq(strings.ToLower(query)) {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func promptOf(job *jobs.Job) string {
	if job.Request == nil {
		return ""
	}
	return job.Request.Prompt
}

// labelsOf returns a job's labels as NAME=VALUE, in order.
func labelsOf(job *jobs.Job) []string {
	labels := job.Labels
	if labels == nil && job.Request != nil {
		labels = job.Request.Labels
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, name+"="+labels[name])
	}
	return list
}

// report is the story of one job.
type report struct {
	*jobs.Job
	Timeline []event
	Held     *held // nil if it is not held
	Ahead    int64 // jobs before it in its queue
	InLine   bool
	Lane     *lane // of a job that was submitted, nil if it is not known
	Missing  []int
	Price    int64 // of what it lacks
	Notices  []jobs.Notification
	Done     string // the decision that was just made
}

// Cancelable reports whether a cancel may save something.
func (s *report) Cancelable() bool {
	return s.State.Waiting() || s.CancelRequestedAt.IsZero() && (s.State == jobs.StateSubmitting || s.State == jobs.StateGenerating)
}

// Labels are the job's, as NAME=VALUE.
func (s *report) LabelList() []string { return labelsOf(s.Job) }

func (d *Dashboard) story(w http.ResponseWriter, r *http.Request) {
	s, err := d.report(r.Context(), r.PathValue("id"))
	if err != nil {
		d.fail(w, r, err)
		return
	}
	if done := r.URL.Query().Get("done"); slices.Contains(actions(), done) {
		s.Done = done
	}
	d.write(w, r, http.StatusOK, "job.html", page{Title: s.ID, Live: true, Body: s})
}

// report returns what is known of a job.
func (d *Dashboard) report(ctx context.Context, id string) (*report, error) {
	job, err := d.job(ctx, id)
	if err != nil {
		return nil, err
	}
	job = d.withRequest(ctx, job)
	s := &report{Job: job, Timeline: timeline(job), Missing: job.Missing(), Price: d.price(job)}
	if job.State == jobs.StateHeld {
		s.Held = d.heldJob(ctx, job)
	}
	current, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range current.Lanes {
		if l.Account == job.Account && l.Model == job.Model {
			s.Lane = &l
		}
	}
	if job.State.Waiting() {
		if s.Ahead, s.InLine, err = d.jobs.Position(ctx, job); err != nil {
			return nil, err
		}
	}
	s.Notices, err = d.inspector.Notifications(ctx, job)
	return s, err
}

// image sends one image of a job.
func (d *Dashboard) image(w http.ResponseWriter, r *http.Request) {
	job, err := d.job(r.Context(), r.PathValue("id"))
	if err != nil {
		d.fail(w, r, err)
		return
	}
	d.serveImage(w, r, job, job.Images, nil)
}

// heldImage sends an image that is kept of a task: of one that may be the job's own.
func (d *Dashboard) heldImage(w http.ResponseWriter, r *http.Request) {
	job, err := d.job(r.Context(), r.PathValue("id"))
	task := r.PathValue("task")
	switch {
	case err != nil:
		d.fail(w, r, err)
		return
	case task != job.TaskID && !slices.Contains(job.Candidates, task):
		http.NotFound(w, r)
		return
	}
	images, err := d.heldImages(r.Context(), task)
	d.serveImage(w, r, job, images, err)
}

// serveImage sends the image with the number in the path.
func (d *Dashboard) serveImage(w http.ResponseWriter, r *http.Request, job *jobs.Job, images []jobs.Image, err error) {
	n, numberErr := strconv.Atoi(r.PathValue("n"))
	at := slices.IndexFunc(images, func(image jobs.Image) bool { return image.N == n && image.Key != "" })
	switch {
	case err != nil:
		d.fail(w, r, err)
	case numberErr != nil || at < 0 || d.cfg.Store == nil:
		http.NotFound(w, r)
	default:
		d.cfg.Store.ServeImage(w, r, job, images[at])
	}
}
