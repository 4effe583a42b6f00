package testdata

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPathIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	names := []string{Model, H2O102, H2O41, Peak102, Peak41, ReferenceH2O102, ReferenceH2O41, ReferencePeak102, ReferencePeak41, Heldout, Windows}
	for _, name := range names {
		want, err := Read(name)
		require.NoError(t, err)
		path, err := PathIn(dir, name)
		require.NoError(t, err)
		for _, damage := range []func() error{
			func() error { return nil },
			func() error { return os.WriteFile(path, want[:100], 0o644) },
			func() error { return os.Remove(path) },
		} {
			require.NoError(t, damage())
			again, err := PathIn(dir, name)
			require.NoError(t, err)
			assert.Equal(t, path, again)
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.True(t, string(got) == string(want), name)
		}
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, len(names), "nothing is left behind")
	_, err = PathIn(dir, "none.gguf")
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// The recall model is in every checkout and its sum is that of its card's measurements; what apps download goes without it: its folder is a
// module of its own, and it is not embedded.
func TestRecallModel(t *testing.T) {
	path, err := RecallPath(".")
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "28f9a4f811a077ec32debabce311e229f4eaa7cf45afdd3c6d7a94acf52c6768", fmt.Sprintf("%x", sha256.Sum256(data)))
	assert.FileExists(t, filepath.Join(filepath.Dir(path), "go.mod"))
	_, err = Read(RecallModel)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = RecallPath(t.TempDir())
	assert.ErrorIs(t, err, os.ErrNotExist)
}
