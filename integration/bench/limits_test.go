package bench

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// What makes no sense is refused, and so is what no machine holds, with figures, before a model is made or opened.
func TestLimits(t *testing.T) {
	for name, change := range map[string]func(o *Options){
		"rank":          func(o *Options) { o.Rank = weights.MaxSize + 1 },
		"hidden size":   func(o *Options) { o.Hidden = weights.MaxSize + 1 },
		"growth":        func(o *Options) { o.Growth = 1 << 30 },
		"micro-batch":   func(o *Options) { o.Ubatch = trainedContext + 1 },
		"policy":        func(o *Options) { o.Policy = "newest" },
		"budget":        func(o *Options) { o.Budget.Share = math.NaN() },
		"a share of it": func(o *Options) { o.Budget.Share = 2 },
		"type":          func(o *Options) { o.SlotType = "q9" },
		"servers":       func(o *Options) { o.RPC = "127.0.0.1:1" }, // for six methods
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Model: "gopher-5m", Dir: filepath.Join(t.TempDir(), "none"), Contexts: []int{0}}
			change(&o)
			_, err := Run(t.Context(), o)
			require.ErrorIs(t, err, ErrOption)
			assert.NoDirExists(t, o.Dir)
		})
	}
	if _, ok := limits.Memory(); !ok {
		t.Skip("the system does not say how much memory is free")
	}
	dir := t.TempDir()
	_, err := Run(t.Context(), Options{Model: "gopher-5m", Dir: dir, Contexts: []int{0}, Threads: 1, Rank: weights.MaxSize, Hidden: weights.MaxSize})
	require.ErrorIs(t, err, ErrMemory)
	assert.ErrorContains(t, err, "take about 1.501 TiB")
	left, err := filepath.Glob(filepath.Join(dir, "*.lesskv.gguf*"))
	require.NoError(t, err)
	assert.Empty(t, left)

	// What a micro-batch is computed in counts, with methods whose caches are small.
	patched, err := FindMethods([]string{"less"})
	require.NoError(t, err)
	huge := filepath.Join(dir, "huge.gguf")
	require.NoError(t, gguf.WriteFile(huge, nil, nil))
	c := &bench{o: &Options{SlotType: "f16", Ubatch: trainedContext, Threads: 1, Methods: patched}, path: huge, budget: 64,
		model: &weights.Model{Geometry: weights.Geometry{Layers: 1, Heads: 1 << 14, HeadsKV: 1, KeyLength: 128, ValueLength: 128}}}
	require.ErrorIs(t, c.fits(), ErrMemory)
	c.o.Ubatch = 1
	require.NoError(t, c.fits())

	b := &bench{o: &Options{SlotType: "f32"}, budget: 1000, model: &weights.Model{Geometry: weights.Geometry{Layers: 6, HeadsKV: 2, KeyLength: 64, ValueLength: 64}}}
	assert.Equal(t, 6*2*(4*128+8), b.slotBytes("f32"))
	assert.Equal(t, 6*2*(4*(32+2)+8), b.slotBytes("q8_0"))
	assert.Equal(t, 1000, b.methodSlots(Method{Slots: "q8_0"}))
	assert.Equal(t, 1000*520/144, b.methodSlots(Method{Slots: "q8_0", SameBytes: true}))
	assert.Equal(t, 1000*520/80, b.methodSlots(Method{Slots: "q4_0", SameBytes: true}))
}

// Layers that are recurrent, that share another's keys and values, or that have a sliding window take what they do take.
func TestBytesOfLayersThatDiffer(t *testing.T) {
	for name, want := range map[string]struct{ row, slot, heads int }{
		"qwen35":  {2 * 2 * 2 * (64 + 64), 2 * 2 * (2*(64+64) + 8), 2 * 2}, // every fourth of 8 layers attends
		"gemma3n": {20 * 2 * (16 + 16), 4 * (2*(16+16) + 8), 4},            // 20 of 25 layers have keys and values, and a window but for every fifth
	} {
		tiny, err := tinymodels.Find(name)
		require.NoError(t, err)
		path, err := tiny.WriteIn(t.TempDir(), gguf.F32, 1)
		require.NoError(t, err)
		m, err := weights.ReadModel(path)
		require.NoError(t, err)
		b := &bench{o: &Options{SlotType: "f16"}, model: m, budget: 64}
		assert.EqualValues(t, want.row, b.rowBytes("f16"), name)
		assert.Equal(t, want.slot, b.slotBytes("f16"), name)
		assert.Len(t, b.unequal(), want.heads, name)
	}
}
