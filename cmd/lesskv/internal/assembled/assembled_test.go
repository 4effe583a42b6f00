package assembled

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Where no go.work is, a build ends in the command that assembles the runtime.
func TestWithoutARuntime(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "cmd", "lesskv", "internal", "assembled")
	require.NoError(t, os.MkdirAll(folder, 0o755))
	source, err := os.ReadFile("assembled.go")
	require.NoError(t, err)
	for path, data := range map[string]string{filepath.Join(dir, "go.mod"): "module m\n\ngo 1.24\n", filepath.Join(folder, "assembled.go"): string(source)} {
		require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
	}
	build := func(env ...string) (string, error) {
		cmd := exec.Command("go", "build", "./...")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), append([]string{"GOWORK="}, env...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := build()
	require.Error(t, err)
	assert.Contains(t, out, "the runtime is not assembled. In a checkout: make runtime. Elsewhere: go run github.com/lesskv/lesskv/patches@VERSION -install")

	out, err = build("CGO_CFLAGS=-DLESSKV_ASSEMBLED")
	require.NoError(t, err, out)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.work"), []byte("go 1.24\n\nuse .\n"), 0o644))
	out, err = build()
	require.NoError(t, err, out)
}
