package describe

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Layers that differ are told apart, and those that are alike counted together.
func TestModel(t *testing.T) {
	for name, want := range map[string]struct{ layers, heads string }{
		"qwen3":  {"attend to the whole text", "each layer has "},
		"gemma3": {"in a window of ", "each layer has "},
		"lfm2":   {"recurrent", "layer"},
	} {
		tiny, err := tinymodels.Find(name)
		require.NoError(t, err)
		path, err := tiny.WriteIn(t.TempDir(), gguf.F32, 1)
		require.NoError(t, err)
		m, err := weights.ReadModel(path)
		require.NoError(t, err)
		assert.Contains(t, Layers(m), want.layers, name)
		assert.True(t, strings.HasPrefix(Heads(m), want.heads), Heads(m))
		f, err := gguf.Open(path)
		require.NoError(t, err)
		less, keeps := Served(f, m.Architecture)
		assert.True(t, strings.HasPrefix(less, "yes"), less)
		assert.NotEmpty(t, keeps)
		assert.Equal(t, "F32", Type(f.Tensors))
		less, _ = Served(f, "an architecture of next year")
		assert.Contains(t, less, "the runtime looks")
		require.NoError(t, f.Close())
	}
	assert.Equal(t, []alike{{"a", "layers 0-1,3"}, {"b", "layer 2"}}, group(4, func(i int) string { return []string{"a", "a", "b", "a"}[i] }))
}

// Layers of one size are counted together.
func TestSizes(t *testing.T) {
	m := &weights.Model{Geometry: weights.Geometry{Layers: 6, Heads: 2, HeadsKV: 1, KeyLength: 8, ValueLength: 8}}
	a := weights.Random(m, 4, 3, weights.Trained{}, 1)
	assert.Equal(t, "rank 4, hidden size 3", Sizes(a))
	ranks, _ := a.Sizes()
	assert.Equal(t, "rank 4", Ranks(ranks))
	a.Kernels[0] = weights.Random(m, 8, 3, weights.Trained{}, 1).Kernels[0]
	a.Kernels[2] = weights.Kernels{}
	assert.Equal(t, "rank 8, hidden size 3 in layer 0; rank 4, hidden size 3 in layers 1,3-5", Sizes(a))
	ranks, _ = a.Sizes()
	assert.Equal(t, "rank 4 to 8", Ranks(ranks))
}

// Every matrix has a type of its own; psi.2 is always F32, and does not count.
func TestKernels(t *testing.T) {
	m := &weights.Model{Geometry: weights.Geometry{Layers: 2, Heads: 2, HeadsKV: 1, KeyLength: 32, ValueLength: 32}}
	a := weights.Random(m, 4, 4, weights.Trained{}, 1)
	require.NoError(t, a.Convert(gguf.Q8_0)) // the rows of phi.1 and psi.1 fill no block
	a.Kernels[1] = weights.Kernels{Rank: 4, Hidden: 4, Phi: a.Kernels[1].Phi}
	phi, psi, types := Kernels(a)
	assert.Equal(t, []int{2, 1}, []int{phi, psi})
	assert.Equal(t, []string{"F16", "Q8_0"}, types)
}

func TestDescription(t *testing.T) {
	assert.Nil(t, MadeBy(""))
	assert.Nil(t, Validation("made by hand"))
	assert.Equal(t, []string{"made by hand"}, MadeBy("made by hand\nlayer 3: validation error 0.412 of sparse only's"))
	text := "made by lesskv train, layers 0 to 1, with {\"Rate\":0.005,\"Steps\":9,\"Seed\":3,\"Budgets\":[41]}\nlayer 0: validation error 0.412 of sparse only's\nlayer 1: validation error 1.500 of sparse only's"
	assert.Equal(t, []string{"lesskv train, layers 0 to 1", "budgets [41], at most 9 steps of 0.005, seed 3"}, MadeBy(text))
	assert.Equal(t, []string{"0: 0.412", "1: 1.500"}, Validation(text))
}
