package lesskv_test

import (
	"path/filepath"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

// A model with recurrent layers goes on from its cache and from a saved state, and starts anew where a prompt is another one: it writes
// what a fresh one writes. Its recurrent states are reported beside the cache.
func TestHybrid(t *testing.T) {
	for _, name := range []string{"qwen35", "lfm2", "nemotron_h"} {
		path := writeTiny(t, name, gguf.F16, 1)
		write := func(model *llama.LLama, text string) string {
			return predict(t, model, text, llama.IgnoreEOS, llama.SetTokens(60))
		}
		model := load(t, path, sparse(64))
		first := write(model, prompt)
		s := stats(t, model)
		require.NotEmpty(t, s.Layers, name)
		assert.Positive(t, s.Layers[0].Folded, name)
		assert.Positive(t, s.RecurrentBytes, name)
		assert.Equal(t, s.SlotBytes+s.StateBytes+s.KernelBytes, s.CacheBytes, name)

		state := filepath.Join(t.TempDir(), "state")
		require.NoError(t, model.SaveState(state))
		longer := "\n" + prompt + first + " and on"
		other := prompt[:20] + " {}"
		fresh := load(t, path, sparse(64))
		want := write(fresh, other)
		assert.Equal(t, want, write(model, other), "%s: another prompt", name)
		require.NoError(t, model.LoadState(state))
		again := load(t, path, sparse(64))
		require.NoError(t, again.LoadState(state))
		assert.Equal(t, write(model, longer), write(again, longer), "%s: from a state", name)
	}
}
