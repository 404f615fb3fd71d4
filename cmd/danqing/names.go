package main

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// normalizeName returns the form of a name that all names have which look the same: some
// systems decompose letters such as é and が.
func normalizeName(name string) string { return norm.NFC.String(name) }

// foldName returns the same text for names that some file systems cannot tell apart: those of
// macOS and Windows ignore case, and that of macOS the composition of letters.
func foldName(name string) string {
	return norm.NFC.String(cases.Fold().String(norm.NFD.String(name)))
}

// checkFolders refuses a batch whose folder in the embedded bucket would be that of an earlier
// one on disks that cannot tell their names apart: its images could not be stored.
func (r *batchRun) checkFolders() error {
	if r.runtime.localBucket == nil {
		return nil
	}
	folders, err := os.ReadDir(filepath.Dir(r.runtime.localBucket.Path(path.Join(r.runtime.cfg.Prefix, "x"))))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, s := range r.files {
		at := strings.LastIndexByte(s.lines[0].id, '.')
		if at < 0 {
			continue
		}
		name := s.lines[0].id[:at]
		for _, folder := range folders {
			if folder.Name() != name && foldName(folder.Name()) == foldName(name) {
				return usageErrorf("name it otherwise with --name", "the images of batch %s would be in the folder of batch %s on some disks: the names differ only in case", s.name, folder.Name())
			}
		}
	}
	return nil
}
