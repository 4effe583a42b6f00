package integration

import (
	"cmp"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	cgo "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// randomTypes are types of slots that the heads of each layer fill; the same for the same model.
func randomTypes(m *weights.Model) []weights.SlotTypes {
	rng := rand.New(rand.NewPCG(uint64(m.Vocab), uint64(m.Layers)))
	one := func(size int) gguf.Type {
		types := []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0, gguf.Q4_0}
		if size%32 > 0 {
			types = types[:2]
		}
		return types[rng.IntN(len(types))]
	}
	all := make([]weights.SlotTypes, m.Layers)
	for i := range all {
		s := m.Layer(i)
		all[i] = weights.SlotTypes{Key: one(s.KeyLength), Value: one(s.ValueLength)}
	}
	return all
}

// f16Slots are slots of f16 in all layers.
func f16Slots(m *weights.Model) []weights.SlotTypes {
	return weights.SameSlotTypes(weights.SlotTypes{Key: gguf.F16, Value: gguf.F16}, m.Layers)
}

// samePlan fails unless what package memory says of a cache is what the runtime reports of one that holds a text.
func samePlan(t *testing.T, w *worker.Worker, c worker.Config, a *weights.Adapter) {
	t.Helper()
	m, err := weights.ReadModel(c.Model)
	require.NoError(t, err)
	var types []weights.SlotTypes
	if c.LESS.TypeK != "default" {
		types, err = worker.LayerTypes(cmp.Or(c.LESS.TypeK, "f16"), cmp.Or(c.LESS.TypeV, "f16"), m.Layers)
		require.NoError(t, err)
	}
	plan, err := memory.Less(m, memory.Cache{
		Context: c.Context, Pinned: 1, Types: types, Adapter: a, Sequences: 1,
		Budget: memory.Budget{Tokens: c.LESS.Budget, Share: c.LESS.BudgetShare, Bytes: c.LESS.BudgetBytes, Full: c.LESS.BudgetFull},
	})
	require.NoError(t, err)
	_, err = w.Open(c)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.CloseModel()) }()
	_, err = w.Feed(0, 0, []int32{1, 2, 3}, worker.None)
	require.NoError(t, err)
	got, err := w.LESS()
	require.NoError(t, err)
	assert.EqualValues(t, got.SlotBytes, plan.Slots, "slots")
	assert.EqualValues(t, got.StateBytes, plan.State, "state")
	assert.EqualValues(t, got.KernelBytes, plan.Kernels, "kernels")
	if a != nil {
		assert.EqualValues(t, a.Bytes(), plan.Kernels, "the adapter's own matrices, whatever the slots' types")
	}
	assert.EqualValues(t, got.RecurrentBytes, plan.Recurrent, "recurrent")
	if c.LESS.BudgetBytes == 0 && c.LESS.BudgetFull == 0 || got.Layers > 0 {
		assert.Equal(t, got.Budget, plan.Budget)
	}
	assert.InEpsilon(t, got.ScratchBytes, memory.Scratch(m, plan.Most, c.Ubatch, c.Threads), 0.25, "scratch")
	full, err := memory.Full(m, c.Context, gguf.F16)
	require.NoError(t, err)
	assert.EqualValues(t, got.FullBytes, full, "full")
}

// What package memory says of every kind of model before anything runs is what the runtime then reports.
func TestPlannedMemory(t *testing.T) {
	t.Parallel()
	w := start(t, worker.Patched)
	for _, tiny := range tinymodels.Supported() {
		path := write(t, tiny, gguf.F32)
		m, err := weights.ReadModel(path)
		require.NoError(t, err)
		adapter := unequal(m, weights.Trained{Policy: "h2o", Ubatch: 32, Context: 1024}, 1)
		for i := range m.Sum(func(s weights.Shape) int { return s.HeadsKV }) {
			adapter.Budget = append(adapter.Budget, float32(i%5))
		}
		withAdapter, withTypes := filepath.Join(t.TempDir(), "adapter.gguf"), filepath.Join(t.TempDir(), "types.gguf")
		require.NoError(t, adapter.Write(withAdapter))
		typed := *adapter
		typed.SlotTypes = randomTypes(m)
		require.NoError(t, typed.Write(withTypes))
		k, v, err := worker.SlotTypes(worker.FormatTypes(randomTypes(m)))
		require.NoError(t, err)
		for name, less := range map[string]worker.LESS{
			"default": {TypeK: "default", TypeV: "default"}, "40 slots": {Budget: 40}, "bytes": {BudgetBytes: 1 << 20}, "a part of the full cache": {BudgetFull: 5. / 8}, "an adapter": {Budget: 40, Adapter: withAdapter},
			"bytes and an adapter": {BudgetBytes: 1 << 20, Adapter: withAdapter}, "q8_0 and an adapter": {Budget: 40, TypeK: "q8_0", TypeV: "f16", Adapter: withAdapter},
			"types by layer": {BudgetBytes: 1 << 20, TypeK: k, TypeV: v, Adapter: withAdapter}, "an adapter's types": {BudgetFull: 1. / 8, TypeK: "default", TypeV: "default", Adapter: withTypes},
		} {
			if less.TypeK == "q8_0" && m.Max(func(s weights.Shape) int { return s.KeyLength % 32 }) > 0 {
				continue
			}
			t.Run(tiny.Name+"/"+name, func(t *testing.T) {
				var a *weights.Adapter
				if less.Adapter != "" {
					a = adapter
				}
				if less.Adapter == withTypes {
					a = &typed
				}
				samePlan(t, w, worker.Config{Model: path, Context: 1000, Ubatch: 32, Threads: 1, LESS: &less}, a)
			})
		}
	}
	// Two threads have scratch for two; here alone, since they wait for each other by spinning.
	for _, less := range []worker.LESS{{Adapter: "testdata/gopher-5m.peak-102.lesskv.gguf"}, {Budget: 41, TypeK: "q8_0", TypeV: "q4_0", Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf"}, {BudgetBytes: 300 << 10}, {BudgetFull: 1. / 16}, {BudgetShare: .07}} {
		var a *weights.Adapter
		if less.Adapter != "" {
			var err error
			a, err = weights.Read(less.Adapter)
			require.NoError(t, err)
		}
		samePlan(t, w, worker.Config{Model: gopher, Context: 2048, Ubatch: 32, Threads: 2, LESS: &less}, a)
	}
	samePlan(t, w, worker.Config{Model: gopher, Context: 1900, Ubatch: 32, Threads: 2, LESS: &worker.LESS{BudgetShare: .07}}, nil)
	for _, context := range []int{512, 16384} { // the whole context, and more than 1,024 slots
		samePlan(t, w, worker.Config{Model: gopher, Context: context, Ubatch: 32, Threads: 2, LESS: &worker.LESS{TypeK: "default", TypeV: "default"}}, nil)
	}
}

// What an adapter was trained for is the default: policy, budget and heavy part. Budgets by head alone are for any.
func TestAdapterBringsItsBudget(t *testing.T) {
	t.Parallel()
	w := start(t, worker.Patched)
	m, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	trained := weights.Trained{Policy: "h2o", Heavy: 30, Recent: 50, Ubatch: 32, Context: 1024}
	for name, c := range map[string]struct {
		adapter       *weights.Adapter
		less          worker.LESS
		budget, heavy int
		warns         bool
	}{
		"trained":            {weights.Random(m, 4, 4, trained, 1), worker.LESS{}, 80, 30, false},
		"another budget":     {weights.Random(m, 4, 4, trained, 1), worker.LESS{Budget: 60}, 60, 30, true},
		"another share":      {weights.Random(m, 4, 4, trained, 1), worker.LESS{Heavy: worker.Int(7)}, 80, 7, true},
		"an allocation":      {weights.New(m, trained), worker.LESS{}, 1024, 512, false},
		"for no budget":      {weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Ubatch: 32, Context: 1024}, 1), worker.LESS{}, 1024, 512, false},
		"more than all":      {weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Heavy: 1, Recent: 5000, Ubatch: 32, Context: 8192}, 1), worker.LESS{}, 2048, 1024, false},
		"pinned and trained": {weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Recent: 80, Ubatch: 32, Context: 1024}, 1), worker.LESS{}, 80, 1, true},
	} {
		path := filepath.Join(t.TempDir(), "a.gguf")
		require.NoError(t, c.adapter.Write(path))
		c.less.Adapter = path
		_, err := w.Open(worker.Config{Model: gopher, Context: 2048, Ubatch: 512, LESS: &c.less})
		require.NoError(t, err, name)
		got, err := w.LESS()
		require.NoError(t, err, name)
		assert.Equal(t, "h2o", got.Policy, name)
		assert.Equal(t, []int{c.budget, c.heavy}, []int{got.Budget, got.Heavy}, name)
		planned, err := memory.Less(m, memory.Cache{Context: 2048, Budget: memory.Budget{Tokens: c.less.Budget}, Pinned: 1, Types: f16Slots(m), Adapter: c.adapter})
		require.NoError(t, err, name)
		assert.Equal(t, c.budget, planned.Budget, name)
		log, err := w.Log()
		require.NoError(t, err)
		assert.Equal(t, c.warns, strings.Contains(log, "the adapter was trained with"), "%s: %s", name, log)
		require.NoError(t, w.CloseModel())
	}
	_, err = w.Open(worker.Config{Model: gopher, Context: 2048, LESS: &worker.LESS{}})
	require.NoError(t, err)
	got, err := w.LESS()
	require.NoError(t, err)
	assert.Equal(t, "peak", got.Policy)
}

// A budget that the runtime refuses, since its heavy part is less than what is pinned, is refused before anything is loaded.
func TestPlannedRefused(t *testing.T) {
	t.Parallel()
	w := start(t, worker.Patched)
	m, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	for _, c := range []struct {
		heavy, budget int
		refused       bool
	}{{30, 0, false}, {30, 80, false}, {30, 81, true}, {40, 0, true}} { // 80 slots in training, of which 40 are the policy's share
		a := weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Heavy: c.heavy, Recent: 80 - c.heavy, Ubatch: 32, Context: 1024}, 1)
		path := filepath.Join(t.TempDir(), "a.gguf")
		require.NoError(t, a.Write(path))
		_, planned := memory.Less(m, memory.Cache{Context: 512, Budget: memory.Budget{Tokens: c.budget}, Pinned: 60, Types: f16Slots(m), Adapter: a})
		_, got := w.Open(worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: c.budget, Pinned: worker.Int(60), Adapter: path}})
		assert.Equal(t, c.refused, planned != nil, "%v: %v", c, planned)
		assert.Equal(t, c.refused, got != nil, "%v: %v", c, got)
		if got == nil {
			require.NoError(t, w.CloseModel())
		}
	}
	for _, policy := range cgo.PolicyNames() {
		for budget := 1; budget <= 5; budget++ {
			heavy, err := cgo.PolicyHeavy(policy, budget)
			require.NoError(t, err)
			_, planned := memory.Less(m, memory.Cache{Context: 512, Budget: memory.Budget{Tokens: budget}, Policy: policy, Pinned: 1, Types: f16Slots(m)})
			_, got := w.Open(worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Policy: policy, Budget: budget}})
			if heavy < 1 {
				require.ErrorIs(t, planned, memory.ErrBudget, "%s %d", policy, budget)
				require.ErrorContains(t, got, "pinned 1 must be")
				continue
			}
			require.NoError(t, planned, "%s %d", policy, budget)
			require.NoError(t, got)
			require.NoError(t, w.CloseModel())
		}
	}
}

// What package memory estimates of a process is near what one takes.
func TestPlannedProcess(t *testing.T) {
	m, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	f, err := gguf.Open(gopher)
	require.NoError(t, err)
	defer f.Close()
	for _, c := range []worker.Config{
		{Context: 2048, Ubatch: 32}, {Context: 2048, Ubatch: 512},
		{Context: 2048, Ubatch: 32, LESS: &worker.LESS{Budget: 102}}, {Context: 2048, Ubatch: 512, LESS: &worker.LESS{Budget: 1024}},
	} {
		c.Model, c.Batch, c.Threads, c.FlashAttention = gopher, 512, 1, true
		w := open(t, worker.Patched, c)
		_, err := w.Feed(0, 0, randomTokens(2000, 4096), worker.None)
		require.NoError(t, err)
		got, err := w.Memory()
		require.NoError(t, err)
		p := memory.Process{Weights: memory.Weights(f), Compute: memory.Compute(m, c.Ubatch)}
		if c.LESS == nil {
			p.Slots, err = memory.Full(m, c.Context, gguf.F16)
			require.NoError(t, err)
		} else {
			plan, err := memory.Less(m, memory.Cache{Context: c.Context, Budget: memory.Budget{Tokens: c.LESS.Budget}, Pinned: 1, Types: f16Slots(m)})
			require.NoError(t, err)
			p.Kernels, p.Slots, p.State = plan.Kernels, plan.Slots, plan.State
			p.Scratch = memory.Scratch(m, plan.Most, c.Ubatch, c.Threads)
			info, err := w.LESS()
			require.NoError(t, err)
			t.Logf("scratch %d, planned %d", info.ScratchBytes, p.Scratch)
			assert.InEpsilon(t, info.ScratchBytes, p.Scratch, 0.25)
		}
		t.Logf("ubatch %d, LESS %t: peak %d KiB, planned %d", c.Ubatch, c.LESS != nil, got.Peak>>10, p.Total()>>10)
		assert.InEpsilon(t, got.Peak, p.Total(), 0.33)
	}
}

// Weights that ggml repacks for the CPU are copied out of the mapped file, and count once all the same.
func TestRepackedWeightsOnce(t *testing.T) {
	shape := bench.Shape{Name: "wide", Architecture: "llama", Layers: 2, Embedding: 1024, FeedForward: 8192, Heads: 8, HeadsKV: 2, HeadSize: 64, Vocab: 512, RopeBase: 10000}
	builder, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	path, err := shape.Build(t.Context(), t.TempDir(), "Q4_0", builder, 1)
	require.NoError(t, err)
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	bytes := int64(memory.Weights(f))
	w := open(t, worker.Patched, worker.Config{Model: path, Context: 64, Batch: 32, Ubatch: 32, Threads: 1, FlashAttention: true})
	_, err = w.Feed(0, 0, randomTokens(16, shape.Vocab), worker.None)
	require.NoError(t, err)
	got, err := w.Memory()
	require.NoError(t, err)
	t.Logf("weights %d KiB, peak %d, without mapped files %d", bytes>>10, got.Peak>>10, got.Anon>>10)
	require.Less(t, got.Peak, bytes+bytes/2+20<<20)
	if b := provenance.Of(builder); strings.HasPrefix(b.ISA, "x86-64-v") && strings.Contains(b.Flags, "-march=native") && b.ISA >= "x86-64-v3" {
		require.Greater(t, got.Anon, bytes, "AVX2: they are repacked")
	}
}
