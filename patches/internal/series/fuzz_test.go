package series_test

import (
	"bytes"
	"errors"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/patches/internal/series"
)

// FuzzParse: any bytes are a patch or refused with an *Error that names it; applying one is an *Error or changes the files that it
// names and no other, each time in the same way.
func FuzzParse(f *testing.F) {
	f.Add([]byte(header + change + create + remove + trailer))
	f.Add([]byte(header + "diff --git a/src/f.c b/src/g.c\nsimilarity index 100%\nrename from src/f.c\nrename to src/g.c\n"))
	f.Add([]byte(header + "diff --git a/src/f.c b/src/f.c\nindex 1..2\nGIT binary patch\nliteral 3\nKcmZ>B\n\nliteral 0\nHcmV?d00001\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, 1<<20+1024*len(b), func() {
			p, err := series.Parse("x.patch", b)
			var e *series.Error
			if err != nil {
				require.ErrorAs(t, err, &e)
				require.Equal(t, "x.patch", e.Patch)
				return
			}
			first, second := sources(), sources()
			failed := series.Apply(first, []series.Patch{p})
			require.True(t, failed == nil || errors.As(failed, &e))
			again := series.Apply(second, []series.Patch{p})
			require.Equal(t, failed == nil, again == nil)
			require.True(t, maps.EqualFunc(first, second, bytes.Equal))
			named := map[string]bool{}
			for _, file := range p.Files {
				named[file.OldName], named[file.NewName] = true, true
			}
			for path, text := range sources() {
				require.True(t, named[path] || bytes.Equal(text, first[path]), path)
			}
			for path := range first {
				require.True(t, named[path] || sources()[path] != nil, path)
			}
		})
	})
}
