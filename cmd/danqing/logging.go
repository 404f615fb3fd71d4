package main

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// logFlags are those of the commands that run until they are stopped.
type logFlags struct {
	format, level string
}

func (f *logFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.format, "log-format", "text", "`format` of the log: text (key=value) or json")
	cmd.Flags().StringVar(&f.level, "log-level", "info", "least important `level` that is logged: debug, info, warn or error")
}

// logger returns a logger of the flags, and what knows when a service is back.
func (f *logFlags) logger(out io.Writer) (*slog.Logger, *outages, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, nil, usageErrorf("one of: debug info warn error", "--log-level %q: no such level", f.level)
	}
	var handler slog.Handler
	switch f.format {
	case "text":
		handler = slog.NewTextHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: roundedText})
	case "json":
		handler = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: roundedSeconds})
	default:
		return nil, nil, usageErrorf("one of: text json", "--log-format %q: no such format", f.format)
	}
	o := &outages{log: slog.New(handler), down: map[string]*outage{}}
	return slog.New(&outageHandler{Handler: handler, outages: o}), o, nil
}

// roundedText rounds durations for people, as in 27.3s.
func roundedText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(rounded(a.Value.Duration()).String())
	}
	return a
}

// roundedSeconds makes durations seconds, rounded as for people.
func roundedSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(rounded(a.Value.Duration()).Seconds())
	}
	return a
}

// rounded rounds a duration to what matters of it.
func rounded(d time.Duration) time.Duration {
	switch size := d.Abs(); {
	case size < time.Second:
		return d.Round(time.Millisecond)
	case size < time.Minute:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

// The messages of a service that has gone away, of which the log has one until it is back.
const (
	redisAway  = "redis unavailable"
	bucketAway = "bucket unavailable"
)

const (
	// outageCheck is how often a service that has gone away is asked whether it is back.
	outageCheck = time.Second
	// outageQuiet is how long a service that answers must not be complained of, longer than
	// workers wait before they try Redis again: it may answer and yet refuse to write.
	outageQuiet = 15 * time.Second
)

// outages knows which services are away: the log has one line when one goes away, and one when
// it is back.
type outages struct {
	log *slog.Logger

	mu sync.Mutex
	// checks ask a service whether it answers, by the message of its outage, until ctx ends.
	// Before watch every line is logged.
	checks map[string]func(context.Context) error
	ctx    context.Context //nolint:containedctx // of the command
	down   map[string]*outage
	group  sync.WaitGroup
}

// outage is a service that is away: since when, and when it was last complained of.
type outage struct{ begun, last time.Time }

// watch checks services that go away until the end of ctx, or until stop is called.
func (o *outages) watch(ctx context.Context, checks map[string]func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ctx, o.checks = ctx, checks
	return func() {
		o.mu.Lock()
		cancel()
		o.mu.Unlock()
		o.group.Wait()
	}
}

// repeated reports whether a message is about a service that is known to be away. The first one
// starts to check it.
func (o *outages) repeated(message string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	check, now := o.checks[message], time.Now()
	if check == nil || o.ctx.Err() != nil {
		return false
	}
	if away := o.down[message]; away != nil {
		away.last = now
		return true
	}
	o.down[message] = &outage{begun: now, last: now}
	o.group.Go(func() { o.await(o.ctx, message, check) })
	return false
}

// await waits until a service is back.
func (o *outages) await(ctx context.Context, message string, check func(context.Context) error) {
	ticker := time.NewTicker(outageCheck)
	defer ticker.Stop()
	failed := false
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if check(ctx) != nil {
			failed = true
		} else if took, ended := o.end(message, failed); ended {
			o.log.Info("service available again", "outage", message, "duration", took)
			return
		}
	}
}

// end ends the outage of a service that answers again. One that has always answered must not have
// been complained of for a while.
func (o *outages) end(message string, failed bool) (took time.Duration, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	away, now := o.down[message], time.Now()
	if !failed {
		if now.Sub(away.last) < outageQuiet {
			return 0, false
		}
		now = away.last
	}
	delete(o.down, message)
	return now.Sub(away.begun), true
}

// outageHandler leaves out the lines about a service that is known to be away.
type outageHandler struct {
	slog.Handler
	outages *outages
}

// Handle implements [slog.Handler].
func (h *outageHandler) Handle(ctx context.Context, line slog.Record) error {
	if h.outages.repeated(line.Message) {
		return nil
	}
	return h.Handler.Handle(ctx, line)
}

// WithAttrs implements [slog.Handler].
func (h *outageHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &outageHandler{h.Handler.WithAttrs(attrs), h.outages}
}

// WithGroup implements [slog.Handler].
func (h *outageHandler) WithGroup(name string) slog.Handler {
	return &outageHandler{h.Handler.WithGroup(name), h.outages}
}
