// Package redishealth examines the Redis that holds the jobs: whether it keeps what it has
// acknowledged, what puts the jobs at risk, and whether it may have lost data.
package redishealth

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/jobs/rediskey"
)

// Durability is how a Redis keeps what it has acknowledged. A field that it does not
// report has its zero value: the embedded queue, which keeps its own promises, reports
// nothing, and a managed Redis may refuse CONFIG.
type Durability struct {
	// Version is redis_version, as in 7.0.15; "" for the embedded queue.
	Version string
	// RunID changes with each start of the server. ReplicationID changes when its data
	// may have another history: at a start, and at a replica's promotion.
	RunID, ReplicationID string
	// Replica is set for a replica, which accepts no writes.
	Replica bool
	// Loading is set while Redis reads its data from disk and refuses commands.
	Loading bool

	// AOF is set if each write is appended to a file. Fsync says when that is synced:
	// always, everysec or no; "" if Redis does not report it.
	AOF   bool
	Fsync string
	// NoFsyncOnRewrite is set if nothing is synced while the file is rewritten.
	NoFsyncOnRewrite bool
	// AOFFailing is set if the last write to the file failed.
	AOFFailing bool
	// Snapshots says when Redis saves all its data at once, as in "3600 1 300 100",
	// seconds and writes; "" if never, or if it does not report it.
	Snapshots string
	// SnapshotFailing is set if the last snapshot failed; Redis then refuses writes,
	// unless configured otherwise.
	SnapshotFailing bool
	// Replicas counts the replicas that have all of its data.
	Replicas int

	// RefusesWait and RefusesWaitAOF are the answers of a server that refuses to say when
	// a write is at its replicas, or on its disk; "" if it does not refuse. Before 7.2 no
	// Redis says the latter, and it is not asked.
	RefusesWait, RefusesWaitAOF string

	// EvictionPolicy is what happens at MaxMemoryBytes; 0 means no limit.
	EvictionPolicy string
	MaxMemoryBytes int64
	UsedBytes      int64
	// EvictedKeys counts the keys that were evicted since the start.
	EvictedKeys int64
}

// Probe asks Redis how it keeps its data. It fails with Redis's own error if Redis does
// not respond. That it refuses CONFIG is not an error.
func Probe(ctx context.Context, rdb redis.UniversalClient) (Durability, error) {
	info, err := readInfo(ctx, rdb)
	if err != nil {
		return Durability{}, err
	}
	d := info.durability()
	if d.Version == "" {
		return d, nil
	}
	pipe := rdb.Pipeline()
	wait := pipe.Do(ctx, "wait", 0, 0) // for nothing
	var waitAOF *redis.Cmd
	if !d.olderThan(7, 2) {
		waitAOF = pipe.Do(ctx, "waitaof", 0, 0, 0)
	}
	settings := map[string]*redis.MapStringStringCmd{}
	for _, name := range []string{"appendfsync", "no-appendfsync-on-rewrite", "save"} {
		settings[name] = pipe.ConfigGet(ctx, name)
	}
	// A user without the permission gets an error for each, which is ignored.
	if _, err := pipe.Exec(ctx); err != nil && !isReply(err) {
		return Durability{}, fmt.Errorf("read Redis's settings: %w", err)
	}
	d.RefusesWait = refused(wait)
	d.RefusesWaitAOF = refused(waitAOF)
	d.Fsync = settings["appendfsync"].Val()["appendfsync"]
	d.NoFsyncOnRewrite = settings["no-appendfsync-on-rewrite"].Val()["no-appendfsync-on-rewrite"] == "yes"
	d.Snapshots = settings["save"].Val()["save"]
	return d, nil
}

// refused returns the server's answer to a command that it refused, "" if it did not, or was
// not asked.
func refused(cmd *redis.Cmd) string {
	if cmd == nil || cmd.Err() == nil {
		return ""
	}
	return cmd.Err().Error()
}

// isReply reports whether an error is Redis's reply, not the lack of one.
func isReply(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// DatasetID identifies the start of the Redis server and the history of its data. While
// it stays the same, Redis has lost nothing; after it changed, Redis may have. It is ""
// for the embedded queue. It fails with Redis's own error.
func DatasetID(ctx context.Context, rdb redis.UniversalClient) (string, error) {
	info, err := readInfo(ctx, rdb)
	if err != nil || info["run_id"] == "" {
		return "", err
	}
	return info["run_id"] + "/" + info["master_replid"], nil
}

// info is the reply to INFO, by field.
type info map[string]string

// readInfo requests all sections at once: several by name need Redis 7, and the embedded
// queue has none of those that matter here.
func readInfo(ctx context.Context, rdb redis.UniversalClient) (info, error) {
	text, err := rdb.Info(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("read INFO of Redis: %w", err)
	}
	return parseInfo(text), nil
}

func parseInfo(text string) info {
	fields := info{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// number returns a field, 0 if it is not a number.
func (i info) number(name string) int64 {
	n, err := strconv.ParseInt(i[name], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// failed reports whether a status is reported and not ok.
func (i info) failed(name string) bool { return i[name] != "" && i[name] != "ok" }

func (i info) durability() Durability {
	d := Durability{
		Version: i["redis_version"], RunID: i["run_id"], ReplicationID: i["master_replid"],
		Replica: i["role"] == "slave", Loading: i.number("loading") != 0,
		AOF: i.number("aof_enabled") != 0, AOFFailing: i.failed("aof_last_write_status"), SnapshotFailing: i.failed("rdb_last_bgsave_status"),
		EvictionPolicy: i["maxmemory_policy"], MaxMemoryBytes: i.number("maxmemory"), UsedBytes: i.number("used_memory"),
		EvictedKeys: i.number("evicted_keys"),
	}
	// slave0:ip=10.0.0.2,port=6379,state=online,offset=14,lag=0; others still copy.
	for n := range i.number("connected_slaves") {
		if strings.Contains(i["slave"+strconv.FormatInt(n, 10)], "state=online") {
			d.Replicas++
		}
	}
	return d
}

// olderThan reports whether the server is older than a version; false if it does not
// report one.
func (d Durability) olderThan(major, minor int) bool {
	if d.Version == "" {
		return false
	}
	numbers := strings.SplitN(d.Version, ".", 3)
	numbers = append(numbers, "0")
	x, errX := strconv.Atoi(numbers[0])
	y, errY := strconv.Atoi(numbers[1])
	if errX != nil || errY != nil {
		return false
	}
	return x < major || x == major && y < minor
}

const (
	// durableTimeout limits one wait. With everysec the disk answers within two seconds
	// (redis.io, persistence page), mostly within one.
	durableTimeout = 2 * time.Second
)

// ErrNotAcknowledged means that it is not known whether what was written is durable. It
// is written.
var ErrNotAcknowledged = errors.New("no acknowledgement in time")

// waitsForDisk reports whether Redis can say when a write is on its disk: WAITAOF exists
// since 7.2, and waits forever where nothing is synced.
func (d Durability) waitsForDisk() bool {
	return d.Version != "" && d.AOF && d.Fsync != "no" && !d.olderThan(7, 2) && d.RefusesWaitAOF == ""
}

// waitsForReplicas reports whether Redis has replicas and says when a write is there.
func (d Durability) waitsForReplicas() bool { return d.Replicas > 0 && d.RefusesWait == "" }

// WaitDurable waits until everything that was written before the call, by any connection,
// is as durable as this Redis can confirm: on its own disk, if it has an AOF and is 7.2
// or newer, and at each of d's replicas. Where neither is possible it returns at once.
//
// It fails with [ErrNotAcknowledged] if that takes longer than two seconds for the disk
// and two for the replicas, or with Redis's own error. The caller decides whether to go
// on.
func WaitDurable(ctx context.Context, rdb redis.UniversalClient, d Durability) error {
	if !d.waitsForDisk() && !d.waitsForReplicas() {
		return nil
	}
	// Redis counts one offset for all writes, so that a later one's covers those
	// before it. It compares with what this connection has written, which therefore
	// must be one: Watch keeps it, and fails where it breaks, and gives each command
	// a read timeout of its own, which a pipeline does not (go-redis v9.23).
	err := rdb.Watch(ctx, func(tx *redis.Tx) error {
		if err := tx.Set(ctx, rediskey.Barrier, time.Now().UnixMilli(), 0).Err(); err != nil {
			return err
		}
		if d.waitsForDisk() {
			kept, err := tx.WaitAOF(ctx, 1, 0, durableTimeout).Result()
			if err != nil {
				return err
			}
			if len(kept) == 0 || kept[0] < 1 {
				return fmt.Errorf("%w: not on its disk within %v", ErrNotAcknowledged, durableTimeout)
			}
		}
		if !d.waitsForReplicas() {
			return nil
		}
		// Not WAITAOF's own count of replicas: one without AOF never counts there,
		// and the primary does not report which have one.
		kept, err := tx.Wait(ctx, d.Replicas, durableTimeout).Result()
		if err == nil && kept < int64(d.Replicas) {
			err = fmt.Errorf("%w: by %d of %d replicas within %v", ErrNotAcknowledged, kept, d.Replicas, durableTimeout)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until writes are durable: %w", err)
	}
	return nil
}
