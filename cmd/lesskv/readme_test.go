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

// What README.md has a newcomer type after the build works, in its order and as it is written there, in a folder with a model, a prompt and
// texts. Flags are added that make it short, and the model of bench is a small one.
func TestReadmeCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	lines := regexp.MustCompile(`(?m)^    go run \./cmd/lesskv +(.*?)(?: +#.*)?$`).FindAllStringSubmatch(string(readme), -1)
	short := map[string]string{
		"inspect": "", "doctor": "", "plan": "", "run": "-n 8 -t1", "chat": "-n 8 -t1",
		"tune":   "-c 256 --windows 1 --rounds 0 -q -t1 --plot none",
		"verify": "-c 256 --windows 1 -n0 --recall none --method sparse,LESS --policy peak -q -t1",
		"bench":  "--method less -r1 --prompt-limit 0 -q -t1",
	}
	says := map[string]string{
		"inspect": "LESS           yes", "doctor": "LESS is the unmodified runtime to", "plan": "At so short a context LESS by default saves", "run": "", "chat": "",
		"tune": "model.lesskv.gguf: the allocation", "verify": "peak LESS", "bench": "decoding, tokens/s",
	}
	t.Chdir(unpacked(t, map[string]string{testdata.Model: "model.gguf"}))
	held, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir("texts", 0o755))
	for name, data := range map[string][]byte{"prompt.txt": []byte("func main() {\n"), "texts/a.txt": held[:12000], "book.txt": held[20000:24000]} {
		require.NoError(t, os.WriteFile(name, data, 0o644))
	}
	seen := map[string]bool{}
	for _, l := range lines {
		args := strings.Fields(l[1])
		name := args[0]
		extra, ok := short[name]
		require.True(t, ok, l[1])
		if strings.Contains(l[1], "--train") {
			extra += " --text-tokens 1024 --steps 20"
		}
		if seen[name] = true; name == "bench" {
			args = strings.Fields(strings.ReplaceAll(l[1], "smollm2-135m", "gopher-5m"))
			extra += " --dir " + t.TempDir()
		}
		status, out, stderr := command("Hello\n", append(args, strings.Fields(extra)...)...)
		require.Equal(t, exitOK, status, "%s: %s", l[1], stderr)
		assert.Contains(t, out, says[name], l[1])
	}
	assert.Len(t, seen, len(short), "README.md shows every one of them")
}
