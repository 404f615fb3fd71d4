package reconcile

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

// Rules 5 to 8: which unowned task is an intent's, by the known facts.
func TestRules5To8Decide(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	create := func(job string, from, until int) Intent {
		return Intent{JobID: job, Attempt: 1, From: at(from), Until: at(until), KeyFingerprint: "mark", ListWasClear: true, Images: 1, Size: "1024*1024", Prompt: "of " + job}
	}
	task := func(id string, made int) dashscope.TaskInfo {
		return dashscope.TaskInfo{TaskID: id, APIKeyID: "own", GmtCreate: at(made).UnixMilli(), RequestID: "r-" + id}
	}
	of := func(key string, t dashscope.TaskInfo) dashscope.TaskInfo { t.APIKeyID = key; return t }
	me := create("me", 0, 2)
	unlisted, clockless, named, rejecting := me, me, me, me
	unlisted.ListWasClear, clockless.ClockUnknown, named.RequestID, rejecting.Rejected = false, true, "r-b", []string{"a"}
	other := create("other", 80, 81) // sent when no task of the first intent is expected any more
	two, tall := other, other
	two.Images, tall.Size = 2, "720*1280"
	old := create("old", -400, -398)
	refuser := create("other", -101, -99)
	refuser.Rejected = []string{"a"}
	resubmitted := func(i Intent) Intent { i.Resubmitted = true; return i }
	cut := func(i Intent) Intent { i.CutShort = true; return i }
	sometime := func(i Intent) Intent { i.SentLater, i.CutShort = true, true; return i }
	held := func(i Intent) Intent { i.Held = true; return i }
	ended := func(status string, t dashscope.TaskInfo) dashscope.TaskInfo { t.Status = status; return t }
	made := func(images int, size string, prompts ...string) *Output {
		task := &dashscope.Task{}
		task.Output.TaskMetrics = &dashscope.TaskMetrics{Total: images}
		for _, prompt := range prompts {
			task.Output.Results = append(task.Output.Results, dashscope.Result{OrigPrompt: prompt})
		}
		return &Output{Task: task, Size: size}
	}
	for name, c := range map[string]struct {
		me         Intent
		others     []Intent
		unowned    []dashscope.TaskInfo
		unverified []dashscope.TaskInfo
		outputs    map[string]*Output
		kept       string
		noKey      bool
		unproven   bool // the list has not shown a task of the model
		now        int
		want       Decision
		candidates []string
	}{
		"nothing yet":                                   {me: me, now: 329, want: Undecided},
		"nothing after the limit":                       {me: me, now: 330, want: NotCreated},
		"given up at the limit, the list may lag":       {me: create("me", 0, 330), now: 331, want: Undecided},
		"given up at the limit, a while after":          {me: create("me", 0, 330), now: 363, want: NotCreated},
		"one, not settled":                              {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 20, want: Undecided, candidates: []string{"a"}},
		"one":                                           {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 40, want: Adopt, candidates: []string{"a"}},
		"one that was made late":                        {me: me, unowned: []dashscope.TaskInfo{task("a", 100)}, now: 101, want: Adopt, candidates: []string{"a"}},
		"one, the worker crashed and restarted":         {me: create("me", 0, 310), unowned: []dashscope.TaskInfo{task("a", 1)}, now: 331, want: Undecided, candidates: []string{"a"}},
		"one, a while after it came back":               {me: create("me", 0, 310), unowned: []dashscope.TaskInfo{task("a", 1)}, now: 343, want: Adopt, candidates: []string{"a"}},
		"one of another key":                            {me: me, unowned: []dashscope.TaskInfo{of("foreign", task("a", 1))}, now: 330, want: NotCreated},
		"one, and one of another key":                   {me: me, unowned: []dashscope.TaskInfo{task("a", 1), of("foreign", task("b", 1))}, now: 40, want: Adopt, candidates: []string{"a"}},
		"one, the key is not known":                     {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, noKey: true, now: 329, want: Undecided, candidates: []string{"a"}},
		"one, the key is never known":                   {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, noKey: true, now: 330, want: Hold, candidates: []string{"a"}},
		"one, no list before":                           {me: unlisted, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 330, want: Hold, candidates: []string{"a"}},
		"two":                                           {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, now: 330, want: Hold, candidates: []string{"a", "b"}},
		"two, not yet held":                             {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, now: 329, want: Undecided, candidates: []string{"a", "b"}},
		"two, one named by the answer":                  {me: named, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 2)}, now: 3, want: Adopt, candidates: []string{"b"}},
		"one, named by another's answer":                {me: me, others: []Intent{func() Intent { i := other; i.RequestID = "r-a"; return i }()}, unowned: []dashscope.TaskInfo{task("a", 90)}, now: 330, want: NotCreated},
		"in time, and late":                             {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 60)}, now: 330, want: Hold, candidates: []string{"a", "b"}},
		"made hours before: a foreign program's":        {me: me, unowned: []dashscope.TaskInfo{task("a", 1), task("b", -7200)}, now: 330, want: Hold, candidates: []string{"a"}},
		"a foreign program's, and no other":             {me: me, unowned: []dashscope.TaskInfo{task("b", -7200)}, now: 330, want: NotCreated},
		"made within the clock's slack":                 {me: me, unowned: []dashscope.TaskInfo{task("a", -3)}, now: 40, want: Adopt, candidates: []string{"a"}},
		"made shortly before it was sent":               {me: me, unowned: []dashscope.TaskInfo{task("a", -4)}, now: 330, want: Hold, candidates: []string{"a"}},
		"made ten minutes before it was sent":           {me: me, unowned: []dashscope.TaskInfo{task("a", -600)}, now: 330, want: NotCreated},
		"made before it was sent, the clock is unknown": {me: clockless, unowned: []dashscope.TaskInfo{task("a", -599)}, now: 330, want: Adopt, candidates: []string{"a"}},
		"older than 23 hours":                           {me: me, now: 23*3600 + 1, want: Hold},
		"older than 23 hours, with a task":              {me: me, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 23*3600 + 1, want: Hold, candidates: []string{"a"}},

		// Prepared, and sent at an unknown time before it was found, or not at all.
		"sent sometime, nothing yet":         {me: sometime(create("me", 0, 200)), now: 529, want: Undecided},
		"sent sometime, nothing":             {me: sometime(create("me", 0, 200)), now: 530, want: NotCreated},
		"sent sometime, one":                 {me: sometime(create("me", 0, 200)), unowned: []dashscope.TaskInfo{task("a", 150)}, now: 240, want: Adopt, candidates: []string{"a"}},
		"the other was sent sometime":        {me: me, others: []Intent{sometime(create("other", -400, -50))}, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 340, want: Hold, candidates: []string{"a"}},
		"the other was sent sometime before": {me: me, others: []Intent{resubmitted(sometime(create("other", -400, -340)))}, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 40, want: Adopt, candidates: []string{"a"}},

		// Another ambiguous create.
		"before the other was sent":                     {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 30)}, now: 100, want: Adopt, candidates: []string{"a"}},
		"right after the other was sent":                {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 84)}, now: 330, want: NotCreated},
		"right after it was sent, long after the other": {me: other, others: []Intent{me}, unowned: []dashscope.TaskInfo{task("a", 84)}, now: 120, want: Adopt, candidates: []string{"a"}},
		"a while after the other was sent":              {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 120)}, now: 400, want: Undecided, candidates: []string{"a"}},
		"a while after both, the other's limit is over": {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 120)}, now: 410, want: Hold, candidates: []string{"a"}},
		"one each": {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 82)}, now: 100, want: Adopt, candidates: []string{"a"}},
		"its own, and one that both may have made":         {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 120)}, now: 130, want: Adopt, candidates: []string{"a"}},
		"two creates at once":                              {me: me, others: []Intent{create("other", 1, 3)}, unowned: []dashscope.TaskInfo{task("a", 2)}, now: 340, want: Hold, candidates: []string{"a"}},
		"both may have made it, it failed":                 {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{ended("FAILED", task("a", 120))}, now: 410, want: NotCreated},
		"both may have made it, and it has made mine":      {me: me, others: []Intent{two}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "")}, now: 130, want: Adopt, candidates: []string{"a"}},
		"both may have made it, and it has made the other": {me: me, others: []Intent{two}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(2, "")}, now: 330, want: NotCreated},
		"both may have made it, the size is mine":          {me: me, others: []Intent{tall}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "1024*1024")}, now: 130, want: Adopt, candidates: []string{"a"}},
		"both may have made it, the size is the other's":   {me: me, others: []Intent{tall}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "720*1280")}, now: 330, want: NotCreated},
		"both may have made it, the size is of neither":    {me: me, others: []Intent{tall}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "8*8")}, now: 410, want: Hold, candidates: []string{"a"}},
		"both may have made it, the prompt is mine":        {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "", "of me")}, now: 130, want: Adopt, candidates: []string{"a"}},
		"both may have made it, the prompt is the other's": {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(1, "", "of other")}, now: 330, want: NotCreated},

		"right after it was sent, but the service may be processing the other": {me: other, others: []Intent{cut(me)}, unowned: []dashscope.TaskInfo{task("a", 84)}, now: 409, want: Undecided, candidates: []string{"a"}},
		"both may have made it, and it is running":                             {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{ended("RUNNING", task("a", 120))}, now: 410, want: Undecided, candidates: []string{"a"}},
		"both may have made it, and it matches neither":                        {me: me, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 120)}, outputs: map[string]*Output{"a": made(4, "")}, now: 410, want: Hold, candidates: []string{"a"}},
		"likelier, but the sizes will decide":                                  {me: tall, others: []Intent{me}, unowned: []dashscope.TaskInfo{task("a", 84)}, now: 120, want: Undecided, candidates: []string{"a"}},

		// The list is not known to show the model's tasks.
		"unproven, nothing yet":                   {me: me, unproven: true, now: 329, want: Undecided},
		"unproven, nothing after the limit":       {me: me, unproven: true, now: 330, want: Hold},
		"unproven, one":                           {me: me, unproven: true, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 40, want: Undecided, candidates: []string{"a"}},
		"unproven, one, at the limit":             {me: me, unproven: true, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 330, want: Hold, candidates: []string{"a"}},
		"unproven, one named by the answer":       {me: named, unproven: true, unowned: []dashscope.TaskInfo{task("b", 1)}, now: 3, want: Adopt, candidates: []string{"b"}},
		"unproven, another's adoption is running": {me: me, unproven: true, unverified: []dashscope.TaskInfo{task("a", 84)}, now: 400, want: Hold},

		// A settled intent.
		"the other was resubmitted, long ago":           {me: me, others: []Intent{resubmitted(old)}, unowned: []dashscope.TaskInfo{task("a", 40)}, now: 50, want: Adopt, candidates: []string{"a"}},
		"the other was resubmitted, within its limit":   {me: other, others: []Intent{resubmitted(me)}, unowned: []dashscope.TaskInfo{task("a", 120)}, now: 410, want: Hold, candidates: []string{"a"}},
		"an earlier attempt of the same job":            {me: create("me", 340, 342), others: []Intent{resubmitted(create("me", 0, 2))}, unowned: []dashscope.TaskInfo{task("a", 341)}, now: 380, want: Adopt, candidates: []string{"a"}},
		"the other is held":                             {me: other, others: []Intent{held(me)}, unowned: []dashscope.TaskInfo{task("a", 120)}, now: 410, want: Hold, candidates: []string{"a"}},
		"the other is held for this very task":          {me: other, others: []Intent{held(old)}, unowned: []dashscope.TaskInfo{task("a", 120)}, kept: "a", now: 410, want: Hold, candidates: []string{"a"}},
		"the other is held, beyond its limit":           {me: other, others: []Intent{held(old)}, unowned: []dashscope.TaskInfo{task("a", 120)}, now: 130, want: Adopt, candidates: []string{"a"}},
		"the other had rejected it, and is held for it": {me: clockless, others: []Intent{held(refuser)}, unowned: []dashscope.TaskInfo{task("a", -100)}, kept: "a", now: 330, want: Hold, candidates: []string{"a"}},
		"another job has adopted what may be mine":      {me: me, unverified: []dashscope.TaskInfo{task("a", 84)}, now: 400, want: Undecided},
		"rejected, and the other's":                     {me: rejecting, others: []Intent{other}, unowned: []dashscope.TaskInfo{task("a", 84)}, now: 330, want: NotCreated},
		"rejected, and of no other":                     {me: rejecting, unowned: []dashscope.TaskInfo{task("a", 1)}, now: 330, want: Hold, candidates: []string{"a"}},
		"rejected, and one more":                        {me: rejecting, others: []Intent{resubmitted(old)}, unowned: []dashscope.TaskInfo{task("a", 1), task("b", 1)}, now: 100, want: Adopt, candidates: []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			snapshot := &Snapshot{
				Listed: !c.unproven, Unowned: c.unowned, Unverified: c.unverified, Outputs: c.outputs,
				Intents: append([]Intent{c.me}, c.others...), Quarantined: map[string]bool{c.kept: true},
			}
			key := "own"
			if c.noKey {
				key = ""
			}
			got, tasks := Decide(c.me, snapshot, key, TimingOf(SubmitLimit), at(c.now))
			assert.Equal(t, c.want, got)
			var ids []string
			for _, task := range tasks {
				ids = append(ids, task.TaskID)
			}
			assert.ElementsMatch(t, c.candidates, ids)
		})
	}
}
