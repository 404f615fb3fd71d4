package drill

import (
	"fmt"
	"slices"
	"strings"
)

// action is a fault that is injected at a point.
type action string

// Actions on a request or its reply.
const (
	killBefore  action = "kill-before"  // kill the worker; the request does not arrive
	killDone    action = "kill-done"    // serve the request, kill the worker before the reply
	killAfter   action = "kill-after"   // send the reply, kill the worker
	resetBefore action = "reset-before" // reset the connection, do not serve the request
	resetDone   action = "reset-done"   // serve the request, then reset
	throttled   action = "429"
	failed      action = "500"
	htmlError   action = "502" // with HTML, as from a proxy
	halfBody    action = "half"
	hang        action = "hang" // no reply for some seconds, then a reset
	delayed     action = "delay"
	late        action = "late"       // reset the connection, serve the request afterwards
	lateKill    action = "late-kill"  // the same, and kill the worker
	slow        action = "slow"       // the service is slow and ignores a disconnect
	slowReset   action = "slow-reset" // the same, and the reply is lost
	absurd      action = "absurd"     // a reply of 200 that makes no sense
	lagKill     action = "lag-kill"   // serve the request, kill the worker, and let the list lag
	full        action = "full"       // serve the request while Redis is full
	fullKill    action = "full-kill"  // the same, and kill the worker
)

// pairedActions apply to two consecutive creates of one model. The outcome of both is
// unknown, and a late task of the first must not be attributed to the second.
func pairedActions() []action {
	return []action{
		late + "+" + htmlError, late + "+" + resetDone, htmlError + "+" + late, resetBefore + "+" + resetDone,
		late + "+" + late, resetDone + "+" + resetDone, slowReset + "+" + htmlError,
	}
}

// Actions on processes and services, independent of requests.
const (
	killNow       action = "kill"
	killLong      action = "kill-long" // and restart only after its leases have expired
	stopNow       action = "stop"      // SIGTERM
	freezeShort   action = "freeze"
	freezeLong    action = "freeze-long" // for longer than a lease
	bucketOutage  action = "bucket-away"
	bucketRefuses action = "bucket-refuses"
	serviceOutage action = "service-away"
	redisCut      action = "redis-cut"
	redisOutage   action = "redis-away"
	redisSlow     action = "redis-slow"
	redisRestart  action = "redis-restart" // kill -9, from its append-only file
	// A replica becomes the primary: by command, after a kill -9, and after a freeze, from
	// which the old primary wakes as one.
	failoverPlanned action = "failover"
	failoverKill    action = "failover-kill"
	failoverFreeze  action = "failover-freeze"
	listLags        action = "list-lags" // the list lacks the latest tasks

	killAll        action = "kill-all"        // all workers at once
	journalTorn    action = "journal-torn"    // kill, and leave half a line at the end of the journal
	journalDamaged action = "journal-damaged" // kill, and change a byte in the middle of the journal
	journalLost    action = "journal-lost"    // kill, and delete the journal
)

// point is a place where a fault can be injected. Its name is ROUTE.ACTION for requests
// to DashScope and the bucket, redis.COMMAND.ACTION for those to Redis, and an ACTION
// alone for processes and services.
type point struct {
	name   string
	route  string
	action action
	// parts are points that are injected at the same time. Their names joined by & are
	// the name; route and action are empty.
	parts []point
}

// together returns the point that injects others at the same time.
func together(parts ...point) point {
	names := make([]string, len(parts))
	for i, part := range parts {
		names[i] = part.name
	}
	return point{name: strings.Join(names, "&"), parts: parts}
}

// planned are the overlapping faults that every long drill contains. Each has broken a
// promise of an earlier version, or is what an outage of a machine room looks like.
func planned() []string {
	return []string{
		"kill&bucket-away&redis-restart", "kill-all&redis-restart", "kill-all&bucket-away", "kill&service-away&bucket-away",
		"create.reset-done&kill", "create.late&redis-away", "create.late&kill-all", "create.slow-reset&redis-cut",
		"create.lag-kill&list.502", "create.full&query.reset-done", "query.absurd&redis-cut", "create.absurd&kill",
		"create.late&failover-kill", "failover-freeze&kill", "image-put.kill-done&service-away", "journal-torn&bucket-away", "create.late&journal-lost", "journal-lost&bucket-away",
	}
}

// kills reports whether the action kills a worker.
func (p point) kills() bool {
	return slices.ContainsFunc(p.parts, point.kills) || slices.Contains([]action{
		killBefore, killDone, killAfter, killNow, killLong, killAll, lateKill, lagKill, fullKill, journalTorn, journalDamaged, journalLost,
	}, p.action)
}

// wire reports whether the point is on a request's way.
func (p point) wire() bool { return p.route != "" }

// Routes to DashScope and to the bucket. The bucket's are its methods and the prefixes
// of its keys.
const (
	routeCreate, routeQuery, routeList, routeCancel          = "create", "query", "list", "cancel"
	routePolicy, routeUpload, routeResult                    = "policy", "upload", "result"
	routeHead, routeImagePut, routeSidecarGet, routeRefGet   = "head", "image-put", "sidecar-get", "reference-get"
	routeSidecarPut, routeHeldPut, routeBucketOther, noRoute = "sidecar-put", "held-put", "bucket", "other"
)

func serviceRoutes() []string {
	return []string{routeCreate, routeQuery, routeList, routeCancel, routePolicy, routeUpload, routeResult}
}

func bucketRoutes() []string {
	return []string{routeHead, routeImagePut, routeSidecarGet, routeSidecarPut, routeHeldPut, routeRefGet}
}

// redisCommands are the writes that matter: the record's transitions, the lease and the
// in-flight mark, the ledger and the owner of a task, and asynq's messages.
func redisCommands() []string {
	return []string{"prepared", "submitting", "generating", "storing", "succeeded", "lease", "in-flight", "ledger", "settle", "claim", "enqueue-store", "dequeue", "done"}
}

// points returns all points on a kind of queue, kills first.
func points(queue Queue) []point {
	var kills, others []point
	add := func(route string, acts ...action) {
		for _, a := range acts {
			p := point{name: route + "." + string(a), route: route, action: a}
			if p.kills() {
				kills = append(kills, p)
			} else {
				others = append(others, p)
			}
		}
	}
	for _, route := range append(serviceRoutes(), bucketRoutes()...) {
		add(route, killBefore, killDone, killAfter, resetBefore, resetDone, failed, htmlError, hang, delayed)
	}
	for _, route := range []string{routeCreate, routeQuery, routeList, routeCancel, routePolicy} {
		add(route, throttled)
	}
	for _, route := range []string{routeCreate, routeQuery, routeList, routeResult, routeSidecarGet} {
		add(route, halfBody)
	}
	for _, route := range []string{routeCreate, routeQuery, routeList, routeResult} {
		add(route, absurd)
	}
	add(routeCreate, late, lateKill, lagKill, slow, slowReset)
	add(routeCreate, pairedActions()...)
	alone := []action{killNow, stopNow, bucketOutage, bucketRefuses, serviceOutage, journalTorn, journalDamaged, journalLost}
	if canFreeze {
		alone = append(alone, freezeShort)
	}
	if queue == QueueRedis || queue == QueueServer {
		for _, command := range redisCommands() {
			add("redis."+command, killBefore, killDone, killAfter, resetBefore, resetDone, delayed)
		}
		alone = append(alone, redisCut, redisOutage, redisSlow)
	}
	if queue == QueueSentinel { // workers reach each server themselves
		alone = append(alone, failoverPlanned, failoverKill)
		if canFreeze {
			alone = append(alone, failoverFreeze)
		}
	}
	if queue != QueueEmbedded {
		alone = append(alone, killLong, killAll)
		if canFreeze {
			alone = append(alone, freezeLong)
		}
	}
	if queue == QueueServer {
		alone = append(alone, redisRestart)
		add(routeCreate, full, fullKill)
	}
	for _, a := range alone {
		others = append(others, point{name: string(a), action: a})
	}
	all := append(kills, others...)
	for _, name := range planned() {
		if parts := parse(name, all); parts != nil {
			all = append(all, together(parts...))
		}
	}
	return all
}

// parse returns the parts of an overlapping point, nil if the queue lacks one of them.
func parse(name string, all []point) (parts []point) {
	for part := range strings.SplitSeq(name, "&") {
		i := slices.IndexFunc(all, func(p point) bool { return p.name == part })
		if i < 0 {
			return nil
		}
		parts = append(parts, all[i])
	}
	return parts
}

// Points returns the name of every point on a kind of queue, as --points takes them.
func Points(queue Queue) []string {
	var names []string
	for _, p := range points(queue) {
		names = append(names, p.name)
	}
	return names
}

// chosen returns the points of a drill.
func (d *drill) chosen() []point {
	all := points(d.Queue)
	if len(d.Points) == 0 {
		return all
	}
	chosen := slices.Clone(all)
	chosen = slices.DeleteFunc(chosen, func(p point) bool { return !matches(p.name, d.Points) })
	for _, name := range d.Points {
		if parts := parse(name, all); len(parts) > 1 && !slices.Contains(planned(), name) {
			chosen = append(chosen, together(parts...))
		}
	}
	return chosen
}

// matches reports whether a name matches one of the patterns: a point's name, or a
// prefix that ends in a dot, such as "create.".
func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return name == pattern || strings.HasSuffix(pattern, ".") && strings.HasPrefix(name, pattern)
	})
}

// PointError reports a point that does not exist on the kind of queue.
type PointError struct{ Name string }

func (e *PointError) Error() string { return fmt.Sprintf("no point %q on this queue", e.Name) }

func checkPoints(queue Queue, patterns []string) error {
	names := Points(queue)
	for _, pattern := range patterns {
		if parse(pattern, points(queue)) == nil && !slices.ContainsFunc(names, func(name string) bool { return matches(name, []string{pattern}) }) {
			return &PointError{pattern}
		}
	}
	return nil
}
