package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/verify"
)

// A work folder is deleted by who asked for it: one with files of somebody else is left alone.
func TestForeign(t *testing.T) {
	piece := "points-" + strings.Repeat("0", 32)
	for _, name := range []string{"thesis.txt", "thesis.tmp", "locksmith.txt", "builtin/thesis.txt", piece + ".bak", piece + ".tmp", piece + "/thesis.txt", "lock/thesis.txt"} {
		p := small(t)
		p.Work = t.TempDir()
		mine := filepath.Join(p.Work, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(mine), 0o755))
		require.NoError(t, os.WriteFile(mine, []byte("years"), 0o644))
		_, err := verify.Run(context.Background(), p)
		assert.ErrorIs(t, err, verify.ErrForeign, name)
		first, _, _ := strings.Cut(name, "/")
		assert.ErrorContains(t, err, filepath.Join(p.Work, first))
		assert.FileExists(t, mine)
		require.NoError(t, pieces.Remove(p.Work))
		assert.FileExists(t, mine, "nor is it removed by who does not ask first")
	}
}
