package simulator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/storage/embedded/inprocess"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

// Limits and times of the service, the defaults of the fields of [Simulator].
const (
	defaultQueriesPerSecond = 20                    // manage-asynchronous-tasks page, per account
	policiesPerSecond       = 100                   // get-temporary-file-url page, per account and model
	scheduleDelay           = 25 * time.Millisecond // text-to-image reference: 23 ms from submit to start
	rejectTime              = 50 * time.Millisecond // run time of a task with invalid parameters; assumed
	taskTimeout             = 3 * time.Hour         // error-code page: InternalError.Timeout
	defaultAccount          = "main"
)

// A Simulator serves DashScope's asynchronous image API as an [http.Handler], or in the
// process through [Simulator.DialContext]. Its zero value is ready to use. Set its
// fields before the first use and do not copy it afterwards.
//
// Its methods are safe for concurrent use.
type Simulator struct {
	// Keys maps API keys to accounts. nil: every non-empty key is valid and belongs to
	// the account "main".
	Keys map[string]Key
	// Region determines the available models, their spelling and their prices. "" means
	// cn-beijing; ap-southeast-1 is supported too, and no other region has models here.
	Region string
	// SubmitsPerSecond is how many creates an account may send within any second, for
	// each model. 0 means the model's own limit (2 for wanx-v1); a negative number
	// means no limit.
	SubmitsPerSecond int
	// QueriesPerSecond is how many queries, lists and cancels together an account may
	// send within any second. 0 means 20; a negative number means no limit.
	QueriesPerSecond int
	// Concurrency is how many tasks of an account run at once, for each model. 0 or
	// less means the model's own limit (1 for wanx-v1).
	Concurrency int
	// TaskTime returns how long a task runs. It must draw only on rng, which is seeded
	// by Seed and the task's ordinal. nil means a log-normal distribution around the
	// documented times, 27 s for wanx-v1, and 3 to 4 s more if the prompt is rewritten.
	// See [Between].
	TaskTime func(rng *randv2.Rand, req dashscope.CreateRequest) time.Duration
	// Seed seeds the tasks' times, the seeds of tasks without one, and the faults with
	// a Probability.
	Seed uint64
	// ListLag is how long after its creation a task appears in the list.
	ListLag time.Duration
	// Unlisted are the protocols whose tasks the list never shows. Whether the service's list
	// shows those of other paths than text2image is not known.
	Unlisted []dashscope.Protocol
	// ResultLifetime is how long after the end of its task a result URL is valid. 0
	// means 24 h.
	ResultLifetime time.Duration
	// StateDir is a directory for tasks and uploads, so that they survive a kill -9 of
	// the process, as DashScope's do. Empty means memory only. Only one Simulator at a
	// time may use a directory.
	StateDir string
	// Render paints a result. nil means [painter.Paint]; [painter.PaintJPEG] and
	// [painter.PaintWebP] make other formats. Its URL and its Content-Type are those of a PNG
	// whatever it is.
	Render func(painter.Picture) []byte
	// Outcome returns the outcome of a task that the service accepted. nil means that
	// every image succeeds. It is called once, when the task is created.
	Outcome func(req dashscope.CreateRequest) Outcome
	// Logger receives a line for every task created or canceled and every request
	// rejected. nil logs nothing.
	Logger *slog.Logger

	once    sync.Once
	loadErr error
	log     *slog.Logger
	inner   inprocess.Server

	mu       sync.Mutex
	tasks    []*task          // by creation
	byID     map[string]*task // by task_id
	byResult map[string]*task // by the name in its result URLs
	lanes    map[laneKey]*lane
	uploads  map[string]*upload // by object key
	windows  map[windowKey]*window
	revoked  map[string]bool      // API keys
	retired  map[string]time.Time // models by their spelling, and when
	faults   []*scripted
	faultRNG *randv2.Rand
	troubles []troubleShare
	prompted map[string]int // how often a prompt was given its trouble
	journal  *os.File
	counts   counts
}

// Key describes an API key.
type Key struct {
	// Account is the main account of the key. Limits and tasks are the account's. Empty
	// means "main".
	Account string
	// ID is the key's api_key_id in the list. Empty means an ID derived from the key.
	ID string
}

// Outcome is the outcome of a task. In the zero value every image succeeds.
type Outcome struct {
	// Code and Message make the whole task FAILED if Code is set, for example
	// DataInspectionFailed or InternalError.Timeout.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// Images holds the images that fail, by their index from 0. The task is still
	// SUCCEEDED if at least one image succeeds.
	Images map[int]Failure `json:"images,omitempty"`
}

// Failure is why an image was not created.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Between returns a TaskTime for [Simulator], uniformly distributed over [shortest,
// longest]. The returned function panics if longest is less than shortest.
func Between(shortest, longest time.Duration) func(*randv2.Rand, dashscope.CreateRequest) time.Duration {
	return func(rng *randv2.Rand, _ dashscope.CreateRequest) time.Duration {
		return shortest + time.Duration(rng.Int64N(int64(longest-shortest)+1))
	}
}

// Load reads StateDir. The first use of the simulator does so too; if it fails then,
// every request is answered with HTTP 500.
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

// DialContext connects to the simulator in the process, without a socket: an
// [http.Transport] with this dialer uses HTTP/1.1, also inside a testing/synctest
// bubble. Every host name and port is accepted; there is no TLS, so base URLs must be
// http. It starts an HTTP server, which [Simulator.Close] ends. After Close it fails
// with [net.ErrClosed].
func (s *Simulator) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := s.Load(); err != nil {
		return nil, err
	}
	return s.inner.Dial(ctx, s, s.log)
}

// Close ends the in-process server, if [Simulator.DialContext] started one, waits for
// its goroutines, and closes the files of StateDir. The simulator cannot be used
// afterwards.
func (s *Simulator) Close() error {
	err := s.inner.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		err = errors.Join(err, s.journal.Close())
		s.journal = nil
	}
	return err
}

// Script adds faults. Each request gets the first fault that applies to it; see
// [Fault].
func (s *Simulator) Script(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		s.faults = append(s.faults, &scripted{Fault: f})
	}
}

// random returns a separate random source for every stream, so that one task's values
// depend neither on other tasks nor on a restart.
func (s *Simulator) random(stream uint64) *randv2.Rand {
	return randv2.New(randv2.NewPCG(s.Seed, stream)) //nolint:gosec // durations and pictures, repeatable by a seed
}

// Revoke invalidates an API key: every API call with it is rejected with 401
// InvalidApiKey. The account's tasks continue, its result URLs stay valid, and its
// other keys can use both. StateDir does not store it.
func (s *Simulator) Revoke(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked == nil {
		s.revoked = map[string]bool{}
	}
	s.revoked[key] = true
}

// Restore makes a revoked key valid again.
func (s *Simulator) Restore(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.revoked, key)
}

// concurrency returns how many tasks of a model run at once; at least 1.
func (s *Simulator) concurrency(m model) int {
	if s.Concurrency > 0 {
		return s.Concurrency
	}
	return max(m.concurrency, 1)
}

// region returns the simulator's region, as spelled in hosts and the list.
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

// caller is the sender of a request.
type caller struct {
	account, keyID string
}

// caller returns the account of a request's API key.
func (s *Simulator) caller(r *http.Request) (caller, error) {
	key := bearer(r)
	if key == "" {
		return caller{}, &apiError{http.StatusUnauthorized, "InvalidApiKey", "No API-key provided."}
	}
	k, known := s.Keys[key]
	s.mu.Lock()
	revoked := s.revoked[key]
	s.mu.Unlock()
	if s.Keys != nil && !known || revoked {
		return caller{}, &apiError{http.StatusUnauthorized, "InvalidApiKey", "Invalid API-key provided."}
	}
	if k.Account == "" {
		k.Account = defaultAccount
	}
	if k.ID == "" {
		k.ID = digits("key", key, 9)
	}
	return caller{account: k.Account, keyID: k.ID}, nil
}

// wallClock returns the current time in the precision in which it is recorded, so that
// a restart does not change it.
func wallClock() time.Time { return time.Now().UTC().Round(0) }

// newID returns a random UUID, the format of task and request IDs.
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

// hash returns a SHA-256 over parts, each preceded by its length.
func hash(parts ...string) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p) // never fails
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// digits derives a decimal number of n digits, the format of the service's account and
// key IDs.
func digits(kind, name string, n int) string {
	sum := hash("simulator", kind, name)
	v := binary.BigEndian.Uint64(sum[:]) % uint64(math.Pow10(n-1)*9)
	return fmt.Sprint(v + uint64(math.Pow10(n-1)))
}
