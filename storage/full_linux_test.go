package storage_test

import (
	"net/http/httptest"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/danqing-queue/danqing/storage"
)

// When the disk becomes full in the middle of an image, no partial file stays, and
// the image is downloaded once there is space.
func TestFetchFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("a small disk cannot be mounted: ", err)
		}
		t.Skip("a small disk cannot be mounted; root can: ", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	content := pngOf(200_000, 1)
	server := httptest.NewServer(serve(content))
	t.Cleanup(server.Close)
	spool, err := storage.OpenSpool(dir, storage.SpoolConfig{Sources: []string{server.URL}})
	require.NoError(t, err)
	for range 2 { // the partial file of the first attempt is gone
		_, err = spool.Fetch(t.Context(), "a", server.URL)
		require.ErrorIs(t, err, storage.ErrDisk)
		require.ErrorIs(t, err, syscall.ENOSPC)
	}
	free, err := spool.FreeBytes()
	require.NoError(t, err)
	require.LessOrEqual(t, free, uint64(64<<10))
	_, err = spool.FetchToMemory(t.Context(), server.URL)
	require.NoError(t, err)

	require.NoError(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=1m"))
	file, err := spool.Fetch(t.Context(), "a", server.URL)
	require.NoError(t, err)
	require.EqualValues(t, len(content), file.Bytes)
}
