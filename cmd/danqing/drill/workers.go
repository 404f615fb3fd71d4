package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	bucket "github.com/danqing-queue/danqing/storage/embedded"
)

const (
	accessKeyID, secretAccessKey = "AKIADRILL", "drill-secret" // of a bucket on loopback that is removed
	// serviceURL is the same for all workers, so that each takes results whose links
	// another was given; each reaches it through a proxy of its own.
	serviceURL = "http://dashscope.drill/api/v1"
	// stopTime is what a worker gets between SIGTERM and SIGKILL: a stop waits up to
	// ten seconds for images that are being stored.
	stopTime = 20 * time.Second
	// restartPause lies between the end of a worker that gave up and its next start.
	restartPause = 500 * time.Millisecond
)

// member is one worker: a process that is started again whenever it ends.
type process struct {
	name    string
	dir     string
	command []string
	environ []string
	proxy   *proxy // nil on the embedded queue

	mu      sync.Mutex
	osProcess *os.Process // nil between an end and the next start
	ended   chan struct{}
	endExpected    bool          // its end is the drill's doing
	restartDelay  time.Duration // before the next start
	stopping bool          // no next start
	stopped    chan struct{} // closed when it has left
	err     error
}

// muster starts the workers: one on the embedded queue, else two.
func (d *drill) startWorkers(ctx context.Context, closing func(func() error)) error {
	count := 2
	if d.Queue == QueueEmbedded {
		count = 1
	}
	for i := range count {
		m := &process{name: "worker-" + strconv.Itoa(i+1), stopped: make(chan struct{})}
		m.dir = filepath.Join(d.Dir, m.name)
		if err := os.MkdirAll(m.dir, 0o750); err != nil {
			return fmt.Errorf("drill: %w", err)
		}
		base, err := d.openWire(ctx, m, closing)
		if err != nil {
			return err
		}
		m.command = []string{"danqing", "up", "--listen", "127.0.0.1:0"}
		m.environ = []string{
			"HOME=" + m.dir, "PATH=" + os.Getenv("PATH"), "DANQING_DATA_DIR=" + m.data(), "DANQING_MODELS=" + strings.Join(models(), ","),
			"DASHSCOPE_API_KEY=sk-drill", "DASHSCOPE_HTTP_BASE_URL=" + serviceURL, "HTTP_PROXY=" + base, "DANQING_SUBMIT_LIMIT=" + submitLimit.String(),
			"AWS_ACCESS_KEY_ID=" + accessKeyID, "AWS_SECRET_ACCESS_KEY=" + secretAccessKey, "AWS_REGION=us-east-1",
			"AWS_ENDPOINT_URL_S3=" + base, "DANQING_S3_BUCKET=" + bucket.DefaultBucket,
		}
		if d.Queue != QueueEmbedded {
			if m.proxy, err = d.openProxy(ctx, m); err != nil {
				return err
			}
			closing(m.proxy.close)
			m.command = []string{"danqing", "worker"}
			m.environ = append(m.environ, "REDIS_URL="+d.queue.urlVia(m.proxy.listener.Addr()))
		}
		d.workers = append(d.workers, m)
	}
	for _, m := range d.workers {
		go d.supervise(context.WithoutCancel(ctx), m) // until dismiss, which waits for it
	}
	return nil
}

func (m *process) data() string { return filepath.Join(m.dir, "data") }

// openWire serves DashScope, as a proxy, and the bucket to one worker and returns
// where.
func (d *drill) openWire(ctx context.Context, m *process, closing func(func() error)) (base string, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("drill: %w", err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // what is reset is meant
	front := &http.Server{Handler: &wire{drill: d, worker: m}, ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
	served := make(chan error, 1)
	go func() { served <- front.Serve(listener) }()
	closing(func() error {
		err := front.Close()
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
		return err
	})
	return "http://" + listener.Addr().String(), nil
}

// supervise runs a worker's processes, one after the other, until it leaves.
func (d *drill) supervise(ctx context.Context, m *process) {
	defer close(m.stopped)
	for {
		cmd, err := d.start(ctx, m)
		if err != nil {
			m.mu.Lock()
			m.err = err
			m.mu.Unlock()
			return
		}
		if cmd == nil {
			return
		}
		_ = cmd.Wait() // how it ended is in its log
		m.mu.Lock()
		m.osProcess = nil
		close(m.ended)
		pause := m.restartDelay
		if !m.endExpected {
			pause = restartPause
		}
		told, leaving := m.endExpected, m.stopping
		m.mu.Unlock()
		if leaving {
			return
		}
		if !told {
			d.recovery.workerEnded(m)
			d.counters.exited()
		}
		wait(ctx, pause)
	}
}

// start starts a worker's next process, or returns nil if it leaves.
func (d *drill) start(ctx context.Context, m *process) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has it too
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return nil, nil //nolint:nilnil // nothing to start is no failure
	}
	cmd := exec.CommandContext(ctx, d.Program) //nolint:gosec // the program itself
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = m.command, m.environ, m.dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	m.osProcess, m.ended, m.endExpected, m.restartDelay = cmd.Process, make(chan struct{}), false, 0
	return cmd, nil
}

// pid is that of the running process, 0 for none.
func (m *process) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess == nil {
		return 0
	}
	return m.osProcess.Pid
}

// end sends a signal that a process dies of, and returns what is closed then. The
// next one is started after a while.
func (m *process) terminate(signal os.Signal, absent time.Duration) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	m.endExpected, m.restartDelay = true, absent
	_ = m.osProcess.Signal(signal) // it may have ended by itself
	return m.ended
}

// kill is kill -9.
func (d *drill) kill(m *process, absent time.Duration) {
	d.recovery.workerEnded(m)
	<-m.terminate(os.Kill, absent)
}

// relieve stops all workers as a new release does, one after the other: at a start
// they look for what dead ones have left.
func (d *drill) replaceWorkers() {
	for _, m := range d.workers {
		d.log.Info("worker relieved", "worker", m.name)
		d.stop(m)
	}
}

// stop tells a worker to stop and waits until its process has ended.
func (d *drill) stop(m *process) {
	d.recovery.workerEnded(m)
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-m.terminate(syscall.SIGTERM, 0):
	case <-timer.C:
		d.kill(m, 0)
	}
}

// freeze stops a process where it stands, thaw lets it go on.
func (m *process) freeze() { m.signal(freeze) }
func (m *process) thaw()   { m.signal(thaw) }

func (m *process) signal(send func(*os.Process) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess != nil {
		_ = send(m.osProcess) // it may have been killed
	}
}

// dismiss ends all workers and waits for them.
func (d *drill) stopAll() error {
	var errs []error
	for _, m := range d.workers {
		m.mu.Lock()
		m.stopping = true
		m.mu.Unlock()
		m.thaw()
		m.terminate(syscall.SIGTERM, 0)
	}
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	for _, m := range d.workers {
		select {
		case <-m.stopped:
		case <-timer.C:
			for _, m := range d.workers {
				m.terminate(os.Kill, 0)
			}
			<-m.stopped
		}
		errs = append(errs, m.err)
	}
	return errors.Join(errs...)
}

// through is the queue's URL by way of a proxy.
func (q *queue) urlVia(address net.Addr) string {
	u := url.URL{Scheme: "redis", Host: address.String(), Path: "/" + strconv.Itoa(q.options.DB)}
	if q.options.Password != "" || q.options.Username != "" {
		u.User = url.UserPassword(q.options.Username, q.options.Password)
	}
	return u.String()
}
