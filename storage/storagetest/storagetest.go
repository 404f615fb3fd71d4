// Package storagetest starts S3 servers that share no code with package embedded, for
// tests of what must work with any store: Ceph's gateway, old and strict, and
// versitygw. Each call starts a separate server on free ports, with its state in the
// test's folder. It stops when the test ends, also when the test process is killed.
//
// If a server is not installed, the test is skipped with the command that installs
// it, or fails if CI=true.
package storagetest

import (
	"bytes"
	"context"
	"crypto/tls"
	_ "embed"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Settings of every Store.
const (
	Bucket          = "danqing"   // exists, is empty, and is owned by AccessKeyID
	Region          = "us-east-1" // of every store
	AccessKeyID     = "owner"
	SecretAccessKey = "owner-secret"
	// DeniedAccessKeyID is a user of Ceph without permissions in Bucket.
	DeniedAccessKeyID     = "denied"
	DeniedSecretAccessKey = "denied-secret"
	// domain is the domain of virtual-hosted buckets. Only Store.Client resolves it.
	domain = "s3.localtest"
)

// startTimeout is for a machine under load. On an idle one Ceph takes 2 s and
// versitygw 0.1 s.
const startTimeout = 2 * time.Minute

// Store is one address of a running S3 server.
type Store struct {
	// Endpoint is the base URL for path-style addressing, on 127.0.0.1.
	Endpoint string
	// VirtualEndpoint is the base URL for virtual-hosted addressing, with a host
	// name that only Client resolves.
	VirtualEndpoint string
	// CAFile is a PEM file with the authority of the store's certificate, "" for
	// plain HTTP.
	CAFile string
	// Client trusts that authority and resolves every host to 127.0.0.1.
	Client *http.Client
}

//go:embed ceph-rgw.sh
var cephScript string

// Ceph starts a Ceph cluster with one gateway, which takes a few seconds, and returns
// its addresses for plain HTTP and for TLS. Both lead to the same store.
func Ceph(tb testing.TB) (plain, secure *Store) {
	tb.Helper()
	const how = "apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw"
	for _, binary := range []string{"ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"} {
		find(tb, binary, how)
	}
	ports := freePorts(tb, 3)
	cert := newCertificate(tb)
	run(tb, find(tb, "bash", "apt-get install bash"), "-c", cephScript, "ceph-rgw.sh", tb.TempDir(),
		strconv.Itoa(ports[0]), strconv.Itoa(ports[1]), strconv.Itoa(ports[2]), cert.bothFile, domain,
		"owner:"+AccessKeyID+":"+SecretAccessKey, "denied:"+DeniedAccessKeyID+":"+DeniedSecretAccessKey)
	plain, secure = newStore(tb, ports[1], nil), newStore(tb, ports[2], cert)
	createBucket(tb, plain)
	return plain, secure
}

// VersityGW starts a versitygw over plain HTTP.
func VersityGW(tb testing.TB) *Store {
	tb.Helper()
	return versityGW(tb, nil)
}

// VersityGWTLS starts a versitygw over TLS.
func VersityGWTLS(tb testing.TB) *Store {
	tb.Helper()
	return versityGW(tb, newCertificate(tb))
}

func versityGW(tb testing.TB, cert *certificate) *Store {
	tb.Helper()
	port := freePorts(tb, 1)[0]
	args := []string{
		"-c", `"$@" & cat >/dev/null; kill -9 $!`, "versitygw", // runs until its stdin ends, like Ceph's script
		find(tb, "versitygw", "go install github.com/versity/versitygw/cmd/versitygw@v1.8.0"),
		"--quiet", "--port", "127.0.0.1:" + strconv.Itoa(port), "--region", Region, "--virtual-domain", domain,
		"--access", AccessKeyID, "--secret", SecretAccessKey,
	}
	if cert != nil {
		args = append(args, "--cert", cert.certFile, "--key", cert.keyFile)
	}
	run(tb, find(tb, "sh", "apt-get install dash"), append(args, "posix", tb.TempDir())...)
	s := newStore(tb, port, cert)
	createBucket(tb, s)
	return s
}

// find returns the path of an installed program.
func find(tb testing.TB, binary, how string) string {
	tb.Helper()
	path, err := exec.LookPath(binary)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		tb.Fatalf("%s is not installed: %s", binary, how)
	}
	tb.Skipf("%s is not installed: to run this test: %s", binary, how)
	return ""
}

// run starts a program that ends when its stdin ends.
func run(tb testing.TB, program string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(tb.Context()), program, args...) //nolint:gosec // a test server
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
		if tb.Failed() {
			tb.Logf("%s:\n%s", filepath.Base(program), &log)
		}
	})
}

// freePorts returns n different unused ports. They are below those of outgoing
// connections (ip_local_port_range begins at 32768), so that none is taken before it is
// used.
func freePorts(tb testing.TB, n int) []int {
	tb.Helper()
	var ports []int
	for len(ports) < n {
		port := 10_000 + rand.IntN(20_000) //nolint:gosec // not a secret
		listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		defer listener.Close() //nolint:errcheck // all open until the end, so that no port is returned twice
		ports = append(ports, port)
	}
	return ports
}

// newStore returns the Store at port; cert is nil for plain HTTP.
func newStore(tb testing.TB, port int, cert *certificate) *Store {
	tb.Helper()
	scheme := "http"
	transport := &http.Transport{
		MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}
	s := &Store{Client: &http.Client{Transport: transport}}
	if cert != nil {
		scheme, s.CAFile = "https", cert.certFile
		transport.TLSClientConfig = &tls.Config{RootCAs: cert.pool, MinVersion: tls.VersionTLS12}
	}
	tb.Cleanup(transport.CloseIdleConnections)
	s.Endpoint = fmt.Sprintf("%s://127.0.0.1:%d", scheme, port)
	s.VirtualEndpoint = fmt.Sprintf("%s://%s:%d", scheme, domain, port)
	return s
}

// createBucket waits for the server to answer.
func createBucket(tb testing.TB, s *Store) {
	tb.Helper()
	client := s3.New(s3.Options{
		Region: Region, BaseEndpoint: &s.Endpoint, UsePathStyle: true, HTTPClient: s.Client, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKeyID, SecretAccessKey, ""),
	})
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(Bucket)})
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("%s did not start: %v", s.Endpoint, err)
		}
	}
}

// Object is one object of a Store.
type Object struct {
	ContentType string
	Content     []byte
}

// Objects returns all objects in Bucket, by key.
func (s *Store) Objects(tb testing.TB) map[string]Object {
	tb.Helper()
	client := s3.New(s3.Options{
		Region: Region, BaseEndpoint: &s.Endpoint, UsePathStyle: true, HTTPClient: s.Client,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKeyID, SecretAccessKey, ""),
	})
	all := map[string]Object{}
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: aws.String(Bucket)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		for _, o := range page.Contents {
			got, err := client.GetObject(tb.Context(), &s3.GetObjectInput{Bucket: aws.String(Bucket), Key: o.Key})
			if err != nil {
				tb.Fatal(err)
			}
			content, err := io.ReadAll(got.Body)
			if err != nil {
				tb.Fatal(err)
			}
			_ = got.Body.Close()
			all[*o.Key] = Object{aws.ToString(got.ContentType), content}
		}
	}
	return all
}
