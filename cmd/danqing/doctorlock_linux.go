package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// lockPID returns the ID of the process that has locked a file, from Linux's list of locks,
// whose lines are like
//
//	1: FLOCK  ADVISORY  WRITE 1234 08:01:131075 0 EOF
//
// (proc(5)). It returns "" for a process of another container.
func lockPID(file fs.FileInfo) string {
	stat, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close() //nolint:errcheck // read only
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 6 && fields[1] == "FLOCK" && strings.HasSuffix(fields[5], fmt.Sprintf(":%d", stat.Ino)) && sameDevice(fields[5], uint64(stat.Dev)) { //nolint:unconvert // the type differs between systems
			return fields[4]
		}
	}
	return ""
}

// sameDevice compares the MAJOR:MINOR:INODE of a lock, in which major and minor are
// hexadecimal, with a device number in Linux's encoding (makedev(3)).
func sameDevice(lock string, device uint64) bool {
	var major, minor uint64
	if _, err := fmt.Sscanf(lock, "%x:%x:", &major, &minor); err != nil {
		return false
	}
	return device == (major&0xfff)<<8|(major&^0xfff)<<32|minor&0xff|(minor&^0xff)<<12
}
