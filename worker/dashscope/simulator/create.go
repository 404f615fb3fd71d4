package simulator

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// maxSeed is the largest seed (text-to-image reference).
const maxSeed = math.MaxInt32

// create serves a create: it validates what the service validates at once, counts the
// request against the rate limit, and queues a task.
func (s *Simulator) create(r *http.Request, c caller, requestID string) (any, error) {
	if r.Header.Get(dashscope.HeaderAsync) != "enable" {
		return nil, &apiError{http.StatusForbidden, "AccessDenied", "current user api does not support synchronous calls"}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	req, err := dashscope.DecodeCreate(protocolOf(r), body)
	if err != nil {
		return nil, &apiError{http.StatusBadRequest, "InvalidParameter", "Required body invalid, please check the request body format."}
	}
	m, err := s.checkCreate(r, req)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := wallClock()
	key := laneKey{c.account, req.Model}
	if err := s.admitCreate(key, m, now); err != nil {
		return nil, err
	}
	t := s.newTask(c, m, req, requestID, now)
	if err := s.record(entry{Task: t}); err != nil {
		return nil, err
	}
	s.addTask(t)
	s.log.InfoContext(r.Context(), "task created", "task_id", t.ID, "account", t.Account, "model", req.Model, "request_id", requestID)
	return dashscope.TaskResponse{
		RequestID: requestID,
		Output:    dashscope.TaskOutput{TaskID: t.ID, TaskStatus: dashscope.StatusPending},
	}, nil
}

// checkCreate validates what the service checks before it creates a task.
func (s *Simulator) checkCreate(r *http.Request, req dashscope.CreateRequest) (model, error) {
	bad := func(message string) (model, error) {
		return model{}, &apiError{http.StatusBadRequest, "InvalidParameter", message}
	}
	n := req.Parameters.N
	m, known := s.lookupModel(req.Model)
	switch {
	case req.Model == "":
		return m, &apiError{http.StatusBadRequest, "BadRequest.EmptyModel", "Required parameter \"model\" missing from request."}
	case !known:
		return m, unknownModel(req.Model)
	case s.isRetired(req.Model):
		return m, retiredModel()
	case m.protocol() != req.Protocol:
		return m, wrongPath()
	case strings.TrimSpace(req.Input.Prompt) == "":
		return bad("Required parameter \"prompt\" missing or invalid, please check the request parameters.")
	case n != nil && *n != 1 && m.maxImages == 1:
		return bad("num_images_per_prompt must be 1")
	case n != nil && (*n < 1 || *n > m.maxImages):
		return bad(fmt.Sprintf("num_images_per_prompt must be 1 to %d", m.maxImages))
	case m.catalog != nil && (len(inputs(req.Input)) < m.catalog.Inputs.Min || len(inputs(req.Input)) > m.catalog.Inputs.Max):
		return bad(fmt.Sprintf("the number of images must be %d to %d", m.catalog.Inputs.Min, m.catalog.Inputs.Max))
	case slices.ContainsFunc(req.Input.References(), func(name string) bool { return strings.HasPrefix(name, "oss://") }) && r.Header.Get(dashscope.HeaderOSSResolve) != "enable":
		return bad("The provided URL does not appear to be valid. Ensure it is correctly formatted.")
	default:
		return m, nil
	}
}

// reference returns the name of the reference image, empty if there is none. If several
// fields are set, ref_img wins (text-to-image reference).
func reference(in dashscope.Input) string {
	for _, name := range []string{in.RefImg, in.RefImage, in.SketchImageURL} {
		if name != "" {
			return name
		}
	}
	return ""
}

// inputs returns the names of the images that a model edits.
func inputs(in dashscope.Input) []string {
	if in.BaseImageURL != "" {
		return []string{in.BaseImageURL}
	}
	return in.Images
}

// newTask creates a task and fixes everything about it. s.mu must be held.
func (s *Simulator) newTask(c caller, m model, req dashscope.CreateRequest, requestID string, now time.Time) *task {
	rng := s.random(uint64(len(s.tasks)))
	t := &task{
		ID: newID(), RequestID: requestID, Account: c.account, KeyID: c.keyID,
		Request: req, CreatedAt: now, Seed: rng.Int64N(maxSeed - 3), model: m,
	}
	if req.Parameters.Seed != nil {
		t.Seed = *req.Parameters.Seed
	}
	if failure := s.checkTask(c, m, req, now); failure.Code != "" {
		t.Outcome = Outcome{Code: failure.Code, Message: failure.Message}
		t.Duration = rejectTime
		return t
	}
	if s.Outcome != nil {
		t.Outcome = s.Outcome(req)
	}
	if s.TaskTime != nil {
		t.Duration = max(s.TaskTime(rng, req), 0)
	} else {
		t.Duration = defaultTaskTime(rng, m, req)
	}
	s.trouble(t)
	return t
}

// checkTask validates what the service checks only when the task runs. Parameters that a
// model does not honor are ignored, as the service is assumed to do.
func (s *Simulator) checkTask(c caller, m model, req dashscope.CreateRequest, now time.Time) Failure {
	bad := func(message string) Failure { return Failure{"InvalidParameter", message} }
	p := req.Parameters
	if _, _, ok := m.sizes.parse(p.Size); !ok {
		return bad(m.sizes.message())
	}
	if p.Seed != nil && (*p.Seed < 0 || *p.Seed > maxSeed) {
		return bad("The seed must be in the range [0, 2147483647].")
	}
	if m.honors("style") && p.Style != "" && !painter.HasStyle(p.Style) {
		return bad("The style is not match the allowed styles.")
	}
	if m.catalog != nil {
		return s.checkInputs(c, m, req, now)
	}
	if !m.honors("ref_img") {
		return Failure{}
	}
	if p.RefStrength != nil && (*p.RefStrength < 0 || *p.RefStrength > 1) {
		return bad("The ref_strength must be in the range [0.0, 1.0].")
	}
	if p.RefMode != "" && p.RefMode != painter.RefRepaint && p.RefMode != painter.RefOnly {
		return bad("The ref_mode must be one of ['repaint', 'refonly'].")
	}
	return s.checkReference(c, req.Model, reference(req.Input), now)
}

// checkInputs validates the images and the function of a model that edits.
func (s *Simulator) checkInputs(c caller, m model, req dashscope.CreateRequest, now time.Time) Failure {
	named := func(f jobs.Function) bool { return f.Name == req.Input.Function }
	if len(m.catalog.Functions) > 0 && !slices.ContainsFunc(m.catalog.Functions, named) {
		return Failure{"InvalidParameter", "The function is not supported."}
	}
	for _, name := range req.Input.References() {
		if failure := s.checkReference(c, req.Model, name, now); failure.Code != "" {
			return failure
		}
	}
	return Failure{}
}

// checkReference returns the failure of a task whose reference image is unavailable.
func (s *Simulator) checkReference(c caller, model, name string, now time.Time) Failure {
	invalid := Failure{"InvalidURL", "The request URL is invalid, please make sure the url is correct and is an image."}
	if name == "" {
		return Failure{}
	}
	key, stored := strings.CutPrefix(name, "oss://")
	if !stored {
		for _, b := range []byte(name) {
			if b <= ' ' || b > '~' {
				return invalid
			}
		}
		if !strings.HasPrefix(name, "http://") && !strings.HasPrefix(name, "https://") {
			return invalid
		}
		return Failure{}
	}
	up := s.uploads[key]
	if up == nil || !up.belongs(c.account, model) || now.Sub(up.CreatedAt) >= uploadLifetime {
		return invalid
	}
	return up.Failure
}

// addTask queues a recorded task. s.mu must be held.
func (s *Simulator) addTask(t *task) {
	t.model, _ = s.lookupModel(t.Request.Model) // the model existed when the task was created
	t.Request.Protocol = t.model.protocol()
	key := laneKey{t.Account, t.Request.Model}
	if s.lanes[key] == nil {
		s.lanes[key] = &lane{}
	}
	s.lanes[key].add(t, s.concurrency(t.model))
	s.tasks = append(s.tasks, t)
	s.byID[t.ID] = t
	s.byResult[resultName(t.ID)] = t
}
