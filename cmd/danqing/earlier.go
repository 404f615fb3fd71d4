package main

import (
	"bufio"
	"encoding/json"
	"os"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// sidecarDelay is how long after a job's end its sidecar may be written, so that the result of
// an earlier run is still that of the sidecar. A later sidecar is read: the job may have been
// retried.
const sidecarDelay = 5 * time.Minute

// earlierResults returns the results of the jobs that have ended according to the results file
// of an earlier run, by job ID. A file that is missing or damaged has none, and neither has a
// line that is no result.
func earlierResults(path string) map[string]*result {
	earlier := map[string]*result{}
	file, err := os.Open(path) //nolint:gosec // the user's own file
	if err != nil {
		return earlier
	}
	defer file.Close() //nolint:errcheck // read only
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var line struct {
			Result *result `json:"danqing"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Result != nil && line.Result.State.Final() {
			earlier[line.Result.JobID] = line.Result
		}
	}
	return earlier
}

// settleFromResults settles a line by the result of an earlier run, and reports whether it did.
// The line's job has a sidecar that was written at a time: it is finished, and the result is of
// the same request.
func (r *batchRun) settleFromResults(l *line, earlier *result, sidecarAt time.Time, simulated bool) bool {
	if earlier == nil || earlier.Digest != l.digest || earlier.Simulated != simulated || sidecarAt.After(earlier.FinishedAt.Add(sidecarDelay)) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.settled {
		return true
	}
	l.settled, l.result = true, earlier
	r.count.add(&jobs.Job{State: earlier.State}, true)
	return true
}
