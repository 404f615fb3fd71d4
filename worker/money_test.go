package worker_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// A batch spends at most its budget over all its runs, although each begins with an
// empty queue; waiting jobs are made once the budget is raised.
func TestBatchBudgetOverRuns(t *testing.T) {
	bubble(t, &simulator.Simulator{}, func(t *testing.T, s *stack) {
		run := func(budget int64) map[string]jobs.State {
			require.NoError(t, ledger.New(s.redis).SetBatchBudget(t.Context(), "shop", budget))
			states := map[string]jobs.State{}
			for _, id := range []string{"job-1", "job-2", "job-3"} {
				s.enqueue(jobs.Request{ID: id, Batch: "shop", Prompt: "prompt of " + id})
			}
			for _, id := range []string{"job-1", "job-2", "job-3"} {
				rec := s.wait(id)
				states[id] = rec.State
				if rec.State == jobs.StateHeld {
					assert.Equal(t, jobs.CodeBudgetExceeded, rec.Code)
					assert.Contains(t, rec.Message, "nothing was bought: the budget of batch shop is 0.4 yuan: 0.32 are spent and 0 reserved, 0.16 more do not fit")
				}
			}
			return states
		}
		want := map[string]jobs.State{"job-1": jobs.StateSucceeded, "job-2": jobs.StateSucceeded, "job-3": jobs.StateHeld}
		for range 3 {
			require.Equal(t, want, run(400_000))
			s.stop()
			s.start()
		}
		want["job-3"] = jobs.StateSucceeded
		require.Equal(t, want, run(480_000))
		s.requireChargedOnce()
		s.requireLedger()
	})
}

// An invalid budget or price is refused.
func TestAccountMoney(t *testing.T) {
	t.Parallel()
	s := newStack(t, t.TempDir(), &simulator.Simulator{})
	s.prepare()
	defer s.close()
	for text, money := range map[string]worker.Account{
		"daily budget of -1 micro-yuan: allowed: 1 to 1000000000000000": {DailyBudgetMicroYuan: -1},
		"daily budget of 1000000000000001 micro-yuan":                   {DailyBudgetMicroYuan: 1e15 + 1},
		`model "wanx-v9": not in the catalog`:                           {PricesMicroYuan: map[string]int64{"wanx-v9": 1}},
		`model "": not in the catalog`:                                  {PricesMicroYuan: map[string]int64{"": 1}},
		"price of wanx-v1: 0 micro-yuan an image: allowed: 1 to":        {PricesMicroYuan: map[string]int64{"wanx-v1": 0}},
		"price of wanx-v1: 1000000001 micro-yuan an image: allowed: 1":  {PricesMicroYuan: map[string]int64{"wanx-v1": 1e9 + 1}},
	} {
		s.budget, s.prices = money.DailyBudgetMicroYuan, money.PricesMicroYuan
		_, err := worker.New(s.config(s.data))
		require.ErrorContains(t, err, text)
	}
}
