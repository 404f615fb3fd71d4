package main

import (
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/cmd/danqing/input"
	"github.com/danqing-queue/danqing/jobs"
)

// A table of results has each column of the batch file with its value, and the result after
// them. Nothing is calculated by Excel.
func TestResultsTable(t *testing.T) {
	t.Parallel()
	s := &batchFile{}
	for i, raw := range []string{
		`{"id":"A","prompt":"猫,\"狗\"\n鸟","n":2,"price":-5,"note":"=1+1","danqing":{"job_id":"x"}}`,
		`{"prompt":"+一只猫","labels":{"a":"b"},"note":null,"danqing.state":"old","stage":true}`,
	} {
		s.lines = append(s.lines, &line{file: s, number: i + 1, raw: []byte(raw), lineID: "A"})
	}
	columns, err := columnsOf(s.lines)
	require.NoError(t, err)
	var headers []string
	for _, c := range columns {
		headers = append(headers, c.Header)
	}
	require.Equal(t, []string{"id", "prompt", "n", "price", "note", "labels", "stage"}, headers)

	var text strings.Builder
	for i, result := range []*result{
		{State: jobs.StateSucceeded, CostYuan: 0.16, Images: []resultImage{{N: 1, Key: "k", File: "/图/a 1.png", Seed: 7}, {N: 2, Code: "DataInspectionFailed", Message: "no"}}},
		{State: jobs.StateFailed, Code: "InvalidParameter", Message: "-x is wrong"},
	} {
		row, err := tableRow(columns, s.lines[i], result)
		require.NoError(t, err)
		assert.True(t, strings.HasSuffix(string(row), "\r\n"))
		text.Write(row)
	}
	rows, err := csv.NewReader(strings.NewReader(text.String())).ReadAll()
	require.NoError(t, err)
	assert.Equal(t, [][]string{
		{"A", "猫,\"狗\"\n鸟", "2", "-5", "'=1+1", "", "", "A", "succeeded", "image 2: DataInspectionFailed: no", "0.16", "7", "/图/a 1.png"},
		{"", "'+一只猫", "", "", "", `{"a":"b"}`, "true", "A", "failed", "InvalidParameter: -x is wrong", "0", "", ""},
	}, rows)

	row, err := tableRow([]input.Column{{Header: "提示词", Name: "prompt"}, {Header: "空", Name: "none"}}, s.lines[0], &result{State: jobs.StateQueued})
	require.NoError(t, err)
	assert.Equal(t, "\"猫,\"\"狗\"\"\n鸟\",,A,queued,,0,,\r\n", string(row), "the columns of a table, in their order")
	assert.Empty(t, cellOf(json.RawMessage(nil)))
}
