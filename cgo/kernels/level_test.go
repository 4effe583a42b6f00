package kernels

import (
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/cpu"
)

// eachLevel runs a test with the inner loops of each level of instruction sets that this processor has.
func eachLevel(t *testing.T, f func(t *testing.T)) {
	names := levels()
	t.Cleanup(func() { useLevel(len(names) - 1) })
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			useLevel(i)
			require.Equal(t, name, Level())
			f(t)
		})
	}
}

// LESSKV_LEVEL names the one that is used; a name that is none of them leaves the best.
func TestLevelOfTheEnvironment(t *testing.T) {
	names := levels()
	best := len(names) - 1
	t.Cleanup(func() { useLevel(best) })
	for i, name := range append(names, "x86-64-v9") {
		t.Setenv("LESSKV_LEVEL", name)
		useLevel(len(names)) // none: it is chosen anew
		require.Equal(t, names[min(i, best)], Level())
	}
}

// TestLevels: compiled for any machine or for this one, a program uses the best that the processor has.
func TestLevels(t *testing.T) {
	names := levels()
	require.Equal(t, names[len(names)-1], Level())
	require.Len(t, slices.Compact(slices.Sorted(slices.Values(names))), len(names), "%q", names)
	want := map[string]string{"amd64": "x86-64", "arm64": "arm64"}[runtime.GOARCH]
	if x := cpu.X86; x.HasAVX2 && x.HasFMA && x.HasBMI1 && x.HasBMI2 {
		want = "x86-64-v3"
		if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL {
			want = "x86-64-v4"
		}
	}
	if want != "" {
		require.Equal(t, want, Level())
	}
}
