package ledger_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/ledger"
)

// An amount that is read and written again is the same to the last micro-yuan.
func TestYuan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "12": 12_000_000, "0.16": 160_000, "0.000001": 1, "1.100000": 1_100_000, "007.5": 7_500_000,
		// As a float64 in yuan it would be 8 micro-yuan off.
		"999999999.999999": 999_999_999_999_999,
	} {
		got, err := ledger.ParseYuan(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
		again, err := ledger.ParseYuan(ledger.FormatYuan(got))
		require.NoError(t, err)
		assert.Equal(t, got, again)
	}
	for amount, want := range map[int64]string{0: "0", 160_000: "0.16", 1: "0.000001", 12_000_000: "12", -1_500_000: "-1.5"} {
		assert.Equal(t, want, ledger.FormatYuan(amount))
	}
	for _, text := range []string{"", "-1", "+1", "1,5", "1.", ".5", "0.0000001", "1e3", "1 000", "0x1", "NaN", "1000000000", "¥1", "１"} {
		_, err := ledger.ParseYuan(text)
		require.ErrorContains(t, err, "must be an amount of yuan", text)
	}
}

// No sum of money becomes negative or less by an overflow.
func TestSumsDoNotOverflow(t *testing.T) {
	t.Parallel()
	assert.Equal(t, int64(5), ledger.Sum(2, 3))
	assert.Equal(t, int64(math.MaxInt64), ledger.Sum(math.MaxInt64, 1))
	assert.Equal(t, int64(math.MaxInt64), ledger.Sum(1, math.MaxInt64))
	assert.Equal(t, int64(6), ledger.Times(2, 3))
	assert.Zero(t, ledger.Times(2, 0))
	assert.Equal(t, int64(math.MaxInt64), ledger.Times(1_000_000_000, math.MaxInt))
}
