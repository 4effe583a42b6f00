package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A program that has set a locale with a decimal comma has the runtime read "0.5" and print it, and keeps its comma.
func TestLocale(t *testing.T) {
	if _, err := exec.LookPath("localedef"); err != nil {
		t.Skip("no localedef, which makes glibc's locales")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "comma.src")
	require.NoError(t, os.WriteFile(source, []byte("LC_NUMERIC\ndecimal_point \",\"\nthousands_sep \".\"\ngrouping 3;3\nEND LC_NUMERIC\n"), 0o644))
	out, err := exec.Command("localedef", "-c", "-i", source, filepath.Join(dir, "comma")).CombinedOutput() // warns of what else a locale has
	if _, there := os.Stat(filepath.Join(dir, "comma", "LC_NUMERIC")); there != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command("go", "run", "./locale")
	cmd.Env = append(os.Environ(), "LOCPATH="+dir, "LC_ALL=comma")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err = cmd.Output()
	require.NoError(t, err, stderr.String())
	lines := strings.Split(string(out), "\n")
	require.Len(t, lines, 5, string(out))
	assert.Contains(t, lines[0], "rope frequency base is -0.5")
	assert.Regexp(t, `a budget of 0\.001 MiB is too small`, lines[1])
	assert.Equal(t, []string{"read: <nil>", "the program's own: true true", ""}, lines[2:])
	assert.NotContains(t, stderr.String(), "share of")
}
