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

	"github.com/lesskv/lesskv/patches/quoted"
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
	library := preloaded(t, `
#ifndef __gnu_linux__
#error no glibc, in which ggml looks for no nodes
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
`)
	for how, want := range map[string]int{"on": 1, "off": 0} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNUMA$")
		cmd.Env = append(os.Environ(), child+"="+how, "LD_PRELOAD="+library)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, want, strings.Count(string(out), "looked for nodes"), "%s: %s", how, out)
		assert.NotContains(t, string(out), "already initialized", "ggml is asked once")
	}
}

// preloaded compiles a library of C that stands in for functions of the C library's, where LD_PRELOAD names it. The test is skipped where the
// source wants glibc, and this is another.
func preloaded(t *testing.T, source string) string {
	library := filepath.Join(t.TempDir(), "preloaded.so")
	compiler, err := exec.Command("go", "env", "CC").Output()
	require.NoError(t, err)
	words, err := quoted.Split(string(compiler))
	require.NoError(t, err)
	cc := exec.Command(words[0], append(words[1:], "-shared", "-fPIC", "-o", library, "-x", "c", "-")...)
	cc.Stdin = strings.NewReader(source)
	out, err := cc.CombinedOutput()
	if strings.Contains(string(out), "no glibc") {
		t.Skip(string(out))
	}
	require.NoError(t, err, "%s", out)
	return library
}
