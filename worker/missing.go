package worker

import (
	"slices"

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

// seedOf returns the seed of a task's i-th result if it differs from the seed that its
// number implies: a task starts at the seed of its first image and skips none.
func seedOf(rec *jobs.Record, i int) *int64 {
	first, result := rec.Results[0].N, rec.Results[i]
	if rec.Request == nil || rec.Request.Seed == nil || result.N == first+i {
		return nil
	}
	seed := *rec.Request.Seed + int64(first-1+i)
	return &seed
}

// mergeImages returns the new images and those earlier ones whose numbers they lack,
// sorted by number.
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
