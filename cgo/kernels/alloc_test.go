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

// Only a new cache, and the references, allocate: nothing does while decoding. Read in the sources, function by function.
func TestNothingAllocates(t *testing.T) {
	files, err := filepath.Glob("*.c")
	require.NoError(t, err)
	found := map[string]bool{}
	for _, file := range files {
		if strings.HasPrefix(file, "train") {
			continue
		}
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, f := range regexp.MustCompile(`(?ms)^[^\n]*?(\w+)\([^\n]*\{$.*?^\}`).FindAllSubmatch(source, -1) {
			if regexp.MustCompile(`\b(\w*alloc|strdup|fopen)\(`).Match(f[0]) {
				found[string(f[1])] = true
			}
		}
	}
	assert.Equal(t, map[string]bool{"lesskv_cache_new": true, "lesskv_attend_ref": true, "lesskv_commit_ref": true}, found)
}
