package kernels

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Only a new cache, and the references, allocate: nothing does while decoding. Read in the sources: each call, and the function
// that begins last before it.
func TestNothingAllocates(t *testing.T) {
	files, err := filepath.Glob("*.c")
	require.NoError(t, err)
	found := map[string]int{}
	begin := regexp.MustCompile(`(?m)^[a-z][^\n;=]*?(\w+)\(`)
	call := regexp.MustCompile(`\b(\w*alloc|strdup|fopen)\(`)
	for _, file := range files {
		if strings.HasPrefix(file, "train") {
			continue
		}
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, at := range call.FindAllIndex(source, -1) {
			before := begin.FindAllSubmatch(source[:at[0]], -1)
			require.NotEmpty(t, before, "%s", source[at[0]:at[1]])
			found[string(before[len(before)-1][1])]++
		}
	}
	assert.Equal(t, map[string]int{"lesskv_cache_new": 2, "lesskv_allocate": 3, "lesskv_attend_ref": 2, "lesskv_commit_ref": 4}, found)
}
