package worker

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

const (
	// notStoredAfter is how long a paid image may be out of the bucket.
	notStoredAfter = time.Hour
	// pausedAfter and openAfter are how long a lane must be paused, or open, for an alert: one whose
	// account has a problem opens for a moment with each of its probes.
	pausedAfter, openAfter = time.Minute, time.Minute
	// noWorkerAfter is how long a model's jobs may wait without a worker: one that restarts is back
	// within that.
	noWorkerAfter = 5 * time.Minute
	// callbackWindow is how long ago a callback may have been given up.
	callbackWindow = 24 * time.Hour
	// batchSettled is how long no job of a batch may be open: its lines are queued a few at a time.
	// batchWindow is how long ago its last job may have ended, and batchMost the same after a time
	// in which no process looked.
	batchSettled, batchWindow, batchMost = time.Minute, 10 * time.Minute, 24 * time.Hour
	// alertRecords is how many records of a state are read.
	alertRecords = 1000
	// valueBytes bounds a value of an alert.
	valueBytes = 300
)

// condition is something that holds, and that an alert is about once it has held for some time.
type condition struct {
	jobs.Alert
	after time.Duration
	// keepOnly means that it neither begins nor ends: it stays as it is in Redis.
	keepOnly bool
}

// conditions are what holds, by a name that begins with its event.
type conditions struct {
	hold map[string]condition
	// over are the alerts about the end of conditions.
	over map[string]jobs.Alert
	// unread are the events of which not all conditions were read.
	unread map[jobs.AlertEvent]bool
}

func conditionName(event jobs.AlertEvent, subject string) string {
	return string(event) + " " + subject
}

func eventOf(name string) jobs.AlertEvent {
	event, _, _ := strings.Cut(name, " ")
	return jobs.AlertEvent(event)
}

// add adds a condition. what distinguishes conditions of one subject.
func (c *conditions) add(after time.Duration, event jobs.AlertEvent, subject, what string, values ...string) {
	for i, value := range values {
		if len(value) > valueBytes {
			values[i] = strings.ToValidUTF8(value[:valueBytes], "") + "…"
		}
	}
	c.hold[conditionName(event, subject+what)] = condition{Alert: jobs.Alert{Event: event, Subject: subject, Values: values}, after: after}
}

// readConditions returns the conditions that hold now. last is the time of the round before.
func (r *alertRounds) readConditions(ctx context.Context, state *jobs.AlertState, last time.Time) (*conditions, error) {
	c := &conditions{hold: map[string]condition{}, over: map[string]jobs.Alert{}, unread: map[jobs.AlertEvent]bool{}}
	lanes, err := r.inspector.Lanes(ctx)
	if err != nil {
		return nil, err
	}
	addLanes(c, lanes)
	for _, read := range []func() error{
		func() error { return r.records(ctx, c) },
		func() error { return r.budgets(ctx, c, lanes) },
		func() error { return r.models(ctx, c, lanes) },
		func() error { return r.callbacks(ctx, c) },
		func() error { return r.batches(ctx, c, state, last) },
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// records adds held jobs, and those whose images are not in the bucket.
func (r *alertRounds) records(ctx context.Context, c *conditions) error {
	for state, event := range map[jobs.State]jobs.AlertEvent{jobs.StateHeld: jobs.AlertHeld, jobs.StateStoring: jobs.AlertNotStored} {
		records, more, err := r.store.List(ctx, jobs.ListFilter{States: []jobs.State{state}, Limit: alertRecords})
		if err != nil {
			return err
		}
		c.unread[event] = more != ""
		for _, rec := range records {
			attempt := "." + strconv.Itoa(rec.Attempt)
			switch {
			case event == jobs.AlertHeld:
				c.add(0, event, rec.ID, attempt, rec.Code+": "+rec.Message)
			case !rec.GeneratedAt.IsZero() && time.Since(rec.GeneratedAt) >= notStoredAfter:
				c.add(0, event, rec.ID, attempt, rec.GeneratedAt.UTC().Format(time.DateTime+"Z"))
			}
		}
	}
	return nil
}

// addLanes adds paused lanes, and says which ones work again. There are no alerts about pauses by an
// operator; those by the service's rate limits end soon; a spent budget is an alert about its account.
func addLanes(c *conditions, lanes []jobs.LaneStatus) {
	for _, lane := range lanes {
		subject := lane.Account + ":" + lane.Model
		name := conditionName(jobs.AlertPaused, subject)
		alertable := lane.Reason != jobs.PauseThrottled && lane.Reason != jobs.PauseOperator && lane.Reason != jobs.PauseBudget
		switch {
		case !lane.Held, lane.State == jobs.LaneOpen && time.Since(lane.At) < openAfter:
			c.hold[name] = condition{keepOnly: true}
		case lane.State == jobs.LanePaused && alertable:
			c.add(pausedAfter, jobs.AlertPaused, subject, "", strings.TrimPrefix(lane.Message, "lane paused: "))
		case lane.State == jobs.LaneOpen:
			c.over[name] = jobs.Alert{Event: jobs.AlertResumed, Subject: subject}
		}
	}
}

// budgets adds the accounts that have spent most of their daily budget, or all of it.
func (r *alertRounds) budgets(ctx context.Context, c *conditions, lanes []jobs.LaneStatus) error {
	budgets, reached := map[string]int64{}, map[string]bool{}
	var accounts []string
	for _, lane := range lanes {
		if !lane.Held || lane.DailyBudgetMicroYuan == 0 {
			continue
		}
		if budgets[lane.Account] == 0 {
			accounts = append(accounts, lane.Account)
		}
		budgets[lane.Account] = max(budgets[lane.Account], lane.DailyBudgetMicroYuan)
		reached[lane.Account] = reached[lane.Account] || lane.State == jobs.LanePaused && lane.Reason == jobs.PauseBudget
	}
	if len(accounts) == 0 {
		return nil
	}
	now := time.Now()
	totals, err := r.ledger.Totals(ctx, accounts, now)
	if err != nil {
		return err
	}
	for i, account := range accounts {
		budget, spent := budgets[account], totals[i].SpentMicroYuan
		event := jobs.AlertBudget80
		switch {
		case reached[account] || spent >= budget:
			event = jobs.AlertBudget
		case spent < budget/5*4:
			continue
		}
		c.add(0, event, account, "."+ledger.Day(now), ledger.FormatYuan(spent), ledger.FormatYuan(budget))
	}
	return nil
}

// models adds the models whose jobs wait while no worker has a lane for them.
func (r *alertRounds) models(ctx context.Context, c *conditions, lanes []jobs.LaneStatus) error {
	worked, waiting := map[string]bool{}, map[string]int64{}
	for _, lane := range lanes {
		worked[lane.Model] = worked[lane.Model] || lane.Held
	}
	queues, err := r.inspector.Queues(ctx)
	for _, queue := range queues {
		if !queue.Paused && !worked[queue.Model] {
			waiting[queue.Model] += queue.Depth
		}
	}
	for model, n := range waiting {
		if n > 0 {
			c.add(noWorkerAfter, jobs.AlertNoWorker, model, "", strconv.FormatInt(n, 10))
		}
	}
	return err
}

// callbacks adds the callbacks and follow-ups that were given up.
func (r *alertRounds) callbacks(ctx context.Context, c *conditions) error {
	abandoned, err := r.inspector.AbandonedNotifications(ctx, time.Now().Add(-callbackWindow))
	for _, n := range abandoned {
		c.add(0, jobs.AlertCallback, n.JobID, " "+n.EventID, n.Error)
	}
	return err
}

// batches adds the batches that are over: their last job ended a while ago.
func (r *alertRounds) batches(ctx context.Context, c *conditions, state *jobs.AlertState, last time.Time) error {
	now := time.Now()
	since := now.Add(-batchWindow)
	if before := last.Add(-batchSettled); !last.IsZero() && before.Before(since) {
		since = before
	}
	if oldest := now.Add(-batchMost); since.Before(oldest) {
		since = oldest
	}
	ends := map[string]time.Time{}
	if err := r.each(ctx, jobs.ListFilter{States: finalStates(), UpdatedAfter: since}, func(rec *jobs.Record) {
		if rec.Batch != "" && rec.FinishedAt.After(ends[rec.Batch]) {
			ends[rec.Batch] = rec.FinishedAt
		}
	}); err != nil {
		return err
	}
	for batch, end := range ends {
		what := "." + strconv.FormatInt(end.UnixMilli(), 10)
		if now.Sub(end) < batchSettled {
			continue
		}
		if state.Conditions[conditionName(jobs.AlertBatchOver, batch+what)] == alerted {
			c.add(0, jobs.AlertBatchOver, batch, what)
			continue
		}
		open, err := r.hasOpenJob(ctx, batch)
		if err != nil {
			return err
		}
		if open {
			continue
		}
		n, spent := map[jobs.State]int{}, int64(0)
		if err := r.each(ctx, jobs.ListFilter{States: finalStates(), Batch: batch}, func(rec *jobs.Record) {
			n[rec.State]++
			spent += rec.CostMicroYuan
		}); err != nil {
			return err
		}
		c.add(0, jobs.AlertBatchOver, batch, what,
			strconv.Itoa(n[jobs.StateSucceeded]), strconv.Itoa(n[jobs.StateFailed]), strconv.Itoa(n[jobs.StateCanceled]), ledger.FormatYuan(spent))
	}
	return nil
}

// finalStates are those of jobs that have ended.
func finalStates() []jobs.State {
	return []jobs.State{jobs.StateSucceeded, jobs.StateFailed, jobs.StateCanceled}
}

// each calls do with the records of a filter.
func (r *alertRounds) each(ctx context.Context, filter jobs.ListFilter, do func(*jobs.Record)) error {
	filter.Limit = alertRecords
	for {
		records, cursor, err := r.store.List(ctx, filter)
		if err != nil {
			return err
		}
		for _, rec := range records {
			do(rec)
		}
		if filter.Cursor = cursor; cursor == "" {
			return nil
		}
	}
}

// hasOpenJob reports whether a batch has a job that has not ended. To find one it reads the records
// of all open jobs, so it first asks for the one that it found before.
func (r *alertRounds) hasOpenJob(ctx context.Context, batch string) (bool, error) {
	if id := r.openJobs[batch]; id != "" {
		rec, err := r.store.Get(ctx, id)
		switch {
		case err == nil && !rec.State.Final():
			return true, nil
		case err != nil && !errors.Is(err, jobs.ErrNotFound) && !errors.Is(err, jobs.ErrCorrupt):
			return false, err
		}
		delete(r.openJobs, batch)
	}
	filter := jobs.ListFilter{Batch: batch, Limit: 1}
	for _, state := range jobs.States() {
		if !state.Final() {
			filter.States = append(filter.States, state)
		}
	}
	records, _, err := r.store.List(ctx, filter)
	if err != nil || len(records) == 0 {
		return false, err
	}
	r.openJobs[batch] = records[0].ID
	return true, nil
}
