package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/ledger"
)

// A month begins in China eight hours before it does in London.
func TestSpendPeriod(t *testing.T) {
	t.Parallel()
	for now, first := range map[string]string{
		"2026-01-31T15:59:59Z": "2026-01-01", "2026-01-31T16:00:00Z": "2026-02-01", "2025-12-31T23:00:00Z": "2026-01-01",
	} {
		at, err := time.Parse(time.RFC3339, now)
		require.NoError(t, err)
		r, err := spendFlags{by: []string{"day"}, format: formatTable}.report(at, false)
		require.NoError(t, err)
		assert.Equal(t, first, ledger.Day(r.from))
		assert.True(t, r.until.IsZero())
	}
	r, err := spendFlags{by: []string{"day"}, format: formatTable, since: "2024-02-29", until: "2024-02-29"}.report(time.Now(), false)
	require.NoError(t, err)
	assert.Equal(t, []string{"2024-02-29", "2024-02-29"}, []string{ledger.Day(r.from), ledger.Day(r.until)})
}

// Rows are exact sums over everything that is not a column.
func TestSpendRows(t *testing.T) {
	t.Parallel()
	spent := []ledger.Spend{
		{Account: "b", Day: "2026-01-31", Model: "wanx-v1", Batch: "x", Labels: map[string]string{"sku": "1", "a": "b"}, SpentMicroYuan: 1, Images: 1},
		{Account: "a", Day: "2026-02-01", Model: "qwen-image", SpentMicroYuan: 250_000, ReservedMicroYuan: 7, Images: 2},
		{Account: "b", Day: "2026-01-01", Model: "wanx-v1", Labels: map[string]string{"sku": "1"}, SpentMicroYuan: 160_000, Images: 4},
		{Account: "c", Day: "2026-01-01", Model: "wanx-v1"},
	}
	for _, tc := range []struct {
		by   []string
		want [][]string
	}{
		{[]string{"account"}, [][]string{{"a", "0.25", "0.000007", "2"}, {"b", "0.160001", "0", "5"}}},
		{[]string{"month", "model"}, [][]string{{"2026-01", "wanx-v1", "0.160001", "0", "5"}, {"2026-02", "qwen-image", "0.25", "0.000007", "2"}}},
		{[]string{"label:sku", "batch"}, [][]string{{"", "", "0.25", "0.000007", "2"}, {"1", "", "0.16", "0", "4"}, {"1", "x", "0.000001", "0", "1"}}},
		{[]string{"label"}, [][]string{{"", "0.25", "0.000007", "2"}, {"a=b,sku=1", "0.000001", "0", "1"}, {"sku=1", "0.16", "0", "4"}}},
	} {
		rows, total := spendReport{by: tc.by}.rows(spent)
		var got [][]string
		for _, row := range rows {
			got = append(got, append(row.key, amountCells(row.sum, ledger.FormatYuan)...))
		}
		assert.Equal(t, tc.want, got, "%v", tc.by)
		assert.Equal(t, ledger.Spend{SpentMicroYuan: 410_001, ReservedMicroYuan: 7, Images: 7}, total)
	}
}
