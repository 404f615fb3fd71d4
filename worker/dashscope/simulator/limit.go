package simulator

import (
	"cmp"
	"net/http"
	"time"
)

// windowKey identifies a rate limit.
type windowKey struct {
	what string
	lane laneKey
}

// window holds the times of the last admitted requests, oldest first, at most as many
// as the limit.
type window struct {
	admitted []time.Time
}

// admit counts a request against a limit within a span, a sliding window, or rejects it. A
// rejected request is not counted. s.mu must be held.
func (s *Simulator) admit(key windowKey, limit int, span time.Duration, now time.Time, refuse *apiError) error {
	if limit < 0 {
		return nil
	}
	w := s.windows[key]
	if w == nil {
		w = &window{}
		s.windows[key] = w
	}
	if len(w.admitted) >= limit {
		if now.Sub(w.admitted[0]) < span {
			s.counts.throttled++
			return refuse
		}
		w.admitted = append(w.admitted[:0], w.admitted[1:]...)
	}
	w.admitted = append(w.admitted, now)
	return nil
}

// admitCreate applies the rate limit of creates: the simulator's if set, otherwise the
// model's.
func (s *Simulator) admitCreate(lane laneKey, m model, now time.Time) error {
	refuse := &apiError{http.StatusTooManyRequests, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later."}
	if m.catalog != nil && m.catalog.SubmitsPerMinute > 0 && s.SubmitsPerSecond == 0 {
		if err := s.admit(windowKey{"create a minute", lane}, m.catalog.SubmitsPerMinute, time.Minute, now, refuse); err != nil {
			return err
		}
	}
	return s.admit(windowKey{"create", lane}, cmp.Or(s.SubmitsPerSecond, m.submits), time.Second, now, refuse)
}

// admitQuery applies the rate limit that queries, lists and cancels of an account
// share.
func (s *Simulator) admitQuery(account string, now time.Time) error {
	return s.admit(windowKey{"query", laneKey{account: account}}, cmp.Or(s.QueriesPerSecond, defaultQueriesPerSecond), time.Second, now,
		&apiError{http.StatusTooManyRequests, "Throttling", "Requests throttling triggered."})
}

// admitPolicy applies the rate limit of upload credentials.
func (s *Simulator) admitPolicy(lane laneKey, now time.Time) error {
	return s.admit(windowKey{"policy", lane}, policiesPerSecond, time.Second, now,
		&apiError{http.StatusTooManyRequests, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later."})
}
