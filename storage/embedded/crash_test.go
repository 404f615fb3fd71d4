package embedded_test

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage/embedded"
)

// crashDir is the environment variable with the folder in which a child process of the
// test writes until it is killed.
const crashDir = "DANQING_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(dir, os.Getenv(crashDir+"_ROUND")))
		os.Exit(1) // it runs until it is killed
	}
	os.Exit(m.Run())
}

const (
	crashWriters = 8
	crashKeys    = 3 // per writer, each overwritten repeatedly
)

// writeUntilKilled overwrites objects, and reports each attempt before it starts and
// after it is acknowledged.
func writeUntilKilled(dir, round string) error {
	server, err := embedded.Open(embedded.Config{Dir: dir})
	if err != nil {
		return err
	}
	c := client(server)
	failed := make(chan error)
	for w := range crashWriters {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("d%d/%d.png", w, i%crashKeys)
				seq := fmt.Sprintf("%s-%06d", round, i)
				// One write per line, so that lines do not mix.
				_, _ = os.Stdout.WriteString("try " + key + " " + seq + "\n")
				_, err := c.PutObject(context.Background(), &s3.PutObjectInput{
					Bucket: bucketName, Key: &key, Body: strings.NewReader(crashContent(key, seq)), Metadata: map[string]string{"seq": seq},
				})
				if err != nil {
					failed <- err
					return
				}
				_, _ = os.Stdout.WriteString("ack " + key + " " + seq + "\n")
			}
		}()
	}
	return <-failed
}

// crashContent has the same size for most keys, so that versions cannot be
// distinguished by size.
func crashContent(key, seq string) string {
	size := 40_000
	if strings.HasSuffix(key, "/1.png") {
		n, _ := strconv.Atoi(seq[len(seq)-2:])
		size += n * 100
	}
	line := key + " " + seq + "\n"
	return strings.Repeat(line, size/len(line))
}

// After a kill -9 at any moment, every acknowledged object is complete with its own
// metadata, or a later version is, and no temporary files stay after the next start.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked, tried := map[string]string{}, map[string][]string{}
	acks, kills := 0, 8
	for round := range kills {
		acks += crash(t, dir, round, acked, tried)
		verifyCrash(t, dir, acked, tried)
	}
	t.Logf("%d kills, %d acknowledged writes of %d objects: 0 lost, 0 torn, 0 with wrong metadata", kills, acks, len(acked))
}

// crash runs a writer, kills it after some acknowledgements, and returns how
// many there were in all.
func crash(t *testing.T, dir string, round int, acked map[string]string, tried map[string][]string) int {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+dir, crashDir+"_ROUND="+fmt.Sprintf("%03d", round))
	var stderr strings.Builder
	child.Stderr = &stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	limit, acks := 20+rand.IntN(100), 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		f := strings.Fields(lines.Text())
		require.Len(t, f, 3)
		if f[0] == "try" {
			tried[f[1]] = append(tried[f[1]], f[2])
			continue
		}
		acked[f[1]] = f[2]
		if acks++; acks == limit {
			require.NoError(t, child.Process.Kill())
		}
	}
	require.Error(t, child.Wait())
	require.Empty(t, stderr.String())
	require.GreaterOrEqual(t, acks, limit)
	return acks
}

func verifyCrash(t *testing.T, dir string, acked map[string]string, tried map[string][]string) {
	t.Helper()
	server, err := embedded.Open(embedded.Config{Dir: dir})
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Close()) }()
	c := client(server)
	for key, tries := range tried {
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucketName, Key: &key})
		if acked[key] == "" && err != nil {
			_, code := refusal(err)
			require.Equal(t, "NoSuchKey", code)
			continue
		}
		require.NoError(t, err, "lost: %s", key)
		content, err := io.ReadAll(out.Body)
		require.NoError(t, err)
		require.NoError(t, out.Body.Close())
		seq := out.Metadata["seq"]
		assert.Contains(t, tries, seq, key)
		assert.GreaterOrEqual(t, seq, acked[key], "an older version than the acknowledged one")
		assert.True(t, crashContent(key, seq) == string(content), "torn or of another version than its metadata: %s", key)
		sum := md5.Sum(content)
		assert.Equal(t, `"`+hex.EncodeToString(sum[:])+`"`, aws.ToString(out.ETag))
	}
	temps, err := os.ReadDir(filepath.Join(dir, ".danqing", "temp"))
	require.NoError(t, err)
	assert.Empty(t, temps)
	metas, err := os.ReadDir(filepath.Join(dir, ".danqing", "meta", embedded.DefaultBucket))
	require.NoError(t, err)
	list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucketName})
	require.NoError(t, err)
	assert.Len(t, list.Contents, len(metas), "each object has its metadata, and nothing else has")
}
