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

// Report is the result of a drill.
type Report struct {
	Seed   uint64  `json:"seed"`
	Queue  Queue   `json:"queue"`
	Time   float64 `json:"time_seconds"`
	Folder string  `json:"folder"`

	// Jobs counts the jobs that the queue acknowledged; the other fields count them by
	// outcome. Failed are those that the service rejected on purpose. Stuck are neither
	// finished nor held.
	Jobs      int            `json:"jobs"`
	Succeeded int            `json:"succeeded"`
	Failed    int            `json:"failed"`
	Canceled  int            `json:"canceled"`
	Held      map[string]int `json:"held"` // by code
	HeldJobs  []string       `json:"held_jobs"`
	Stuck     int            `json:"stuck"`

	// Faults counts the injected faults, Hit by point. NotHit are the points that were
	// waited for and never reached, NotTried those that the plan had no room for.
	Faults   int            `json:"faults"`
	Kills    int            `json:"kills"`
	Hit      map[string]int `json:"hit"`
	NotHit   []string       `json:"not_hit"`
	NotTried []string       `json:"not_tried"`
	// Exits counts the workers that ended by themselves, for example at a start during
	// a bucket outage.
	Exits int `json:"exits"`

	Tasks            int   `json:"tasks"`
	ImagesCharged    int   `json:"images_charged"`
	ChargedMicroYuan int64 `json:"charged_micro_yuan"`
	// ImagesWanted counts the charged images without those of a job's second and later
	// charged tasks.
	ImagesWanted    int     `json:"images_wanted"`
	ChargesPerImage float64 `json:"charges_per_image"`
	// ImagesDelivered counts the images under their own key, ImagesAside those that are
	// only under _held/, for an operator.
	ImagesDelivered int `json:"images_delivered"`
	ImagesAside     int `json:"images_aside"`
	ImagesLost      int `json:"images_lost"`
	ImagesTwice     int `json:"images_twice"`
	// ImagesWrong counts the images under a job's key that show another job's request.
	ImagesWrong int `json:"images_wrong"`
	// ImagesUnlisted counts the images of tasks that no reply and no list has named, and that are
	// in the console only. Their jobs are held, or, if data was lost, the drill has canceled them
	// as a person would. 0 unless tasks are hidden from the list.
	ImagesUnlisted int `json:"images_unlisted"`
	// LedgerMicroYuan is the spending in the ledger.
	LedgerMicroYuan int64 `json:"ledger_micro_yuan"`

	// LongestRecovery is the longest time from a worker's end to the next request for
	// its model. SlotIdle is the share of the time without a task, 0 to 1.
	LongestRecovery float64 `json:"longest_recovery_seconds"`
	SlotIdle        float64 `json:"slot_idle"`
	// LongRecoveries explains each recovery of more than a minute: the faults
	// meanwhile, and what the lane reported.
	LongRecoveries []string `json:"long_recoveries"`

	// Problems lists the broken guarantees, each with its job and tasks. Passed means
	// that there are none.
	Problems []string `json:"problems"`
	Passed   bool     `json:"passed"`
}

// report evaluates the drill while the queue still runs.
func (d *drill) report(ctx context.Context) *Report {
	r := &Report{
		Seed: d.Seed, Queue: d.Queue, Folder: d.Dir, Time: time.Since(d.began).Seconds(),
		Held: map[string]int{}, HeldJobs: []string{}, NotHit: []string{}, NotTried: []string{}, Problems: []string{},
		SlotIdle: d.idle(),
	}
	longest, explained := d.recovery.finish()
	r.LongestRecovery, r.LongRecoveries = longest.Seconds(), append([]string{}, explained...)
	r.addFaults(&d.counters, d.chosen())
	for _, j := range d.load.all() {
		d.addJob(r, j)
	}
	b, err := d.audit()
	if err != nil {
		r.problem("%v", err)
		b = &audit{}
	}
	r.addAudit(b)
	if all := d.sim.Stats().ChargedMicroYuan; all != b.microYuan+b.foreignMicroYuan {
		r.problem("the service charged %s yuan, of which %s belong to no task", yuan(all), yuan(all-b.microYuan-b.foreignMicroYuan))
	}
	d.checkLedger(ctx, r, b)
	r.Passed = len(r.Problems) == 0
	return r
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// addFaults adds the injected faults.
func (r *Report) addFaults(t *counters, chosen []point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Hit, r.Kills, r.Exits = t.hit, t.kills, t.exits
	r.Problems = append(r.Problems, t.problems...)
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

// addJob adds a job's outcome.
func (d *drill) addJob(r *Report, j job) {
	id, number := j.request.ID, 0
	_, _ = fmt.Sscanf(id, "drill-%d", &number) // every ID has this form
	r.Jobs++
	switch {
	case j.lost:
		r.problem("%s is missing from the queue, which had acknowledged it", id)
	case !j.queued:
		r.Stuck++
		r.problem("%s could not be enqueued", id)
	case j.state() == jobs.StateHeld:
		r.Held[j.record.Code]++
		r.HeldJobs = append(r.HeldJobs, fmt.Sprintf("%s %s: %s", id, j.record.Code, j.record.Message))
		if j.record.Code == jobs.CodeSubmitAmbiguous && !d.mayBeUnlisted(j) {
			r.problem("%s is held, although no other program uses the workers' key and the task list is conclusive", id)
		}
	case !j.state().Final():
		r.Stuck++
		r.problem("%s is stuck: %s, task %q: %s", id, j.state(), j.record.TaskID, j.record.Message)
	case j.state() == jobs.StateSucceeded:
		r.Succeeded++
	case j.state() == jobs.StateCanceled:
		r.Canceled++
		if !j.canceled {
			r.problem("%s was canceled without a request: %s: %s", id, j.record.Code, j.record.Message)
		}
	default:
		r.Failed++
		if !isRefused(number) {
			r.problem("%s failed, although the service did not reject it: %s: %s", id, j.record.Code, j.record.Message)
		}
	}
	if j.queued && (j.state() == jobs.StateSucceeded || j.state() == jobs.StateFailed) && d.withoutSidecar(id) {
		r.problem("%s is %s and has no sidecar", id, j.state())
	}
}

// addAudit adds the result of an audit.
func (r *Report) addAudit(b *audit) {
	r.Tasks, r.ImagesCharged, r.ImagesWanted, r.ChargedMicroYuan = b.tasks, b.charged, b.wanted, b.microYuan
	r.ImagesDelivered, r.ImagesAside, r.ImagesLost, r.ImagesTwice = b.delivered, b.held, len(b.lost), len(b.storedTwice)
	r.ImagesWrong, r.ImagesUnlisted = len(b.wrongContent), b.unlisted
	if b.wanted > 0 {
		r.ChargesPerImage = float64(b.charged) / float64(b.wanted)
	} else {
		r.problem("no image was created")
	}
	for _, text := range b.paidTwice {
		r.problem("%s", text)
	}
	for _, text := range b.unknown {
		r.problem("%s", text)
	}
	for _, text := range b.lost {
		r.problem("lost: %s", text)
	}
	for _, text := range b.wrongContent {
		r.problem("wrong picture: %s", text)
	}
	if b.open > 0 {
		r.problem("%d tasks are still open", b.open)
	}
}

// checkLedger compares the ledger with the service. They must agree to the micro-yuan, but for
// what unlisted tasks cost: that is still reserved for held jobs.
func (d *drill) checkLedger(ctx context.Context, r *Report, b *audit) {
	rdb, err := d.queue.connection(ctx)
	var spending []ledger.Spend
	if err == nil {
		spending, err = ledger.New(rdb).Spending(ctx, time.Time{}, time.Time{})
	}
	if err != nil {
		r.problem("ledger unavailable: %v", err)
		return
	}
	reserved, byJob := int64(0), map[string]int64{}
	for _, spent := range spending {
		r.LedgerMicroYuan += spent.SpentMicroYuan
		reserved += spent.ReservedMicroYuan
		byJob[spent.Labels[labelJob]] += spent.SpentMicroYuan
	}
	for _, task := range d.sim.Tasks() {
		byJob[strings.TrimPrefix(task.Request.Input.Prompt, promptPrefix)] -= task.ChargedMicroYuan
	}
	delete(byJob, foreignPrompt)
	for _, id := range slices.Sorted(maps.Keys(byJob)) {
		// A task that several held jobs may have created has no known owner; it is
		// booked on one of them.
		held := slices.ContainsFunc(r.HeldJobs, func(job string) bool { return strings.HasPrefix(job, id+" ") })
		if more := byJob[id]; more != 0 && !held && !b.unlistedJobs[id] {
			r.problem("the ledger differs by %+d micro-yuan at %s", more, id)
		}
	}
	if reserved < b.heldMicroYuan {
		r.problem("the ledger reserves %s yuan, less than the %s that tasks of held jobs cost", yuan(reserved), yuan(b.heldMicroYuan))
	}
	if r.LedgerMicroYuan != r.ChargedMicroYuan-b.unlistedMicroYuan {
		r.problem("the ledger says %s yuan were spent, the service charged %s", yuan(r.LedgerMicroYuan), yuan(r.ChargedMicroYuan))
	}
	if reserved != 0 && len(r.HeldJobs) == 0 && r.Stuck == 0 {
		r.problem("the ledger still reserves %s yuan, although no job is open", yuan(reserved))
	}
}

func yuan(micro int64) string { return fmt.Sprintf("%d.%06d", micro/1e6, micro%1e6) }

// Print writes the report for people: what was done, what was counted, and the result.
func (r *Report) Print(to io.Writer) error {
	var errs []error
	line := func(format string, args ...any) {
		_, err := fmt.Fprintf(to, format+"\n", args...)
		errs = append(errs, err)
	}
	line("What was done")
	line("  queue                 %s", r.Queue)
	line("  seed                  %d   (repeat with --seed %d)", r.Seed, r.Seed)
	line("  time                  %.0f s", r.Time)
	line("  faults                %d at %d points, of which %d were kill -9 of a worker", r.Faults, len(r.Hit), r.Kills)
	for _, group := range hitsByRoute(r.Hit) {
		line("    %s", group)
	}
	if len(r.NotHit) > 0 {
		line("  never reached         %s", strings.Join(r.NotHit, " "))
	}
	if len(r.NotTried) > 0 {
		line("  not tried             %d points (name them with --points, or raise --faults)", len(r.NotTried))
	}
	if r.Exits > 0 {
		line("  workers that exited   %d, restarted", r.Exits)
	}
	line("What was counted")
	line("  jobs                  %d: %d succeeded, %d rejected by the service, %d canceled on request, %d held, %d stuck",
		r.Jobs, r.Succeeded, r.Failed, r.Canceled, len(r.HeldJobs), r.Stuck)
	for _, text := range r.HeldJobs {
		line("    held: %s", text)
	}
	line("  tasks made            %d", r.Tasks)
	line("  images charged        %d for %d wanted: %.4f charges per image (%s yuan)", r.ImagesCharged, r.ImagesWanted, r.ChargesPerImage, yuan(r.ChargedMicroYuan))
	line("  images delivered      %d under their keys, %d under _held/ for an operator", r.ImagesDelivered, r.ImagesAside)
	line("  images lost           %d", r.ImagesLost)
	line("  wrong pictures        %d", r.ImagesWrong)
	line("  images stored twice   %d", r.ImagesTwice)
	if r.ImagesUnlisted > 0 {
		line("  images unlisted       %d: no reply and no list has named their tasks; their jobs are held, or were canceled after data loss", r.ImagesUnlisted)
	}
	line("  longest recovery      %.1f s from a worker's end to the next request for its model", r.LongestRecovery)
	for _, text := range r.LongRecoveries {
		line("    %s", text)
	}
	// Most of it is the submit rate limit: a real task takes half a minute.
	line("  slot idle             %.0f %% of the time with work (a task takes %s to %s here, and DashScope allows two creates a second)",
		100*r.SlotIdle, taskShortest, taskLongest)
	line("  ledger                %s yuan", yuan(r.LedgerMicroYuan))
	line("Verdict")
	if r.Passed {
		line("  passed: every image was charged once, none was lost, and each shows its job's request")
	} else {
		line("  FAILED, with seed %d; the logs of the workers are in %s", r.Seed, r.Folder)
	}
	for _, text := range r.Problems {
		line("  - %s", text)
	}
	return errors.Join(errs...)
}

// hitsByRoute returns one line per route with how often each of its points was hit.
func hitsByRoute(hit map[string]int) []string {
	byRoute := map[string][]string{}
	for name, n := range hit {
		route, what := "anywhere", name
		if strings.Contains(name, "&") {
			route = "together"
		} else if i := strings.LastIndexByte(name, '.'); i > 0 {
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
