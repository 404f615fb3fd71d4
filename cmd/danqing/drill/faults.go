package drill

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// pointTimeout is how long a point is waited for; some routes are rarely used.
	pointTimeout, shortPointTimeout = 6 * time.Second, 3 * time.Second
	// pastLease is longer than a lane's lease of 9 s.
	pastLease = 17 * time.Second
	// successorTimeout is how long the next fault waits until another worker has taken
	// over from the killed one: a lease, and a start on a busy machine.
	successorTimeout = 25 * time.Second
	// maxPause is the longest pause between two faults.
	maxPause = 300 * time.Millisecond
)

// plan returns the faults in order: every point once, as far as d.Faults allows, then
// random ones.
func (d *drill) plan() []point {
	all := d.chosen()
	d.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if d.Short {
		slow := 0 // one fault that takes longer than a lease is enough
		all = slices.DeleteFunc(all, func(p point) bool {
			if planOrder(p) == 0 {
				slow++
				return slow > 1
			}
			return len(d.Points) == 0 && slices.Contains(exceptionalRoutes(), p.route)
		})
	}
	plan := slices.Clone(all)
	if d.Short && len(d.Points) == 0 {
		plan = halfKills(all, d.Faults)
	}
	for len(plan) < d.Faults {
		if len(d.Points) == 0 && d.rng.IntN(4) == 0 { // not at a point
			plan = append(plan, point{name: string(killNow), action: killNow})
			continue
		}
		plan = append(plan, d.randomPoint(all))
	}
	plan = plan[:d.Faults]
	if d.Short { // recovery from a dead worker takes half a minute
		slices.SortStableFunc(plan, func(a, b point) int { return planOrder(a) - planOrder(b) })
	}
	return plan
}

// randomPoint returns one of the points. One in three is two or three of them together.
func (d *drill) randomPoint(all []point) point {
	if d.Short || len(d.Points) > 0 || d.rng.IntN(3) > 0 {
		return all[d.rng.IntN(len(all))]
	}
	var parts []point
	for count := 2 + d.rng.IntN(2); len(parts) < count; {
		p := all[d.rng.IntN(len(all))]
		if p.parts == nil && !slices.ContainsFunc(parts, func(other point) bool { return other.name == p.name }) {
			parts = append(parts, p)
		}
	}
	return together(parts...)
}

// halfKills returns the first points of a plan, chosen so that about half of them are
// kills.
func halfKills(all []point, faults int) []point {
	var kills, others []point
	for _, p := range all {
		if p.kills() {
			kills = append(kills, p)
		} else {
			others = append(others, p)
		}
	}
	kills = kills[:min(len(kills), (faults+1)/2)]
	return append(kills, others[:min(len(others), faults/2)]...)
}

// planOrder sorts kills first, and those with the longest consequences before the
// others.
func planOrder(p point) int {
	switch {
	case p.action == killLong, p.action == freezeLong:
		return 0
	case p.kills():
		return 1
	}
	return 2
}

// injectFaults injects the faults of the plan one after the other.
func (d *drill) injectFaults(ctx context.Context) {
	defer d.thawing.Wait()
	plan := d.plan()
	for i, p := range plan {
		if !wait(ctx, time.Duration(d.rng.Int64N(int64(maxPause)))) {
			return
		}
		d.log.Info("point", "name", p.name, "number", i+1)
		d.recovery.faultInjected(p.name)
		met, err := d.injectAll(ctx, p)
		if err != nil {
			d.progress("%s: %v", p.name, err)
			return
		}
		d.counters.count(p, met)
		d.recovery.faultInjected("")
		d.log.Info("point done", "name", p.name, "met", met)
		if met && (p.kills() || p.action == stopNow) && d.rng.IntN(4) > 0 { // otherwise the next fault hits the recovery
			d.awaitSuccessor(ctx)
		}
		if (i+1)%25 == 0 {
			d.progress("%d of %d points tried, %d jobs", i+1, len(plan), d.load.count())
		}
	}
}

// injectAll injects a point or, at the same time, each of its parts. It reports whether
// all were met.
func (d *drill) injectAll(ctx context.Context, p point) (met bool, err error) {
	if p.parts == nil {
		if p.wire() {
			return d.injectOnWire(ctx, p), nil
		}
		return true, d.inject(ctx, p)
	}
	all := make([]bool, len(p.parts))
	errs := make([]error, len(p.parts))
	var parts sync.WaitGroup
	for i, part := range p.parts {
		delay := d.randomDuration(0, maxPause)
		parts.Go(func() {
			wait(ctx, delay)
			all[i], errs[i] = d.injectAll(ctx, part)
		})
	}
	parts.Wait()
	return !slices.Contains(all, false), errors.Join(errs...)
}

// injectOnWire waits for a matching request or command, and reports whether it came.
func (d *drill) injectOnWire(ctx context.Context, p point) bool {
	nth := 1 + d.rng.IntN(3)
	if slices.Contains(rareRoutes(), p.route) {
		nth = 1
	}
	s := d.injector.arm(p, nth)
	longest := pointTimeout
	if d.Short {
		longest = shortPointTimeout
	}
	provoke := time.NewTicker(longest / 20)
	defer provoke.Stop()
	expired := time.NewTimer(longest)
	defer expired.Stop()
	for provoked := 0; ; provoked++ {
		select {
		case <-s.done:
			return true
		case <-provoke.C:
			d.provoke(ctx, p, provoked)
		case <-expired.C:
			return d.cancelArmed(s)
		case <-ctx.Done():
			return d.cancelArmed(s)
		}
	}
}

// cancelArmed stops waiting for a point, and reports whether it was hit.
func (d *drill) cancelArmed(s *armedFault) bool {
	if d.injector.disarm(s) {
		return false
	}
	<-s.done // in progress, and bounded in time
	return true
}

// exceptionalRoutes are the routes that only exceptional situations lead to.
func exceptionalRoutes() []string { return []string{routeCancel, routeHeldPut} }

// rareRoutes are the routes with few requests: the first match is used.
func rareRoutes() []string {
	return append(exceptionalRoutes(), routeList, routePolicy, routeUpload, routeRefGet, "redis.claim")
}

// provoke causes requests on a rarely used route. It is called repeatedly while the
// point is waited for.
func (d *drill) provoke(ctx context.Context, p point, before int) {
	switch p.route {
	case routeList: // a worker's first request
		if before == 0 {
			d.kill(d.randomWorker(), 0)
		}
	case routeCancel: // of a task queued behind another program's
		if before%6 == 0 {
			d.createForeignTask(ctx)
		}
		d.load.cancelOne(ctx)
	case routePolicy, routeUpload, routeRefGet:
		if before%6 == 0 {
			d.load.wantReference()
		}
	}
}

// createForeignTask creates a task as another program on the account does, with its own
// key.
func (d *drill) createForeignTask(ctx context.Context) {
	body := `{"model":"` + foreignModel + `","input":{"prompt":"` + foreignPrompt + `"},"parameters":{"n":1}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/api/v1"+dashscope.PathText2Image, strings.NewReader(body))
	if err != nil {
		return // unreachable: the URL is well-formed
	}
	req.Header.Set("Authorization", "Bearer sk-of-another-program")
	req.Header.Set(dashscope.HeaderAsync, "enable")
	d.sim.ServeHTTP(&reply{header: http.Header{}}, req)
}

func (d *drill) randomWorker() *process { return d.workers[d.rng.IntN(len(d.workers))] }

// randomDuration returns a duration in [shortest, longest).
func (d *drill) randomDuration(shortest, longest time.Duration) time.Duration {
	return shortest + time.Duration(d.rng.Int64N(int64(longest-shortest)))
}

// awaitSuccessor waits until every model of an ended worker has a request again.
func (d *drill) awaitSuccessor(ctx context.Context) {
	for deadline := time.Now().Add(successorTimeout); len(d.recovery.pending(0)) > 0 && time.Now().Before(deadline); {
		if !wait(ctx, 20*time.Millisecond) {
			return
		}
	}
}

// inject injects a fault that is not on a wire.
func (d *drill) inject(ctx context.Context, p point) error {
	m := d.randomWorker()
	switch p.action {
	case killNow:
		d.kill(m, d.randomDuration(0, 500*time.Millisecond))
	case killLong:
		d.kill(m, pastLease)
	case killAll:
		var killed sync.WaitGroup
		for _, m := range d.workers {
			killed.Go(func() { d.kill(m, 0) })
		}
		killed.Wait()
	case journalTorn, journalDamaged, journalLost:
		return d.damageJournal(ctx, m, p.action)
	case stopNow:
		d.stop(m)
	case freezeShort:
		m.freeze()
		wait(ctx, d.randomDuration(500*time.Millisecond, 2*time.Second))
		m.thaw()
	case freezeLong: // the other worker continues, with faults
		m.freeze()
		d.thawing.Go(func() {
			wait(ctx, pastLease)
			m.thaw()
		})
	case bucketOutage, bucketRefuses, serviceOutage, redisSlow:
		d.outage(ctx, p.action, d.randomDuration(time.Second, 3*time.Second))
	case redisOutage:
		d.outages.begin(redisOutage, time.Minute)
		d.cut()
		wait(ctx, d.randomDuration(time.Second, 3*time.Second))
		d.outages.begin(redisOutage, 0)
	case redisCut:
		d.cut()
	case redisRestart:
		if err := d.server.restart(ctx, d.randomDuration(0, 2*time.Second)); err != nil && ctx.Err() == nil {
			return fmt.Errorf("restart redis-server: %w", err)
		}
	case failoverPlanned, failoverKill, failoverFreeze:
		if err := d.replicated.failover(ctx, p.action); err != nil && ctx.Err() == nil {
			return err
		}
	default: // the actions on a wire
	}
	return nil
}

// outage makes a part fail for all workers, for a while.
func (d *drill) outage(ctx context.Context, what action, lasts time.Duration) {
	d.outages.begin(what, lasts)
	wait(ctx, lasts)
}

// cut closes every connection to Redis.
func (d *drill) cut() {
	for _, m := range d.workers {
		m.proxy.cut()
	}
}
