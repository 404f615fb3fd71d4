package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	listPageSize    = 10 // DashScope's own default
	maxListPageSize = 100
	// maxListSpan is the longest time span of a list (manage-asynchronous-tasks page).
	maxListSpan    = 24 * time.Hour
	listTimeLayout = "20060102150405"
	listReadSize   = 200
)

// listQuery is the query of a list.
type listQuery struct {
	taskID, model, status string
	start, end            time.Time
	page, size            int
}

// list answers with the caller's jobs, newest first.
func (a *api) list(_ http.ResponseWriter, r *request) (any, error) {
	if r.crowded {
		return nil, a.errCrowded(r)
	}
	query, err := parseListQuery(r.URL.Query(), time.Now())
	if err != nil {
		return nil, err
	}
	release, err := a.shares[r.caller.Name].lists.acquire(r.Context())
	if err != nil {
		return nil, err
	}
	defer release()
	found, err := a.find(r.Context(), r.caller, query)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b dashscope.TaskInfo) int { return int(b.GmtCreate - a.GmtCreate) })
	answer := dashscope.ListResponse{
		Total: len(found), TotalPage: (len(found) + query.size - 1) / query.size, PageNo: query.page, PageSize: query.size, RequestID: r.id,
		Data: []dashscope.TaskInfo{},
	}
	if first := (query.page - 1) * query.size; first < len(found) {
		answer.Data = found[first:min(first+query.size, len(found))]
	}
	return answer, nil
}

func parseListQuery(q url.Values, now time.Time) (listQuery, error) {
	l := listQuery{taskID: q.Get("task_id"), model: q.Get("model_name"), status: q.Get("status")}
	var err error
	if l.page, err = parsePositive(q, "page_no", 1, 1<<20); err != nil {
		return l, err
	}
	if l.size, err = parsePositive(q, "page_size", listPageSize, maxListPageSize); err != nil {
		return l, err
	}
	if l.start, err = parseListTime(q, "start_time"); err != nil {
		return l, err
	}
	if l.end, err = parseListTime(q, "end_time"); err != nil {
		return l, err
	}
	switch {
	case l.start.IsZero() && l.end.IsZero():
		l.start, l.end = now.Add(-maxListSpan), now.Add(time.Minute) // the clock of another machine may be ahead
	case l.start.IsZero():
		l.start = l.end.Add(-maxListSpan)
	case l.end.IsZero():
		l.end = l.start.Add(maxListSpan)
	case l.end.Before(l.start), l.end.Sub(l.start) > maxListSpan:
		return l, invalidField("end_time", q.Get("end_time"), "a time after start_time, by 24 hours at most")
	}
	return l, nil
}

func invalidField(field, value, allowed string) error {
	return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: field, Value: strconv.Quote(value[:min(len(value), 64)]), Allowed: allowed}}}
}

func parsePositive(q url.Values, name string, absent, limit int) (int, error) {
	text := q.Get(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > limit {
		return 0, invalidField(name, text, "1 to "+strconv.Itoa(limit))
	}
	return n, nil
}

// parseListTime parses a time in the documented format, in UTC+8, or in milliseconds, as
// the Java SDK's own test sends it.
func parseListTime(q url.Values, name string) (time.Time, error) {
	text := q.Get(name)
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.ParseInLocation(listTimeLayout, text, serviceLocation()); err == nil {
		return at, nil
	}
	if ms, err := strconv.ParseInt(text, 10, 64); err == nil && (len(text) == 12 || len(text) == 13) {
		return time.UnixMilli(ms), nil
	}
	return time.Time{}, invalidField(name, text, "YYYYMMDDhhmmss in UTC+8")
}

// find returns the caller's jobs that match a query.
func (a *api) find(ctx context.Context, c caller, query listQuery) ([]dashscope.TaskInfo, error) {
	if query.taskID != "" {
		rec, err := a.get(ctx, c, query.taskID)
		if errors.Is(err, jobs.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return matching([]*jobs.Job{rec}, query), nil
	}
	if !c.all {
		records, err := a.jobs.ListProducer(ctx, c.Name, query.start, query.end)
		return matching(records, query), err
	}
	// A job's last update is never before its creation.
	filter := jobs.ListFilter{Model: query.model, Limit: listReadSize, UpdatedAfter: query.start}
	var found []dashscope.TaskInfo
	for {
		records, cursor, err := a.jobs.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		found = append(found, matching(records, query)...)
		if cursor == "" {
			return found, nil
		}
		filter.Cursor = cursor
	}
}

func matching(records []*jobs.Job, query listQuery) (found []dashscope.TaskInfo) {
	milliseconds := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixMilli()
	}
	now := time.Now()
	for _, rec := range records {
		is := status(rec, now)
		if query.status != "" && query.status != is || query.model != "" && query.model != rec.Model ||
			rec.EnqueuedAt.Before(query.start) || rec.EnqueuedAt.After(query.end) {
			continue
		}
		found = append(found, dashscope.TaskInfo{
			TaskID: rec.ID, Status: is, ModelName: rec.Model, APIKeyID: rec.Producer,
			GmtCreate: milliseconds(rec.EnqueuedAt), StartTime: milliseconds(startTime(rec)), EndTime: milliseconds(rec.FinishedAt),
			UserAPIUniqueKey: "apikey:v1:aigc:" + strings.ReplaceAll(strings.TrimPrefix(protocolOf(rec).Path(), "/services/aigc/"), "/", ":") + ":" + rec.Model,
		})
	}
	return found
}
