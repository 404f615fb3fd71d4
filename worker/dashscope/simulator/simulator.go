package simulator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	randv2 "math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// Limits and times of the service. Each field of [Simulator] that is zero takes
// one of these.
const (
	defaultQueriesPerSecond = 20                    // manage-asynchronous-tasks page, per account
	policiesPerSecond       = 100                   // get-temporary-file-url page, per account and model
	scheduleDelay           = 25 * time.Millisecond // text-to-image reference: 23 ms from submit to start
	rejectTime              = 50 * time.Millisecond // how long a task runs that fails on its parameters; assumed
	taskTimeout             = 3 * time.Hour         // error-code page: InternalError.Timeout
	defaultAccount          = "main"
)

// A Simulator answers DashScope's asynchronous image API as an [http.Handler],
// or in the process through [Simulator.DialContext]. Its zero value is ready to
// use. Set its fields before the first use and do not copy it afterwards.
//
// Its methods may be called from many goroutines.
type Simulator struct {
	// Keys names the accounts by their API keys. Nil: every non-empty key is
	// good and belongs to the account "main".
	Keys map[string]Key
	// Region is where the service is: it decides the models that exist, their
	// spelling and their prices. "" means cn-beijing; ap-southeast-1 is known
	// too, and no other region has models here.
	Region string
	// SubmitsPerSecond is how many creates an account may send within any second
	// for a model, whichever. 0 means the model's own figure (2 for wanx-v1);
	// below 0, no limit.
	SubmitsPerSecond int
	// QueriesPerSecond is how many queries, lists and cancels together an
	// account may send within any second. 0 means 20; below 0, no limit.
	QueriesPerSecond int
	// Concurrency is how many tasks of an account run at once for a model,
	// whichever. 0 or less means the model's own figure (1 for wanx-v1).
	Concurrency int
	// TaskTime decides how long a task runs. It draws on rng only, which is
	// seeded by Seed and the task's ordinal. Nil means a log-normal around the
	// times that the pages show, 27 s for wanx-v1, and 3 to 4 s more where the
	// prompt is rewritten. See [Between].
	TaskTime func(rng *randv2.Rand, req dashscope.CreateRequest) time.Duration
	// Seed seeds the tasks' times, the seeds of tasks that name none, and the
	// faults with a Probability.
	Seed uint64
	// ListLag is how long after its creation a task appears in the list.
	ListLag time.Duration
	// ResultLifetime is how long after the end of its task a result URL lives.
	// 0 means 24 h.
	ResultLifetime time.Duration
	// StateDir is a folder where tasks and uploads are kept, so that they
	// survive a kill -9 of the process: DashScope goes on while its client is
	// dead. Empty means memory only. One Simulator at a time may use a folder.
	StateDir string
	// Render paints a result. Nil means [painter.Paint].
	Render func(painter.Picture) []byte
	// Outcome decides how a task ends that the service accepted. Nil means that
	// every image succeeds. It is asked once, when the task is made.
	Outcome func(req dashscope.CreateRequest) Outcome
	// Logger gets a line for every task made, cancelled or refused. Nil means
	// none.
	Logger *slog.Logger

	once    sync.Once
	loadErr error
	log     *slog.Logger
	inner   inProcess

	mu       sync.Mutex
	tasks    []*task          // in the order of their creation
	byID     map[string]*task // by task_id
	byResult map[string]*task // by the name in its result URLs
	lanes    map[laneKey]*lane
	uploads  map[string]*upload // by object key
	windows  map[windowKey]*window
	revoked  map[string]bool // API keys
	faults   []*scripted
	faultRNG *randv2.Rand
	journal  *os.File
	counts   counts
}

// Key is what an API key stands for.
type Key struct {
	// Account is the main account that the key belongs to. Limits and tasks
	// are the account's, whatever the key. Empty means "main".
	Account string
	// ID is the key's api_key_id in the list. Empty means one derived from the
	// key.
	ID string
}

// Outcome is how a task ends. The zero value is success of every image.
type Outcome struct {
	// Code and Message make the whole task FAILED if Code is set, for example
	// DataInspectionFailed or InternalError.Timeout.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// Images holds the images that fail, by their index from 0. The task still
	// is SUCCEEDED as long as one image is good.
	Images map[int]Failure `json:"images,omitempty"`
}

// Failure is why there is no image.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Between returns a TaskTime for [Simulator] that is evenly spread over
// [shortest, longest]. It panics when used if longest is the lesser.
func Between(shortest, longest time.Duration) func(*randv2.Rand, dashscope.CreateRequest) time.Duration {
	return func(rng *randv2.Rand, _ dashscope.CreateRequest) time.Duration {
		return shortest + time.Duration(rng.Int64N(int64(longest-shortest)+1))
	}
}

// Load reads what StateDir holds. The first use of the simulator does it too;
// then, if it fails, every request is answered with HTTP 500.
func (s *Simulator) Load() error {
	s.once.Do(func() {
		s.byID = map[string]*task{}
		s.byResult = map[string]*task{}
		s.lanes = map[laneKey]*lane{}
		s.uploads = map[string]*upload{}
		s.windows = map[windowKey]*window{}
		s.faultRNG = s.random(math.MaxUint64)
		s.counts.requests = map[Route]int{}
		s.log = s.Logger
		if s.log == nil {
			s.log = slog.New(slog.DiscardHandler)
		}
		if s.StateDir != "" {
			s.loadErr = s.restore()
		}
	})
	return s.loadErr
}

// Close ends the in-process server, if one was started by
// [Simulator.DialContext], waits for its goroutines, and closes the files of
// StateDir. The simulator cannot be used any more.
func (s *Simulator) Close() error {
	err := s.inner.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		err = errors.Join(err, s.journal.Close())
		s.journal = nil
	}
	return err
}

// Script adds faults. Each request meets the first fault that is due for it;
// see [Fault].
func (s *Simulator) Script(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.faults = append(s.faults, &scripted{Fault: f})
	}
}

// random is a source of its own for every stream, so that what one task draws
// does not depend on the others or on a restart.
func (s *Simulator) random(stream uint64) *randv2.Rand {
	return randv2.New(randv2.NewPCG(s.Seed, stream)) //nolint:gosec // durations and pictures, repeatable by a seed
}

// Revoke makes an API key bad from now on: every API call with it is refused
// with 401 InvalidApiKey. The account's tasks go on, its result URLs stay good,
// and its other keys see both. StateDir does not keep it.
func (s *Simulator) Revoke(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked == nil {
		s.revoked = map[string]bool{}
	}
	s.revoked[key] = true
}

// Restore makes a revoked key good again.
func (s *Simulator) Restore(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.revoked, key)
}

// concurrency is how many tasks of a model run at once; at least 1.
func (s *Simulator) concurrency(m model) int {
	if s.Concurrency > 0 {
		return s.Concurrency
	}
	return max(m.concurrency, 1)
}

// region is the simulator's, as hosts and the list spell it.
func (s *Simulator) region() string {
	if s.Region == "" {
		return dashscope.RegionBeijing
	}
	return s.Region
}

func (s *Simulator) resultLifetime() time.Duration {
	if s.ResultLifetime == 0 {
		return dashscope.TaskLifetime
	}
	return s.ResultLifetime
}

// caller is who sent a request.
type caller struct {
	account, keyID string
}

// caller finds the account of a request's bearer key.
func (s *Simulator) caller(r *http.Request) (caller, error) {
	key := bearer(r)
	if key == "" {
		return caller{}, &refusal{http.StatusUnauthorized, "InvalidApiKey", "No API-key provided."}
	}
	k, known := s.Keys[key]
	s.mu.Lock()
	revoked := s.revoked[key]
	s.mu.Unlock()
	if s.Keys != nil && !known || revoked {
		return caller{}, &refusal{http.StatusUnauthorized, "InvalidApiKey", "Invalid API-key provided."}
	}
	if k.Account == "" {
		k.Account = defaultAccount
	}
	if k.ID == "" {
		k.ID = digits("key", key, 9)
	}
	return caller{account: k.Account, keyID: k.ID}, nil
}

// wallClock is the present as it is recorded: it reads the same after a restart.
func wallClock() time.Time { return time.Now().UTC().Round(0) }

// newID returns a random UUID, the form of task and request IDs.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return uuid(b)
}

// uuid formats b as a version 4 UUID.
func uuid(b [16]byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// hash binds parts together, each apart from the next.
func hash(parts ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p) // never fails
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// digits derives a decimal number of n digits, as the service's account and key
// IDs are.
func digits(kind, name string, n int) string {
	sum := hash("simulator", kind, name)
	v := binary.BigEndian.Uint64(sum[:]) % uint64(math.Pow10(n-1)*9)
	return fmt.Sprint(v + uint64(math.Pow10(n-1)))
}
