package module_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/fake"
	"github.com/lesskv/lesskv/patches/internal/module"
)

func TestFetch(t *testing.T) {
	m := fake.Module(t, fake.Proxy(t), "example.com/m", "v1.0.0", map[string]string{"a.c": "int a;\n"})

	dir, err := module.Fetch(t.Context(), m)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "a.c"))

	t.Run("another module under the same name", func(t *testing.T) {
		other := m
		other.Sum = "h1:lALhXzDkqtp12udlDLLg+ybXVMmL7Ox9tybqVLWxjPE="
		_, err := module.Fetch(t.Context(), other)
		var corrupt *module.CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, m.Sum, corrupt.Got)
		require.ErrorContains(t, err, "example.com/m@v1.0.0")
		require.ErrorContains(t, err, "GOPROXY")
	})
	t.Run("no such module", func(t *testing.T) {
		other := m
		other.Path = "example.com/none"
		_, err := module.Fetch(t.Context(), other)
		require.ErrorContains(t, err, "go mod download -json example.com/none@v1.0.0")
	})
	t.Run("edited in the cache", func(t *testing.T) {
		file := filepath.Join(dir, "a.c")
		require.NoError(t, os.Chmod(file, 0o644))
		require.NoError(t, os.WriteFile(file, []byte("int b;\n"), 0o644))
		_, err := module.Fetch(t.Context(), m)
		var corrupt *module.CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, dir, corrupt.Dir)
		require.ErrorContains(t, err, "delete that folder")
	})
}
