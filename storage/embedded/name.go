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
)

// hiddenFolder holds metadata, half files and the lock, below Dir. No bucket's
// name begins with a dot, so that no key reaches it.
const hiddenFolder = ".danqing"

// maxNameBytes is what file systems allow in a name (Linux's NAME_MAX).
const maxNameBytes = 255

// name is the file of key, below the root. It fails for keys that cannot be
// files; none leads out of the bucket's folder.
func (s *store) name(key string) (string, error) {
	local, err := filepath.Localize(key) // refuses what fs.ValidPath does, NUL, and on Windows its own
	if err != nil || key == "." {
		return "", unusable(key, "it must be a plain relative path: no empty, . or .. segment, no NUL, valid UTF-8")
	}
	if len(key) > gofakes3.KeySizeLimit {
		return "", unusable(key, "it has more than 1024 bytes")
	}
	for segment := range strings.SplitSeq(key, "/") {
		if len(segment) > maxNameBytes {
			return "", unusable(key, "a segment has more than 255 bytes")
		}
	}
	return filepath.Join(s.bucket, local), nil
}

// metaName is where key's metadata lies: by its hash, so that keys cannot
// conflict there, whatever they are.
func (s *store) metaName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(s.metaFolder, hex.EncodeToString(sum[:])+".json")
}

// unusable is answered for a key that cannot be a file: 400.
func unusable(key, why string) error {
	if len(key) > 64 {
		key = strings.ToValidUTF8(key[:64], "") + "…"
	}
	return gofakes3.ErrorInvalidArgument("key", key, "This store keeps objects as files, and the key cannot be one: "+why)
}

// absent tells whether err means that there is no such file, also because what
// would be its folder is a file.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// makeFolder creates folder and what is above it, and makes that durable. It
// fails with 400 if a key is where a folder must be.
func (s *store) makeFolder(folder, key string) error {
	var created []string // top last
	for dir := folder; dir != "."; dir = filepath.Dir(dir) {
		stat, err := s.root.Stat(dir)
		if err == nil && stat.IsDir() {
			break
		}
		if err == nil || errors.Is(err, syscall.ENOTDIR) {
			return unusable(key, "another key is one of its folders")
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
		return unusable(key, "another key is one of its folders") // since just now
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

// pruneFolders removes the folders above name that are empty now, up to the
// bucket's.
func (s *store) pruneFolders(name string) {
	for dir := path.Dir(filepath.ToSlash(name)); dir != s.bucket; dir = path.Dir(dir) {
		if s.root.Remove(filepath.FromSlash(dir)) != nil { // it is not empty
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

// createTemp makes a file that is no object yet. The caller renames or removes
// it.
func (s *store) createTemp() (*os.File, string, error) {
	name := filepath.Join(s.tempFolder, s.tempName())
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	return f, name, err
}
