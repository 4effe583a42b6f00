package assemble

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A path is refused exactly where cgo refuses it.
func TestPathsThatCgoTakes(t *testing.T) {
	top := t.TempDir()
	chars := "é"
	for c := ' '; c < 0x7f; c++ {
		if c != '/' && !('1' <= c && c <= '8') && !('b' <= c|0x20 && c|0x20 <= 'y') {
			chars += string(c)
		}
	}
	for _, c := range chars + "\t" {
		dir := filepath.Join(top, "a"+string(c)+"b")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module x\n\ngo 1.21\n"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\n\n// #cgo LDFLAGS: -L${SRCDIR}/ -lm\nimport \"C\"\n"), 0o644))
		list := exec.Command("go", "list", "-e", "-f", "{{.Error}}", ".")
		list.Dir, list.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=1")
		out, err := list.CombinedOutput()
		require.NoError(t, err, string(out))
		err = checkPath(dir)
		if string(out) == "<nil>\n" {
			require.NoError(t, err, "%q", c)
			continue
		}
		require.Contains(t, string(out), "malformed #cgo argument", "%q", c)
		var refused *PathError
		require.ErrorAs(t, err, &refused, "%q", c)
		require.Equal(t, &PathError{dir, c}, refused)
	}
}
