// Package rediskey names every Redis key that Danqing owns, with its type, lifetime,
// writer and readers. The keys of asynq, which queues the messages, are in package jobs.
//
// A name in capitals stands for a value. A lifetime is measured from the last write,
// unless the comment says otherwise; "none" means that the key does not expire. A lost
// key costs no money: the worker's journal and the bucket have what was paid for.
package rediskey

import (
	"regexp"
	"time"
)

// Prefix is the prefix of all keys, and of the names of asynq's queues.
const Prefix = "danqing:"

// Jobs. Package jobs writes these keys for producers, operators and workers.
const (
	// Events is a publish-subscribe channel. Every write of a record publishes the ID
	// of its job. A new message publishes the key of its queue's list of pending messages,
	// which has colons. Readers: jobs.Client.Wait and Subscribe; workers.
	Events = "danqing:events"
	// NotificationsDue is a sorted set of the IDs of the ended jobs whose notifications
	// are not in the queue yet, by the time of the write in Unix milliseconds.
	// Lifetime: an entry is removed once its messages are queued.
	// Writer: the script that writes records. Reader: the worker's notification server.
	NotificationsDue = "danqing:notifications:due"
	// Deadlines is a sorted set of the IDs of the waiting jobs that have a deadline, by the
	// deadline in Unix milliseconds. Lifetime: an entry is removed when the job no longer
	// waits. Writer: the script that writes records. Reader: workers.
	Deadlines = "danqing:deadlines"
	// Lanes is a hash ACCOUNT:MODEL → status as JSON, for people. Lifetime: none.
	// Writer: the worker that holds the lane. Readers: jobs.Inspector.Lanes, the gateway.
	Lanes = "danqing:lanes"
	// Workers is a hash WORKER → what it announced, as JSON: its models, and which callbacks
	// it can send. Lifetime: an entry counts for a week. Writer: workers, every ten minutes.
	// Readers: jobs.Inspector.Workers, the gateway.
	Workers = "danqing:workers"
	// PausedAccounts is a hash ACCOUNT → pause as JSON. Lifetime: until the account is
	// resumed. Writer: jobs.Inspector.PauseAccount. Readers: lanes before each submit. A
	// model's pause is the value of asynq's own keys that pause its queues.
	PausedAccounts = "danqing:accounts:paused"
	// Pauses is a list of the last pauses and resumes of accounts and models as JSON, newest
	// first. Lifetime: none; it has 100 entries at most. Writer: jobs.Inspector, in the same
	// transaction. Reader: jobs.Inspector.PauseHistory.
	Pauses = "danqing:pauses"
	// Alerts is a hash of the conditions that alerts are about → when one was first seen, or "alerted";
	// round, when they were last read; outbox, a message that is not queued yet, as
	// JSON. Lifetime: an entry is removed once its condition is over. Writers and readers: workers
	// and gateways.
	Alerts = "danqing:alerts"
	// KeyIDs is a hash of an API key's fingerprint → the api_key_id under which
	// DashScope lists its tasks. Lifetime: none. Writer and reader: lanes.
	KeyIDs = "danqing:keys"
)

// Record is a hash with one job: state, attempt, term and write for the compare-and-set;
// digest, queue (MODEL:PRIORITY) and enqueued (a time); cancel, the decision to cancel it as JSON;
// and record, the rest as JSON, if there is any. While the job waits for its first submit, its
// message alone has the request. Lifetime: none until the job has ended, then seven days.
// Writer and readers: package jobs.
func Record(jobID string) string { return "danqing:job:" + jobID }

// Index is a sorted set of the IDs of the jobs in a state, by the time of their last
// write in Unix milliseconds. Lifetime: none; entries of ended jobs are removed after
// seven days. Writer: the script that writes records. Readers: package jobs.
func Index(state string) string { return "danqing:jobs:" + state }

// Durations is a list of a model's last tasks as MILLISECONDS SIZE IMAGES, newest first.
// Lifetime: none; it has 256 entries at most. Writer: lanes. Readers: lanes,
// jobs.Client.Backlog.
func Durations(model string) string { return "danqing:durations:" + model }

// ProducerWaiting is a set of the IDs of a producer's waiting jobs. Lifetime: none; the
// script that writes records keeps it. Reader: the same script, for jobs.Limits.
func ProducerWaiting(producer string) string { return "danqing:producer:" + producer + ":waiting" }

// ProducerScheduled is a set of the IDs of those that wait for their not_before. Lifetime
// and users: as [ProducerWaiting].
func ProducerScheduled(producer string) string { return "danqing:producer:" + producer + ":scheduled" }

// ProducerJobs is a sorted set of the IDs of a producer's jobs, by the time at which they
// were enqueued in Unix milliseconds. Lifetime: entries are removed after [ProducerJobsLifetime],
// or when a list finds no record. Writer: the script that writes records. Reader:
// jobs.Client.ListProducer, so that a list costs a producer its own jobs alone.
func ProducerJobs(producer string) string { return "danqing:producer:" + producer + ":jobs" }

// ProducerJobsLifetime is longer than jobs commonly wait, with their not_before.
const ProducerJobsLifetime = 60 * 24 * time.Hour

// ProducerDay is the sum of what a producer's jobs of a day (YYYY-MM-DD, UTC+8) may cost
// or have cost, in millionths of a yuan. Lifetime: [TaskLifetime]. Writer and reader: the
// script that writes records, for jobs.Limits.
func ProducerDay(producer, day string) string { return "danqing:producer:" + producer + ":" + day }

// Task is a hash with one DashScope task: job, its owner; quarantined, the job for which
// its images are quarantined; spent, the day (YYYY-MM-DD) on which its cost was booked.
// Lifetime: [TaskLifetime]. Writers: package jobs and jobs/ledger. Readers: both, lanes.
func Task(taskID string) string { return "danqing:task:" + taskID }

// TaskLifetime is how long Redis has a task's owner and that it was booked: a day longer
// than a record. DashScope has a task for one day.
const TaskLifetime = 8 * 24 * time.Hour

// Money. Package jobs/ledger writes and reads these keys for workers and operators. All
// amounts are in millionths of a yuan.
const (
	// LedgerDays is a sorted set of ACCOUNT:DAY, by the day as a number (20260131).
	// Lifetime: entries are removed after two years.
	LedgerDays = "danqing:ledger"
	// LedgerImports is a hash WORKER → first day that is imported task by task, with
	// " done" after it once all is imported. Lifetime: none.
	LedgerImports = "danqing:ledger:imports"
)

// LedgerDay is a hash with one day of an account: spent and reserved, its sums;
// open:JOB.ATTEMPT, an open reservation as AMOUNT IMAGES NANOSECONDS GROUP; spent:GROUP
// and images:GROUP, the sums of a group; import:WORKER, what a worker's log brought. A
// GROUP is JSON of model, batch and labels. Lifetime: two years from the day's start.
func LedgerDay(account, day string) string { return LedgerDays + ":" + account + ":" + day }

// BatchBudget is a hash with a batch: cap, spent, reserved and import:WORKER. Lifetime:
// two years.
func BatchBudget(batch string) string { return "danqing:budget:" + batch }

// The gateway (jobs/gateway) writes and reads these keys.

// Dedupe is a hash of the jobs of equal requests whose images were not delivered yet, by a hash
// of the request and its token: JOB, and JOB/WAITER → PROCESS for each request that waits for
// it. Lifetime: 24 hours from the last request.
func Dedupe(requestHash string) string { return "danqing:dedupe:" + requestHash }

// WaitingGateways is a sorted set of the gateways whose requests wait, by the time until which
// they are believed to, in Unix milliseconds. Lifetime: an entry is renewed every second.
const WaitingGateways = "danqing:gateways"

// Upload is an uploaded reference image as JSON, by its object name. Lifetime: 48 hours
// from the first write, as at DashScope.
func Upload(name string) string { return "danqing:upload:" + name }

// References is a sorted set of the reference images in the bucket that were staged over
// HTTP, by their last use in Unix milliseconds. Lifetime: an entry is removed with its
// image, 48 hours after the last use. Writers: the gateway, workers. Reader: workers.
const References = "danqing:references"

// ReferenceName is a member of [References].
func ReferenceName(owner, hash string) string { return owner + "/" + hash }

// ReferenceJobs is a set of the IDs of the jobs that use a reference image. Lifetime, writers
// and reader: as [References].
func ReferenceJobs(name string) string { return References + ":" + name }

// ProducerUploads is a hash with what a producer uploaded on a day (YYYY-MM-DD, UTC+8): count
// and bytes. Lifetime: 48 hours. Writer and reader: the gateway.
func ProducerUploads(producer, day string) string {
	return "danqing:producer:" + producer + ":uploads:" + day
}

// Workers write and read these keys.
const (
	// Dataset is a random ID that the first worker writes. It is gone, or another one,
	// once Redis has lost its data. Lifetime: none.
	Dataset = "danqing:dataset"
	// Mode is "real" or "simulated": the jobs of this database are that for good.
	// Lifetime: none; danqing purge deletes it last. Writer: workers at their start, and
	// once Redis has lost its data. Readers: all, at their start.
	Mode = "danqing:mode"
	// Barrier is the time in Unix milliseconds of the last write by
	// redishealth.WaitDurable, which waits until that write is durable. Lifetime: none.
	Barrier = "danqing:barrier"
	// Maintenance is when the janitor ran last, in Unix milliseconds. Lifetime: none.
	Maintenance = "danqing:maintenance:last_run"
	// Term is a counter, incremented by each worker that acquires a lane. Lifetime: none.
	Term = "danqing:term"
	// DoctorProbe is written by danqing doctor to see whether Redis accepts writes.
	// Lifetime: ten seconds. Reader: none.
	DoctorProbe = "danqing:doctor"
)

// Lane is the key of a part of a lane.
func Lane(account, model, part string) string {
	return "danqing:lane:" + account + ":" + model + ":" + part
}

// The parts of a [Lane]. The lane's holder writes and reads them; other readers are
// named.
const (
	// LaneLease is the ID of the worker that holds the lane. Lifetime: 9 seconds,
	// renewed by the holder. Readers: standby workers, jobs.Inspector.Lanes.
	LaneLease = "lease"
	// LaneTerm is the term of the lane's last holder. Lifetime: none.
	LaneTerm = "term"
	// LaneInFlight is a hash of the jobs that the lane works on → time of the mark.
	// Writers: also other lanes, a worker's recovery and its janitor. Reader: the next
	// holder. Lifetime: an entry is removed when the lane's work on the job has ended.
	LaneInFlight = "in_flight"
	// LaneIntents is a hash JOB.ATTEMPT → intent as JSON, of the creates whose outcome
	// stayed open and which were bought again or are held. Lifetime: an entry is removed
	// once no late task can appear. Writers: the script that writes records; a
	// worker's recovery; the holder, once a late task is found.
	LaneIntents = "intents"
	// LaneQuarantine is a hash TASK → quarantined task as JSON. Writers: also a worker's
	// recovery. Lifetime: an entry is removed once its images are in the bucket and no
	// job is to be held for it any more.
	LaneQuarantine = "quarantine"
	// LaneVerifiedDataset is the dataset that the lane was last verified against.
	// Lifetime: none.
	LaneVerifiedDataset = "verified_dataset"
	// LaneListed is when the account's task list was first seen to show a task of the model, in
	// RFC 3339. Only then a lost create of a model whose path is not text2image is reconciled.
	// Writers: also danqing doctor. Lifetime: none.
	LaneListed = "listed"
	// LaneLastTask is the lane's last created task as JSON. Lifetime: as long as
	// DashScope has the task, 24 hours.
	LaneLastTask = "last_task"
	// LaneUsage is a hash HOUR:busy and HOUR:idle → milliseconds, by the hours since 1970, of the
	// last 24 hours: how long the lane's slots had a task, and how long they had none while jobs
	// waited. Lifetime: none; older hours are removed by the next write. Reader:
	// jobs.Inspector.Lanes.
	LaneUsage = "usage"
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ValidName reports whether an account or a producer may have this name: 1 to 64
// characters of A-Z, a-z, 0-9, dot, underscore and hyphen. Names stand between colons.
func ValidName(name string) bool { return namePattern.MatchString(name) }
