package lesskv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A state is on the disk when SaveState returns: first what is in the file, and then that it has the name. The child's fsync says of what.
func TestSaveStateIsOnTheDisk(t *testing.T) {
	const child = "LESSKV_TEST_DURABLE_CHILD"
	if path := os.Getenv(child); path != "" {
		model := open(t, sparse(64))
		require.NoError(t, model.Eval("func"))
		require.NoError(t, model.SaveState(path))
		return
	}
	library := preloaded(t, `
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int fsync(int fd) {
    struct stat st;
    fstat(fd, &st);
    fprintf(stderr, "fsync of a %s\n", S_ISDIR(st.st_mode) ? "folder" : "file");
    return (int) syscall(SYS_fsync, fd);
}
`)
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "state"), filepath.Join(dir, "state"), "state"} { // new, replaced, without a folder
		cmd := exec.Command(os.Args[0], "-test.run=^TestSaveStateIsOnTheDisk$")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), child+"="+path, "LD_PRELOAD="+library)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		var said []string
		for line := range strings.Lines(string(out)) {
			if what, ok := strings.CutPrefix(line, "fsync of a "); ok {
				said = append(said, strings.TrimSpace(what))
			}
		}
		assert.Equal(t, []string{"file", "folder"}, said, "%s: %s", path, out)
	}
}
