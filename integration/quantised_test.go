package integration

import (
	"math"
	"math/bits"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// Where nothing is evicted quantised slots are the runtime's own quantised cache, whose vectors are rotated before they are
// rounded: much closer to it than it is to an f16 cache, or to itself without the rotation. What is left is what its flash attention
// rounds queries to.
func TestQuantisedSlotsAreTheRuntimes(t *testing.T) {
	for _, types := range [][2]string{{"q8_0", "q8_0"}, {"q4_0", "q8_0"}, {"q4_0", "q4_0"}} {
		t.Run(types[0]+","+types[1], func(t *testing.T) { testQuantisedSlots(t, types[0], types[1]) })
	}
}

func testQuantisedSlots(t *testing.T, keys, values string) {
	const n = 512
	for name, path := range map[string]string{"gopher-5m": gopher, "qwen35": tiny(t, "qwen35")} {
		t.Run(name, func(t *testing.T) {
			w := open(t, worker.Unmodified, worker.Config{Model: path, Context: n})
			asTheRuntimes(t, path, heldOut(t, w, n), keys, values)
		})
	}
}

// asTheRuntimes compares slots that evict nothing with the runtime's quantised cache.
func asTheRuntimes(t *testing.T, path string, tokens []int32, keys, values string) {
	t.Helper()
	n := len(tokens)
	c := worker.Config{Model: path, Context: n, Ubatch: 64, TypeK: keys, TypeV: values, FlashAttention: true}
	want := chatter.decode(t, open(t, worker.Unmodified, c), tokens)
	got := chatter.decode(t, open(t, worker.Patched, worker.Config{Model: path, Context: n, Ubatch: 64, LESS: &worker.LESS{Budget: n, TypeK: keys, TypeV: values}}), tokens)
	f16 := chatter.decode(t, open(t, worker.Unmodified, worker.Config{Model: path, Context: n, Ubatch: 64}), tokens)
	t.Setenv("LLAMA_ATTN_ROT_DISABLE", "1")
	unrotated := chatter.decode(t, open(t, worker.Unmodified, c), tokens)
	apart := compare(t, want, got)
	for name, other := range map[string]*worker.Output{"f16": f16, "itself without the rotation": unrotated} {
		d := compare(t, want, other)
		t.Logf("KL %.2g to the runtime's, which is %.2g from %s", apart.kl, d.kl, name)
		if name == "f16" && keys == "q8_0" {
			continue // from which it is about as far as rounded queries are from others
		}
		assert.Less(t, 2*apart.kl, d.kl, name)
	}
}

// hadamard rotates vectors of d numbers by the normalised Hadamard matrix of n dimensions, block by block; twice is not at all.
func hadamard(x []float32, n int) []float32 {
	out := make([]float32, len(x))
	for at := 0; at < len(x); at += n {
		for i := range n {
			var sum float64
			for j := range n {
				if bits.OnesCount(uint(i&j))%2 == 0 {
					sum += float64(x[at+j])
				} else {
					sum -= float64(x[at+j])
				}
			}
			out[at+i] = float32(sum / math.Sqrt(float64(n)))
		}
	}
	return out
}

// With kernels and quantised slots the plain loops compute what the reference does of the pairs that the slots hold, rotated
// back. The fast kernels round queries too: cgo/kernels has their bounds.
func TestQuantisedContract(t *testing.T) {
	t.Parallel()
	model, err := reference.LoadModel(gopher)
	require.NoError(t, err)
	adapter := adapterPath("reference-h2o-41")
	a, err := weights.Read(adapter)
	require.NoError(t, err)
	for _, types := range [][2]string{{"q8_0", "q8_0"}, {"q4_0", "q8_0"}, {"q4_0", "q4_0"}} {
		typ := types[0] + ", " + types[1]
		w := start(t, worker.Patched)
		info, err := w.Open(worker.Config{Model: gopher, Ubatch: 32, Capture: true, LESS: &worker.LESS{Policy: "h2o", Budget: 41, Adapter: adapter, Reference: true, TypeK: types[0], TypeV: types[1]}})
		require.NoError(t, err)
		tokens := heldOut(t, w, 512)
		const il = 2
		o := observe(t, w, info, tokens, 32, il)
		layer := model.Layer()
		layer.Policy, layer.Budget, layer.Heavy, layer.Pinned, layer.Kernels = reference.H2O, 41, reference.H2O.Heavy(41), 1, kernels(a)[il]
		layer.F32 = true // what the runtime gives it is rounded already
		rotated, _ := attentionError(t, layer, len(tokens), o.attention[il], o.kept[il])
		for i := range o.attention[il] {
			c := &o.attention[il][i]
			require.Equal(t, 64, c.KeyLength)
			for _, v := range []*[]float32{&c.Q, &c.K, &c.V, &c.Out} {
				*v = hadamard(*v, 64)
			}
		}
		worst, _ := attentionError(t, layer, len(tokens), o.attention[il], o.kept[il])
		t.Logf("%s: %.1e, %.1e as they come", typ, worst, rotated)
		assert.Less(t, worst, attentionBound, typ)
		assert.Greater(t, rotated, attentionBound, "%s: the kernels do not see the rotation", typ)
	}
}
