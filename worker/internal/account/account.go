// Package account is the state of a worker's Alibaba main accounts: client, prices, the
// service's clock, and whether anything may be bought on them.
package account

import (
	"log/slog"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Account is the state of a configured account. The exported fields do not change.
type Account struct {
	Name   string
	Client *dashscope.Client
	Log    *slog.Logger
	// DailyBudgetMicroYuan is the daily budget in micro-yuan; 0 means no limit.
	DailyBudgetMicroYuan int64
	// PricesMicroYuan are contract prices per image in micro-yuan, by model.
	PricesMicroYuan map[string]int64

	// created is the time.Time at which this worker last created a task on the account, by model.
	created sync.Map

	// SharedList is used by all of the account's lanes.
	SharedList SharedList

	mu sync.Mutex
	// date was the service's clock at the local time dated.
	date, dated time.Time
	// heldLanes is how many of the account's lanes this worker holds.
	heldLanes int
	// verified is set once the service has accepted the key.
	verified bool
	// mainAccountID is the main account's number, "" until one of its tasks has been
	// listed.
	mainAccountID string
	// disabledReason is the error for which nothing may be bought on the account, even
	// if the service accepts its key. nil means enabled.
	disabledReason error
}

// Cost returns the price of a purchase on the account, in micro-yuan; 0 if its region does not
// have the model.
func (a *Account) Cost(model jobs.Model, p jobs.Purchase) int64 {
	cost, _ := model.CostOf(a.PricesMicroYuan, a.Client.Region(), p)
	return cost
}

// HoldLane records that this worker holds one more of the account's lanes, of which there
// are total in all workers. The lanes that a worker holds share its part of the account's
// query budget by need. The caller must call release when it no longer holds the lane.
func (a *Account) HoldLane(total int) (release func()) {
	a.setHeldLanes(1, total)
	return func() { a.setHeldLanes(-1, total) }
}

func (a *Account) setHeldLanes(change, total int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heldLanes += change
	a.Client.SetQueryShare(float64(max(a.heldLanes, 1)) / float64(max(a.heldLanes, total)))
}

// Usable reports whether the service has accepted the account's key, and fails if nothing
// may be bought on it.
func (a *Account) Usable() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.verified, a.disabledReason
}

// SetCreated records that a task of a model was created on the account.
func (a *Account) SetCreated(model string) { a.created.Store(model, time.Now()) }

// OtherModelWorks reports whether a task of another model was created on the account lately.
func (a *Account) OtherModelWorks(model string) bool {
	works := false
	a.created.Range(func(other, at any) bool {
		works = other != model && time.Since(at.(time.Time)) < worksFor
		return !works
	})
	return works
}

// worksFor is how long a created task shows that the service accepts the account: the longest
// wait of a lane whose account has a problem.
const worksFor = 10 * time.Minute

func (a *Account) disable(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.disabledReason = why
}

// owner returns the main account's number, "" if it is unknown.
func (a *Account) owner() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mainAccountID
}

func (a *Account) setOwner(owner string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verified, a.mainAccountID = true, owner
}

// SetServiceTime records the service's time from the Date header of a reply, which has whole
// seconds. The zero time is ignored.
func (a *Account) SetServiceTime(date time.Time) {
	if date.IsZero() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.date, a.dated = date.Add(500*time.Millisecond), time.Now()
}

// clockStep is how far the wall clock and the monotonic clock may diverge between two
// replies of the service, a day at most, before the wall clock counts as set.
const clockStep = 10 * time.Second

// ServiceNow returns the time on the service's clock, and whether it is known. Otherwise it
// returns the local time. It is unknown before the first reply, after the machine was
// suspended, when the monotonic clock stands still, and after the wall clock was set.
func (a *Account) ServiceNow() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	elapsed := now.Sub(a.dated)
	if wall := now.Round(0).Sub(a.dated.Round(0)); a.dated.IsZero() || (wall-elapsed).Abs() > clockStep {
		return now.UTC(), false
	}
	return a.date.Add(elapsed).UTC(), true
}
