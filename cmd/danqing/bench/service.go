package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"image"
	"image/png"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/storage/embedded/inprocess"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator/painter"
)

const (
	basePath    = "/api/v1"
	serviceURL  = "http://dashscope.bench" + basePath
	pictureStep = 50 * time.Millisecond // between two parts of a picture
	// startDelay is the simulator's time from a create to the start of its task. It belongs
	// to the task's duration here: the slot has work.
	startDelay = 25 * time.Millisecond
)

// service is a simulated DashScope at a distance. It records when a task's create was sent and
// when an answer showed that it had ended.
type service struct {
	sim       *simulator.Simulator
	roundTrip time.Duration
	slow      bool // pictures arrive at bytesPerSecond
	server    inprocess.Server

	mu    sync.Mutex
	tasks map[string]*traffic
	lists []time.Time // pages of the task list that were asked for
}

// traffic is what a client sent and received for a task, by its own clock.
type traffic struct {
	sentAt    time.Time // its create
	queries   int
	noticedAt time.Time // the first answer that shows its end; zero until then
}

// newService returns a service whose tasks take as long as their prompts say.
func newService(roundTrip time.Duration, w Workload) *service {
	picture := smallPicture
	if w.bigPictures {
		picture = bigPicture
	}
	return &service{
		sim: &simulator.Simulator{
			Keys: accountKeys(),
			TaskTime: func(_ *rand.Rand, req dashscope.CreateRequest) time.Duration {
				return max(takesOf(req.Input.Prompt)-startDelay, 0)
			},
			Render: func(painter.Picture) []byte { return picture() },
		},
		roundTrip: roundTrip, slow: w.bigPictures, tasks: map[string]*traffic{},
	}
}

// dial connects to the service, as long as a TCP handshake takes.
func (s *service) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if !wait(ctx, s.roundTrip) {
		return nil, context.Cause(ctx)
	}
	return s.server.Dial(ctx, s, slog.New(slog.DiscardHandler))
}

func (s *service) close() error {
	err := s.server.Close()
	if simErr := s.sim.Close(); err == nil {
		err = simErr
	}
	return err
}

// ServeHTTP answers a request half a round trip after it was sent; the answer arrives another
// half later.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sentAt := time.Now()
	wait(r.Context(), s.roundTrip/2)
	a := &answer{header: http.Header{}, status: http.StatusOK}
	s.sim.ServeHTTP(a, r)
	wait(r.Context(), s.roundTrip/2)
	s.record(r, sentAt, a)
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	body := a.body.Bytes()
	if s.slow && len(body) > bytesPerSecond/2 {
		const part = bytesPerSecond * int(pictureStep) / int(time.Second)
		for ; len(body) > part && wait(r.Context(), pictureStep); body = body[part:] {
			_, _ = w.Write(body[:part]) // the client may have gone
		}
	}
	_, _ = w.Write(body) // the client may have gone
}

func (s *service) record(r *http.Request, sentAt time.Time, a *answer) {
	taskID, ofTask := strings.CutPrefix(r.URL.Path, basePath+dashscope.PathTasks+"/")
	list := r.URL.Path == basePath+dashscope.PathTasks
	create := r.URL.Path == basePath+dashscope.PathText2Image
	if !list && !ofTask && !create {
		return
	}
	var got dashscope.TaskResponse
	var page dashscope.ListResponse
	if list {
		_ = json.Unmarshal(a.body.Bytes(), &page) // an error lists nothing
	} else {
		_ = json.Unmarshal(a.body.Bytes(), &got) // an error names no task
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	task := s.tasks[taskID]
	switch {
	case list:
		s.lists = append(s.lists, sentAt)
		for _, shown := range page.Data {
			if task := s.tasks[shown.TaskID]; task != nil && ended(shown.Status) && task.noticedAt.IsZero() {
				task.noticedAt = time.Now()
			}
		}
	case create && got.Output.TaskID != "":
		s.tasks[got.Output.TaskID] = &traffic{sentAt: sentAt}
	case task != nil:
		task.queries++
		if ended(got.Output.TaskStatus) && task.noticedAt.IsZero() {
			task.noticedAt = time.Now()
		}
	}
}

// ended reports whether a task with a status has ended.
func ended(status string) bool {
	return status == dashscope.StatusSucceeded || status == dashscope.StatusFailed || status == dashscope.StatusCanceled || status == dashscope.StatusUnknown
}

// answer records an answer instead of sending it.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// The pictures of all tasks. The big one is noise, which cannot be compressed.
var (
	smallPicture = sync.OnceValue(func() []byte { return encode(64, 64) })
	bigPicture   = sync.OnceValue(func() []byte { return encode(1000, pictureBytes/3000) })
)

func encode(width, height int) []byte {
	picture := image.NewRGBA(image.Rect(0, 0, width, height))
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // noise
	for i := range picture.Pix {
		picture.Pix[i] = byte(rng.Uint32() & 0xff)
		if i%4 == 3 {
			picture.Pix[i] = 0xff // opaque: three bytes a pixel
		}
	}
	var b bytes.Buffer
	_ = (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, picture) // a buffer does not fail
	return b.Bytes()
}

// wait waits, and reports whether the context has not ended before.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
