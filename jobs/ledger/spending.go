package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Spend is what jobs of one kind cost an account on one day.
type Spend struct {
	Account string
	Day     string // YYYY-MM-DD in UTC+8: the days of their intents
	Model   string
	Batch   string
	Labels  map[string]string
	// SpentMicroYuan is what their tasks cost, ReservedMicroYuan the most that their
	// running attempts can cost, in millionths of a yuan.
	SpentMicroYuan, ReservedMicroYuan int64
	// Images are the images that SpentMicroYuan paid for.
	Images int
}

// Spending returns what was spent and is reserved from the ledger's day of one time to
// that of another, both included, by day, account, model, batch and labels. A zero time
// means no bound. Days without bookings are left out. It fails with Redis's own error.
func (l *Ledger) Spending(ctx context.Context, from, to time.Time) ([]Spend, error) {
	between := &redis.ZRangeBy{Min: "-inf", Max: "+inf"}
	if !from.IsZero() {
		between.Min = strconv.Itoa(dayNumber(from))
	}
	if !to.IsZero() {
		between.Max = strconv.Itoa(dayNumber(to))
	}
	names, err := l.redis.ZRangeByScore(ctx, rediskey.LedgerDays, between).Result()
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	var all []Spend
	for _, name := range names {
		account, day, _ := strings.Cut(name, ":")
		fields, err := l.redis.HGetAll(ctx, rediskey.LedgerDay(account, day)).Result()
		if err != nil {
			return nil, fmt.Errorf("read the ledger: %w", err)
		}
		spent, err := decodeDay(account, day, fields)
		if err != nil {
			return nil, fmt.Errorf("read the ledger of account %s for %s: %w", account, day, err)
		}
		all = append(all, spent...)
	}
	return all, nil
}

// Total is what an account spent on one day, and has reserved for running attempts, in
// millionths of a yuan.
type Total struct{ SpentMicroYuan, ReservedMicroYuan int64 }

// Totals returns the sums of accounts on the ledger's day of a time, in the order of the
// accounts. Unlike [Ledger.Spending] it does not read what they consist of. It fails with
// Redis's own error.
func (l *Ledger) Totals(ctx context.Context, accounts []string, at time.Time) ([]Total, error) {
	totals := make([]Total, len(accounts))
	for i, account := range accounts {
		sums, err := l.redis.HMGet(ctx, rediskey.LedgerDay(account, Day(at)), "spent", "reserved").Result()
		if err != nil {
			return nil, fmt.Errorf("read the ledger: %w", err)
		}
		for n, into := range []*int64{&totals[i].SpentMicroYuan, &totals[i].ReservedMicroYuan} {
			text, ok := sums[n].(string)
			if !ok {
				continue // nothing was booked
			}
			if *into, err = strconv.ParseInt(text, 10, 64); err != nil {
				return nil, fmt.Errorf("read the ledger of account %s for %s: %w", account, Day(at), err)
			}
		}
	}
	return totals, nil
}

// decodeDay decodes one day, in the order of its groups.
func decodeDay(account, day string, fields map[string]string) ([]Spend, error) {
	groups := map[string]*Spend{}
	of := func(encoded string) (*Spend, error) {
		if known := groups[encoded]; known != nil {
			return known, nil
		}
		g, err := decodeGroup(encoded)
		groups[encoded] = &Spend{Account: account, Day: day, Model: g.Model, Batch: g.Batch, Labels: g.Labels}
		return groups[encoded], err
	}
	for field, value := range fields {
		kind, rest, named := strings.Cut(field, ":")
		if !named {
			continue // a sum of the whole day
		}
		switch kind + ":" {
		case openField:
			charge, err := decodeReservation(rest, value)
			if err != nil {
				return nil, err
			}
			into, err := of(reservationPattern.FindStringSubmatch(value)[4])
			if err != nil {
				return nil, err
			}
			into.ReservedMicroYuan = Sum(into.ReservedMicroYuan, charge.MicroYuan)
		case spentField, imagesField:
			into, err := of(rest)
			number, numberErr := strconv.ParseInt(value, 10, 64)
			if err := errors.Join(err, numberErr); err != nil {
				return nil, err
			}
			if kind+":" == spentField {
				into.SpentMicroYuan = number
			} else {
				into.Images = int(number)
			}
		}
	}
	ordered := slices.SortedFunc(maps.Keys(groups), func(a, b string) int {
		return cmp.Or(cmp.Compare(groups[a].Model, groups[b].Model), cmp.Compare(groups[a].Batch, groups[b].Batch), cmp.Compare(a, b))
	})
	spent := make([]Spend, 0, len(ordered))
	for _, encoded := range ordered {
		spent = append(spent, *groups[encoded])
	}
	return spent, nil
}

func decodeGroup(encoded string) (group, error) {
	var g group
	if err := json.Unmarshal([]byte(encoded), &g); err != nil {
		return group{}, fmt.Errorf("group %s: %w", strconv.Quote(encoded), err)
	}
	return g, nil
}
