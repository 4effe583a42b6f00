package fuzztest

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

var kept [][]byte

// small allocates so many bytes, 64 at a time.
func small(n int) {
	for range n / 64 {
		kept = append(kept[:0], make([]byte, 64))
	}
}

// What was allocated before, and is counted late, is not f's.
func TestBytes(t *testing.T) {
	assert.Zero(t, bytes(0, func() {}))
	for range 100 {
		small(10 << 10)
		assert.Less(t, bytes(64, func() { small(64) }), uint64(128))
	}
	for _, n := range []int{1 << 20, 8 << 20} {
		assert.InDelta(t, n, bytes(1000, func() { small(n) }), 64<<10)
		assert.InDelta(t, n, bytes(1000, func() { kept = [][]byte{make([]byte, n)} }), 64<<10)
	}
}
