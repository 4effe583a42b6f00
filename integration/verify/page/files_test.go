package page

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/verify"
)

// A report of before the checks were renamed is read as one of today.
func TestOldNames(t *testing.T) {
	var r verify.Report
	require.NoError(t, json.Unmarshal([]byte(`{"rows":[{"method":"off"},{"method":"whole"},{"method":"plain","policy":"peak","kl":{"value":1}},{"method":"sparse","context":5}]}`), &r))
	assert.Equal(t, verify.NothingEvicted, r.Rows[1].Method)
	assert.Equal(t, verify.Reference, r.Rows[2].Method)
	assert.Equal(t, 1.0, r.Rows[2].KL.Value)
	require.Len(t, r.Measured(), 1)
	assert.Equal(t, 5, r.Measured()[0].Context)
}

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
