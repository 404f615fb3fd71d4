package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestInstance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := readInstance(t.Context(), dir)
	require.ErrorIs(t, err, errNoInstance)
	require.NoError(t, removeInstance(dir), "there is none")

	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := instance{PID: os.Getpid(), HTTP: "http://127.0.0.1:8765", RedisURL: "redis://:hush@" + listener.Addr().String() + "/0"}
	require.NoError(t, writeInstance(dir, instance{}), "one that is replaced")
	require.NoError(t, writeInstance(dir, at))
	info, err := os.Stat(filepath.Join(dir, instanceFile))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "it holds a password")
	got, err := readInstance(t.Context(), dir)
	require.NoError(t, err)
	assert.Equal(t, at, got)

	// The process was killed, and the file is stale. No other program takes this port.
	require.NoError(t, listener.Close())
	at.RedisURL = "redis://127.0.0.1:1/0"
	require.NoError(t, writeInstance(dir, at))
	_, err = readInstance(t.Context(), dir)
	require.ErrorIs(t, err, errNoInstance)

	require.NoError(t, removeInstance(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// An invalid file is an error, which does not contain the file's content.
func TestInstanceInvalidFile(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", `{"redis_url":"redis://:hush@%zz"}`, `{"redis_url":""}`} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, instanceFile), []byte(text), 0o600))
		_, err := readInstance(t.Context(), dir)
		require.ErrorContains(t, err, "if no danqing runs there, delete it", text)
		assert.NotContains(t, err.Error(), "hush")
	}
}
