package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	listPageSize = 10 // DashScope's own default
	listPageMost = 100
	// listSpan is the longest time that a list is of (manage-asynchronous-tasks page).
	listSpan = 24 * time.Hour
	listTime = "20060102150405"
	listRead = 200
)

// listing is what a list asks for.
type listing struct {
	taskID, model, status string
	start, end            time.Time
	page, size            int
}

// list answers with the caller's own jobs, the last asked for first.
func (a *api) list(_ http.ResponseWriter, r *request) (any, error) {
	asked, err := parseListing(r.URL.Query(), time.Now())
	if err != nil {
		return nil, err
	}
	leave, err := a.lists.enter(r.Context())
	if err != nil {
		return nil, err
	}
	defer leave()
	found, err := a.find(r.Context(), r.caller, asked)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b dashscope.TaskInfo) int { return int(b.GmtCreate - a.GmtCreate) })
	answer := dashscope.ListResponse{
		Total: len(found), TotalPage: (len(found) + asked.size - 1) / asked.size, PageNo: asked.page, PageSize: asked.size, RequestID: r.id,
		Data: []dashscope.TaskInfo{},
	}
	if first := (asked.page - 1) * asked.size; first < len(found) {
		answer.Data = found[first:min(first+asked.size, len(found))]
	}
	return answer, nil
}

func parseListing(q url.Values, now time.Time) (listing, error) {
	l := listing{taskID: q.Get("task_id"), model: q.Get("model_name"), status: q.Get("status")}
	var err error
	if l.page, err = whole(q, "page_no", 1, 1<<20); err != nil {
		return l, err
	}
	if l.size, err = whole(q, "page_size", listPageSize, listPageMost); err != nil {
		return l, err
	}
	if l.start, err = listMoment(q, "start_time"); err != nil {
		return l, err
	}
	if l.end, err = listMoment(q, "end_time"); err != nil {
		return l, err
	}
	switch {
	case l.start.IsZero() && l.end.IsZero():
		l.start, l.end = now.Add(-listSpan), now.Add(time.Minute) // another machine's clock may be ahead
	case l.start.IsZero():
		l.start = l.end.Add(-listSpan)
	case l.end.IsZero():
		l.end = l.start.Add(listSpan)
	case l.end.Before(l.start), l.end.Sub(l.start) > listSpan:
		return l, invalid("end_time", q.Get("end_time"), "a time after start_time, by 24 hours at most")
	}
	return l, nil
}

func invalid(field, value, allowed string) error {
	return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: field, Value: strconv.Quote(value[:min(len(value), 64)]), Allowed: allowed}}}
}

func whole(q url.Values, name string, otherwise, most int) (int, error) {
	text := q.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, invalid(name, text, "1 to "+strconv.Itoa(most))
	}
	return n, nil
}

// listMoment reads a time as the page has it, in UTC+8, or in milliseconds as the Java
// SDK's own test sends it.
func listMoment(q url.Values, name string) (time.Time, error) {
	text := q.Get(name)
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.ParseInLocation(listTime, text, serviceZone()); err == nil {
		return at, nil
	}
	if ms, err := strconv.ParseInt(text, 10, 64); err == nil && (len(text) == 12 || len(text) == 13) {
		return time.UnixMilli(ms), nil
	}
	return time.Time{}, invalid(name, text, "YYYYMMDDhhmmss in UTC+8")
}

// find returns the caller's jobs that fit.
func (a *api) find(ctx context.Context, c caller, asked listing) ([]dashscope.TaskInfo, error) {
	if asked.taskID != "" {
		rec, err := a.get(ctx, c, asked.taskID)
		if errors.Is(err, jobs.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return fitting([]*jobs.Record{rec}, asked), nil
	}
	filter := jobs.ListFilter{Model: asked.model, Producer: c.Name, Limit: listRead, UpdatedAfter: asked.start}
	var found []dashscope.TaskInfo
	for {
		records, cursor, err := a.jobs.List(ctx, filter)
		if err != nil {
			return nil, err
		}
		found = append(found, fitting(records, asked)...)
		// A job does not change before it is asked for.
		if cursor == "" {
			return found, nil
		}
		filter.Cursor = cursor
	}
}

func fitting(records []*jobs.Record, asked listing) (found []dashscope.TaskInfo) {
	milliseconds := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixMilli()
	}
	now := time.Now()
	for _, rec := range records {
		is := status(rec, now)
		if asked.status != "" && asked.status != is || asked.model != "" && asked.model != rec.Model ||
			rec.EnqueuedAt.Before(asked.start) || rec.EnqueuedAt.After(asked.end) {
			continue
		}
		found = append(found, dashscope.TaskInfo{
			TaskID: rec.ID, Status: is, ModelName: rec.Model, APIKeyID: rec.Producer,
			GmtCreate: milliseconds(rec.EnqueuedAt), StartTime: milliseconds(rec.SubmittedAt), EndTime: milliseconds(rec.FinishedAt),
			UserAPIUniqueKey: "apikey:v1:aigc:text2image:image-synthesis:" + rec.Model,
		})
	}
	return found
}
