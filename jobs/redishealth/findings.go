package redishealth

import "fmt"

// Severity is how bad a [Finding] is.
type Severity string

// The severities of a finding.
const (
	// SeverityError breaks a promise, or will.
	SeverityError Severity = "error"
	// SeverityWarning may cost something if something else fails.
	SeverityWarning Severity = "warning"
	// SeverityNote is worth knowing.
	SeverityNote Severity = "note"
)

// Finding is something about a service that an operator should know.
type Finding struct {
	Severity Severity `json:"severity"`
	// Text is one sentence: the fact, and what it risks.
	Text string `json:"text"`
	// Remedy says what to do, "" for nothing.
	Remedy string `json:"remedy,omitempty"`
}

const (
	// fullPercent is the share of maxmemory that is a warning, and criticalPercent the
	// one at which the next batch may reach the limit. Both are our choice.
	fullPercent     = 80
	criticalPercent = 95
)

// Findings returns what puts the jobs in Redis at risk, the worst first. The embedded
// queue has none.
func (d Durability) Findings() []Finding {
	if d.Version == "" {
		return nil
	}
	var found []Finding
	for _, check := range []func(Durability) []Finding{state, persistence, memory, copies} {
		found = append(found, check(d)...)
	}
	var sorted []Finding
	for _, severity := range []Severity{SeverityError, SeverityWarning, SeverityNote} {
		for _, f := range found {
			if f.Severity == severity {
				sorted = append(sorted, f)
			}
		}
	}
	return sorted
}

// state finds what keeps Redis from working at all.
func state(d Durability) (found []Finding) {
	if d.olderThan(6, 2) {
		found = append(found, Finding{SeverityError,
			fmt.Sprintf("Redis is %s, and jobs can be neither archived nor deleted on one older than 6.2", d.Version),
			"upgrade it to 6.2 or newer, best 7.2"})
	}
	if d.Replica {
		found = append(found, Finding{SeverityError,
			"this Redis is a replica, which takes no jobs", "set REDIS_URL to its primary"})
	}
	if d.Loading {
		found = append(found, Finding{SeverityWarning,
			"Redis is still reading its data from disk and refuses commands", "wait until it has: INFO persistence shows loading:0"})
	}
	if d.AOFFailing {
		found = append(found, Finding{SeverityError,
			"Redis could not write its append-only file and refuses jobs until it can", "free its disk, or see to the error in its log"})
	}
	if d.SnapshotFailing {
		found = append(found, Finding{SeverityError,
			"Redis could not save its last snapshot and refuses jobs, unless stop-writes-on-bgsave-error is no", "free its disk and memory, or see to the error in its log"})
	}
	return found
}

// aofOn is how to make Redis append each write to a file, now and at its next start.
const aofOn = "set in redis.conf: appendonly yes; and now: redis-cli CONFIG SET appendonly yes"

// persistence finds what a restart would lose.
func persistence(d Durability) (found []Finding) {
	switch {
	case !d.AOF && d.Replicas > 0:
		found = append(found, Finding{SeverityWarning,
			"Redis has no append-only file, so that what it has acknowledged lives in the memory of its replicas alone", aofOn})
	case !d.AOF && d.Snapshots != "":
		found = append(found, Finding{SeverityError,
			fmt.Sprintf("Redis only saves snapshots (%s), so that a crash loses the jobs of the last minutes or hour", d.Snapshots), aofOn})
	case !d.AOF:
		found = append(found, Finding{SeverityError,
			"Redis has no append-only file, so that its next restart loses jobs that it has acknowledged, perhaps all", aofOn})
	case d.Fsync == "no":
		found = append(found, Finding{SeverityWarning,
			"Redis leaves it to the system when its file reaches the disk, so that a power cut loses half a minute of jobs",
			"set in redis.conf: appendfsync everysec, or always"})
	case d.Fsync == "":
		found = append(found, Finding{SeverityNote,
			"Redis does not report how often it syncs its append-only file; with everysec, the default, a power cut loses up to a second", ""})
	case d.Fsync == "everysec" && d.waitsForDisk():
		found = append(found, Finding{SeverityNote,
			"Redis syncs every second; nothing is bought before its intent is on the disk, but a power cut loses the jobs that were enqueued in the last second",
			"if producers cannot enqueue again, set in redis.conf: appendfsync always"})
	case d.Fsync == "everysec":
		found = append(found, Finding{SeverityWarning,
			"Redis syncs every second, so that a power cut loses up to a second of what it has acknowledged; the workers' journals still record what was paid for",
			"set in redis.conf: appendfsync always; or upgrade to Redis 7.2, where workers wait for the disk before they buy"})
	}
	if d.RefusesWaitAOF != "" && d.AOF {
		found = append(found, Finding{SeverityWarning,
			"Redis does not say when a write is on its disk: WAITAOF: " + d.RefusesWaitAOF,
			"set appendfsync always, and let its user call WAITAOF; where the service has no such command, keep a replica"})
	}
	if d.AOF && d.NoFsyncOnRewrite && d.Fsync != "no" {
		found = append(found, Finding{SeverityWarning,
			"Redis syncs nothing while it rewrites its append-only file, so that a power cut then loses half a minute of jobs",
			"set in redis.conf: no-appendfsync-on-rewrite no"})
	}
	return found
}

// memory finds what Redis does when it is full.
func memory(d Durability) (found []Finding) {
	const remedy = "set in redis.conf: maxmemory-policy noeviction; and now: redis-cli CONFIG SET maxmemory-policy noeviction; of a managed Redis in its console, as some answer OK to CONFIG SET and change nothing"
	evicts := d.EvictionPolicy != "" && d.EvictionPolicy != "noeviction"
	switch {
	case evicts && d.EvictedKeys > 0:
		found = append(found, Finding{SeverityError,
			fmt.Sprintf("Redis has evicted %d keys since it started, because maxmemory-policy is %s; jobs may be among them", d.EvictedKeys, d.EvictionPolicy), remedy})
	case evicts && d.MaxMemoryBytes > 0:
		found = append(found, Finding{SeverityError,
			fmt.Sprintf("Redis evicts jobs when it is full, because maxmemory-policy is %s", d.EvictionPolicy), remedy})
	case evicts:
		found = append(found, Finding{SeverityWarning,
			fmt.Sprintf("maxmemory-policy is %s, so that Redis will evict jobs as soon as maxmemory is set", d.EvictionPolicy), remedy})
	}
	if d.MaxMemoryBytes <= 0 {
		return found
	}
	if percent := d.UsedBytes / max(d.MaxMemoryBytes/100, 1); percent >= fullPercent {
		f := Finding{SeverityWarning,
			fmt.Sprintf("Redis uses %d %% of its maxmemory of %d bytes; at 100 %% it takes no more jobs", percent, d.MaxMemoryBytes),
			"raise maxmemory, or enqueue less at once; ended jobs are deleted after a week"}
		if percent >= criticalPercent {
			f.Severity = SeverityError
		}
		found = append(found, f)
	}
	return found
}

// copies finds the risk of losing the machine.
func copies(d Durability) []Finding {
	if d.Replicas > 0 && d.RefusesWait != "" {
		return []Finding{{SeverityWarning,
			"Redis does not say when its replicas have a write: WAIT: " + d.RefusesWait,
			"let its user call WAIT; where the service has no such command, a failover may lose what was written in the last second"}}
	}
	if d.Replicas > 0 || d.Replica {
		return nil
	}
	return []Finding{{SeverityNote,
		"Redis has no replica, so that its jobs are lost with its machine's disk; the workers' journals still record what was paid for",
		"if that matters, start a second one with: replicaof HOST PORT"}}
}
