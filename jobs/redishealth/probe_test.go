package redishealth_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redishealth"
	"github.com/danqing-queue/danqing/jobs/redistest"
)

// fakeRedis answers INFO with a text, and commands that write or wait.
type fakeRedis struct {
	info    string
	kept    []int64        // the answer to WAITAOF
	copies  int64          // the answer to WAIT
	refused error          // the answer to CONFIG
	answers map[string]any // the answers to other commands by name, errors or values

	mu   sync.Mutex
	sent []string
}

var _ redis.Hook = (*fakeRedis)(nil)

func (p *fakeRedis) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
}

func (p *fakeRedis) answer(cmd redis.Cmder) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err, ok := p.answers[cmd.Name()].(error); ok {
		cmd.SetErr(err)
		return err
	}
	switch cmd := cmd.(type) {
	case *redis.Cmd:
		cmd.SetVal(p.answers[cmd.Name()])
		return nil
	case *redis.StringCmd:
		cmd.SetVal(p.info)
	case *redis.MapStringStringCmd:
		if p.refused != nil {
			cmd.SetErr(p.refused)
			return p.refused
		}
		name := fmt.Sprint(cmd.Args()[2])
		cmd.SetVal(map[string]string{name: map[string]string{"appendfsync": "everysec", "no-appendfsync-on-rewrite": "yes", "save": "3600 1"}[name]})
	case *redis.IntSliceCmd:
		cmd.SetVal(p.kept)
	case *redis.IntCmd:
		cmd.SetVal(p.copies)
	}
	if cmd.Name() != "info" && cmd.Name() != "config" {
		args := cmd.Args()
		if cmd.Name() == "set" {
			args = args[:2]
		}
		p.sent = append(p.sent, strings.ToLower(strings.Trim(fmt.Sprint(args), "[]")))
	}
	return nil
}

func (p *fakeRedis) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error { return p.answer(cmd) }
}

func (p *fakeRedis) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) (err error) {
		for _, cmd := range cmds {
			if e := p.answer(cmd); err == nil {
				err = e
			}
		}
		return err
	}
}

func (p *fakeRedis) client(t *testing.T) redis.UniversalClient {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: "pretended.invalid:1"})
	rdb.AddHook(p)
	t.Cleanup(func() { assert.NoError(t, rdb.Close()) })
	return rdb
}

// infoOf returns the INFO of a Redis version, with further lines.
func infoOf(version string, lines ...string) string {
	return strings.Join(append([]string{"# Server", "redis_version:" + version, "run_id:run", "", "role:master", "master_replid:history"}, lines...), "\r\n")
}

func TestWaitDurableAsksForTheStrongest(t *testing.T) {
	t.Parallel()
	const barrier = "set danqing:barrier"
	const replica = "slave%d:ip=10.0.0.2,port=6379,state=online,offset=14,lag=0"
	one := []string{"connected_slaves:2", fmt.Sprintf(replica, 0), "slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0"}
	for name, test := range map[string]struct {
		info   string
		kept   []int64
		copies int64
		sent   []string
		fails  string
	}{
		"disk":                {info: infoOf("7.2.4", "aof_enabled:1"), kept: []int64{1, 0}, sent: []string{barrier, "waitaof 1 0 2000"}},
		"disk too slow":       {info: infoOf("8.0.1", "aof_enabled:1"), kept: []int64{0, 0}, sent: []string{barrier, "waitaof 1 0 2000"}, fails: "not on its disk within 2s"},
		"disk and replica":    {info: infoOf("7.2.0", append(one, "aof_enabled:1")...), kept: []int64{1, 0}, copies: 1, sent: []string{barrier, "waitaof 1 0 2000", "wait 1 2000"}},
		"replica too slow":    {info: infoOf("7.0.15", append(one, "aof_enabled:1")...), sent: []string{barrier, "wait 1 2000"}, fails: "by 0 of 1 replicas within 2s"},
		"old, disk alone":     {info: infoOf("7.0.15", "aof_enabled:1")},
		"neither":             {info: infoOf("7.2.4")},
		"no facts":            {info: "connected_clients:1\r\n"},
		"a version of theirs": {info: infoOf("unstable", "aof_enabled:1"), kept: []int64{1}, sent: []string{barrier, "waitaof 1 0 2000"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &fakeRedis{info: test.info, kept: test.kept, copies: test.copies}
			client := p.client(t)
			d, err := redishealth.Probe(t.Context(), client)
			require.NoError(t, err)
			err = redishealth.WaitDurable(t.Context(), client, d)
			if test.fails == "" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, redishealth.ErrNotAcknowledged)
				require.ErrorContains(t, err, test.fails)
			}
			assert.Equal(t, test.sent, p.sent)
		})
	}
}

// Nothing of a file that is never synced can be waited for.
func TestWaitDurableWithoutFsync(t *testing.T) {
	t.Parallel()
	p := &fakeRedis{}
	require.NoError(t, redishealth.WaitDurable(t.Context(), p.client(t), redishealth.Durability{Version: "7.2.4", AOF: true, Fsync: "no"}))
	assert.Empty(t, p.sent)
}

// What a server refuses to say is not waited for, and is a finding.
func TestWaitRefused(t *testing.T) {
	t.Parallel()
	unknown := replyError("ERR unknown command 'WAIT'")
	p := &fakeRedis{
		info:    infoOf("7.4.0", "aof_enabled:1", "connected_slaves:1", "slave0:ip=10.0.0.2,port=6379,state=online,offset=14,lag=0"),
		answers: map[string]any{"wait": unknown, "waitaof": replyError("ERR WAITAOF is not supported")},
	}
	d, err := redishealth.Probe(t.Context(), p.client(t))
	require.NoError(t, err)
	require.NoError(t, redishealth.WaitDurable(t.Context(), p.client(t), d))
	assert.Empty(t, p.sent)
	assert.Contains(t, texts(d.Findings()), "warning: Redis does not say when a write is on its disk: WAITAOF: ERR WAITAOF is not supported: set appendfsync always")
	assert.Contains(t, texts(d.Findings()), "warning: Redis does not say when its replicas have a write: WAIT: ERR unknown command 'WAIT': let its user call WAIT")
}

// A managed Redis refuses CONFIG: only the facts in INFO are known.
func TestDurabilityWithoutConfig(t *testing.T) {
	t.Parallel()
	p := &fakeRedis{info: infoOf("7.0.15", "aof_enabled:1"), refused: replyError("NOPERM this user has no permissions to run the 'config|get' command")}
	d, err := redishealth.Probe(t.Context(), p.client(t))
	require.NoError(t, err)
	assert.Equal(t, redishealth.Durability{Version: "7.0.15", RunID: "run", ReplicationID: "history", AOF: true}, d)
	assert.Contains(t, texts(d.Findings()), "does not report how often it syncs")

	p.refused = net.ErrClosed // no answer is not a refusal
	_, err = redishealth.Probe(t.Context(), p.client(t))
	require.ErrorIs(t, err, net.ErrClosed)
}

type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

func TestDatasetID(t *testing.T) {
	t.Parallel()
	redistest.Both(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Helper()
		id, err := redishealth.DatasetID(t.Context(), rdb)
		require.NoError(t, err)
		again, err := redishealth.DatasetID(t.Context(), rdb)
		require.NoError(t, err)
		assert.Equal(t, id, again)
		d, err := redishealth.Probe(t.Context(), rdb)
		require.NoError(t, err)
		if d.Version == "" {
			assert.Empty(t, id)
			assert.Empty(t, d.Findings())
			return
		}
		assert.Len(t, id, 40+1+40)
		assert.Equal(t, d.RunID+"/"+d.ReplicationID, id)
		require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err())
		require.NoError(t, rdb.ConfigSet(t.Context(), "maxmemory", "1gb").Err())
		d, err = redishealth.Probe(t.Context(), rdb)
		require.NoError(t, err)
		assert.Contains(t, texts(d.Findings()), "evicts jobs when it is full, because maxmemory-policy is allkeys-lru")
	})
}

// texts joins findings for assertions.
func texts(found []redishealth.Finding) string {
	lines := make([]string, len(found))
	for i, f := range found {
		lines[i] = fmt.Sprintf("%s: %s: %s", f.Severity, f.Text, f.Remedy)
	}
	return strings.Join(lines, "\n")
}

// Each risk is a finding with its remedy.
func TestFindings(t *testing.T) {
	t.Parallel()
	sound := redishealth.Durability{Version: "7.2.4", AOF: true, Fsync: "always", Replicas: 1, EvictionPolicy: "noeviction", MaxMemoryBytes: 1 << 30, UsedBytes: 1 << 20}
	require.Empty(t, sound.Findings())
	for name, test := range map[string]struct {
		change func(*redishealth.Durability)
		want   string // severity: how the text begins|part of the remedy
	}{
		"old":                {func(d *redishealth.Durability) { d.Version = "6.0.16" }, "error: Redis is 6.0.16|upgrade it to 6.2"},
		"old by a lot":       {func(d *redishealth.Durability) { d.Version = "5" }, "error: Redis is 5|upgrade it to 6.2"},
		"replica":            {func(d *redishealth.Durability) { d.Replica = true }, "error: this Redis is a replica|set REDIS_URL to its primary"},
		"loading":            {func(d *redishealth.Durability) { d.Loading = true }, "warning: Redis is still reading|loading:0"},
		"disk full":          {func(d *redishealth.Durability) { d.AOFFailing = true }, "error: Redis could not write its append-only file|free its disk"},
		"snapshot fails":     {func(d *redishealth.Durability) { d.SnapshotFailing = true }, "error: Redis could not save its last snapshot|free its disk"},
		"nothing":            {func(d *redishealth.Durability) { d.AOF, d.Replicas = false, 0 }, "error: Redis has no append-only file, so that its next restart loses jobs|appendonly yes"},
		"snapshots":          {func(d *redishealth.Durability) { d.AOF, d.Replicas, d.Snapshots = false, 0, "3600 1" }, "error: Redis only saves snapshots (3600 1)|appendonly yes"},
		"replicas' memory":   {func(d *redishealth.Durability) { d.AOF = false }, "warning: Redis has no append-only file, so that what it has acknowledged lives in the memory of its replicas|appendonly yes"},
		"never synced":       {func(d *redishealth.Durability) { d.Fsync = "no" }, "warning: Redis leaves it to the system|appendfsync everysec"},
		"a second, waited":   {func(d *redishealth.Durability) { d.Fsync = "everysec" }, "note: Redis syncs every second; nothing is bought before its intent is on the disk|appendfsync always"},
		"a second, unwaited": {func(d *redishealth.Durability) { d.Fsync, d.Version = "everysec", "7.0.15" }, "warning: Redis syncs every second, so that a power cut loses up to a second|upgrade to Redis 7.2"},
		"rewrites":           {func(d *redishealth.Durability) { d.NoFsyncOnRewrite = true }, "warning: Redis syncs nothing while it rewrites|no-appendfsync-on-rewrite no"},
		"has evicted":        {func(d *redishealth.Durability) { d.EvictionPolicy, d.EvictedKeys = "allkeys-lru", 7 }, "error: Redis has evicted 7 keys|maxmemory-policy noeviction"},
		"will evict":         {func(d *redishealth.Durability) { d.EvictionPolicy = "volatile-ttl" }, "error: Redis evicts jobs when it is full, because maxmemory-policy is volatile-ttl|maxmemory-policy noeviction"},
		"may evict": {func(d *redishealth.Durability) { d.EvictionPolicy, d.MaxMemoryBytes = "allkeys-lru", 0 },
			"warning: maxmemory-policy is allkeys-lru, so that Redis will evict jobs as soon as|maxmemory-policy noeviction"},
		"nearly full": {func(d *redishealth.Durability) { d.UsedBytes = 900 << 20 }, "warning: Redis uses 87 % of its maxmemory of 1073741824 bytes|raise maxmemory"},
		"full":        {func(d *redishealth.Durability) { d.UsedBytes = 1 << 30 }, "error: Redis uses 100 %|raise maxmemory"},
		"one machine": {func(d *redishealth.Durability) { d.Replicas = 0 }, "note: Redis has no replica|replicaof HOST PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := sound
			test.change(&d)
			found := d.Findings()
			require.NotEmpty(t, found)
			text, remedy, _ := strings.Cut(test.want, "|")
			all := texts(found[:1])
			assert.True(t, strings.HasPrefix(all, text), all)
			assert.Contains(t, found[0].Remedy, remedy)
		})
	}
}

// The worst comes first.
func TestFindingsOrder(t *testing.T) {
	t.Parallel()
	found := redishealth.Durability{Version: "6.0.0", AOF: true, Fsync: "everysec", EvictionPolicy: "allkeys-lru", MaxMemoryBytes: 1, UsedBytes: 0}.Findings()
	var order []redishealth.Severity
	for _, f := range found {
		order = append(order, f.Severity)
	}
	assert.Equal(t, []redishealth.Severity{redishealth.SeverityError, redishealth.SeverityError, redishealth.SeverityWarning, redishealth.SeverityNote}, order)
}
