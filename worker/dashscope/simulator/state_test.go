package simulator_test

import (
	"bytes"
	"image/color"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/worker/dashscope"
	"github.com/danqing-queue/danqing/worker/dashscope/simulator"
)

// restarted returns a simulator on a directory that another one may have used.
func restarted(dir string) *simulator.Simulator {
	sim := fixed(10 * time.Second)
	sim.StateDir = dir
	return sim
}

// The first simulator is not closed before the second reads its directory, as after a
// kill -9.
func TestStateSurvivesAKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		killed, next := restarted(dir), restarted(dir)
		c, after := inProcess(killed), inProcess(next)
		defer func() {
			require.NoError(t, killed.Close())
			require.NoError(t, next.Close())
		}()
		p := c.policy(t)
		require.Equal(t, http.StatusOK, c.upload(t, p, "a.png", pngOf(t, plain(300, 300, color.White)), nil).status)
		require.Equal(t, http.StatusOK, c.upload(t, p, "b.png", []byte("no image"), nil).status)
		first := c.create(t, withRef("oss://"+p.UploadDir+"/a.png"))
		second := c.create(t, fox)
		time.Sleep(time.Second)
		third := c.create(t, fox)
		require.Equal(t, http.StatusOK, c.call(t, http.MethodPost, dashscope.PathTasks+"/"+second+"/cancel", nil, nil).status)
		time.Sleep(10 * time.Second)
		link := c.query(t, first).Output.Results[0].URL
		picture := c.download(t, link, nil)

		assert.Equal(t, killed.Tasks(), next.Tasks())
		assert.Equal(t, dashscope.StatusSucceeded, after.status(t, first))
		assert.Equal(t, dashscope.StatusCanceled, after.status(t, second))
		assert.Equal(t, dashscope.StatusRunning, after.status(t, third))
		assert.Equal(t, link, after.query(t, first).Output.Results[0].URL)
		again := after.download(t, link, nil)
		assert.Equal(t, picture.header.Get("ETag"), again.header.Get("ETag"))
		assert.True(t, bytes.Equal(picture.body, again.body), "the reference survived too")

		after.create(t, withRef("oss://"+p.UploadDir+"/b.png"))
		time.Sleep(time.Minute)
		assert.Equal(t, map[string]int{dashscope.StatusSucceeded: 2, dashscope.StatusCanceled: 1, dashscope.StatusFailed: 1}, next.Stats().Tasks)
	})
}

func TestTornLineOfStateIsDropped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := restarted(dir)
	id := decode[dashscope.TaskResponse](t, record(first, http.MethodPost, dashscope.PathText2Image, fox, asyncHeader())).Output.TaskID
	require.NoError(t, first.Close())
	file := filepath.Join(dir, "dashscope.jsonl")
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append(whole, whole[:len(whole)-1]...), 0o600))

	second := restarted(dir)
	require.NoError(t, second.Load())
	require.Len(t, second.Tasks(), 1)
	assert.Equal(t, id, second.Tasks()[0].ID)
	record(second, http.MethodPost, dashscope.PathText2Image, fox, asyncHeader())
	require.NoError(t, second.Close())

	third := restarted(dir)
	require.NoError(t, third.Load())
	assert.Len(t, third.Tasks(), 2)
	require.NoError(t, third.Close())
}

func TestBrokenStateIsRefused(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"no JSON":             "hello\n",
		"cancel of no task":   `{"cancel":{"task_id":"x"},"sum":"c441bb20"}` + "\n",
		"upload without file": `{"upload":{"key":"x"},"sum":"82fe4858"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "dashscope.jsonl"), []byte(content), 0o600))
			sim := restarted(dir)
			require.ErrorContains(t, sim.Load(), "line 1")
			refused(t, record(sim, http.MethodGet, dashscope.PathTasks, "", nil), http.StatusInternalServerError, "InternalError")
			_, err := sim.DialContext(t.Context(), "tcp", "any:80")
			require.Error(t, err)
			assert.Empty(t, sim.Tasks())
			assert.Equal(t, simulator.Stats{Requests: map[simulator.Route]int{}, Tasks: map[string]int{}}, sim.Stats())
		})
	}
}

// A task that could not be recorded is not reported as created.
func TestUnwritableState(t *testing.T) {
	t.Parallel()
	sim := restarted(t.TempDir())
	require.NoError(t, sim.Load())
	require.NoError(t, sim.Close())
	refused(t, record(sim, http.MethodPost, dashscope.PathText2Image, fox, asyncHeader()), http.StatusInternalServerError, "InternalError")
	assert.Empty(t, sim.Tasks())
}

// A state with any one byte changed is refused.
func TestDamagedStateIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := restarted(dir)
	for range 2 {
		record(first, http.MethodPost, dashscope.PathText2Image, fox, asyncHeader())
	}
	require.NoError(t, first.Close())
	file := filepath.Join(dir, "dashscope.jsonl")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	for at := range text {
		damaged := bytes.Clone(text)
		damaged[at] ^= 1
		require.NoError(t, os.WriteFile(file, damaged, 0o600))
		err := restarted(dir).Load()
		require.ErrorContains(t, err, "is damaged: its checksum does not match: restore the file from a backup", "byte %d", at)
		require.ErrorContains(t, err, file)
	}
}
