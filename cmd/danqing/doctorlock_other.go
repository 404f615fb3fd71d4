//go:build !linux

package main

import "io/fs"

// lockPID is not supported on this system.
func lockPID(fs.FileInfo) string { return "" }
