package jobs

import (
	"slices"
	"time"
)

// Missing returns the numbers of the requested images that are not in the bucket, in
// order: all at first, none once the job has succeeded completely. A lane buys these. For a
// job without its request, and for a group that has images, the images that it lists count as
// requested.
func (j *Job) Missing() []int {
	n := 1
	if j.Request != nil && (!j.Request.IsGroup() || j.storedImages() == 0) {
		n = max(n, j.Request.N)
	} else {
		for _, image := range j.Images {
			n = max(n, image.N)
		}
	}
	var missing []int
	for i := 1; i <= n; i++ {
		if !slices.ContainsFunc(j.Images, func(image Image) bool { return image.N == i && image.Key != "" }) {
			missing = append(missing, i)
		}
	}
	return missing
}

// storedImages counts the images that are in the bucket.
func (j *Job) storedImages() int {
	n := 0
	for _, image := range j.Images {
		if image.Key != "" {
			n++
		}
	}
	return n
}

// ImageSeed returns the seed of an image: its own if it was bought separately later, else
// the one that its number has in the request; 0 if the job has no request.
func (j *Job) ImageSeed(image Image) int64 {
	switch {
	case image.Seed != nil:
		return *image.Seed
	case j.Request == nil || j.Request.Seed == nil:
		return 0
	}
	return *j.Request.Seed + int64(image.N) - 1
}

// End sets how the job ended, and when. A job that failed or was canceled, but has images
// of an earlier attempt, has succeeded with these; the images that it lacks say why.
func (r *Record) End(state State, code, message string, at time.Time) {
	r.State, r.Code, r.Message, r.FinishedAt = state, code, message, at
	last := slices.IndexFunc(r.PastAttempts, func(a Attempt) bool { return a.Images > 0 })
	if state == StateSucceeded || last < 0 {
		return
	}
	r.archiveAttempt()
	r.State, r.Code, r.Message, r.Results, r.TaskID = StateSucceeded, "", "", nil, r.PastAttempts[last].TaskID
	if r.Request != nil { // without a seed if nothing was submitted since
		req := r.Request.WithSeed(r.ID)
		r.Request = &req
	}
	r.Images = slices.Clone(r.Images)
	for _, n := range r.Missing() {
		missing := Image{N: n, Code: code, Message: message}
		switch i := slices.IndexFunc(r.Images, func(image Image) bool { return image.N == n }); {
		case i < 0:
			r.Images = append(r.Images, missing)
		case code != CodeCanceled: // the earlier reason says more than that one
			r.Images[i] = missing
		}
	}
	slices.SortFunc(r.Images, func(a, b Image) int { return a.N - b.N })
}
