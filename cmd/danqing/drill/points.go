package drill

import (
	"fmt"
	"slices"
	"strings"
)

// act is what is done at a point.
type action string

// What is done to a request or a reply on its way.
const (
	killBefore  action = "kill-before"  // the worker dies, and its request never arrives
	killDone    action = "kill-done"    // the request is served, the worker dies without the reply
	killAfter   action = "kill-after"   // the worker dies with the reply
	resetBefore action = "reset-before" // the connection ends before anything is done
	resetDone   action = "reset-done"   // and after it is done
	throttled   action = "429"
	failed      action = "500"
	htmlError   action = "502" // with HTML, as proxies answer
	halfBody    action = "half"
	hang        action = "hang" // for some seconds, then the connection ends
	delayed     action = "delay"
	late        action = "late"       // the client is cut off, and the request served afterwards
	lateKill    action = "late-kill"  // and its worker killed as well
	slow        action = "slow"       // the service takes its time, and serves even who has left
	slowReset   action = "slow-reset" // and its answer is lost
)

// pairs befall two creates of one model, one after the other: the outcome of both is
// unknown, and what the first makes late must not be taken for the second's.
func pairedActions() []action {
	return []action{
		late + "+" + htmlError, late + "+" + resetDone, htmlError + "+" + late, resetBefore + "+" + resetDone,
		late + "+" + late, resetDone + "+" + resetDone, slowReset + "+" + htmlError,
	}
}

// What is done to processes and their surroundings, whatever they are at.
const (
	killNow       action = "kill"
	killLong      action = "kill-long" // and started again only after its leases
	stopNow       action = "stop"      // SIGTERM
	freezeShort   action = "freeze"
	freezeLong    action = "freeze-long" // for longer than a lease
	bucketAway    action = "bucket-away"
	bucketRefuses action = "bucket-refuses"
	serviceAway   action = "service-away"
	redisCut      action = "redis-cut"
	redisAway     action = "redis-away"
	redisSlow     action = "redis-slow"
	redisRestart  action = "redis-restart" // kill -9, from its append-only file
)

// point is a moment at which something can go wrong, by name: ROUTE.ACT on the wire
// to DashScope and the bucket, redis.COMMAND.ACT on that to Redis, and an ACT alone
// for what befalls a process or a part.
type point struct {
	name  string
	route string
	action   action
}

// kills reports whether a worker dies of it.
func (p point) kills() bool {
	return slices.Contains([]action{killBefore, killDone, killAfter, killNow, killLong, lateKill}, p.action)
}

// wire reports whether the point is on the way of a request.
func (p point) wire() bool { return p.route != "" }

// Routes to DashScope and to the bucket. The bucket's are its methods and what lies
// under the key.
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

// redisCommands are the writes that matter: the record's steps, the lease and the
// note of what is in flight, the ledger and who owns a task, and asynq's messages.
func redisCommands() []string {
	return []string{"submitting", "generating", "storing", "succeeded", "lease", "in-flight", "ledger", "settle", "claim", "enqueue-store", "dequeue", "done"}
}

// points are all that there are on a kind of queue, kills first.
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
	add(routeCreate, late, lateKill, slow, slowReset)
	add(routeCreate, pairedActions()...)
	alone := []action{killNow, stopNow, bucketAway, bucketRefuses, serviceAway}
	if canFreeze {
		alone = append(alone, freezeShort)
	}
	if queue != QueueEmbedded {
		for _, command := range redisCommands() {
			add("redis."+command, killBefore, killDone, killAfter, resetBefore, resetDone, delayed)
		}
		alone = append(alone, killLong, redisCut, redisAway, redisSlow)
		if canFreeze {
			alone = append(alone, freezeLong)
		}
	}
	if queue == QueueServer {
		alone = append(alone, redisRestart)
	}
	for _, a := range alone {
		others = append(others, point{name: string(a), action: a})
	}
	return append(kills, others...)
}

// Points names every point of a kind of queue, as --points takes them.
func Points(queue Queue) []string {
	var names []string
	for _, p := range points(queue) {
		names = append(names, p.name)
	}
	return names
}

// chosen are the points of a drill.
func (d *drill) chosen() []point {
	all := points(d.Queue)
	if len(d.Points) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(p point) bool { return !matches(p.name, d.Points) })
}

// matches reports whether a name is one of the patterns, each a point's name or the
// beginning of some that ends in a dot, as in create.
func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return name == pattern || strings.HasSuffix(pattern, ".") && strings.HasPrefix(name, pattern)
	})
}

// PointError means that a point does not exist on the kind of queue.
type PointError struct{ Name string }

func (e *PointError) Error() string { return fmt.Sprintf("there is no point %q on this queue", e.Name) }

func checkPoints(queue Queue, patterns []string) error {
	names := Points(queue)
	for _, pattern := range patterns {
		if !slices.ContainsFunc(names, func(name string) bool { return matches(name, []string{pattern}) }) {
			return &PointError{pattern}
		}
	}
	return nil
}
