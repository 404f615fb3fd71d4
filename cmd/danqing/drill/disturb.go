package drill

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danqing-queue/danqing/worker/dashscope"
)

const (
	// patience is how long a point is waited for: some routes are seldom taken.
	patience, shortPatience = 6 * time.Second, 3 * time.Second
	// leaseOver is longer than a lane's lease of 15 s.
	leaseOver = 17 * time.Second
	// successor is how long the next fault waits for a worker that goes on where the
	// killed one was: a lease, and a start on a busy machine.
	successor = 25 * time.Second
	// gap is the longest pause between two faults.
	gap = 300 * time.Millisecond
)

// plan is what is done, in order: every point once, as far as there is room, and
// then at random.
func (d *drill) plan() []point {
	all := d.chosen()
	d.dice.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if d.Short {
		slow := 0 // one is enough of what takes longer than a lease
		all = slices.DeleteFunc(all, func(p point) bool {
			if order(p) == 0 {
				slow++
				return slow > 1
			}
			return len(d.Points) == 0 && slices.Contains(seldom(), p.route)
		})
	}
	plan := slices.Clone(all)
	if d.Short && len(d.Points) == 0 {
		plan = half(all, d.Faults)
	}
	for len(plan) < d.Faults {
		if len(d.Points) == 0 && d.dice.IntN(4) == 0 { // at any moment
			plan = append(plan, point{name: string(killNow), act: killNow})
			continue
		}
		plan = append(plan, all[d.dice.IntN(len(all))])
	}
	plan = plan[:d.Faults]
	if d.Short { // what a dead worker had is found half a minute later
		slices.SortStableFunc(plan, func(a, b point) int { return order(a) - order(b) })
	}
	return plan
}

// half are the first points of a plan, so that about half of them are kills.
func half(all []point, faults int) []point {
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

// order puts kills first, those of the longest consequences before others.
func order(p point) int {
	switch {
	case p.act == killLong, p.act == freezeLong:
		return 0
	case p.kills():
		return 1
	}
	return 2
}

// disturb does one thing after the other.
func (d *drill) disturb(ctx context.Context) {
	var thawing sync.WaitGroup
	defer thawing.Wait()
	plan := d.plan()
	for i, p := range plan {
		if !wait(ctx, time.Duration(d.dice.Int64N(int64(gap)))) {
			return
		}
		d.diary.Info("point", "name", p.name, "number", i+1)
		met := true
		if p.wire() {
			met = d.onTheWire(ctx, p)
		} else if err := d.befall(ctx, p, &thawing); err != nil {
			d.say("%s: %v", p.name, err)
			return
		}
		d.tally.count(p, met)
		d.recovery.disturbed()
		d.diary.Info("point done", "name", p.name, "met", met)
		if met && (p.kills() || p.act == stopNow) && d.dice.IntN(4) > 0 { // else the next one meets the recovery
			d.awaitSuccessor(ctx)
		}
		if (i+1)%25 == 0 {
			d.say("%d of %d points tried, %d jobs", i+1, len(plan), d.load.count())
		}
	}
}

// onTheWire waits for a request or command, and reports whether it came.
func (d *drill) onTheWire(ctx context.Context, p point) bool {
	nth := 1 + d.dice.IntN(3)
	if slices.Contains(rare(), p.route) {
		nth = 1
	}
	s := d.trap.arm(p, nth)
	longest := patience
	if d.Short {
		longest = shortPatience
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
			return d.given(s)
		case <-ctx.Done():
			return d.given(s)
		}
	}
}

// given stops waiting for a point, and reports whether it was met.
func (d *drill) given(s *sprung) bool {
	if d.trap.disarm(s) {
		return false
	}
	<-s.done // on its way, and bounded
	return true
}

// seldom are the routes that only some accident leads to.
func seldom() []string { return []string{routeCancel, routeHeldPut} }

// rare are the routes that are taken now and then: the next request is as good as any.
func rare() []string {
	return append(seldom(), routeList, routePolicy, routeUpload, routeRefGet, "redis.claim")
}

// provoke makes a route that is seldom taken likelier, again and again.
func (d *drill) provoke(ctx context.Context, p point, before int) {
	switch p.route {
	case routeList: // the first thing that a worker does
		if before == 0 {
			d.kill(d.anyone(), 0)
		}
	case routeCancel: // of a task that waits for another program's
		if before%6 == 0 {
			d.foreign(ctx)
		}
		d.load.cancelOne(ctx)
	case routePolicy, routeUpload, routeRefGet:
		if before%6 == 0 {
			d.load.wantReference()
		}
	}
}

// foreign makes a task as another program on the account does, with a key of its own.
func (d *drill) foreign(ctx context.Context) {
	body := `{"model":"` + foreignModel() + `","input":{"prompt":"` + foreignPrompt + `"},"parameters":{"n":1}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/api/v1"+dashscope.PathText2Image, strings.NewReader(body))
	if err != nil {
		return // never: the URL is well-formed
	}
	req.Header.Set("Authorization", "Bearer sk-of-another-program")
	req.Header.Set(dashscope.HeaderAsync, "enable")
	d.sim.ServeHTTP(&reply{header: http.Header{}}, req)
}

func (d *drill) anyone() *member { return d.crew[d.dice.IntN(len(d.crew))] }

// between draws a time.
func (d *drill) between(shortest, longest time.Duration) time.Duration {
	return shortest + time.Duration(d.dice.Int64N(int64(longest-shortest)))
}

// awaitSuccessor waits until what a killed worker was at is asked for again.
func (d *drill) awaitSuccessor(ctx context.Context) {
	for deadline := time.Now().Add(successor); d.recovery.pending() && time.Now().Before(deadline); {
		if !wait(ctx, 20*time.Millisecond) {
			return
		}
	}
}

// befall does what has no place on a wire.
func (d *drill) befall(ctx context.Context, p point, thawing *sync.WaitGroup) error {
	m := d.anyone()
	switch p.act {
	case killNow:
		d.kill(m, d.between(0, 500*time.Millisecond))
	case killLong:
		d.kill(m, leaseOver)
	case stopNow:
		d.stop(m)
	case freezeShort:
		m.freeze()
		wait(ctx, d.between(500*time.Millisecond, 2*time.Second))
		m.thaw()
	case freezeLong: // the other worker goes on, disturbed
		m.freeze()
		thawing.Go(func() {
			wait(ctx, leaseOver)
			m.thaw()
		})
	case bucketAway, bucketRefuses, serviceAway, redisSlow:
		d.storm(ctx, p.act, d.between(time.Second, 3*time.Second))
	case redisAway:
		d.weather.begin(redisAway, time.Minute)
		d.cut()
		wait(ctx, d.between(time.Second, 3*time.Second))
		d.weather.begin(redisAway, 0)
	case redisCut:
		d.cut()
	case redisRestart:
		if err := d.server.restart(ctx, d.between(0, 2*time.Second)); err != nil && ctx.Err() == nil {
			return fmt.Errorf("restart redis-server: %w", err)
		}
	default: // what is on the wire
	}
	return nil
}

// storm lets something go wrong for everybody, for a while.
func (d *drill) storm(ctx context.Context, what act, lasts time.Duration) {
	d.weather.begin(what, lasts)
	wait(ctx, lasts)
}

// cut ends every connection to Redis.
func (d *drill) cut() {
	for _, m := range d.crew {
		m.proxy.cut()
	}
}
