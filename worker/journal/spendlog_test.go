package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// spendCharge is a charge of one image at 0.16 yuan, submitted the given time ago.
func spendCharge(id string, ago time.Duration) ledger.Charge {
	return ledger.Charge{
		Account: "default", JobID: id, Attempt: 1, At: time.Now().Add(-ago).UTC(), Model: "wanx-v1", Batch: "shop",
		Labels: map[string]string{"sku": "<A-17>"}, MicroYuan: 160_000, Images: 1,
	}
}

// openSpendLog opens a log as a data directory does.
func openSpendLog(path string) (*SpendLog, error) {
	l, err := loadSpendLog(path)
	if err != nil {
		return nil, err
	}
	return l, l.start("worker-1")
}

func openSpend(t *testing.T, path string) *SpendLog {
	t.Helper()
	l, err := openSpendLog(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// spendTasks returns the task IDs in a log.
func spendTasks(t *testing.T, l *SpendLog) []string {
	t.Helper()
	var tasks []string
	require.NoError(t, l.read(func(line spendLine) { tasks = append(tasks, line.TaskID) }))
	return tasks
}

// bookkeeper is a data directory with an empty queue and its ledger.
type bookkeeper struct {
	dir    *DataDir
	ledger *ledger.Ledger
	redis  redis.UniversalClient
}

func newBookkeeper(t *testing.T, path string) *bookkeeper {
	t.Helper()
	dir, err := OpenDataDir(path)
	require.NoError(t, err)
	queue := embedded.Open()
	t.Cleanup(func() {
		_ = dir.Close() // the test may have closed it
		require.NoError(t, queue.Close())
	})
	return &bookkeeper{dir: dir, redis: queue.Client(), ledger: ledger.New(queue.Client())}
}

// recordSpend books a task as the worker does.
func (w *bookkeeper) recordSpend(ctx context.Context, charge ledger.Charge, taskID string) error {
	err := w.dir.Spend.Append(charge, taskID)
	_, booking := w.ledger.Settle(ctx, ledger.Settlement{Charge: charge, TaskID: taskID})
	return errors.Join(err, booking)
}

func (w *bookkeeper) importSpend(ctx context.Context) error {
	return w.dir.Spend.ImportInto(ctx, w.ledger, w.dir.WorkerID)
}

// total returns the ledger's total spending, and that of the batch.
func total(t *testing.T, w *bookkeeper) (sum ledger.Spend, batch string) {
	t.Helper()
	spent, err := w.ledger.Spending(t.Context(), time.Time{}, time.Time{})
	require.NoError(t, err)
	for _, s := range spent {
		sum.SpentMicroYuan += s.SpentMicroYuan
		sum.Images += s.Images
	}
	return sum, w.redis.HGet(t.Context(), "danqing:budget:shop", "spent").Val()
}

// A task has one line, however often it is settled, also after a restart.
func TestSpendLogOneLinePerTask(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SpendLogName)
	for range 2 {
		l := openSpend(t, path)
		for _, id := range []string{"a", "b", "a"} {
			require.NoError(t, l.Append(spendCharge("job-"+id, 0), "task-"+id))
		}
		assert.Equal(t, []string{"task-a", "task-b"}, spendTasks(t, l))
		require.NoError(t, l.Close())
	}
	spent, damaged, err := ReadSpendLog(path)
	require.NoError(t, err)
	assert.Zero(t, damaged)
	assert.Equal(t, []ledger.Spend{{
		Account: "default", Day: ledger.Day(time.Now()), Model: "wanx-v1", Batch: "shop", Labels: map[string]string{"sku": "<A-17>"},
		SpentMicroYuan: 320_000, Images: 2,
	}}, spent)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(text), `"<A-17>"`, "readable")
	_, _, err = ReadSpendLog(path + ".absent")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A crash during a write leaves a torn last line, of any length. It is cut off, and its
// task is written again.
func TestSpendLogCutsATornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openSpend(t, filepath.Join(dir, "whole"))
	require.NoError(t, l.Append(spendCharge("a", 0), "a"))
	whole := int(l.file.size)
	require.NoError(t, l.Append(spendCharge("b", 0), "b"))
	text, err := os.ReadFile(l.file.path)
	require.NoError(t, err)
	for cut := whole; cut < len(text); cut++ {
		path := filepath.Join(dir, fmt.Sprint("torn", cut))
		require.NoError(t, os.WriteFile(path, text[:cut], 0o600))
		spent, damaged, err := ReadSpendLog(path)
		require.NoError(t, err)
		assert.Equal(t, []any{int64(160_000), 0}, []any{spent[0].SpentMicroYuan, damaged})

		torn := openSpend(t, path)
		assert.Equal(t, []string{"a"}, spendTasks(t, torn))
		require.NoError(t, torn.Append(spendCharge("b", 0), "b"))
		assert.Equal(t, []string{"a", "b"}, spendTasks(t, torn))
		require.NoError(t, torn.Close())
	}
}

// Without a damaged line budgets would be exceeded: the log does not open. A report leaves
// the line out and counts it.
func TestSpendLogRefusesDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SpendLogName)
	l := openSpend(t, path)
	for _, id := range []string{"a", "b"} {
		require.NoError(t, l.Append(spendCharge(id, 0), id))
	}
	require.NoError(t, l.Close())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := strings.SplitAfter(string(text), "\n")
	negative, err := compactjson.MarshalLine(spendLine{At: time.Now(), SubmittedAt: time.Now(), Account: "default", TaskID: "c", MicroYuan: -1})
	require.NoError(t, err)
	for _, bad := range []string{"\x00\x00\n", "{\n", "\n", "{}\n", strings.Replace(lines[1], "160000", "160001", 1), string(negative)} {
		require.NoError(t, os.WriteFile(path, []byte(lines[0]+lines[1]+bad+lines[2]), 0o600))
		_, err = openSpendLog(path)
		require.ErrorContains(t, err, "line 3 is damaged: restore the file from a backup")
		spent, damaged, err := ReadSpendLog(path)
		require.NoError(t, err)
		assert.Equal(t, 1, damaged)
		assert.Equal(t, 2, spent[0].Images)
	}
}

// After a restart an in-memory queue has the earlier spending exactly once, also after
// later restarts, and budgets count it.
func TestImportSpend(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	w := newBookkeeper(t, path)
	const day = 24 * time.Hour
	for i, ago := range []time.Duration{0, 0, day, 6 * day, 9 * day, 9 * day, 40 * day} {
		c := spendCharge(fmt.Sprint(i), ago)
		if i == 1 {
			c.Batch = ""
		}
		require.NoError(t, w.recordSpend(t.Context(), c, "task-"+c.JobID))
		require.NoError(t, w.recordSpend(t.Context(), c, "task-"+c.JobID))
	}
	// Images settled before the oldest day that the ledger keeps.
	require.NoError(t, w.dir.Spend.Append(spendCharge("ancient", 3*366*day), "ancient"))
	want, _ := w.ledger.Spending(t.Context(), time.Time{}, time.Time{})
	require.Len(t, want, 6)
	require.NoError(t, w.dir.Close())

	w = newBookkeeper(t, path)
	for range 2 {
		require.NoError(t, w.importSpend(t.Context()))
		got, err := w.ledger.Spending(t.Context(), time.Time{}, time.Time{})
		require.NoError(t, err)
		assert.Equal(t, want, got)
		_, batch := total(t, w)
		assert.Equal(t, fmt.Sprint(7*160_000), batch, "a batch's budget has no days")
	}
	// A task that is settled again a week later is not charged twice.
	require.NoError(t, w.recordSpend(t.Context(), spendCharge("3", 6*day), "task-3"))
	sum, _ := total(t, w)
	assert.Equal(t, int64(7*160_000), sum.SpentMicroYuan)

	var full *ledger.BudgetError
	require.ErrorAs(t, w.ledger.Reserve(t.Context(), spendCharge("new", 0), 3*160_000-1), &full)
	assert.Equal(t, int64(2*160_000), full.SpentMicroYuan)
	require.NoError(t, w.ledger.Reserve(t.Context(), spendCharge("new", 0), 3*160_000))
}

// Spending missing in the ledger after a crash between log and ledger is imported by the
// next start; older days, which the ledger has, are not imported again.
func TestImportSpendCatchesUp(t *testing.T) {
	t.Parallel()
	w := newBookkeeper(t, t.TempDir())
	require.NoError(t, w.importSpend(t.Context()))
	require.NoError(t, w.recordSpend(t.Context(), spendCharge("a", 0), "a"))
	require.NoError(t, w.dir.Spend.Append(spendCharge("b", 0), "b"))
	require.NoError(t, w.dir.Spend.Append(spendCharge("c", 9*24*time.Hour), "c"))
	require.NoError(t, w.importSpend(t.Context()))
	sum, batch := total(t, w)
	assert.Equal(t, ledger.Spend{SpentMicroYuan: 320_000, Images: 2}, sum)
	assert.Equal(t, "320000", batch)
}

// An interrupted import continues at any step, also on another day.
func TestImportSpendCutShort(t *testing.T) {
	t.Parallel()
	w := newBookkeeper(t, t.TempDir())
	for i := range 20 {
		require.NoError(t, w.dir.Spend.Append(spendCharge(fmt.Sprint(i), time.Duration(i)*24*time.Hour), fmt.Sprint(i)))
	}
	began, err := w.ledger.BeginImport(t.Context(), w.dir.WorkerID, ledger.Day(time.Now().Add(-10*24*time.Hour)))
	require.NoError(t, err)
	older := spendSums{}
	require.NoError(t, w.dir.Spend.read(func(line spendLine) {
		switch day := ledger.Day(line.SubmittedAt); {
		case day >= began.FirstDay && line.JobID < "3":
			_, err := w.ledger.Settle(t.Context(), line.settled())
			require.NoError(t, err)
		case day < began.FirstDay:
			older.add(line)
		}
	}))
	days := older.list()
	require.NoError(t, w.ledger.ImportSums(t.Context(), w.dir.WorkerID, days), "and EndImport was not reached")

	for range 2 {
		require.NoError(t, w.importSpend(t.Context()))
		sum, batch := total(t, w)
		assert.Equal(t, ledger.Spend{SpentMicroYuan: 20 * 160_000, Images: 20}, sum)
		assert.Equal(t, fmt.Sprint(20*160_000), batch)
	}
}

// A log of two years of heavy use does not delay the next run.
func TestImportOfALongLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lines := 100_000
	if testing.Short() { // the race detector's run
		lines /= 10
	}
	var text strings.Builder
	for i := range lines {
		c := spendCharge(fmt.Sprint(i), time.Duration(i)*(700*24*time.Hour/time.Duration(lines)))
		line, err := compactjson.MarshalLine(spendLine{At: c.At, Account: c.Account, JobID: c.JobID, Attempt: 1, SubmittedAt: c.At, Model: c.Model, Batch: c.Batch, MicroYuan: c.MicroYuan, Images: 1, TaskID: c.JobID})
		require.NoError(t, err)
		text.Write(line)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, SpendLogName), []byte(text.String()), 0o600))
	began := time.Now()
	w := newBookkeeper(t, dir)
	opened := time.Since(began)
	require.NoError(t, w.importSpend(t.Context()))
	t.Logf("opened in %v, imported in %v", opened, time.Since(began)-opened)
	sum, _ := total(t, w)
	assert.Equal(t, ledger.Spend{SpentMicroYuan: int64(lines) * 160_000, Images: lines}, sum)
}

// Any file content can be opened, appended to and read, and unreadable lines do not count
// as spending.
func FuzzSpendLog(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","account":"a","submitted_at":"2026-01-02T03:04:05Z","model":"m","micro_yuan":1,"images":1,"task_id":"t"}` + "\n{\n\x00"))
	f.Add([]byte("\n\n"))
	path := filepath.Join(f.TempDir(), SpendLogName)
	f.Fuzz(func(t *testing.T, text []byte) {
		if object, found := bytes.CutSuffix(bytes.TrimSpace(text), []byte("}")); found { // with a valid checksum
			text = fmt.Appendf(object, ",\"sum\":\"%08x\"}\n", crc32.Checksum(object, crc32.MakeTable(crc32.Castagnoli)))
		}
		require.NoError(t, os.WriteFile(path, text, 0o600))
		l, err := openSpendLog(path)
		if err != nil {
			require.ErrorContains(t, err, "is damaged")
			return
		}
		defer l.Close() //nolint:errcheck // a copy
		before := len(spendTasks(t, l))
		_, known := l.tasks["fuzz"]
		require.NoError(t, l.Append(spendCharge("job", 0), "fuzz"))
		if !known {
			before++
		}
		require.Len(t, spendTasks(t, l), before)
		spent, _, err := ReadSpendLog(path)
		require.NoError(t, err)
		for _, s := range spent {
			assert.NoError(t, jobs.ValidAccount(s.Account))
			assert.GreaterOrEqual(t, s.Images, 0)
		}
	})
}

// A process that runs for months does not remember every task that it ever booked.
func TestSpendLogForgetsOldTasks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, err := openSpendLog(filepath.Join(dir, SpendLogName))
		require.NoError(t, err)
		for i := range 30 {
			require.NoError(t, l.Append(spendCharge("job", 0), fmt.Sprintf("task-%d", i)))
			<-time.After(25 * time.Hour)
		}
		assert.Len(t, l.tasks, int(spendMemory/(25*time.Hour))+1)
		require.NoError(t, l.Append(spendCharge("job", 0), "task-29"), "a recent one is booked once")
		assert.Len(t, spendTasks(t, l), 30)
		require.NoError(t, l.Close())
	})
}
