package assemble

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

// Of the release's own sources: the kernels that are embedded are those that the backend refers to, each with all that it includes. (TestDevices
// because make test-devices has fetched them.)
func TestDevicesMetalKernels(t *testing.T) {
	dir, err := cacheDir()
	require.NoError(t, err)
	all := tree.Tree{}
	for _, part := range []source.Part{source.Runtime, source.Devices} {
		kept := (&source.Options{Part: part, Cache: filepath.Join(dir, "sources")}).Kept()
		if _, err := os.Stat(kept); err != nil {
			t.Skip(err)
		}
		require.NoError(t, all.AddFS(os.DirFS(kept), func(p string) string {
			if strings.HasPrefix(p, "ggml/src/") {
				return p
			}
			return ""
		}))
	}
	require.NoError(t, embedMetal(t.Context(), nil, nil, all))

	list := regexp.MustCompile(`(?s)#define GGML_METAL_LIBS.*?\n\n`).Find(all[metal+"ggml-metal-device.m"])
	refers, embeds := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`X\(\w+, *(\w+)\)`).FindAllSubmatch(list, -1) {
		refers[string(m[1])] = true
	}
	require.NotEmpty(t, refers)
	for p, data := range all {
		name, ok := strings.CutPrefix(p, embedded)
		if !ok || filepath.Ext(p) != ".S" {
			continue
		}
		symbols := regexp.MustCompile(`(?m)^\.globl _ggml_metallib_(\w+)_start\n_ggml_metallib_(\w+)_start:\n\.incbin "(.*)"\n\.globl _ggml_metallib_(\w+)_end\n_ggml_metallib_(\w+)_end:\n`).FindSubmatch(data)
		require.NotNil(t, symbols, "%s", data)
		file := string(symbols[3])
		require.Equal(t, embedded+strings.TrimSuffix(name, ".S")+".metal", file)
		for _, i := range []int{2, 4, 5} {
			require.Equal(t, string(symbols[1]), string(symbols[i]))
		}
		embeds[string(symbols[1])] = true

		// As Metal's compiler reads it. Where a file would be included from a folder there is none.
		text := regexp.MustCompile(`(?m)^\s*#\s*include\s*<.*>`).ReplaceAll(all[file], nil)
		cmd := exec.Command(cmp.Or(os.Getenv("CC"), "gcc"), "-E", "-P", "-w", "-nostdinc", "-x", "c", "-DGGML_METAL_EMBED_LIBRARY=1", "-")
		cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(string(text))
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		require.NoError(t, err, "%s: %s", file, &said)
		require.Contains(t, string(out), "kernel void", file)
		require.NotContains(t, string(out), "__embed_", file)
	}
	require.Equal(t, refers, embeds)
}
