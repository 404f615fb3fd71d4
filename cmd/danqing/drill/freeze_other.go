//go:build !unix

package drill

import (
	"errors"
	"os"
)

// canFreeze reports whether a process can be suspended.
const canFreeze = false

func freeze(*os.Process) error { return errors.ErrUnsupported }

func thaw(*os.Process) error { return nil } // never suspended
