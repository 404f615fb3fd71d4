package account

import (
	"context"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// sharedFrom is the number of tasks from which one page of the task list is read instead of
	// querying each.
	sharedFrom = 5
	// looksPage is the size of that page. It has the newest tasks: the running ones are among
	// them.
	looksPage = 100
	// listLag is by how much the list may be behind a query before it is not used any more,
	// with 1 s for the Date header, which has whole seconds. distrusted is for how long.
	listLag    = 3 * time.Second
	distrusted = time.Hour
)

// Looks shares looks at the running tasks of an account: one page of its task list shows the
// states of all of them at once. How much that list lags behind is not documented, so that it
// only says when to query a task, and that its slot is free, and is not used once it was seen to lag.
type Looks struct {
	mu         sync.Mutex
	pollers    map[string]*Poller // by task ID
	looking    bool
	distrusted time.Time // until then
}

// Poller is a task that is polled.
type Poller struct {
	looks *Looks
	task  string
	// Seen receives what a look has shown: the task's status, "" if nothing.
	Seen chan string
	// running is the service's time of the last look that showed the task running.
	running time.Time
}

// Poll registers a task that is polled. The caller must call Done.
func (l *Looks) Poll(task string) *Poller {
	p := &Poller{looks: l, task: task, Seen: make(chan string, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pollers == nil {
		l.pollers = map[string]*Poller{}
	}
	l.pollers[task] = p
	return p
}

// Done removes the task.
func (p *Poller) Done() {
	p.looks.mu.Lock()
	defer p.looks.mu.Unlock()
	if p.looks.pollers[p.task] == p {
		delete(p.looks.pollers, p.task)
	}
}

// Share looks at all tasks that are polled, unless another call does so just now, and reports
// whether Seen receives something: not if there are few tasks, or the list is not usable.
func (p *Poller) Share(ctx context.Context, client *dashscope.Client) bool {
	l := p.looks
	l.mu.Lock()
	useful, looking := len(l.pollers) >= sharedFrom && time.Now().After(l.distrusted), l.looking
	l.looking = l.looking || useful
	l.mu.Unlock()
	if !useful || looking {
		return useful
	}
	page, err := client.List(ctx, dashscope.ListFilter{PageNo: 1, PageSize: looksPage})
	if err != nil {
		page = &dashscope.Page{}
	}
	l.tell(page)
	return true
}

// tell tells the pollers what a page shows.
func (l *Looks) tell(page *dashscope.Page) {
	status := map[string]string{}
	for _, task := range page.Data {
		status[task.TaskID] = task.Status
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looking = false
	for _, p := range l.pollers {
		if status[p.task] == dashscope.StatusRunning {
			p.running = page.Date
		}
		select {
		case <-p.Seen: // replaced
		default:
		}
		p.Seen <- status[p.task]
	}
}

// Ended tells when a task ended, by the service's clock. The list is not used for an hour if it
// showed the task running long after that.
func (p *Poller) Ended(at time.Time) {
	p.looks.mu.Lock()
	defer p.looks.mu.Unlock()
	if p.running.Sub(at) > listLag {
		p.looks.distrusted = time.Now().Add(distrusted)
	}
}

// Distrust tells that the list showed the task's end and a query does not: the list is not used for
// an hour.
func (p *Poller) Distrust() {
	p.looks.mu.Lock()
	defer p.looks.mu.Unlock()
	p.looks.distrusted = time.Now().Add(distrusted)
}
