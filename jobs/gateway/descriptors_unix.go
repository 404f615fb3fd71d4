//go:build unix

package gateway

import "syscall"

// descriptors returns how many files and connections the process may have open. Go raises
// the soft limit to the hard one at the start.
func descriptors() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 4 * maxConns
	}
	return int(min(limit.Cur, 4*maxConns))
}
