package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A service that goes away has one line, and one when it is back: when it answers, or, if it has
// answered all the time, when nobody has complained for a while.
func TestOutages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, outages, err := (&logFlags{format: "text", level: "info"}).logger(&out)
		require.NoError(t, err)
		lane := log.With("account", "shop")
		complain := func(every time.Duration, times int) {
			for range times {
				lane.Warn("redis unavailable")
				lane.WithGroup("g").Warn("redis unavailable")
				<-time.After(every)
			}
		}
		log.Warn("redis unavailable", "watched", false) // every line is logged
		complain(500*time.Millisecond, 1)

		var refuses atomic.Bool
		stop := outages.watch(t.Context(), map[string]func(context.Context) error{redisAway: func(context.Context) error {
			if refuses.Load() {
				return errors.New("refused")
			}
			return nil
		}})
		refuses.Store(true)
		complain(7*time.Second, 10)
		log.Info("another line")
		<-time.After(time.Second / 2)
		refuses.Store(false)
		<-time.After(time.Second)
		log.Info("it answers, and refuses to write")
		complain(10*time.Second, 6)
		<-time.After(time.Minute)
		stop()

		var lines []string
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
			lines = append(lines, line)
		}
		assert.Equal(t, []string{
			`level=WARN msg="redis unavailable" watched=false`,
			`level=WARN msg="redis unavailable" account=shop`,
			`level=WARN msg="redis unavailable" account=shop`,
			`level=WARN msg="redis unavailable" account=shop`,
			`level=INFO msg="another line"`,
			`level=INFO msg="service available again" outage="redis unavailable" duration=1m11s`,
			`level=INFO msg="it answers, and refuses to write"`,
			`level=WARN msg="redis unavailable" account=shop`,
			`level=INFO msg="service available again" outage="redis unavailable" duration=50s`,
		}, lines)
	})
}

// Durations are rounded, to seconds in JSON; a level and a format that are unknown are refused.
func TestLogFormats(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		1234567 * time.Microsecond: "1.2s", 1234567 * time.Nanosecond: "1ms", 61*time.Second + 400*time.Millisecond: "1m1s", -1234567 * time.Microsecond: "-1.2s",
	} {
		assert.Equal(t, want, rounded(d).String())
	}
	var out bytes.Buffer
	log, _, err := (&logFlags{format: "json", level: "warn"}).logger(&out)
	require.NoError(t, err)
	log.Info("left out")
	log.Warn("lane paused", "wait", 1234567*time.Microsecond, "account", "shop")
	assert.Regexp(t, `^\{"time":"[^"]*","level":"WARN","msg":"lane paused","wait":1.2,"account":"shop"\}\n$`, out.String())

	for flag, want := range map[string]string{
		"--log-format=xml": "danqing: error: --log-format \"xml\": no such format\ndanqing: hint: one of: text json\n",
		"--log-level=loud": "danqing: error: --log-level \"loud\": no such level\ndanqing: hint: one of: debug info warn error\n",
	} {
		var said bytes.Buffer
		p := &program{args: []string{"simulator", flag}, stdout: &said, stderr: &said}
		assert.Equal(t, exitUsage, p.run(t.Context()))
		assert.Equal(t, want, said.String())
	}
}
