package tune

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

// A curve goes through what was measured, falls, and ends at zero.
func TestCurve(t *testing.T) {
	levels := []int{30, 100, 400}
	for _, d := range [][]float64{{.3, .1, .02}, {.3, .1, 0}, {.3, 0, 0}, {.3, .3, .3}, {0, 0, 0}} {
		for i, n := range levels {
			assert.InDelta(t, d[i], curve(levels, d, 2048, n), 1e-9, "%v at %d", d, n)
		}
		last := math.Inf(1)
		for n := 4; n <= 2048; n++ {
			x := curve(levels, d, 2048, n)
			if d[1] > 0 || n < 30 { // where nothing is left at a level, what lies before it has no law
				assert.LessOrEqual(t, x, last+1e-12, "%v at %d", d, n)
			}
			last = x
		}
		assert.Zero(t, curve(levels, d, 2048, 2048))
	}
	assert.InDelta(t, .2, curve([]int{50}, []float64{.2}, 100, 50), 1e-9)
	assert.Greater(t, curve([]int{50}, []float64{.2}, 100, 25), .2)
}

func TestMatter(t *testing.T) {
	layers := [][]float64{{.02, 0}, {.001, 0}, {.3, .1}, {.01, 0}}
	assert.Equal(t, []int{2}, matter(layers, .9))
	assert.Equal(t, []int{2, 0}, matter(layers, .95))
	assert.Equal(t, []int{2, 0, 3, 1}, matter(layers, 1))
	assert.Empty(t, matter([][]float64{{0}, {0}}, .95))
}

func TestLevels(t *testing.T) {
	assert.Equal(t, []int{34, 102, 408}, levels(102, 2048))
	assert.Equal(t, []int{4, 16}, levels(4, 2048))
	assert.Equal(t, []int{300, 900}, levels(900, 2048))
}

// The heads of a layer cost together what the layer costs, and no curve rises.
func TestShareOut(t *testing.T) {
	r := &Result{
		Levels: []int{10, 20},
		Layers: [][]float64{{.4, .1}, {.2, .1}},
		Heads: []Head{{Distance: []float64{.3, .01}, Measured: true}, {Distance: []float64{.1, .03}, Measured: true},
			{Distance: make([]float64, 2)}, {Distance: make([]float64, 2)}},
	}
	shareOut(r, [][]int{{0, 1}, {2, 3}})
	assert.InDeltaSlice(t, []float64{.3, .025}, r.Heads[0].Distance, 1e-12)
	assert.InDeltaSlice(t, []float64{.1, .075}, r.Heads[1].Distance, 1e-12)
	assert.InDeltaSlice(t, []float64{.1, .05}, r.Heads[2].Distance, 1e-12)
	assert.Equal(t, []float64{3, 2, 2}, falling([]float64{3, 1, 2}))
}

// From what less and more slots cost and gain the law is found that made them.
func TestSlope(t *testing.T) {
	for _, want := range []slope{{100, .2, 1}, {7, .01, .5}, {40, 3, 2.5}} {
		cost := func(x float64) float64 { return want.gain * math.Pow(x, -want.power) }
		got := newSlope(want.n, 1/1.5, 1.5, cost(1/1.5)-cost(1), cost(1)-cost(1.5))
		assert.InDelta(t, want.gain, got.gain, 1e-9)
		assert.InDelta(t, want.power, got.power, 1e-9)
	}
	assert.Zero(t, newSlope(9, .5, 2, -.1, -.2).gain, "noise")
	assert.Equal(t, slope{9, .2, 1}, newSlope(9, .5, 1, .2, 0), "as many as it can have")
}

// The sum stays, nothing goes further than it may, and a slot more gains as much in every part that is between.
func TestSpread(t *testing.T) {
	parts := []slope{{100, .2, 1}, {200, .01, .5}, {50, .3, 2}, {80, 0, 1}, {150, .05, 1}}
	for _, most := range []float64{1.05, 1.5, 4} {
		x := spread(parts, most)
		sum, price := 0.0, -1.
		for i, s := range parts {
			sum += s.n * x[i]
			assert.LessOrEqual(t, x[i], most*(1+1e-9))
			assert.GreaterOrEqual(t, x[i], 1/most*(1-1e-9))
			if s.gain > 0 && x[i] < most*.999 && x[i] > 1.001/most {
				p := s.gain * s.power / s.n * math.Pow(x[i], -s.power-1)
				if price >= 0 {
					assert.InEpsilon(t, price, p, 1e-6)
				}
				price = p
			}
		}
		assert.InEpsilon(t, 580, sum, 1e-6)
		assert.InDelta(t, 1/most, x[3], 1e-9, "what costs nothing gives what it may")
	}
	assert.Equal(t, [][]int{{0}, {1, 2}, {3}, {4}, {5}}, partsOf([]Head{{Layer: 0, Measured: true}, {Layer: 1}, {Layer: 1}, {Layer: 2}, {Layer: 3, Measured: true}, {Layer: 3, Measured: true}}))
}

// Where one layer that matters has less slots than an allocation, the costs of its heads become what would have predicted what that
// costs, but at most four times and at least a quarter of what they were. Of a spread by these costs and one half as far the better is taken.
func TestCorrect(t *testing.T) {
	layers := [][]int{{0, 1}, {2}, {3}, {4}}
	for _, half := range []bool{false, true} {
		store, err := pieces.Open(t.TempDir())
		require.NoError(t, err)
		defer store.Close()
		m := &meter{o: &Options{Share: .95}, context: 1000, budget: 100, store: store}
		r := &Result{Budget: 100, Levels: []int{50, 100, 200}}
		for _, cost := range []float64{.1, .1, .2, .2, .001} {
			r.Heads = append(r.Heads, Head{Distance: []float64{2 * cost, cost, cost / 2}})
		}
		measured := func(distance float64, slots ...int) {
			require.NoError(t, store.Save(m.key(nil, m.cache(slots)), distance))
		}
		now := candidate{slots: slices.Repeat([]int{100}, 5), distance: .5}
		// 67 slots cost as many times as much as 100. Nobody measures the last layer, which does not matter.
		less := func(times float64) float64 { return .5 + times*.2*(100./67-1) }
		measured(less(2), 67, 67, 100, 100, 100)
		measured(less(9), 100, 100, 67, 100, 100)
		measured(less(-1), 100, 100, 100, 67, 100)
		want := corrected(r, layers, []float64{2, 4, .25, 1})
		slots, err := m.greedy(t.Context(), want)
		require.NoError(t, err)
		between := make([]int, len(slots))
		for j, n := range slots {
			between[j] = int(math.Round(math.Sqrt(float64(n * 100))))
		}
		_, full, err := m.allocation(slots)
		require.NoError(t, err)
		_, near, err := m.allocation(between)
		require.NoError(t, err)
		measured(.4, full...)
		best := full
		if half {
			best = near
			measured(.3, near...)
		} else {
			measured(.45, near...)
		}

		next, costs, err := m.correct(t.Context(), r, layers, now)
		require.NoError(t, err)
		assert.Equal(t, best, next.slots)
		assert.Greater(t, next.slots[2], 100, "costs more than was predicted")
		assert.Less(t, next.slots[3], 100)
		for j, h := range costs.Heads {
			assert.InDeltaSlice(t, want.Heads[j].Distance, h.Distance, 1e-12, "head %d", j)
		}
		assert.Equal(t, .1, r.Heads[0].Distance[1], "as it was")
	}
}

// A piece that was kept in another format has another name, so that it is measured again.
func TestPiecesOfAnotherFormat(t *testing.T) {
	m := &meter{o: &Options{}}
	name := m.key(nil, cache{})
	workFormat++
	t.Cleanup(func() { workFormat-- })
	assert.NotEqual(t, name, m.key(nil, cache{}))
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no text":         {Budget: worker.Budget{Tokens: 4}},
		"no validation":   {Budget: worker.Budget{Tokens: 4}, Windows: [][]int32{make([]int32, 64)}},
		"unequal windows": {Budget: worker.Budget{Tokens: 4}, Windows: [][]int32{make([]int32, 64)}, Valid: [][]int32{make([]int32, 63)}},
		"no budget":       {Windows: [][]int32{make([]int32, 64)}, Valid: [][]int32{make([]int32, 64)}},
		"no such heads":   {Heads: "all", Budget: worker.Budget{Tokens: 4}, Windows: [][]int32{make([]int32, 64)}, Valid: [][]int32{make([]int32, 64)}},
		"nothing evicted": {Budget: worker.Budget{Tokens: 64}, Windows: [][]int32{make([]int32, 64)}, Valid: [][]int32{make([]int32, 64)}},
	} {
		_, err := Run(context.Background(), o)
		assert.ErrorIs(t, err, ErrOption, name)
	}
}

// gopher returns the small model, the worker, a runtime that has both open, and the tokens of so many bytes of text.
func gopher(t *testing.T, bytes int) (model, path string, rt *activations.Runtime, tokens []int32) {
	t.Helper()
	model, err := testdata.Path(testdata.Model)
	require.NoError(t, err)
	path, err = worker.Path(worker.Patched)
	require.NoError(t, err)
	rt, err = activations.Open(t.Context(), path, model, 512, 1)
	require.NoError(t, err)
	t.Cleanup(func() { rt.Close() })
	text, err := os.ReadFile(filepath.Join("..", "testdata", testdata.TrainSample))
	require.NoError(t, err)
	tokens, err = rt.Tokenize(string(text[:bytes]))
	require.NoError(t, err)
	return model, path, rt, tokens
}

// On the small model one head of twelve looks things up far back: it is found, what is found is closer to the full cache than equal
// budgets, and a second run measures nothing anew.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute")
	}
	ctx := t.Context()
	model, path, rt, tokens := gopher(t, 200_000)
	w, err := train.Cut(tokens, 512, 2*512, rt.Start())
	require.NoError(t, err)

	measured := 0
	o := Options{Model: model, Worker: path, Windows: w.Train, Valid: w.Valid, Budget: worker.Budget{Tokens: 32}, Rounds: 1, Work: t.TempDir()}
	o.Progress = func(e Event) { measured++ }
	r, err := Run(ctx, o)
	require.NoError(t, err)
	require.Len(t, r.Heads, 12)
	assert.False(t, r.Replayed, "a model this small is measured")
	total, most := 0, 0
	for i, h := range r.Heads {
		total += h.Slots
		if h.Slots > r.Heads[most].Slots {
			most = i
		}
	}
	assert.Equal(t, 12*32, total)
	assert.Equal(t, [2]int{5, 0}, [2]int{r.Heads[most].Layer, r.Heads[most].Head})
	assert.True(t, r.Heads[most].Measured)
	t.Logf("KL %.4f, with equal budgets %.4f; of other text %.4f and %.4f", r.Tuned, r.Equal, r.TunedValid, r.EqualValid)
	assert.Less(t, r.Tuned, .75*r.Equal)
	assert.Less(t, r.TunedValid, r.EqualValid)
	assert.NotContains(t, slices.Collect(func(yield func(float64) bool) {
		for _, d := range r.Layers {
			yield(d[0])
		}
	}), 0., "every layer costs something")

	first := measured
	measured = 0
	again, err := Run(ctx, o)
	require.NoError(t, err)
	assert.Equal(t, r, again)
	assert.Less(t, measured, first, "what was measured is kept")

	for _, name := range []string{"a.png", "a.svg"} {
		assert.NoError(t, Plot(r, filepath.Join(t.TempDir(), name)))
	}
}

// Where slots differ in size, what a budget in bytes buys is as many as fit, the more the more of them are small.
func TestBytesByHead(t *testing.T) {
	m := &meter{context: 1000, budget: 100, slot: []float64{80, 144, 144}}
	taken := func(slots []int) (sum float64) {
		for j, n := range slots {
			sum += float64(n) * m.slot[j]
		}
		return sum
	}
	room := 100. * (80 + 144 + 144)
	for _, slots := range [][]int{{100, 100, 100}, {300, 20, 20}, {8, 8, 500}} {
		w, exact, err := m.allocation(slots)
		require.NoError(t, err)
		assert.LessOrEqual(t, taken(exact), room)
		sum := exact[0] + exact[1] + exact[2]
		more, err := kernels.Allocate(w, sum/3+1, least(100), 1000)
		require.NoError(t, err)
		assert.Greater(t, taken(more), room, "one more slot a head does not fit")
	}
	assert.Equal(t, 130, (&Result{Budget: 100, Heads: []Head{{Slots: 300}, {Slots: 45}, {Slots: 45}}}).Slots())

	// of heads that cost the same, that with small slots gets more
	r := &Result{Budget: 100, Levels: []int{33, 100, 400}}
	for range 3 {
		r.Heads = append(r.Heads, Head{Distance: []float64{.3, .1, .02}})
	}
	slots, err := m.greedy(t.Context(), r)
	require.NoError(t, err)
	assert.LessOrEqual(t, taken(slots), room)
	assert.Greater(t, taken(slots), room-144)
	assert.Greater(t, slots[0], slots[1])
	m.slot = nil
	slots, err = m.greedy(t.Context(), r)
	require.NoError(t, err)
	assert.InDelta(t, slots[0], slots[1], 10)
	assert.Equal(t, 300, slots[0]+slots[1]+slots[2])
}

// Types are toggled where their cost is less than what the slots that they buy gain, and not where it is more.
func TestPredictTypes(t *testing.T) {
	m := &weights.Model{Geometry: weights.Geometry{Layers: 2, Heads: 1, HeadsKV: 1, KeyLength: 64, ValueLength: 64}}
	r := &Result{Budget: 100, Levels: []int{33, 100, 400}}
	for i := range 2 {
		r.Heads = append(r.Heads, Head{Layer: i, Distance: []float64{.3, .1, .02}})
	}
	key := func(t *weights.SlotTypes) *gguf.Type { return &t.Key }
	value := func(t *weights.SlotTypes) *gguf.Type { return &t.Value }
	given := weights.SameSlotTypes(weights.SlotTypes{Key: gguf.Q8_0, Value: gguf.Q8_0}, 2)
	for _, c := range []struct {
		costs [4]float64 // keys and values of layer 0, then of layer 1
		want  string
	}{
		{[4]float64{1, 1, 1, 1}, ""},
		{[4]float64{0, 1, 1, 1}, "q8_0,0.k=q4_0"},
		{[4]float64{0, 1, 1, 0}, "q8_0,0.k=q4_0,1.v=q4_0"},
		{[4]float64{0, 0, 0, 0}, "q4_0"},
	} {
		s := &typeSearch{meter: &meter{context: 1000, budget: 100}, model: m, r: r}
		for i, cost := range c.costs {
			s.part = append(s.part, typePart{[]func(*weights.SlotTypes) *gguf.Type{key, value}[i%2], i / 2, cost})
		}
		types, begin, err := s.search(t.Context(), given)
		require.NoError(t, err)
		if c.want == "" {
			assert.Nil(t, types)
			continue
		}
		k, v, err := worker.SlotTypes(c.want)
		require.NoError(t, err)
		all, err := worker.LayerTypes(k, v, 2)
		require.NoError(t, err)
		assert.Equal(t, all, types)
		assert.Greater(t, begin.Heads[0].Slots+begin.Heads[1].Slots, 200)
	}
}

// What a slot takes, and the budget that is spread, does not depend on how an adapter spreads it already.
func TestCountUnderAnAllocation(t *testing.T) {
	o := tiny(t, "llama")
	model, err := weights.ReadModel(o.Model)
	require.NoError(t, err)
	a := weights.New(model, weights.Trained{Policy: "peak", Ubatch: o.Ubatch, Context: len(o.Windows[0])})
	for layer := range model.Layers {
		for range model.Layer(layer).HeadsKV {
			a.Budget = append(a.Budget, float32(1+30*(layer/(model.Layers-1)))) // nearly all to the last
		}
	}
	path := filepath.Join(t.TempDir(), "spread.gguf")
	require.NoError(t, a.Write(path))
	require.NoError(t, o.fill())
	opened := func(budget worker.Budget, typeK, adapter string) *meter {
		o := o
		o.Budget, o.TypeK, o.Adapter = budget, typeK, adapter
		m, err := open(t.Context(), &o)
		require.NoError(t, err)
		m.close()
		return m
	}
	bytes := worker.Budget{Bytes: opened(o.Budget, "", "").taken}
	for _, types := range []string{"f16", fmt.Sprintf("f32,%d=f16", model.Layers-1)} {
		equal, spread := opened(bytes, types, ""), opened(bytes, types, path)
		require.NotEqual(t, spread.heads[0].Budget, spread.heads[len(spread.heads)-1].Budget)
		assert.Equal(t, equal.slot, spread.slot, types)
		assert.Equal(t, types == "f16", spread.slot == nil)
		assert.InDelta(t, equal.budget, spread.budget, 1, types)
	}
}

// held returns what the runtime holds of one sequence with so many slots of each head, in bytes.
func held(t *testing.T, o Options, slots []int) int64 {
	t.Helper()
	w, err := worker.Start(t.Context(), o.Worker)
	require.NoError(t, err)
	defer w.Close()
	l := &worker.LESS{Policy: "peak", TypeK: o.TypeK, TypeV: o.TypeV, Slots: slots, Adapter: o.Adapter}
	_, err = w.Open(worker.Config{Model: o.Model, Context: len(o.Windows[0]), Ubatch: 16, LESS: l})
	require.NoError(t, err)
	_, err = w.Decode(0, 0, o.Windows[0][:1], worker.None)
	require.NoError(t, err)
	info, err := w.LESS()
	require.NoError(t, err)
	return info.CacheBytes()
}

// slotsOf returns the slots of each head of a result.
func slotsOf(r *Result) (slots []int) {
	for _, h := range r.Heads {
		slots = append(slots, h.Slots)
	}
	return slots
}

// The bytes of a result are what the runtime holds with its slots, also where these differ in size, whatever the budget is in.
func TestBytesOfTheAllocation(t *testing.T) {
	o := tiny(t, "llama")
	o.TypeK, o.TypeV, o.Rounds = "f16,0=f32", "f16,0=f32", -1
	equal := int64(0)
	for _, inBytes := range []bool{false, true} {
		if inBytes {
			o.Budget = worker.Budget{Bytes: equal}
		}
		r, err := Run(t.Context(), o)
		require.NoError(t, err)
		slots := slotsOf(r)
		require.NotEqual(t, slices.Repeat(slots[:1], len(slots)), slots, "equal budgets")
		assert.Equal(t, held(t, o, slots), r.Bytes)
		if equal = held(t, o, slices.Repeat([]int{24}, len(slots))); inBytes {
			assert.LessOrEqual(t, r.Bytes, equal)
		}
	}
}

// What a part costs is the distance of a cache in which it alone is q4_0 and all else q8_0, with nothing evicted, above that of q8_0 alone.
func TestMeasureParts(t *testing.T) {
	o := tiny(t, "gemma2") // whose heads are 32 wide, in layers with a window too
	o.Windows = o.Windows[:1]
	model, err := weights.ReadModel(o.Model)
	require.NoError(t, err)
	require.NoError(t, o.fill())
	m, err := open(t.Context(), &o)
	require.NoError(t, err)
	defer m.close()
	s := &typeSearch{meter: m, model: model}
	require.NoError(t, s.measureParts(t.Context()))
	layers := byLayer(m.heads)
	require.Len(t, s.part, 2*len(layers))

	n := len(o.Windows[0])
	logits := func(l *worker.LESS) []float32 {
		w, err := worker.Start(t.Context(), o.Worker)
		require.NoError(t, err)
		defer w.Close()
		_, err = w.Open(worker.Config{Model: o.Model, Context: n, Batch: m.chunk, Ubatch: o.Ubatch, LESS: l})
		require.NoError(t, err)
		rows, err := w.Decode(0, 0, o.Windows[0], worker.All)
		require.NoError(t, err)
		return rows.Values
	}
	full := logits(nil)
	kl := func(k, v string) float64 {
		p, err := distance.Compare(full, logits(&worker.LESS{Policy: "peak", Budget: n, TypeK: k, TypeV: v}), o.Windows[0])
		require.NoError(t, err)
		require.Empty(t, p.Fault)
		return distance.Mean(m.first(), p).KL
	}
	fine := kl("q8_0", "q8_0")
	for i, p := range s.part {
		types := weights.SameSlotTypes(weights.SlotTypes{Key: gguf.Q8_0, Value: gguf.Q8_0}, model.Layers)
		layer := m.heads[layers[i/2][0]].Layer
		*p.of(&types[layer]) = gguf.Q4_0
		assert.Equal(t, i%2 == 0, types[layer].Key == gguf.Q4_0, "keys, then values")
		assert.Equal(t, layer, p.at)
		k, v, err := worker.SlotTypes(worker.FormatTypes(types))
		require.NoError(t, err)
		want := kl(k, v) - fine
		assert.InDelta(t, max(0, want), p.cost, 1e-3*fine+1e-9, "%s %s", k, v)
		t.Logf("%s %s: %.3g, q8_0 alone %.3g", k, v, want, fine)
	}
	assert.True(t, slices.ContainsFunc(s.part, func(p typePart) bool { return p.cost > fine }), "4 bits cost something")
}

// Where the heads of a layer do not fill the blocks of the types, nothing is measured, and it is said why.
func TestTypesThatDoNotFit(t *testing.T) {
	shape := func(d int) weights.Shape { return weights.Shape{Heads: 1, HeadsKV: 1, KeyLength: d, ValueLength: 64} }
	m := &weights.Model{Geometry: weights.Geometry{Layers: 2, PerLayer: []weights.Shape{shape(64), shape(48)}}}
	window := [][]int32{make([]int32, 64)}
	found, err := FindTypes(t.Context(), Options{Budget: worker.Budget{Tokens: 4}, Windows: window, Valid: window}, m, &Result{Bytes: 1})
	require.NoError(t, err)
	assert.Nil(t, found.Result)
	assert.Equal(t, weights.SameSlotTypes(weights.SlotTypes{Key: gguf.F16, Value: gguf.F16}, 2), found.Types)
	assert.Contains(t, found.Why, "those of layer 1 are 48 and 64")
	assert.Empty(t, unfilled(&weights.Model{Geometry: weights.Geometry{Layers: 1, PerLayer: []weights.Shape{shape(64)}}}))
}
