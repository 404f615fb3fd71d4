package embedded

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rclone/gofakes3"
)

// ListBucket implements gofakes3.Backend: keys in byte order, with prefix, delimiter
// and pages.
func (s *store) ListBucket(ctx context.Context, bucket string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if bucket != s.bucket {
		return nil, gofakes3.BucketNotFound(bucket)
	}
	if prefix == nil {
		prefix = &gofakes3.Prefix{}
	}
	list := gofakes3.NewObjectList()
	last := ""
	w := walk{fsys: s.root.FS(), root: filepath.ToSlash(s.bucket), prefix: prefix.Prefix, after: page.Marker}
	err := w.folder("", func(key string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		group := ""
		if i := strings.Index(key[len(w.prefix):], prefix.Delimiter); i >= 0 && prefix.Delimiter != "" {
			group = key[:len(w.prefix)+i+len(prefix.Delimiter)]
			w.skip = group
			if group <= page.Marker { // it was the last of an earlier page
				return nil
			}
		}
		if page.MaxKeys > 0 && int64(len(list.Contents)+len(list.CommonPrefixes)) >= page.MaxKeys {
			return errPageFull
		}
		if group != "" {
			list.AddPrefix(group)
			last = group
			return nil
		}
		content, err := s.listEntry(key)
		if gofakes3.HasErrorCode(err, gofakes3.ErrNoSuchKey) || gofakes3.HasErrorCode(err, gofakes3.ErrInvalidArgument) {
			return nil // deleted concurrently, or a file whose name is not a valid key
		}
		if err != nil {
			return err
		}
		list.Add(content)
		last = key
		return nil
	})
	if errors.Is(err, errPageFull) {
		list.IsTruncated, list.NextMarker, err = true, last, nil
	}
	return list, err
}

var errPageFull = errors.New("page full")

func (s *store) listEntry(key string) (*gofakes3.Content, error) {
	f, stat, v, err := s.open(s.bucket, key)
	if err != nil {
		return nil, err
	}
	return &gofakes3.Content{
		Key: key, Size: stat.Size(), LastModified: gofakes3.NewContentTime(stat.ModTime()),
		ETag: `"` + hex.EncodeToString(v.MD5) + `"`, StorageClass: gofakes3.StorageStandard,
	}, f.Close()
}

// walk visits the keys of a folder that begin with prefix and follow after, in byte
// order.
type walk struct {
	fsys   fs.FS
	root   string
	prefix string
	after  string
	skip   string // unless "", keys with this prefix are skipped
}

// folder visits the keys below a folder, which is "" or ends with a slash.
func (w *walk) folder(folder string, visit func(key string) error) error {
	entries, err := fs.ReadDir(w.fsys, path.Join(w.root, folder))
	if errors.Is(err, fs.ErrNotExist) { // removed concurrently
		return nil
	}
	if err != nil {
		return err
	}
	// A folder sorts as its keys do, with the slash: "a-b" comes before "a/c".
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		switch {
		case !utf8.ValidString(e.Name()): // not a valid key
		case e.IsDir():
			names = append(names, e.Name()+"/")
		case e.Type().IsRegular():
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for _, name := range names {
		key := folder + name
		if w.skip != "" && strings.HasPrefix(key, w.skip) {
			continue
		}
		isFolder := strings.HasSuffix(key, "/")
		switch {
		case isFolder && w.mayContain(key):
			err = w.folder(key, visit)
		case !isFolder && key > w.after && strings.HasPrefix(key, w.prefix):
			err = visit(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayContain reports whether a folder can contain matching keys.
func (w *walk) mayContain(folder string) bool {
	wanted := strings.HasPrefix(folder, w.prefix) || strings.HasPrefix(w.prefix, folder)
	return wanted && (folder > w.after || strings.HasPrefix(w.after, folder))
}
