package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// The task that ends as the k-th is followed by the k-th create after those that the slots
// began with; what has no follower yet is not counted.
func TestMeasureFollowsSlots(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	seen := map[string]*traffic{}
	task := func(id string, created, ended int, noticed int) simulator.Task {
		seen[id] = &traffic{sentAt: at(created - 10), queries: 3}
		if noticed > 0 {
			seen[id].noticedAt = at(noticed)
		}
		task := simulator.Task{ID: id, CreatedAt: at(created), Request: dashscope.CreateRequest{Input: dashscope.Input{Prompt: promptOf(time.Second)}}}
		if ended > 0 {
			task.EndedAt = at(ended)
		}
		return task
	}
	var s sums
	s.addLane([]simulator.Task{
		task("a", 0, 1000, 1050), task("b", 100, 1100, 1250), // two slots
		task("c", 1080, 2080, 2100), // after a
		task("d", 1300, 0, 0),       // after b
	}, seen, 2, 0)
	assert.Equal(t, sums{
		cycles: 2, noticed: 3, gaps: 2, queries: 6, idle: 280 * time.Millisecond,
		noticeIn: 220 * time.Millisecond, createIn: (20 + 40) * time.Millisecond,
	}, s)
	row := s.row(&stage{workload: Workload{Name: "1 s", takes: uniform(1, 0)}, slots: 2}, clientDanqing, 1)
	assert.InDelta(t, 2.0/2.28, row.Busy, 1e-9)
	assert.InDelta(t, 2*3600/1.14/2, row.PicturesPerHour, 1e-6, "one of two was given up")
	assert.Zero(t, sums{}.row(&stage{slots: 1}, clientDanqing, 0).Busy, "nothing was measured")
}

// All models together run twenty tasks of an account at once, and fewer lanes take fewer models.
func TestLanes(t *testing.T) {
	t.Parallel()
	for _, count := range []int{1, 2, mostSlots} {
		sum := 0
		for _, lane := range lanesOf(count) {
			sum += lane.slots
		}
		assert.Equal(t, count, sum)
	}
	assert.Equal(t, []slots{{"wanx-v1", 1}}, lanesOf(1))
	_, err := Run(t.Context(), Config{Lanes: []int{21}})
	var lanes *LanesError
	require.ErrorAs(t, err, &lanes)
}

// A table has at most 80 columns, and a plot is well-formed XML.
func TestReport(t *testing.T) {
	t.Parallel()
	r := &Report{RoundTripMS: 30, Seconds: 120}
	for _, lanes := range []int{1, mostSlots} {
		for _, w := range workloads(lanes) {
			for i, client := range order() {
				r.Rows = append(r.Rows, Row{
					Tasks: w.Name, Lanes: lanes, Client: client, Cycles: 100 * i, Busy: 1, Queries: 109.5, IdleMS: 31_000, NoticeMS: 30_000, CreateMS: 1000.5, PicturesPerHour: 72_000, GivenUp: 100,
				})
			}
		}
	}
	var b strings.Builder
	require.NoError(t, r.Print(&b))
	for line := range strings.Lines(b.String()) {
		assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), 80, line)
	}
	decoder := xml.NewDecoder(strings.NewReader(string(r.Plot())))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}
