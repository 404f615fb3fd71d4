package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/danqing-queue/danqing/cmd/danqing/terminal"
	"github.com/danqing-queue/danqing/jobs"
)

func (p *program) jobsShowCommand(f *jobsFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show JOB",
		Short: "Show one job: attempts, tasks, cost, images",
		Long: `Show prints a job's request, what happened and when, what it cost, where its images are,
and why it waits. A job that has left Redis, a week after its end, is read from its
sidecar if DANQING_S3_BUCKET is set.`,
		Example: `  danqing jobs show shop.cat`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			show := func(s *jobReport, err error) error {
				if err != nil {
					return err
				}
				if f.json {
					return printJSON(p.stdout, s)
				}
				_, err = fmt.Fprint(p.stdout, terminal.Wrap(s.text(), terminal.Width(p.stdout), strings.Repeat(" ", 6)))
				return err
			}
			return p.onJobs(cmd.Context(), f.simulate, func(ctx context.Context, q *jobQueue) error {
				return show(q.report(ctx, args[0]))
			}, func(ctx context.Context, v *dataDirView) error {
				return show(v.reportOfFiles(ctx, args[0]))
			})
		},
	}
}

// jobReport is a job's record with everything that jobs show prints about it.
type jobReport struct {
	*jobs.Job
	// Waits has the reasons why a waiting job is not being made, or why the task of a running
	// one is out of reach.
	Waits []string `json:"waits,omitempty"`
	// Links are the images with their links or files.
	Links []resultImage `json:"links,omitempty"`
	// GoOn is the command that continues the job, if no worker does.
	GoOn string `json:"go_on,omitempty"`
	// Notifications are those of its producer.
	Notifications []jobs.Notification `json:"notifications,omitempty"`
}

func (q *jobQueue) report(ctx context.Context, id string) (*jobReport, error) {
	rec, err := q.get(ctx, id)
	if err != nil {
		return nil, err
	}
	s := &jobReport{Job: redactRecord(rec)}
	if rec.Request == nil {
		req, err := q.jobs.RequestOf(ctx, rec)
		switch {
		case err == nil:
			s.Request = redactRequest(req)
		case !errors.Is(err, jobs.ErrRequestLost):
			return nil, err
		}
	}
	switch rec.State {
	case jobs.StateScheduled, jobs.StateQueued, jobs.StateRetrying:
		s.Waits, err = q.waitReasons(ctx, rec)
	case jobs.StateSubmitting, jobs.StateGenerating:
		s.Waits, err = q.laneTrouble(ctx, rec)
	default:
	}
	if err != nil {
		return nil, err
	}
	if s.Notifications, err = q.operator.Notifications(ctx, rec); err != nil {
		return nil, err
	}
	from, err := q.bucket(ctx)
	if err != nil {
		return nil, err
	}
	s.Links, err = q.imagesWithLinks(ctx, from, s.Job)
	return s, err
}

// laneTrouble returns what keeps a lane from the task of its job: the service does not
// answer, or refuses the key.
func (q *jobQueue) laneTrouble(ctx context.Context, rec *jobs.Job) ([]string, error) {
	lanes, err := q.lanes(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(lanes, func(l lane) bool { return l.Account == rec.Account && l.Model == rec.Model })
	switch {
	case at < 0 || !lanes[at].Held:
		return []string{fmt.Sprintf("no worker has the lane of account %s for %s: start one, the task goes on at DashScope meanwhile", rec.Account, rec.Model)}, nil
	case lanes[at].Message != "":
		return []string{lanes[at].Message}, nil
	}
	return nil, nil
}

// waitReasons returns why a waiting job is not being made.
func (q *jobQueue) waitReasons(ctx context.Context, rec *jobs.Job) ([]string, error) {
	lanes, err := q.lanes(ctx)
	if err != nil {
		return nil, err
	}
	var why []string
	if text := q.whyIdle(lanes, rec.Model); text != "" {
		why = append(why, text)
	}
	ahead, inLine, err := q.jobs.Position(ctx, rec)
	switch {
	case err != nil:
		return nil, err
	case inLine && ahead == 0:
		why = append(why, "it is next in line")
	case inLine:
		why = append(why, fmt.Sprintf("%s of its model and priority before it", count(int(ahead), "job")))
	case rec.State == jobs.StateRetrying:
		why = append(why, "it is retried automatically")
	case rec.State == jobs.StateQueued && len(why) == 0:
		why = append(why, "a lane is starting it")
	}
	return why, nil
}

// delivery returns the job's producer, its times, and its notifications.
func (s *jobReport) delivery() (facts []string) {
	if s.Producer != "" {
		facts = append(facts, "producer "+s.Producer)
	}
	if !s.NotBefore.IsZero() {
		facts = append(facts, "not before "+formatTime(s.NotBefore))
	}
	if !s.Deadline.IsZero() {
		facts = append(facts, "deadline "+formatTime(s.Deadline))
	}
	if host, err := url.Parse(s.Callback); err == nil && s.Callback != "" {
		facts = append(facts, "callback to "+host.Host)
	}
	if s.FollowUp != nil {
		facts = append(facts, fmt.Sprintf("follow-up %s in queue %s", s.FollowUp.Type, s.FollowUp.Queue))
	}
	return facts
}

// notificationText describes the state of a notification.
func notificationText(n jobs.Notification) string {
	switch n.State {
	case "completed":
		return "delivered"
	case "archived":
		return "given up: " + n.LastError
	case "retry":
		return fmt.Sprintf("tried %s, the next at %s: %s", count(max(n.Tries, 1), "time"), formatTime(n.NextAt), n.LastError)
	case "":
		return "no longer in the queue"
	}
	return "on its way"
}

// text returns the report as text, with the events in order.
func (s *jobReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "job %s: %s\n", s.ID, stateOf(s.Job))
	facts := []string{"model " + s.Model, "priority " + s.Priority}
	if s.Account != "" {
		facts = append(facts, "account "+s.Account)
	}
	if batch := cmp.Or(s.Batch, s.batch()); batch != "" {
		facts = append(facts, "batch "+batch)
	}
	labels := s.labels()
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		facts = append(facts, fmt.Sprintf("label %s=%s", name, labels[name]))
	}
	fmt.Fprintf(&b, "  %s\n", strings.Join(append(facts, s.delivery()...), ", "))
	if s.Request != nil {
		fmt.Fprintf(&b, "  asked for: %s\n", requestText(s.Request))
	}
	for _, w := range s.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", w)
	}
	for _, e := range s.timeline() {
		fmt.Fprintf(&b, "  %s  %s\n", formatTime(e.at), e.text)
	}
	for _, n := range s.Notifications {
		fmt.Fprintf(&b, "  %s: %s\n", n.Kind, notificationText(n))
	}
	for _, why := range s.Waits {
		fmt.Fprintf(&b, "  waits: %s\n", why)
	}
	if s.CostMicroYuan > 0 || s.Attempt > 0 {
		cost := yuan(s.CostMicroYuan)
		if s.Simulated {
			cost += " (simulated: nothing is charged)"
		}
		fmt.Fprintf(&b, "  cost: %s\n", cost)
	}
	for _, image := range s.Links {
		fmt.Fprintf(&b, "  %s\n", imageText(image))
	}
	for _, task := range s.Candidates {
		fmt.Fprintf(&b, "  candidate: task %s; its images, if any, are under _held/%s/ in the bucket\n", task, task)
	}
	if s.State == jobs.StateSucceeded && len(s.Missing()) > 0 {
		fmt.Fprintf(&b, "  to buy the missing images: danqing jobs retry %s\n", s.ID)
	}
	if !s.BuyAgainAt.IsZero() {
		fmt.Fprintf(&b, "  decided: to be bought again\n")
	} else if s.State == jobs.StateHeld {
		fmt.Fprintf(&b, "  to decide: danqing jobs resolve %s --help\n", s.ID)
	}
	if s.GoOn != "" {
		fmt.Fprintf(&b, "  to go on: %s\n", s.GoOn)
	}
	return b.String()
}

func (s *jobReport) batch() string {
	if s.Request == nil {
		return ""
	}
	return s.Request.Batch
}

func (s *jobReport) labels() map[string]string {
	if s.Labels == nil && s.Request != nil {
		return s.Request.Labels
	}
	return s.Labels
}

// requestText returns a request as JSON, without the fields that are printed elsewhere.
func requestText(req *jobs.Request) string {
	shown := *req
	shown.ID, shown.Model, shown.Priority, shown.Labels, shown.Batch, shown.LineID = "", "", "", nil, "", ""
	shown.Producer, shown.NotBefore, shown.Deadline, shown.Callback, shown.FollowUp = "", time.Time{}, time.Time{}, "", nil
	var b strings.Builder
	if err := printJSON(&b, shown); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(b.String())
}

func imageText(image resultImage) string {
	if image.Key == "" {
		return fmt.Sprintf("image %d: none: %s: %s", image.N, image.Code, image.Message)
	}
	text := fmt.Sprintf("image %d: %s, %d×%d, %d bytes", image.N, image.Key, image.Width, image.Height, image.Bytes)
	if image.AILabel != "" {
		text += ", AI label " + image.AILabel
	}
	if where := cmp.Or(image.URL, image.File); where != "" {
		text += "\n    " + where
	}
	return text
}

// event is one event of a job.
type event struct {
	at   time.Time
	text string
}

func (s *jobReport) timeline() []event {
	var list []event
	add := func(at time.Time, format string, args ...any) {
		if !at.IsZero() {
			list = append(list, event{at, fmt.Sprintf(format, args...)})
		}
	}
	add(s.EnqueuedAt, "enqueued")
	for _, a := range s.PastAttempts {
		add(a.SubmittedAt, "attempt %d: submitted in term %d, %s", a.Attempt, a.Term, taskText(a.TaskID))
		how := strings.Trim(a.Code+": "+a.Message, ": ")
		if a.Images > 0 {
			how = strings.TrimSuffix(count(a.Images, "image")+" in the bucket; "+how, "; ")
		}
		add(a.EndedAt, "attempt %d: ended: %s", a.Attempt, how)
	}
	if !s.State.Waiting() && !slices.ContainsFunc(s.PastAttempts, func(a jobs.Attempt) bool { return a.Attempt == s.Attempt }) {
		add(s.SubmittedAt, "attempt %d: submitted in term %d, %s", s.Attempt, s.Term, taskText(s.TaskID))
		add(s.GeneratedAt, "attempt %d: task ended", s.Attempt)
	}
	for _, d := range s.Decisions {
		add(d.At, "decided: %s %s", d.Action, byWhomAndWhy(d))
	}
	if missing := s.Missing(); !s.State.Final() && s.Request != nil && len(missing) < s.Request.N {
		add(s.RetriedAt, "queued again for what is missing: %s", count(len(missing), "image"))
	}
	why := strings.Trim(s.Code+": "+s.Message, ": ")
	if s.Code == jobs.CodeCanceled {
		why = s.Message
	}
	switch {
	case s.State.Final():
		add(s.FinishedAt, "%s", strings.Trim(string(s.State)+": "+why, ": "))
	case why != "":
		add(s.UpdatedAt, "%s: %s", s.State, why)
	}
	slices.SortStableFunc(list, func(a, b event) int { return a.at.Compare(b.at) })
	return list
}

// byWhomAndWhy returns who made a decision, and why, as far as that is known.
func byWhomAndWhy(d jobs.Decision) string {
	text := "by " + cmp.Or(d.By, "somebody")
	if d.Why != "" {
		text += ": " + d.Why
	}
	return text
}

func taskText(id string) string {
	if id == "" {
		return "no known task"
	}
	return "task " + id
}
