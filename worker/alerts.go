package worker

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/ledger"
	"github.com/danqing-queue/danqing/worker/internal/loop"
	"github.com/danqing-queue/danqing/worker/internal/notify"
	"github.com/danqing-queue/danqing/worker/internal/watch"
	"github.com/danqing-queue/danqing/worker/metrics"
)

const (
	// alertInterval is how often conditions are read, by one of all processes. The events in
	// between are one message: robots of DingTalk and WeCom take 20 a minute.
	alertInterval = time.Minute
	// alertTick is how often each process checks whether that is due.
	alertTick = 15 * time.Second
	// alertsOfEvent is how many alerts of an event a message has; it has the number of the others.
	alertsOfEvent = 5
	// alerted is the value of a condition that an alert was about. Before, the value is the time at
	// which it was first seen, in Unix milliseconds.
	alerted = "alerted"
)

// AlertReceiver is where alerts are sent: the robot of a chat service, or a program of one's own.
type AlertReceiver = notify.Receiver

// ParseAlertReceiver reads a URL of DANQING_ALERT_URL. language is "en", "zh", or "" for the one of
// the service. Its errors do not quote the URL, which is a secret.
func ParseAlertReceiver(text, language string) (*AlertReceiver, error) {
	return notify.ParseReceiver(text, language)
}

// SendTestAlert sends an alert to a receiver, and fails with the reason why it was not accepted.
func SendTestAlert(ctx context.Context, receiver *AlertReceiver) error {
	now := time.Now().UTC()
	return notify.SendAlert(ctx, receiver, jobs.AlertMessage{
		ID: "test." + strconv.FormatInt(now.UnixMilli(), 10), At: now,
		Counts: map[jobs.AlertEvent]int{jobs.AlertTest: 1}, Alerts: []jobs.Alert{{Event: jobs.AlertTest, Subject: "danqing"}},
	})
}

// AlertConfig configures [StartAlerts]. The first four fields are required.
type AlertConfig struct {
	Redis     redis.UniversalClient
	Receivers []*AlertReceiver
	Metrics   *metrics.Metrics
	Log       *slog.Logger
	// Dial dials connections to receivers; nil is the network, by a proxy if one is configured.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// QueueInterval is as in [Config].
	QueueInterval time.Duration
}

// StartAlerts reads the conditions that alerts are about, and sends alerts, in a process that has no worker:
// then somebody is left to say that no worker runs. Without receivers it does nothing. A [Worker] with
// receivers does it by itself. The caller must call stop.
func StartAlerts(ctx context.Context, cfg AlertConfig) (stop func(), err error) {
	if len(cfg.Receivers) == 0 {
		return func() {}, nil
	}
	watcher := watch.New(cfg.Redis, cmp.Or(cfg.QueueInterval, defaultQueueInterval))
	server, err := notify.New(notify.Config{
		Redis: cfg.Redis, AlertsOnly: true, Receivers: cfg.Receivers, DialAlert: cfg.Dial, Watcher: watcher, Metrics: cfg.Metrics, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	stopWatching := watcher.Start(ctx)
	if err := server.Start(ctx); err != nil {
		stopWatching()
		return nil, err
	}
	stopRounds := startAlertRounds(ctx, cfg.Redis, cfg.Receivers, cfg.Log)
	return func() {
		stopRounds()
		server.Shutdown()
		stopWatching()
	}, nil
}

// alertRounds reads the conditions that alerts are about. Many processes may: Redis decides which
// one alerts.
type alertRounds struct {
	store     *jobs.Store
	inspector *jobs.Inspector
	ledger    *ledger.Ledger
	receivers []string
	// openJobs has an open job of each batch that has any, to find out cheaply that it has.
	openJobs map[string]string
}

// startAlertRounds reads conditions, if there are receivers, until ctx ends or stop is called.
func startAlertRounds(ctx context.Context, rdb redis.UniversalClient, receivers []*AlertReceiver, log *slog.Logger) (stop func()) {
	if len(receivers) == 0 {
		return func() {}
	}
	r := &alertRounds{store: jobs.NewStore(rdb), inspector: jobs.NewInspector(rdb), ledger: ledger.New(rdb), openJobs: map[string]string{}}
	for _, receiver := range receivers {
		r.receivers = append(r.receivers, receiver.ID)
	}
	return loop.Every(ctx, alertTick, func(ctx context.Context) {
		loop.WarnFailed(ctx, log, r.run(ctx), "alert conditions not read, retrying")
	})
}

// run begins a round, if one is due. What it finds new is written together with the message that
// tells of it, and then queued: after a crash in between, the next process queues it.
func (r *alertRounds) run(ctx context.Context) error {
	state, err := r.store.AlertState(ctx)
	if err != nil {
		return err
	}
	if err := r.store.EnqueueAlerts(ctx, state, r.receivers); err != nil {
		return err
	}
	now := time.Now().UTC()
	last := time.Time{}
	if milliseconds, err := strconv.ParseInt(state.Round, 10, 64); err == nil {
		last = time.UnixMilli(milliseconds)
	}
	if age := now.Sub(last); age >= 0 && age < alertInterval {
		return nil
	}
	mode, err := r.store.Mode(ctx)
	if err != nil {
		return err
	}
	found, err := r.readConditions(ctx, state, last)
	if err != nil {
		return err
	}
	changed, alerts := compareConditions(state.Conditions, found, now)
	round := strconv.FormatInt(now.UnixMilli(), 10)
	message := newAlertMessage(round, now, alerts, mode == jobs.ModeSimulated)
	begun, err := r.store.BeginAlertRound(ctx, state, round, changed, message)
	if err != nil || !begun {
		return err
	}
	state.Round, state.Outbox = round, message
	return r.store.EnqueueAlerts(ctx, state, r.receivers)
}

// compareConditions returns what has changed, "" for what is over, and the alerts about it.
func compareConditions(known map[string]string, found *conditions, now time.Time) (changed map[string]string, alerts []jobs.Alert) {
	changed = map[string]string{}
	for name, c := range found.hold {
		value := known[name]
		since := now
		if milliseconds, err := strconv.ParseInt(value, 10, 64); err == nil {
			since = time.UnixMilli(milliseconds)
		}
		switch {
		case value == alerted || value == "" && c.keepOnly:
		case now.Sub(since) >= c.after && !c.keepOnly:
			changed[name] = alerted
			alerts = append(alerts, c.Alert)
		case value == "":
			changed[name] = strconv.FormatInt(now.UnixMilli(), 10)
		}
	}
	for name, value := range known {
		if _, holds := found.hold[name]; holds || found.unread[eventOf(name)] {
			continue
		}
		changed[name] = ""
		if over, tells := found.over[name]; tells && value == alerted {
			alerts = append(alerts, over)
		}
	}
	return changed, alerts
}

// newAlertMessage returns the message that tells of alerts, nil without any.
func newAlertMessage(id string, at time.Time, alerts []jobs.Alert, simulated bool) *jobs.AlertMessage {
	if len(alerts) == 0 {
		return nil
	}
	m := &jobs.AlertMessage{ID: id, At: at, Simulated: simulated, Counts: map[jobs.AlertEvent]int{}}
	for _, alert := range alerts {
		if m.Counts[alert.Event]++; m.Counts[alert.Event] <= alertsOfEvent {
			m.Alerts = append(m.Alerts, alert)
		}
	}
	return m
}
