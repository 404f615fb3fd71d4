package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/danqing-queue/danqing/config"
)

// A misspelled flag or command, and a missing argument, are answered with what is meant.
func TestUsageHints(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"up", "--simulte"}, "error: unknown flag: --simulte\ndanqing: hint: did you mean --simulate? see: danqing up --help\n"},
		{[]string{"jobs", "list", "--simulat"}, "error: unknown flag: --simulat\ndanqing: hint: did you mean --simulate? see: danqing jobs list --help\n"},
		{[]string{"enqueue", "--frobnicate"}, "error: unknown flag: --frobnicate\ndanqing: hint: see: danqing enqueue --help\n"},
		{[]string{"up", "--listen"}, "error: flag needs an argument: --listen\ndanqing: hint: see: danqing up --help\n"},
		{[]string{"jobs", "lst"}, "error: unknown command \"lst\" for \"danqing jobs\"\ndanqing: hint: did you mean list? see: danqing jobs --help\n"},
		{[]string{"jobs", "frobnicate"}, "error: unknown command \"frobnicate\" for \"danqing jobs\"\ndanqing: hint: see: danqing jobs --help\n"},
		{[]string{"alert", "tset"}, "error: unknown command \"tset\" for \"danqing alert\"\ndanqing: hint: did you mean test? see: danqing alert --help\n"},
		{[]string{"alert"}, "error: alert: the command is missing\ndanqing: hint: see: danqing alert --help\n"},
		{[]string{"jobs", "wait"}, "error: requires at least 1 arg(s), only received 0\ndanqing: hint: as in: danqing jobs wait JOB... [flags]; see: danqing jobs wait --help\n"},
		{[]string{"jobs", "pause"}, "error: neither --account nor --model is given\ndanqing: hint: as in: --account default, or --model wanx-v1\n"},
	} {
		var said bytes.Buffer
		p := &program{args: test.args, stdout: &said, stderr: &said}
		assert.Equal(t, exitUsage, p.run(t.Context()), test.args)
		assert.Equal(t, "danqing: "+test.want, said.String(), test.args)
	}
}

// An instance that has just started will have lanes for its models.
func TestWhyIdleOfAnInstanceThatStarts(t *testing.T) {
	t.Parallel()
	q := &jobQueue{cfg: &config.Config{}, starting: []string{"wanx-v1"}}
	assert.Empty(t, q.whyIdle(nil, "wanx-v1"))
	assert.Contains(t, q.whyIdle(nil, "qwen-image"), "danqing up has no lane for qwen-image")
}
