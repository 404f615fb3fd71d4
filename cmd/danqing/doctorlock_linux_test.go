package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// A lock belongs to a file only if the device is the same too.
func TestSameDevice(t *testing.T) {
	t.Parallel()
	assert.True(t, sameDevice("08:01:131075", 0x801))
	assert.True(t, sameDevice("103:1ff:7", 0x1103ff))
	assert.False(t, sameDevice("08:02:131075", 0x801))
	assert.False(t, sameDevice("none", 0x801))
}
