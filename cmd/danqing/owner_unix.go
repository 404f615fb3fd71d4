//go:build unix

package main

import (
	"fmt"
	"io/fs"
	"syscall"
)

// checkOwner fails unless a file belongs to the user and nobody else may write it.
func checkOwner(info fs.FileInfo, uid int) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != uid {
		return fmt.Errorf("it belongs to another user (uid %d, this one is %d)", stat.Uid, uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("other users can write it (mode %04o)", info.Mode().Perm())
	}
	return nil
}
