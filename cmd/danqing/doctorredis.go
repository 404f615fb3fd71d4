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
	options, err := d.redisOptions(ctx)
	if err != nil {
		d.bad("correct REDIS_URL; or if no danqing runs in the data directory, delete its "+instanceFile, "%v", err)
		return nil
	}
	if options == nil {
		d.note("for a queue that others can use set REDIS_URL, or start danqing up", "no Redis is configured and no danqing up runs here: batch and generate use their own queue")
		return nil
	}
	// The user waits: one attempt, and an answer within seconds.
	options.MaxRetries, options.DialerRetries, options.ContextTimeoutEnabled = -1, 1, true
	options.DialTimeout = redisCheckTimeout
	rdb := redis.NewClient(options)
	pinging, cancel := context.WithTimeout(ctx, redisCheckTimeout)
	defer cancel()
	if err := rdb.Ping(pinging).Err(); err != nil {
		text, remedy := explainRedisError(options.Addr, err)
		d.bad(remedy, "%s", text)
		if err := rdb.Close(); err != nil {
			d.writeErr = err
		}
		return nil
	}
	d.jobs = jobs.NewInspector(rdb)
	mode, err := d.jobs.Mode(ctx)
	d.reportMode(worker.PlaceRedis, mode, err)
	d.checkRedisLatency(ctx, rdb)
	d.checkRedisDurability(ctx, rdb)
	d.checkLanes(ctx, rdb)
	return rdb
}

// redisOptions returns the options for the queue's Redis, or nil if there is none.
func (d *doctor) redisOptions(ctx context.Context) (*redis.Options, error) {
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
	return at.redisOptions(d.cfg.DataDir)
}

// explainRedisError returns in one sentence why Redis cannot be reached, and what to do.
func explainRedisError(addr string, err error) (text, remedy string) {
	var unknown *net.DNSError
	var late net.Error
	reply := err.Error()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + addr, "start Redis there, or correct REDIS_URL"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no socket " + addr, "start Redis with: unixsocket " + addr + "; or correct REDIS_URL"
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return fmt.Sprintf("there is no host %q", unknown.Name), "correct REDIS_URL"
	case strings.HasPrefix(reply, "NOAUTH"), strings.HasPrefix(reply, "WRONGPASS"), strings.Contains(reply, "AUTH"):
		return "the Redis at " + addr + " refuses the user or the password: " + reply, "correct REDIS_URL, as in redis://USER:PASSWORD@HOST:PORT/0"
	case strings.HasPrefix(reply, "LOADING"):
		return "the Redis at " + addr + " is still reading its data from disk", "wait until it has"
	case strings.Contains(reply, "tls:"), strings.Contains(reply, "x509:"):
		return "no TLS with " + addr + ": " + reply, "set REDIS_URL to redis:// if it speaks no TLS, or get a certificate that this machine trusts"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return fmt.Sprintf("%s does not answer within %v", addr, redisCheckTimeout), "look at the network between, or correct REDIS_URL"
	}
	return addr + " does not answer as a Redis: " + reply, "correct REDIS_URL; begin it with rediss:// if it speaks TLS"
}

// checkRedisLatency times a few calls and compares the clocks.
func (d *doctor) checkRedisLatency(ctx context.Context, rdb *redis.Client) {
	took := make([]time.Duration, pings)
	for i := range took {
		started := time.Now()
		if err := rdb.Ping(ctx).Err(); err != nil {
			text, remedy := explainRedisError(rdb.Options().Addr, err)
			d.bad(remedy, "%s", text)
			return
		}
		took[i] = time.Since(started)
	}
	slices.Sort(took)
	switch median := took[pings/2]; {
	case median > maxRedisLatency:
		d.warn("put the workers near it", "%s takes %d ms to answer, about ten times per image", rdb.Options().Addr, median.Milliseconds())
	default:
		d.ok("%s answers in %.1f ms", rdb.Options().Addr, float64(median.Microseconds())/1000)
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
		d.bad("check for a full memory with noeviction, a replica, or a user without +@all ~danqing:* ~asynq:* &danqing:*", "Redis takes no writes: %v", err)
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
	d.ok("Redis %s, AOF %t, fsync %q, %s, maxmemory-policy %q", durability.Version, durability.AOF, durability.Fsync, count(durability.Replicas, "replica"), durability.EvictionPolicy)
	started := time.Now()
	if err := redishealth.WaitDurable(ctx, rdb, durability); err != nil {
		d.warn("check its disk and its replicas; each image waits that long before it is bought", "%v", err)
		return
	}
	d.ok("writes are as durable as they can be after %d ms", time.Since(started).Milliseconds())
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
