//go:build cgo

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/weights"
)

// What train writes with its defaults run, verify and bench take with theirs: the same policy and budget, whatever the context, and nobody
// warns. Windows are short and steps few here, to save time.
func TestDefaultsFitTogether(t *testing.T) {
	if testing.Short() {
		t.Skip("no goroutine of the command's")
	}
	t.Chdir(unpacked(t, map[string]string{testdata.Model: "model.gguf"}))
	held, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("text.txt", held[:20000], 0o644))
	status, _, stderr := command("", "train", "-m", "model.gguf", "-d", "text.txt", "-c", "256", "--text-tokens", "2048", "--steps", "60", "--plot", "none", "-q", "-t1")
	require.Equal(t, exitOK, status, stderr)
	a, err := weights.Read("model.lesskv.gguf")
	require.NoError(t, err)
	require.Positive(t, a.Bytes(), "some layer is better with phi and psi: %s", stderr)
	assert.Equal(t, "peak", a.Trained.Policy)
	assert.Equal(t, 128, a.Trained.Heavy+a.Trained.Recent, "half a window, as 1,024 are more")

	status, _, stderr = greedy("", "-m", "model.gguf", "-n", "200", "func main() {")
	require.Equal(t, exitOK, status, stderr)
	warnings, report, _ := strings.Cut(stderr, "\nmodel ")
	assert.Empty(t, warnings)
	assert.Contains(t, report, "peak, 128 of 2048 tokens: 32 heavy (1 pinned), 96 recent\n            phi and psi of rank 8")

	status, out, stderr := command("", "verify", "-m", "model.gguf", "-d", "text.txt", "-c", "256", "--windows", "1", "-n0", "--recall", "none", "--policy", "peak", "--method", "sparse,LESS",
		"--json", "-q", "-t1")
	require.Equal(t, exitOK, status, stderr)
	assert.Empty(t, stderr)
	var r verify.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	row := r.Row(256, 32, 128, "peak", verify.LESS)
	require.NotNil(t, row)
	assert.Empty(t, row.AdapterNotes)
	assert.Equal(t, "q8_0", r.SlotType)

	status, out, stderr = command("", "bench", "-m", "model.gguf", "--method", "less", "-c0", "-r1", "-t1", "-q", "--dir", t.TempDir(), "-o", "bench.json")
	require.Equal(t, exitOK, status, stderr)
	assert.Empty(t, stderr)
	assert.Contains(t, out, "LESS: peak, 128 slots per KV head in q8_0, rank 8, hidden size 4")
	measured, err := bench.Read("bench.json")
	require.NoError(t, err)
	assert.Equal(t, 128, measured.Budget)

	// What does not fit reaches the user of run, but with -q.
	_, _, stderr = greedy("", "-m", "model.gguf", "-n", "3", "-b", "77", "x")
	assert.Contains(t, stderr, "the adapter was trained with 32 heavy + 96 recent, this cache keeps 19 + 58")
	_, _, stderr = greedy("", "-m", "model.gguf", "-n", "3", "-b", "77", "-q", "x")
	assert.Empty(t, stderr)

	// Without an adapter: as many as 1/12 of the full f16 cache's bytes hold, and 1,024 at least.
	require.NoError(t, os.Rename("model.lesskv.gguf", filepath.Join(t.TempDir(), "away.gguf")))
	for context, want := range map[string]string{"2k": "peak, 1024 of 2048 tokens: 256 heavy (1 pinned), 768 recent\n            sparse only", "16k": "peak, 2427 of 16384 tokens", "512": "peak, 512 of 512 tokens"} {
		status, _, stderr = greedy("", "-m", "model.gguf", "-w", "none", "-n", "3", "-c", context, "x")
		assert.Equal(t, exitOK, status, stderr)
		assert.Contains(t, stderr, want)
	}
}
