package simulator

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// stateFile holds the entries of StateDir, one JSON object per line, with a checksum. The
// images of uploads are separate files beside it.
const stateFile = "dashscope.jsonl"

// entry is one line of the state file: an event.
type entry struct {
	Task   *task         `json:"task,omitempty"`
	Cancel *cancellation `json:"cancel,omitempty"`
	Upload *upload       `json:"upload,omitempty"`
}

// cancellation removes a PENDING task from its lane.
type cancellation struct {
	TaskID string    `json:"task_id"`
	At     time.Time `json:"at"`
}

// record makes an entry durable before its request is answered. s.mu must be
// held.
func (s *Simulator) record(e entry) error {
	if s.StateDir == "" {
		return nil
	}
	if s.journal == nil {
		return fmt.Errorf("record in %s: %w", s.StateDir, os.ErrClosed)
	}
	line, err := compactjson.MarshalLine(e)
	if err != nil {
		return fmt.Errorf("record in %s: %w", s.StateDir, err)
	}
	if _, err := s.journal.Write(line); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := s.journal.Sync(); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// recordUpload makes an upload durable. s.mu must be held.
func (s *Simulator) recordUpload(up *upload) error {
	if s.StateDir != "" && up.picture != nil {
		var buf bytes.Buffer
		if err := png.Encode(&buf, up.picture); err != nil {
			return fmt.Errorf("record upload: %w", err)
		}
		if err := os.WriteFile(s.uploadFile(up.Key), buf.Bytes(), 0o600); err != nil {
			return fmt.Errorf("record upload: %w", err)
		}
	}
	return s.record(entry{Upload: up})
}

func (s *Simulator) uploadFile(key string) string {
	sum := hash(key)
	return filepath.Join(s.StateDir, "upload-"+hex.EncodeToString(sum[:16])+".png")
}

// restore reads StateDir and opens it for appending. An incomplete last line of a crash
// is dropped: its request was not answered.
func (s *Simulator) restore() error {
	if err := os.MkdirAll(s.StateDir, 0o700); err != nil {
		return fmt.Errorf("simulator state: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.StateDir, stateFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("simulator state: %w", err)
	}
	whole, err := s.replay(f)
	if err != nil {
		err = fmt.Errorf("%s: %w: restore the file from a backup, or remove the folder: the simulated tasks are lost then", f.Name(), err)
	}
	if err == nil {
		err = f.Truncate(whole)
	}
	if err == nil {
		_, err = f.Seek(whole, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("simulator state: %w", errors.Join(err, f.Close()))
	}
	s.journal = f
	return nil
}

// replay applies every complete line and returns their length in bytes.
func (s *Simulator) replay(r io.Reader) (whole int64, err error) {
	lines := bufio.NewReader(r)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return whole, err
		}
		var e entry
		err = compactjson.UnmarshalLine(line, &e)
		if errors.Is(err, compactjson.ErrTorn) { // the last one, or none
			return whole, nil
		}
		if err == nil {
			err = s.apply(e)
		}
		if err != nil {
			return whole, fmt.Errorf("line %d is damaged: %w", number, err)
		}
		whole += int64(len(line))
	}
}

// apply repeats the effect of an entry.
func (s *Simulator) apply(e entry) error {
	switch {
	case e.Task != nil:
		// The file may have been edited, or written for another region.
		m, known := s.lookupModel(e.Task.Request.Model)
		if n := e.Task.Request.Parameters.N; !known || n != nil && (*n < 1 || *n > m.maxImages) {
			return fmt.Errorf("task %s: model %q is unknown here or makes fewer images (with an overlay: is DANQING_MODEL_CATALOG the same file?)", e.Task.ID, e.Task.Request.Model)
		}
		s.addTask(e.Task)
	case e.Cancel != nil:
		t := s.byID[e.Cancel.TaskID]
		if t == nil {
			return fmt.Errorf("no task %s to cancel", e.Cancel.TaskID)
		}
		s.lanes[laneKey{t.Account, t.Request.Model}].cancel(t, e.Cancel.At)
	case e.Upload != nil:
		return s.applyUpload(e.Upload)
	}
	return nil
}

func (s *Simulator) applyUpload(up *upload) error {
	s.uploads[up.Key] = up
	if up.Failure.Code != "" {
		return nil
	}
	f, err := os.Open(s.uploadFile(up.Key))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	img, _, err := image.Decode(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	up.picture = painter.Shrink(img)
	return nil
}
