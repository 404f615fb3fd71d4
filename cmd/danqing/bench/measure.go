package bench

import (
	"cmp"
	"slices"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// Row is what was measured of a client with a kind of tasks.
type Row struct {
	// Tasks says how long the tasks took, Lanes is the number of an account's slots.
	Tasks  string `json:"tasks"`
	Lanes  int    `json:"lanes"`
	Client string `json:"client"`
	// Cycles is the number of tasks that were followed by another one on their slot.
	Cycles int `json:"cycles"`
	// Busy is the share of the time that a slot has a task, 0 to 1: of the mean duration of
	// such tasks, which is the same for all clients, and IdleMS, the mean time from the end of
	// a task until the create of the next one arrived.
	Busy   float64 `json:"busy"`
	IdleMS float64 `json:"idle_ms"`
	// Queries is the number of queries a task, pages of the task list among them.
	Queries float64 `json:"queries_per_task"`
	// NoticeMS is the mean time from the end of a task until the client had an answer that
	// shows it, CreateMS from that answer until the client sent the next create.
	NoticeMS float64 `json:"notice_ms"`
	CreateMS float64 `json:"create_ms"`
	// PicturesPerHour is what an account makes, without the tasks that the client has given
	// up: GivenUp of all.
	PicturesPerHour float64 `json:"pictures_per_hour"`
	GivenUp         int     `json:"given_up"`
}

// sums adds up what was measured of the lanes.
type sums struct {
	cycles, noticed, gaps, queries int
	idle, noticeIn, createIn       time.Duration
}

// measure counts what a service has seen until now.
func (s *service) measure(at *stage) sums {
	s.mu.Lock()
	defer s.mu.Unlock()
	byLane := map[[2]string][]simulator.Task{}
	first := time.Now()
	for _, task := range s.sim.Tasks() {
		if s.tasks[task.ID] == nil { // its create is still on the way back
			continue
		}
		lane := [2]string{task.Account, task.Request.Model}
		byLane[lane] = append(byLane[lane], task)
		if task.CreatedAt.Before(first) {
			first = task.CreatedAt
		}
	}
	var all sums
	ended := 0
	for _, lane := range at.lanes {
		for _, account := range at.accounts {
			tasks := byLane[[2]string{account, lane.model}]
			all.addLane(tasks, s.tasks, lane.slots, at.skip)
			for _, task := range tasks {
				if !task.EndedAt.IsZero() {
					ended++
				}
			}
		}
	}
	pages := 0 // a worker reads the list when it starts, too
	for _, sentAt := range s.lists {
		if sentAt.After(first) {
			pages++
		}
	}
	if ended > 0 {
		all.queries += pages * all.cycles / ended
	}
	return all
}

// addLane adds the tasks of a lane. The task that ends as the k-th leaves its slot to the one
// that is created as the k-th after those that the slots began with. The cycles of the first ones are
// skipped.
func (s *sums) addLane(tasks []simulator.Task, traffic map[string]*traffic, slots, skip int) {
	var creates, sent, noticed []time.Time
	var ended []simulator.Task
	for _, task := range tasks {
		creates, sent = append(creates, task.CreatedAt), append(sent, traffic[task.ID].sentAt)
		if !task.EndedAt.IsZero() {
			ended = append(ended, task)
		}
		if at := traffic[task.ID].noticedAt; !at.IsZero() {
			noticed = append(noticed, at)
			s.noticed++
			s.noticeIn += at.Sub(task.EndedAt)
		}
	}
	slices.SortFunc(creates, time.Time.Compare)
	slices.SortFunc(sent, time.Time.Compare)
	slices.SortFunc(noticed, time.Time.Compare)
	slices.SortFunc(ended, func(a, b simulator.Task) int { return cmp.Compare(a.EndedAt.UnixNano(), b.EndedAt.UnixNano()) })
	for k, task := range ended {
		if k+slots >= len(creates) {
			break
		}
		if k < skip {
			continue
		}
		s.cycles++
		s.idle += max(creates[k+slots].Sub(task.EndedAt), 0)
		s.queries += traffic[task.ID].queries
	}
	for k, at := range noticed {
		if k+slots < len(sent) {
			s.gaps++
			s.createIn += max(sent[k+slots].Sub(at), 0)
		}
	}
}

// row returns the means.
func (s sums) row(at *stage, client string, givenUp int) Row {
	r := Row{Tasks: at.workload.Name, Lanes: at.slots, Client: client, Cycles: s.cycles, GivenUp: givenUp}
	if s.cycles == 0 {
		return r
	}
	cycles := float64(s.cycles)
	idle, mean := s.idle/time.Duration(s.cycles), at.workload.mean()
	r.Busy = float64(mean) / float64(mean+idle)
	r.IdleMS = milliseconds(s.idle) / cycles
	r.Queries = float64(s.queries) / cycles
	r.NoticeMS = milliseconds(s.noticeIn) / float64(max(s.noticed, 1))
	r.CreateMS = milliseconds(s.createIn) / float64(max(s.gaps, 1))
	kept := max(1-float64(givenUp)/cycles, 0)
	r.PicturesPerHour = float64(at.slots) * time.Hour.Seconds() / (mean + idle).Seconds() * kept
	return r
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
