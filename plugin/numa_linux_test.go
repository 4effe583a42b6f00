package lesskv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// EnableNUMA has ggml look for the machine's nodes, once in a process; with one node that is all that comes of it. ggml says nothing
// of it, so the child's stat tells.
func TestNUMA(t *testing.T) {
	const child = "LESSKV_TEST_NUMA_CHILD"
	if how := os.Getenv(child); how != "" {
		for range 2 {
			open(t, func(o *llama.ModelOptions) {
				if how == "on" {
					llama.EnableNUMA(o)
				}
			})
		}
		return
	}
	const withoutNodes = "no glibc"
	const source = `
#ifndef __gnu_linux__
#error ` + withoutNodes + `
#endif
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int stat(const char * path, struct stat * st) {
    if (strcmp(path, "/sys/devices/system/node/node0") == 0) {
        (void) !write(2, "looked for nodes\n", 17);
    }
    return fstatat(AT_FDCWD, path, st, 0);
}

int __xstat(int version, const char * path, struct stat * st) { // what stat is in glibc before 2.33
    (void) version;
    return stat(path, st);
}
`
	library := filepath.Join(t.TempDir(), "stat.so")
	compiler, err := exec.Command("go", "env", "CC").Output()
	require.NoError(t, err)
	words := append(strings.Fields(string(compiler)), "-shared", "-fPIC", "-o", library, "-x", "c", "-")
	cc := exec.Command(words[0], words[1:]...)
	cc.Stdin = strings.NewReader(source)
	out, err := cc.CombinedOutput()
	if strings.Contains(string(out), withoutNodes) {
		t.Skip("ggml looks for nodes where the C library is glibc")
	}
	require.NoError(t, err, "%s", out)
	for how, want := range map[string]int{"on": 1, "off": 0} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNUMA$")
		cmd.Env = append(os.Environ(), child+"="+how, "LD_PRELOAD="+library)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, want, strings.Count(string(out), "looked for nodes"), "%s: %s", how, out)
		assert.NotContains(t, string(out), "already initialized", "ggml is asked once")
	}
}
