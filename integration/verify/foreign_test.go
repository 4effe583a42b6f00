package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/verify"
)

// A work folder is deleted by who asked for it: one with files of somebody else is left alone.
func TestForeign(t *testing.T) {
	p := small(t)
	p.Work = t.TempDir()
	mine := filepath.Join(p.Work, "thesis.txt")
	require.NoError(t, os.WriteFile(mine, []byte("years"), 0o644))
	_, err := verify.Run(context.Background(), p)
	assert.ErrorIs(t, err, verify.ErrForeign)
	assert.ErrorContains(t, err, mine)
	left, err := os.ReadDir(p.Work)
	require.NoError(t, err)
	assert.Len(t, left, 1)
}
