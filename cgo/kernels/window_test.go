package kernels

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/quoted"
)

// A policy that sees a window, more queries than the last and fewer than all, is one definition: testdata/window.c has it, and compares the
// fast loops with the plain ones.
func TestWindowPolicy(t *testing.T) {
	out, err := exec.Command("go", "env", "CC").Output()
	require.NoError(t, err)
	cc, err := quoted.Split(string(out))
	require.NoError(t, err)
	sources, err := filepath.Glob("*.c")
	require.NoError(t, err)
	var args []string
	for _, s := range sources {
		if layout.Assembled(s) {
			args = append(args, s)
		}
	}
	program := filepath.Join(t.TempDir(), "window")
	args = append(cc[1:], append(args, "testdata/window.c", "-std=c11", "-Wall", "-Wextra", "-Werror", "-lm", "-o", program)...)
	out, err = exec.Command(cc[0], args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command(program).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
