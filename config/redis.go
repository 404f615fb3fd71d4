package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is how a Redis is reached: one server, or the primary that Sentinels name.
type Redis struct {
	// Server is nil with Sentinels, and Sentinel is nil without.
	Server   *redis.Options
	Sentinel *redis.FailoverOptions
	// Address names the server or the Sentinels in messages, without a password.
	Address string
}

const (
	// redisForm is the form of REDIS_URL.
	redisForm = "must be redis://[USER:PASSWORD@]HOST:PORT[/DB], rediss://… for TLS, unix://PATH, or " + sentinelForm +
		"; percent-encode special characters of the password, such as # as %23 and @ as %40"
	sentinelForm = "redis-sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT[/DB]?master=NAME (rediss-sentinel:// for TLS)"
	// sentinelPort is the port of a Sentinel without one (redis.io, Sentinel page).
	sentinelPort = "26379"
)

var errRedisURL = errors.New(redisForm)

// Redis returns how the Redis of REDIS_URL is reached, including the user name, which
// asynq's parser drops. It fails without a REDIS_URL, so check RedisURL first. It reads the
// files of DANQING_REDIS_CA, DANQING_REDIS_CERT and DANQING_REDIS_KEY.
func (c *Config) Redis() (*Redis, error) {
	r, err := ParseRedisURL(c.RedisURL.Reveal())
	if err != nil {
		return nil, &Error{[]Problem{{"REDIS_URL", err.Error()}}}
	}
	return r, c.redisTLS(r)
}

// ParseRedisURL parses a URL as in REDIS_URL. No error contains a part of it.
func ParseRedisURL(text string) (*Redis, error) {
	// A password with an @ or a # would be taken for a part of the host, and shown.
	if strings.Count(text, "@") > 1 || strings.Contains(text, "#") {
		return nil, errRedisURL
	}
	if strings.HasPrefix(text, "redis-sentinel://") || strings.HasPrefix(text, "rediss-sentinel://") {
		return parseSentinelURL(text)
	}
	o, err := redis.ParseURL(text)
	if err != nil { // not wrapped: its text may contain the password
		return nil, errRedisURL
	}
	return &Redis{Server: o, Address: o.Addr}, nil
}

// parseSentinelURL parses the URL of a primary that Sentinels name. The form is asynq's, but
// that the user and the password are those of the Redis servers, as in other URLs;
// sentinel_username and sentinel_password are those of the Sentinels.
func parseSentinelURL(text string) (*Redis, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	end := strings.IndexAny(rest+"/", "/?")
	authority, tail := rest[:end], rest[end:]
	user, hosts, found := strings.Cut(authority, "@")
	if !found {
		user, hosts = "", authority
	}
	addresses, err := sentinelAddresses(hosts)
	if err != nil {
		return nil, err
	}
	// Go's URLs have one host.
	u, err := url.Parse(strings.TrimSuffix(scheme, "-sentinel") + "://" + user + "@" + addresses[0] + tail)
	if err != nil { // not wrapped: its text may contain the password
		return nil, errRedisURL
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errRedisURL
	}
	master := q.Get("master")
	if master == "" {
		return nil, errors.New("lacks ?master=NAME, the name that the Sentinels have for the primary: " + sentinelForm)
	}
	if slices.ContainsFunc([]string{"addr", "master_name", "username", "password", "replica_only", "route_by_latency", "route_by_latency_tolerance", "route_randomly", "use_disconnected_replicas"}, q.Has) {
		return nil, errRedisURL
	}
	password, _ := u.User.Password()
	// go-redis's form: the user and the password are the Sentinels'.
	for name, value := range map[string]string{"username": u.User.Username(), "password": password, "master_name": master} {
		q.Set(name, value)
	}
	u.User = url.UserPassword(q.Get("sentinel_username"), q.Get("sentinel_password"))
	for _, own := range []string{"master", "sentinel_username", "sentinel_password"} {
		q.Del(own)
	}
	q["addr"] = addresses[1:]
	u.RawQuery = q.Encode()
	o, err := redis.ParseFailoverURL(u.String())
	if err != nil {
		return nil, errRedisURL
	}
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // of the first Sentinel: each server has its own
	}
	return &Redis{Sentinel: o, Address: "the primary " + strconv.Quote(master) + " of the Sentinels at " + strings.Join(addresses, ",")}, nil
}

// sentinelAddresses splits a list of hosts, and adds the ports that are missing.
func sentinelAddresses(hosts string) ([]string, error) {
	var addresses []string
	for host := range strings.SplitSeq(hosts, ",") {
		if name := strings.Trim(host, "[]"); net.ParseIP(name) != nil || !strings.Contains(host, ":") {
			host = net.JoinHostPort(name, sentinelPort)
		}
		u, err := url.Parse("redis://" + host)
		if err != nil || u.Hostname() == "" || u.Port() == "" || u.Host != host {
			return nil, errRedisURL
		}
		addresses = append(addresses, host)
	}
	return addresses, nil
}

// redisTLS adds the certificates of the environment. It fails with an [*Error].
func (c *Config) redisTLS(r *Redis) error {
	settings := c.redisCertificates
	var e Error
	bad := func(variable, text string) { e.Problems = append(e.Problems, Problem{variable, text}) }
	var conf *tls.Config
	if r.Server != nil {
		conf = r.Server.TLSConfig
	} else {
		conf = r.Sentinel.TLSConfig
	}
	for variable, file := range map[string]string{"DANQING_REDIS_CA": settings.authorities, "DANQING_REDIS_CERT": settings.certificate, "DANQING_REDIS_KEY": settings.key} {
		if file != "" && conf == nil {
			bad(variable, "is set, but REDIS_URL has no TLS: write rediss:// or rediss-sentinel://, or unset it")
		}
	}
	slices.SortFunc(e.Problems, func(a, b Problem) int { return strings.Compare(a.Variable, b.Variable) })
	if file := settings.authorities; file != "" && conf != nil {
		pem, err := os.ReadFile(file) //nolint:gosec // the operator's own
		conf.RootCAs = x509.NewCertPool()
		switch {
		case err != nil:
			bad("DANQING_REDIS_CA", err.Error())
		case !conf.RootCAs.AppendCertsFromPEM(pem):
			bad("DANQING_REDIS_CA", fmt.Sprintf("%s has no certificate: it must be a PEM file of the authorities that have signed Redis's certificate", file))
		}
	}
	switch {
	case conf == nil || settings.certificate == "" && settings.key == "":
	case settings.certificate == "" || settings.key == "":
		bad("DANQING_REDIS_CERT", "and DANQING_REDIS_KEY must both be set, or neither")
	default:
		pair, err := tls.LoadX509KeyPair(settings.certificate, settings.key)
		if err != nil {
			bad("DANQING_REDIS_CERT", err.Error())
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	if len(e.Problems) > 0 {
		return &e
	}
	return nil
}

// Client returns a client, which the caller must close. poolSize is the number of its
// connections unless the URL says another; 0 is go-redis's default. No error of it contains
// a part of a password.
func (r *Redis) Client(poolSize int) *redis.Client {
	if r.Sentinel != nil {
		o := *r.Sentinel
		if o.PoolSize == 0 {
			o.PoolSize = poolSize
		}
		rdb := redis.NewFailoverClient(&o)
		rdb.AddHook(newRedactor(o.Password, o.SentinelPassword))
		return rdb
	}
	o := *r.Server
	if o.PoolSize == 0 {
		o.PoolSize = poolSize
	}
	rdb := redis.NewClient(&o)
	rdb.AddHook(newRedactor(o.Password))
	return rdb
}

// FailFast makes clients fail after one attempt, and within dialTimeout where nothing
// answers, for somebody who waits.
func (r *Redis) FailFast(dialTimeout time.Duration) {
	if o := r.Sentinel; o != nil {
		o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.DialTimeout = -1, 1, true, dialTimeout
		return
	}
	o := r.Server
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.DialTimeout = -1, 1, true, dialTimeout
}
