package gateway

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// defaultMaxRequests is the default number of a token's open requests. A program with
	// one of DashScope's SDKs has one for each image that it waits for.
	defaultMaxRequests = 256
	// minMaxRequests is the least that a token has where there are many tokens.
	minMaxRequests = 8
	// maxTransfers limits the concurrent uploads of reference images without tokens, and
	// maxTransfersPerToken those of each token, so that a slow client does not block
	// others. The values are our choice.
	maxTransfers         = 8
	maxTransfersPerToken = 2
	// maxLists limits the concurrent lists of each token, which read all its records of a day.
	maxLists = 2
	// semaphoreTimeout is how long a request waits for a semaphore.
	semaphoreTimeout = 30 * time.Second
	// crowdedRetryAfter is how long a client should wait for one of its own requests to end.
	crowdedRetryAfter = time.Second
)

// share is what each token has for itself, so that none delays the others.
type share struct {
	open             atomic.Int64 // requests
	maxOpen          int64
	transfers, lists semaphore
}

// newShares returns the shares by the names of producers: "" without tokens, which the
// listener alone limits. All tokens together have half of the server's connections, which
// leaves room for requests that are answered at once.
func newShares(cfg API) map[string]*share {
	room := connLimit() / 2
	if len(cfg.Tokens) == 0 {
		return map[string]*share{"": {maxOpen: math.MaxInt64, transfers: newSemaphore("uploads", maxTransfers), lists: newSemaphore("lists", maxLists)}}
	}
	shares := map[string]*share{}
	for _, t := range cfg.Tokens {
		most := t.MaxRequests
		if most == 0 {
			most = min(defaultMaxRequests, max(minMaxRequests, room/len(cfg.Tokens)))
		}
		shares[t.Name] = &share{maxOpen: int64(most), transfers: newSemaphore("uploads", maxTransfersPerToken), lists: newSemaphore("lists", maxLists)}
	}
	return shares
}

// enter counts a request whose caller is known, and keeps its connection open until leave.
// A query beyond the token's limit is answered at once, because the SDKs drop a job on any
// error; any other request is refused, see [dispatch].
func (a *api) enter(r *request) (leave func()) {
	own := a.shares[r.caller.Name]
	r.crowded = own.open.Add(1) > own.maxOpen
	release := useConn(r.Request)
	return func() {
		release()
		own.open.Add(-1)
	}
}

// errCrowded is the error for a request beyond a token's open ones.
func (a *api) errCrowded(r *request) error {
	return newAPIError(http.StatusTooManyRequests, codeThrottled, fmt.Sprintf("this token has %d open requests, which is the limit (DANQING_TOKEN_MAX_REQUESTS): retry when one of them has ended",
		a.shares[r.caller.Name].maxOpen), crowdedRetryAfter)
}

// semaphore limits the number of concurrent requests of one kind.
type semaphore struct {
	kind  string // plural
	slots chan struct{}
}

func newSemaphore(kind string, slots int) semaphore {
	return semaphore{kind, make(chan struct{}, slots)}
}

// acquire waits for the semaphore, at most semaphoreTimeout. The caller must release it.
func (g semaphore) acquire(ctx context.Context) (release func(), err error) {
	timer := time.NewTimer(semaphoreTimeout)
	defer timer.Stop()
	select {
	case g.slots <- struct{}{}:
		return func() { <-g.slots }, nil
	case <-timer.C:
		return nil, newAPIError(http.StatusTooManyRequests, codeThrottled, fmt.Sprintf("%d %s of this token are in progress, which is the limit: retry later", cap(g.slots), g.kind), unavailableRetryAfter)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
