package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/journal"
)

// checkConfig reports the configuration, without secrets.
func (d *doctor) checkConfig() {
	for _, a := range d.cfg.Accounts {
		set := "a key"
		if !a.APIKey.IsSet() {
			set = "no key"
		}
		lanes := make([]string, len(a.Lanes))
		for i, l := range a.Lanes {
			lanes[i] = fmt.Sprintf("%s (%d at once)", l.Model, l.Concurrency)
		}
		budget := ""
		if a.DailyBudgetMicroYuan > 0 {
			budget = ", at most " + yuan(a.DailyBudgetMicroYuan) + " a day"
		}
		d.ok("account %s: %s, lanes %s%s", a.Name, set, strings.Join(lanes, ", "), budget)
	}
	var overlaid []string
	for _, m := range jobs.Models() {
		if m.Overlaid {
			overlaid = append(overlaid, m.Name)
		}
	}
	if len(overlaid) > 0 {
		d.ok("the catalog of models has an overlay (DANQING_MODEL_CATALOG) with %s", strings.Join(overlaid, ", "))
	}
	if d.cfg.CheckReal() != nil {
		d.bad("set it to your key from the Model Studio (百炼) console, or try it without: danqing up --simulate", "DASHSCOPE_API_KEY is not set, so no image can be created")
	}
	if d.cfg.Bucket != "" {
		d.ok("%v", d.cfg.Storage())
	}
	for _, w := range d.cfg.Warnings {
		d.warn("", "%s", w)
	}
}

// minFreeDisk is the free space that workers require before a submit, for images that are
// already paid for.
const minFreeDisk = 256 << 20

// checkDataDir checks whether the data directory is writable, and which process uses it.
func (d *doctor) checkDataDir(ctx context.Context) {
	path, err := filepath.Abs(d.cfg.DataDir)
	if err != nil {
		d.bad("correct DANQING_DATA_DIR", "data directory: %v", err)
		return
	}
	if !d.checkWritable(path) {
		return
	}
	mode, err := journal.ReadMode(path)
	d.reportMode(worker.PlaceDataDir, mode, err)
	switch locked, holder, err := lockHolder(path); {
	case err != nil:
		d.bad("make it its user's, or correct DANQING_DATA_DIR", "data directory: its lock cannot be read: %v", err)
	case !locked:
		d.ok("data directory %s: not in use", path)
	default:
		where := ""
		if at, err := readInstance(ctx, path); err == nil {
			where = ", which serves " + at.HTTP
		}
		d.note("a second worker needs a DANQING_DATA_DIR of its own", "data directory %s: in use by %s%s", path, holder, where)
	}
}

// checkWritable checks whether files can be created in the folder, or in its first existing
// parent, and whether there is enough free space.
func (d *doctor) checkWritable(path string) bool {
	exists := path
	for {
		if _, err := os.Stat(exists); !errors.Is(err, fs.ErrNotExist) || exists == filepath.Dir(exists) {
			break
		}
		exists = filepath.Dir(exists)
	}
	trial, err := os.CreateTemp(exists, ".danqing-doctor-*")
	if err == nil {
		err = errors.Join(trial.Close(), os.Remove(trial.Name()))
	}
	if err != nil {
		d.bad("make it writable for the user that runs danqing, or set DANQING_DATA_DIR to a folder that is", "data directory %s: nothing can be written there: %v", path, err)
		return false
	}
	switch free, err := storage.FreeBytes(exists); {
	case errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		d.warn("correct DANQING_DATA_DIR", "data directory: %v", err)
	case free < minFreeDisk:
		d.bad("free some space", "data directory %s: %d MiB free, and workers buy nothing below %d", path, free>>20, minFreeDisk>>20)
	default:
		d.ok("data directory %s: writable, %d MiB free", path, free>>20)
	}
	return true
}

// lockHolder reports whether a process uses the data directory, and names it if the system
// provides its ID.
func lockHolder(dir string) (locked bool, holder string, err error) {
	path := filepath.Join(dir, "lock")
	at, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	if pid := lockPID(at); pid != "" {
		return true, "process " + pid, nil
	}
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY))
	free, err := lock.TryRLock()
	if err != nil {
		return false, "", err
	}
	return !free, "another process", lock.Unlock()
}
