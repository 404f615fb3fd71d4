package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// What the answer to a create tells beside DashScope's own body.
const (
	headerPrice    = "X-Danqing-Price"    // what the job costs at most, in yuan
	headerImages   = "X-Danqing-Images"   // how many it is for
	headerPosition = "X-Danqing-Position" // how many jobs are expected before it
	headerStart    = "X-Danqing-Estimated-Start"
	headerWarnings = "X-Danqing-Warnings" // percent-encoded, with commas between
)

// say tells by headers what a job costs and when it may begin. What cannot be told is
// left out: the job is queued.
func (a *api) say(ctx context.Context, header http.Header, rec *jobs.Record, req jobs.Request, warnings []string) {
	header.Set(headerPrice, jobs.FormatYuan(a.price(req)))
	header.Set(headerImages, strconv.Itoa(max(req.N, 1)))
	slots := a.slots.of(ctx, a.jobs, rec.Model)
	if slots == 0 && rec.State.Waiting() {
		warnings = append(warnings, "no worker works "+rec.Model+" at present: the job waits until one does")
	}
	if len(warnings) > 0 {
		encoded := make([]string, len(warnings))
		for i, w := range warnings {
			encoded[i] = url.PathEscape(w)
		}
		header.Set(headerWarnings, strings.Join(encoded, ","))
	}
	if rec.State != jobs.StateQueued {
		return
	}
	backlog, err := a.jobs.Backlog(ctx, rec.Model)
	if err != nil {
		a.log.Warn("backlog not read", "model", rec.Model, "err", err)
		return
	}
	ahead := backlog.Ahead(rec.Model, rec.Priority)
	header.Set(headerPosition, strconv.FormatInt(ahead, 10))
	if backlog.TaskTime == 0 || slots == 0 {
		return // never measured, or nobody works the model
	}
	// Those that run have half of their time before them, on average.
	busy := min(backlog.Busy, slots)
	wait := time.Duration(ahead)*backlog.TaskTime/time.Duration(slots) + time.Duration(busy)*backlog.TaskTime/time.Duration(2*slots)
	header.Set(headerStart, time.Now().Add(wait).UTC().Format(time.RFC3339))
}

// slotsKept is how long the lanes are not asked for again.
const slotsKept = 10 * time.Second

// slots knows how many tasks of a model are worked at once.
type slots struct {
	mu      sync.Mutex
	readAt  time.Time
	byModel map[string]int64
}

// of returns a model's slots, 0 if nobody works it or that is not known.
func (s *slots) of(ctx context.Context, client *jobs.Client, model string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.byModel == nil || now.Sub(s.readAt) > slotsKept {
		s.readAt, s.byModel = now, map[string]int64{}
		lanes, err := client.Lanes(ctx)
		if err != nil {
			return 0
		}
		for _, lane := range lanes {
			if lane.Held && lane.State == jobs.LaneOpen {
				s.byModel[lane.Model] += int64(lane.Concurrency)
			}
		}
	}
	return s.byModel[model]
}
