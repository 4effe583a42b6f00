//go:build cgo

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tune"
)

// tuneQuickly is a tuning of seconds, of the model and the book in dir.
func tuneQuickly(dir string) []string {
	return []string{"tune", "-t1", "-c96", "-b16", "--ubatch=16", "--windows=1", "--rounds=0", "-m", filepath.Join(dir, "model.gguf"), "-d", filepath.Join(dir, "book.txt")}
}

// A model whose logits are not finite is no model that is tuned well.
func TestTuneNotFinite(t *testing.T) {
	dir, _ := verifyFiles(t)
	spoil(t, filepath.Join(dir, "model.gguf"))
	out := filepath.Join(dir, "new.gguf")
	status, stdout, stderr := command("", append(tuneQuickly(dir), "-o", out)...)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "logits of the full cache that are not finite")
	assert.Empty(t, stdout)
	assert.NoFileExists(t, out)
}

// The last line says what is in the output: beside an allocation, the phi and psi that were named.
func TestTuneTable(t *testing.T) {
	for adapter, want := range map[string]string{
		"":             "o.gguf: the allocation, which weighs nothing in memory\n",
		"trained.gguf": "o.gguf: the allocation, and phi and psi of trained.gguf\n",
	} {
		o := tuneOptions{output: "o.gguf", Options: tune.Options{Adapter: adapter}}
		var out strings.Builder
		require.NoError(t, o.table(&out, &tune.Result{}))
		assert.Contains(t, out.String(), want)
	}
	o := tuneOptions{}
	var out strings.Builder
	require.NoError(t, o.table(&out, &tune.Result{Budget: 40, Levels: []int{8, 10, 20, 40, 80, 160}, Replayed: true,
		Heads: []tune.Head{{Layer: 3, Distance: []float64{.6, .5, .4, .3, .2, .1}, Slots: 40}}}))
	assert.Regexp(t, `layer +head +KL at 10 +KL at 40 +KL at 160 +slots\n +3 +0 +~0.50000 +~0.30000 +~0.10000 +40\n`, out.String())
	assert.Contains(t, out.String(), "~ a share of its layer's, by replays.")
}
