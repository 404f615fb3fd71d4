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
type member struct {
	name    string
	dir     string
	command []string
	environ []string
	proxy   *proxy // nil on the embedded queue

	mu      sync.Mutex
	process *os.Process // nil between an end and the next start
	ended   chan struct{}
	told    bool          // its end is the drill's doing
	absent  time.Duration // before the next start
	leaving bool          // no next start
	gone    chan struct{} // closed when it has left
	err     error
}

// muster starts the workers: one on the embedded queue, else two.
func (d *drill) muster(ctx context.Context, closing func(func() error)) error {
	count := 2
	if d.Queue == QueueEmbedded {
		count = 1
	}
	for i := range count {
		m := &member{name: "worker-" + strconv.Itoa(i+1), gone: make(chan struct{})}
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
			m.environ = append(m.environ, "REDIS_URL="+d.queue.through(m.proxy.listener.Addr()))
		}
		d.crew = append(d.crew, m)
	}
	for _, m := range d.crew {
		go d.supervise(context.WithoutCancel(ctx), m) // until dismiss, which waits for it
	}
	return nil
}

func (m *member) data() string { return filepath.Join(m.dir, "data") }

// openWire serves DashScope, as a proxy, and the bucket to one worker and returns
// where.
func (d *drill) openWire(ctx context.Context, m *member, closing func(func() error)) (base string, err error) {
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
func (d *drill) supervise(ctx context.Context, m *member) {
	defer close(m.gone)
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
		m.process = nil
		close(m.ended)
		pause := m.absent
		if !m.told {
			pause = restartPause
		}
		told, leaving := m.told, m.leaving
		m.mu.Unlock()
		if leaving {
			return
		}
		if !told {
			d.recovery.ended(m)
			d.tally.exited()
		}
		wait(ctx, pause)
	}
}

// start starts a worker's next process, or returns nil if it leaves.
func (d *drill) start(ctx context.Context, m *member) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has it too
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaving {
		return nil, nil //nolint:nilnil // nothing to start is no failure
	}
	cmd := exec.CommandContext(ctx, d.Program) //nolint:gosec // the program itself
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = m.command, m.environ, m.dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	m.process, m.ended, m.told, m.absent = cmd.Process, make(chan struct{}), false, 0
	return cmd, nil
}

// pid is that of the running process, 0 for none.
func (m *member) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		return 0
	}
	return m.process.Pid
}

// end sends a signal that a process dies of, and returns what is closed then. The
// next one is started after a while.
func (m *member) end(signal os.Signal, absent time.Duration) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	m.told, m.absent = true, absent
	_ = m.process.Signal(signal) // it may have ended by itself
	return m.ended
}

// kill is kill -9.
func (d *drill) kill(m *member, absent time.Duration) {
	d.recovery.ended(m)
	<-m.end(os.Kill, absent)
}

// relieve stops all workers as a new release does, one after the other: at a start
// they look for what dead ones have left.
func (d *drill) relieve() {
	for _, m := range d.crew {
		d.diary.Info("worker relieved", "worker", m.name)
		d.stop(m)
	}
}

// stop tells a worker to stop and waits until its process has ended.
func (d *drill) stop(m *member) {
	d.recovery.ended(m)
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-m.end(syscall.SIGTERM, 0):
	case <-timer.C:
		d.kill(m, 0)
	}
}

// freeze stops a process where it stands, thaw lets it go on.
func (m *member) freeze() { m.signal(freeze) }
func (m *member) thaw()   { m.signal(thaw) }

func (m *member) signal(send func(*os.Process) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		_ = send(m.process) // it may have been killed
	}
}

// dismiss ends all workers and waits for them.
func (d *drill) dismiss() error {
	var errs []error
	for _, m := range d.crew {
		m.mu.Lock()
		m.leaving = true
		m.mu.Unlock()
		m.thaw()
		m.end(syscall.SIGTERM, 0)
	}
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	for _, m := range d.crew {
		select {
		case <-m.gone:
		case <-timer.C:
			for _, m := range d.crew {
				m.end(os.Kill, 0)
			}
			<-m.gone
		}
		errs = append(errs, m.err)
	}
	return errors.Join(errs...)
}

// through is the queue's URL by way of a proxy.
func (q *queue) through(address net.Addr) string {
	u := url.URL{Scheme: "redis", Host: address.String(), Path: "/" + strconv.Itoa(q.options.DB)}
	if q.options.Password != "" || q.options.Username != "" {
		u.User = url.UserPassword(q.options.Username, q.options.Password)
	}
	return u.String()
}
