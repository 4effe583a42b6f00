package limits

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPeak(t *testing.T) {
	before := Peak()
	held := make([]byte, 64<<20)
	for i := range held {
		held[i] = 1
	}
	require.GreaterOrEqual(t, Peak(), max(before, int64(len(held))), "bytes")
	runtime.KeepAlive(held)
}

func TestHere(t *testing.T) {
	require.GreaterOrEqual(t, CPUs(), 1)
	require.LessOrEqual(t, CPUs(), runtime.NumCPU())
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	require.Equal(t, 1, CPUs())
	if bytes, ok := Memory(); ok {
		require.Positive(t, bytes)
	} else {
		require.NotContains(t, []string{"linux", "darwin"}, runtime.GOOS)
	}
}

// The rules, here and in C++.
func TestControlGroups(t *testing.T) {
	const none = math.MaxInt32
	binding := compile(t)
	for name, test := range map[string]struct {
		files     map[string]string
		cpus      float64
		limit     int64 // of memory
		available int64 // that is left of it
	}{
		"none": {nil, none, math.MaxInt64, math.MaxInt64},
		"v2 without limits": {map[string]string{
			"proc/self/cgroup": "0::/user\n", "sys/fs/cgroup/user/cpu.max": "max 100000\n", "sys/fs/cgroup/user/memory.max": "max\n",
			"sys/fs/cgroup/user/memory.high": "max\n", "sys/fs/cgroup/user/memory.current": "1000\n",
		}, none, math.MaxInt64, math.MaxInt64},
		"v2": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n",
			"sys/fs/cgroup/a/b/memory.max": "1000000\n", "sys/fs/cgroup/a/b/memory.high": "max\n", "sys/fs/cgroup/a/b/memory.current": "700000\n",
			"sys/fs/cgroup/a/b/memory.stat": "anon 500000\nfile 200000\ninactive_file 200000\n",
		}, 2.5, 1000000, 500000},
		"v2, the group above is narrower": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/cpu.max": "150000 50000\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "100\n", "sys/fs/cgroup/a/memory.current": "300\n",
		}, 3, 100, 0},
		"v2, high before max": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.high": "800\n", "sys/fs/cgroup/memory.current": "100\n",
		}, none, 800, 700},
		"v2, a container that sees the path of outside": {map[string]string{
			"proc/self/cgroup": "0::/../docker/123\n", "sys/fs/cgroup/cpu.max": "50000 100000\n",
		}, .5, math.MaxInt64, math.MaxInt64},
		"v1": {map[string]string{
			"proc/self/cgroup":                                   "7:memory:/x\n3:cpu,cpuacct:/y/z\n1:name=systemd:/\n0::/\n",
			"sys/fs/cgroup/cpu/y/z/cpu.cfs_quota_us":             "-1\n",
			"sys/fs/cgroup/cpu/y/z/cpu.cfs_period_us":            "100000\n",
			"sys/fs/cgroup/cpu/y/cpu.cfs_quota_us":               "120000\n",
			"sys/fs/cgroup/cpu/y/cpu.cfs_period_us":              "100000\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes":       "5000\n",
			"sys/fs/cgroup/memory/x/memory.usage_in_bytes":       "4000\n",
			"sys/fs/cgroup/memory/x/memory.stat":                 "inactive_file 1\ntotal_inactive_file 2500\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":         "9223372036854771712\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes":         "99999999\n",
			"sys/fs/cgroup/cpu.max":                              "1 100000\n",
			"sys/fs/cgroup/memory/x/memory.memsw.usage_in_bytes": "4000\n",
		}, 1.2, 5000, 3500},
		"v1, whatever the order": {map[string]string{
			"proc/self/cgroup":                    "0::/\n3:cpu:/\n",
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us":  "200000\n",
			"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
			"sys/fs/cgroup/cpu.max":               "1 100000\n",
		}, 2, math.MaxInt64, math.MaxInt64},
		"nonsense": {map[string]string{
			"proc/self/cgroup": "x\n\n0::\n", "sys/fs/cgroup/cpu.max": "100 0\n", "sys/fs/cgroup/memory.max": "lots\n",
		}, none, math.MaxInt64, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range test.files {
				path = filepath.Join(root, path)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			}
			require.Equal(t, test.cpus, system(root).quota())
			require.Equal(t, max(1, min(runtime.NumCPU(), runtime.GOMAXPROCS(0), int(test.cpus))), system(root).cpus())
			require.Equal(t, test.available, system(root).available())
			if binding != "" {
				out, err := exec.Command(binding, root).CombinedOutput()
				require.NoError(t, err, string(out))
				var cpus float64
				var limit uint64
				_, err = fmt.Sscan(string(out), &cpus, &limit)
				require.NoError(t, err, string(out))
				require.Equal(t, test.cpus, cpus)
				require.Equal(t, test.limit, int64(min(limit, math.MaxInt64)))
			}
		})
	}
}

// compile makes a program that says what the rules of the apps, cgo/llama/binding_limits.cpp, find below a root, or without one of this
// machine; "" without a compiler.
func compile(t *testing.T, flags ...string) string {
	compiler, err := exec.LookPath("c++")
	if err != nil {
		t.Log("no C++ compiler: the rules of the apps are not run")
		return ""
	}
	const llama = "../../cgo/llama"
	source, program := filepath.Join(t.TempDir(), "main.cpp"), filepath.Join(t.TempDir(), "limits")
	require.NoError(t, os.WriteFile(source, []byte(`
#include "binding_limits.h"
#include <cstdio>
int main(int argc, char ** argv) {
    if (argc == 1) {
        printf("%llu %llu\n", (unsigned long long) binding::memory_limit(), (unsigned long long) binding::memory_left());
        return 0;
    }
    printf("%.17g %llu\n", binding::group_quota(argv[1]), (unsigned long long) binding::group_memory(argv[1]));
}
`), 0o644))
	args := append(flags, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", llama, "-o", program, source, filepath.Join(llama, "binding_limits.cpp"))
	out, err := exec.Command(compiler, args...).CombinedOutput()
	require.NoError(t, err, string(out))
	return program
}
