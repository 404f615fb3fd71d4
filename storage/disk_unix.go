//go:build linux || darwin || freebsd

package storage

import "syscall"

func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	// The types of both fields differ between systems.
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:gosec,unconvert // never negative
}
