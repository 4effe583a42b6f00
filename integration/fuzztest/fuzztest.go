// Package fuzztest is what fuzz targets of several packages assert, and other tests of memory.
package fuzztest

import (
	"runtime/metrics"
	"testing"
)

// Bounded runs f and fails unless it allocated limit bytes at most: memory is to follow what a file holds, not what it says. Small
// allocations are counted some KiB late.
func Bounded(t testing.TB, limit int, f func()) {
	t.Helper()
	before := allocated()
	f()
	if n := allocated() - before; n > uint64(limit) {
		t.Fatalf("%d bytes were allocated, want %d at most", n, limit)
	}
}

// Resident is Bounded for what C allocates: the process's resident memory may grow by limit bytes at its peak. Where the system does not tell,
// nothing is asked.
func Resident(t testing.TB, limit int64, f func()) {
	t.Helper()
	ran := false
	grown, err := Peak(func() { ran = true; f() })
	if !ran {
		f()
	}
	if err == nil && grown > limit {
		t.Fatalf("resident memory grew by %d bytes, want %d at most", grown, limit)
	}
}

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
