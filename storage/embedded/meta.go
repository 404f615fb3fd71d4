package embedded

import (
	"crypto/md5" //nolint:gosec // S3's ETag is the MD5
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"
)

// version is one version of an object. The file that is its content is known by
// size and modification time; while an object is being replaced, its metadata
// names both the old version and the new one, and the rename of the content
// decides which of them counts.
type version struct {
	Bytes      int64             `json:"bytes"`
	ModifiedAt int64             `json:"modified_at_ns"` // Unix, nanoseconds
	MD5        []byte            `json:"md5"`            // base64
	Headers    map[string]string `json:"headers"`        // Content-Type, X-Amz-Meta-…
}

// meta is the metadata file of a key.
type meta struct {
	Key      string    `json:"key"`
	Versions []version `json:"versions"`
}

func (v version) is(stat fs.FileInfo) bool {
	return v.Bytes == stat.Size() && v.ModifiedAt == stat.ModTime().UnixNano()
}

func (s *store) readMeta(name string) (meta, error) {
	text, err := s.root.ReadFile(name)
	if err != nil {
		return meta{}, err
	}
	var m meta
	return m, json.Unmarshal(text, &m)
}

// writeMeta replaces key's metadata, durably if so asked.
func (s *store) writeMeta(m meta, durable bool) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, temp, err := s.createTemp()
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && durable {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = s.root.Rename(temp, s.metaName(m.Key))
	}
	if err != nil {
		_ = s.root.Remove(temp) // swept at the next start if not
		return err
	}
	if durable {
		return s.syncFolder(s.metaFolder)
	}
	return nil
}

// describe returns the version that the open content file is: as its metadata
// has it or, for a file that was put there by hand, as its content says.
func (s *store) describe(key string, f *os.File, stat fs.FileInfo) (version, error) {
	if v, ok := s.known(key, stat); ok {
		return v, nil
	}
	h := md5.New() //nolint:gosec // see the import
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return version{}, err
	}
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, stat.Size())); err != nil {
		return version{}, err
	}
	contentType := mime.TypeByExtension(path.Ext(key))
	if contentType == "" {
		contentType = http.DetectContentType(head[:n])
	}
	return version{
		Bytes: stat.Size(), ModifiedAt: stat.ModTime().UnixNano(), MD5: h.Sum(nil),
		Headers: map[string]string{"Content-Type": contentType},
	}, nil
}

// known returns the version that key's metadata has for a content file.
func (s *store) known(key string, stat fs.FileInfo) (version, bool) {
	// Metadata that cannot be read is as good as none: the content decides.
	m, err := s.readMeta(s.metaName(key))
	if err != nil || m.Key != key {
		return version{}, false
	}
	for _, v := range m.Versions {
		if v.is(stat) {
			return v, true
		}
	}
	return version{}, false
}

// sweep removes what a crash left: half files, and metadata whose object is
// gone.
func (s *store) sweep() error {
	if err := s.root.RemoveAll(s.tempFolder); err != nil {
		return err
	}
	for _, dir := range []string{s.tempFolder, s.metaFolder, s.bucket} {
		if err := s.root.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	entries, err := fs.ReadDir(s.root.FS(), filepath.ToSlash(s.metaFolder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(s.metaFolder, e.Name())
		if m, err := s.readMeta(name); err == nil && s.metaName(m.Key) == name {
			if content, err := s.name(m.Key); err == nil {
				if _, err := s.root.Lstat(content); err == nil {
					continue
				}
			}
		}
		if err := s.root.Remove(name); err != nil {
			return fmt.Errorf("remove orphaned metadata: %w", err)
		}
	}
	return nil
}

// stamp gives the temporary file a modification time that old does not have, so
// that size and time tell them apart, and returns what the file system made of
// it: some keep two seconds at best.
func (s *store) stamp(temp string, at time.Time, old fs.FileInfo) (fs.FileInfo, error) {
	for {
		if err := s.root.Chtimes(temp, at, at); err != nil {
			return nil, err
		}
		stat, err := s.root.Stat(temp)
		if err != nil || old == nil || old.Size() != stat.Size() || !old.ModTime().Equal(stat.ModTime()) {
			return stat, err
		}
		at = at.Add(2 * time.Second)
	}
}
