package main

import (
	"bufio"
	"encoding/json"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// sidecarDelay is how long after a job's end its sidecar may be written, so that the result of
// an earlier run is still that of the sidecar. A later sidecar is read: the images may have been
// pruned.
const sidecarDelay = 5 * time.Minute

// resultLines returns the lines of a results file with their results. A file that is missing
// or damaged has none from there on; a line that is no result is left out.
func resultLines(path string) iter.Seq2[[]byte, *result] {
	return func(yield func([]byte, *result) bool) {
		file, err := os.Open(path) //nolint:gosec // the user's own file
		if err != nil {
			return
		}
		defer file.Close() //nolint:errcheck // read only
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var line struct {
				Result *result `json:"danqing"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Result != nil && !yield(lines.Bytes(), line.Result) {
				return
			}
		}
	}
}

// earlierResults returns the results of the jobs that have all their images according to the
// results file of an earlier run, by job ID. The others can be retried at any time.
func earlierResults(path string) map[string]*result {
	earlier := map[string]*result{}
	for _, result := range resultLines(path) {
		missing := slices.ContainsFunc(result.Images, func(image resultImage) bool { return image.Key == "" })
		if result.State == jobs.StateSucceeded && !missing {
			earlier[result.JobID] = result
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
