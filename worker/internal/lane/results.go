package lane

import (
	"github.com/danqing-queue/danqing/jobs"
)

// imagesToBuy returns the number of images to request, and the seed of the first: the
// images that the job lacks, from the seed of the first of them on. The record must
// have its request.
func imagesToBuy(rec *jobs.Record, req jobs.Request) (n int, seed *int64) {
	missing := rec.Missing()
	if len(missing) == 0 || len(missing) == max(req.N, 1) {
		return req.N, req.Seed
	}
	if req.Seed != nil {
		first := *req.Seed + int64(missing[0]) - 1
		seed = &first
	}
	return len(missing), seed
}

// renumber gives the results of a task the numbers of the images that the job lacked.
// If the task has another number of results, as an adopted task may, its numbers are
// kept: existing images stay.
func renumber(results []jobs.Result, missing []int) []jobs.Result {
	if len(results) == len(missing) {
		for i := range results {
			results[i].N = missing[i]
		}
	}
	return results
}
