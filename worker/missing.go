package worker

import (
	"slices"

	"github.com/danqing-queue/danqing/jobs"
)

// buy returns how many images are asked for, and the seed of the first: those that
// the job lacks, from the seed of the first of them on. The record must hold its
// request.
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

// number gives the results of a task the numbers of the images that the job lacked.
// A task that has others too, as one that a person adopted may, is numbered as it
// is: what the job has already stays.
func renumber(results []jobs.Result, missing []int) []jobs.Result {
	if len(results) == len(missing) {
		for i := range results {
			results[i].N = missing[i]
		}
	}
	return results
}

// seedOf returns the seed of the i-th of a task's results if that is not what its
// number says: the task began at the seed of its first, and did not skip any.
func seedOf(rec *jobs.Record, i int) *int64 {
	first, result := rec.Results[0].N, rec.Results[i]
	if rec.Request == nil || rec.Request.Seed == nil || result.N == first+i {
		return nil
	}
	seed := *rec.Request.Seed + int64(first-1+i)
	return &seed
}

// merged are the images of earlier attempts with those of the last in their place.
func mergeImages(before, made []jobs.Image) []jobs.Image {
	images := slices.Clone(made)
	for _, image := range before {
		if !slices.ContainsFunc(made, func(m jobs.Image) bool { return m.N == image.N }) {
			images = append(images, image)
		}
	}
	slices.SortFunc(images, func(a, b jobs.Image) int { return a.N - b.N })
	return images
}
