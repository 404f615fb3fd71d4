package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// Report is what a drill has done and found.
type Report struct {
	Seed   uint64  `json:"seed"`
	Queue  Queue   `json:"queue"`
	Time   float64 `json:"time_seconds"`
	Folder string  `json:"folder"`

	// Jobs that the queue has acknowledged, and what became of them. Failed are
	// those that the service refused, as it was told to; Stuck are neither over nor
	// held.
	Jobs      int            `json:"jobs"`
	Succeeded int            `json:"succeeded"`
	Failed    int            `json:"failed"`
	Canceled  int            `json:"canceled"`
	Held      map[string]int `json:"held"` // by code
	HeldJobs  []string       `json:"held_jobs"`
	Stuck     int            `json:"stuck"`

	// Faults counts what was done, Hit by point; NotHit are the points that were
	// waited for and never came, NotTried those for which there was no room.
	Faults   int            `json:"faults"`
	Kills    int            `json:"kills"`
	Hit      map[string]int `json:"hit"`
	NotHit   []string       `json:"not_hit"`
	NotTried []string       `json:"not_tried"`
	// Exits counts the workers that ended by themselves, as at a start while the
	// bucket is away.
	Exits int `json:"exits"`

	Tasks            int   `json:"tasks"`
	ImagesCharged    int   `json:"images_charged"`
	ChargedMicroYuan int64 `json:"charged_micro_yuan"`
	// ImagesWanted are the charged images but those of a job's second charged task.
	ImagesWanted    int     `json:"images_wanted"`
	ChargesPerImage float64 `json:"charges_per_image"`
	// ImagesDelivered lie under their own key, ImagesAside under _held/ for a person.
	ImagesDelivered int `json:"images_delivered"`
	ImagesAside     int `json:"images_aside"`
	ImagesLost      int `json:"images_lost"`
	ImagesTwice     int `json:"images_twice"`
	// ImagesWrong lie under a job's key and show what another job has asked for.
	ImagesWrong int `json:"images_wrong"`
	// LedgerMicroYuan is what the ledger says was spent.
	LedgerMicroYuan int64 `json:"ledger_micro_yuan"`

	// LongestRecovery is from a worker's end until the model that it worked was
	// asked for again; SlotIdle the share of the time without a task.
	LongestRecovery float64 `json:"longest_recovery_seconds"`
	SlotIdle        float64 `json:"slot_idle"`

	// Problems are what breaks a promise, each with its job and tasks; Passed means
	// that there are none.
	Problems []string `json:"problems"`
	Passed   bool     `json:"passed"`
}

// report counts, while the queue still runs.
func (d *drill) report(ctx context.Context) *Report {
	r := &Report{
		Seed: d.Seed, Queue: d.Queue, Folder: d.Dir, Time: time.Since(d.began).Seconds(),
		Held: map[string]int{}, HeldJobs: []string{}, NotHit: []string{}, NotTried: []string{}, Problems: []string{},
		LongestRecovery: d.recovery.over().Seconds(), SlotIdle: d.idle(),
	}
	r.done(&d.tally, d.chosen())
	for _, j := range d.load.all() {
		d.fate(r, j)
	}
	b, err := d.books()
	if err != nil {
		r.problem("%v", err)
		b = &books{}
	}
	r.enter(b)
	if all := d.sim.Stats().ChargedMicroYuan; all != b.microYuan+b.foreignMicroYuan {
		r.problem("the service charged %s yuan, of which %s are of no task", yuan(all), yuan(all-b.microYuan-b.foreignMicroYuan))
	}
	d.compare(ctx, r)
	r.Passed = len(r.Problems) == 0
	return r
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// done enters what was done.
func (r *Report) done(t *tally, chosen []point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Hit, r.Kills, r.Exits = t.hit, t.kills, t.exits
	for _, n := range t.hit {
		r.Faults += n
	}
	for _, p := range chosen {
		switch {
		case t.hit[p.name] > 0:
		case t.missed[p.name] > 0:
			r.NotHit = append(r.NotHit, p.name)
		default:
			r.NotTried = append(r.NotTried, p.name)
		}
	}
	slices.Sort(r.NotHit)
	slices.Sort(r.NotTried)
}

// fate enters what became of a job.
func (d *drill) fate(r *Report, j job) {
	id, number := j.request.ID, 0
	_, _ = fmt.Sscanf(id, "drill-%d", &number) // as all are named
	r.Jobs++
	switch {
	case j.lost:
		r.problem("%s is not known to the queue, which had acknowledged it", id)
	case !j.queued:
		r.Stuck++
		r.problem("%s could not be enqueued", id)
	case j.state() == jobs.StateHeld:
		r.Held[j.record.Code]++
		r.HeldJobs = append(r.HeldJobs, fmt.Sprintf("%s %s: %s", id, j.record.Code, j.record.Message))
		if j.record.Code == jobs.CodeSubmitAmbiguous {
			r.problem("%s is held, though no other program has the workers' key, so that the list tells whose each task is", id)
		}
	case !j.state().Final():
		r.Stuck++
		r.problem("%s is stuck: %s, task %q: %s", id, j.state(), j.record.TaskID, j.record.Message)
	case j.state() == jobs.StateSucceeded:
		r.Succeeded++
	case j.state() == jobs.StateCanceled:
		r.Canceled++
		if !j.canceled {
			r.problem("%s was canceled, which nobody has asked for: %s: %s", id, j.record.Code, j.record.Message)
		}
	default:
		r.Failed++
		if !refused(number) {
			r.problem("%s failed, though the service did not refuse it: %s: %s", id, j.record.Code, j.record.Message)
		}
	}
	if j.queued && (j.state() == jobs.StateSucceeded || j.state() == jobs.StateFailed) && d.withoutSidecar(id) {
		r.problem("%s is %s and has no sidecar", id, j.state())
	}
}

// enter takes the books over.
func (r *Report) enter(b *books) {
	r.Tasks, r.ImagesCharged, r.ImagesWanted, r.ChargedMicroYuan = b.tasks, b.charged, b.wanted, b.microYuan
	r.ImagesDelivered, r.ImagesAside, r.ImagesLost, r.ImagesTwice = b.delivered, b.aside, len(b.lost), len(b.twice)
	r.ImagesWrong = len(b.wrong)
	if b.wanted > 0 {
		r.ChargesPerImage = float64(b.charged) / float64(b.wanted)
	} else {
		r.problem("no image was made")
	}
	for _, text := range b.paidTwice {
		r.problem("%s", text)
	}
	for _, text := range b.stray {
		r.problem("%s", text)
	}
	for _, text := range b.lost {
		r.problem("lost: %s", text)
	}
	for _, text := range b.wrong {
		r.problem("wrong picture: %s", text)
	}
	if b.open > 0 {
		r.problem("%d tasks are still open", b.open)
	}
}

// compare asks the ledger: it must agree with the service to the last micro-yuan.
func (d *drill) compare(ctx context.Context, r *Report) {
	rdb, err := d.queue.connection(ctx)
	var spending []ledger.Spend
	if err == nil {
		spending, err = ledger.New(rdb).Spending(ctx, time.Time{}, time.Time{})
	}
	if err != nil {
		r.problem("the ledger does not answer: %v", err)
		return
	}
	reserved, byJob := int64(0), map[string]int64{}
	for _, spent := range spending {
		r.LedgerMicroYuan += spent.SpentMicroYuan
		reserved += spent.ReservedMicroYuan
		byJob[spent.Labels[labelJob]] += spent.SpentMicroYuan
	}
	for _, task := range d.sim.Tasks() {
		byJob[strings.TrimPrefix(task.Request.Input.Prompt, promptOf)] -= task.ChargedMicroYuan
	}
	delete(byJob, foreignPrompt)
	for _, id := range slices.Sorted(maps.Keys(byJob)) {
		// Whose a task is that several held jobs may have made, nobody knows: it is booked
		// on one of them.
		held := slices.ContainsFunc(r.HeldJobs, func(job string) bool { return strings.HasPrefix(job, id+" ") })
		if more := byJob[id]; more != 0 && !held {
			r.problem("the ledger is off by %+d micro-yuan at %s", more, id)
		}
	}
	if r.LedgerMicroYuan != r.ChargedMicroYuan {
		r.problem("the ledger says %s yuan were spent, the service charged %s", yuan(r.LedgerMicroYuan), yuan(r.ChargedMicroYuan))
	}
	if reserved != 0 && len(r.HeldJobs) == 0 && r.Stuck == 0 {
		r.problem("the ledger still reserves %s yuan, though no job is open", yuan(reserved))
	}
}

func yuan(micro int64) string { return fmt.Sprintf("%d.%06d", micro/1e6, micro%1e6) }

// Print tells a person what was done, what was counted, and what follows.
func (r *Report) Print(to io.Writer) error {
	var errs []error
	line := func(format string, args ...any) {
		_, err := fmt.Fprintf(to, format+"\n", args...)
		errs = append(errs, err)
	}
	line("What was done")
	line("  queue                 %s", r.Queue)
	line("  seed                  %d   (the same faults again: --seed %d)", r.Seed, r.Seed)
	line("  time                  %.0f s", r.Time)
	line("  faults                %d at %d points, of which %d were kill -9 of a worker", r.Faults, len(r.Hit), r.Kills)
	for _, group := range groups(r.Hit) {
		line("    %s", group)
	}
	if len(r.NotHit) > 0 {
		line("  waited for in vain    %s", strings.Join(r.NotHit, " "))
	}
	if len(r.NotTried) > 0 {
		line("  not tried             %d points (name them by --points, or drill longer)", len(r.NotTried))
	}
	if r.Exits > 0 {
		line("  workers that gave up  %d, started again", r.Exits)
	}
	line("What was counted")
	line("  jobs                  %d: %d succeeded, %d failed as the service had decided, %d canceled on request, %d held, %d stuck",
		r.Jobs, r.Succeeded, r.Failed, r.Canceled, len(r.HeldJobs), r.Stuck)
	for _, text := range r.HeldJobs {
		line("    held: %s", text)
	}
	line("  tasks made            %d", r.Tasks)
	line("  images charged        %d for %d wanted: %.4f charges per image (%s yuan)", r.ImagesCharged, r.ImagesWanted, r.ChargesPerImage, yuan(r.ChargedMicroYuan))
	line("  images delivered      %d under their keys, %d kept aside for a person", r.ImagesDelivered, r.ImagesAside)
	line("  images lost           %d", r.ImagesLost)
	line("  wrong pictures        %d", r.ImagesWrong)
	line("  images stored twice   %d", r.ImagesTwice)
	line("  longest recovery      %.1f s until a model is worked again whose worker has ended", r.LongestRecovery)
	// Most of it is the pace of the creates: a real task takes half a minute.
	line("  slot idle             %.0f %% of the time with work (a task takes %s to %s here, and two creates keep half a second apart)",
		100*r.SlotIdle, taskShortest, taskLongest)
	line("  ledger                %s yuan", yuan(r.LedgerMicroYuan))
	line("Verdict")
	if r.Passed {
		line("  passed: every image was charged once, none was lost, and each shows what its job has asked for")
	} else {
		line("  FAILED, with seed %d; the logs of the workers are in %s", r.Seed, r.Folder)
	}
	for _, text := range r.Problems {
		line("  - %s", text)
	}
	return errors.Join(errs...)
}

// groups are lines of points with how often each was hit, by route.
func groups(hit map[string]int) []string {
	byRoute := map[string][]string{}
	for name, n := range hit {
		route, what := "anywhere", name
		if i := strings.LastIndexByte(name, '.'); i > 0 {
			route, what = name[:i], name[i+1:]
		}
		byRoute[route] = append(byRoute[route], fmt.Sprintf("%s %d", what, n))
	}
	var lines []string
	for route, parts := range byRoute {
		slices.Sort(parts)
		lines = append(lines, fmt.Sprintf("%-20s %s", route, strings.Join(parts, ", ")))
	}
	slices.Sort(lines)
	return lines
}
