package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// rediskey.LedgerImports has a field per holder of a log of its own: the first day that is
// brought here task by task, and importDone once all before it is here too.
const (
	importField = "import:"
	importDone  = " done"
)

// Import says how far a worker's own log of what it has spent is in Redis.
type Import struct {
	// FirstDay is the first of the ledger's days that are settled task by task. Those
	// before it are brought as sums.
	FirstDay string
	// Done is whether all of the log was brought here once. What was spent since was
	// settled here.
	Done bool
}

// BeginImport tells how far the log of a holder is in Redis. If it never was, it
// becomes an import that begins with this day, which it stays until
// [Ledger.EndImport], should the worker die meanwhile: a day is never brought both
// ways. It fails with Redis's own error.
func (l *Ledger) BeginImport(ctx context.Context, holder, firstDay string) (Import, error) {
	err := l.redis.HSetNX(ctx, rediskey.LedgerImports, holder, firstDay).Err()
	var known string
	if err == nil {
		known, err = l.redis.HGet(ctx, rediskey.LedgerImports, holder).Result()
	}
	if err != nil {
		return Import{}, fmt.Errorf("import what %s has spent: %w", holder, err)
	}
	day, done := strings.CutSuffix(known, importDone)
	return Import{FirstDay: day, Done: done}, nil
}

// EndImport says that all of the holder's log is in Redis.
func (l *Ledger) EndImport(ctx context.Context, holder string, i Import) error {
	if err := l.redis.HSet(ctx, rediskey.LedgerImports, holder, i.FirstDay+importDone).Err(); err != nil {
		return fmt.Errorf("import what %s has spent: %w", holder, err)
	}
	return nil
}

// importDayScript adds sums to a day, once for a holder.
var importDayScript = redis.NewScript(enterDayLua + `
if redis.call('HSETNX', KEYS[1], ARGV[5], ARGV[6]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', ARGV[6])
for i = 7, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
enter()
return 1
`)

// importBatchScript adds to what a batch has spent, once for a holder.
var importBatchScript = redis.NewScript(`
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
`)

// ImportSums books all that a holder's log says was spent before an import's
// FirstDay, summed up, and what of it each batch has spent. Each day of an account
// and each batch is booked once for the holder: after an error the same call must be
// made again. Days that have left the ledger count for the batches alone.
func (l *Ledger) ImportSums(ctx context.Context, holder string, sums []Spend) error {
	type accountDay struct{ account, day string }
	days := map[accountDay][]Spend{}
	batches := map[string]int64{}
	for _, s := range sums {
		key := accountDay{s.Account, s.Day}
		days[key] = append(days[key], s)
		if s.Batch != "" {
			batches[s.Batch] += s.SpentMicroYuan
		}
	}
	for key, spent := range days {
		if err := l.importDay(ctx, holder, spent); err != nil {
			return fmt.Errorf("import what account %s has spent on %s: %w", key.account, key.day, err)
		}
	}
	for _, batch := range slices.Sorted(maps.Keys(batches)) {
		err := importBatchScript.Run(ctx, l.redis, []string{rediskey.BatchBudget(batch)}, importField+holder, batches[batch], int(Lifetime.Seconds())).Err()
		if err != nil {
			return fmt.Errorf("import what batch %s has spent: %w", batch, err)
		}
	}
	return nil
}

// importDay books sums of one account and day.
func (l *Ledger) importDay(ctx context.Context, holder string, spent []Spend) error {
	at, err := time.ParseInLocation(time.DateOnly, spent[0].Day, Zone())
	if err != nil {
		return err
	}
	if time.Since(at) > Lifetime {
		return nil
	}
	var total int64
	var fields []any
	for _, s := range spent {
		encoded, err := group{s.Model, s.Batch, s.Labels}.encode()
		if err != nil {
			return err
		}
		if s.SpentMicroYuan < 0 || s.Images < 0 {
			return errors.New("an amount is negative")
		}
		total += s.SpentMicroYuan
		fields = append(fields, spentField+encoded, s.SpentMicroYuan, imagesField+encoded, s.Images)
	}
	b, err := newBooking(Charge{Account: spent[0].Account, At: at})
	if err != nil {
		return err
	}
	return importDayScript.Run(ctx, l.redis, b.keys(), append(append(b.entryArgs(), importField+holder, total), fields...)...).Err()
}
