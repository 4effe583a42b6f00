package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A budget of the tokens seen evicts nothing, and LESS is the unmodified runtime's attention to rounding: with f32 slots
// every logit, with f16 slots (where the unmodified runtime rounds queries too) the distribution and every clear choice.
func TestNothingEvictedIsExact(t *testing.T) {
	const tokens = 512
	runs := []struct {
		run
		ubatch int
	}{{atOnce, 512}, {chatter, 32}, {byOne, 32}}
	models := append(tinymodels.Supported(), tinymodels.Model{Name: "gopher-5m"})
	for _, m := range models {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			path := gopher
			if m.Architecture != "" {
				path = write(t, m, gguf.F32)
			}
			for _, typ := range []string{"f32", "f16"} {
				for _, r := range runs {
					switch {
					case m.Architecture == "" && (typ == "f32" || r.name == byOne.name):
						continue // its matrices are f16, to which the runtime then rounds what they are applied to
					case m.Experts && typ == "f16":
						continue // rounding makes it choose other experts: so does the unmodified flash attention
					}
					t.Run(typ+", "+r.name, func(t *testing.T) {
						c := worker.Config{Model: path, Context: tokens, Ubatch: r.ubatch, TypeK: typ, TypeV: typ}
						want := outputOf(t, worker.Unmodified, c, r.run, tokens)
						c.LESS = &worker.LESS{Budget: tokens, TypeK: typ, TypeV: typ}
						got := outputOf(t, worker.Patched, c, r.run, tokens)

						d := compare(t, want, got)
						t.Logf("largest difference %.2g, mean KL %.2g, %d of %d rows with a clear choice", d.max, d.kl, d.clearTop, d.rows)
						if typ == "f32" {
							assert.Less(t, d.max, 1e-3)
						}
						assert.Greater(t, d.clearTop, d.rows/4, "the choices are too close to tell anything")
						assert.Zero(t, d.flips, "choices that differ though clear")
						most := 1e-5
						if typ == "f16" && d.kl >= most { // the unmodified runtime's own rounding may be more than that
							c.LESS, c.TypeK, c.TypeV = nil, "f32", "f32"
							most = compare(t, outputOf(t, worker.Unmodified, c, r.run, tokens), want).kl
						}
						assert.Less(t, d.kl, most)
					})
				}
			}
		})
	}
}

// outputOf decodes n tokens in a worker of its own. With LESS it checks that nothing was evicted from a layer with a budget.
func outputOf(t *testing.T, tree worker.Tree, c worker.Config, r run, n int) *worker.Output {
	t.Helper()
	w := start(t, tree)
	info, err := w.Open(c)
	require.NoError(t, err)
	require.Equal(t, c.LESS != nil, info.LESS)
	out := r.decode(t, w, randomTokens(n, info.Vocab))
	if c.LESS != nil {
		layers, err := w.Layers(0)
		require.NoError(t, err)
		less, err := w.LESS()
		require.NoError(t, err)
		require.Len(t, layers, less.Layers+less.WindowLayers)
		require.LessOrEqual(t, len(layers)+less.SharedLayers, info.Layers)
		for _, l := range layers {
			assert.EqualValues(t, n, l.Seen)
			if l.Window {
				assert.Less(t, l.Kept, int64(info.Window))
			} else {
				assert.EqualValues(t, n, l.Kept)
				assert.Zero(t, l.Folded)
			}
		}
	}
	return out
}

// The policies differ in what they evict: where nothing is evicted they are one, whatever the budget beyond the tokens.
func TestNothingEvictedWhateverThePolicy(t *testing.T) {
	t.Parallel()
	path := tiny(t, "llama")
	var want *worker.Output
	for _, less := range []worker.LESS{
		{Policy: "h2o", Budget: 256},
		{Policy: "lambda", Budget: 300},
		{Policy: "peak", Budget: 511, Heavy: worker.Int(0), Pinned: worker.Int(0)},
		{Policy: "h2o", Budget: 1 << 20}, // above the context: no error
		{Policy: "peak", BudgetShare: 1},
		{Policy: "peak", BudgetBytes: 1 << 30},
	} {
		w := open(t, worker.Patched, worker.Config{Model: path, Context: 512, Ubatch: 64, LESS: &less})
		info, err := w.LESS()
		require.NoError(t, err)
		assert.LessOrEqual(t, info.Budget, 512)
		assert.Equal(t, info.Budget, info.Heavy+info.Recent)
		got := chatter.decode(t, w, randomTokens(256, 384))
		if want == nil {
			want = got
		}
		sameBits(t, want, got)
	}
}

// Decoding one token after another uses the graph of the one before, and computes what graphs built anew do.
func TestGraphReuse(t *testing.T) {
	c := worker.Config{Model: tiny(t, "gemma2"), Context: 512, Ubatch: 64, LESS: &worker.LESS{Budget: 64}}
	tokens := randomTokens(100, 384)
	w := open(t, worker.Patched, c)
	reused := byOne.decode(t, w, tokens)
	info, err := w.Info()
	require.NoError(t, err)
	assert.Greater(t, info.GraphsReused, 90)

	t.Setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
	w = open(t, worker.Patched, c)
	sameBits(t, byOne.decode(t, w, tokens), reused)
	info, err = w.Info()
	require.NoError(t, err)
	assert.Zero(t, info.GraphsReused)
}

// For a given sequence of micro-batches the output is bit-identical for any number of threads, evictions and folds included.
// More threads than cores would wait for the scheduler at every barrier: the kernels' own tests go further.
func TestThreads(t *testing.T) {
	var want *worker.Output
	var state []byte
	for _, threads := range []int{1, 2} {
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 2048, Ubatch: 32, Threads: threads, LESS: peak41()})
		got := atOnce.decode(t, w, heldOut(t, w, 70))
		s, err := w.Save(0)
		require.NoError(t, err)
		if want == nil {
			want, state = got, s
		}
		sameBits(t, want, got)
		assert.True(t, string(state) == string(s), "%d threads leave another state", threads)
	}
}
