package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker/internal/recorder"
)

// storeImage copies one image from the spool into the bucket, unless it is there
// already. It returns the stored image, or one with the code and message of why it
// cannot be stored. An error means that the call must be repeated. taken, unless empty,
// says why the image's key belongs to another object or job.
func (s *Server) storeImage(ctx context.Context, rec *jobs.Record, result jobs.Result, got fetched, taken string) (jobs.Image, error) {
	if result.URL == "" {
		return jobs.Image{N: result.N, Code: result.Code, Message: result.Message}, nil
	}
	keys, err := s.imageKeys(rec, result, got.file)
	if err != nil {
		taken = err.Error()
	}
	var occupied []string
	for _, key := range keys {
		if taken != "" {
			break
		}
		image, task, err := s.statImage(ctx, result.N, key)
		switch {
		case err != nil || task == rec.TaskID:
			return image, err
		case task == "":
		case fromEarlierAttempt(rec, task):
			// Nothing is overwritten.
			return image, s.quarantineDuplicate(ctx, rec, result, got)
		default:
			occupied = append(occupied, key)
		}
	}
	if got.err != nil && !errors.Is(got.err, storage.ErrDisk) {
		return s.fetchFailed(ctx, rec, result, got)
	}
	if got.err != nil {
		// The disk is full, and the link is valid for a day only: download to memory.
		if err := s.memoryFetch.Acquire(ctx, 1); err != nil {
			return jobs.Image{}, err
		}
		defer s.memoryFetch.Release(1)
		if got.file, err = s.spool.FetchToMemory(ctx, result.URL); err != nil {
			return s.retryOrHold(rec, result, got, got.err)
		}
	}
	key := ""
	if taken == "" {
		if key, err = s.imageKey(rec, result, got.file.ContentType); err != nil {
			return jobs.Image{}, err
		}
	}
	if slices.Contains(occupied, key) {
		taken = "another object exists under its key " + key
	}
	switch {
	case taken != "" && got.err != nil: // nothing on the disk to keep
		return s.retryOrHold(rec, result, got, got.err)
	case taken != "":
		return s.quarantine(ctx, rec, result, got.file.Path, taken)
	}
	return s.put(ctx, rec, result, key, got.file)
}

// put stores a verified image under its key.
func (s *Server) put(ctx context.Context, rec *jobs.Record, result jobs.Result, key string, file *storage.File) (jobs.Image, error) {
	meta := map[string]string{
		metaTask: rec.TaskID, metaWidth: strconv.Itoa(file.Width), metaHeight: strconv.Itoa(file.Height), metaSource: file.SourceName,
		metaAILabel: file.AILabel,
	}
	if err := s.bucket.PutImage(ctx, key, file, meta); err != nil {
		return jobs.Image{}, err
	}
	return jobs.Image{
		N: result.N, Key: key, Bytes: file.Bytes, SHA256: file.SHA256, Width: file.Width, Height: file.Height,
		ContentType: file.ContentType, AILabel: file.AILabel, SourceName: file.SourceName,
	}, nil
}

// fetchFailed handles an image without a verified file. Only the worker that owns the
// spool may give the image up, and only after its link has expired and the service has
// no other.
func (s *Server) fetchFailed(ctx context.Context, rec *jobs.Record, result jobs.Result, got fetched) (jobs.Image, error) {
	var failed *storage.FetchError
	if !errors.As(got.err, &failed) {
		return s.retryOrHold(rec, result, got, got.err)
	}
	final := failed.Kind == storage.FetchForbidden || failed.Kind == storage.FetchGone && time.Now().After(got.linkExpiry)
	switch {
	case failed.Kind == storage.FetchUnverified:
		return s.quarantine(ctx, rec, result, failed.Path, failed.Error())
	case final && s.ownedElsewhere(rec):
		return s.retryOrHold(rec, result, got, &spoolElsewhereError{rec, got.err})
	case final && (failed.Path != "" || failed.Kind == storage.FetchForbidden):
		return s.quarantine(ctx, rec, result, failed.Path, failed.Error())
	case final:
		return jobs.Image{N: result.N, Code: jobs.CodeResultExpired, Message: "the result URL expired before the image could be copied: " + failed.Error()}, nil
	default:
		return s.retryOrHold(rec, result, got, got.err)
	}
}

// withTaskDetails adds the details of the task's result to an image, or returns the
// image of an earlier store of the same key.
func withTaskDetails(rec *jobs.Record, i int, image jobs.Image) jobs.Image {
	if image.Key == "" {
		return image
	}
	known := func(had jobs.Image) bool { return had.N == image.N && had.Key == image.Key }
	if before := slices.IndexFunc(rec.Images, known); before >= 0 {
		return rec.Images[before]
	}
	image.ActualPrompt, image.Seed = rec.Results[i].ActualPrompt, seedOf(rec, i)
	return image
}

// Metadata of an image in the bucket. It identifies the image after a crash between its
// upload and the sidecar, when its URL may have expired.
const (
	metaTask   = "task-id"
	metaWidth  = "width"
	metaHeight = "height"
	metaSource = "source-name"
	// metaAILabel is present or absent.
	metaAILabel = "ai-label"
)

// statImage returns the image under a key as described by its metadata, and the task
// that made it. task is "" if there is no object, "unknown" if the object does not name
// its task.
func (s *Server) statImage(ctx context.Context, n int, key string) (image jobs.Image, task string, err error) {
	info, err := s.bucket.Head(ctx, key)
	if errors.Is(err, storage.ErrNotExist) {
		return jobs.Image{}, "", nil
	}
	if err != nil {
		return jobs.Image{}, "", err
	}
	width, _ := strconv.Atoi(info.Metadata[metaWidth])
	height, _ := strconv.Atoi(info.Metadata[metaHeight])
	return jobs.Image{
		N: n, Key: key, Bytes: info.Bytes, SHA256: info.SHA256, Width: width, Height: height,
		ContentType: info.ContentType, AILabel: info.Metadata[metaAILabel], SourceName: info.Metadata[metaSource],
	}, cmp.Or(info.Metadata[metaTask], "unknown"), nil
}

// fromEarlierAttempt reports whether a task was an earlier attempt of the job.
func fromEarlierAttempt(rec *jobs.Record, task string) bool {
	return slices.ContainsFunc(rec.PastAttempts, func(a jobs.Attempt) bool { return a.TaskID == task })
}

// quarantineDuplicate keeps an image whose key already holds an earlier attempt's
// image.
func (s *Server) quarantineDuplicate(ctx context.Context, rec *jobs.Record, result jobs.Result, got fetched) error {
	var failed *storage.FetchError
	switch {
	case got.file != nil:
		_, err := s.bucket.Quarantine(ctx, rec.TaskID, recorder.ImageName(rec, result.N), got.file.Path)
		return err
	case errors.As(got.err, &failed) && (failed.Path != "" || failed.Kind == storage.FetchForbidden),
		failed != nil && failed.Kind == storage.FetchGone && time.Now().After(got.linkExpiry):
		return nil // the job has its image: this one is not needed
	}
	return got.err
}

// imageKeys returns the keys under which the image may be in the bucket. The extension tells
// the format, which is known once the image is fetched: file is nil before. The same task
// gives the same bytes and so the same key; an earlier attempt may have another extension.
func (s *Server) imageKeys(rec *jobs.Record, result jobs.Result, file *storage.File) ([]string, error) {
	types := storage.ImageTypes()
	if file != nil && len(rec.PastAttempts) == 0 {
		types = []string{file.ContentType}
	}
	var keys []string
	for _, contentType := range types {
		key, err := s.imageKey(rec, result, contentType)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(keys, key) { // a template without {ext} makes one
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// imageKey returns the key of an image of a content type.
func (s *Server) imageKey(rec *jobs.Record, result jobs.Result, contentType string) (string, error) {
	name := ""
	if u, err := url.Parse(result.URL); err == nil {
		name = path.Base(u.Path)
	}
	return s.bucket.ImageKey(storage.KeyVars{
		JobID: rec.ID, N: result.N, Ext: storage.Extension(contentType), Batch: rec.Request.Batch, ID: rec.Request.LineID, Model: rec.Model,
		Date: rec.EnqueuedAt, SourceName: name,
	})
}

// quarantine keeps content that cannot be stored as the image, for an operator: no
// check may discard an image that was paid for. A path of "" means that there are no
// bytes.
func (s *Server) quarantine(ctx context.Context, rec *jobs.Record, result jobs.Result, path, why string) (jobs.Image, error) {
	image := jobs.Image{N: result.N, Code: jobs.CodeImageUnverified, Message: fmt.Sprintf("image %d is paid for but cannot be stored: %s", result.N, why)}
	if path == "" {
		image.Message += "; " + linkText(result.URL)
		return image, nil
	}
	key, err := s.bucket.Quarantine(ctx, rec.TaskID, recorder.ImageName(rec, result.N), path)
	if err != nil {
		return image, err
	}
	image.Message += "; its bytes are kept under " + key
	return image, nil
}

// seedOf returns the seed of a task's i-th result if it differs from the seed that its
// number implies.
func seedOf(rec *jobs.Record, i int) *int64 {
	if rec.TaskSeed == nil {
		return nil
	}
	seed := *rec.TaskSeed + int64(i)
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
