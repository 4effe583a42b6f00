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
	names := []string{Model, H2O102, H2O41, Peak102, Peak41, Heldout, Windows}
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

// What only a checkout has is there; what apps download goes without it: its folder is a module of its own, and it is not embedded. The
// recall model is that of its card's measurements.
func TestInCheckout(t *testing.T) {
	for _, name := range []string{RecallModel, TrainSample, ReferenceH2O102, ReferenceH2O41, ReferencePeak102, ReferencePeak41} {
		path, err := InCheckout(".", name)
		require.NoError(t, err)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		if name == RecallModel {
			assert.Equal(t, "28f9a4f811a077ec32debabce311e229f4eaa7cf45afdd3c6d7a94acf52c6768", fmt.Sprintf("%x", sha256.Sum256(data)))
		}
		assert.FileExists(t, filepath.Join(filepath.Dir(path), "go.mod"))
		_, err = Read(name)
		assert.ErrorIs(t, err, os.ErrNotExist)
		_, err = InCheckout(t.TempDir(), name)
		assert.ErrorIs(t, err, os.ErrNotExist)
	}
}
