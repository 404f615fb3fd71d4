package jobs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// States are all states, in the order a job may pass through them.
func States() []State {
	return []State{
		StateScheduled, StateQueued, StatePrepared, StateSubmitting, StateGenerating, StateStoring, StateRetrying, StateHeld,
		StateSucceeded, StateFailed, StateCanceled,
	}
}

// defaultLimit is the size of a page if the filter has none.
const defaultLimit = 100

// scanSize is how many records are read from Redis at once.
const scanSize = 200

// ListFilter selects jobs. The zero value selects all.
type ListFilter struct {
	States  []State // any of these; none means all
	Model   string
	Account string // of the last submit
	Batch   string
	// Producer is the name of the gateway's token that enqueued the job.
	Producer string
	// Code is the reason for which a job has failed, is held or waits longer.
	Code string
	// Labels are names and values that a job must all have.
	Labels map[string]string
	// UpdatedBefore selects jobs whose last change was before this time; zero selects all.
	UpdatedBefore time.Time
	// UpdatedAfter selects jobs whose last change was at this time or later; zero selects
	// all.
	UpdatedAfter time.Time
	// Limit is how many records to return; 0 is 100.
	Limit int
	// Cursor is what the last page returned; "" for the first page.
	Cursor string
}

// List is [Client.List], with the whole records.
func (s *Store) List(ctx context.Context, filter ListFilter) (records []*Record, cursor string, err error) {
	after, err := parseCursor(filter.Cursor)
	if err != nil {
		return nil, "", err
	}
	if before := filter.UpdatedBefore; !before.IsZero() && before.UnixMilli()-1 < after.score {
		after = entry{score: before.UnixMilli() - 1, id: lastID}
	}
	limit := filter.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	states := filter.States
	if len(states) == 0 {
		states = States()
	}
	for {
		entries, more, err := s.entries(ctx, states, filter.UpdatedAfter, after)
		if err != nil {
			return nil, "", fmt.Errorf("list jobs: %w", err)
		}
		found, err := s.records(ctx, entries)
		if err != nil {
			return nil, "", fmt.Errorf("list jobs: %w", err)
		}
		for i, rec := range found {
			after = entries[i]
			if rec == nil || !filter.Matches(&rec.Job) {
				continue
			}
			if len(records) == limit {
				return records, cursor, nil
			}
			records, cursor = append(records, rec), after.cursor()
		}
		if !more {
			return records, "", nil
		}
	}
}

// Matches reports whether a job is among those of the filter, whose Limit and Cursor do not
// matter.
func (f *ListFilter) Matches(job *Job) bool {
	labels, batch := job.Labels, job.Batch
	if job.Request != nil { // a recovered job may have them only here
		labels, batch = job.Request.Labels, job.Request.Batch
	}
	switch {
	case len(f.States) > 0 && !slices.Contains(f.States, job.State),
		!f.UpdatedBefore.IsZero() && !job.UpdatedAt.Before(f.UpdatedBefore),
		job.UpdatedAt.Before(f.UpdatedAfter):
		return false
	}
	for name, value := range f.Labels {
		if got, ok := labels[name]; !ok || got != value {
			return false
		}
	}
	if f.Producer != "" && f.Producer != job.Producer || f.Code != "" && f.Code != job.Code {
		return false
	}
	return (f.Model == "" || f.Model == job.Model) && (f.Account == "" || f.Account == job.Account) && (f.Batch == "" || f.Batch == batch)
}

// entry is one job in the index of one state.
type entry struct {
	score int64 // Unix milliseconds
	id    string
	state State
}

// compare orders as Redis does in reverse: the newest first, then the last ID.
func (e entry) compare(o entry) int {
	return cmp.Or(cmp.Compare(o.score, e.score), strings.Compare(o.id, e.id))
}

func (e entry) cursor() string { return strconv.FormatInt(e.score, 10) + "-" + e.id }

// lastID is above every job ID.
const lastID = "~"

func parseCursor(cursor string) (entry, error) {
	if cursor == "" {
		return entry{score: 1<<53 - 1, id: lastID}, nil
	}
	score, id, ok := strings.Cut(cursor, "-")
	at, err := strconv.ParseInt(score, 10, 64)
	if !ok || err != nil {
		return entry{}, FieldError{Field: "cursor", Value: show(cursor), Allowed: "what the last page returned", Remedy: "omit it to start"}
	}
	return entry{score: at, id: id}, nil
}

// entries returns the first jobs of these states that are listed after one, in
// order, and whether there are more. Jobs that changed before since are left out.
func (s *Store) entries(ctx context.Context, states []State, since time.Time, after entry) (list []entry, more bool, err error) {
	for _, state := range states {
		of, err := s.entriesOf(ctx, state, since, after)
		if err != nil {
			return nil, false, err
		}
		more = more || len(of) == scanSize
		list = append(list, of...)
	}
	slices.SortFunc(list, entry.compare)
	// Beyond the first scanSize, jobs of another state may be missing.
	if len(list) > scanSize {
		list, more = list[:scanSize], true
	}
	return list, more, nil
}

func (s *Store) entriesOf(ctx context.Context, state State, since time.Time, after entry) (list []entry, err error) {
	oldest := oldestScore(state, since)
	for offset := int64(0); len(list) < scanSize; {
		members, err := s.redis.ZRevRangeByScoreWithScores(ctx, indexKey(state), &redis.ZRangeBy{
			Min: oldest, Max: strconv.FormatInt(after.score, 10), Offset: offset, Count: scanSize,
		}).Result()
		if err != nil {
			return nil, err
		}
		for _, z := range members {
			e := entry{score: int64(z.Score), id: fmt.Sprint(z.Member), state: state}
			if len(list) < scanSize && after.compare(e) < 0 {
				list = append(list, e)
			}
		}
		if len(members) < scanSize {
			break
		}
		offset += scanSize
	}
	return list, nil
}

// oldestScore is where a state's index begins, for jobs that changed at since or later.
// Ended jobs expire, which the embedded Redis does not do by itself, and their index entries
// are removed later.
func oldestScore(state State, since time.Time) string {
	if expired := expiredBefore(time.Now()); state.Final() && (since.IsZero() || since.UnixMilli() <= expired) {
		return "(" + strconv.FormatInt(expired, 10)
	}
	if since.IsZero() {
		return "-inf"
	}
	return strconv.FormatInt(since.UnixMilli(), 10)
}

// readScript reads the records of index entries, two keys and two arguments each,
// and removes from the index those that are gone or in another state. It is one
// command, as the embedded Redis's connections cannot hold a long pipeline.
var readScript = redis.NewScript(`
local list = {}
for i = 1, #KEYS, 2 do
  local rec = redis.pcall('HMGET', KEYS[i], ` + luaStoredFields + `) -- the key may have another type
  if rec[3] ~= ARGV[i] then
    redis.call('ZREM', KEYS[i + 1], ARGV[i + 1])
    rec = {}
  end
  for f = 1, 8 do list[#list + 1] = rec[f] or '' end
end
return list
`)

// records reads the records of the entries; nil for one that does not exist, is in
// another state by now, or is corrupt.
func (s *Store) records(ctx context.Context, entries []entry) ([]*Record, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	keys, args := make([]string, 0, 2*len(entries)), make([]any, 0, 2*len(entries))
	for _, e := range entries {
		keys = append(keys, rediskey.Record(e.id), indexKey(e.state))
		args = append(args, string(e.state), e.id)
	}
	read, err := readScript.Run(ctx, s.redis, keys, args...).StringSlice()
	if err != nil {
		return nil, err
	}
	list := make([]*Record, len(entries))
	for i, fields := range slices.Collect(slices.Chunk(read, len(storedFields()))) {
		if recordExists(fields) {
			list[i], _ = decodeRecord(entries[i].id, fields) // nil if corrupt
		}
	}
	return list, nil
}

// Counts returns how many jobs are in each state; of the final ones those that ended
// within [RecordLifetime]. States without a job have 0. It fails with Redis's own error.
func (c *Client) Counts(ctx context.Context) (map[State]int64, error) {
	counts := map[State]*redis.IntCmd{}
	if _, err := c.store.redis.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, state := range States() {
			counts[state] = pipe.ZCount(ctx, indexKey(state), oldestScore(state, time.Time{}), "+inf")
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	result := make(map[State]int64, len(counts))
	for state, count := range counts {
		result[state] = count.Val()
	}
	return result, nil
}
