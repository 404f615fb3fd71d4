package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/jobs/redistest"
	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/journal"
)

// planted is a fault, and what its remedy says to do about it.
type planted struct {
	plant func(*doctorStack)
	// begins is how the finding begins, and remedy a part of what it says to do.
	begins, remedy string
	// cure does that.
	cure func(p *doctorStack, remedy string)
}

// set returns what sets a variable.
func set(name, value string) func(*doctorStack) {
	return func(p *doctorStack) { p.env[name] = value }
}

// cureBy is a cure that sets a variable.
func cureBy(name, value string) func(*doctorStack, string) {
	return func(p *doctorStack, _ string) { p.env[name] = value }
}

// offers makes the service answer with a list of models.
func (p *doctorStack) offers(body string) {
	p.dashscope = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/api/v1"+dashscope.PathModels {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set(dashscope.HeaderSimulated, "true")
		_, _ = fmt.Fprint(w, body) // the test looks what doctor makes of it
	}
}

// restore is a cure: the variable is corrected, or the setting that a service had.
func restore(names ...string) func(*doctorStack, string) {
	return func(p *doctorStack, _ string) {
		fresh := newDoctorStack(p.t)
		for _, name := range names {
			p.env[name] = fresh.env[name]
		}
		p.dashscope, p.bucket = nil, nil
	}
}

// server starts a redis-server with an append-only file, and makes it the queue.
func (p *doctorStack) server(args ...string) redis.UniversalClient {
	p.t.Helper()
	s := redistest.Start(p.t, append([]string{"--appendonly", "yes"}, args...)...)
	p.env["REDIS_URL"] = "unix://" + s.Socket
	return s.Client(p.t)
}

// listen starts one on a port.
func (p *doctorStack) listen(args ...string) (port string) {
	p.t.Helper()
	port, _ = redistest.Listen(p.t, append([]string{"--appendonly", "yes"}, args...)...)
	p.await(port)
	p.env["REDIS_URL"] = "redis://127.0.0.1:" + port
	return port
}

// replica starts a replica of the one on a port, and waits until it has all data.
func (p *doctorStack) replica(port string) {
	p.t.Helper()
	redistest.Listen(p.t, "--appendonly", "yes", "--replicaof", "127.0.0.1 "+port)
	primary := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	defer primary.Close() //nolint:errcheck // the server ends too
	require.Eventually(p.t, func() bool {
		text, err := primary.Info(p.t.Context(), "replication").Result()
		return err == nil && strings.Contains(text, "state=online")
	}, 30*time.Second, 10*time.Millisecond)
}

// sentinel starts a primary, which Sentinels know as pictures, and one of them.
func (p *doctorStack) sentinel() (primary, sentinel string) {
	p.t.Helper()
	primary = p.listen()
	sentinel = redistest.Sentinel(p.t, "pictures", primary)
	p.await(sentinel)
	return primary, sentinel
}

// await waits until something accepts connections on a port.
func (p *doctorStack) await(port string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(p.t.Context(), "tcp", "127.0.0.1:"+port)
		return err == nil && conn.Close() == nil
	}, 30*time.Second, 10*time.Millisecond)
}

// onServer is a fault of a redis-server whose cure is a command: what the remedy says after
// redis-cli, or the rule of a user.
func onServer(begins, remedy string, args ...string) planted {
	var command *regexp.Regexp
	if strings.Contains(remedy, "ACL SETUSER") {
		command = regexp.MustCompile(`(ACL SETUSER .*)$`)
	} else {
		command = regexp.MustCompile(`(?:redis-cli|redis.conf:) ((?:CONFIG SET )?[a-z-]+ [a-z]+)(?:;|,|$)`)
	}
	return planted{func(p *doctorStack) {
		p.server(args...)
	}, begins, remedy, func(p *doctorStack, remedy string) {
		found := command.FindAllStringSubmatch(remedy, -1)
		require.NotEmpty(p.t, found, remedy)
		words := strings.Fields(strings.ReplaceAll(found[len(found)-1][1], "PASSWORD", "hush-new"))
		if len(words) == 2 { // a line of redis.conf
			words = append([]string{"CONFIG", "SET"}, words...)
		}
		rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: strings.TrimPrefix(p.env["REDIS_URL"], "unix://")})
		defer rdb.Close() //nolint:errcheck // the server ends too
		args := make([]any, len(words))
		for i, word := range words {
			args[i] = word
		}
		require.NoError(p.t, rdb.Do(p.t.Context(), args...).Err())
	}}
}

// redisFaults are those of Redis.
func redisFaults() map[string]planted {
	return map[string]planted{
		"no append-only file": onServer("redis error: Redis has no append-only file", "redis-cli CONFIG SET appendonly yes", "--appendonly", "no"),
		"snapshots only":      onServer("redis error: Redis only saves snapshots (3600 1)", "redis-cli CONFIG SET appendonly yes", "--appendonly", "no", "--save", "3600 1"),
		"eviction":            onServer("redis error: Redis evicts jobs when it is full", "redis-cli CONFIG SET maxmemory-policy noeviction", "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"),
		"never synced":        onServer("redis warning: Redis leaves it to the system", "appendfsync everysec", "--appendfsync", "no"),
		"no sync at rewrites": onServer("redis warning: Redis syncs nothing while it rewrites", "no-appendfsync-on-rewrite no", "--no-appendfsync-on-rewrite", "yes"),
		"too few rights": {func(p *doctorStack) {
			rdb := p.server()
			require.NoError(p.t, rdb.Do(p.t.Context(), "ACL", "SETUSER", "shop", "on", ">hush-new", "~danqing:*", "~asynq:*", "&*", "+@all", "-@dangerous", "+info", "-publish").Err())
			p.env["REDIS_URL"] = strings.Replace(p.env["REDIS_URL"], "unix://", "unix://shop:hush-new@", 1)
		}, "redis error: the user shop may not use PUBLISH", "ACL SETUSER shop reset", func(p *doctorStack, remedy string) {
			_, rule, _ := strings.Cut(strings.ReplaceAll(remedy, ">PASSWORD", ">hush-new"), "ACL SETUSER ")
			words := []any{"ACL", "SETUSER"}
			for word := range strings.FieldsSeq(rule) {
				words = append(words, word)
			}
			_, socket, _ := strings.Cut(p.env["REDIS_URL"], "@")
			admin := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
			defer admin.Close() //nolint:errcheck // the server ends too
			require.NoError(p.t, admin.Do(p.t.Context(), words...).Err())
		}},
		"wrong password": {func(p *doctorStack) {
			port := p.listen("--requirepass", "hush-right")
			p.env["REDIS_URL"] = "redis://:hush-wrong@127.0.0.1:" + port
		}, "redis error: the Redis at 127.0.0.1:", "correct REDIS_URL, as in redis://USER:PASSWORD@", func(p *doctorStack, _ string) {
			p.env["REDIS_URL"] = strings.Replace(p.env["REDIS_URL"], "hush-wrong", "hush-right", 1)
		}},
		"full": {func(p *doctorStack) {
			p.server("--maxmemory", "1mb")
		}, "redis error: Redis takes no writes: OOM", "a full memory wants a higher maxmemory", func(p *doctorStack, _ string) {
			rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: strings.TrimPrefix(p.env["REDIS_URL"], "unix://")})
			defer rdb.Close() //nolint:errcheck // the server ends too
			require.NoError(p.t, rdb.ConfigSet(p.t.Context(), "maxmemory", "1gb").Err())
		}},
		"a replica": {func(p *doctorStack) {
			primary := p.listen()
			p.listen("--replicaof", "127.0.0.1 "+primary)
			p.env["PRIMARY"] = "redis://127.0.0.1:" + primary
		}, "redis error: this Redis is a replica", "set REDIS_URL to its primary", func(p *doctorStack, _ string) { p.env["REDIS_URL"] = p.env["PRIMARY"] }},
		"a cluster": {func(p *doctorStack) { p.listen("--cluster-enabled", "yes") }, "redis error: 127.0.0.1:", "use one primary with replicas", restore("REDIS_URL")},
		"a Sentinel's port": {func(p *doctorStack) {
			primary, sentinel := p.sentinel()
			p.replica(primary)
			p.env["SENTINEL"] = sentinel
			p.env["REDIS_URL"] = "redis://127.0.0.1:" + p.env["SENTINEL"]
		}, "redis error: 127.0.0.1:", "redis-sentinel://HOST:PORT,HOST:PORT?master=pictures", func(p *doctorStack, remedy string) {
			form := regexp.MustCompile(`redis-sentinel://[^ ,]+,[^ ,]+=pictures`).FindString(remedy)
			p.env["REDIS_URL"] = strings.Replace(form, "HOST:PORT,HOST:PORT", "127.0.0.1:"+p.env["SENTINEL"], 1)
		}},
		"a name that no Sentinel has": {func(p *doctorStack) {
			primary, sentinel := p.sentinel()
			p.replica(primary)
			p.env["REDIS_URL"] = "redis-sentinel://127.0.0.1:" + sentinel + "?master=other"
		}, "redis error: no Sentinel knows the name", "correct master=", func(p *doctorStack, _ string) {
			p.env["REDIS_URL"] = strings.Replace(p.env["REDIS_URL"], "other", "pictures", 1)
		}},
		"Sentinels without a replica": {func(p *doctorStack) {
			primary, sentinel := p.sentinel()
			p.env["PRIMARY"] = primary
			p.env["REDIS_URL"] = "redis-sentinel://127.0.0.1:" + sentinel + "?master=pictures"
		}, "redis error: the primary of the Sentinels has no replica", "start a replica", func(p *doctorStack, _ string) { p.replica(p.env["PRIMARY"]) }},
		"no Sentinel": {func(p *doctorStack) {
			p.env["REDIS_URL"] = "redis-sentinel://" + nowhere + "?master=pictures&sentinel_password=hush"
		}, "redis error: no Sentinel answers", "start one", restore("REDIS_URL")},
		"a Redis for a Sentinel": {func(p *doctorStack) {
			port := p.listen()
			p.env["REDIS_URL"] = "redis-sentinel://127.0.0.1:" + port + "?master=pictures"
		}, "redis error: these are no Sentinels", "redis:// for a Redis without", func(p *doctorStack, _ string) {
			p.env["REDIS_URL"], _, _ = strings.Cut(strings.Replace(p.env["REDIS_URL"], "redis-sentinel", "redis", 1), "?")
		}},
		"an authority of one's own": {func(p *doctorStack) {
			dir := p.t.TempDir()
			authority, cert, key := writeCertificates(p.t, dir)
			port, _ := redistest.ListenTLS(p.t, "--appendonly", "yes", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority, "--tls-auth-clients", "yes")
			p.await(port)
			p.env["REDIS_URL"], p.env["CERTIFICATES"] = "rediss://127.0.0.1:"+port, dir
		}, "redis error: no TLS with 127.0.0.1:", "DANQING_REDIS_CA to the authority", func(p *doctorStack, _ string) {
			dir := p.env["CERTIFICATES"]
			p.env["DANQING_REDIS_CA"], p.env["DANQING_REDIS_CERT"], p.env["DANQING_REDIS_KEY"] = dir+"/ca.pem", dir+"/cert.pem", dir+"/key.pem"
		}},
		"no TLS with its port": {func(p *doctorStack) {
			dir := p.t.TempDir()
			authority, cert, key := writeCertificates(p.t, dir)
			port, _ := redistest.ListenTLS(p.t, "--appendonly", "yes", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority, "--tls-auth-clients", "no")
			p.await(port)
			p.env["REDIS_URL"], p.env["CERTIFICATES"] = "redis://127.0.0.1:"+port, dir
		}, "redis error: 127.0.0.1:", "begin it with rediss:// if it speaks TLS", func(p *doctorStack, _ string) {
			p.env["REDIS_URL"], p.env["DANQING_REDIS_CA"] = strings.Replace(p.env["REDIS_URL"], "redis://", "rediss://", 1), p.env["CERTIFICATES"]+"/ca.pem"
		}},
		"TLS with a plain port": {func(p *doctorStack) { p.env["REDIS_URL"] = "rediss://127.0.0.1:" + p.listen() }, "redis error: 127.0.0.1:", "write redis://", func(p *doctorStack, _ string) {
			p.env["REDIS_URL"] = strings.Replace(p.env["REDIS_URL"], "rediss://", "redis://", 1)
		}},
		"nothing there": {set("REDIS_URL", "redis://"+nowhere), "redis error: nothing listens at", "correct REDIS_URL", restore("REDIS_URL")},
	}
}

// refuse makes a service refuse requests with a method.
func refuse(method, code string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != method {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code) // the test looks what doctor makes of it
	}
}

// otherFaults are those of the bucket, the account and the configuration.
func otherFaults() map[string]planted {
	return map[string]planted{
		"no bucket":       {set("DANQING_S3_BUCKET", "elsewhere"), `bucket error: reach: check the bucket: bucket "elsewhere" does not exist`, "", restore("DANQING_S3_BUCKET")},
		"bucket's secret": {set("AWS_SECRET_ACCESS_KEY", "hush-wrong"), "bucket error: reach: check the bucket: the secret access key does not match", "", restore("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3")},
		"bucket's key":    {set("AWS_ACCESS_KEY_ID", "AKIAOTHER"), "bucket error: reach: check the bucket: ", "", restore("AWS_ACCESS_KEY_ID")},
		"no store":        {set("AWS_ENDPOINT_URL_S3", "http://"+nowhere), "bucket error: reach: check the bucket: nothing listens", "", restore("AWS_ENDPOINT_URL_S3")},
		"TLS with the store": {func(p *doctorStack) {
			p.env["AWS_ENDPOINT_URL_S3"] = "https" + p.env["AWS_ENDPOINT_URL_S3"][len("http"):]
		}, "bucket error: reach: check the bucket: ", "", func(p *doctorStack, _ string) {
			p.env["AWS_ENDPOINT_URL_S3"] = "http" + p.env["AWS_ENDPOINT_URL_S3"][len("https"):]
		}},
		"no right to write":  {func(p *doctorStack) { p.bucket = refuse(http.MethodPut, "AccessDenied") }, "bucket error: write: ", "", restore()},
		"no right to delete": {func(p *doctorStack) { p.bucket = refuse(http.MethodDelete, "AccessDenied") }, "bucket warning: delete: ", "", restore()},
		"clock of the store": {func(p *doctorStack) { p.bucket = refuse(http.MethodPut, "RequestTimeTooSkewed") }, "bucket error: write: ", "", restore()},
		"no bucket for a Redis": {func(p *doctorStack) {
			delete(p.env, "DANQING_S3_BUCKET")
			delete(p.env, "DANQING_S3_ADDRESSING")
		}, "bucket error: REDIS_URL is set and DANQING_S3_BUCKET is not", "set DANQING_S3_BUCKET", restore("DANQING_S3_BUCKET", "DANQING_S3_ADDRESSING", "AWS_ENDPOINT_URL_S3")},

		"no key":           {func(p *doctorStack) { delete(p.env, "DASHSCOPE_API_KEY") }, "configuration error: DASHSCOPE_API_KEY is not set", "set it to your key", restore("DASHSCOPE_API_KEY")},
		"wrong key":        {set("DASHSCOPE_API_KEY", "sk-hush-of-another-region"), "dashscope error: account default: dashscope list: HTTP 401", "match DASHSCOPE_HTTP_BASE_URL", restore("DASHSCOPE_API_KEY")},
		"a Token Plan":     {set("DASHSCOPE_API_KEY", "sk-sp-hush"), "", "create a pay-as-you-go key", restore("DASHSCOPE_API_KEY")},
		"no service":       {set("DASHSCOPE_HTTP_BASE_URL", "http://"+nowhere+"/api/v1"), "dashscope error: account default: dashscope list: dial tcp", "DASHSCOPE_HTTP_BASE_URL", restore("DASHSCOPE_HTTP_BASE_URL")},
		"clock":            {func(p *doctorStack) { p.dateAhead(150 * time.Second) }, "dashscope warning: this machine's clock is 2m", "NTP", restore()},
		"another's budget": {set("DANQING_MODELS", "qwen-image"), "dashscope note: account default: qwen-image, 1 of 2 tasks at once", "DANQING_CONCURRENCY=2", func(p *doctorStack, _ string) { p.env["DANQING_CONCURRENCY"] = "2" }},

		"a retirement":    {func(p *doctorStack) { p.sim.Retire("wanx-v1", time.Now().Add(30*24*time.Hour+time.Hour)) }, "dashscope warning: account default: wanx-v1 will be retired on 20", "with another model", cureBy("DANQING_MODELS", "wanx2.0-t2i-turbo")},
		"a retired model": {func(p *doctorStack) { p.sim.Retire("wanx-v1", time.Now().Add(-time.Hour)) }, "dashscope warning: account default: wanx-v1 was retired on 20", "danqing jobs cancel --model wanx-v1", cureBy("DANQING_MODELS", "wanx2.0-t2i-turbo")},
		"a model that is not offered": {func(p *doctorStack) {
			p.offers(`{"output":{"total":1,"models":[{"model":"qwen-image"}]}}`)
		}, "dashscope warning: account default: wanx-v1 is not among the models", "leave it out of DANQING_MODELS", cureBy("DANQING_MODELS", "qwen-image")},
		"another price": {func(p *doctorStack) {
			p.offers(`{"output":{"total":1,"models":[{"model":"wanx-v1","prices":[{"prices":[{"type":"image_number","price":"0.18"}]}]}]}}`)
		}, "dashscope warning: account default: wanx-v1: the service says 0.18 yuan an image, the catalog 0.16 yuan", "set DANQING_PRICES", cureBy("DANQING_PRICES", "wanx-v1=0.18")},
		"fewer tasks at once": {func(p *doctorStack) {
			p.env["DANQING_MODELS"], p.env["DANQING_CONCURRENCY"], p.sim.Concurrency = "qwen-image", "2", 1
		}, "dashscope warning: account default: qwen-image: the service runs 1 task at once, and 2 are configured", "DANQING_CONCURRENCY=1", cureBy("DANQING_CONCURRENCY", "1")},

		"unknown model": {set("DANQING_MODELS", "wanx-v9"), "", "allowed: wanx-v1", restore("DANQING_MODELS")},
		"misspelled":    {set("DANQING_S3_BUKET", "x"), "", "write DANQING_S3_BUCKET", func(p *doctorStack, _ string) { delete(p.env, "DANQING_S3_BUKET") }},
		"no data directory": {func(p *doctorStack) {
			file := filepath.Join(p.t.TempDir(), "file")
			require.NoError(p.t, os.WriteFile(file, nil, 0o600))
			p.env["DANQING_DATA_DIR"] = filepath.Join(file, "data")
		}, "configuration error: data directory /", "set DANQING_DATA_DIR to a folder that is", restore("DANQING_DATA_DIR")},
		"data directory in use": {func(p *doctorStack) {
			data, err := journal.OpenDataDir(p.env["DANQING_DATA_DIR"])
			require.NoError(p.t, err)
			p.t.Cleanup(func() { assert.NoError(p.t, data.Close()) })
		}, "configuration note: data directory /", "DANQING_DATA_DIR of its own", restore("DANQING_DATA_DIR")},
	}
}

// Doctor names each planted fault with its remedy, and what the remedy says makes it go away.
func TestDoctorRemedies(t *testing.T) {
	t.Parallel()
	all := redisFaults()
	maps.Copy(all, otherFaults())
	for name, fault := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newDoctorStack(t)
			p.t = t
			fault.plant(p)
			code, found, text := p.doctor()
			if fault.begins == "" { // not even a finding
				require.Equal(t, exitUsage, code)
				require.Contains(t, text, fault.remedy)
				fault.cure(p, text)
			} else {
				requireFinding(t, found, fault.begins, fault.remedy)
				for _, f := range found {
					if strings.HasPrefix(fmt.Sprintf("%s %s: %s", f.Section, f.Severity, f.Text), fault.begins) {
						fault.cure(p, f.Remedy)
						break
					}
				}
			}
			code, found, text = p.doctor()
			require.Equal(t, exitDone, code, text+lines(found))
			if fault.begins != "" {
				assert.NotContains(t, "\n"+lines(found), "\n"+fault.begins)
			}
		})
	}
}

// writeCertificates writes an authority, and a certificate of 127.0.0.1 with its key, for
// server and client.
func writeCertificates(t *testing.T, dir string) (authority, cert, key string) {
	t.Helper()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	of := func(n int64, isAuthority bool) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: fmt.Sprintf("danqing test %d", n)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: isAuthority, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	root := of(1, true)
	der, err := x509.CreateCertificate(rand.Reader, root, root, &signer.PublicKey, signer)
	require.NoError(t, err)
	authority = write("ca.pem", "CERTIFICATE", der)
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err = x509.CreateCertificate(rand.Reader, of(2, false), root, &own.PublicKey, signer)
	require.NoError(t, err)
	cert = write("cert.pem", "CERTIFICATE", der)
	der, err = x509.MarshalECPrivateKey(own)
	require.NoError(t, err)
	return authority, cert, write("key.pem", "EC PRIVATE KEY", der)
}
