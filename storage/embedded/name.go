package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rclone/gofakes3"
	"golang.org/x/text/unicode/norm"
)

// hiddenFolder, below Dir, holds metadata, temporary files and the lock. No bucket name
// begins with a dot, so no key reaches it.
const hiddenFolder = ".danqing"

// maxNameBytes is the limit of file systems on a name (Linux's NAME_MAX).
const maxNameBytes = 255

// fileName returns the file of key, relative to the root. It fails for keys that cannot
// be file names. The result is always inside the bucket's folder.
func (s *store) fileName(key string) (string, error) {
	local, err := filepath.Localize(key) // refuses what fs.ValidPath refuses, NUL, and reserved names on Windows
	if err != nil || key == "." {
		return "", invalidKey(key, "it must be a plain relative path: no empty, . or .. segment, no NUL, valid UTF-8")
	}
	if len(key) > gofakes3.KeySizeLimit {
		return "", invalidKey(key, "it has more than 1024 bytes")
	}
	for segment := range strings.SplitSeq(key, "/") {
		if len(segment) > maxNameBytes {
			return "", invalidKey(key, "a segment has more than 255 bytes")
		}
	}
	return filepath.Join(s.bucket, local), nil
}

// metaName returns the metadata file of key. It is named by the key's hash, so that
// keys cannot conflict there.
func (s *store) metaName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.metaFolder, hex.EncodeToString(sum[:])+".json")
}

// invalidKey is the error for a key that cannot be a file name: 400.
func invalidKey(key, why string) error {
	if len(key) > 64 {
		key = strings.ToValidUTF8(key[:64], "") + "…"
	}
	return gofakes3.ErrorInvalidArgument("key", key, "This store keeps objects as files, and the key cannot be one: "+why)
}

// probeCase finds out whether the file system cannot tell names apart by case.
func (s *store) probeCase() error {
	f, name, err := s.createTemp()
	if err != nil {
		return err
	}
	upper := name + "-A"
	err = f.Close()
	if err == nil {
		err = s.root.Rename(name, upper)
	}
	if err == nil {
		_, missing := s.root.Lstat(name + "-a")
		s.foldsCase, err = missing == nil, s.root.Remove(upper)
	}
	return err
}

// otherSpelling reports whether the file at name, or one of its folders, is stored under a name
// that the disk cannot tell apart from it, by case or by the composition of its letters: it
// belongs to another key.
func (s *store) otherSpelling(name string) (bool, error) {
	if !s.foldsCase {
		return false, nil
	}
	for at := name; at != "."; at = filepath.Dir(at) {
		entries, err := fs.ReadDir(s.root.FS(), filepath.ToSlash(filepath.Dir(at)))
		if isNotExist(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		_, missing := s.root.Lstat(at) // what else the disk takes for the same name
		base, exact, folded := filepath.Base(at), false, missing == nil
		for _, e := range entries {
			exact = exact || e.Name() == base || norm.NFC.String(e.Name()) == base // HFS+ decomposes names
			folded = folded || strings.EqualFold(e.Name(), base)
		}
		if folded && !exact {
			return true, nil
		}
	}
	return false, nil
}

// isNotExist reports whether err means that there is no such file, also because one of
// its folders is a file.
func isNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// makeFolder creates folder and its parents, durably. It fails with 400 if one of them
// is the file of another key.
func (s *store) makeFolder(folder, key string) error {
	var created []string // top last
	for dir := folder; dir != "."; dir = filepath.Dir(dir) {
		stat, err := s.root.Stat(dir)
		if err == nil && stat.IsDir() {
			break
		}
		if err == nil || errors.Is(err, syscall.ENOTDIR) {
			return invalidKey(key, "another key is one of its folders")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		created = append(created, dir)
	}
	if len(created) == 0 {
		return nil
	}
	if err := s.root.MkdirAll(folder, 0o750); errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrExist) {
		return invalidKey(key, "another key is one of its folders") // created concurrently
	} else if err != nil {
		return err
	}
	for _, dir := range created {
		if err := s.syncFolder(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return nil
}

// pruneFolders removes the empty folders above name, up to the bucket's.
func (s *store) pruneFolders(name string) {
	for dir := path.Dir(filepath.ToSlash(name)); dir != s.bucket; dir = path.Dir(dir) {
		if s.root.Remove(filepath.FromSlash(dir)) != nil { // not empty
			return
		}
	}
}

// syncFolder makes renames in a folder durable.
func (s *store) syncFolder(dir string) error {
	if noDirSync {
		return nil
	}
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}

// createTemp creates a temporary file. The caller must rename or remove it.
func (s *store) createTemp() (*os.File, string, error) {
	name := filepath.Join(s.tempFolder, s.tempName())
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	return f, name, err
}

// errOtherSpelling is the error for a key whose file is that of another one: 400. It is no
// answer that the object does not exist, because it cannot be stored.
func errOtherSpelling(key string) error {
	return invalidKey(key, "another key differs from it only in case, which this disk cannot tell apart")
}
