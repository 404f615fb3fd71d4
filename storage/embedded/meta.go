package embedded

import (
	"bytes"
	"crypto/md5" //nolint:gosec // S3's ETag is the MD5
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/rclone/gofakes3"
)

// version is one version of an object. It is matched to the content file by size and
// modification time. While an object is being replaced, its metadata has both the old
// and the new version, and the rename of the content decides which one is current.
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

func (v version) matches(stat fs.FileInfo) bool {
	return v.Bytes == stat.Size() && v.ModifiedAt == stat.ModTime().UnixNano()
}

func (s *store) readMeta(name string) (meta, error) {
	text, err := s.root.ReadFile(name)
	if err != nil {
		return meta{}, err
	}
	var m meta
	at := bytes.LastIndexByte(text, '\n')
	if at < 0 || string(text[at:]) != metaSum(text[:at]) {
		return m, errMetaSum
	}
	return m, json.Unmarshal(text[:at], &m)
}

// errMetaSum means that a metadata file is not what was written.
var errMetaSum = errors.New("its checksum does not match")

// metaSum returns the last line of a metadata file: the CRC-32C of the others.
func metaSum(text []byte) string {
	return fmt.Sprintf("\n%08x", crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
}

// writeMeta replaces a key's metadata.
func (s *store) writeMeta(m meta, durable bool) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, temp, err := s.createTemp()
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, metaSum(text)...))
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
		_ = s.root.Remove(temp) // on failure, the next start removes it
		return err
	}
	if durable {
		return s.syncFolder(s.metaFolder)
	}
	return nil
}

// currentVersion returns the version of an open content file, from its metadata or, for
// a file that was added by hand, from its content.
func (s *store) currentVersion(key string, f *os.File, stat fs.FileInfo) (version, error) {
	if v, ok := s.recordedVersion(key, stat); ok {
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

// verify fails unless a content file is what was stored.
func (v version) verify(key string, f *os.File) error {
	h := md5.New() //nolint:gosec // see the import
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, v.Bytes)); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), v.MD5) {
		return gofakes3.ErrorMessage(gofakes3.ErrBadDigest, "The file of "+key+" was damaged on the disk: restore it from a backup, or delete it.")
	}
	return nil
}

// recordedVersion returns the version in key's metadata that matches a content file.
func (s *store) recordedVersion(key string, stat fs.FileInfo) (version, bool) {
	// Damaged metadata counts as missing; the version is then computed from the content.
	m, err := s.readMeta(s.metaName(key))
	if err != nil || m.Key != key {
		return version{}, false
	}
	for _, v := range m.Versions {
		if v.matches(stat) {
			return v, true
		}
	}
	return version{}, false
}

// removeLeftovers removes temporary files that a crash left, and metadata without an
// object.
func (s *store) removeLeftovers() error {
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
			if content, err := s.fileName(m.Key); err == nil {
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

// setModTime gives the temporary file a modification time that differs from old's, so
// that size and time identify a version. It returns the file's Stat with the time as
// the file system stored it: some have a resolution of two seconds.
func (s *store) setModTime(temp string, at time.Time, old fs.FileInfo) (fs.FileInfo, error) {
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
