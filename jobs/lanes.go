package jobs

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

	"github.com/danqing-queue/danqing/jobs/compactjson"
	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// ValidAccount fails unless name is valid for an account: 1 to 64 characters out of A-Z,
// a-z, 0-9, dot, underscore and hyphen. The error is a [FieldError].
func ValidAccount(name string) error {
	if rediskey.ValidName(name) {
		return nil
	}
	return FieldError{Field: "account", Value: show(name), Allowed: "1 to 64 of A-Z a-z 0-9 . _ -"}
}

// LaneState is whether a lane starts jobs.
type LaneState string

// The states of a lane.
const (
	LaneOpen LaneState = "open"
	// LanePaused starts no job: Reason and Message of its [LaneStatus] say why.
	LanePaused LaneState = "paused"
)

// PauseReason is why a lane is paused, in one word.
type PauseReason string

// The reasons for which a lane pauses.
const (
	PauseAccount   PauseReason = "account"   // the service refuses the key or the account
	PauseBucket    PauseReason = "bucket"    // finished images cannot be stored
	PauseBudget    PauseReason = "budget"    // the account's daily budget is spent
	PauseDataLoss  PauseReason = "data_loss" // Redis may have lost data: what was paid for is looked up
	PauseDisk      PauseReason = "disk"      // the data directory is full or not writable
	PauseModel     PauseReason = "model"     // the service has retired the model, or does not offer it to the account
	PauseOperator  PauseReason = "operator"  // an operator has paused it
	PauseRedis     PauseReason = "redis"     // Redis does not answer, or refuses records
	PauseService   PauseReason = "service"   // the service cannot be reached, or refuses for the moment
	PauseThrottled PauseReason = "throttled" // the service limits the rate of requests
)

// LaneStatus is what the worker that holds a lane last reported, for people. [Inspector.Lanes]
// sets the fields from Held on.
type LaneStatus struct {
	Account     string      `json:"account"`
	Model       string      `json:"model"`
	Host        string      `json:"host,omitempty"` // the name of the holder's machine
	Term        int64       `json:"term"`
	Concurrency int         `json:"concurrency"` // slots: tasks at once
	State       LaneState   `json:"state"`
	Reason      PauseReason `json:"reason,omitempty"` // of a paused lane
	Message     string      `json:"message,omitempty"`
	Simulated   bool        `json:"simulated,omitempty"`
	At          time.Time   `json:"at"`                // when it was reported
	RetryAt     time.Time   `json:"retry_at,omitzero"` // when a paused lane tries again
	// DailyBudgetMicroYuan is the budget of the lane's account for a day, in millionths of a
	// yuan; 0 means no limit.
	DailyBudgetMicroYuan int64 `json:"daily_budget_micro_yuan,omitempty"`
	// Until is when what has paused the lane ends by itself, as a new day's budget begins;
	// zero if that is not known.
	Until time.Time `json:"until,omitzero"`

	// Held reports whether a worker holds the lane's lease. A lane that is not held does
	// nothing; its State is out of date.
	Held bool `json:"held"`
	// Pause is an operator's pause of the account or of the model, nil if there is none. A lane
	// that has nothing to do may be open in spite of it.
	Pause *Pause `json:"pause,omitempty"`
	// Holder is the ID of the worker that holds the lease.
	Holder string `json:"holder,omitempty"`
	// Running are the IDs of the jobs that have a task at the service, or whose create is on
	// its way or has an unknown outcome, in order.
	Running []string `json:"running,omitempty"`
	// Hours is how busy the lane was in the last [LaneHours] hours, the oldest first. Hours in
	// which it did nothing, and no job waited, are left out.
	Hours []LaneHour `json:"hours,omitempty"`
}

// LaneHours is how many hours of a lane are kept, with the current one.
const LaneHours = 24

// LaneHour is how busy a lane was in one hour.
type LaneHour struct {
	Start time.Time `json:"start"`
	// BusySeconds is how long its slots had a task, and IdleSeconds how long they had none while
	// jobs waited: the sums of all slots.
	BusySeconds float64 `json:"busy_seconds"`
	IdleSeconds float64 `json:"idle_seconds"`
}

// Busy is the number of slots that have a task.
func (l *LaneStatus) Busy() int { return min(len(l.Running), l.Concurrency) }

// BusyShare returns for which part of the time since an hour began the lane's slots had a task,
// from 0 to 1. since must be within [LaneHours] hours.
func (l *LaneStatus) BusyShare(since time.Time) float64 {
	since = since.Truncate(time.Hour)
	sum := 0.0
	for _, hour := range l.Hours {
		if !hour.Start.Before(since) {
			sum += hour.BusySeconds
		}
	}
	possible := time.Since(since).Seconds() * float64(l.Concurrency)
	if possible <= 0 {
		return 0
	}
	return min(sum/possible, 1)
}

// SetLane publishes a lane's status. Only the worker that holds the lane may call it.
func (s *Store) SetLane(ctx context.Context, lane LaneStatus) error {
	if err := ValidAccount(lane.Account); err != nil {
		return fmt.Errorf("publish lane: %w", err)
	}
	lane.Held, lane.Pause, lane.Holder, lane.Running, lane.Hours = false, nil, "", nil, nil
	encoded, err := compactjson.Marshal(lane)
	if err == nil {
		err = s.redis.HSet(ctx, rediskey.Lanes, lane.Account+":"+lane.Model, encoded).Err()
	}
	if err != nil {
		return fmt.Errorf("publish lane %s of %s: %w", lane.Model, lane.Account, err)
	}
	return nil
}

// Lanes returns every lane that was ever open, by account and model. It fails with
// Redis's own error.
func (i *Inspector) Lanes(ctx context.Context) ([]LaneStatus, error) {
	fields, err := i.store.redis.HGetAll(ctx, rediskey.Lanes).Result()
	if err != nil {
		return nil, fmt.Errorf("read lanes: %w", err)
	}
	lanes := make([]LaneStatus, 0, len(fields))
	for field, encoded := range fields {
		var lane LaneStatus
		if err := json.Unmarshal([]byte(encoded), &lane); err != nil {
			return nil, fmt.Errorf("read lane %s: %w", field, err)
		}
		lanes = append(lanes, lane)
	}
	slices.SortFunc(lanes, func(a, b LaneStatus) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Model, b.Model))
	})
	for n, lane := range lanes {
		if lanes[n].Pause, err = i.store.LanePause(ctx, lane.Account, lane.Model); err != nil {
			return nil, err
		}
	}
	return lanes, i.readLanes(ctx, lanes)
}

// lanesScript returns of each lane its lease, the jobs in flight and its hours. Its keys are
// these three of each lane. It is one command, as the embedded Redis's connections cannot hold a
// long pipeline.
var lanesScript = redis.NewScript(`
local lanes = {}
for i = 1, #KEYS, 3 do
  lanes[#lanes + 1] = {redis.call('GET', KEYS[i]) or '', redis.call('HKEYS', KEYS[i + 1]), redis.call('HGETALL', KEYS[i + 2])}
end
return lanes
`)

// readLanes sets the holders, the jobs and the hours of lanes. It reads all by two commands.
func (i *Inspector) readLanes(ctx context.Context, lanes []LaneStatus) error {
	if len(lanes) == 0 {
		return nil
	}
	var keys, records []string
	for _, lane := range lanes {
		for _, part := range []string{rediskey.LaneLease, rediskey.LaneInFlight, rediskey.LaneUsage} {
			keys = append(keys, rediskey.Lane(lane.Account, lane.Model, part))
		}
	}
	parts, err := lanesScript.Run(ctx, i.store.redis, keys).Slice()
	if err != nil {
		return fmt.Errorf("read leases of lanes: %w", err)
	}
	var at []int // the lanes of the records
	for n, part := range parts {
		fields, ok := part.([]any)
		if !ok || len(fields) != 3 {
			return fmt.Errorf("read leases of lanes: unexpected reply %v", part)
		}
		lanes[n].Holder = fmt.Sprint(fields[0])
		lanes[n].Held = lanes[n].Holder != ""
		for _, id := range textsOf(fields[1]) {
			at, records = append(at, n), append(records, rediskey.Record(id))
		}
		if lanes[n].Hours, err = decodeHours(textsOf(fields[2]), time.Now()); err != nil {
			return fmt.Errorf("read usage of lane %s of %s: %w", lanes[n].Model, lanes[n].Account, err)
		}
	}
	if len(records) == 0 {
		return nil
	}
	states, err := statesScript.Run(ctx, i.store.redis, records).StringSlice()
	if err != nil {
		return fmt.Errorf("read jobs of lanes: %w", err)
	}
	for n, state := range states {
		if state := State(state); state == StateSubmitting || state == StateGenerating {
			lane := &lanes[at[n]]
			lane.Running = append(lane.Running, strings.TrimPrefix(records[n], rediskey.Record("")))
		}
	}
	for n := range lanes {
		slices.Sort(lanes[n].Running)
	}
	return nil
}

// textsOf returns the texts of a list in a script's reply.
func textsOf(reply any) []string {
	list, _ := reply.([]any)
	texts := make([]string, len(list))
	for i, text := range list {
		texts[i] = fmt.Sprint(text)
	}
	return texts
}

// usageScript adds to an hour of a lane, and removes what is older than the first hour to keep.
var usageScript = redis.NewScript(`
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if tonumber(string.match(field, '^%d+')) < tonumber(ARGV[2]) then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':busy', ARGV[3])
redis.call('HINCRBY', KEYS[1], ARGV[1] .. ':idle', ARGV[4])
return redis.status_reply('OK')
`)

// RecordLaneUsage adds to the hour of a time how long the lane's slots had a task, and how long
// they had none while jobs waited. Only the worker that holds the lane may call it. It fails with
// Redis's own error.
func (s *Store) RecordLaneUsage(ctx context.Context, account, model string, at time.Time, busy, idle time.Duration) error {
	hour := at.Unix() / int64(time.Hour/time.Second)
	err := usageScript.Run(ctx, s.redis, []string{rediskey.Lane(account, model, rediskey.LaneUsage)}, hour, hour-LaneHours+1, busy.Milliseconds(), idle.Milliseconds()).Err()
	if err != nil {
		return fmt.Errorf("record usage of lane %s of %s: %w", model, account, err)
	}
	return nil
}

// decodeHours reads the fields and values of a [rediskey.LaneUsage].
func decodeHours(pairs []string, now time.Time) ([]LaneHour, error) {
	byStart := map[int64]*LaneHour{}
	for pair := range slices.Chunk(pairs, 2) {
		name, kind, _ := strings.Cut(pair[0], ":")
		hour, err := strconv.ParseInt(name, 10, 64)
		milliseconds, valueErr := strconv.ParseInt(pair[len(pair)-1], 10, 64)
		if err := errors.Join(err, valueErr); err != nil {
			return nil, err
		}
		start := time.Unix(hour*int64(time.Hour/time.Second), 0).UTC()
		if now.Sub(start) >= LaneHours*time.Hour {
			continue
		}
		if byStart[hour] == nil {
			byStart[hour] = &LaneHour{Start: start}
		}
		if seconds := float64(milliseconds) / 1000; kind == "busy" {
			byStart[hour].BusySeconds = seconds
		} else {
			byStart[hour].IdleSeconds = seconds
		}
	}
	var hours []LaneHour
	for _, hour := range slices.Sorted(maps.Keys(byStart)) {
		hours = append(hours, *byStart[hour])
	}
	return hours, nil
}
