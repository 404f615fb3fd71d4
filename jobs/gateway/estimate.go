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
	"github.com/danqing-queue/danqing/jobs/ledger"
)

// Response headers of a create that DashScope does not have.
const (
	headerPrice    = "X-Danqing-Price"    // maximum price of the job, in yuan
	headerImages   = "X-Danqing-Images"   // number of images
	headerPosition = "X-Danqing-Position" // estimated number of jobs before it
	headerStart    = "X-Danqing-Estimated-Start"
	headerWarnings = "X-Danqing-Warnings" // percent-encoded, separated by commas
	headerIgnored  = "X-Danqing-Ignored-Parameters"
)

// setHeaders sets the response headers of a create: the job's price and its estimated
// start. Values that are not available are omitted, because the job is already queued.
func (a *api) setHeaders(ctx context.Context, header http.Header, rec *jobs.Job, req jobs.Request, warnings []string) {
	header.Set(headerPrice, ledger.FormatYuan(a.price(req)))
	header.Set(headerImages, strconv.Itoa(max(req.N, 1)))
	slots := a.slots.get(ctx, a.operator, rec.Model)
	if slots == 0 && rec.State.Waiting() {
		warnings = append(warnings, "no worker serves "+rec.Model+" at present: the job waits until one does")
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
	ahead := backlog.Position(rec.Model, rec.Priority)
	header.Set(headerPosition, strconv.FormatInt(ahead, 10))
	if backlog.TaskTime == 0 || slots == 0 {
		return // never measured, or no worker serves the model
	}
	// Running tasks have half of their time left, on average.
	busy := min(backlog.Busy, slots)
	wait := time.Duration(ahead)*backlog.TaskTime/time.Duration(slots) + time.Duration(busy)*backlog.TaskTime/time.Duration(2*slots)
	header.Set(headerStart, time.Now().Add(wait).UTC().Format(time.RFC3339))
}

// slotCacheLifetime is how long the lanes are cached.
const slotCacheLifetime = 10 * time.Second

// slotCache caches the number of concurrent tasks of each model.
type slotCache struct {
	mu      sync.Mutex
	readAt  time.Time
	byModel map[string]int64
}

// get returns a model's slots, 0 if no worker serves it or Redis does not respond.
func (s *slotCache) get(ctx context.Context, operator *jobs.Inspector, model string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.byModel == nil || now.Sub(s.readAt) > slotCacheLifetime {
		s.readAt, s.byModel = now, map[string]int64{}
		lanes, err := operator.Lanes(ctx)
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
