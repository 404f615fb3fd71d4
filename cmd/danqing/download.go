package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/danqing-queue/danqing/storage"
)

// maxDownloads is how many images are downloaded at once. The value is our choice.
const maxDownloads = 4

// downloads copies the images of a batch from the bucket into a folder, while it runs.
type downloads struct {
	dir    string
	prefix string // of the keys, which the names of the files do not have
	bucket *storage.Bucket
	warn   func(text string)
	slots  chan struct{}
	group  sync.WaitGroup

	mu     sync.Mutex
	failed int
}

// newDownloads returns the downloads into a folder, which it makes.
func newDownloads(dir, prefix string, bucket *storage.Bucket, warn func(string)) (*downloads, error) {
	err := os.MkdirAll(dir, 0o755) //nolint:gosec // images may be world-readable
	if err == nil {
		err = checkWritableFolder(filepath.Join(dir, "x"))
	}
	if err != nil {
		return nil, usageErrorf("name a folder that can be written to", "--download %s: %w", dir, err)
	}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return &downloads{dir: dir, prefix: prefix, bucket: bucket, warn: warn, slots: make(chan struct{}, maxDownloads)}, nil
}

// path returns the file of an image.
func (d *downloads) path(key string) (string, error) {
	name := filepath.FromSlash(strings.TrimPrefix(key, d.prefix))
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("image %s: its name leads out of the folder", key)
	}
	return filepath.Join(d.dir, name), nil
}

// add downloads the images of settled lines, in the background. Lines whose images are there
// already cost a look at the file.
func (d *downloads) add(ctx context.Context, lines ...*line) {
	if d == nil {
		return
	}
	d.group.Go(func() {
		for _, l := range lines {
			if l.result == nil {
				continue
			}
			for _, image := range l.result.Images {
				if image.Key == "" {
					continue
				}
				select {
				case d.slots <- struct{}{}:
				case <-ctx.Done():
					return
				}
				d.group.Go(func() {
					defer func() { <-d.slots }()
					d.download(ctx, image)
				})
			}
		}
	})
}

// download downloads one image, and warns if it cannot.
func (d *downloads) download(ctx context.Context, image resultImage) {
	err := d.copy(ctx, image)
	if err == nil || ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	d.failed++
	d.mu.Unlock()
	d.warn(fmt.Sprintf("warning: not downloaded: %v", err))
}

// copy copies one image into its file, unless it is there. No file is replaced.
func (d *downloads) copy(ctx context.Context, image resultImage) error {
	path, err := d.path(image.Key)
	if err != nil {
		return err
	}
	switch same, err := hasContent(path, image.SHA256); {
	case err == nil && same:
		return nil
	case err == nil:
		return fmt.Errorf("image %s: %s is another file: move it away", image.Key, path)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // images may be world-readable
		return err
	}
	body, _, err := d.bucket.Get(ctx, image.Key)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read only
	temp, err := os.CreateTemp(filepath.Dir(path), ".danqing-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) //nolint:errcheck // best effort
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(temp, sum), body)
	if err == nil {
		err = errors.Join(temp.Chmod(0o644), temp.Sync())
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("image %s: %w", image.Key, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != image.SHA256 {
		return fmt.Errorf("image %s: the bucket's content has sha256 %s instead of %s: see danqing verify", image.Key, got, image.SHA256)
	}
	return placeFile(temp.Name(), path)
}

// placeFile gives a temporary file its name. It fails if there is a file of that name.
func placeFile(temp, path string) error {
	err := os.Link(temp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// The file system has no links.
	if _, missing := os.Lstat(path); !errors.Is(missing, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	return os.Rename(temp, path)
}

// hasContent reports whether a file has a content, by its SHA-256 in hex.
func hasContent(path, want string) (bool, error) {
	file, err := os.Open(path) //nolint:gosec // below the user's own folder
	if err != nil {
		return false, err
	}
	defer file.Close() //nolint:errcheck // read only
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return false, err
	}
	return hex.EncodeToString(sum.Sum(nil)) == want, nil
}

// wait waits for the downloads, and fails if some images are not there.
func (d *downloads) wait() error {
	if d == nil {
		return nil
	}
	d.group.Wait()
	if d.failed > 0 {
		return fmt.Errorf("%s not downloaded: run the same command again; nothing is bought twice", count(d.failed, "image"))
	}
	return nil
}

// link sets the file of an image that was downloaded.
func (d *downloads) link(image *resultImage) {
	if d == nil || image.Key == "" {
		return
	}
	path, err := d.path(image.Key)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err == nil {
		image.File = path
	}
}
