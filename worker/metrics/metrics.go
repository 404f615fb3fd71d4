// Package metrics counts what a worker does, and reads the state of the queue, for Prometheus.
//
// Counters are of one process. Gauges that are read from Redis are of the whole queue: every
// process shows the same, so that queries use max, not sum. No label has a value that users
// choose, such as a job's ID, a batch or a label.
package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Metrics are the metrics of one process. The zero value is not valid; see [New].
type Metrics struct {
	registry *prometheus.Registry

	creates, throttled, ambiguous, tasks, ended, failures, refusals *prometheus.CounterVec
	paidImages, storedImages, storedBytes, cost                     *prometheus.CounterVec
	stages, requests                                                *prometheus.HistogramVec
	busy, idle, terms, leasesLost                                   *prometheus.CounterVec
	notifications, redisErrors, bucketErrors                        *prometheus.CounterVec
	bucketRequests                                                  *prometheus.HistogramVec
}

// New returns metrics with the Go runtime's and the process's. version is the program's.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(h)
		return h
	}
	m.creates = counter("danqing_creates_total", "Creates of tasks, by outcome: created, throttled, refused, account, model, terminal, retry, ambiguous.", "account", "model", "outcome")
	m.throttled = counter("danqing_throttled_total", "Creates that the service refused because of its rate limits, by its code.", "account", "model", "code")
	m.ambiguous = counter("danqing_ambiguous_creates_total", "Creates whose outcome is unknown (outcome open), and how they were settled: adopted, not_created, held.", "account", "model", "outcome")
	m.tasks = counter("danqing_tasks_total", "Tasks that have ended, by outcome: succeeded, failed, canceled, unknown.", "account", "model", "outcome")
	m.ended = counter("danqing_jobs_ended_total", "Jobs that this process has ended or held, by state: succeeded, failed, canceled, held.", "model", "state")
	m.failures = counter("danqing_job_failures_total", "Jobs that failed or were held, by code.", "model", "code")
	m.refusals = counter("danqing_moderation_refusals_total", "Prompts (stage input) and images (stage output) that the service's moderation refused.", "model", "stage")
	m.paidImages = counter("danqing_images_paid_total", "Images that were booked in the ledger.", "account", "model")
	m.cost = counter("danqing_cost_yuan_total", "What was booked in the ledger, in yuan.", "account", "model")
	m.storedImages = counter("danqing_images_stored_total", "Images that were copied into the bucket.", "account", "model")
	m.storedBytes = counter("danqing_stored_bytes_total", "Bytes of the images that were copied into the bucket.", "account", "model")
	m.stages = histogram("danqing_job_stage_seconds", "Time of jobs in each stage: queued, generating, storing, and from end to end: total.",
		[]float64{0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400, 43200, 86400}, "model", "stage")
	m.requests = histogram("danqing_dashscope_request_seconds", "Requests to the service, by operation and HTTP status; status none means no answer.",
		[]float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 330}, "account", "operation", "status")
	m.busy = counter("danqing_lane_busy_seconds_total", "Time for which slots of a lane of this process had a task, summed over its slots.", "account", "model")
	m.idle = counter("danqing_lane_idle_seconds_total", "Time for which slots of a lane of this process had no task while jobs waited, summed over its slots. Reason none: nothing excuses it.", "account", "model", "reason")
	m.terms = counter("danqing_lane_terms_total", "Times that this process took over a lane.", "account", "model")
	m.leasesLost = counter("danqing_lane_leases_lost_total", "Times that this process lost the lease of a lane.", "account", "model")
	m.notifications = counter("danqing_notifications_total", "Attempts of callbacks, follow-ups and alerts, by result: delivered, failed (tried again), abandoned, dropped.", "kind", "result")
	m.redisErrors = counter("danqing_redis_errors_total", "Redis commands that failed: without an answer (kind connection), or with an error (kind reply).", "kind")
	m.bucketErrors = counter("danqing_bucket_errors_total", "Requests to the bucket that failed: without an answer (status none), or by HTTP status.", "method", "status")
	m.bucketRequests = histogram("danqing_bucket_request_seconds", "Requests to the bucket.", []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}, "method")
	for _, kind := range notificationKinds() {
		for _, result := range []string{"delivered", "failed", "abandoned", "dropped"} {
			m.notifications.WithLabelValues(kind, result) // see TermBegun
		}
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "danqing_build_info", Help: "The program's version; the value is 1.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	m.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// WatchQueue adds the gauges of a queue, which each scrape reads from Redis. It must be called
// once at most.
func (m *Metrics) WatchQueue(rdb redis.UniversalClient) { m.registry.MustRegister(newQueue(rdb)) }

// Registry has all metrics.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Handler serves the metrics in Prometheus's formats. What cannot be read is left out and logged.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	})
}

// Request counts a request to the service. status is 0 without an answer.
func (m *Metrics) Request(account, operation string, status int, took time.Duration) {
	m.requests.WithLabelValues(account, operation, statusLabel(status)).Observe(took.Seconds())
}

// Created counts a create that made a task.
func (m *Metrics) Created(account, model string) {
	m.creates.WithLabelValues(account, model, "created").Inc()
}

// NotCreated counts a create without a task, or with an unknown outcome.
func (m *Metrics) NotCreated(account, model string, refusal *dashscope.Error) {
	m.creates.WithLabelValues(account, model, string(refusal.Kind)).Inc()
	if refusal.Kind == dashscope.KindThrottled {
		m.throttled.WithLabelValues(account, model, codeLabel(refusal.Code)).Inc()
	}
}

// Booked counts what was booked in the ledger.
func (m *Metrics) Booked(account, model string, images int, microYuan int64) {
	m.paidImages.WithLabelValues(account, model).Add(float64(images))
	m.cost.WithLabelValues(account, model).Add(float64(microYuan) / 1e6)
}

// Used counts for how long a lane's slots had a task, and by reason for how long they had none
// while jobs waited.
func (m *Metrics) Used(account, model string, busy time.Duration, idle map[jobs.PauseReason]time.Duration) {
	m.busy.WithLabelValues(account, model).Add(busy.Seconds())
	for reason, passed := range idle {
		if reason == "" {
			reason = "none"
		}
		m.idle.WithLabelValues(account, model, string(reason)).Add(passed.Seconds())
	}
}

// TermBegun counts that this process took over a lane. The lane's counters begin at 0 with it:
// Prometheus sees no increase in a series that begins with its first event.
func (m *Metrics) TermBegun(account, model string) {
	m.terms.WithLabelValues(account, model).Inc()
	m.leasesLost.WithLabelValues(account, model)
	m.busy.WithLabelValues(account, model)
	m.idle.WithLabelValues(account, model, "none")
	for _, outcome := range []string{"created", "throttled", "ambiguous"} {
		m.creates.WithLabelValues(account, model, outcome)
	}
	for _, outcome := range []string{"open", "adopted", "not_created", "held"} {
		m.ambiguous.WithLabelValues(account, model, outcome)
	}
	for _, outcome := range []string{"succeeded", "failed", "canceled", "unknown"} {
		m.tasks.WithLabelValues(account, model, outcome)
	}
	for _, of := range []*prometheus.CounterVec{m.paidImages, m.cost, m.storedImages, m.storedBytes} {
		of.WithLabelValues(account, model)
	}
	for _, state := range []jobs.State{jobs.StateSucceeded, jobs.StateFailed, jobs.StateCanceled, jobs.StateHeld} {
		m.ended.WithLabelValues(model, string(state))
	}
}

// LeaseLost counts a lost lease.
func (m *Metrics) LeaseLost(account, model string) {
	m.leasesLost.WithLabelValues(account, model).Inc()
}

// Notified counts an attempt of a notification.
func (m *Metrics) Notified(kind jobs.NotificationKind, result string) {
	label := string(kind)
	if !slices.Contains(notificationKinds(), label) { // of another version
		label = other
	}
	m.notifications.WithLabelValues(label, result).Inc()
}

func notificationKinds() []string {
	return []string{string(jobs.NotificationCallback), string(jobs.NotificationFollowUp), "alert"}
}

// BucketRequest counts a request to the bucket. status is 0 without an answer. That an object does
// not exist is no error.
func (m *Metrics) BucketRequest(method string, status int, took time.Duration) {
	m.bucketRequests.WithLabelValues(method).Observe(took.Seconds())
	if status == 0 || status >= http.StatusBadRequest && status != http.StatusNotFound && status != http.StatusPreconditionFailed {
		m.bucketErrors.WithLabelValues(method, statusLabel(status)).Inc()
	}
}
