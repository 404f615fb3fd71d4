package lane

import (
	"cmp"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// purchase returns what a task was charged for: what its usage says, and the dearest possible
// where it says nothing. req is nil if the request is not known.
func purchase(m jobs.Model, req *jobs.Request, task *dashscope.Task, images int) jobs.Purchase {
	p := m.Most(req, images)
	if large, known := task.Usage.Large(); known && m.LargePixels > 0 {
		p.LargeImages = 0
		if large {
			p.LargeImages = images
		}
	}
	if inputs, known := task.Usage.Inputs(); known && m.InputPrices != nil {
		p.Inputs = min(inputs, m.Inputs.Max*m.ImagesAtMost()) // not what a broken answer says
	}
	return p
}

// imagesToBuy returns the number of images to request, and the seed of the first: all with the
// seeds of the request, or the images that the job lacks, with seeds that no earlier attempt had.
// The seed of an image that was made would make it again, and answers of some protocols do not say
// which images failed. The record must have its request.
func imagesToBuy(m jobs.Model, rec *jobs.Record, req jobs.Request) (n int, seed *int64) {
	n = max(req.N, 1)
	missing := len(rec.Missing())
	if missing == 0 || missing == n || req.Seed == nil {
		return cmp.Or(missing, n), req.Seed
	}
	first := (*req.Seed + int64(n)*int64(rec.Attempt)) % (m.MaxSeed - int64(n) + 2)
	return missing, &first
}

// renumber gives the results of a task the numbers of the images that the job lacked.
// If the task has more results, as an adopted task may, its numbers are kept: existing
// images stay.
func renumber(results []jobs.Result, missing []int) []jobs.Result {
	if len(results) <= len(missing) {
		for i := range results {
			results[i].N = missing[i]
		}
	}
	return results
}
