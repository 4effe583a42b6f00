package bench

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
)

// FuzzRead: any bytes are a result or refused; a result is printed, and written and read as it was.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"gopher-5m-growth.json"} {
		b, err := os.ReadFile("../../docs/performance/" + name)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"ubatch":32,"threads":2,"samples":[{"method":"less","context":64,"phase":"prompt","tokens":32,"seconds":1,"phases":{"slots":0.5}},
{"method":"f16","context":64,"phase":"prompt","tokens":32,"seconds":2},{"method":"f16","context":64,"phase":"decode","tokens":1,"seconds":0.1}],
"memory":[{"method":"less","context":64,"peak":5}],"node":{"context":64,"node":1,"matmul":2}}`))
	path, copied := filepath.Join(f.TempDir(), "r.json"), filepath.Join(f.TempDir(), "copy.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		require.NoError(t, os.WriteFile(path, b, 0o644))
		fuzztest.Bounded(t, 8<<20+4096*len(b), func() {
			r, err := Read(path)
			if err != nil {
				require.ErrorIs(t, err, ErrResult)
				return
			}
			require.NoError(t, r.Table(io.Discard))
			for _, m := range r.Methods() {
				for _, c := range r.Contexts() {
					r.Whole(m, c)
				}
			}
			require.NoError(t, r.Write(copied))
			first, err := os.ReadFile(copied)
			require.NoError(t, err)
			again, err := Read(copied)
			require.NoError(t, err)
			require.NoError(t, again.Write(copied))
			second, err := os.ReadFile(copied)
			require.NoError(t, err)
			require.True(t, bytes.Equal(first, second))
		})
	})
}
