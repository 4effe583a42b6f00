//go:build cgo

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/bench"
)

func TestBench(t *testing.T) {
	status, out, stderr := command("", "bench", "-q", "-t1", "-r1", "-c", "0", "--method", "f16,less", "--dir", t.TempDir(), "-m", "gopher-5m")
	assert.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "decoding, tokens/s")
	assert.NotContains(t, out, "prompt,")
	assert.Empty(t, stderr)
}

// With --page a folder of results is shown, and nothing is measured: not what is missing there either.
func TestBenchPage(t *testing.T) {
	dir, growth := t.TempDir(), "gopher-5m-growth.json"
	data, err := os.ReadFile(filepath.Join("../../docs/performance", growth))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, growth), data, 0o644))
	status, out, stderr := command("", "bench", "--targets", dir, "--page")
	require.Equal(t, exitOK, status, stderr)
	r, err := bench.Read(filepath.Join(dir, growth))
	require.NoError(t, err)
	grew := float64(r.Growth.After-r.Growth.Before) / (1 << 20)
	assert.Contains(t, out, fmt.Sprintf("| growth of peak memory from 2k to 64k tokens of context, gopher-5m | ≤ 2 MiB | %.3g MiB (%.3g to %.3g, 1) | met |\n", grew, grew, grew))
	assert.Contains(t, out, "not measured")
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, files, 1)
}

func TestBenchUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		says string
	}{
		{nil, "want a model: -m with its file, or one of "},
		{[]string{"a", "b"}, `"b": want one model`},
		{[]string{"-m", "a", "b"}, `"b": want one model`},
		{[]string{"--context=many", "gopher-5m"}, "--context many: want a number of tokens"},
		{[]string{"-c", "3M", "gopher-5m"}, "--context 3M: want a number of tokens"},
		{[]string{"--method=magic", "gopher-5m"}, `no method "magic"`},
		{[]string{"--budget=lots", "gopher-5m"}, "--budget lots: want slots a head (1024)"},
		{[]string{"--phi-type=q4_0", "gopher-5m"}, "--phi-type q4_0: want one of f16, q8_0"},
		{[]string{"--growth=-1", "gopher-5m"}, "--growth -1: want a number of tokens"},
		{[]string{"--prompt-limit=x", "gopher-5m"}, "--prompt-limit x: want a number of tokens"},
		{[]string{"--quant=Q9", "smollm2-135m"}, "matrices in Q9: want one of F32, F16"},
		{[]string{"--policy=magic", "smollm2-135m"}, "magic"},
		{[]string{"--type=q9", "smollm2-135m"}, "q9"},
		{[]string{"no-such-shape"}, `no shape "no-such-shape"`},
		{[]string{"--page"}, "--page: want the folder of --targets"},
		{[]string{"--into", "page.md", "no-such-shape"}, "--into: want the folder of --targets"},
		{[]string{"--targets", t.TempDir(), "--plot", "a.png", "no-such-group"}, "--plot: the groups of --targets have their own"},
		{[]string{"--targets", t.TempDir(), "--page", "--check"}, "--check: the groups of --targets have their own"},
		{[]string{"--targets", t.TempDir(), "no-such-group"}, `no group "no-such-group"`},
		{[]string{"--targets", t.TempDir(), "llama-3.2-1b-portable"}, "compares two runtimes"},
	} {
		status, _, stderr := command("", append([]string{"bench", "-q"}, test.args...)...)
		assert.Equal(t, exitUsage, status, "%v: %s", test.args, stderr)
		assert.Contains(t, stderr, test.says)
	}
}
