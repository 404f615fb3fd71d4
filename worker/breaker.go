package worker

import (
	"maps"
	"sync"
	"time"
)

const (
	// silentTime is for how long a receiver is left alone that did not answer in time.
	silentTime = 30 * time.Second
	// silentKept is for how long it is remembered after that.
	silentKept = time.Hour
)

// silentReceivers are those that let their last callback wait for nothing: one of them
// would hold all places, and keep the others' callbacks waiting. They are tried by one
// callback at a time, silentTime apart; the others fail at once, which is one of their
// tries. The zero value is ready to use.
type hostBreaker struct {
	mu sync.Mutex
	// until is by host when the next one may try.
	until map[string]time.Time
}

// enter reports whether a callback may be sent to a host now.
func (s *hostBreaker) Allow(host string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, silent := s.until[host]
	if !silent {
		return true
	}
	if now.Before(until) {
		return false
	}
	s.until[host] = now.Add(callbackTime + silentTime) // this one finds out
	return true
}

// leave notes what came of it.
func (s *hostBreaker) Record(host string, now time.Time, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !silent {
		delete(s.until, host)
		return
	}
	maps.DeleteFunc(s.until, func(_ string, until time.Time) bool { return now.Sub(until) > silentKept })
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[host] = now.Add(silentTime)
}
