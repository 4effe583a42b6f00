package quoted

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzWords: any text of CC is words, which each in marks are read as the same, or a quotation that does not end.
func FuzzWords(f *testing.F) {
	for _, s := range []string{"gcc -m64", "'/opt/my gcc/gcc' -m64", `"a'b" 'c"d'`, `a"b`, "'", `""`, " \t\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := Split(s)
		if err != nil {
			require.ErrorIs(t, err, ErrUnterminated)
			return
		}
		var marked []string
		for _, w := range words {
			require.Contains(t, s, w)
			mark := "'"
			if strings.Contains(w, mark) {
				mark = `"`
			}
			if strings.Contains(w, mark) { // of both kinds: no marks then
				require.NotContains(t, w, " ")
				mark = ""
			}
			marked = append(marked, mark+w+mark)
		}
		again, err := Split(strings.Join(marked, " "))
		require.NoError(t, err)
		require.Equal(t, words, again)
	})
}
