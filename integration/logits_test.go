package integration

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

// biased writes a model whose keys have a constant in a number that RoPE hardly turns, as Qwen 2 has them: even query heads have logits
// round 105 and odd ones round -120. Their queries have nothing else in that number.
func biased(t *testing.T) (tinymodels.Model, string) {
	t.Helper()
	m, err := tinymodels.Find("qwen2vl")
	require.NoError(t, err)
	plain, err := gguf.Open(write(t, m, gguf.F32))
	require.NoError(t, err)
	defer plain.Close()
	const layers, heads, headsKV, dim, embd, slow, constant = 4, 4, 2, 16, 64, 7, 60
	values := map[string][]float32{}
	for i := range layers {
		name := func(of string) string { return fmt.Sprintf("blk.%d.attn_%s", i, of) }
		q, k := make([]float32, heads*dim), make([]float32, headsKV*dim)
		weight, err := plain.Floats(name("q.weight"))
		require.NoError(t, err)
		for h := range headsKV {
			k[h*dim+slow] = constant
		}
		for h := range heads {
			q[h*dim+slow] = []float32{7, -8}[h%2]
			clear(weight[(h*dim+slow)*embd:][:embd])
		}
		values[name("q.bias")], values[name("k.bias")], values[name("q.weight")] = q, k, weight
	}
	path := filepath.Join(t.TempDir(), "biased.gguf")
	require.NoError(t, m.WriteChanged(path, gguf.F32, 1, values))
	return m, path
}

// Heads whose logits are beyond what single precision has exponentials for are trained, and run as the contract says: "Logits of any size"
// in algorithm.md.
func TestLargeLogits(t *testing.T) {
	t.Parallel()
	m, path := biased(t)
	const context, budget, ubatch = 160, 24, 16
	base, adapter, report := trained(t, path, context, 40*context, 30*context, train.Options{Budgets: []int{budget}, Ubatch: ubatch, Steps: 200})
	require.Len(t, report.Layers, base.Layers)
	for _, l := range report.Layers {
		assert.Empty(t, l.Sparse, "layer %d", l.Layer)
		assert.Less(t, l.Valid, .9, "layer %d", l.Layer)
		t.Logf("layer %d: validation error %.3f, scales %v", l.Layer, l.Valid, report.Adapter.Kernels[l.Layer].Scale.Values)
	}

	for _, less := range []worker.LESS{{}, {Reference: true}} {
		for _, ubatch := range []int{1, ubatch} {
			less.Policy, less.Budget, less.Adapter, less.TypeK, less.TypeV = "h2o", budget, adapter, "f32", "f32"
			w := start(t, worker.Patched)
			info, err := w.Open(worker.Config{Model: path, Context: 512, Ubatch: ubatch, Capture: true, LESS: &less})
			require.NoError(t, err)
			got := captureLayers(t, w, info.Layers, randomTokens(context, info.Vocab), ubatch)
			least, most := math.Inf(1), math.Inf(-1)
			for _, a := range got.micro[0] {
				for i := range a.Tokens * a.Heads {
					var logit float64 // with its own token's key
					for d := range a.KeyLength {
						logit += float64(a.Q[i*a.KeyLength+d]) * float64(a.K[(i/a.Heads*a.HeadsKV+i%a.Heads*a.HeadsKV/a.Heads)*a.KeyLength+d])
					}
					logit /= math.Sqrt(float64(a.KeyLength))
					least, most = min(least, logit), max(most, logit)
				}
			}
			assert.Less(t, least, -100.)
			assert.Greater(t, most, 88.)
			layersContract(t, m, got, nil, reference.Layer{Policy: reference.H2O, Pinned: 1}, nil, kernels(report.Adapter))
		}
	}
}
