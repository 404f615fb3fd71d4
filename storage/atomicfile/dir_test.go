package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Files that are committed while a directory is being synced wait for the next sync, and
// share it. Each gets the error of the sync that made it durable.
func TestConcurrentCommitsShareASync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		begun, release := make(chan int), make(chan error)
		syncs := 0
		d := &Dir{Path: dir, syncDir: func(string) error {
			syncs++
			begun <- syncs
			return <-release
		}}
		commit := func(name string) chan error {
			f, err := os.CreateTemp(dir, ".new-*")
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() { done <- d.Commit(f, name) }()
			return done
		}
		first := commit("first")
		require.Equal(t, 1, <-begun)
		var others []chan error
		for i := range 10 {
			others = append(others, commit(strconv.Itoa(i)))
		}
		synctest.Wait()
		names, err := filepath.Glob(filepath.Join(dir, "[0-9]"))
		require.NoError(t, err)
		require.Len(t, names, 10, "they are renamed and wait")
		release <- nil
		require.NoError(t, <-first)
		require.Equal(t, 2, <-begun)
		last := commit("last")
		synctest.Wait()
		failed := errors.New("input/output error")
		release <- failed
		for _, done := range others {
			require.ErrorIs(t, <-done, failed)
		}
		require.Equal(t, 3, <-begun)
		release <- nil
		require.NoError(t, <-last)
		require.Equal(t, 3, syncs)
	})
}
