package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/rediskey"
	"github.com/danqing-queue/danqing/worker"
	"github.com/danqing-queue/danqing/worker/journal"
)

const (
	// maxClockSkew is the clock difference above which there is a finding. Certificates
	// and signatures tolerate minutes, readers of logs do not.
	maxClockSkew = time.Minute
	// maxRedisLatency is the latency at which the ten or so calls for an image add up to a
	// second. The value is our choice.
	maxRedisLatency = 100 * time.Millisecond
	// pings is how many pings are timed, for their median.
	pings          = 5
	doctorLifetime = 10 * time.Second
)

// checkRedis checks the queue's Redis and returns its client, or nil if it cannot be
// reached. The caller must close it.
func (d *doctor) checkRedis(ctx context.Context) *redis.Client {
	at, err := d.redisAt(ctx)
	if err != nil {
		d.bad("correct REDIS_URL; or if no danqing runs in the data directory, delete its "+instanceFile, "%v", err)
		return nil
	}
	if at == nil {
		d.note("for a queue that others can use set REDIS_URL, or start danqing up", "no Redis is configured and no danqing up runs here: batch and generate use their own queue")
		return nil
	}
	at.FailFast(redisCheckTimeout)
	rdb := at.Client(0)
	pinging, cancel := context.WithTimeout(ctx, redisCheckTimeout)
	defer cancel()
	if err := redishealth.Check(pinging, rdb); err != nil {
		text, remedy := explainRedisError(at.Address, err)
		d.bad(remedy, "%s", text)
		if err := rdb.Close(); err != nil {
			d.writeErr = err
		}
		return nil
	}
	d.jobs, d.redis = jobs.NewInspector(rdb), rdb
	mode, err := d.jobs.Mode(ctx)
	d.reportMode(worker.PlaceRedis, mode, err)
	d.checkRedisLatency(ctx, rdb, at.Address)
	d.checkRedisDurability(ctx, rdb)
	d.checkLanes(ctx, rdb)
	return rdb
}

// redisAt returns how the queue's Redis is reached, or nil if there is none.
func (d *doctor) redisAt(ctx context.Context) (*config.Redis, error) {
	if d.cfg.RedisURL.IsSet() {
		return d.cfg.Redis()
	}
	at, err := readInstance(ctx, d.cfg.DataDir)
	if errors.Is(err, errNoInstance) {
		return nil, nil //nolint:nilnil // no queue is not an error
	}
	if err != nil {
		return nil, err
	}
	return at.redis(d.cfg.DataDir)
}

// explainRedisError returns in one sentence why Redis cannot be reached, and what to do.
func explainRedisError(addr string, err error) (text, remedy string) {
	var unknown *net.DNSError
	var late net.Error
	reply := err.Error()
	if unfit, ok := errors.AsType[*redishealth.UnsupportedError](err); ok {
		return addr + ": " + unfit.Text, unfit.Remedy
	}
	if strings.HasPrefix(reply, "redis: all sentinels") {
		return explainSentinelError(addr, reply)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + addr, "start Redis there, or correct REDIS_URL"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no socket " + addr, "start Redis with: unixsocket " + addr + "; or correct REDIS_URL"
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return fmt.Sprintf("there is no host %q", unknown.Name), "correct REDIS_URL"
	case strings.HasPrefix(reply, "NOAUTH"), strings.Contains(reply, "WRONGPASS"), strings.Contains(reply, "AUTH"):
		remedy = "correct REDIS_URL, as in redis://USER:PASSWORD@HOST:PORT/0"
		if strings.HasSuffix(addr, ":26379") {
			remedy += "; a Sentinel, whose port this mostly is, wants redis-sentinel://"
		}
		return "the Redis at " + addr + " refuses the user or the password: " + reply, remedy
	case strings.HasPrefix(reply, "LOADING"):
		return "the Redis at " + addr + " is still reading its data from disk", "wait until it has"
	case strings.Contains(reply, "tls:"), strings.Contains(reply, "x509:"):
		return "no TLS with " + addr + ": " + reply, "set REDIS_URL to redis:// if it speaks no TLS, or DANQING_REDIS_CA to the authority that signed its certificate"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return fmt.Sprintf("%s does not answer within %v", addr, redisCheckTimeout), "look at the network between, or correct REDIS_URL: a Redis without TLS does not answer rediss://, write redis://"
	}
	return addr + " does not answer as a Redis: " + reply, "correct REDIS_URL; begin it with rediss:// if it speaks TLS"
}

// explainSentinelError returns in one sentence why no Sentinel names the primary, and what
// to do.
func explainSentinelError(addr, reply string) (text, remedy string) {
	_, reason, _ := strings.Cut(reply, "unreachable: ")
	reason = strings.ReplaceAll(reason, "\n", "; ")
	switch {
	case strings.Contains(reason, redis.Nil.Error()):
		return "no Sentinel knows the name in: " + addr, "correct master= in REDIS_URL: redis-cli -p 26379 SENTINEL MASTERS lists the names"
	case strings.Contains(reason, "NOAUTH"), strings.Contains(reason, "WRONGPASS"), strings.Contains(reason, "AUTH"):
		return "the Sentinels refuse the user or the password: " + addr + ": " + reason, "correct sentinel_username and sentinel_password in REDIS_URL, which are the Sentinels' own"
	case strings.Contains(strings.ToLower(reason), "unknown command"):
		return "these are no Sentinels: " + addr + ": " + reason, "correct the addresses in REDIS_URL: the port of a Sentinel is mostly 26379; or write redis:// for a Redis without"
	}
	return "no Sentinel answers: " + addr + ": " + reason, "start one, or correct the addresses in REDIS_URL"
}

// checkRedisLatency times a few calls and compares the clocks.
func (d *doctor) checkRedisLatency(ctx context.Context, rdb *redis.Client, address string) {
	took := make([]time.Duration, pings)
	for i := range took {
		started := time.Now()
		if err := rdb.Ping(ctx).Err(); err != nil {
			text, remedy := explainRedisError(address, err)
			d.bad(remedy, "%s", text)
			return
		}
		took[i] = time.Since(started)
	}
	slices.Sort(took)
	switch median := took[pings/2]; {
	case median > maxRedisLatency:
		d.warn("put the workers near it", "%s takes %d ms to answer, about ten times per image", address, median.Milliseconds())
	default:
		d.ok("%s answers in %.1f ms", address, float64(median.Microseconds())/1000)
	}
	started := time.Now()
	at, err := rdb.Time(ctx).Result()
	if err != nil {
		d.note("", "Redis does not tell its time: %v", err)
		return
	}
	d.checkClock("Redis", at, started)
}

// checkClock compares another machine's time with this one's, between the request and now.
func (d *doctor) checkClock(whose string, at, asked time.Time) {
	between := asked.Add(time.Since(asked) / 2)
	switch ahead := at.Sub(between); {
	case at.IsZero():
	case ahead > maxClockSkew:
		d.warn("set this machine's clock, best by NTP", "this machine's clock is %v behind that of %s", ahead.Round(time.Second), whose)
	case ahead < -maxClockSkew:
		d.warn("set this clock or that one, best by NTP", "this machine's clock is %v ahead of that of %s", (-ahead).Round(time.Second), whose)
	default:
		d.ok("the clocks agree")
	}
}

// checkRedisDurability checks Redis's persistence settings, and that it accepts writes.
func (d *doctor) checkRedisDurability(ctx context.Context, rdb *redis.Client) {
	if err := rdb.Set(ctx, rediskey.DoctorProbe, 1, doctorLifetime).Err(); err != nil {
		d.bad("see what it answers: a full memory wants a higher maxmemory, a replica its primary's address, a user the rights below", "Redis takes no writes: %v", err)
	}
	rights, err := redishealth.Rights(ctx, rdb)
	if err != nil {
		d.bad("look at the network between", "%v", err)
		return
	}
	for _, f := range rights {
		d.report(f)
	}
	durability, err := redishealth.Probe(ctx, rdb)
	if err != nil {
		d.bad("let its user call INFO", "%v", err)
		return
	}
	if durability.Version == "" {
		d.ok("the embedded queue of the danqing that runs in the data directory")
		return
	}
	found := durability.Findings()
	for _, f := range found {
		d.report(f)
	}
	if at, err := d.cfg.Redis(); err == nil && at.Sentinel != nil && durability.Replicas == 0 {
		d.bad("start a replica of it, best two", "the primary of the Sentinels has no replica: workers hold no lane, as after another failover two might buy the same")
	}
	d.ok("Redis %s, AOF %t, fsync %q, %s, maxmemory-policy %q", durability.Version, durability.AOF, durability.Fsync, count(durability.Replicas, "replica"), durability.EvictionPolicy)
	started := time.Now()
	if err := redishealth.WaitDurable(ctx, rdb, durability); err != nil {
		d.warn("check its disk and its replicas; each image waits that long before it is bought", "%v", err)
		return
	}
	d.ok("writes are as durable as they can be after %d ms", time.Since(started).Milliseconds())
}

// isKnown reports whether a model is in the catalog.
func isKnown(model string) bool {
	_, err := jobs.LookupModel(model)
	return err == nil
}

// checkLanes reports the lanes on this Redis and their workers.
func (d *doctor) checkLanes(ctx context.Context, rdb *redis.Client) {
	lanes, err := d.jobs.Lanes(ctx)
	if err != nil {
		d.bad("check whether another version of danqing uses this Redis", "%v", err)
		return
	}
	own, err := journal.WorkerIDAt(d.cfg.DataDir)
	if err != nil {
		d.bad("do what it says", "%v", err)
	}
	for _, lane := range lanes {
		name := fmt.Sprintf("lane %s of account %s", lane.Model, lane.Account)
		holder, err := rdb.Get(ctx, rediskey.Lane(lane.Account, lane.Model, rediskey.LaneLease)).Result()
		switch {
		case !isKnown(lane.Model) && !lane.Held && len(lane.Running) > 0:
			d.bad("set DANQING_MODEL_CATALOG to the file that its jobs were enqueued with, for a worker with that account: DashScope keeps their images for 24 hours", "%s: no worker, %s at DashScope, and the model is not in the catalog", name, count(len(lane.Running), "task"))
			continue
		case errors.Is(err, redis.Nil) || !lane.Held:
			d.note("start a worker with that account and model if its jobs wait", "%s: no worker", name)
			continue
		case err != nil:
			d.bad("let its user read danqing:*", "%s: %v", name, err)
			continue
		}
		who := "another worker"
		if holder == own {
			who = "the worker of this data directory"
		}
		if lane.State == jobs.LanePaused {
			d.warn("remove the cause; the lane continues by itself, or after an operator's pause by: danqing jobs resume", "%s: held by %s and paused: %s", name, who, lane.Message)
			continue
		}
		d.ok("%s: held by %s, %s at once", name, who, count(lane.Concurrency, "task"))
	}
}
