// Package ledger keeps what jobs may cost and have cost, by account and day, and what
// batches may spend. It is in Redis, so that several workers together keep within a
// budget. Amounts are in millionths of a yuan; days are those of UTC+8, as on the bill.
//
// A worker reserves the most that an attempt can cost before it submits, and then settles
// what the task cost, or releases the reservation. Each step may be repeated after an
// error: it counts once.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/jobid"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Ledger reads and writes the ledger of one Redis. It is safe for concurrent use.
type Ledger struct{ redis redis.UniversalClient }

// New returns the ledger on a Redis connection, which the caller closes. It sends
// nothing.
func New(rdb redis.UniversalClient) *Ledger { return &Ledger{redis: rdb} }

// Lifetime is how long a day of the ledger, and a batch's budget after its last use, stay
// in Redis.
const Lifetime = 2 * 366 * 24 * time.Hour

// Charge is what an attempt of a job may cost, or has cost, an account.
type Charge struct {
	Account string
	// JobID and Attempt identify what the charge is for. A task without an owner has
	// neither, and can only be settled.
	JobID   string
	Attempt int
	// At is the time of the submit. Its day in UTC+8 is the charge's day, from the
	// reservation to the end.
	At     time.Time
	Model  string
	Batch  string
	Labels map[string]string
	// MicroYuan is in millionths of a yuan: the most that the attempt can cost when it is
	// reserved, what its task cost when it is settled.
	MicroYuan int64
	Images    int
}

// BudgetError means that a reservation would exceed a budget. Nothing was reserved.
// Either Account and Day are set, or Batch is.
type BudgetError struct {
	Account string
	Day     string // YYYY-MM-DD in UTC+8
	Batch   string
	// CapMicroYuan is the budget, which the sum of the others would exceed, in millionths
	// of a yuan.
	CapMicroYuan, SpentMicroYuan, ReservedMicroYuan, WantedMicroYuan int64
	// Until is when an account's next daily budget begins; zero for a batch, whose budget
	// does not renew.
	Until time.Time
}

// Error is one sentence with all amounts in yuan.
func (e *BudgetError) Error() string {
	whose := fmt.Sprintf("the budget of batch %s", e.Batch)
	if e.Batch == "" {
		whose = fmt.Sprintf("the budget of account %s for %s", e.Account, e.Day)
	}
	return fmt.Sprintf("%s is %s yuan: %s are spent and %s reserved, %s more do not fit", whose,
		FormatYuan(e.CapMicroYuan), FormatYuan(e.SpentMicroYuan), FormatYuan(e.ReservedMicroYuan), FormatYuan(e.WantedMicroYuan))
}

// Zone is the time zone of the ledger's days: that of the bill.
func Zone() *time.Location { return time.FixedZone("UTC+8", 8*60*60) }

// Day returns the ledger's day of a time, as in 2026-01-31.
func Day(at time.Time) string { return at.In(Zone()).Format(time.DateOnly) }

// startOfDay is when the ledger's day of a time began.
func startOfDay(at time.Time) time.Time {
	year, month, day := at.In(Zone()).Date()
	return time.Date(year, month, day, 0, 0, 0, 0, Zone())
}

// maxChargeMicroYuan is a million yuan, more than any attempt can cost: numbers in Lua are
// exact up to 2^53 millionths, nine billion yuan, and HINCRBY fails beyond 2^63.
const maxChargeMicroYuan = 1_000_000_000_000

// The prefixes of the fields of a [rediskey.LedgerDay].
const (
	openField   = "open:"
	spentField  = "spent:"
	imagesField = "images:"
)

// group is what a day's sums are grouped by.
type group struct {
	Model  string            `json:"model"`
	Batch  string            `json:"batch,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// booking is a charge in the form that the scripts take.
type booking struct {
	Charge
	day, group string
	task       string // settled by it
}

func newBooking(charge Charge) (booking, error) {
	switch {
	case !rediskey.ValidName(charge.Account):
		return booking{}, fmt.Errorf("account %q: not 1 to 64 of A-Z a-z 0-9 . _ -", charge.Account)
	case charge.At.IsZero():
		return booking{}, errors.New("its time is missing")
	case charge.MicroYuan < 0 || charge.Images < 0:
		return booking{}, fmt.Errorf("%d micro-yuan and %d images: must not be negative", charge.MicroYuan, charge.Images)
	case charge.MicroYuan > maxChargeMicroYuan:
		return booking{}, fmt.Errorf("%d micro-yuan: more than %d for one attempt", charge.MicroYuan, int64(maxChargeMicroYuan))
	}
	encoded, err := compactjson.Marshal(group{charge.Model, charge.Batch, charge.Labels})
	return booking{Charge: charge, day: Day(charge.At), group: string(encoded)}, err
}

func (b booking) dayKey() string { return rediskey.LedgerDay(b.Account, b.day) }

// keys are the keys of the scripts: the day, the index of days, further ones, and the
// batch's if there is one.
func (b booking) keys(more ...string) []string {
	keys := append([]string{b.dayKey(), rediskey.LedgerDays}, more...)
	if b.Batch != "" {
		keys = append(keys, rediskey.BatchBudget(b.Batch))
	}
	return keys
}

// field is the field of the attempt's reservation.
func (b booking) field() string { return openField + b.JobID + "." + strconv.Itoa(b.Attempt) }

// entryArgs are the arguments by which a script adds the day to the index: its name
// there, its number, the number below which days are removed, and when the day itself
// expires.
func (b booking) entryArgs() []any {
	begin := startOfDay(b.At)
	return []any{b.Account + ":" + b.day, dayNumber(begin), dayNumber(begin.Add(-Lifetime)), begin.Add(Lifetime).Unix()}
}

// dayNumber is a number that orders days, as in 20260131.
func dayNumber(at time.Time) int {
	n, _ := strconv.Atoi(at.In(Zone()).Format("20060102"))
	return n
}

// enterDayLua begins a day: it adds it to the index and sets when it expires. The
// arguments of the script begin with those of entryArgs.
const enterDayLua = `
local function enter()
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[3])
  redis.call('EXPIREAT', KEYS[1], ARGV[4])
end
`

// reserveScript returns 0, or the budget that would be exceeded (1 the day's, 2 the
// batch's) with its cap and what is spent and reserved of it.
var reserveScript = redis.NewScript(enterDayLua + `
local field, want, cap = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[8])
local day = redis.call('HMGET', KEYS[1], field, 'spent', 'reserved')
if day[1] then return {0} end
local spent, reserved = tonumber(day[2] or 0), tonumber(day[3] or 0)
if cap > 0 and spent + reserved + want > cap then return {1, cap, spent, reserved} end
if KEYS[3] then
  local batch = redis.call('HMGET', KEYS[3], 'cap', 'spent', 'reserved')
  local cap, spent, reserved = tonumber(batch[1] or 0), tonumber(batch[2] or 0), tonumber(batch[3] or 0)
  if cap > 0 and spent + reserved + want > cap then return {2, cap, spent, reserved} end
  redis.call('HINCRBY', KEYS[3], 'reserved', ARGV[6])
  redis.call('EXPIRE', KEYS[3], ARGV[9])
end
redis.call('HSET', KEYS[1], field, ARGV[7])
redis.call('HINCRBY', KEYS[1], 'reserved', ARGV[6])
if not day[2] and not day[3] then enter() end
return {0}
`)

// Reserve reserves what an attempt may cost, if the account's budget for the day and the
// batch's budget allow it. Several workers together cannot exceed either. A
// dailyBudgetMicroYuan of 0 means no daily budget. The charge must name a job. An open
// reservation of the attempt stays as it is.
//
// It fails with a [*BudgetError], or with Redis's own error. After the latter the attempt
// may or may not be reserved, and the same call may be repeated.
func (l *Ledger) Reserve(ctx context.Context, charge Charge, dailyBudgetMicroYuan int64) error {
	b, err := newBooking(charge)
	if err == nil && !jobid.Valid(charge.JobID) {
		err = errors.New("not a job ID")
	}
	if err != nil {
		return fmt.Errorf("reserve money for %s: %w", charge.JobID, err)
	}
	value := fmt.Sprintf("%d %d %d %s", b.MicroYuan, b.Images, b.At.UnixNano(), b.group)
	args := append(b.entryArgs(), b.field(), b.MicroYuan, value, dailyBudgetMicroYuan, int(Lifetime.Seconds()))
	reply, err := reserveScript.Run(ctx, l.redis, b.keys(), args...).Int64Slice()
	switch {
	case err != nil:
		return fmt.Errorf("reserve money for %s: %w", b.JobID, err)
	case reply[0] == 0:
		return nil
	}
	full := &BudgetError{CapMicroYuan: reply[1], SpentMicroYuan: reply[2], ReservedMicroYuan: reply[3], WantedMicroYuan: b.MicroYuan}
	if reply[0] == 1 {
		full.Account, full.Day, full.Until = b.Account, b.day, startOfDay(b.At).AddDate(0, 0, 1)
	} else {
		full.Batch = b.Batch
	}
	return full
}

// releaseLua releases the reservations of attempts, from the day and from the batch, if
// there are any. Each redis.call costs the embedded queue some 40 µs, so that reads
// and sums are combined.
const releaseLua = `
local function free(fields, batch)
  local sum = 0
  for i, open in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    if open then
      sum = sum + tonumber(string.match(open, '^%d+'))
      redis.call('HDEL', KEYS[1], fields[i])
    end
  end
  if sum == 0 then return end
  redis.call('HINCRBY', KEYS[1], 'reserved', string.format('-%.0f', sum))
  if batch then redis.call('HINCRBY', batch, 'reserved', string.format('-%.0f', sum)) end
end
`

// settleScript books tasks of one day and one batch, and returns how many were not booked
// before. Five arguments for each follow the seventh: its reservation, the amount, the images,
// and the fields of their sums.
var settleScript = redis.NewScript(enterDayLua + releaseLua + `
local tasks = (#ARGV - 7) / 5
local batch, reservations = KEYS[3 + tasks], {}
for i = 1, tasks do reservations[i] = ARGV[5 * i + 3] end
free(reservations, batch)
local spent, booked, sums = 0, 0, {}
for i = 1, tasks do
  local at, task = 5 * i + 2, KEYS[2 + i]
  local new = redis.call('HSETNX', task, 'spent', ARGV[5])
  redis.call('EXPIRE', task, ARGV[6])
  if new == 1 then
    booked = booked + 1
    spent = spent + tonumber(ARGV[at + 2])
    sums[ARGV[at + 4]] = (sums[ARGV[at + 4]] or 0) + tonumber(ARGV[at + 2])
    sums[ARGV[at + 5]] = (sums[ARGV[at + 5]] or 0) + tonumber(ARGV[at + 3])
  end
end
if next(sums) == nil then return 0 end
local began = redis.call('HEXISTS', KEYS[1], 'spent')
redis.call('HINCRBY', KEYS[1], 'spent', string.format('%.0f', spent))
for field, sum in pairs(sums) do redis.call('HINCRBY', KEYS[1], field, string.format('%.0f', sum)) end
if batch then
  redis.call('HINCRBY', batch, 'spent', string.format('%.0f', spent))
  redis.call('EXPIRE', batch, ARGV[7])
end
if began == 0 then enter() end
return booked
`)

// Settlement is the cost of a task.
type Settlement struct {
	Charge
	TaskID string
}

// settlementsPerCall limits one run of the script, which blocks Redis, to a few
// milliseconds.
const settlementsPerCall = 200

// Settle releases the reservations of attempts, if they have one, and books what their tasks
// cost, even if that is more than was reserved. It returns how many tasks were not booked before:
// each is booked once, also if several workers repeat the call. A charge must have the account,
// day, job, attempt, model, batch and labels of the reservation. Settle fails with Redis's own
// error, after which some of the tasks may be booked; the same call must then be repeated.
//
// Redis keeps for [rediskey.TaskLifetime] that a task was booked: it must not be settled
// later.
func (l *Ledger) Settle(ctx context.Context, settled ...Settlement) (booked int, err error) {
	type target struct{ account, day, batch string }
	var targets []target
	bookings := map[target][]booking{}
	for _, s := range settled {
		b, err := newBooking(s.Charge)
		if err == nil && s.TaskID == "" {
			err = errors.New("its task is missing")
		}
		if err != nil {
			return 0, fmt.Errorf("book the cost of task %s: %w", s.TaskID, err)
		}
		b.task = s.TaskID
		to := target{b.Account, b.day, b.Batch}
		if bookings[to] == nil {
			targets = append(targets, to)
		}
		bookings[to] = append(bookings[to], b)
	}
	for _, to := range targets {
		for some := range slices.Chunk(bookings[to], settlementsPerCall) {
			n, err := l.settleGroup(ctx, some)
			if err != nil {
				return booked, fmt.Errorf("book the cost of task %s: %w", some[0].task, err)
			}
			booked += n
		}
	}
	return booked, nil
}

// settleGroup books tasks of one account, day and batch, and returns how many were not booked.
func (l *Ledger) settleGroup(ctx context.Context, bookings []booking) (int, error) {
	args := append(bookings[0].entryArgs(), bookings[0].day, int(rediskey.TaskLifetime.Seconds()), int(Lifetime.Seconds()))
	var tasks []string
	for _, b := range bookings {
		tasks = append(tasks, rediskey.Task(b.task))
		args = append(args, b.field(), b.MicroYuan, b.Images, spentField+b.group, imagesField+b.group)
	}
	return settleScript.Run(ctx, l.redis, bookings[0].keys(tasks...), args...).Int()
}

var releaseScript = redis.NewScript(releaseLua + `
free({ARGV[5]}, KEYS[3])
return 0
`)

// Release releases the reservation of an attempt that cost nothing, if it has one; it may
// be reserved again. The charge must have the account, day, job, attempt and batch of the
// reservation. It fails with Redis's own error; the same call may then be repeated.
func (l *Ledger) Release(ctx context.Context, charge Charge) error {
	b, err := newBooking(charge)
	if err == nil {
		err = releaseScript.Run(ctx, l.redis, b.keys(), append(b.entryArgs(), b.field())...).Err()
	}
	if err != nil {
		return fmt.Errorf("release reservation of %s: %w", charge.JobID, err)
	}
	return nil
}

// SetBatchBudget sets what a batch may spend, over all days and accounts, in millionths
// of a yuan. What it has spent and reserved before counts. 0 removes the budget. It fails
// if the batch has no name or the budget is negative, or with Redis's own error.
func (l *Ledger) SetBatchBudget(ctx context.Context, batch string, microYuan int64) error {
	if batch == "" || microYuan < 0 {
		return fmt.Errorf("set budget of batch %s to %d micro-yuan: the batch needs a name, and the budget must not be negative", strconv.Quote(batch), microYuan)
	}
	key := rediskey.BatchBudget(batch)
	_, err := l.redis.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		if microYuan == 0 {
			tx.HDel(ctx, key, "cap")
			return nil
		}
		tx.HSet(ctx, key, "cap", microYuan)
		tx.Expire(ctx, key, Lifetime)
		return nil
	})
	if err != nil {
		return fmt.Errorf("set budget of batch %s: %w", batch, err)
	}
	return nil
}

// reservationPattern matches an open reservation: amount, images, time, group.
var reservationPattern = regexp.MustCompile(`^([0-9]+) ([0-9]+) (-?[0-9]+) (\{.*\})$`)

// OpenReservations returns what is reserved of an account's budget on the ledger's day of
// a time, in no order. A worker releases those that a crash has left. It fails with
// Redis's own error.
func (l *Ledger) OpenReservations(ctx context.Context, account string, day time.Time) ([]Charge, error) {
	fields, err := l.redis.HGetAll(ctx, rediskey.LedgerDay(account, Day(day))).Result()
	if err != nil {
		return nil, fmt.Errorf("read reservations of account %s: %w", account, err)
	}
	var open []Charge
	for field, value := range fields {
		name, ok := strings.CutPrefix(field, openField)
		if !ok {
			continue
		}
		charge, err := decodeReservation(name, value)
		if err != nil {
			return nil, fmt.Errorf("read reservations of account %s: %s: %w", account, field, err)
		}
		charge.Account = account
		open = append(open, charge)
	}
	return open, nil
}

// decodeReservation decodes the reservation of JOB.ATTEMPT.
func decodeReservation(name, value string) (Charge, error) {
	at := strings.LastIndexByte(name, '.')
	parts := reservationPattern.FindStringSubmatch(value)
	if at < 0 || parts == nil {
		return Charge{}, fmt.Errorf("%s is not a reservation", strconv.Quote(value))
	}
	attempt, err := strconv.Atoi(name[at+1:])
	amount, amountErr := strconv.ParseInt(parts[1], 10, 64)
	images, imagesErr := strconv.Atoi(parts[2])
	nanoseconds, timeErr := strconv.ParseInt(parts[3], 10, 64)
	g, groupErr := decodeGroup(parts[4])
	if err := errors.Join(err, amountErr, imagesErr, timeErr, groupErr); err != nil {
		return Charge{}, err
	}
	return Charge{
		JobID: name[:at], Attempt: attempt, At: time.Unix(0, nanoseconds).UTC(),
		Model: g.Model, Batch: g.Batch, Labels: g.Labels, MicroYuan: amount, Images: images,
	}, nil
}
