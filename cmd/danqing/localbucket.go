package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/storage/atomicfile"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

// localBucket is the embedded bucket of an instance that runs in another process on this
// machine. Its objects are plain files, and can be added as such.
type localBucket struct{ dataDir, objects string }

// openLocalBucket returns the embedded bucket in a data directory, or nil if it has none.
func openLocalBucket(dataDir string) *localBucket {
	objects := filepath.Join(dataDir, "bucket", bucket.DefaultBucket)
	if info, err := os.Stat(objects); err != nil || !info.IsDir() {
		return nil
	}
	return &localBucket{dataDir: dataDir, objects: objects}
}

// path returns the file of an object.
func (f *localBucket) path(key string) string {
	return filepath.Join(f.objects, filepath.FromSlash(key))
}

// Name returns the bucket's name, like [storage.Bucket.Name].
func (f *localBucket) Name() string { return bucket.DefaultBucket }

// Link returns "": only the instance itself has URLs of its objects.
func (f *localBucket) Link(context.Context, string) (link string, expiresAt time.Time, err error) {
	return "", time.Time{}, nil
}

// Sidecar reads a job's sidecar, like [storage.Bucket.Sidecar].
func (f *localBucket) Sidecar(_ context.Context, jobID string) (*storage.Sidecar, error) {
	path := f.path("_jobs/" + jobID + ".json")
	text, err := os.ReadFile(path) //nolint:gosec // a job ID is a file name
	if errors.Is(err, os.ErrNotExist) {
		return nil, storage.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	var sidecar storage.Sidecar
	if err := json.Unmarshal(text, &sidecar); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, storage.ErrUnreadable, err)
	}
	if sidecar.JobID != jobID { // the disk may not tell names apart by case
		return nil, storage.ErrNotExist
	}
	return &sidecar, nil
}

// SidecarIDs lists the jobs with a sidecar, like [storage.Bucket.SidecarIDs].
func (f *localBucket) SidecarIDs(_ context.Context, prefix string, visit func(jobID string, modified time.Time)) error {
	files, err := os.ReadDir(f.path("_jobs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, file := range files {
		id, isSidecar := strings.CutSuffix(file.Name(), ".json")
		if !isSidecar || !strings.HasPrefix(id, prefix) {
			continue
		}
		if info, err := file.Info(); err == nil { // else it was deleted meanwhile
			visit(id, info.ModTime())
		}
	}
	return err
}

// stage stores a reference image atomically, like [storage.Bucket.StageReference].
func (f *localBucket) stage(ref *storage.Reference) (err error) {
	to := f.path("_refs/" + ref.SHA256)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	from, err := os.Open(ref.Path)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // read only
	next, err := os.CreateTemp(f.dataDir, ".reference-*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) //nolint:errcheck // fails after the rename
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(next, sum), from)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != ref.SHA256 {
		err = errors.New("it has changed since it was looked at")
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o750)
	}
	if err != nil {
		return errors.Join(err, next.Close())
	}
	return atomicfile.Commit(next, to)
}
