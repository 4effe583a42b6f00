package tune

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// threeLayers has a diffuse first layer, which costs much at any number of slots, one that needs hardly any, and one that needs many.
func threeLayers(budget worker.Budget) *fitter {
	m := &weights.Model{Architecture: "llama", Geometry: weights.Geometry{Layers: 3, Heads: 2, HeadsKV: 1, KeyLength: 64, ValueLength: 64}}
	r := &Result{Budget: 100, Levels: []int{33, 100, 400}, Heads: []Head{
		{Layer: 0, Measured: true, Distance: []float64{.05, .04, .03}, Slots: 120, Weight: 1.2},
		{Layer: 1, Measured: true, Distance: []float64{.0001, .00001, 0}, Slots: 30, Weight: .2},
		{Layer: 2, Measured: true, Distance: []float64{.2, .05, .01}, Slots: 150, Weight: 1.6},
	}}
	t := Training{Options: train.Options{Model: m, Rank: 4, Hidden: 4, Policy: "peak", Ubatch: 32}}
	return &fitter{o: &Options{Budget: budget, Policy: "peak", Ubatch: 32}, t: t, plain: r, context: 1024}
}

// Phi and psi go where they lower the distance by more than their bytes as slots would, and the slots that they save go elsewhere.
func TestChoose(t *testing.T) {
	ctx := t.Context()
	const slot = 2*64 + 2*64 + 8
	f := threeLayers(worker.Budget{Bytes: 300 * slot})
	n, err := f.budget(nil)
	require.NoError(t, err)
	assert.Equal(t, 100, n)
	c, err := f.cache([]int{0})
	require.NoError(t, err)
	bytes, err := memory.Less(f.t.Model, memory.Cache{Context: f.context, Budget: memory.Budget{Tokens: 100}, Policy: "peak", Pinned: 1, Types: c.Types, Adapter: c.Adapter})
	require.NoError(t, err)
	n, err = f.budget([]int{0})
	require.NoError(t, err)
	assert.Equal(t, (300*slot-int(bytes.State+bytes.Kernels))/slot/3, n, "what they take is no slots")

	layers, err := f.candidates(ctx)
	require.NoError(t, err)
	assert.Equal(t, []int{0, 2}, layers, "in layer 1 phi and psi would not pay for their bytes")

	p, err := f.choose(ctx, []Fitted{{Layer: 0, Error: .2}, {Layer: 2, Error: .98}})
	require.NoError(t, err)
	require.NotNil(t, p)
	assert.Equal(t, []int{0}, p.layers)
	assert.Less(t, p.Budget, 100)
	sum := 0
	for _, h := range p.Heads {
		sum += h.Slots
	}
	assert.Equal(t, 3*p.Budget, sum)
	assert.Less(t, p.Heads[0].Slots, 120)
	assert.Greater(t, p.Heads[2].Slots, 150)
	assert.InDelta(t, .2*.04, p.Heads[0].Distance[1], 1e-12)
	assert.Equal(t, .04, f.plain.Heads[0].Distance[1], "what was measured stays")

	for name, l := range map[string][]Fitted{"none": nil, "none better": {{Layer: 0, Error: 1}}, "hardly better": {{Layer: 0, Error: .999}}} {
		p, err := f.choose(ctx, l)
		require.NoError(t, err)
		assert.Nil(t, p, name)
	}

	f = threeLayers(worker.Budget{Bytes: 8 * slot}) // phi and psi alone take more
	p, err = f.choose(ctx, []Fitted{{Layer: 0, Error: .2}})
	require.NoError(t, err)
	assert.Nil(t, p)

	f = threeLayers(worker.Budget{Bytes: 300 * slot})
	p, err = f.choose(ctx, []Fitted{{Layer: 0, Error: .2}, {Layer: 2, Error: .5}})
	require.NoError(t, err)
	require.NotNil(t, p)
	assert.Equal(t, []int{0, 2}, p.layers)

	// Of two layers that are as good and cannot both pay, it is always the first.
	f = threeLayers(worker.Budget{Bytes: 40 * slot})
	f.plain.Budget = 13
	f.plain.Heads[1].Distance = []float64{0, 0, 0}
	f.plain.Heads[2].Distance = f.plain.Heads[0].Distance
	for range 20 {
		p, err = f.choose(ctx, []Fitted{{Layer: 0, Error: .2}, {Layer: 2, Error: .2}})
		require.NoError(t, err)
		require.NotNil(t, p)
		assert.Equal(t, []int{0}, p.layers)
	}
}

// A layer's size costs slots of all, spread as before; those are doubled first whose phi and psi gain most.
func TestSizes(t *testing.T) {
	ctx := t.Context()
	const slot = 2*64 + 2*64 + 8
	f := threeLayers(worker.Budget{Bytes: 300 * slot})
	fitted := []Fitted{{Layer: 0, Error: .2}, {Layer: 2, Error: .5}}
	from, err := f.choose(ctx, fitted)
	require.NoError(t, err)
	require.Equal(t, []int{0, 2}, from.layers)
	assert.Equal(t, []int{0, 2}, f.byGain(fitted, from), "layer 0 would cost .03 and more")
	assert.Equal(t, []int{2, 0}, f.byGain([]Fitted{{Layer: 0, Error: .999}, {Layer: 2, Error: .5}}, from))

	c, err := f.cache(from.layers)
	require.NoError(t, err)
	same, err := f.beside(c.Adapter, from)
	require.NoError(t, err)
	assert.Equal(t, from.Budget, same.Budget)
	for j, h := range same.Heads {
		assert.Equal(t, from.Heads[j].Slots, h.Slots)
	}
	f.t.Ranks, f.t.Hiddens = with(nil, 0, 8), with(map[int]int{0: 4, 2: 4}, 0, 8)
	assert.Equal(t, map[int]int{0: 8, 2: 4}, f.t.Hiddens)
	larger, err := f.cache([]int{0})
	require.NoError(t, err)
	a := f.replaced(c.Adapter, larger.Adapter, 0)
	assert.Equal(t, []int{8, 4}, []int{a.Kernels[0].Rank, a.Kernels[2].Rank})
	assert.Equal(t, 4, c.Adapter.Kernels[0].Rank, "what was there stays")
	less, err := f.beside(a, from)
	require.NoError(t, err)
	assert.Equal(t, (300*slot-4*65*(8+4)-int(a.Bytes()))/slot/3, less.Budget)
	sum := 0
	for j, h := range less.Heads {
		assert.LessOrEqual(t, h.Slots, from.Heads[j].Slots)
		sum += h.Slots
	}
	assert.Equal(t, 3*less.Budget, sum)
	f.o.Budget = worker.Budget{Bytes: int64(a.Bytes())}
	_, err = f.beside(a, from)
	assert.ErrorIs(t, err, memory.ErrBudget)

	f = threeLayers(worker.Budget{Bytes: 300 * slot}) // the layer that has the most slots has the largest
	f.o.TypeK = "q4_0,2=f32"
	c, err = f.cache([]int{0, 2})
	require.NoError(t, err)
	p, err := f.beside(c.Adapter, &prediction{Result: f.plain, layers: []int{0, 2}})
	require.NoError(t, err)
	taken := 4*65*(4+4) + int(c.Adapter.Bytes())
	for _, h := range p.Heads {
		bytes, err := memory.SlotBytes(f.t.Model.Layer(h.Layer), c.Types[h.Layer])
		require.NoError(t, err)
		taken += h.Slots * int(bytes)
	}
	assert.LessOrEqual(t, taken, 300*slot)
}

// A layer that shares another's cache may be given the size that this one has, by name or as all others.
func TestSizesOfSharers(t *testing.T) {
	m, err := weights.ReadModel(tiny(t, "gemma3n").Model)
	require.NoError(t, err)
	window := [][]int32{make([]int32, 64)}
	windows, sharer := train.Windows{Train: window, Valid: window}, m.Layers-1
	require.True(t, m.Shares(sharer))
	for _, c := range []struct {
		ranks   map[int]int
		refused bool
	}{{map[int]int{sharer: 7}, true}, {map[int]int{sharer: 4}, false}, {map[int]int{sharer: 7, m.Owner(sharer): 7}, false}, {map[int]int{m.Owner(sharer): 7}, false}} {
		_, err := train.Run(t.Context(), train.Options{Model: m, Rank: 4, Ranks: c.ranks}, nil, windows)
		require.ErrorIs(t, err, train.ErrOption, "at the latest of the budgets, of which there are none")
		assert.Equal(t, c.refused, strings.Contains(err.Error(), "want the same of that one"), "%v: %v", c.ranks, err)
	}
}

func TestWithLine(t *testing.T) {
	text := withLine("made\nlayer 1: rank 4\nlayer 10: rank 4", "layer 1: rank ", "8")
	assert.Equal(t, "made\nlayer 1: rank 8\nlayer 10: rank 4", text)
	assert.Equal(t, text+"\nlayer 0: rank 2", withLine(text, "layer 0: rank ", "2"))
}

// What runs leave is removed, fits that were not finished too; what is somebody's stays.
func TestRemove(t *testing.T) {
	work := filepath.Join(t.TempDir(), "out.gguf.work")
	fit := filepath.Join(TrainFolder(work), "fit-0123456789abcdef0123456789abcdef.gguf")
	for _, path := range []string{
		filepath.Join(work, "lock"), fit, filepath.Join(fit+".work", "plan.json"), filepath.Join(fit+".work", "layer-000.replay-12"),
		filepath.Join(TrainFolder(work), "recordings", "0123456789abcdef", "layer-000.recording"),
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("x"), 0o644))
	}
	mine := filepath.Join(TrainFolder(work), "notes.txt")
	require.NoError(t, os.WriteFile(mine, []byte("x"), 0o644))
	require.NoError(t, Remove(work))
	left, err := filepath.Glob(TrainFolder(work) + "/*")
	require.NoError(t, err)
	assert.Equal(t, []string{mine}, left)
	assert.NoDirExists(t, work)
	require.NoError(t, os.Remove(mine))
	require.NoError(t, Remove(work))
	assert.NoDirExists(t, TrainFolder(work))
	require.NoError(t, Remove(work), "nothing there")
}

// On the small model phi and psi are trained, kept if they are better, and a second run measures and trains nothing anew.
func TestTrain(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute")
	}
	ctx := t.Context()
	model, path, rt, tokens := gopher(t, 400_000)
	few, err := train.Cut(tokens, 512, 2*512, rt.Start())
	require.NoError(t, err)
	many, err := train.Cut(tokens, 512, 40*512, rt.Start())
	require.NoError(t, err)
	m, err := weights.ReadModel(model)
	require.NoError(t, err)

	dir := t.TempDir()
	o := Options{Model: model, Worker: path, Windows: few.Train, Valid: few.Valid, Budget: worker.Budget{Bytes: 120 << 10}, TypeK: "q8_0", TypeV: "q8_0", Rounds: 1, Work: filepath.Join(dir, "work")}
	fits := map[int]int{} // of each layer
	tr := Training{Options: train.Options{Model: m, Steps: 300, Progress: func(e train.Event) {
		if e.Stage == train.Finished {
			fits[e.Layer]++
		}
	}}, Runtime: rt, Windows: many}
	// Where the first fit is finished, but can't be kept with the measurements, as on a full disk, it is left to the next run.
	full, piece := tr, ""
	full.Progress = func(e train.Event) {
		tr.Progress(e)
		if e.Stage == train.Planned {
			works, err := filepath.Glob(filepath.Join(TrainFolder(o.Work), "fit-*.gguf.work"))
			require.NoError(t, err)
			require.Len(t, works, 1)
			piece = filepath.Join(o.Work, strings.TrimSuffix(filepath.Base(works[0]), ".gguf.work"))
			require.NoError(t, os.Mkdir(piece, 0o755)) // a file can't have its name
		}
	}
	_, err = Train(ctx, o, full)
	require.ErrorIs(t, err, syscall.EISDIR)
	require.NoError(t, os.Remove(piece))

	// One that is interrupted in a fit does not stand in the way of another, with other options.
	interrupted, stop := context.WithCancel(ctx)
	other := tr
	other.Steps, other.Progress = 299, func(e train.Event) {
		if e.Stage == train.Fitting {
			stop()
		}
	}
	_, err = Train(interrupted, o, other)
	require.ErrorIs(t, err, context.Canceled)

	r, err := Train(ctx, o, tr)
	require.NoError(t, err)
	require.NotEmpty(t, r.Layers)
	assert.Equal(t, 0, r.Layers[0].Layer)
	assert.Less(t, r.Layers[0].Error, .6, "a diffuse layer")
	require.NotNil(t, r.With)
	t.Logf("KL %.4f without and %.4f with phi and psi, of other text %.4f and %.4f: %+v", r.Without.Tuned, r.With.Tuned, r.Without.TunedValid, r.With.TunedValid, r.Layers)
	assert.Less(t, r.With.Tuned, r.Without.Tuned)
	given := o
	given.Adapter = filepath.Join(dir, "fitted.gguf")
	require.NoError(t, r.Fitted.Write(given.Adapter))
	holds := held(t, given, slotsOf(r.With))
	assert.Equal(t, holds, r.With.Bytes)
	assert.LessOrEqual(t, holds, int64(120<<10))
	assert.Greater(t, holds+int64(len(r.With.Heads))*(2*68+8), int64(120<<10), "one slot more in every head does not fit")
	require.NoError(t, os.Remove(given.Adapter))
	assert.Equal(t, r.Without.First, r.With.First, "compared over the same positions")
	assert.Equal(t, r.Better, r.Adapter.Bytes() > 0)
	assert.Equal(t, r.Result().Weights(m), r.Adapter.Budget)
	assert.Equal(t, r.Result().Budget, r.Adapter.Trained.Heavy+r.Adapter.Trained.Recent)
	require.NotEmpty(t, fits)
	sizes, smaller := map[int]int{}, 0
	for _, d := range r.Sizes {
		sizes[d.Layer]++
		if d.Rank < DefaultRank {
			smaller++
		}
	}
	for layer, n := range fits {
		assert.LessOrEqual(t, n, 2+sizes[layer], "fits of layer %d: one with half the budget, one with the slots that it has, and those of other sizes", layer)
	}
	assert.Positive(t, smaller)
	resized(t, r, m, DefaultRank, DefaultHidden)

	clear(fits)
	again, err := Train(ctx, o, tr)
	require.NoError(t, err)
	assert.Empty(t, fits)
	assert.Equal(t, r, again)

	require.NoError(t, Remove(o.Work))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// resized checks what became of the sizes of layers, which all began with one: layers are doubled until that does not lower the distance, then others
// halved until that raises it, and the adapter has the last sizes that were kept.
func resized(t *testing.T, r *Trained, m *weights.Model, rank, hidden int) {
	t.Helper()
	require.NotEmpty(t, r.Sizes)
	size := map[int][2]int{}
	for _, l := range r.Layers {
		size[l.Layer] = [2]int{rank, hidden}
	}
	before, failed, halves := r.Sizes[0].Before, 0, false
	doubled := map[int]bool{}
	for i, d := range r.Sizes {
		now, next := size[d.Layer], [2]int{d.Rank, d.Hidden}
		if !halves && next[0] < now[0] {
			halves, failed = true, 0
		}
		if halves {
			assert.Equal(t, [2]int{max(1, now[0]/2), max(1, now[1]/2)}, next, "layer %d", d.Layer)
			assert.False(t, doubled[d.Layer], "layer %d", d.Layer)
			assert.Equal(t, d.After <= d.Before, d.Kept)
		} else {
			assert.Equal(t, [2]int{2 * now[0], 2 * now[1]}, next, "layer %d", d.Layer)
			assert.Equal(t, d.After < d.Before, d.Kept)
		}
		assert.Equal(t, before, d.Before)
		if d.Kept {
			before, failed, size[d.Layer], doubled[d.Layer] = d.After, 0, next, !halves
			continue
		}
		assert.Less(t, failed, patience)
		if failed++; i > 0 && r.Sizes[i-1].Kept && r.Sizes[i-1].Layer == d.Layer {
			failed = 0 // the layer has another size than before
		}
	}
	for i := range r.Fitted.Kernels {
		if k := &r.Fitted.Kernels[i]; !k.Empty() {
			assert.Equal(t, size[m.Owner(i)], [2]int{k.Rank, k.Hidden}, "layer %d", i)
			said := fmt.Sprintf("\nlayer %d: rank %d, hidden size %d, as lesskv tune found them", i, k.Rank, k.Hidden)
			assert.Equal(t, k.Rank != rank || k.Hidden != hidden, strings.Contains(r.Fitted.Description, said), "layer %d", i)
		}
	}
}

// tinyTraining returns options for a tiny model, and those of a training of a few steps.
func tinyTraining(t *testing.T, name string) (Options, Training) {
	o := tiny(t, name)
	rt, err := activations.Open(t.Context(), o.Worker, o.Model, 192, 1)
	require.NoError(t, err)
	t.Cleanup(func() { rt.Close() })
	m, err := weights.ReadModel(o.Model)
	require.NoError(t, err)
	return o, Training{Options: train.Options{Model: m, Rank: 2, Hidden: 2, Steps: 50, Type: gguf.F16}, Runtime: rt, Windows: train.Windows{Train: o.Windows, Valid: o.Valid}}
}

// Of models whose layers are not alike only those get phi and psi that attend to all tokens, and psi only those with a cache of their
// own. What the runtime takes with the adapter is no more than the allocation alone would take.
func TestTrainKinds(t *testing.T) {
	for _, name := range []string{"gemma2", "qwen35", "gemma4"} {
		t.Run(name, func(t *testing.T) {
			o, tr := tinyTraining(t, name)
			r, err := Train(t.Context(), o, tr)
			require.NoError(t, err)
			require.NotEmpty(t, r.Layers)
			require.NotNil(t, r.With, "phi and psi, whether they are kept or not")
			t.Logf("KL of other text %.4f without and %.4f with phi and psi: %+v", r.Without.TunedValid, r.With.TunedValid, r.Layers)
			resized(t, r, tr.Model, tr.Rank, tr.Hidden)
			_, err = weights.Check(r.Fitted, tr.Model)
			require.NoError(t, err)
			assert.Positive(t, r.Fitted.Bytes())
			for layer := range tr.Model.Layers {
				k := &r.Fitted.Kernels[layer]
				if !tr.Model.Attends(layer) || tr.Model.Window(layer) > 0 {
					assert.True(t, k.Empty(), "layer %d", layer)
				}
				if tr.Model.Shares(layer) {
					assert.False(t, k.HasPsi(), "layer %d", layer)
				}
			}

			path := filepath.Join(t.TempDir(), "fitted.gguf")
			require.NoError(t, r.Fitted.Write(path))
			w, err := worker.Start(t.Context(), o.Worker)
			require.NoError(t, err)
			defer w.Close()
			_, err = w.Open(worker.Config{Model: o.Model, Context: 192, Ubatch: o.Ubatch, LESS: &worker.LESS{TypeK: "f16", TypeV: "f16", Adapter: path}}) // its budget too
			require.NoError(t, err)
			out, err := w.Decode(0, 0, o.Valid[0], worker.All)
			require.NoError(t, err)
			for _, x := range out.Values {
				require.False(t, math.IsNaN(float64(x)) || math.IsInf(float64(x), 0))
			}
			info, err := w.LESS()
			require.NoError(t, err)
			assert.Equal(t, r.With.Budget, info.Budget)
			assert.Equal(t, r.With.Bytes, info.CacheBytes())
			assert.LessOrEqual(t, info.CacheBytes(), r.Without.Bytes)
			more := info.CacheBytes()
			for _, h := range r.With.Heads { // one slot more in each
				bytes, err := memory.SlotBytes(tr.Model.Layer(h.Layer), weights.SlotTypes{Key: gguf.F16, Value: gguf.F16})
				require.NoError(t, err)
				more += int64(bytes)
			}
			assert.Greater(t, more, r.Without.Bytes, "there is no room for it")
		})
	}
}

// Interrupted at every stage, in both fits and between them, a run comes to what one comes to that never was.
func TestTrainInterrupted(t *testing.T) {
	o, tr := tinyTraining(t, "llama")
	want, err := Train(t.Context(), o, tr)
	require.NoError(t, err)
	require.NotNil(t, want.With, "two fits")

	o.Work = filepath.Join(t.TempDir(), "work")
	seen := map[string]bool{}
	var stop context.CancelFunc
	at := func(stage any) {
		fits, err := filepath.Glob(filepath.Join(o.Work, "fit-*"))
		require.NoError(t, err)
		if now := fmt.Sprintf("%v, fits %d", stage, len(fits)); !seen[now] {
			seen[now] = true
			stop()
		}
	}
	o.Progress = func(e Event) { at(e.Stage) }
	tr.Progress = func(e train.Event) { at(e.Stage) }
	var got *Trained
	for got == nil {
		require.Less(t, len(seen), 100)
		var ctx context.Context
		ctx, stop = context.WithCancel(t.Context())
		got, err = Train(ctx, o, tr)
		if err != nil {
			require.Error(t, ctx.Err(), "%v", err)
			got = nil
		}
		stop()
	}
	for _, stage := range []any{Replays, Layers, Allocations, Validation, train.Recording, train.Replaying, train.Fitting, train.Finished} {
		assert.True(t, seen[fmt.Sprintf("%v, fits 0", stage)], "%v before the first fit is done", stage)
	}
	for _, stage := range []any{train.Replaying, train.Fitting, train.Finished} {
		assert.True(t, seen[fmt.Sprintf("%v, fits 1", stage)], "%v in the second fit", stage)
	}
	require.NotEmpty(t, want.Sizes)
	assert.True(t, seen["sizes, fits 2"], "before a fit of another size")
	assert.True(t, seen["sizes, fits 3"], "behind it")
	for _, stage := range []any{Allocations, Validation} {
		assert.True(t, seen[fmt.Sprintf("%v, fits %d", stage, 2+len(want.Sizes))], "%v behind all", stage)
	}
	assert.Equal(t, want, got)
}

// Heads whose keys have a large constant, as in Qwen 2, have logits beyond e^88, where single precision ends. Phi and psi are trained
// with scales as large, and serve: in the runtime, fast and by its reference, and closer to the full cache than slots alone.
func TestTrainLargeLogits(t *testing.T) {
	ctx := t.Context()
	o := tiny(t, "qwen2vl")
	model, err := tinymodels.Find("qwen2vl")
	require.NoError(t, err)
	const layers, heads, headsKV, embd, dim = 4, 4, 2, 64, 16
	random := rand.New(rand.NewPCG(5, 6))
	// Element 7 of a head turns least with the position. There each is the constant alone.
	project := func(heads int, constants ...float32) (matrix, bias []float32) {
		for h := range heads {
			for i := range dim * embd {
				matrix = append(matrix, float32(.2*random.NormFloat64()))
				if i/embd == 7 {
					matrix[len(matrix)-1] = 0
				}
			}
			bias = append(bias, make([]float32, dim)...)
			bias[h*dim+7] = constants[h%len(constants)]
		}
		return matrix, bias
	}
	changed := map[string][]float32{}
	for layer := range layers {
		name := fmt.Sprintf("blk.%d.attn_", layer)
		changed[name+"q.weight"], changed[name+"q.bias"] = project(heads, 24, -24)
		changed[name+"k.weight"], changed[name+"k.bias"] = project(headsKV, 25)
	}
	require.NoError(t, model.WriteChanged(o.Model, gguf.F32, 1, changed))
	m, err := weights.ReadModel(o.Model)
	require.NoError(t, err)
	rt, err := activations.Open(ctx, o.Worker, o.Model, 192, 1)
	require.NoError(t, err)
	defer rt.Close()
	require.NoError(t, rt.Record(o.Valid[0], []int{0, 1, 2, 3}, func(a train.Attention) error {
		for h := range heads { // of the last token and the first
			logit := 0.
			for i := range dim {
				logit += float64(a.Q[((a.Tokens-1)*heads+h)*dim+i]) * float64(a.K[h/2*dim+i]) / 4
			}
			require.Greater(t, logit*[]float64{1, -1}[h%2], 100., "layer %d, head %d", a.Layer, h)
		}
		return nil
	}))

	out := filepath.Join(t.TempDir(), "large.gguf")
	report, err := train.Run(ctx, train.Options{Model: m, Output: out, Budgets: []int{24}, Ubatch: o.Ubatch, Steps: 200}, rt, train.Windows{Train: o.Windows, Valid: o.Valid})
	require.NoError(t, err)
	kept := 0
	for _, l := range report.Layers {
		k := report.Adapter.Kernels[l.Layer]
		t.Logf("layer %d: error %.3f of sparse only's, scales %.1f", l.Layer, l.Valid, k.Scale.Values)
		if assert.Equal(t, l.Sparse == "", !k.Empty()); k.Empty() {
			continue
		}
		kept++
		assert.Less(t, l.Valid, 1.)
		assert.Greater(t, slices.Max(k.Scale.Values), float32(88))
		assert.Less(t, slices.Min(k.Scale.Values), float32(-100))
	}
	require.Positive(t, kept)

	logits := func(l *worker.LESS) []float32 {
		w, err := worker.Start(ctx, o.Worker)
		require.NoError(t, err)
		defer w.Close()
		_, err = w.Open(worker.Config{Model: o.Model, Context: 192, Ubatch: o.Ubatch, LESS: l})
		require.NoError(t, err)
		rows, err := w.Decode(0, 0, o.Valid[0], worker.All)
		require.NoError(t, err)
		return rows.Values
	}
	full := logits(nil)
	off := func(l worker.LESS) float64 {
		l.Budget, l.TypeK, l.TypeV = 24, "f16", "f16"
		p, err := distance.Compare(full, logits(&l), o.Valid[0])
		require.NoError(t, err)
		require.Empty(t, p.Fault)
		return distance.Mean(24+o.Ubatch, p).KL
	}
	slots, fast, reference := off(worker.LESS{}), off(worker.LESS{Adapter: out}), off(worker.LESS{Adapter: out, Reference: true})
	t.Logf("KL %.4f of slots alone, %.4f with phi and psi, %.4f by the reference", slots, fast, reference)
	assert.Less(t, fast, slots)
	assert.InEpsilon(t, reference, fast, 1e-3)
}

func TestTrainRefused(t *testing.T) {
	_, err := Train(t.Context(), Options{Adapter: "trained.gguf"}, Training{})
	assert.ErrorIs(t, err, ErrOption)

	o, tr := tinyTraining(t, "llama")
	o.Progress = func(e Event) { assert.Fail(t, "measured", "%+v", e) }
	tr.Rank, tr.Hidden, tr.Memory = weights.MaxSize, weights.MaxSize, 1<<30
	_, err = Train(t.Context(), o, tr)
	assert.ErrorIs(t, err, train.ErrMemory)
}

// A fit that was kept is that of its sizes, those of single layers too.
func TestFitOfSizes(t *testing.T) {
	o, tr := tinyTraining(t, "llama")
	o.Work = t.TempDir()
	f := &fitter{o: &o, t: tr, context: len(o.Windows[0])}
	f.t.Steps = 2
	paths := map[string]bool{}
	for _, sizes := range [][2]map[int]int{{}, {{0: 3}, nil}, {nil, {0: 3}}} {
		f.t.Ranks, f.t.Hiddens = sizes[0], sizes[1]
		x, err := f.fit(t.Context(), []int{0}, &Result{}, 16)
		require.NoError(t, err)
		paths[x.path] = true
	}
	assert.Len(t, paths, 3)
}
