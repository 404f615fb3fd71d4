//go:build unix

package drill

import (
	"os"
	"syscall"
)

// canFreeze reports whether a process can be suspended.
const canFreeze = true

func freeze(process *os.Process) error { return process.Signal(syscall.SIGSTOP) }

func thaw(process *os.Process) error { return process.Signal(syscall.SIGCONT) }
