package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/storage/atomicfile"
	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

// folder is the embedded bucket of an instance that runs in another process on
// this machine. Its objects are plain files, and may be put there as such.
type folder struct{ dataDir, objects string }

// openFolder returns the embedded bucket in a data directory, nil if it has none.
func openFolder(dataDir string) *folder {
	objects := filepath.Join(dataDir, "bucket", bucket.DefaultBucket)
	if info, err := os.Stat(objects); err != nil || !info.IsDir() {
		return nil
	}
	return &folder{dataDir: dataDir, objects: objects}
}

// path returns the file of an object.
func (f *folder) path(key string) string { return filepath.Join(f.objects, filepath.FromSlash(key)) }

// sidecar reads a job's sidecar as [storage.Bucket.Sidecar] does.
func (f *folder) sidecar(jobID string) (*storage.Sidecar, error) {
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
	return &sidecar, nil
}

// stage puts a reference image where [storage.Bucket.StageReference] would: whole,
// or not at all.
func (f *folder) stage(ref *storage.Reference) (err error) {
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
	defer os.Remove(next.Name()) //nolint:errcheck // it is gone after the rename
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
