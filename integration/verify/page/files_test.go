package page

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is written is known again, so that the next run may replace it, and what only has the name is not.
func TestFiles(t *testing.T) {
	dir, foreign := t.TempDir(), filepath.Join(t.TempDir(), "foreign")
	paths, err := Write(report(t), dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(foreign, []byte(`{"version": 1}`), 0o644))
	for _, path := range paths {
		name := filepath.Base(path)
		is, file := Files()[name]
		assert.NotEqual(t, file, IsPicture(name), name)
		if file {
			assert.True(t, is(path), name)
			assert.False(t, is(foreign), name)
			assert.False(t, is(filepath.Join(dir, "none")), name)
		}
	}
	for _, name := range []string{"photo.png", "held-.png", "quality.jpg", "xmemory.png"} {
		assert.False(t, IsPicture(name), name)
	}
}
