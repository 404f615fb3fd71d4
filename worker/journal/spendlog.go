package journal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// SpendLogName is the name of the spend log in a data directory.
const SpendLogName = "spend.jsonl"

// spendLine is one line of the spend log: what a task has cost.
type spendLine struct {
	At          time.Time         `json:"at"` // when it was booked
	Account     string            `json:"account"`
	JobID       string            `json:"job_id,omitempty"`
	Attempt     int               `json:"attempt,omitempty"`
	SubmittedAt time.Time         `json:"submitted_at"`
	Model       string            `json:"model"`
	Batch       string            `json:"batch,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	MicroYuan   int64             `json:"micro_yuan"`
	Images      int               `json:"images"`
	TaskID      string            `json:"task_id"`
}

// settled is the line as the ledger takes it.
func (s spendLine) settled() ledger.Settlement {
	return ledger.Settlement{TaskID: s.TaskID, Charge: ledger.Charge{
		Account: s.Account, JobID: s.JobID, Attempt: s.Attempt, At: s.SubmittedAt, Model: s.Model, Batch: s.Batch, Labels: s.Labels,
		MicroYuan: s.MicroYuan, Images: s.Images,
	}}
}

// SpendLog is the worker's own list of what its tasks have cost: JSON lines, one
// for each task that was settled, which are never rewritten. Where the queue is
// memory only it is what keeps budgets over the end of the process. It is not
// synced: what a power cut takes from its end is missing in reports, and the tasks
// themselves are known to the journal. It is safe for concurrent use.
type SpendLog struct {
	mu   sync.Mutex
	file appendFile
	// tasks are those that were booked by this process, or not long before it.
	tasks map[string]bool
	// damaged counts the lines that cannot be read.
	damaged int
}

// spendMemory is how long a task is known not to be booked twice: the ledger's own
// memory, and a day for clocks.
const spendMemory = jobs.RecordLifetime + 2*24*time.Hour

// OpenSpendLog opens or creates the spend log at path, which one process may write
// at a time: the caller holds a lock. A torn last line, left by a crash in the
// middle of a write, is cut off; lines before it that are damaged are passed over,
// see [SpendLog.Damaged].
func OpenSpendLog(path string) (*SpendLog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // in our own folder
	if err != nil {
		return nil, fmt.Errorf("open spend log: %w", err)
	}
	l := &SpendLog{file: appendFile{path: path, name: "spend log", file: file}, tasks: map[string]bool{}}
	scan := spendScan{in: file}
	oldest := time.Now().Add(-spendMemory)
	for line := range scan.lines() {
		if line.At.After(oldest) {
			l.tasks[line.TaskID] = true
		}
	}
	l.file.size, l.damaged = scan.size, scan.damaged
	err = scan.err
	if err == nil {
		err = file.Truncate(scan.size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read spend log %s: %w", path, err), file.Close())
	}
	return l, nil
}

// Damaged returns how many whole lines could not be read when the log was opened.
func (l *SpendLog) Damaged() int { return l.damaged }

// Close closes the file.
func (l *SpendLog) Close() error { return l.file.close() }

// Append writes a line for a task, unless it has one.
func (l *SpendLog) Append(charge ledger.Charge, taskID string) error {
	line, err := encodeLine(spendLine{
		At: time.Now().UTC(), Account: charge.Account, JobID: charge.JobID, Attempt: charge.Attempt, SubmittedAt: charge.At,
		Model: charge.Model, Batch: charge.Batch, Labels: charge.Labels, MicroYuan: charge.MicroYuan, Images: charge.Images, TaskID: taskID,
	})
	if err != nil {
		return fmt.Errorf("write spend log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tasks[taskID] {
		return nil
	}
	if err := l.file.append(line); err != nil {
		return err
	}
	l.tasks[taskID] = true
	return nil
}

// read calls for each line that is in the log now.
func (l *SpendLog) read(each func(spendLine)) error {
	l.mu.Lock()
	scan := spendScan{in: io.NewSectionReader(l.file.file, 0, l.file.size)}
	l.mu.Unlock()
	for line := range scan.lines() {
		each(line)
	}
	if scan.err != nil {
		return fmt.Errorf("read spend log %s: %w", l.file.path, scan.err)
	}
	return nil
}

// ReadSpendLog sums up a spend log for a report, by day, account, model, batch and
// labels, also while a process writes it. damaged is how many whole lines cannot be
// read. It fails with [os.ErrNotExist] if there is none.
func ReadSpendLog(path string) (spent []ledger.Spend, damaged int, err error) {
	file, err := os.Open(path) //nolint:gosec // the operator's own data directory
	if err != nil {
		return nil, 0, fmt.Errorf("open spend log: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	scan := spendScan{in: file}
	sums := spendSums{}
	for line := range scan.lines() {
		sums.add(line)
	}
	if scan.err != nil {
		return nil, 0, fmt.Errorf("read spend log %s: %w", path, scan.err)
	}
	return sums.list(), scan.damaged, nil
}

// spendScan reads the lines of a log.
type spendScan struct {
	in io.Reader
	// size is up to where there are whole lines, damaged how many of them cannot be
	// read, and err why it ended early.
	size    int64
	damaged int
	err     error
}

func (s *spendScan) lines() iter.Seq[spendLine] {
	return func(yield func(spendLine) bool) {
		for text, err := range lines(s.in) {
			if err != nil {
				s.err = err
				return
			}
			if !bytes.HasSuffix(text, []byte("\n")) {
				return // it was torn
			}
			s.size += int64(len(text))
			line, ok := parseSpendLine(text)
			if !ok {
				s.damaged++
			} else if !yield(line) {
				return
			}
		}
	}
}

// parseSpendLine reads a line that the ledger can take.
func parseSpendLine(text []byte) (line spendLine, ok bool) {
	err := json.Unmarshal(bytes.TrimRight(text, "\r\n"), &line)
	ok = err == nil && line.TaskID != "" && jobs.ValidAccount(line.Account) == nil &&
		!line.At.IsZero() && !line.SubmittedAt.IsZero() && line.MicroYuan >= 0 && line.Images >= 0
	return line, ok
}

// spendSums sums lines up by what a report tells apart.
type spendSums map[spendKey]*ledger.Spend

type spendKey struct{ day, account, model, batch, labels string }

func (s spendSums) add(line spendLine) {
	key := spendKey{day: ledger.Day(line.SubmittedAt), account: line.Account, model: line.Model, batch: line.Batch}
	if len(line.Labels) > 0 {
		labels, _ := json.Marshal(line.Labels) // texts by texts, in order
		key.labels = string(labels)
	}
	sum := s[key]
	if sum == nil {
		sum = &ledger.Spend{Account: key.account, Day: key.day, Model: key.model, Batch: key.batch, Labels: line.Labels}
		s[key] = sum
	}
	sum.SpentMicroYuan += line.MicroYuan
	sum.Images += line.Images
}

// list returns the sums in the order of their keys.
func (s spendSums) list() []ledger.Spend {
	keys := make([]spendKey, 0, len(s))
	for key := range s {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b spendKey) int {
		return cmp.Or(cmp.Compare(a.day, b.day), cmp.Compare(a.account, b.account), cmp.Compare(a.model, b.model),
			cmp.Compare(a.batch, b.batch), cmp.Compare(a.labels, b.labels))
	})
	list := make([]ledger.Spend, len(keys))
	for i, key := range keys {
		list[i] = *s[key]
	}
	return list
}

// Ledger is what [SpendLog.ImportInto] needs of a ledger.
type Ledger interface {
	BeginImport(ctx context.Context, workerID, remembered string) (ledger.Import, error)
	SettleAll(ctx context.Context, settled []ledger.Settlement) error
	ImportSums(ctx context.Context, workerID string, sums []ledger.Spend) error
	EndImport(ctx context.Context, workerID string, began ledger.Import) error
}

// ImportInto brings what the log tells into the ledger of a Redis that does not have
// it, so that budgets hold over a queue that was memory only, or was lost. Tasks that may
// be settled again are booked one by one, older ones as sums. It may be repeated: a ledger
// that has the log gets of the last days what it lacks, after a crash between the two, or
// from a backup.
func (l *SpendLog) ImportInto(ctx context.Context, book Ledger, workerID string) error {
	// A task that was submitted since then is remembered as booked, if it was.
	remembered := ledger.Day(time.Now().Add(-jobs.RecordLifetime))
	began, err := book.BeginImport(ctx, workerID, remembered)
	if err != nil {
		return err
	}
	lately := began.FirstDay
	if began.Done {
		lately = max(lately, remembered)
	}
	older, recent := spendSums{}, []ledger.Settlement(nil)
	err = l.read(func(line spendLine) {
		switch day := ledger.Day(line.SubmittedAt); {
		case day >= lately:
			recent = append(recent, line.settled())
		case !began.Done:
			older.add(line)
		}
	})
	if err != nil {
		return err
	}
	if err := book.SettleAll(ctx, recent); err != nil {
		return err
	}
	if began.Done {
		return nil
	}
	if err := book.ImportSums(ctx, workerID, older.list()); err != nil {
		return err
	}
	return book.EndImport(ctx, workerID, began)
}
