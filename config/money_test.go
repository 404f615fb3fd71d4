package config

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A command asks above 10 yuan unless it is told otherwise; 0 is an amount too.
func TestConfirmAbove(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"": 10_000_000, "0": 0, "0.5": 500_000} {
		c, err := load(map[string]string{"DANQING_CONFIRM_ABOVE": text})
		require.NoError(t, err)
		assert.Equal(t, want, c.ConfirmAboveMicroYuan)
	}
	_, err := load(map[string]string{"DANQING_CONFIRM_ABOVE": "never"})
	require.ErrorContains(t, err, `DANQING_CONFIRM_ABOVE "never": must be an amount of yuan`)
}

// Budgets and prices are exact, because they are compared with a bill.
func TestMoney(t *testing.T) {
	t.Parallel()
	c, err := load(map[string]string{"DANQING_DAILY_BUDGET": " 49.999999\n", "DANQING_PRICES": " wanx-v1 = 0.123456 , qwen-image=0.2"})
	require.NoError(t, err)
	assert.Equal(t, int64(49_999_999), c.Accounts[0].DailyBudgetMicroYuan)
	assert.Equal(t, map[string]int64{"wanx-v1": 123_456, "qwen-image": 200_000}, c.Accounts[0].PricesMicroYuan)
	assert.Equal(t, []Lane{{Model: "wanx-v1", Concurrency: 1}}, c.Accounts[0].Lanes, "a price adds no lane")

	c, err = loadFile(t, `
accounts:
  - {name: a, api_key_env: KEY_A, daily_budget: 50, prices: {wanx-v1: 0.10, wan2.2-t2i-flash: 0.07}}
  - {name: b, api_key_env: KEY_B, daily_budget: , prices: ~}
`, nil)
	require.NoError(t, err)
	assert.Equal(t, int64(50_000_000), c.Accounts[0].DailyBudgetMicroYuan)
	assert.Equal(t, map[string]int64{"wanx-v1": 100_000, "wan2.2-t2i-flash": 70_000}, c.Accounts[0].PricesMicroYuan)
	assert.Zero(t, c.Accounts[1].DailyBudgetMicroYuan)
	assert.Empty(t, c.Accounts[1].PricesMicroYuan)
}

func TestMoneyProblems(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ variable, value, text string }{
		{"DANQING_DAILY_BUDGET", "0", `"0": must be more than 0`},
		{"DANQING_DAILY_BUDGET", "0.000000", "must be more than 0"},
		{"DANQING_DAILY_BUDGET", "-5", `"-5": must be an amount of yuan such as 12 or 0.16`},
		{"DANQING_DAILY_BUDGET", "5 yuan", "must be an amount of yuan"},
		{"DANQING_DAILY_BUDGET", "0.0000001", "with up to six after the point"},
		{"DANQING_PRICES", "0.12", `"0.12": write MODEL=YUAN,MODEL=YUAN, as in wanx-v1=0.12`},
		{"DANQING_PRICES", "wanx-v1=0.12,", `"": write MODEL=YUAN`},
		{"DANQING_PRICES", "=0.12", `"=0.12" has no model`},
		{"DANQING_PRICES", "wanx-v1=", `"": must be an amount of yuan`},
		{"DANQING_PRICES", "wanx-v1=0", `"0": must be more than 0`},
		{"DANQING_PRICES", "wanx-v1=0.1,wanx-v1=0.2", "has two prices of wanx-v1: leave one out"},
		{"DANQING_PRICES", "wanx-v9=0.1", "allowed: wanx-v1"},
	} {
		_, err := load(map[string]string{tc.variable: tc.value})
		var e *Error
		require.ErrorAs(t, err, &e, "%v", tc)
		require.Len(t, e.Problems, 1, "%v", err)
		assert.Equal(t, tc.variable, e.Problems[0].Variable)
		assert.Contains(t, e.Problems[0].Text, tc.text)
	}
	_, err := load(map[string]string{"DANQING_PRICES": "wanx-v1=0.1", "DANQING_MODELS": "wanx2.1-t2i-plus", "DASHSCOPE_HTTP_BASE_URL": "https://dashscope-intl.aliyuncs.com/api/v1"})
	require.ErrorContains(t, err, `DANQING_PRICES "wanx-v1" is not offered in the account's region`)

	const good = "accounts:\n- name: a\n  api_key_env: KEY_A\n"
	for _, tc := range []struct{ file, at, text string }{
		{good + "  daily_budget: 0\n", "4: daily_budget", "must be more than 0"},
		{good + "  daily_budget: 1e3\n", "4: daily_budget", `"1e3": must be an amount of yuan`},
		{good + "  daily_budget: [5]\n", "4: daily_budget", "must be a single value"},
		{good + "  dayly_budget: 5\n", "4: dayly_budget", "did you mean daily_budget?"},
		{good + "  prices: 0.1\n", "4: prices", "must map models to prices in yuan, as in wanx-v1: 0.12"},
		{good + "  prices: {}\n", "4: prices", "must map models to prices in yuan"},
		{good + "  prices:\n    wanx-v1:\n", "5: wanx-v1", `"": must be an amount of yuan`},
		{good + "  prices:\n    wanx-v1: .1\n", "5: wanx-v1", `".1": must be an amount of yuan`},
		{good + "  prices:\n    wanx-v2: 0.1\n", "5: wanx-v2", `did you mean "wanx-v1"?`},
		{good + "  prices:\n    wanx-v1: 0.1\n    wanx-v1: 0.1\n", "6: wanx-v1", "is a duplicate of line 5"},
		{good + "  prices:\n    ? ''\n    : 0.1\n", "5: ", `"=0.1" has no model`},
	} {
		_, err := loadFile(t, tc.file, nil)
		var e *Error
		require.ErrorAs(t, err, &e, "%v", tc)
		require.Len(t, e.Problems, 1, "%v: %v", tc, err)
		assert.Equal(t, tc.at, strings.TrimPrefix(filepath.Base(e.Problems[0].Variable), "accounts.yaml:"))
		assert.Contains(t, e.Problems[0].Text, tc.text)
	}
}
