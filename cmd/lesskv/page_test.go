//go:build cgo

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
)

// What docs/commands.md shows is what the commands print.
func TestCommandsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/commands.md")
	require.NoError(t, err)
	t.Chdir(unpacked(t, map[string]string{testdata.Model: "gopher-5m.gguf", testdata.Peak102: "gopher-5m.lesskv.gguf"}))
	n := 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for _, shown := range strings.Split(block[1], "$ lesskv ")[1:] {
			line, want, _ := strings.Cut(shown, "\n")
			status, out, stderr := command("", strings.Fields(line)...)
			require.Equal(t, exitOK, status, stderr)
			assert.Equal(t, want, out, line)
			n++
		}
	}
	require.Equal(t, 3, n)
}
