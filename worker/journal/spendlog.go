package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// SpendLogName is the file name of the spend log in a data directory.
const SpendLogName = "spend.jsonl"

// spendLine is one line of the spend log: the cost of a task.
type spendLine struct {
	At          time.Time         `json:"at"` // time of booking
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
	// WorkerID is in the first line alone, which books nothing.
	WorkerID string `json:"worker_id,omitempty"`
}

// settled returns the line as a settlement for the ledger.
func (s spendLine) settled() ledger.Settlement {
	return ledger.Settlement{TaskID: s.TaskID, Charge: ledger.Charge{
		Account: s.Account, JobID: s.JobID, Attempt: s.Attempt, At: s.SubmittedAt, Model: s.Model, Batch: s.Batch, Labels: s.Labels,
		MicroYuan: s.MicroYuan, Images: s.Images,
	}}
}

// SpendLog is the worker's log of the cost of its tasks: JSON lines, one per settled task,
// never rewritten. With an in-memory queue it preserves budgets across restarts. It is not
// synced: lines lost in a power cut are missing in reports only, since the journal has the
// tasks themselves. It is safe for concurrent use.
type SpendLog struct {
	mu   sync.Mutex
	file appendFile
	// workerID is in the first line, "" if the file has no line.
	workerID string
	// tasks are those booked within [spendMemory], by this process or earlier ones, with the
	// time of their line. Older ones are removed once a day, the last time at prunedAt.
	tasks    map[string]time.Time
	prunedAt time.Time
}

// spendMemory is how long a task is protected against being booked twice: as long as the
// ledger does it, 8 days, and one day for clock differences.
const spendMemory = jobs.RecordLifetime + 2*24*time.Hour

// loadSpendLog opens or creates the spend log at path. The caller must hold a lock: one
// process at a time may write it. A torn last line, left by a crash during a write, is cut
// off. Any other damaged line is an error: without it budgets would be exceeded. Nothing may
// be appended before start.
func loadSpendLog(path string) (*SpendLog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // in the data directory
	if err != nil {
		return nil, fmt.Errorf("open spend log: %w", err)
	}
	l := &SpendLog{file: appendFile{path: path, name: "spend log", file: file}, tasks: map[string]time.Time{}, prunedAt: time.Now()}
	scan := spendScan{in: file}
	oldest := time.Now().Add(-spendMemory)
	for line := range scan.parsed() {
		if line.At.After(oldest) {
			l.tasks[line.TaskID] = line.At
		}
	}
	l.file.size, l.workerID = scan.size, scan.workerID
	err = scan.err
	if scan.damaged > 0 {
		err = fmt.Errorf("line %d is damaged: restore the file from a backup, or move it away: then it is rebuilt from the sidecars in the bucket where the queue is embedded, and Redis has the budgets otherwise", scan.firstDamaged)
	}
	if err == nil {
		err = file.Truncate(scan.size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spend log %s: %w", path, err), file.Close())
	}
	return l, nil
}

// clear removes all lines.
func (l *SpendLog) clear() error {
	if err := l.file.file.Truncate(0); err != nil {
		return fmt.Errorf("clear spend log: %w", err)
	}
	l.file.size, l.workerID = 0, ""
	clear(l.tasks)
	return nil
}

// start begins the spend log of a worker, which must be the one in its first line, if it has
// lines.
func (l *SpendLog) start(workerID string) error {
	if l.workerID != "" {
		return nil
	}
	line, err := compactjson.MarshalLine(struct {
		WorkerID string `json:"worker_id"`
	}{workerID})
	if err == nil {
		err = l.file.append(line)
	}
	if err != nil {
		return fmt.Errorf("write spend log: %w", err)
	}
	l.workerID = workerID
	return nil
}

// Close closes the file.
func (l *SpendLog) Close() error { return l.file.close() }

// Append appends a line for a task, unless the task has one.
func (l *SpendLog) Append(charge ledger.Charge, taskID string) error {
	now := time.Now().UTC()
	line, err := compactjson.MarshalLine(spendLine{
		At: now, Account: charge.Account, JobID: charge.JobID, Attempt: charge.Attempt, SubmittedAt: charge.At,
		Model: charge.Model, Batch: charge.Batch, Labels: charge.Labels, MicroYuan: charge.MicroYuan, Images: charge.Images, TaskID: taskID,
	})
	if err != nil {
		return fmt.Errorf("write spend log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, booked := l.tasks[taskID]; booked {
		return nil
	}
	if err := l.file.append(line); err != nil {
		return err
	}
	l.tasks[taskID] = now
	if now.Sub(l.prunedAt) > 24*time.Hour {
		l.prunedAt = now
		maps.DeleteFunc(l.tasks, func(_ string, at time.Time) bool { return now.Sub(at) > spendMemory })
	}
	return nil
}

// read calls each for every line in the log.
func (l *SpendLog) read(each func(spendLine)) error {
	l.mu.Lock()
	scan := spendScan{in: io.NewSectionReader(l.file.file, 0, l.file.size)}
	l.mu.Unlock()
	for line := range scan.parsed() {
		each(line)
	}
	if scan.err != nil {
		return fmt.Errorf("read spend log %s: %w", l.file.path, scan.err)
	}
	return nil
}

// ReadSpendLog sums a spend log for a report by day, account, model, batch and labels. A
// process may write the log meanwhile. damaged is the number of unreadable complete lines.
// It fails with [os.ErrNotExist] if there is no log.
func ReadSpendLog(path string) (spent []ledger.Spend, damaged int, err error) {
	file, err := os.Open(path) //nolint:gosec // the operator's own data directory
	if err != nil {
		return nil, 0, fmt.Errorf("open spend log: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	scan := spendScan{in: file}
	sums := spendSums{}
	for line := range scan.parsed() {
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
	// size is the length of the complete lines in bytes, damaged the number of unreadable
	// ones, firstDamaged the number of the first of them, and err the error that ended the
	// scan early.
	size                  int64
	damaged, firstDamaged int
	err                   error
	workerID              string // of the first line
}

func (s *spendScan) parsed() iter.Seq[spendLine] {
	return func(yield func(spendLine) bool) {
		number := 0
		for text, err := range lines(s.in) {
			number++
			if err != nil {
				s.err = err
				return
			}
			line, err := parseSpendLine(text)
			if errors.Is(err, compactjson.ErrTorn) {
				return
			}
			s.size += int64(len(text))
			switch {
			case err != nil:
				s.damaged++
				s.firstDamaged = cmp.Or(s.firstDamaged, number)
			case line.WorkerID != "":
				s.workerID = line.WorkerID
			case !yield(line):
				return
			}
		}
	}
}

// parseSpendLine decodes a line. It fails with [compactjson.ErrTorn], or if the line is
// damaged or the ledger would not accept it.
func parseSpendLine(text []byte) (line spendLine, err error) {
	if err := compactjson.UnmarshalLine(text, &line); err != nil || line.WorkerID != "" {
		return line, err
	}
	if line.TaskID == "" || jobs.ValidAccount(line.Account) != nil ||
		line.At.IsZero() || line.SubmittedAt.IsZero() || line.MicroYuan < 0 || line.Images < 0 {
		return line, errors.New("not a cost of a task")
	}
	return line, nil
}

// spendSums are sums of lines by the dimensions of a report.
type spendSums map[spendKey]*ledger.Spend

type spendKey struct{ day, account, model, batch, labels string }

func (s spendSums) add(line spendLine) {
	key := spendKey{day: ledger.Day(line.SubmittedAt), account: line.Account, model: line.Model, batch: line.Batch}
	if len(line.Labels) > 0 {
		labels, _ := json.Marshal(line.Labels) // a map of strings, keys sorted
		key.labels = string(labels)
	}
	sum := s[key]
	if sum == nil {
		sum = &ledger.Spend{Account: key.account, Day: key.day, Model: key.model, Batch: key.batch, Labels: line.Labels}
		s[key] = sum
	}
	sum.SpentMicroYuan = ledger.Sum(sum.SpentMicroYuan, line.MicroYuan)
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

// Ledger is the part of a ledger that [SpendLog.ImportInto] uses.
type Ledger interface {
	BeginImport(ctx context.Context, workerID, since string) (ledger.Import, error)
	Settle(ctx context.Context, settled ...ledger.Settlement) (booked int, err error)
	ImportSums(ctx context.Context, workerID string, sums []ledger.Spend) error
	EndImport(ctx context.Context, workerID string, began ledger.Import) error
}

// ImportInto imports the log into the ledger of a Redis that lacks it, so that budgets hold
// after the loss of an in-memory or other queue. Tasks that may be settled again are booked
// one by one, older ones as sums. It may be repeated: if the ledger has the log already,
// only missing tasks of the last days are added, as after a crash between log and ledger or
// after restoring a backup.
func (l *SpendLog) ImportInto(ctx context.Context, book Ledger, workerID string) error {
	// The ledger recognizes tasks submitted since then that it has booked already.
	since := ledger.Day(time.Now().Add(-jobs.RecordLifetime))
	began, err := book.BeginImport(ctx, workerID, since)
	if err != nil {
		return err
	}
	lately := began.FirstDay
	if began.Done {
		lately = max(lately, since)
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
	if _, err := book.Settle(ctx, recent...); err != nil {
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
