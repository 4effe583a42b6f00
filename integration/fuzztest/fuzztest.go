// Package fuzztest is what fuzz targets of several packages assert, and other tests of memory.
package fuzztest

import (
	"runtime"
	"runtime/metrics"
	"testing"
)

// Bounded runs f and fails unless it allocated limit bytes at most: memory is to follow what a file holds, not what it says. Where it seems
// to have allocated more, f runs once more, and so it must leave its input as it is.
func Bounded(t testing.TB, limit int, f func()) {
	t.Helper()
	if n := bytes(uint64(limit), f); n > uint64(limit) {
		t.Fatalf("%d bytes were allocated, want %d at most", n, limit)
	}
}

// bytes returns what f allocates. Small allocations are counted late, and so those of before may be f's: what is more than the limit is counted
// again, exactly, which stops the world.
func bytes(limit uint64, f func()) uint64 {
	before := allocated()
	f()
	n := allocated() - before
	if n > limit {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		before = m.TotalAlloc
		f()
		runtime.ReadMemStats(&m)
		n = m.TotalAlloc - before
	}
	return n
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
