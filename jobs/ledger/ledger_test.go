package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/danqing-queue/danqing/jobs/embedded"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// noon is on 2 January 2026 in China and in Europe.
var noon = time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC)

// charge is the first attempt of a job of one image at 0.16 yuan.
func charge(id string) ledger.Charge {
	return ledger.Charge{Account: "main", JobID: id, Attempt: 1, At: noon, Model: "wanx-v1", Batch: "shop", MicroYuan: 160_000, Images: 1}
}

// spending returns the whole ledger.
func spending(t *testing.T, book *ledger.Ledger) []ledger.Spend {
	t.Helper()
	spent, err := book.Spending(t.Context(), time.Time{}, time.Time{})
	require.NoError(t, err)
	return spent
}

// sums returns the sums in a hash of the ledger, without its other fields.
func sums(t *testing.T, rdb redis.UniversalClient, key string) map[string]string {
	t.Helper()
	fields, err := rdb.HGetAll(t.Context(), key).Result()
	require.NoError(t, err)
	maps.DeleteFunc(fields, func(name, _ string) bool { return name != "spent" && name != "reserved" && name != "cap" })
	return fields
}

const (
	dayKey   = "danqing:ledger:main:2026-01-02"
	batchKey = "danqing:budget:shop"
)

// However often each step is repeated, as after lost replies, it counts once.
func TestLedgerCountsOnce(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		ctx := t.Context()
		c := charge("cat")
		c.Images, c.MicroYuan, c.Labels = 4, 640_000, map[string]string{"sku": "<A-17>", "a": "1"}
		for range 3 {
			require.NoError(t, book.Reserve(ctx, c, 0))
		}
		want := ledger.Spend{Account: "main", Day: "2026-01-02", Model: "wanx-v1", Batch: "shop", Labels: c.Labels, ReservedMicroYuan: 640_000}
		assert.Equal(t, []ledger.Spend{want}, spending(t, book))
		assert.Equal(t, map[string]string{"reserved": "640000"}, sums(t, rdb, dayKey))
		assert.Equal(t, map[string]string{"reserved": "640000"}, sums(t, rdb, batchKey))

		open, err := book.OpenReservations(ctx, "main", noon)
		require.NoError(t, err)
		assert.Equal(t, []ledger.Charge{c}, open)

		// Three of the four images were created.
		c.Images, c.MicroYuan = 3, 480_000
		for range 3 {
			require.NoError(t, settle(ctx, book, c, "task-1"))
			require.NoError(t, book.Release(ctx, c))
		}
		want.ReservedMicroYuan, want.SpentMicroYuan, want.Images = 0, 480_000, 3
		assert.Equal(t, []ledger.Spend{want}, spending(t, book))
		for _, key := range []string{dayKey, batchKey} {
			assert.Equal(t, map[string]string{"spent": "480000", "reserved": "0"}, sums(t, rdb, key))
		}

		// Another worker that finds the same task books it under no other name.
		c.JobID, c.At = "dog", noon.AddDate(0, 0, 1)
		require.NoError(t, settle(ctx, book, c, "task-1"))
		assert.Equal(t, []ledger.Spend{want}, spending(t, book))
		booked, err := rdb.HGet(ctx, "danqing:task:task-1", "spent").Result()
		require.NoError(t, err)
		assert.Equal(t, "2026-01-02", booked)
	})
}

// settle books the cost of one task.
func settle(ctx context.Context, book *ledger.Ledger, charge ledger.Charge, taskID string) error {
	_, err := book.Settle(ctx, ledger.Settlement{Charge: charge, TaskID: taskID})
	return err
}

// Many tasks settled at once have the same sums as one by one, with and without
// reservations, booked before or not.
func TestSettleMany(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		const tasks = 450
		var all []ledger.Settlement
		for i := range tasks {
			c := charge(fmt.Sprint(i))
			c.At, c.MicroYuan, c.Labels = noon.AddDate(0, 0, i%2), int64(i), map[string]string{"l": fmt.Sprint(i % 3)}
			if i%5 == 0 {
				c.Batch = ""
			}
			if i%4 == 0 {
				require.NoError(t, book.Reserve(t.Context(), c, 0))
			}
			if i%7 == 0 {
				require.NoError(t, settle(t.Context(), book, c, c.JobID))
			}
			all = append(all, ledger.Settlement{Charge: c, TaskID: c.JobID})
		}
		for _, unbooked := range []int{tasks - 65, 0} { // every seventh is booked already
			booked, err := book.Settle(t.Context(), all...)
			require.NoError(t, err)
			assert.Equal(t, unbooked, booked)
			var sum, reserved int64
			var images int
			for _, s := range spending(t, book) {
				sum, reserved, images = sum+s.SpentMicroYuan, reserved+s.ReservedMicroYuan, images+s.Images
			}
			assert.Equal(t, []any{int64(tasks * (tasks - 1) / 2), int64(0), tasks}, []any{sum, reserved, images})
			// 0 + 5 + … + 445 is of no batch.
			assert.Equal(t, map[string]string{"spent": fmt.Sprint(tasks*(tasks-1)/2 - 5*89*90/2), "reserved": "0"}, sums(t, rdb, batchKey))
		}
		all = append(all, ledger.Settlement{Charge: charge("x")})
		_, err := book.Settle(t.Context(), all...)
		require.ErrorContains(t, err, "task is missing")
	})
}

// A holder's log is brought in once, however often it is tried, and another's beside
// it.
func TestImportSums(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		ctx := t.Context()
		today := time.Now()
		began, err := book.BeginImport(ctx, "one", ledger.Day(today))
		require.NoError(t, err)
		assert.Equal(t, ledger.Import{FirstDay: ledger.Day(today)}, began)
		again, err := book.BeginImport(ctx, "one", ledger.Day(today.AddDate(0, 0, 5)))
		require.NoError(t, err)
		assert.Equal(t, began, again, "what was begun goes on")

		day := func(ago int) string { return ledger.Day(today.AddDate(0, 0, -ago)) }
		log := []ledger.Spend{
			{Account: "main", Day: day(3), Model: "wanx-v1", Batch: "shop", SpentMicroYuan: 10, Images: 1},
			{Account: "main", Day: day(2), Model: "wanx-v1", SpentMicroYuan: 5, Images: 2},
			{Account: "main", Day: day(2), Model: "wanx-v1", Batch: "shop", Labels: map[string]string{"a": "b"}, SpentMicroYuan: 100, Images: 4},
			{Account: "main", Day: day(800), Model: "wanx-v1", Batch: "shop", SpentMicroYuan: 1000, Images: 1},
		}
		for range 3 {
			require.NoError(t, book.ImportSums(ctx, "one", log))
			assert.Equal(t, log[:3], spending(t, book))
			assert.Equal(t, map[string]string{"spent": "1110"}, sums(t, rdb, batchKey))
		}
		require.NoError(t, book.ImportSums(ctx, "two", log[:1]))
		assert.Equal(t, int64(20), spending(t, book)[0].SpentMicroYuan)
		assert.Equal(t, map[string]string{"spent": "1120"}, sums(t, rdb, batchKey))

		require.NoError(t, book.EndImport(ctx, "one", began))
		again, err = book.BeginImport(ctx, "one", ledger.Day(today))
		require.NoError(t, err)
		assert.Equal(t, ledger.Import{FirstDay: ledger.Day(today), Done: true}, again)
		for _, wrong := range []ledger.Spend{{Account: "main", Day: "yesterday"}, {Account: "a:b", Day: day(1)}, {Account: "main", Day: day(1), SpentMicroYuan: -1}} {
			require.Error(t, book.ImportSums(ctx, "one", []ledger.Spend{wrong}))
		}
	})
}

// A released amount is available again, also for the same attempt, on that day or another.
func TestReleaseLetsReserveAgain(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		c := charge("cat")
		require.NoError(t, book.Release(t.Context(), c), "without a reservation")
		for day := range 3 {
			c.At = noon.AddDate(0, 0, day/2)
			require.NoError(t, book.Reserve(t.Context(), c, 160_000))
			require.NoError(t, book.Release(t.Context(), c))
			require.NoError(t, book.Release(t.Context(), c))
		}
		assert.Empty(t, spending(t, book))
		assert.Equal(t, map[string]string{"reserved": "0"}, sums(t, rdb, batchKey))
	})
}

// A task without a reservation is booked, and so is a cost above the reservation.
func TestSettleExceedsReservation(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		orphan := ledger.Charge{Account: "main", At: noon, Model: "wanx-v1", MicroYuan: 320_000, Images: 2}
		require.NoError(t, settle(t.Context(), book, orphan, "orphan"))
		c := charge("cat")
		require.NoError(t, book.Reserve(t.Context(), c, 480_000))
		c.MicroYuan = 400_000
		require.NoError(t, settle(t.Context(), book, c, "task"))
		assert.Equal(t, map[string]string{"spent": "720000", "reserved": "0"}, sums(t, rdb, dayKey))

		var full *ledger.BudgetError
		require.ErrorAs(t, book.Reserve(t.Context(), charge("dog"), 480_000), &full)
		assert.Equal(t, int64(720_000), full.SpentMicroYuan)
		assert.Equal(t, []int{1, 2}, []int{spending(t, book)[1].Images, spending(t, book)[0].Images})
	})
}

// Fifty workers at once, each with many attempts, exceed neither the account's
// budget nor the batch's, and all of it is used.
func TestBudgetsHoldAgainstManyWorkers(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		const workers, attempts, dayRoom, batchRoom = 50, 8, 100, 60
		require.NoError(t, book.SetBatchBudget(t.Context(), "shop", batchRoom*160_000+159_999))
		for _, name := range []string{"shop", ""} {
			room := batchRoom
			if name == "" { // what the batch has left of the day
				room = dayRoom - batchRoom
			}
			got := make(chan int, workers)
			var group errgroup.Group
			for w := range workers {
				group.Go(func() error {
					reserved := 0
					for i := range attempts {
						c := charge(fmt.Sprintf("%s-%d-%d", name, w, i))
						c.Batch = name
						var full *ledger.BudgetError
						switch err := book.Reserve(t.Context(), c, dayRoom*160_000+1); {
						case err == nil:
							reserved++
							if err := settle(t.Context(), book, c, "task "+c.JobID); err != nil {
								return err
							}
						case !errors.As(err, &full):
							return err
						}
					}
					got <- reserved
					return nil
				})
			}
			require.NoError(t, group.Wait())
			close(got)
			all := 0
			for reserved := range got {
				all += reserved
			}
			assert.Equal(t, room, all)
		}
		assert.Equal(t, map[string]string{"spent": fmt.Sprint(dayRoom * 160_000), "reserved": "0"}, sums(t, rdb, dayKey))
	})
}

// The error of a refused reservation has the budget, its amounts, and when the next one begins.
func TestBudgetError(t *testing.T) {
	t.Parallel()
	rdb := redistest.Embedded(t)
	book := ledger.New(rdb)
	ctx := t.Context()
	require.NoError(t, book.SetBatchBudget(ctx, "shop", 500_000))
	require.NoError(t, book.Reserve(ctx, charge("cat"), 0))
	require.NoError(t, settle(ctx, book, charge("cat"), "task"))
	require.NoError(t, book.Reserve(ctx, charge("dog"), 0))

	var full *ledger.BudgetError
	require.ErrorAs(t, book.Reserve(ctx, charge("hen"), 400_000), &full)
	assert.Equal(t, &ledger.BudgetError{
		Account: "main", Day: "2026-01-02", CapMicroYuan: 400_000, SpentMicroYuan: 160_000, ReservedMicroYuan: 160_000, WantedMicroYuan: 160_000,
		Until: time.Date(2026, 1, 3, 0, 0, 0, 0, ledger.Zone()),
	}, full)
	require.EqualError(t, full, "the budget of account main for 2026-01-02 is 0.4 yuan: 0.16 are spent and 0.16 reserved, 0.16 more do not fit")

	hen := charge("hen")
	hen.MicroYuan = 180_001
	require.ErrorAs(t, book.Reserve(ctx, hen, 0), &full)
	assert.Equal(t, &ledger.BudgetError{Batch: "shop", CapMicroYuan: 500_000, SpentMicroYuan: 160_000, ReservedMicroYuan: 160_000, WantedMicroYuan: 180_001}, full)
	require.EqualError(t, full, "the budget of batch shop is 0.5 yuan: 0.16 are spent and 0.16 reserved, 0.180001 more do not fit")
	assert.Equal(t, map[string]string{"spent": "160000", "reserved": "160000"}, sums(t, rdb, dayKey), "a refusal reserves nothing")

	// Reservations stay. A larger budget has room, and no budget is unlimited.
	require.NoError(t, book.Reserve(ctx, charge("dog"), 1))
	require.NoError(t, book.SetBatchBudget(ctx, "shop", 500_001))
	require.NoError(t, book.Reserve(ctx, hen, 0))
	require.ErrorAs(t, book.Reserve(ctx, charge("fox"), 0), &full)
	require.NoError(t, book.SetBatchBudget(ctx, "shop", 0))
	require.NoError(t, book.Reserve(ctx, charge("fox"), 0))
	assert.Equal(t, "160000", sums(t, rdb, batchKey)["spent"], "a batch without a budget is counted on")
}

// The ledger's day changes at midnight in China, where the bill does.
func TestLedgerDays(t *testing.T) {
	t.Parallel()
	book := ledger.New(redistest.Embedded(t))
	midnight := time.Date(2026, 1, 1, 16, 0, 0, 0, time.UTC)
	for i, at := range []time.Time{midnight.Add(-time.Nanosecond), midnight, midnight.AddDate(0, 0, 1)} {
		c := charge(fmt.Sprint("cat", i))
		c.At = at
		require.NoError(t, settle(t.Context(), book, c, c.JobID))
	}
	days := func(from, to time.Time) []string {
		spent, err := book.Spending(t.Context(), from, to)
		require.NoError(t, err)
		var days []string
		for _, s := range spent {
			days = append(days, s.Day)
		}
		return days
	}
	assert.Equal(t, []string{"2026-01-01", "2026-01-02", "2026-01-03"}, days(time.Time{}, time.Time{}))
	assert.Equal(t, []string{"2026-01-02"}, days(midnight, midnight.Add(24*time.Hour-1)))
	assert.Equal(t, []string{"2026-01-03"}, days(midnight.AddDate(0, 0, 1), time.Time{}))
}

// The ledger outlives records, and does not grow forever.
func TestLedgerExpires(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client(t)
	book := ledger.New(rdb)
	ctx := t.Context()
	now := time.Now()
	old, today := charge("old"), charge("new")
	old.At, today.At = now.Add(-ledger.Lifetime-48*time.Hour), now
	require.NoError(t, settle(ctx, book, old, "old"))
	require.NoError(t, settle(ctx, book, today, "new"))
	require.NoError(t, book.Reserve(ctx, today, 0))
	days, err := rdb.ZRange(ctx, "danqing:ledger", 0, -1).Result()
	require.NoError(t, err)
	assert.Equal(t, []string{"main:" + ledger.Day(now)}, days)
	for key, want := range map[string]time.Duration{
		"danqing:ledger:" + days[0]: ledger.Lifetime, "danqing:budget:shop": ledger.Lifetime, "danqing:task:new": 8 * 24 * time.Hour,
	} {
		left, err := rdb.TTL(ctx, key).Result()
		require.NoError(t, err)
		assert.InDelta(t, want.Hours(), left.Hours(), 24, key)
	}
}

func TestLedgerInvalid(t *testing.T) {
	t.Parallel()
	rdb := redistest.Embedded(t)
	book := ledger.New(rdb)
	ctx := context.Background()
	for name, change := range map[string]func(*ledger.Charge){
		"account":        func(c *ledger.Charge) { c.Account = "a:b" },
		"time":           func(c *ledger.Charge) { c.At = time.Time{} },
		"-1 micro-yuan":  func(c *ledger.Charge) { c.MicroYuan = -1 },
		"-1 images":      func(c *ledger.Charge) { c.Images = -1 },
		"reserve: no id": func(c *ledger.Charge) { c.JobID = "" },
	} {
		c := charge("cat")
		change(&c)
		require.Error(t, book.Reserve(ctx, c, 0), name)
		if c.JobID != "" {
			require.ErrorContains(t, settle(ctx, book, c, "task"), name)
			require.ErrorContains(t, book.Release(ctx, c), name)
		}
	}
	require.ErrorContains(t, settle(ctx, book, charge("cat"), ""), "task is missing")
	require.Error(t, book.SetBatchBudget(ctx, "", 1))
	require.Error(t, book.SetBatchBudget(ctx, "shop", -1))
	keys, err := rdb.Keys(ctx, "*").Result()
	require.NoError(t, err)
	assert.Empty(t, keys)
}

// After any order of operations, the sums are those of the parts.
func TestLedgerSums(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		book := ledger.New(rdb)
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		reserved, spent := map[string]int64{}, map[string]int64{}
		for range 2000 {
			c := charge(fmt.Sprint(random.IntN(20)))
			c.Attempt, c.MicroYuan, c.Labels = 1+random.IntN(2), random.Int64N(1_000_000), map[string]string{"l": fmt.Sprint(random.IntN(3))}
			name := fmt.Sprintf("%s.%d", c.JobID, c.Attempt)
			switch random.IntN(3) {
			case 0:
				require.NoError(t, book.Reserve(t.Context(), c, 0))
				if _, open := reserved[name]; !open {
					reserved[name] = c.MicroYuan
				}
			case 1:
				task := fmt.Sprint(random.IntN(1000))
				require.NoError(t, settle(t.Context(), book, c, task))
				delete(reserved, name)
				if _, booked := spent[task]; !booked {
					spent[task] = c.MicroYuan
				}
			case 2:
				require.NoError(t, book.Release(t.Context(), c))
				delete(reserved, name)
			}
		}
		sum := func(amounts map[string]int64) (all int64) {
			for _, amount := range amounts {
				all += amount
			}
			return all
		}
		want := map[string]string{"spent": fmt.Sprint(sum(spent)), "reserved": fmt.Sprint(sum(reserved))}
		assert.Equal(t, want, sums(t, rdb, dayKey))
		assert.Equal(t, want, sums(t, rdb, batchKey))
		var total ledger.Spend
		for s := range slices.Values(spending(t, book)) {
			total.SpentMicroYuan += s.SpentMicroYuan
			total.ReservedMicroYuan += s.ReservedMicroYuan
			total.Images += s.Images
		}
		assert.Equal(t, ledger.Spend{SpentMicroYuan: sum(spent), ReservedMicroYuan: sum(reserved), Images: len(spent)}, total)
	})
}

// The durable embedded queue keeps the ledger across a restart.
func TestLedgerLifetime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	queue, err := embedded.OpenDir(embedded.Config{Dir: dir})
	require.NoError(t, err)
	book := ledger.New(queue.Client())
	require.NoError(t, book.Reserve(t.Context(), charge("cat"), 0))
	require.NoError(t, book.Reserve(t.Context(), charge("dog"), 0))
	require.NoError(t, settle(t.Context(), book, charge("dog"), "task"))
	before := spending(t, book)
	require.NoError(t, queue.Close())

	queue, err = embedded.OpenDir(embedded.Config{Dir: dir})
	require.NoError(t, err)
	book = ledger.New(queue.Client())
	require.NoError(t, settle(t.Context(), book, charge("dog"), "task"))
	require.Len(t, before, 1)
	assert.Equal(t, before, spending(t, book))
	require.NoError(t, queue.Close())
}
