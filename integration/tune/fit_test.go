package tune

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
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
	bytes, err := memory.Less(f.t.Model, memory.Cache{Context: f.context, Budget: memory.Budget{Tokens: 100}, Policy: "peak", Pinned: 1, Key: c.Key, Value: c.Value, Adapter: c.Adapter})
	require.NoError(t, err)
	n, err = f.budget([]int{0})
	require.NoError(t, err)
	assert.Equal(t, (300*slot-int(bytes.State+bytes.Kernels))/slot/3, n, "what they take is no slots")

	layers, err := f.candidates(ctx)
	require.NoError(t, err)
	assert.Equal(t, []int{0, 2}, layers, "what layer 1 costs is not worth the bytes")

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
	t.Logf("KL %.4f without and %.4f with phi and psi, of other text %.4f and %.4f: %+v", r.Plain.Tuned, r.With.Tuned, r.Plain.TunedValid, r.With.TunedValid, r.Layers)
	assert.Less(t, r.With.Tuned, r.Plain.Tuned)
	assert.LessOrEqual(t, r.With.Bytes, int64(120<<10))
	assert.Equal(t, r.Plain.First, r.With.First, "compared over the same positions")
	assert.Equal(t, r.Better, r.Adapter.Bytes() > 0)
	assert.Equal(t, r.Result().Weights(m), r.Adapter.Budget)
	assert.Equal(t, r.Result().Budget, r.Adapter.Trained.Heavy+r.Adapter.Trained.Recent)
	require.NotEmpty(t, fits)
	for layer, n := range fits {
		assert.LessOrEqual(t, n, 2, "fits of layer %d: one with half the budget, one with the slots that it has", layer)
	}

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

func TestTrainRefused(t *testing.T) {
	_, err := Train(t.Context(), Options{Adapter: "trained.gguf"}, Training{})
	assert.ErrorIs(t, err, ErrOption)
}
