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
	// sharedPageSize is the size of that page. It has the newest tasks: the running ones are among
	// them.
	sharedPageSize = 100
	// listLag is by how much the list may be behind a query before it is not used any more,
	// with 1 s for the Date header, which has whole seconds. disableTime is for how long.
	listLag     = 3 * time.Second
	disableTime = time.Hour
)

// SharedList is the task list of an account, read once for all of its running tasks: one page shows
// the status of each. How much that list lags behind is not documented, so that it only says when to
// query a task, and that its slot is free, and is not used once it was seen to lag.
type SharedList struct {
	mu            sync.Mutex
	pollers       map[string]*Poller // by task ID
	refreshing    bool
	disabledUntil time.Time
}

// Poller is a task that is polled.
type Poller struct {
	list *SharedList
	task string
	// Status receives the task's status on each page, "" if the page does not have the task.
	Status chan string
	// running is the service's time of the last page that showed the task running.
	running time.Time
}

// Register adds a task that is polled. The caller must call Done.
func (l *SharedList) Register(task string) *Poller {
	p := &Poller{list: l, task: task, Status: make(chan string, 1)}
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
	p.list.mu.Lock()
	defer p.list.mu.Unlock()
	if p.list.pollers[p.task] == p {
		delete(p.list.pollers, p.task)
	}
}

// Refresh reads a page for all tasks that are polled, unless another call is reading one, and reports
// whether Status receives something: not if there are few tasks, or the list is disabled.
func (p *Poller) Refresh(ctx context.Context, client *dashscope.Client) bool {
	l := p.list
	l.mu.Lock()
	useful, refreshing := len(l.pollers) >= sharedFrom && time.Now().After(l.disabledUntil), l.refreshing
	l.refreshing = l.refreshing || useful
	l.mu.Unlock()
	if !useful || refreshing {
		return useful
	}
	page, err := client.List(ctx, dashscope.ListFilter{PageNo: 1, PageSize: sharedPageSize})
	if err != nil {
		page = &dashscope.Page{}
	}
	l.publish(page)
	return true
}

// publish sends each poller the status that a page shows.
func (l *SharedList) publish(page *dashscope.Page) {
	status := map[string]string{}
	for _, task := range page.Data {
		status[task.TaskID] = task.Status
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refreshing = false
	for _, p := range l.pollers {
		if status[p.task] == dashscope.StatusRunning {
			p.running = page.Date
		}
		select {
		case <-p.Status: // replaced
		default:
		}
		p.Status <- status[p.task]
	}
}

// Ended gets the time of the task's end, by the service's clock. The list is not used for an hour
// if it showed the task running long after that.
func (p *Poller) Ended(at time.Time) {
	p.list.mu.Lock()
	defer p.list.mu.Unlock()
	if p.running.Sub(at) > listLag {
		p.list.disabledUntil = time.Now().Add(disableTime)
	}
}

// Disable stops the use of the list for an hour, after it showed the task's end and a query did not.
func (p *Poller) Disable() {
	p.list.mu.Lock()
	defer p.list.mu.Unlock()
	p.list.disabledUntil = time.Now().Add(disableTime)
}
