package embedded

import (
	"context"
	"crypto/md5" //nolint:gosec // S3's ETag is the MD5
	"encoding/hex"
	"errors"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rclone/gofakes3"
)

// noDirSync is true on systems where directories cannot be synced.
const noDirSync = runtime.GOOS == "windows"

// store is gofakes3's backend on a folder. All paths go through an os.Root, so it never
// accesses files outside of the folder.
type store struct {
	root       *os.Root
	bucket     string
	tempFolder string
	metaFolder string
	createdAt  time.Time
	// foldsCase is set if the file system cannot tell names apart by case.
	foldsCase bool

	temps atomic.Uint64
	seed  maphash.Seed
	// keys are locks for the keys that hash to them: read-locked to read content
	// and metadata together, locked to replace them.
	keys [64]sync.RWMutex
	// folders is read-locked while an object is put into a folder, and locked while
	// empty folders are removed.
	folders sync.RWMutex
}

var _ gofakes3.Backend = (*store)(nil)

func openStore(dir, bucket string) (*store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &store{
		root: root, bucket: bucket, createdAt: time.Now(), seed: maphash.MakeSeed(),
		tempFolder: filepath.Join(hiddenFolder, "temp"),
		metaFolder: filepath.Join(hiddenFolder, "meta", bucket),
	}
	err = s.removeLeftovers()
	if err == nil {
		err = s.probeCase()
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

func (s *store) tempName() string { return strconv.FormatUint(s.temps.Add(1), 10) }

func (s *store) keyLock(key string) *sync.RWMutex {
	return &s.keys[maphash.String(s.seed, key)%uint64(len(s.keys))]
}

// PutObject implements gofakes3.Backend. A crash or power cut may happen between any two
// of its steps, so their order matters: sync the content; sync metadata with both the
// old and the new version; rename the content, which is the commit; sync its folder;
// write metadata without the old version.
func (s *store) PutObject(ctx context.Context, bucket, key string, headers map[string]string, input io.Reader, size int64) (gofakes3.PutObjectResult, error) {
	name, err := s.objectFile(bucket, key)
	if err != nil {
		return gofakes3.PutObjectResult{}, err
	}
	f, temp, err := s.createTemp()
	if err != nil {
		return gofakes3.PutObjectResult{}, err
	}
	v, err := receive(f, input, size)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = ctx.Err() // the client may have canceled after the last byte
	}
	if err == nil {
		v.Headers = maps.Clone(headers)
		delete(v.Headers, "Last-Modified") // it is the file's modification time
		err = s.commit(ctx, key, name, temp, v)
	}
	if err != nil {
		_ = s.root.Remove(temp) // on failure, the next start removes it
	}
	return gofakes3.PutObjectResult{}, err
}

// receive writes input to f, durably, and returns its version. size is -1 if unknown.
func receive(f *os.File, input io.Reader, size int64) (version, error) {
	// gofakes3 computes the MD5 already, unless it wraps its reader again.
	sum, hashed := input.(interface{ Sum([]byte) []byte })
	if !hashed {
		h := md5.New() //nolint:gosec // see the import
		input, sum = io.TeeReader(input, h), h
	}
	n, err := io.Copy(f, input)
	if err == nil && size >= 0 && n != size {
		err = gofakes3.ErrIncompleteBody
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return version{}, err
	}
	return version{Bytes: n, MD5: sum.Sum(nil)}, nil
}

// commit makes temp, whose version is v, the content of key.
func (s *store) commit(ctx context.Context, key, name, temp string, v version) error {
	lock := s.keyLock(key)
	lock.Lock()
	defer lock.Unlock()
	s.folders.RLock()
	defer s.folders.RUnlock()

	other, err := s.otherSpelling(name)
	if err != nil {
		return err
	}
	if other {
		return errOtherSpelling(key)
	}
	if err := s.makeFolder(filepath.Dir(name), key); err != nil {
		return err
	}
	versions := make([]version, 1, 2)
	old, err := s.root.Lstat(name)
	switch {
	case err == nil && old.IsDir():
		return invalidKey(key, "it is a folder of other keys")
	case err == nil:
		if was, ok := s.recordedVersion(key, old); ok {
			versions = append(versions, was)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := s.checkConditions(ctx, key, name, old != nil); err != nil {
		return err
	}

	stat, err := s.setModTime(temp, time.Now(), old)
	if err != nil {
		return err
	}
	v.ModifiedAt = stat.ModTime().UnixNano()
	versions[0] = v
	if err := s.writeMeta(meta{Key: key, Versions: versions}, true); err != nil {
		return err
	}
	if err := s.root.Rename(temp, name); err != nil {
		if now, statErr := s.root.Lstat(name); statErr == nil && now.IsDir() {
			return invalidKey(key, "it is a folder of other keys") // created concurrently
		}
		return err
	}
	if err := s.syncFolder(filepath.Dir(name)); err != nil {
		return err
	}
	if len(versions) > 1 {
		return s.writeMeta(meta{Key: key, Versions: versions[:1]}, false)
	}
	return nil
}

// checkConditions checks If-Match and If-None-Match against the existing object. The
// caller holds the key's lock.
func (s *store) checkConditions(ctx context.Context, key, name string, exists bool) error {
	if !gofakes3.HasWriteConditions(ctx) {
		return nil
	}
	etag := ""
	if exists {
		f, _, v, err := s.openLocked(key, name)
		if err != nil {
			return err
		}
		etag = hex.EncodeToString(v.MD5)
		if err := f.Close(); err != nil {
			return err
		}
	}
	return gofakes3.CheckWriteConditions(ctx, exists, etag)
}

// open opens key's content and returns its version.
func (s *store) open(bucket, key string) (*os.File, fs.FileInfo, version, error) {
	name, err := s.objectFile(bucket, key)
	if err != nil {
		return nil, nil, version{}, err
	}
	lock := s.keyLock(key)
	lock.RLock()
	defer lock.RUnlock()
	return s.openLocked(key, name)
}

func (s *store) openLocked(key, name string) (*os.File, fs.FileInfo, version, error) {
	stat, err := s.root.Lstat(name)
	if isNotExist(err) || err == nil && !stat.Mode().IsRegular() {
		return nil, nil, version{}, gofakes3.KeyNotFound(key)
	}
	other := false
	if err == nil {
		other, err = s.otherSpelling(name)
	}
	if err != nil {
		return nil, nil, version{}, err
	}
	if other {
		return nil, nil, version{}, errOtherSpelling(key)
	}
	f, err := s.root.Open(name)
	if isNotExist(err) { // removed by hand concurrently
		return nil, nil, version{}, gofakes3.KeyNotFound(key)
	}
	if err != nil {
		return nil, nil, version{}, err
	}
	if stat, err = f.Stat(); err == nil {
		var v version
		if v, err = s.currentVersion(key, f, stat); err == nil {
			return f, stat, v, nil
		}
	}
	return nil, nil, version{}, errors.Join(err, f.Close())
}

// objectFile returns the file of key, and fails for any other bucket.
func (s *store) objectFile(bucket, key string) (string, error) {
	if bucket != s.bucket {
		return "", gofakes3.BucketNotFound(bucket)
	}
	return s.fileName(key)
}

// GetObject implements gofakes3.Backend. It fails with BadDigest if the content was damaged
// on the disk.
func (s *store) GetObject(_ context.Context, bucket, key string, wanted *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	f, stat, v, err := s.open(bucket, key)
	if err != nil {
		return nil, err
	}
	err = v.verify(key, f)
	part := (*gofakes3.ObjectRange)(nil)
	if err == nil {
		part, err = wanted.Range(stat.Size())
	}
	if err != nil {
		_ = f.Close()   // read only
		return nil, err // not wrapped: gofakes3 compares types
	}
	o := s.newObject(key, stat, v)
	o.Range = part
	content := io.NewSectionReader(f, 0, stat.Size())
	if part != nil {
		content = io.NewSectionReader(f, part.Start, part.Length)
	}
	o.Contents = struct {
		io.Reader
		io.Closer
	}{content, f}
	return o, nil
}

// HeadObject implements gofakes3.Backend.
func (s *store) HeadObject(_ context.Context, bucket, key string) (*gofakes3.Object, error) {
	f, stat, v, err := s.open(bucket, key)
	if err != nil {
		return nil, err
	}
	o := s.newObject(key, stat, v)
	o.Contents = http.NoBody
	return o, f.Close()
}

func (s *store) newObject(key string, stat fs.FileInfo, v version) *gofakes3.Object {
	headers := make(map[string]string, len(v.Headers)+1)
	maps.Copy(headers, v.Headers)
	headers["Last-Modified"] = stat.ModTime().UTC().Format(http.TimeFormat)
	return &gofakes3.Object{Name: key, Metadata: headers, Size: stat.Size(), Hash: v.MD5}
}

// DeleteObject implements gofakes3.Backend. It also removes folders that become empty.
func (s *store) DeleteObject(_ context.Context, bucket, key string) (gofakes3.ObjectDeleteResult, error) {
	name, err := s.objectFile(bucket, key)
	if err != nil {
		return gofakes3.ObjectDeleteResult{}, err
	}
	lock := s.keyLock(key)
	lock.Lock()
	defer lock.Unlock()
	s.folders.Lock()
	defer s.folders.Unlock()

	stat, err := s.root.Lstat(name)
	if isNotExist(err) || err == nil && stat.IsDir() {
		return gofakes3.ObjectDeleteResult{}, nil
	}
	if other, err := s.otherSpelling(name); err != nil || other {
		return gofakes3.ObjectDeleteResult{}, err
	}
	if err == nil {
		err = s.root.Remove(name)
	}
	if err == nil {
		err = s.syncFolder(filepath.Dir(name))
	}
	if err == nil {
		if err = s.root.Remove(s.metaName(key)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		s.pruneFolders(name)
	}
	return gofakes3.ObjectDeleteResult{}, err
}

// DeleteMulti implements gofakes3.Backend.
func (s *store) DeleteMulti(ctx context.Context, bucket string, keys ...string) (gofakes3.MultiDeleteResult, error) {
	var result gofakes3.MultiDeleteResult
	for _, key := range keys {
		if _, err := s.DeleteObject(ctx, bucket, key); err != nil {
			failed := gofakes3.ErrorResultFromError(err)
			failed.Key = key
			result.Error = append(result.Error, failed)
		} else {
			result.Deleted = append(result.Deleted, gofakes3.ObjectID{Key: key})
		}
	}
	return result, nil
}

// CopyObject implements gofakes3.Backend.
func (s *store) CopyObject(ctx context.Context, srcBucket, srcKey, bucket, key string, headers map[string]string) (gofakes3.CopyObjectResult, error) {
	f, stat, v, err := s.open(srcBucket, srcKey)
	if err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, err := s.PutObject(ctx, bucket, key, headers, io.NewSectionReader(f, 0, stat.Size()), stat.Size()); err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	return gofakes3.CopyObjectResult{
		ETag:         `"` + hex.EncodeToString(v.MD5) + `"`,
		LastModified: gofakes3.NewContentTime(time.Now()),
	}, nil
}

// ListBuckets implements gofakes3.Backend.
func (s *store) ListBuckets(context.Context) ([]gofakes3.BucketInfo, error) {
	return []gofakes3.BucketInfo{{Name: s.bucket, CreationDate: gofakes3.NewContentTime(s.createdAt)}}, nil
}

// BucketExists implements gofakes3.Backend.
func (s *store) BucketExists(_ context.Context, bucket string) (bool, error) {
	return bucket == s.bucket, nil
}

// CreateBucket implements gofakes3.Backend. It always fails: there is only one bucket.
func (s *store) CreateBucket(_ context.Context, bucket string) error {
	if bucket == s.bucket {
		return gofakes3.ResourceError(gofakes3.ErrBucketAlreadyExists, bucket)
	}
	return gofakes3.ErrorMessage(gofakes3.ErrNotImplemented, "This store has one bucket, "+s.bucket)
}

// DeleteBucket implements gofakes3.Backend. It always fails.
func (s *store) DeleteBucket(context.Context, string) error {
	return gofakes3.ErrorMessage(gofakes3.ErrNotImplemented, "The bucket of this store cannot be deleted")
}
