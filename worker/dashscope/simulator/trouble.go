package simulator

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Trouble is a kind of bad day that can be rehearsed: for all requests by
// [Simulator.Trouble], or for the jobs whose prompt contains "[fail:NAME]".
type Trouble struct {
	Name string
	// Meaning is a clause for people: what the service does.
	Meaning string

	// fault replaces the answers to requests, outcome those of tasks, and slower multiplies
	// how long they take.
	fault   Fault
	outcome func(n int) Outcome
	slower  int
	// times is how many requests of one prompt get the fault if the prompt asks for it; 0 means
	// all of them.
	times int
}

// promptedTimes is for how many creates of a prompt an account or the service is refused: the
// lane pauses and tries again, and others have their turn.
const promptedTimes = 2

// Troubles returns all kinds of trouble, in the order of the documentation.
func Troubles() []Trouble {
	refusal := func(name, meaning string, status int, code, message string) Trouble {
		return Trouble{Name: name, Meaning: meaning, times: promptedTimes, fault: Fault{Route: RouteCreate, Status: status, Code: code, Message: message}}
	}
	failure := func(code, message string) func(int) Outcome {
		return func(int) Outcome { return Outcome{Code: code, Message: message} }
	}
	const inspection = "DataInspectionFailed"
	return []Trouble{
		refusal("401", "the API key is refused", http.StatusUnauthorized, "InvalidApiKey", "Invalid API-key provided."),
		refusal("429", "creates are throttled", http.StatusTooManyRequests, "Throttling.RateQuota", "Requests rate limit exceeded, please try again later."),
		refusal("503", "the service is overloaded", http.StatusServiceUnavailable, "ModelUnavailable", "Model is unavailable, please try again later."),
		refusal("arrears", "the account is in arrears", http.StatusBadRequest, "Arrearage", "Access denied, please make sure your account is in good standing."),
		refusal("quota", "the free quota is used up", http.StatusForbidden, "AllocationQuota.FreeTierOnly", "The free tier of the model has been exhausted."),
		refusal("retired", "the model is retired", http.StatusNotFound, "ModelNotFound", "Model not exist."),
		{Name: "lost", Meaning: "the connection breaks before the answer to a create: its task exists", times: 1, fault: Fault{Route: RouteCreate, Reset: ResetAfter}},
		{Name: "review", Meaning: "the moderation refuses the image", outcome: failure(inspection, "Output data may contain inappropriate content.")},
		{Name: "error", Meaning: "the task fails with an internal error", outcome: failure("InternalError", "An internal error has occurred, please try again later or contact service support.")},
		{Name: "partial", Meaning: "the last image of a task is refused", outcome: func(n int) Outcome {
			return Outcome{Images: map[int]Failure{n - 1: {inspection, "Output data may contain inappropriate content."}}}
		}},
		{Name: "slow", Meaning: "a task takes ten times as long", slower: 10},
		{Name: "broken", Meaning: "the file of an image is cut off", fault: Fault{Route: RouteResult, Truncate: true}},
		{Name: "expired", Meaning: "the link of an image is refused", fault: Fault{Route: RouteResult, Status: http.StatusForbidden, Code: "AccessDenied", Message: "Request has expired."}},
	}
}

// troubleNamed returns a kind of trouble, nil if there is none of this name.
func troubleNamed(name string) *Trouble {
	for _, t := range Troubles() {
		if t.Name == name {
			return &t
		}
	}
	return nil
}

// Trouble makes trouble for a share of the requests or tasks, above 0 and at most 1, until the
// simulator is closed. It fails if there is no trouble of this name, or the share is none.
func (s *Simulator) Trouble(name string, share float64) error {
	t := troubleNamed(name)
	var names []string
	for _, known := range Troubles() {
		names = append(names, known.Name)
	}
	switch {
	case t == nil:
		return fmt.Errorf("trouble %q: allowed: %s", name, strings.Join(names, ", "))
	case share <= 0, share > 1, math.IsNaN(share):
		return fmt.Errorf("trouble %s: share %v: allowed: above 0, at most 1", name, share)
	}
	if t.fault.Route == RouteAny { // it is about tasks
		s.mu.Lock()
		defer s.mu.Unlock()
		s.troubles = append(s.troubles, troubleShare{t, share})
		return nil
	}
	fault := t.fault
	fault.Times, fault.Probability = -1, share
	if t.Name == "401" { // a key is refused by all routes of the API
		fault.Route, fault.Match = RouteAny, func(r *http.Request) bool { route, _ := routeOf(r); return !route.storage() }
	}
	s.Script(fault)
	return nil
}

// troubleShare is trouble for a share of the tasks.
type troubleShare struct {
	*Trouble
	share float64
}

var promptedTrouble = regexp.MustCompile(`\[fail:([a-z0-9]+)\]`)

// troubleOf returns the trouble that a prompt asks for, nil if it asks for none.
func troubleOf(prompt string) *Trouble {
	if match := promptedTrouble.FindStringSubmatch(prompt); match != nil {
		return troubleNamed(match[1])
	}
	return nil
}

// promptedFault returns the fault that the prompt of a request's task asks for, or nil.
func (s *Simulator) promptedFault(route Route, r *http.Request) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	prompt := s.promptOf(route, r)
	t := troubleOf(prompt)
	if t == nil || t.fault.Route != route {
		return nil
	}
	key := t.Name + " " + prompt
	if s.prompted == nil {
		s.prompted = map[string]int{}
	}
	if s.prompted[key]++; t.times > 0 && s.prompted[key] > t.times {
		return nil
	}
	s.counts.faults++
	return &t.fault
}

// promptOf returns the prompt of a create, or of the task of a result. s.mu must be held.
func (s *Simulator) promptOf(route Route, r *http.Request) string {
	if route == RouteResult {
		name, _ := cutLast(path.Base(r.URL.Path), "-")
		if t := s.byResult[name]; t != nil {
			return t.Request.Input.Prompt
		}
		return ""
	}
	if route != RouteCreate {
		return ""
	}
	body, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil {
		return ""
	}
	req, _ := dashscope.DecodeCreate(protocolOf(r), body)
	return req.Input.Prompt
}

// trouble changes a new task as its prompt and [Simulator.Trouble] ask for. s.mu must be held.
func (s *Simulator) trouble(t *task) {
	list := make([]*Trouble, 0, 1+len(s.troubles))
	if asked := troubleOf(t.Request.Input.Prompt); asked != nil {
		list = append(list, asked)
	}
	for _, some := range s.troubles {
		if s.faultRNG.Float64() < some.share {
			list = append(list, some.Trouble)
		}
	}
	for _, one := range list {
		if one.outcome != nil {
			t.Outcome = one.outcome(t.n())
		}
		t.Duration *= time.Duration(max(one.slower, 1))
	}
}
