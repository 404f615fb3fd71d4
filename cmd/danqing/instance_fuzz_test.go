package main

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// For any content of the file, readInstance returns only an instance that can be reached,
// and its error does not contain the password.
func FuzzInstance(f *testing.F) {
	for _, text := range []string{
		`{"pid":1,"http":"http://127.0.0.1:8765","redis_url":"redis://:hush-password@127.0.0.1:1/0"}`, `{"redis_url":"redis://:hush-password@"}`,
		`{"redis_url":"redis://:hush-password%@127.0.0.1:1/0"}`, `{"redis_url":"hush-password"}`, `{"redis_url":7}`, `{"pid":"hush-password"}`, `{"redis_url":"redis://:hush-password@127.0.0.1:1/0"`, "{}", "null", "[]", "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, instanceFile), text, 0o600))
		nobody, cancel := context.WithCancel(t.Context())
		cancel() // so that no host in the text is contacted
		_, err := readInstance(nobody, dir)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hush-password")
		if !strings.Contains(err.Error(), errNoInstance.Error()) {
			require.ErrorContains(t, err, "delete it")
		}
	})
}

// The written file can be read while the instance can be reached.
func FuzzInstanceRoundTrip(f *testing.F) {
	for _, s := range []string{"", "http://127.0.0.1:8765", "\x00\n\"<&>猫"} {
		f.Add(7, s, strings.ToUpper(s))
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	require.NoError(f, err)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	f.Cleanup(func() {
		require.NoError(f, listener.Close())
		<-accepted
	})
	f.Fuzz(func(t *testing.T, pid int, base, password string) {
		left := instance{PID: pid, HTTP: strings.ToValidUTF8(base, "?"), RedisURL: "redis://:" + url.QueryEscape(password) + "@" + listener.Addr().String() + "/0"}
		dir := t.TempDir()
		require.NoError(t, writeInstance(dir, left))
		at, err := readInstance(t.Context(), dir)
		require.NoError(t, err)
		require.Equal(t, left, at)
		require.NoError(t, removeInstance(dir))
		_, err = readInstance(t.Context(), dir)
		require.ErrorIs(t, err, errNoInstance)
	})
}
