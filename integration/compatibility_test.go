package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/pins"
)

// docs/compatibility.md has a row for everything that upstream exports but fields, and every test that it names exists.
func TestCompatibility(t *testing.T) {
	page, err := os.ReadFile("../docs/compatibility.md")
	require.NoError(t, err)
	tests := map[string]bool{}
	for _, dir := range []string{".", "../plugin"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		require.NoError(t, err)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllSubmatch(source, -1) {
				tests[string(m[1])] = true
			}
		}
	}
	for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(string(page), -1) {
		assert.True(t, tests[name], "there is no %s", name)
	}

	want := map[string]bool{}
	for name := range declarations(t, moduleDir(t, pins.GoLlama)) {
		structure, _, isField := strings.Cut(name, "Options.")
		if !isField || structure == "" {
			want[strings.TrimPrefix(name, "*")] = true
		}
	}
	got := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([\\w.]+)` \\| ([^|]+) \\|[^|]*\\| (Test\\w+) \\|$").FindAllStringSubmatch(string(page), -1) {
		assert.False(t, got[row[1]], "%s stands twice", row[1])
		got[row[1]] = true
		assert.Contains(t, []string{"works", "differs", "no effect"}, row[2], row[1])
	}
	assert.Equal(t, want, got)
}
