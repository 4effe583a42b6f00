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
		require.ErrorContains(t, err, "/example.com/none/@v/v1.0.0.info: no such file", "what the go command says")
	})
	for name, change := range map[string]func(file string) error{
		"a.c": func(file string) error { return os.WriteFile(file, []byte("int b;\n"), 0o644) },
		"b.c": os.Remove,
		"c.c": func(file string) error { return os.WriteFile(file, nil, 0o644) },
	} {
		t.Run("changed in the cache: "+name, func(t *testing.T) {
			m := fake.Module(t, fake.Proxy(t), "example.com/m", "v1.0.0", map[string]string{"a.c": "int a;\n", "b.c": "int b;\n"})
			dir, err := module.Fetch(t.Context(), m)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(filepath.Join(dir, "a.c"), 0o644))
			require.NoError(t, change(filepath.Join(dir, name)))
			_, err = module.Fetch(t.Context(), m)
			var corrupt *module.CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, dir, corrupt.Dir)
			require.Equal(t, name, corrupt.File)
			require.ErrorContains(t, err, "delete that folder")
		})
	}
}
