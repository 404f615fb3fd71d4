//go:build unix

package drill

import (
	"os"
	"syscall"
)

// canFreeze says whether a process can be stopped where it stands.
const canFreeze = true

func freeze(process *os.Process) error { return process.Signal(syscall.SIGSTOP) }

func thaw(process *os.Process) error { return process.Signal(syscall.SIGCONT) }
