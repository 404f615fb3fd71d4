package worker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Rules 5 to 8: which of the tasks that nobody owns is an intent's, by what is known.
func TestRules5To8Decide(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	create := func(job string, from, until int) intent {
		return intent{JobID: job, Attempt: 1, From: at(from), Until: at(until), Mark: "mark", Listed: true}
	}
	task := func(id string, made int) dashscope.TaskInfo {
		return dashscope.TaskInfo{TaskID: id, APIKeyID: "ours", GmtCreate: at(made).UnixMilli(), RequestID: "r-" + id}
	}
	of := func(key string, t dashscope.TaskInfo) dashscope.TaskInfo { t.APIKeyID = key; return t }
	me := create("me", 0, 2)
	unlisted, clockless, again := me, me, create("again", -400, -398)
	unlisted.Listed, clockless.Slack, again.NotMade = false, true, true
	for name, c := range map[string]struct {
		me         intent
		others     []intent
		unowned    []dashscope.TaskInfo
		key        string
		request    string
		now        int
		want       verdict
		candidates []string
	}{
		"nothing yet":                              {me: me, key: "ours", now: 299, want: undecided},
		"nothing after the limit":                  {me: me, key: "ours", now: 300, want: noTask},
		"one, not settled":                         {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 20, want: undecided, candidates: []string{"a"}},
		"one":                                      {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 40, want: adoptTask, candidates: []string{"a"}},
		"one that came late":                       {me: me, unowned: []dashscope.TaskInfo{task("a", 100)}, key: "ours", now: 101, want: adoptTask, candidates: []string{"a"}},
		"one, the worker died and came back":       {me: create("me", 0, 290), unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 301, want: undecided, candidates: []string{"a"}},
		"one, a while after it came back":          {me: create("me", 0, 290), unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 320, want: adoptTask, candidates: []string{"a"}},
		"one of another key":                       {me: me, unowned: []dashscope.TaskInfo{of("theirs", task("a", 1))}, key: "ours", now: 300, want: noTask},
		"one, and one of another key":              {me: me, unowned: []dashscope.TaskInfo{task("a", 1), of("theirs", task("b", 1))}, key: "ours", now: 40, want: adoptTask, candidates: []string{"a"}},
		"one, the key is not known":                {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 299, want: undecided, candidates: []string{"a"}},
		"one, the key is never known":              {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 300, want: holdJob, candidates: []string{"a"}},
		"one, no list before":                      {me: unlisted, unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"two":                                      {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a", "b"}},
		"two, not yet held":                        {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, key: "ours", now: 299, want: undecided, candidates: []string{"a", "b"}},
		"two, one named by the answer":             {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, key: "ours", request: "r-b", now: 3, want: adoptTask, candidates: []string{"b"}},
		"named by the answer, key not known":       {me: unlisted, unowned: []dashscope.TaskInfo{task("b", 2)}, request: "r-b", now: 3, want: adoptTask, candidates: []string{"b"}},
		"in time, and late":                        {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 60)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a", "b"}},
		"made hours before: a foreign program":     {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", -7200)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"a foreign program, and none of ours":      {me: me, unowned: []dashscope.TaskInfo{task("b", -7200)}, key: "ours", now: 300, want: noTask},
		"another create's":                         {me: me, others: []intent{create("other", 50, 51)}, unowned: []dashscope.TaskInfo{task("a", 50)}, key: "ours", now: 300, want: noTask},
		"one each":                                 {me: me, others: []intent{create("other", 50, 51)}, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 50)}, key: "ours", now: 100, want: adoptTask, candidates: []string{"a"}},
		"late, and another may have made it":       {me: me, others: []intent{create("other", 50, 51)}, unowned: []dashscope.TaskInfo{task("a", 90)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"late, before the other was sent":          {me: me, others: []intent{create("other", 50, 51)}, unowned: []dashscope.TaskInfo{task("a", 30)}, key: "ours", now: 100, want: adoptTask, candidates: []string{"a"}},
		"two creates at once":                      {me: me, others: []intent{create("other", 1, 3)}, unowned: []dashscope.TaskInfo{task("a", 2)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"one that was bought again may be late":    {me: me, others: []intent{again}, unowned: []dashscope.TaskInfo{task("a", 40)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"one that was bought again, and ours":      {me: me, others: []intent{again}, unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 40, want: adoptTask, candidates: []string{"a"}},
		"made within the clock's slack":            {me: me, unowned: []dashscope.TaskInfo{task("a", -3)}, key: "ours", now: 40, want: adoptTask, candidates: []string{"a"}},
		"made shortly before it was sent":          {me: me, unowned: []dashscope.TaskInfo{task("a", -4)}, key: "ours", now: 300, want: holdJob, candidates: []string{"a"}},
		"made ten minutes before it was sent":      {me: me, unowned: []dashscope.TaskInfo{task("a", -600)}, key: "ours", now: 300, want: noTask},
		"made before it was sent, no clock to say": {me: clockless, unowned: []dashscope.TaskInfo{task("a", -599)}, key: "ours", now: 300, want: adoptTask, candidates: []string{"a"}},
		"older than 23 hours":                      {me: me, key: "ours", now: 23*3600 + 1, want: holdJob},
		"older than 23 hours, with a task":         {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, key: "ours", now: 23*3600 + 1, want: holdJob, candidates: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			view := &listing{unowned: c.unowned, intents: append([]intent{c.me}, c.others...)}
			got, tasks := decide(c.me, view, c.key, c.request, submitLimit, 30*time.Second, at(c.now))
			assert.Equal(t, c.want, got)
			var ids []string
			for _, task := range tasks {
				ids = append(ids, task.TaskID)
			}
			assert.ElementsMatch(t, c.candidates, ids)
		})
	}
}
