package layout_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// assembled makes what Find looks for.
func assembled(t *testing.T, dir string) layout.Layout {
	t.Helper()
	l := layout.Layout(dir)
	require.NoError(t, os.MkdirAll(l.Package(), 0o755))
	for _, f := range []string{l.Lock(), filepath.Join(l.Package(), "libbinding.a")} {
		require.NoError(t, os.WriteFile(f, nil, 0o644))
	}
	return l
}

func TestFind(t *testing.T) {
	t.Setenv(layout.Variable, "") // of soak-machines, which names a build for all tests
	dir := t.TempDir()
	below := filepath.Join(dir, "integration", "worker")
	require.NoError(t, os.MkdirAll(below, 0o755))

	_, err := layout.Find(below)
	require.ErrorIs(t, err, layout.ErrNotAssembled)
	require.ErrorContains(t, err, "is in no Go module")
	require.ErrorContains(t, err, layout.Variable, "another way out than to assemble one")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module m\n"), 0o644))
	_, err = layout.Find(below)
	require.ErrorIs(t, err, layout.ErrNotAssembled)
	require.ErrorContains(t, err, "go run ./patches")
	require.ErrorContains(t, err, layout.Variable)

	beside := assembled(t, filepath.Join(dir, "build"))
	found, err := layout.Find(below)
	require.NoError(t, err)
	require.Equal(t, beside, found)

	cached := assembled(t, t.TempDir())
	work := "go 1.24\n\nuse .\nuse " + cached.Package() + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.work"), []byte(work), 0o644))
	found, err = layout.Find(below)
	require.NoError(t, err)
	require.Equal(t, cached, found)

	work = "go 1.24\n\nuse .\nreplace example.com/llama => " + cached.Package() + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.work"), []byte(work), 0o644))
	found, err = layout.Find(below)
	require.NoError(t, err)
	require.Equal(t, cached, found)

	t.Setenv(layout.Variable, string(beside))
	found, err = layout.Find(below)
	require.NoError(t, err)
	require.Equal(t, beside, found)

	t.Setenv(layout.Variable, filepath.Join(dir, "none"))
	_, err = layout.Find(below)
	require.ErrorIs(t, err, layout.ErrNotAssembled)
	require.ErrorContains(t, err, layout.Variable)
}

// A folder's name is no pattern.
func TestOwn(t *testing.T) {
	l := layout.Layout(filepath.Join(t.TempDir(), "x[1"))
	less := filepath.Join(l.Sources(), "less")
	require.NoError(t, os.MkdirAll(less, 0o755))
	for _, name := range []string{"binding.cpp", "worker.cpp", layout.Policies} {
		require.NoError(t, os.WriteFile(filepath.Join(less, name), nil, 0o644))
	}
	_, err := l.Own("worker*.cpp", "*.h")
	require.ErrorIs(t, err, layout.ErrNotAssembled)
	paths, err := l.Own("*.c", "b*.cpp", "worker*.cpp")
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(less, "binding.cpp"), filepath.Join(less, "worker.cpp")}, paths)
}
