package jobs

import (
	"slices"
	"time"
)

// Missing returns the numbers of the images that the job asks for and has not in
// the bucket, in their order: all of them before it is made, none once it has
// succeeded as a whole. What a lane buys for the job is these. A record without
// its request is taken to ask for the images that it lists.
func (r *Record) Missing() []int {
	n := 1
	if r.Request != nil {
		n = max(n, r.Request.N)
	} else {
		for _, image := range r.Images {
			n = max(n, image.N)
		}
	}
	var missing []int
	for i := 1; i <= n; i++ {
		if !slices.ContainsFunc(r.Images, func(image Image) bool { return image.N == i && image.Key != "" }) {
			missing = append(missing, i)
		}
	}
	return missing
}

// storedImages counts the images that are in the bucket.
func (r *Record) storedImages() int {
	n := 0
	for _, image := range r.Images {
		if image.Key != "" {
			n++
		}
	}
	return n
}

// ImageSeed returns the seed that an image was made with: its own, if it was bought
// alone later, or else the one that its number has in the request; 0 if the
// request is not known.
func (r *Record) ImageSeed(image Image) int64 {
	switch {
	case image.Seed != nil:
		return *image.Seed
	case r.Request == nil || r.Request.Seed == nil:
		return 0
	}
	return *r.Request.Seed + int64(image.N) - 1
}

// End says how the job ended, at a time. A job that failed or was canceled, of
// which an earlier attempt has brought images, has succeeded with these: what
// exists is not lost from view because the rest could not be had. The images that
// it lacks then say why.
func (r *Record) End(state State, code, message string, at time.Time) {
	r.State, r.Code, r.Message, r.FinishedAt = state, code, message, at
	last := slices.IndexFunc(r.PastAttempts, func(a Attempt) bool { return a.Images > 0 })
	if state == StateSucceeded || last < 0 {
		return
	}
	r.archiveAttempt()
	r.State, r.Code, r.Message, r.Results, r.TaskID = StateSucceeded, "", "", nil, r.PastAttempts[last].TaskID
	if r.Request != nil { // as asked, if nothing was submitted since
		req := r.Request.WithSeed(r.ID)
		r.Request = &req
	}
	r.Images = slices.Clone(r.Images)
	for _, n := range r.Missing() {
		why := Image{N: n, Code: code, Message: message}
		switch i := slices.IndexFunc(r.Images, func(image Image) bool { return image.N == n }); {
		case i < 0:
			r.Images = append(r.Images, why)
		case code != CodeCanceled: // that says less than why it was missing before
			r.Images[i] = why
		}
	}
	slices.SortFunc(r.Images, func(a, b Image) int { return a.N - b.N })
}
