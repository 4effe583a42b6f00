package integration

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	cgo "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// The kernels' types are ggml's: what ggml rounds to a type for the slots, and reads back, is what the kernels round and read
// themselves. Keys of the first layer do not depend on what the slots hold; in heads of 32 they are not rotated.
func TestTypesAreThoseOfGgml(t *testing.T) {
	t.Parallel()
	model := tiny(t, "qwen3")
	tokens := randomTokens(320, 384)
	keys := func(typ string) (all []float32) {
		less := &worker.LESS{Policy: "lambda", Budget: 64, TypeK: typ}
		w := open(t, worker.Patched, worker.Config{Model: model, Context: 512, Ubatch: 32, Capture: true, LESS: less})
		require.NoError(t, w.Capture(0))
		_, err := w.Decode(0, 0, tokens, worker.None)
		require.NoError(t, err)
		seen, err := w.Captured()
		require.NoError(t, err)
		for _, a := range seen {
			all = append(all, a.K...)
		}
		require.Len(t, all, 320*2*32)
		return all
	}
	exact := keys("f32")
	for _, typ := range []cgo.Type{cgo.F16, cgo.Q80, cgo.Q40} {
		name := map[cgo.Type]string{cgo.F16: "f16", cgo.Q80: "q8_0", cgo.Q40: "q4_0"}[typ]
		theirs, ours := keys(name), typ.ToF32(typ.FromF32(exact), len(exact))
		var differ int
		for i := range ours {
			if ours[i] != theirs[i] {
				differ++
			}
		}
		assert.LessOrEqual(t, differ, len(ours)/10000, "%s: elements that differ, for a sum that is nearly a tie may be fused", name)
		t.Logf("%s: %d of %d elements differ", name, differ, len(ours))
	}
}

// What a layer holds depends on its own types and on what came in. So the first layer of a context whose later layers have other types has, to the bit,
// what it has where all have its types; a type that is given to each layer is one for all; and the bytes are those of the layers.
func TestTypesByLayer(t *testing.T) {
	t.Parallel()
	tokens := randomTokens(320, 4096)
	type seen struct {
		out    []float32
		pos    [][]int32
		logits []float32
		bytes  []int64
	}
	run := func(k, v string) (s seen) {
		less := &worker.LESS{Policy: "peak", Budget: 41, TypeK: k, TypeV: v, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf"}
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, Capture: true, LESS: less})
		require.NoError(t, w.Capture(0))
		o, err := w.Decode(0, 0, tokens, worker.Last)
		require.NoError(t, err)
		s.logits = o.Values
		all, err := w.Captured()
		require.NoError(t, err)
		for _, a := range all {
			s.out = append(s.out, a.Out...)
		}
		for j := range 2 {
			pos, _, err := w.Slots(0, 0, j)
			require.NoError(t, err)
			s.pos = append(s.pos, pos)
		}
		layers, err := w.Layers(0)
		require.NoError(t, err)
		for _, l := range layers {
			s.bytes = append(s.bytes, l.SlotBytes)
		}
		return s
	}
	size := map[string]int64{"f32": 256, "f16": 128, "q8_0": 68, "q4_0": 36} // of a head of 64
	for _, c := range [][2]string{{"q8_0", "q4_0"}, {"q4_0", "q8_0"}, {"f16", "f32"}} {
		k, v := c[0], c[1]
		same := run(k, v)
		each := run(k+",0="+k+",3="+k, v+",5="+v)
		assert.Equal(t, same, each, "named one by one")
		other := run("q8_0,0="+k+",4=f16", "q8_0,0="+v+",2=q4_0")
		assert.Equal(t, same.out, other.out, "%s and %s: outputs of layer 0", k, v)
		assert.Equal(t, same.pos, other.pos, "%s and %s: slots of layer 0", k, v)
		assert.NotEqual(t, same.logits, other.logits)
		want := slices.Repeat([]int64{2 * 41 * (68 + 68 + 8)}, 6)
		want[0] = 2 * 41 * (size[k] + size[v] + 8)
		want[2], want[4] = 2*41*(68+36+8), 2*41*(128+68+8)
		assert.Equal(t, want, other.bytes)
	}
}

// An adapter's types hold where none are given, of keys and values each.
func TestTypesOfAnAdapter(t *testing.T) {
	t.Parallel()
	m, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	a := weights.New(m, weights.Trained{Policy: "peak", Ubatch: 32, Context: 512})
	a.SlotTypes, err = worker.LayerTypes("q8_0,0=q4_0", "q8_0,5=q4_0,3=f32", m.Layers)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "a.gguf")
	require.NoError(t, a.Write(path))
	tokens := randomTokens(100, 4096)
	run := func(l worker.LESS) []float32 {
		l.Policy, l.Budget = "peak", 41
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &l})
		o, err := w.Decode(0, 0, tokens, worker.Last)
		require.NoError(t, err)
		return o.Values
	}
	byDefault := worker.LESS{TypeK: "default", TypeV: "default", Adapter: path}
	assert.Equal(t, run(worker.LESS{TypeK: "q8_0,0=q4_0", TypeV: "q8_0,5=q4_0,3=f32"}), run(byDefault))
	byDefault.TypeV = "f16"
	assert.Equal(t, run(worker.LESS{TypeK: "q8_0,0=q4_0", TypeV: "f16"}), run(byDefault), "values as they were asked for")
	w := start(t, worker.Patched)
	_, err = w.Open(worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Policy: "peak", Budget: 41, TypeK: "default", TypeV: "default", Adapter: path, OnDevice: true}})
	require.ErrorContains(t, err, "slots of type q4_0")
}
