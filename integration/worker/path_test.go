package worker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// Where there is no worker the error says both ways to one: to assemble the runtime, or to name the folder of one that is.
func TestNoWorker(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	names := map[Tree]string{Patched: "LESSKV_WORKER", Unmodified: "LESSKV_WORKER_UNMODIFIED"}
	for _, name := range append([]string{layout.Variable}, names[Patched], names[Unmodified]) {
		t.Setenv(name, "")
	}
	check := func(t *testing.T, tree Tree) {
		t.Helper()
		_, err := Path(tree)
		require.ErrorIs(t, err, layout.ErrNotAssembled)
		assert.ErrorContains(t, err, "patches")
		assert.ErrorContains(t, err, layout.Variable)
	}
	for tree, name := range names {
		t.Run("no runtime, "+tree.String(), func(t *testing.T) { check(t, tree) })
		t.Run("a name of no file, "+tree.String(), func(t *testing.T) {
			t.Setenv(name, filepath.Join(dir, "none"))
			check(t, tree)
		})
	}
	for _, path := range []string{"go.mod", filepath.Join(layout.Layout("build").Package(), "libbinding.a")} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	for tree := range names {
		t.Run("an app's runtime, which has none, "+tree.String(), func(t *testing.T) { check(t, tree) })
	}
}
