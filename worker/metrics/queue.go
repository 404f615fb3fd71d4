package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

const (
	// scrapeTimeout limits the reads of a scrape: Prometheus waits for 10 s by default.
	scrapeTimeout = 5 * time.Second
	// recordsRead is how many records of held jobs, and of jobs whose images are being stored, a
	// scrape reads at most. Workers submit nothing more while 64 jobs each wait for the bucket.
	recordsRead = 1000
	// unread is the code of the held jobs beyond recordsRead.
	unread = "unread"
)

// queue reads the state of the queue from Redis when it is scraped.
type queue struct {
	client    *jobs.Client
	inspector *jobs.Inspector
	store     *jobs.Store
	ledger    *ledger.Ledger

	up, jobs, held, depth, oldest                       *prometheus.Desc
	slots, busy, laneHeld, paused                       *prometheus.Desc
	budget, budgetLeft, spent, unstored, oldestUnstored *prometheus.Desc
}

func newQueue(rdb redis.UniversalClient) *queue {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &queue{
		client: jobs.NewClient(rdb), inspector: jobs.NewInspector(rdb), store: jobs.NewStore(rdb), ledger: ledger.New(rdb),
		up:             desc("danqing_redis_up", "Whether this scrape could read the queue from Redis. If it is 0, gauges of the queue are missing."),
		jobs:           desc("danqing_jobs", "Jobs by state; of ended ones those of the last 7 days.", "state"),
		held:           desc("danqing_jobs_held", "Jobs that wait for an operator's decision, by code.", "code"),
		depth:          desc("danqing_queue_depth", "Jobs that a lane can start now.", "model", "priority"),
		oldest:         desc("danqing_queue_oldest_age_seconds", "For how long the job waits that is drawn next; 0 if none waits.", "model", "priority"),
		slots:          desc("danqing_lane_slots", "How many tasks a lane may have at once.", "account", "model"),
		busy:           desc("danqing_lane_slots_busy", "How many tasks a lane has.", "account", "model"),
		laneHeld:       desc("danqing_lane_held", "Whether a worker holds the lane.", "account", "model"),
		paused:         desc("danqing_lane_paused", "Whether a held lane starts no jobs, and why.", "account", "model", "reason"),
		budget:         desc("danqing_budget_yuan", "The daily budget of an account, if it has one.", "account"),
		budgetLeft:     desc("danqing_budget_remaining_yuan", "What is left of an account's budget of today, in UTC+8, without what running tasks may cost.", "account"),
		spent:          desc("danqing_spent_today_yuan", "What an account has spent today, in UTC+8.", "account"),
		unstored:       desc("danqing_unstored_images", "Images that are paid for and not in the bucket yet."),
		oldestUnstored: desc("danqing_unstored_oldest_age_seconds", "How long ago the oldest of them was made: DashScope keeps it for 24 hours."),
	}
}

// Describe implements [prometheus.Collector].
func (q *queue) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		q.up, q.jobs, q.held, q.depth, q.oldest, q.slots, q.busy, q.laneHeld, q.paused, q.budget, q.budgetLeft, q.spent, q.unstored, q.oldestUnstored,
	} {
		descs <- d
	}
}

// Collect implements [prometheus.Collector]. It stops at the first error of Redis.
func (q *queue) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, read := range []func(context.Context, gaugeFunc) error{q.readJobs, q.readQueues, q.readLanes, q.readHeld, q.readUnstored} {
		if err := read(ctx, gauge); err != nil {
			gauge(q.up, 0)
			return
		}
	}
	gauge(q.up, 1)
}

type gaugeFunc func(d *prometheus.Desc, value float64, labels ...string)

func (q *queue) readJobs(ctx context.Context, gauge gaugeFunc) error {
	counts, err := q.client.Counts(ctx)
	for state, n := range counts {
		gauge(q.jobs, float64(n), string(state))
	}
	return err
}

func (q *queue) readQueues(ctx context.Context, gauge gaugeFunc) error {
	queues, err := q.inspector.Queues(ctx)
	for _, of := range queues {
		age := 0.0
		if !of.NextSince.IsZero() {
			age = max(0, time.Since(of.NextSince).Seconds())
		}
		gauge(q.depth, float64(of.Depth), of.Model, of.Priority)
		gauge(q.oldest, age, of.Model, of.Priority)
	}
	return err
}

func (q *queue) readLanes(ctx context.Context, gauge gaugeFunc) error {
	lanes, err := q.inspector.Lanes(ctx)
	if err != nil {
		return err
	}
	var accounts []string
	budgets := map[string]int64{}
	for _, lane := range lanes {
		if _, known := budgets[lane.Account]; !known {
			accounts = append(accounts, lane.Account)
		}
		budgets[lane.Account] = max(budgets[lane.Account], 0)
		gauge(q.laneHeld, boolValue(lane.Held), lane.Account, lane.Model)
		if !lane.Held {
			continue
		}
		budgets[lane.Account] = max(budgets[lane.Account], lane.DailyBudgetMicroYuan)
		gauge(q.slots, float64(lane.Concurrency), lane.Account, lane.Model)
		gauge(q.busy, float64(lane.Busy()), lane.Account, lane.Model)
		reason := lane.Reason
		if lane.Pause != nil { // the lane may have nothing to do, and not know
			reason = jobs.PauseOperator
		}
		gauge(q.paused, boolValue(reason != ""), lane.Account, lane.Model, string(reason))
	}
	totals, err := q.ledger.Totals(ctx, accounts, time.Now())
	if err != nil {
		return err
	}
	for i, account := range accounts {
		gauge(q.spent, yuan(totals[i].SpentMicroYuan), account)
		if budget := budgets[account]; budget > 0 {
			gauge(q.budget, yuan(budget), account)
			gauge(q.budgetLeft, yuan(max(0, budget-totals[i].SpentMicroYuan-totals[i].ReservedMicroYuan)), account)
		}
	}
	return nil
}

func (q *queue) readHeld(ctx context.Context, gauge gaugeFunc) error {
	held, cursor, err := q.client.List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateHeld}, Limit: recordsRead})
	if err != nil {
		return err
	}
	byCode := map[string]int{}
	for _, job := range held {
		byCode[codeLabel(job.Code)]++
	}
	if cursor != "" {
		counts, err := q.client.Counts(ctx)
		if err != nil {
			return err
		}
		byCode[unread] = max(0, int(counts[jobs.StateHeld])-len(held))
	}
	for code, n := range byCode {
		gauge(q.held, float64(n), code)
	}
	return nil
}

func (q *queue) readUnstored(ctx context.Context, gauge gaugeFunc) error {
	storing, _, err := q.store.List(ctx, jobs.ListFilter{States: []jobs.State{jobs.StateStoring}, Limit: recordsRead})
	if err != nil {
		return err
	}
	images, oldest := 0, time.Duration(0)
	for _, rec := range storing {
		images += rec.TaskImages
		oldest = max(oldest, time.Since(rec.GeneratedAt))
	}
	gauge(q.unstored, float64(images))
	gauge(q.oldestUnstored, oldest.Seconds())
	return nil
}

func boolValue(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func yuan(microYuan int64) float64 { return float64(microYuan) / 1e6 }
