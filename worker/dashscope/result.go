package dashscope

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// IsInconclusive reports whether a succeeded task has no image and either was charged or
// lacks a reason for one of its images.
func (task *Task) IsInconclusive() bool {
	for _, r := range task.Output.Results {
		if r.URL != "" {
			return false
		}
	}
	charged := task.Usage != nil && max(task.Usage.ImageCount, task.Usage.OutputImageCount) > 0
	return charged || len(task.Output.Results) == 0 || slices.ContainsFunc(task.Output.Results, func(r Result) bool { return r.Code == "" })
}

// MayNameMore reports whether a succeeded task of n images may name more of them later: it was
// charged for more than it names, or says that it is not finished.
func (task *Task) MayNameMore(n int) bool {
	named := 0
	for _, r := range task.Output.Results {
		if r.URL != "" {
			named++
		}
	}
	unfinished := task.Output.Finished != nil && !*task.Output.Finished
	return named < n && (unfinished || named < task.ChargedImages())
}

// ChargedImages returns the number of images that the task was charged for.
func (task *Task) ChargedImages() int {
	n := 0
	if task.Usage != nil {
		n = max(task.Usage.ImageCount, task.Usage.OutputImageCount)
	}
	if n > 0 {
		return n
	}
	for _, r := range task.Output.Results {
		if r.URL != "" {
			n++
		}
	}
	return n
}

// The prices of images that [Usage.OutputImageType] tells apart (reports of users with a key).
const (
	SmallImageType = "qima_output_1k"
	LargeImageType = "qima_output_2k"
)

// LargePixels is the most that an image of [SmallImageType] has (the same reports).
const LargePixels = 2_250_000

// Large reports whether the images were charged as large ones. known is false if the usage does
// not say so, or is nil.
func (u *Usage) Large() (large, known bool) {
	if u == nil {
		return false, false
	}
	return u.OutputImageType == LargeImageType, u.OutputImageType == LargeImageType || u.OutputImageType == SmallImageType
}

// Inputs returns how many input images were charged. known is false if the usage does not say so, or
// is nil.
func (u *Usage) Inputs() (images int, known bool) {
	if u == nil || u.InputImageCount == nil {
		return 0, false
	}
	return max(*u.InputImageCount, 0), true
}

// SecureURL rewrites an http URL of Aliyun's object store to https. The signature of the
// URL does not cover the scheme.
func SecureURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Port() != "" || !strings.HasSuffix(u.Hostname(), ".aliyuncs.com") {
		return raw
	}
	u.Scheme = "https"
	return u.String()
}

// deadlineBound is how far from now the expiry of a URL may be; a URL is valid for a day.
// An expiry beyond it is invalid, and one after the year 9999 could not be encoded as JSON.
const deadlineBound = 366 * 24 * time.Hour

// URLExpiry returns the expiry in an OSS URL, or the documented 24 hours from now if it has
// none.
func URLExpiry(raw string) time.Time {
	now := time.Now().UTC()
	if u, err := url.Parse(raw); err == nil {
		seconds, err := strconv.ParseInt(u.Query().Get("Expires"), 10, 64)
		if at := time.Unix(seconds, 0).UTC(); err == nil && at.Sub(now).Abs() < deadlineBound {
			return at
		}
	}
	return now.Add(TaskLifetime)
}
