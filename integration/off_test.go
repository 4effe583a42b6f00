package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Without the option the patched runtime computes what the unmodified one does, bit for bit: logits over 512 tokens, and
// the saved state, of every architecture there is a tiny model of, those that LESS refuses included.
func TestOffIsOff(t *testing.T) {
	for _, m := range tinymodels.All() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			path := write(t, m, gguf.F16)
			for _, c := range offCases(m) {
				t.Run(c.name, func(t *testing.T) {
					c.config.Model = path
					testOff(t, m, c.config, c.run)
				})
			}
		})
	}
	t.Run("gopher-5m", func(t *testing.T) {
		t.Parallel()
		testOff(t, tinymodels.Model{}, worker.Config{Model: gopher, Context: 512, Ubatch: 128}, chatter)
	})
}

type offCase struct {
	name   string
	config worker.Config
	run    run
}

func offCases(m tinymodels.Model) []offCase {
	all := []offCase{{"plain", worker.Config{Context: 512, Ubatch: 512}, atOnce}}
	if m.Refused == "" {
		all = append(all,
			offCase{"small micro-batches", worker.Config{Context: 512, Ubatch: 32}, chatter},
			offCase{"flash attention, window only, unified", worker.Config{Context: 1024, Ubatch: 64, Sequences: 2, FlashAttention: true, WindowOnly: true, Unified: true}, chatter},
			offCase{"f32", worker.Config{Context: 512, Ubatch: 512, TypeK: "f32", TypeV: "f32"}, atOnce})
	}
	return all
}

func testOff(t *testing.T, m tinymodels.Model, c worker.Config, r run) {
	c.Embeddings = m.NoDecode
	var outputs [2]*worker.Output
	var states [2][]byte
	for tree := range worker.Unmodified + 1 {
		w := start(t, tree)
		info, err := w.Open(c)
		require.NoError(t, err)
		assert.False(t, info.LESS)
		tokens := randomTokens(512, info.Vocab)
		if m.Name == "t5" {
			outputs[tree], err = w.Encode(tokens)
			require.NoError(t, err)
			_, err = w.Decode(0, 0, tokens[:1], worker.Last)
			require.NoError(t, err)
		} else {
			outputs[tree] = r.decode(t, w, tokens)
		}
		if !m.NoDecode {
			states[tree], err = w.Save(worker.End)
			require.NoError(t, err)
		}
	}
	sameBits(t, outputs[worker.Unmodified], outputs[worker.Patched])
	assert.True(t, string(states[0]) == string(states[1]), "the saved states differ")
}
