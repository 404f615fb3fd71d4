package storagetest_test

import (
	"bufio"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage/storagetest"
)

// childEnv makes the test binary start a store, print its address, and wait to be killed.
const childEnv = "STORAGETEST_CHILD"

// No server outlives the test that started it, even if the test is killed.
func TestServersStopWithTheTest(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *storagetest.Store{
		"versitygw": storagetest.VersityGW,
		"ceph": func(tb testing.TB) *storagetest.Store {
			tb.Helper()
			plain, _ := storagetest.Ceph(tb)
			return plain
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			switch os.Getenv(childEnv) {
			case name:
				_, err := os.Stdout.WriteString("at " + start(t).Endpoint + "\n")
				require.NoError(t, err)
				select {}
			case "":
				killAndWatch(t, name)
			}
		})
	}
}

func killAndWatch(t *testing.T, name string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), self, "-test.run=^TestServersStopWithTheTest$")
	child.Env = append(os.Environ(), childEnv+"="+name, "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	address := ""
	for lines := bufio.NewScanner(out); address == "" && lines.Scan(); {
		if endpoint, ok := strings.CutPrefix(lines.Text(), "at "); ok {
			u, err := url.Parse(endpoint)
			require.NoError(t, err)
			address = u.Host
		}
	}
	_ = child.Process.Kill() // fails if it has exited
	_ = child.Wait()
	if address == "" && child.ProcessState.Success() {
		t.Skipf("the child was skipped: %s would run this", name)
	}
	require.NotEmpty(t, address, "the child failed")
	assert.Eventually(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, time.Minute, 20*time.Millisecond, "%s still listens at %s", name, address)
}
