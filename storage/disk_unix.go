//go:build linux || darwin || freebsd

package storage

import (
	"os"
	"syscall"
)

func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	// The types of both fields differ between systems.
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:gosec,unconvert // never negative
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // a folder of this package
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	return d.Sync()
}
