package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// batchesFile is the file in a data directory that names the batches which ran there. It is
// for people only: no decision depends on it.
const batchesFile = "batches.json"

// startedBatch is the last run of a batch on a data directory.
type startedBatch struct {
	// Command are the arguments after "danqing", and Dir is where it ran.
	Command []string  `json:"command"`
	Dir     string    `json:"dir"`
	Results string    `json:"results"` // absolute
	Jobs    int       `json:"jobs"`    // of the file
	At      time.Time `json:"at"`
}

// redosOf is added to the name of a batch for its last run with redos alone, whose command does
// not continue the batch.
const redosOf = ".redo"

// readBatches returns the batches of a data directory by name, none if they cannot be read.
func readBatches(dir string) map[string]startedBatch {
	batches := map[string]startedBatch{}
	text, err := os.ReadFile(filepath.Join(dir, batchesFile)) //nolint:gosec // in the data directory
	if err != nil || json.Unmarshal(text, &batches) != nil {
		return map[string]startedBatch{}
	}
	return batches
}

// noteBatches records the run of files in a data directory, which no other process uses.
func noteBatches(dir string, files []*batchFile, command []string) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	batches := readBatches(dir)
	for _, s := range files {
		if s.name == "" { // a single job
			continue
		}
		results, pathErr := filepath.Abs(s.results)
		err = errors.Join(err, pathErr)
		name := s.name
		if !slices.ContainsFunc(s.lines, func(l *line) bool { return !redoPattern.MatchString(l.lineID) }) {
			name += redosOf
		}
		batches[name] = startedBatch{Command: command, Dir: here, Results: results, Jobs: len(s.lines), At: time.Now().UTC()}
	}
	text, encodeErr := json.MarshalIndent(batches, "", "  ")
	if err := errors.Join(err, encodeErr); err != nil {
		return err
	}
	err = atomicfile.Write(filepath.Join(dir, batchesFile), 0o600, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", batchesFile, err)
	}
	return nil
}

// goOn returns the command that continues a batch.
func (b startedBatch) goOn() string {
	command := "danqing"
	for _, arg := range b.Command {
		command += " " + shellQuoted(arg)
	}
	if here, err := os.Getwd(); err == nil && here != b.Dir {
		command = "cd " + shellQuoted(b.Dir) + " && " + command
	}
	return command
}

var plainWord = regexp.MustCompile(`^[\pL\pN_@%+=:,./-]+$`)

// shellQuoted returns a word for a shell.
func shellQuoted(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
