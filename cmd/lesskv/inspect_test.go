//go:build cgo

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// unpacked puts test files into a folder, under other names.
func unpacked(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for from, to := range files {
		data, err := testdata.Read(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, to), data, 0o644))
	}
	return dir
}

func TestInspectModel(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf", testdata.Peak102: "m.lesskv.gguf"})
	status, out, stderr := command("", "inspect", filepath.Join(dir, "m.gguf"))
	require.Equal(t, exitOK, status, stderr)
	for _, want := range []string{
		"name           gopher-5m\n", "architecture   llama\n", "5.2 million parameters, most of them F16, 9.888 MiB\n", "for 2048 tokens, with a vocabulary of 4096\n",
		"each layer has 4 query heads, 2 of keys and values, 64 wide\n", "LESS           yes\n", "3 KiB in F16, 1.594 KiB in Q8_0, 864 B in Q4_0",
		"96 MiB in full, 7.999 MiB with LESS by default", "m.lesskv.gguf fits\n", "f581b82c0e399464add631180258cd1d701849517b08e673fafbdc117facafff\n",
	} {
		assert.Contains(t, out, want)
	}
}

// What is said of a model is what the runtime does with it.
func TestInspectAsTheRuntime(t *testing.T) {
	if testing.Short() {
		t.Skip("no goroutine of the command's")
	}
	path, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	w, err := worker.Start(context.Background(), path)
	require.NoError(t, err)
	defer func() { assert.NoError(t, w.Close()) }()
	for _, m := range tinymodels.All() {
		file, err := m.WriteIn(t.TempDir(), gguf.F32, 1)
		require.NoError(t, err)
		supported, _, err := w.Supported(file)
		if m.NoDecode && err != nil {
			supported = false
		} else {
			require.NoError(t, err, m.Name)
		}
		status, out, stderr := command("", "inspect", file)
		require.Equal(t, exitOK, status, stderr)
		_, less, ok := strings.Cut(out, "\nLESS ")
		require.True(t, ok, out)
		assert.Equal(t, supported, strings.HasPrefix(strings.TrimSpace(less), "yes"), "%s: %s", m.Name, out)
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "file") {
				assert.LessOrEqual(t, len([]rune(line)), 81, line)
			}
		}
	}
}

// Latent attention is seen in the metadata, where no row of docs/models.md has the architecture.
func TestInspectLatent(t *testing.T) {
	pairs := []gguf.KeyValue{{Key: "general.architecture", Value: "glm-dsa"}}
	for name, n := range map[string]uint32{"block_count": 2, "embedding_length": 64, "context_length": 128, "attention.head_count": 4, "attention.head_count_kv": 1, "vocab_size": 9,
		"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128} {
		pairs = append(pairs, gguf.KeyValue{Key: "glm-dsa." + name, Value: n})
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, gguf.WriteFile(path, pairs, []gguf.Tensor{{Name: "blk.0.attn_norm.weight", Type: gguf.F32, Dims: []uint64{2}, Values: []float32{1, 2}}}))
	status, out, stderr := command("", "inspect", path)
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "no: multi-head latent attention (MLA)")
	assert.NotContains(t, out, "a token takes")
	status, _, stderr = command("", "plan", "-m", path)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "multi-head latent attention (MLA)")
}

func TestInspectAdapter(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf", testdata.Peak102: "m.lesskv.gguf", testdata.H2O41: "alone.gguf"})
	in := func(name string) string { return filepath.Join(dir, name) }
	status, out, stderr := command("", "inspect", in("m.lesskv.gguf"))
	require.Equal(t, exitOK, status, stderr)
	for _, want := range []string{
		"an adapter\n", `"gopher-5m" (llama)`, "phi of 6 and psi of 6 layers of 6, rank 8, hidden size 4, F16", "policy peak, 102 slots a head (25 heavy, 77 recent)",
		"every head has the same budget\n", "lesskv train, layers 0 to 5", "budgets [102], at most 4000 steps of 0.005, seed 1\n", "fits " + in("m.gguf"),
	} {
		assert.Contains(t, strings.Join(strings.Fields(out), " ")+"\n", strings.Join(strings.Fields(want), " "))
	}
	status, out, _ = command("", "inspect", in("alone.gguf"))
	assert.Equal(t, exitOK, status)
	assert.Contains(t, out, "none beside it to compare with")

	tiny, err := tinymodels.Find("qwen3")
	require.NoError(t, err)
	require.NoError(t, tiny.Write(in("other.gguf"), gguf.F32, 1))
	status, out, stderr = command("", "inspect", "-m", in("other.gguf"), in("alone.gguf"))
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, out, "does not fit")
	assert.Contains(t, stderr, `architecture: adapter for another geometry: found llama, wanted qwen3`)
}

// Of an allocation and of validation, too; and what a file says never reaches the terminal as a command.
func TestInspectAllocation(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf"})
	m, err := weights.ReadModel(filepath.Join(dir, "m.gguf"))
	require.NoError(t, err)
	a := weights.New(m, weights.Trained{Policy: "peak", Heavy: 50, Recent: 165, Ubatch: 32, Context: 1})
	a.Budget = []float32{1, 1, 0, 0, 2, 2, 0, 0, 0, 4, 0, 0}
	a.SlotTypes = memory.SlotTypes(m, nil)
	a.SlotTypes[0].Key, a.SlotTypes[5].Value = gguf.Q4_0, gguf.Q4_0
	a.Description = "made by \x1b[31mred\nlayer 3: validation error 0.412 of sparse only's"
	file := filepath.Join(dir, "m.lesskv.gguf")
	require.NoError(t, a.Write(file))
	status, out, stderr := command("", "inspect", file)
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "20.0 0.0 40.0 0.0 40.0 0.0")
	assert.Contains(t, out, "none: what is evicted is lost")
	assert.Contains(t, strings.Join(strings.Fields(out), " "), "tuned for policy peak, 215 slots a head, micro-batches of 32 tokens (run takes that policy by itself, that budget with -b 215)")
	assert.Contains(t, out, "q8_0, 0.k=q4_0, 5.v=q4_0, where no types are given\n")
	assert.Contains(t, out, "made by ?[31mred")
	assert.Contains(t, out, "3: 0.412")
	assert.NotContains(t, out, "\x1b")
	assert.NotContains(t, out, "scales")

	a = weights.Random(m, 8, 4, weights.Trained{Policy: "peak", Ubatch: 1, Context: 1}, 1)
	a.Kernels[0].Scale.Values, a.Kernels[5].Scale.Values = []float32{1, -112, 3, 4}, []float32{5, 6, 97.25, 8}
	require.NoError(t, a.Write(file))
	status, out, stderr = command("", "inspect", file)
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, strings.Join(strings.Fields(out), " "), "scales of 8 query heads, -112.0 to 97.2")
}

func TestInspectRefused(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf"})
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("no model"), 0o644))
	for name, test := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"nothing":          {nil, exitUsage, "want one file"},
		"two":              {[]string{"a", "b"}, exitUsage, "want one file"},
		"none":             {[]string{filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"none to compare":  {[]string{"-m", filepath.Join(dir, "m.gguf"), filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"text":             {[]string{text}, exitFailed, "not a GGUF file"},
		"model of a model": {[]string{"-m", text, filepath.Join(dir, "m.gguf")}, exitUsage, "is no adapter"},
	} {
		status, stdout, stderr := command("", append([]string{"inspect"}, test.args...)...)
		assert.Equal(t, test.status, status, name)
		assert.Contains(t, stderr, test.says, name)
		assert.Empty(t, stdout, name)
	}
}

// Without cgo the command has the same commands, and those that run models name the one that builds it with the runtime.
func TestWithoutCgo(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the command")
	}
	program := buildWithoutCgo(t)
	names := func(help string) (all []string) {
		_, list, _ := strings.Cut(help, "Available Commands:\n")
		list, _, _ = strings.Cut(list, "\n\n")
		for line := range strings.Lines(list) {
			all = append(all, strings.Fields(line)[0])
		}
		return all
	}
	_, want, _ := command("", "--help")
	got, _, err := program("--help")
	require.NoError(t, err)
	assert.Equal(t, names(want), names(got))
	_, stderr, err := program("run", "-m", "x", "y")
	assert.ErrorContains(t, err, "exit status 1")
	assert.Contains(t, stderr, "make lesskv")
	file, err := testdata.Path(testdata.Model)
	require.NoError(t, err)
	for _, args := range [][]string{{"inspect", file}, {"plan", "-m", file, "--memory=40M", "-c2k,32k", "-t2"}} {
		_, want, _ = command("", args...)
		got, stderr, err = program(args...)
		require.NoError(t, err, stderr)
		assert.Equal(t, want, got)
	}
	got, stderr, err = program("version")
	require.NoError(t, err, stderr)
	assert.Regexp(t, `\nruntime +none: this lesskv was built without cgo\n`, got)
	got, stderr, err = program("doctor")
	require.NoError(t, err, got+stderr)
	assert.Contains(t, got, "LESS is the unmodified runtime to ")

	t.Setenv(layout.Variable, t.TempDir()) // without the assembled runtime too
	got, stderr, err = program("version")
	require.NoError(t, err, stderr)
	assert.Regexp(t, `\nassembled +none for this folder\n`, got)
	got, stderr, err = program("doctor")
	assert.ErrorContains(t, err, "exit status 3")
	assert.Contains(t, got, "no libbinding.a")
	assert.Contains(t, stderr, "1 of 7 checks failed")
}
