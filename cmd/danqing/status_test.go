package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// The time that is left follows the plan first, then what was measured, model by model.
func TestTimeLeft(t *testing.T) {
	t.Parallel()
	r := &batchRun{
		plan:   &plan{models: []*modelPlan{{model: "a", pace: pace{taskTime: 30 * time.Second, slots: 2}}, {model: "b", pace: pace{slots: 1}}}},
		models: map[string]*modelCount{"a": {left: 10}, "b": {}},
	}
	assert.Equal(t, 150*time.Second, r.timeLeft(time.Minute))
	r.models["a"] = &modelCount{left: 10, settled: 27}
	assert.Equal(t, 105*time.Second, r.timeLeft(270*time.Second), "10.5 s each: 27 of 10 s, and 3 of the plan's 15 s")
	r.models["b"] = &modelCount{left: 1}
	assert.Zero(t, r.timeLeft(time.Minute), "nothing is known of a model")
	r.models["b"] = &modelCount{left: 4, settled: 1}
	assert.Equal(t, 1080*time.Second, r.timeLeft(270*time.Second), "the slowest model")
}

func TestStatusTexts(t *testing.T) {
	t.Parallel()
	s := status{
		counts: counts{total: 300, done: 12, failed: 1, held: 2, awaitingBudget: 3, images: 20, microYuan: 3_200_000}, elapsed: 5 * time.Minute,
		left: 80 * time.Minute, atMost: 48_000_000,
		active: []activeJob{{id: "春季.A-17", model: "wanx-v1", prompt: "一只白瓷茶杯", took: 12500 * time.Millisecond}, {id: "b", model: "qwen-image", prompt: "a"}},
	}
	assert.Equal(t, "12 done, 1 failed, 2 held, 3 over budget; 3.20 yuan spent, 48.00 yuan at most", s.outcome())
	assert.Equal(t, "4.0 images/min, about 80 min left", s.speed())
	assert.Equal(t, []string{"  wanx-v1     12 s  春季.A-17: 一只白瓷茶杯", "  qwen-image   0 s  b: a"}, s.activeRows())
	s.simulated = true
	assert.Equal(t, "12 done, 1 failed, 2 held, 3 over budget; simulated: nothing is charged", s.outcome())
}

// Without a terminal a large run prints a line every 30 s, and not one for each job.
func TestPlainProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out)
		p.begin(manyJobs + 1)
		for range 5 * 65 { // 65 s
			p.update(status{counts: counts{total: 200, done: 7}, elapsed: time.Minute})
			<-time.After(statusInterval)
		}
		assert.Equal(t, "danqing: 7/200, 7 done; 0.00 yuan spent, 0.00 yuan at most, 0.0 images/min\n"+
			"danqing: 7/200, 7 done; 0.00 yuan spent, 0.00 yuan at most, 0.0 images/min\n", out.String())
	})
}
