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

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// rediskey.LedgerImports has a field per workerID of a log of its own: the first day that is
// brought here task by task, and importDone once all before it is here too.
const (
	importField = "import:"
	importDone  = " done"
)

// Import is how far a worker's own spend log is in the ledger.
type Import struct {
	// FirstDay is the first day that is settled task by task. Earlier days are imported
	// as sums.
	FirstDay string
	// Done is set once the whole log was imported. Later costs were settled in the
	// ledger.
	Done bool
}

// BeginImport returns how far the log of a worker is in the ledger. The first call begins
// an import with this day, which it keeps until [Ledger.EndImport] even if the worker
// crashes: no day is imported both ways. It fails with Redis's own error.
func (l *Ledger) BeginImport(ctx context.Context, workerID, firstDay string) (Import, error) {
	err := l.redis.HSetNX(ctx, rediskey.LedgerImports, workerID, firstDay).Err()
	var known string
	if err == nil {
		known, err = l.redis.HGet(ctx, rediskey.LedgerImports, workerID).Result()
	}
	if err != nil {
		return Import{}, fmt.Errorf("import spending of worker %s: %w", workerID, err)
	}
	day, done := strings.CutSuffix(known, importDone)
	return Import{FirstDay: day, Done: done}, nil
}

// EndImport records that the worker's whole log is in the ledger.
func (l *Ledger) EndImport(ctx context.Context, workerID string, i Import) error {
	if err := l.redis.HSet(ctx, rediskey.LedgerImports, workerID, i.FirstDay+importDone).Err(); err != nil {
		return fmt.Errorf("import spending of worker %s: %w", workerID, err)
	}
	return nil
}

// importDayScript adds sums to a day, once for a worker.
var importDayScript = redis.NewScript(enterDayLua + `
if redis.call('HSETNX', KEYS[1], ARGV[5], ARGV[6]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', ARGV[6])
for i = 7, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
enter()
return 1
`)

// importBatchScript adds to what a batch has spent, once for a worker.
var importBatchScript = redis.NewScript(`
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'spent', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
`)

// ImportSums books what a worker's log has before an import's FirstDay, as sums, and what
// each batch has spent of it. Each day of an account and each batch is booked once for
// the worker: after an error the same call must be repeated. Days that have left the
// ledger count for the batches only.
func (l *Ledger) ImportSums(ctx context.Context, workerID string, sums []Spend) error {
	type accountDay struct{ account, day string }
	days := map[accountDay][]Spend{}
	batches := map[string]int64{}
	for _, s := range sums {
		key := accountDay{s.Account, s.Day}
		days[key] = append(days[key], s)
		if s.Batch != "" {
			batches[s.Batch] = Sum(batches[s.Batch], s.SpentMicroYuan)
		}
	}
	for key, spent := range days {
		if err := l.importDay(ctx, workerID, spent); err != nil {
			return fmt.Errorf("import spending of account %s on %s: %w", key.account, key.day, err)
		}
	}
	for _, batch := range slices.Sorted(maps.Keys(batches)) {
		err := importBatchScript.Run(ctx, l.redis, []string{rediskey.BatchBudget(batch)}, importField+workerID, batches[batch], int(Lifetime.Seconds())).Err()
		if err != nil {
			return fmt.Errorf("import spending of batch %s: %w", batch, err)
		}
	}
	return nil
}

// importDay books sums of one account and day.
func (l *Ledger) importDay(ctx context.Context, workerID string, spent []Spend) error {
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
		encoded, err := compactjson.Marshal(group{s.Model, s.Batch, s.Labels})
		if err != nil {
			return err
		}
		if s.SpentMicroYuan < 0 || s.Images < 0 {
			return errors.New("an amount is negative")
		}
		total = Sum(total, s.SpentMicroYuan)
		fields = append(fields, spentField+string(encoded), s.SpentMicroYuan, imagesField+string(encoded), s.Images)
	}
	b, err := newBooking(Charge{Account: spent[0].Account, At: at})
	if err != nil {
		return err
	}
	return importDayScript.Run(ctx, l.redis, b.keys(), append(append(b.entryArgs(), importField+workerID, total), fields...)...).Err()
}
