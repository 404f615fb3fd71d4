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
	accessKeyID, secretAccessKey = "AKIADRILL", "drill-secret" // of a temporary bucket on loopback
	// serviceURL is the same for all workers: a worker may download results from links
	// that were issued to another one. Each worker reaches it through its own proxy.
	serviceURL = "http://dashscope.drill/api/v1"
	// stopTime is the time between SIGTERM and SIGKILL. A graceful stop waits up to ten
	// seconds for images that are being stored.
	stopTime = 20 * time.Second
	// restartPause is the time between the exit of a worker that ended by itself and
	// its restart.
	restartPause = 500 * time.Millisecond
)

// process is one worker: a child process that is restarted whenever it ends.
type process struct {
	name    string
	dir     string
	command []string
	environ []string
	proxy   *proxy // nil on the embedded queue and with Sentinels

	mu           sync.Mutex
	osProcess    *os.Process // nil while no process runs
	ended        chan struct{}
	endExpected  bool          // the drill ended it
	restartDelay time.Duration // delay before the restart
	stopping     bool          // do not restart
	exited       int           // processes that ended by themselves
	stopped      chan struct{} // closed when it has ended for good
	err          error
}

// startWorkers starts the workers: one on the embedded queue, otherwise two.
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
		switch d.Queue {
		case QueueEmbedded:
		case QueueSentinel:
			m.command = []string{"danqing", "worker"}
			m.environ = append(m.environ, "REDIS_URL="+d.replicated.url())
		case QueueRedis, QueueServer:
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
		go d.supervise(context.WithoutCancel(ctx), m) // until stopAll, which waits for it
	}
	return nil
}

func (m *process) data() string { return filepath.Join(m.dir, "data") }

// openWire serves DashScope (as a proxy) and the bucket to one worker and returns the
// base URL.
func (d *drill) openWire(ctx context.Context, m *process, closing func(func() error)) (base string, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("drill: %w", err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // resets are intended
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

// supervise runs a worker's processes one after the other, until it is stopped.
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
		_ = cmd.Wait() // its log says how it ended
		m.mu.Lock()
		m.osProcess = nil
		close(m.ended)
		pause := m.restartDelay
		if !m.endExpected {
			pause = restartPause
			m.exited++
		}
		expected, stopping := m.endExpected, m.stopping
		m.mu.Unlock()
		if stopping {
			return
		}
		if !expected {
			d.recovery.workerEnded(m)
			d.counters.exited()
		}
		wait(ctx, pause)
	}
}

// start starts a worker's next process. It returns nil if the worker is stopping.
func (d *drill) start(ctx context.Context, m *process) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return nil, nil //nolint:nilnil // nothing to start, no error
	}
	cmd := exec.CommandContext(ctx, d.Program) //nolint:gosec // the program itself
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = m.command, m.environ, m.dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	m.osProcess, m.ended, m.endExpected, m.restartDelay = cmd.Process, make(chan struct{}), false, 0
	return cmd, nil
}

// exits waits until a process ends by itself, and reports whether one did.
func (m *process) exits(ctx context.Context, longest time.Duration) bool {
	count := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.exited
	}
	before := count()
	for deadline := time.Now().Add(longest); count() == before; {
		if time.Now().After(deadline) || !wait(ctx, 20*time.Millisecond) {
			return false
		}
	}
	return true
}

// pid returns the ID of the running process, 0 if none runs.
func (m *process) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess == nil {
		return 0
	}
	return m.osProcess.Pid
}

// terminate sends a signal that ends the process and returns a channel that is closed
// when it has ended. The next process starts after delay.
func (m *process) terminate(signal os.Signal, delay time.Duration) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	m.endExpected, m.restartDelay = true, delay
	_ = m.osProcess.Signal(signal) // it may already have ended
	return m.ended
}

// kill sends SIGKILL and waits for the end of the process.
func (d *drill) kill(m *process, delay time.Duration) {
	d.recovery.workerEnded(m)
	<-m.terminate(os.Kill, delay)
}

// replaceWorkers restarts all workers one after the other, as a deployment does. At
// start a worker recovers what dead workers have left.
func (d *drill) replaceWorkers() {
	for _, m := range d.workers {
		d.log.Info("worker replaced", "worker", m.name)
		d.stop(m)
	}
}

// stop stops a worker gracefully and waits until its process has ended.
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

// freeze suspends a process, thaw resumes it.
func (m *process) freeze() { m.signal(freeze) }
func (m *process) thaw()   { m.signal(thaw) }

func (m *process) signal(send func(*os.Process) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.osProcess != nil {
		_ = send(m.osProcess) // it may already have ended
	}
}

// stopAll stops all workers and waits for them.
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

// urlVia returns the queue's URL with a proxy's address.
func (q *queue) urlVia(address net.Addr) string {
	u := url.URL{Scheme: "redis", Host: address.String(), Path: "/" + strconv.Itoa(q.options.DB)}
	if q.options.Password != "" || q.options.Username != "" {
		u.User = url.UserPassword(q.options.Username, q.options.Password)
	}
	return u.String()
}
