//go:build !unix

package gateway

// descriptors returns how many files and connections the process may have open: these
// systems have no such limit.
func descriptors() int { return 4 * maxConns }
