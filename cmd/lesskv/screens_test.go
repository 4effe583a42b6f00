//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
)

// shotArgs returns the arguments of a command that integration/screens.sh shows.
func shotArgs(t *testing.T, root, name string) []string {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(root, "integration", "screens.sh"))
	require.NoError(t, err)
	line := regexp.MustCompile(`keys "(?:clear; )?lesskv (` + name + ` [^"]*)"`).FindSubmatch(script)
	require.NotNil(t, line, name)
	return words(t, string(line[1]))
}

// kept reads one of docs/screens, without what was typed.
func kept(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "screens", name+".txt"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		assert.LessOrEqual(t, len([]rune(strings.TrimRight(line, "\n"))), 80, line)
	}
	return regexp.MustCompile(`(?m)^\$.*\n?`).ReplaceAllString(string(text), "")
}

var (
	numerals = regexp.MustCompile(`[-+]?\d[\d.]*( (B|KiB|MiB|GiB)\b|h|ms|s|m)?`)
	builds   = regexp.MustCompile(`(?s)Measured by .*?\(\w+/\w+\)\.`)
)

// shape is what a command prints without what each run and machine has otherwise: numbers and their units, the build, and where lines break.
func shape(text string) string {
	text = numerals.ReplaceAllString(builds.ReplaceAllString(text, "BUILD"), "#")
	return strings.Join(strings.Fields(text), " ")
}

// shapes are those of lines.
func shapes(text string) (all []string) {
	for line := range strings.Lines(text) {
		if s := shape(line); s != "" {
			all = append(all, s)
		}
	}
	return all
}

// What docs/screens shows is what the commands print; integration/screens.sh makes it anew.
func TestScreens(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	held, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	t.Chdir(unpacked(t, map[string]string{testdata.Model: "gopher-5m.gguf"}))
	require.NoError(t, os.WriteFile("text.txt", held[:30000], 0o644))
	require.NoError(t, os.WriteFile("book.txt", held[len(held)-20000:], 0o644))

	status, out, stderr := command("", shotArgs(t, root, "plan")...)
	require.Equal(t, exitOK, status, stderr)
	assert.Equal(t, strings.TrimSpace(kept(t, root, "plan")), strings.TrimSpace(out))

	status, out, stderr = command("func main() {\n/regen\n/stats\n", shotArgs(t, root, "chat")...)
	require.Equal(t, exitOK, status, stderr)
	_, stats, ok := strings.Cut(kept(t, root, "chat"), "/stats\n")
	require.True(t, ok)
	for _, line := range shapes(strings.TrimRight(stats, "> \n")) {
		assert.Contains(t, shapes(out+stderr), line)
	}
	if testing.Short() {
		return
	}

	status, out, stderr = command("", shotArgs(t, root, "train")...)
	require.Equal(t, exitOK, status, stderr)
	for _, line := range shapes(kept(t, root, "train")) {
		assert.Contains(t, shapes(out+stderr), line)
	}

	status, out, stderr = command("", shotArgs(t, root, "verify")...)
	require.Equal(t, exitOK, status, stderr)
	shown, files, ok := strings.Cut(kept(t, root, "verify"), "written:\n")
	require.True(t, ok)
	assert.Equal(t, shape(shown), shape(out))
	assert.Contains(t, shape(out), "BUILD")
	for _, name := range strings.Fields(files) {
		assert.FileExists(t, name)
	}
}
