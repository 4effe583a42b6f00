package train

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

const (
	heads, headsKV, size = 2, 1, 8
	window               = 96
)

func model() *weights.Model {
	return &weights.Model{
		Name: "fake", Architecture: "llama", Geometry: weights.Geometry{Layers: 3, Heads: heads, HeadsKV: headsKV, KeyLength: size, ValueLength: size},
		Vocab: 16, Context: window, Fingerprint: strings.Repeat("0b", 32),
	}
}

// fake is a model whose q, k and v are fixed vectors of each token, and whose attention is exact.
type fake struct {
	recorded int   // windows
	stop     int   // fail after that many, unless 0
	failure  error // with this

	constant float32 // added to one element of layer 2's keys; its queries have a constant 1 there
	turning  bool    // -1 every other query
	dead     bool    // layer 2's second query head has queries of 0
	faint    bool    // of tokens from 16 on, layer 2's keys hardly count beside those of others
}

func rounded(x []float32) []float32 { return kernels.F16.ToF32(kernels.F16.FromF32(x), len(x)) }

func vectors(layer, kind, token, n int, scale float64) []float32 {
	r := rand.New(rand.NewPCG(uint64(layer*10+kind), uint64(token)))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(scale * r.NormFloat64())
	}
	return x
}

func (f *fake) Layers() ([]Layer, error) {
	s := float32(1 / math.Sqrt(size))
	return []Layer{{Index: 0, Scale: s}, {Index: 1, Window: true, Scale: s}, {Index: 2, Scale: s}}, nil
}

func (f *fake) Record(tokens []int32, layers []int, each func(Attention) error) error {
	if f.stop > 0 && f.recorded == f.stop {
		return f.failure
	}
	f.recorded++
	for _, l := range layers {
		a := Attention{Layer: l, Tokens: len(tokens)}
		for _, t := range tokens {
			a.Q = append(a.Q, vectors(l, 0, int(t), heads*size, 1)...)
			a.K = append(a.K, rounded(vectors(l, 1, int(t), size, 1))...)
			a.V = append(a.V, rounded(vectors(l, 2, int(t), size, 1))...)
		}
		for i := 0; l == 2 && f.constant != 0 && i < len(tokens); i++ {
			a.K[i*size] = rounded([]float32{a.K[i*size] + f.constant})[0]
			one := float32(1)
			if f.turning && i%2 == 1 {
				one = -1
			}
			a.Q[i*heads*size], a.Q[(i*heads+1)*size] = one, one
		}
		for i := 0; l == 2 && f.faint && i < len(tokens); i++ {
			if tokens[i] >= 16 {
				a.K[i*size], a.Q[i*heads*size], a.Q[(i*heads+1)*size] = -30, 1, 1
			}
		}
		for i := 0; l == 2 && f.dead && i < len(tokens); i++ {
			clear(a.Q[(i*heads+1)*size:][:size])
		}
		cache, err := kernels.NewCache(kernels.Layer{
			Heads: heads, HeadsKV: headsKV, KeySize: size, ValueSize: size, KeyType: kernels.F16, ValueType: kernels.F16, Policy: "lambda", Budget: len(tokens), Heavy: 4,
		})
		if err != nil {
			return err
		}
		defer cache.Close()
		a.Out = make([]float32, len(tokens)*heads*size)
		if err := cache.Attend(&kernels.Ubatch{
			Tokens: len(tokens), Q: a.Q, K: kernels.F16.FromF32(a.K), V: kernels.F16.FromF32(a.V), Scale: float32(1 / math.Sqrt(size)), Out: a.Out,
		}, 1); err != nil {
			return err
		}
		if err := each(a); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Tensor(name string) ([]float32, []uint64, error) {
	if !strings.HasSuffix(name, "attn_output.weight") {
		return nil, nil, nil
	}
	return vectors(0, 3, 0, heads*size*12, .3), []uint64{heads * size, 12}, nil
}

func text(n int) []int32 {
	r := rand.New(rand.NewPCG(7, 7))
	t := make([]int32, n)
	for i := range t {
		t[i] = int32(r.IntN(16))
	}
	return t
}

func options(t testing.TB, name string) Options {
	return Options{
		Model: model(), Output: filepath.Join(t.TempDir(), name), Policy: "peak", Budgets: []int{16, 24}, Ubatch: 4, Rank: 4, Hidden: 6, Steps: 120, Seed: 3, Type: gguf.F16,
	}
}

func windows(t testing.TB) Windows {
	w, err := Cut(text(20*window), window, 10*window, []int32{1})
	require.NoError(t, err)
	return w
}

func TestCut(t *testing.T) {
	all := make([]int32, 1000)
	for i := range all {
		all[i] = int32(i)
	}
	w, err := Cut(all, 50, 0, nil)
	require.NoError(t, err)
	assert.Len(t, w.Train, 18)
	assert.Len(t, w.Valid, 2)
	for _, v := range w.Train {
		assert.Less(t, slices.Max(v), slices.Min(w.Valid[0]), "what is validated is not trained on")
		assert.Len(t, v, 50)
	}
	w, err = Cut(all, 50, 250, []int32{-1, -2})
	require.NoError(t, err)
	assert.Len(t, w.Train, 4)
	assert.Equal(t, []int32{-1, -2, 0, 1}, w.Train[0][:4])
	assert.Greater(t, w.Train[3][2], int32(600), "windows are spread over the text")
	w, err = CutInto(all, 10, 19, 1, nil)
	require.NoError(t, err)
	assert.Len(t, w.Train, 19)
	assert.Len(t, w.Valid, 1)
	w, err = CutInto(all, 100, 19, 3, nil)
	require.NoError(t, err)
	assert.Len(t, w.Train, 9, "as many as there are")
	assert.Len(t, w.Valid, 1)
	_, err = Cut(all[:60], 50, 0, nil)
	assert.ErrorIs(t, err, ErrText)
}

func TestRun(t *testing.T) {
	o := options(t, "a.gguf")
	var stages []Stage
	o.Progress = func(e Event) { stages = append(stages, e.Stage) }
	var told *Report
	o.Trained = func(r *Report) {
		told = r
		assert.NoFileExists(t, o.Output)
	}
	report, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
	assert.Same(t, report, told)
	assert.Equal(t, []int{1}, report.Exact)
	require.Len(t, report.Layers, 2)
	for _, l := range report.Layers {
		assert.Less(t, l.Valid, .8, "layer %d", l.Layer)
		assert.Less(t, l.Valid, l.Plus, "layer %d", l.Layer)
		assert.Less(t, l.Valid, l.Start, "layer %d", l.Layer)
	}
	assert.Contains(t, stages, Fitting)
	a, err := weights.Read(o.Output)
	require.NoError(t, err)
	warnings, err := weights.Check(a, o.Model)
	assert.NoError(t, err)
	assert.Empty(t, warnings)
	assert.Equal(t, weights.Trained{Policy: "peak", Heavy: 4, Recent: 12, Ubatch: 4, Context: window}, a.Trained)
	assert.True(t, a.Kernels[1].Empty())
	assert.Contains(t, a.Description, `"Policy":"peak","Budgets":[16,24]`)
	assert.NoDirExists(t, o.Output+".work")
}

// Under an allocation heads of a layer have what it gives them: the windowed layer counts for nothing, a layer that keeps all of a
// window gets no kernels, and the adapter carries the weights.
func TestAllocation(t *testing.T) {
	o := options(t, "a.gguf")
	o.Budgets, o.Allocation = []int{56}, []float32{0, 5, 1} // two heads with a budget: 8 + 0, and the rest, capped
	require.NoError(t, o.Check(window))
	var said []string
	o.Progress = func(e Event) {
		if e.Sparse != "" {
			said = append(said, fmt.Sprintf("layer %d: %s", e.Layer, e.Sparse))
		}
	}
	report, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
	require.Len(t, report.Layers, 2)
	assert.Less(t, report.Layers[0].Valid, .9)
	assert.False(t, report.Adapter.Kernels[0].Empty())
	assert.True(t, report.Adapter.Kernels[2].Empty())
	require.Len(t, said, 1)
	assert.Contains(t, said[0], "layer 2: under the allocation nothing is lost")
	a, err := weights.Read(o.Output)
	require.NoError(t, err)
	assert.Equal(t, o.Allocation, a.Budget)
	assert.Contains(t, a.Description, `"Allocation":[0,5,1]`)

	o = options(t, "b.gguf")
	o.Allocation = []float32{1, 2}
	_, err = Run(context.Background(), o, &fake{}, windows(t))
	assert.ErrorIs(t, err, ErrOption)
}

// TestLargeLogits: what a layer's sparse part misses may be more, or less, than single precision holds; scales make up for it. A layer
// of which it spreads over more than that runs sparse only, the others get their kernels, and the run ends well.
func TestLargeLogits(t *testing.T) {
	for name, test := range map[string]struct {
		fake
		says string  // why the layer runs sparse only
		most float64 // else its error on the validation windows
	}{
		"logits of 42":        {fake{constant: 120}, "", .7},
		"too large for f32":   {fake{constant: 600}, "", .7}, // logits of 212
		"too large for f64":   {fake{constant: 6000}, "", .6},
		"too small for f32":   {fake{constant: -600}, "", .75},
		"spread beyond f32":   {fake{constant: 600, turning: true}, "is a spread beyond single precision", 0},
		"not finite in a key": {fake{constant: float32(math.Inf(1))}, "beyond single precision", 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, "a.gguf")
			var said string
			o.Progress = func(e Event) {
				if e.Stage == Finished && e.Layer == 2 {
					said = e.Sparse
				}
			}
			report, err := Run(context.Background(), o, &test.fake, windows(t))
			require.NoError(t, err)
			require.Len(t, report.Layers, 2)
			assert.Empty(t, report.Layers[0].Sparse)
			assert.Less(t, report.Layers[0].Valid, .8)
			l := report.Layers[1]
			assert.Equal(t, l.Sparse, said)
			for _, x := range []float64{l.Start, l.Train, l.Valid, l.Plus} {
				assert.True(t, finite(x), "%+v", l)
			}
			a, err := weights.Read(o.Output)
			require.NoError(t, err)
			assert.False(t, a.Kernels[0].Empty())
			assert.Equal(t, test.says != "", a.Kernels[2].Empty(), "%+v", l)
			assert.Equal(t, test.says != "", l.Sparse != "")
			if test.says != "" {
				assert.Contains(t, l.Sparse, test.says)
				assert.Equal(t, 1., l.Valid)
				return
			}
			t.Logf("%+v, scales %v", l, a.Kernels[2].Scale.Values)
			assert.Less(t, l.Valid, test.most)
			assert.Len(t, a.Kernels[2].Scale.Values, heads)
		})
	}
}

// TestWorseThanSparse: a layer whose kernels are further off on the validation windows than the sparse policy alone gets none, which is said with
// the error that was found. Here all pairs of the training windows count alike, and of those of validation the first alone, which is kept.
func TestWorseThanSparse(t *testing.T) {
	o := options(t, "a.gguf")
	w := windows(t)
	for i, tokens := range w.Valid {
		w.Valid[i] = slices.Clone(tokens)
		for j := 1; j < len(tokens); j++ {
			w.Valid[i][j] += 16
		}
	}
	var said string
	o.Progress = func(e Event) {
		if e.Stage == Finished && e.Layer == 2 {
			said = e.Sparse
		}
	}
	report, err := Run(context.Background(), o, &fake{faint: true}, w)
	require.NoError(t, err)
	require.Len(t, report.Layers, 2)
	l := report.Layers[1]
	assert.Greater(t, l.Valid, 1., "what was found, not a 1 that stands for nothing")
	assert.Equal(t, fmt.Sprintf("with them the error of its output is %.3f of sparse-only's on the validation windows", l.Valid), l.Sparse)
	assert.Equal(t, l.Sparse, said)
	assert.Empty(t, report.Layers[0].Sparse)
	a, err := weights.Read(o.Output)
	require.NoError(t, err)
	assert.False(t, a.Kernels[0].Empty())
	assert.True(t, a.Kernels[2].Empty())
	assert.Contains(t, a.Description, fmt.Sprintf("layer 2: validation error %.3f of sparse only's", l.Valid))
}

// TestDeadHead: a query head whose queries are all 0, as those of pruned or padded heads, does not cost the layer its kernels, and has no
// part in the scales of the others.
func TestDeadHead(t *testing.T) {
	for _, constant := range []float32{0, 20, 600} {
		o := options(t, "a.gguf")
		report, err := Run(context.Background(), o, &fake{constant: constant, dead: true}, windows(t))
		require.NoError(t, err)
		l := report.Layers[1]
		assert.Empty(t, l.Sparse)
		assert.Less(t, l.Valid, .95)
		scale := report.Adapter.Kernels[2].Scale.Values
		assert.Zero(t, scale[1])
		t.Logf("constant %v: %+v, scales %v", constant, l, scale)
	}
}

// TestUnits: weights of a number begin as one over the usual number of its head, and those of a large number smaller, with shorter steps.
func TestUnits(t *testing.T) {
	one, half := unit{1, 1}, unit{.5, 1}
	for name, test := range map[string]struct {
		head []float32 // the other head has 2, 2, 2, 2
		want []unit
	}{
		"ordinary":         {[]float32{1, -1, 1, 1}, []unit{one, one, one, one}},
		"twice the usual":  {[]float32{1, 1, 2, 1}, []unit{one, one, one, one}},
		"a constant":       {[]float32{1, 100, 1, 1}, []unit{one, {.04, .04}, one, one}},
		"half of it 0":     {[]float32{0, 1, 0, 1}, []unit{one, one, one, one}},
		"most of it 0":     {[]float32{0, 1, 0, 0}, []unit{one, one, one, one}},
		"most of it noise": {[]float32{1e-6, 1, 2e-6, 1e-6}, []unit{one, one, one, one}},
		"all of it 0":      {[]float32{0, 0, 0, 0}, []unit{half, half, half, half}},
		"next to nothing":  {[]float32{1e-5, 1e-5, 1e-5, 1e-5}, []unit{{1024, 1}, {1024, 1}, {1024, 1}, {1024, 1}}},
	} {
		vector := kernels.F16.FromF32(append(slices.Clone(test.head), 2, 2, 2, 2))
		var h []uint16
		for range 3 { // tokens
			for i := 0; i < len(vector); i += 2 {
				h = append(h, binary.LittleEndian.Uint16(vector[i:]))
			}
		}
		got := units(h, 2, 4)
		for i, want := range append(test.want, half, half, half, half) {
			assert.InEpsilon(t, want.start, got[i].start, 1e-3, "%s: number %d", name, i)
			assert.InEpsilon(t, want.step, got[i].step, 1e-3, "%s: number %d", name, i)
		}
	}
	assert.Equal(t, []unit{one, one}, units(make([]uint16, 6), 1, 2), "nothing but 0")
}

// TestAdam: a step goes against the gradient, at each weight's pace, and one of a gradient that is not finite goes nowhere.
func TestAdam(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	w, pace := []float32{1, 1, 1}, []float32{1, .5, 0}
	a := newAdam(3)
	a.step(w, pace, []float32{4, -2, 1}, 2, .1)
	want := []float32{.9, 1.05, 1}
	assert.InDeltaSlice(t, want, w, 1e-6)
	for _, grad := range [][]float32{{nan, 0, 0}, {0, 0, inf}, {0, -inf, 0}} {
		a.step(w, pace, grad, 2, .1)
	}
	assert.InDeltaSlice(t, want, w, 1e-6)
	a.step(w, pace, []float32{4, -2, 1}, 2, .1)
	assert.InDeltaSlice(t, []float32{.8, 1.1, 1}, w, 1e-6)
}

// TestGroup: query heads of a KV head begin with a common scale, unless they are far apart or have none.
func TestGroup(t *testing.T) {
	for _, test := range []struct{ from, want []float32 }{
		{[]float32{1, 3, 5}, []float32{3, 3, 3}}, {[]float32{1, 9, 18}, []float32{1, 9, 18}}, {[]float32{0, 2, 4}, []float32{0, 3, 3}},
		{[]float32{0, 0, 0, 110, 0, 112}, []float32{0, 0, 0, 111, 0, 111}},
	} {
		group(test.from, 3)
		assert.Equal(t, test.want, test.from)
	}
}

// TestNoLayerFits: an adapter of layers that all run sparse only is one that the others can be merged with.
func TestNoLayerFits(t *testing.T) {
	o := options(t, "a.gguf")
	o.Layers = []int{2}
	report, err := Run(context.Background(), o, &fake{constant: 600, turning: true}, windows(t))
	require.NoError(t, err)
	require.Len(t, report.Layers, 1)
	assert.NotEmpty(t, report.Layers[0].Sparse)
	a, err := weights.Read(o.Output)
	require.NoError(t, err)
	assert.True(t, a.Kernels[2].Empty())
}

// TestInterrupted: a run that fails again and again, and is asked for layer by layer, ends with the file of one that does not.
func TestInterrupted(t *testing.T) {
	whole := options(t, "whole.gguf")
	_, err := Run(context.Background(), whole, &fake{}, windows(t))
	require.NoError(t, err)
	want, err := os.ReadFile(whole.Output)
	require.NoError(t, err)

	o := options(t, "again.gguf")
	o.Threads = 2
	crash := errors.New("crash")
	f := &fake{stop: 3, failure: crash}
	_, err = Run(context.Background(), o, f, windows(t))
	require.ErrorIs(t, err, crash)
	f.stop = 6
	_, err = Run(context.Background(), o, f, windows(t))
	require.ErrorIs(t, err, crash)
	assert.Equal(t, 6, f.recorded, "windows on the disk are not recorded again")

	// A record that was half written, as kill -9 leaves it.
	s := &store{recordings: o.Output + ".work"}
	file, err := os.OpenFile(s.recording(2), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString("half a window")
	require.NoError(t, err)
	require.NoError(t, file.Close())

	f.stop = 0
	ctx, cancel := context.WithCancel(context.Background())
	o.Threads = 1
	o.Progress = func(e Event) {
		if e.Stage == Finished {
			cancel()
		}
	}
	_, err = Run(ctx, o, f, windows(t))
	require.ErrorIs(t, err, context.Canceled)
	recorded := f.recorded
	o.Progress = nil
	_, err = Run(context.Background(), o, f, windows(t))
	require.NoError(t, err)
	assert.Equal(t, recorded, f.recorded, "nothing is recorded again")
	have, err := os.ReadFile(o.Output)
	require.NoError(t, err)
	assert.Equal(t, want, have, "the same bytes")
}

// TestKeepWork: a work folder that is to stay does when the adapter is written, and the next run fits nothing again.
func TestKeepWork(t *testing.T) {
	o := options(t, "a.gguf")
	o.KeepWork = true
	finished := 0
	o.Progress = func(e Event) {
		if e.Stage == Finished {
			finished++
		}
	}
	first, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
	want, err := os.ReadFile(o.Output)
	require.NoError(t, err)
	assert.DirExists(t, o.Output+".work")
	assert.Equal(t, 2, finished)

	o.KeepWork = false
	f := &fake{}
	again, err := Run(context.Background(), o, f, windows(t))
	require.NoError(t, err)
	assert.Equal(t, 2, finished)
	assert.Zero(t, f.recorded)
	assert.Equal(t, first.Layers, again.Layers)
	have, err := os.ReadFile(o.Output)
	require.NoError(t, err)
	assert.Equal(t, want, have)
	assert.NoDirExists(t, o.Output+".work")
}

// TestDamagedLayer: what a finished layer left in the work folder is damaged, and the layer is fitted anew, to the same bytes.
func TestDamagedLayer(t *testing.T) {
	whole := options(t, "whole.gguf")
	_, err := Run(context.Background(), whole, &fake{}, windows(t))
	require.NoError(t, err)
	want, err := os.ReadFile(whole.Output)
	require.NoError(t, err)
	for _, ext := range []string{"json", "gguf"} {
		o := options(t, "damaged.gguf")
		ctx, cancel := context.WithCancel(context.Background())
		finished := -1
		o.Threads = 1
		o.Progress = func(e Event) {
			if e.Stage == Finished {
				finished = e.Layer
				cancel()
			}
		}
		_, err = Run(ctx, o, &fake{}, windows(t))
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, os.Truncate(layerFile(o.Output+".work", finished, ext), 10))
		o.Progress = nil
		_, err = Run(context.Background(), o, &fake{}, windows(t))
		require.NoError(t, err, ext)
		have, err := os.ReadFile(o.Output)
		require.NoError(t, err)
		assert.Equal(t, want, have, ext)
	}
}

// TestFullDisk: it says so, and what is done stays: the recording of other layers, and layers that are finished.
func TestFullDisk(t *testing.T) {
	const full = "/dev/full"
	if _, err := os.Stat(full); err != nil {
		t.Skip(err)
	}
	whole := options(t, "whole.gguf")
	_, err := Run(context.Background(), whole, &fake{}, windows(t))
	require.NoError(t, err)
	want, err := os.ReadFile(whole.Output)
	require.NoError(t, err)

	for file, done := range map[string]struct {
		recorded int   // windows, when the disk is full
		after    int   // and when there is room again
		fitted   []int // layers that are left then
	}{"layer-002.recording": {1, 10, []int{0, 2}}, "layer-002.replay-16": {10, 0, []int{2}}} {
		t.Run(file, func(t *testing.T) {
			o := options(t, "a.gguf")
			path := filepath.Join(o.Output+".work", file)
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o755))
			require.NoError(t, os.Symlink(full, path))
			f := &fake{}
			_, err := Run(context.Background(), o, f, windows(t))
			require.ErrorIs(t, err, ErrDisk)
			assert.ErrorContains(t, err, "what is done is kept; make room and run the same command again")
			assert.Equal(t, done.recorded, f.recorded)

			require.NoError(t, os.Remove(path))
			f.recorded = 0
			var fitted []int
			o.Progress = func(e Event) {
				if e.Stage == Finished {
					fitted = append(fitted, e.Layer)
				}
			}
			_, err = Run(context.Background(), o, f, windows(t))
			require.NoError(t, err)
			assert.Equal(t, done.after, f.recorded)
			assert.Equal(t, done.fitted, fitted)
			have, err := os.ReadFile(o.Output)
			require.NoError(t, err)
			assert.Equal(t, want, have, "the same bytes")
		})
	}
}

// TestRecordings: runs that differ in what a recording does not depend on share it, and get what they would get alone.
func TestRecordings(t *testing.T) {
	shared := t.TempDir()
	f := &fake{}
	w := windows(t)
	for i, change := range []func(*Options){
		func(o *Options) {}, func(o *Options) { o.Policy, o.Budgets, o.Rank = "h2o", []int{20}, 2 }, func(o *Options) { o.Source = "another file" },
	} {
		alone := options(t, "alone.gguf")
		change(&alone)
		together := alone
		together.Output, together.Recordings = filepath.Join(t.TempDir(), "together.gguf"), shared
		before := f.recorded
		_, err := Run(context.Background(), together, f, w)
		require.NoError(t, err)
		assert.Equal(t, []int{10, 0, 10}[i], f.recorded-before, "windows recorded")
		_, err = Run(context.Background(), alone, &fake{}, w)
		require.NoError(t, err)
		want, err := os.ReadFile(alone.Output)
		require.NoError(t, err)
		have, err := os.ReadFile(together.Output)
		require.NoError(t, err)
		assert.Equal(t, want, have)
	}
	folders, err := os.ReadDir(shared)
	require.NoError(t, err)
	assert.Len(t, folders, 2)

	o := options(t, "busy.gguf")
	o.Recordings, o.Source = shared, "a third"
	alone, err := enter(filepath.Join(shared, recordingOf(&o, w).folder()), recordingOf(&o, w))
	require.NoError(t, err)
	defer alone.Release()
	_, err = Run(context.Background(), o, f, w)
	assert.ErrorIs(t, err, ErrOther, "another run records")
	o.Disk = 50_000
	_, err = Run(context.Background(), o, f, w)
	assert.ErrorIs(t, err, ErrDisk, "what is to stay has to have room")
}

// Recordings in another format are made again, in a shared folder and in the work folder of the adapter.
func TestRecordingsOfAnotherFormat(t *testing.T) {
	o := Options{Model: &weights.Model{}}
	before := o.plan(Windows{})
	recordingFormat++
	t.Cleanup(func() { recordingFormat-- })
	after := o.plan(Windows{})
	require.NotEqual(t, before.recording.folder(), after.recording.folder())
	require.NotEqual(t, before, after)
}

// TestDamagedRecording: a bit that has turned on the disk since is no kernel that is a little worse, and what the error says helps.
func TestDamagedRecording(t *testing.T) {
	shared := t.TempDir()
	f := &fake{}
	run := func(name string) ([]byte, error) {
		o := options(t, name)
		o.Recordings, o.Rank = shared, 2
		if _, err := Run(context.Background(), o, f, windows(t)); err != nil {
			return nil, err
		}
		return os.ReadFile(o.Output)
	}
	want, err := run("first.gguf")
	require.NoError(t, err)
	recorded := f.recorded
	files, err := filepath.Glob(filepath.Join(shared, "*", "layer-002.recording"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := os.ReadFile(files[0])
	require.NoError(t, err)
	for _, at := range []int{0, len(data) / 2, len(data) - 1} {
		data[at] ^= 1
		require.NoError(t, os.WriteFile(files[0], data, 0o644))
		_, err = run("damaged.gguf")
		require.ErrorIs(t, err, ErrDamaged)
		require.ErrorContains(t, err, files[0])
		data[at] ^= 1
	}
	require.NoError(t, os.Remove(files[0]))
	have, err := run("again.gguf")
	require.NoError(t, err)
	assert.Equal(t, want, have)
	assert.Equal(t, 10, f.recorded-recorded)
}

func recordingOf(o *Options, w Windows) recording {
	c := *o
	c.Context = window
	return c.plan(w).recording
}

// TestParts: layers trained apart and merged are the whole.
func TestParts(t *testing.T) {
	whole, first, second := options(t, "whole.gguf"), options(t, "first.gguf"), options(t, "second.gguf")
	first.Layers, second.Layers = []int{0}, []int{1, 2}
	second.Disk = 1 << 20
	var parts []*weights.Adapter
	for _, o := range []Options{whole, first, second} {
		_, err := Run(context.Background(), o, &fake{}, windows(t))
		require.NoError(t, err)
		a, err := weights.Read(o.Output)
		require.NoError(t, err)
		parts = append(parts, a)
	}
	merged, err := weights.Merge(parts[1:]...)
	require.NoError(t, err)
	parts[0].SHA256 = ""
	assert.Contains(t, merged.Description, "layers 0 to 0,")
	assert.Contains(t, merged.Description, "layers 1 to 2,")
	merged.Description = parts[0].Description
	assert.Equal(t, parts[0], merged)
}

// TestSizes: a layer with a size of its own has what it has where all have that size, and parts of different sizes are merged.
func TestSizes(t *testing.T) {
	run := func(name string, change func(*Options)) *weights.Adapter {
		o := options(t, name)
		change(&o)
		sized, err := o.Sized()
		require.NoError(t, err)
		_, err = Run(context.Background(), o, &fake{}, windows(t))
		require.NoError(t, err)
		a, err := weights.Read(o.Output)
		require.NoError(t, err)
		for i := range a.Kernels {
			if k, want := &a.Kernels[i], &sized.Kernels[i]; !k.Empty() {
				assert.Equal(t, []int{want.Rank, want.Hidden}, []int{k.Rank, k.Hidden}, "layer %d", i)
			}
		}
		return a
	}
	all := run("all.gguf", func(*Options) {})
	large := run("large.gguf", func(o *Options) { o.Rank, o.Hidden = 7, 3 })
	own := run("own.gguf", func(o *Options) { o.Ranks, o.Hiddens = map[int]int{2: 7}, map[int]int{2: 3} })
	assert.Equal(t, all.Kernels[0], own.Kernels[0])
	assert.Equal(t, large.Kernels[2], own.Kernels[2])

	first := run("first.gguf", func(o *Options) { o.Layers = []int{0} })
	second := run("second.gguf", func(o *Options) { o.Layers, o.Rank, o.Hiddens = []int{1, 2}, 7, map[int]int{2: 3} })
	merged, err := weights.Merge(first, second)
	require.NoError(t, err)
	assert.Equal(t, own.Kernels, merged.Kernels)
}

// TestOtherFit: a work folder, or a part, of a version that fitted otherwise is not gone on with.
func TestOtherFit(t *testing.T) {
	o := options(t, "a.gguf")
	_, err := Run(context.Background(), o, &fake{stop: 1, failure: errors.New("crash")}, windows(t))
	require.Error(t, err)
	plan := filepath.Join(o.Output+".work", "plan.json")
	have, err := os.ReadFile(plan)
	require.NoError(t, err)
	number := fmt.Sprintf("\n  \"Fit\": %d,", FitMethod)
	require.Contains(t, string(have), number)
	require.NoError(t, os.WriteFile(plan, []byte(strings.Replace(string(have), number, "", 1)), 0o644))
	_, err = Run(context.Background(), o, &fake{}, windows(t))
	assert.ErrorIs(t, err, ErrOther)

	var parts []*weights.Adapter
	for i, name := range []string{"first.gguf", "second.gguf"} {
		o := options(t, name)
		o.Layers = [][]int{{0}, {1, 2}}[i]
		report, err := Run(context.Background(), o, &fake{}, windows(t))
		require.NoError(t, err)
		parts = append(parts, report.Adapter)
	}
	_, err = weights.Merge(parts...)
	require.NoError(t, err)
	parts[0].Description = strings.Replace(parts[0].Description, fmt.Sprintf(`"Fit":%d,`, FitMethod), "", 1)
	_, err = weights.Merge(parts...)
	assert.ErrorIs(t, err, weights.ErrMerge)
}

func TestRefused(t *testing.T) {
	o := options(t, "a.gguf")
	_, err := Run(context.Background(), o, &fake{stop: 1, failure: errors.New("crash")}, windows(t))
	require.Error(t, err)
	o.Steps++
	_, err = Run(context.Background(), o, &fake{}, windows(t))
	assert.ErrorIs(t, err, ErrOther)

	for says, change := range map[string]func(*Options){
		`policy "best"`:           func(o *Options) { o.Policy = "best" },
		"no budget":               func(o *Options) { o.Budgets = nil },
		"17 are heavy":            func(o *Options) { o.Heavy = 17 },
		"layers [2 3] of 3":       func(o *Options) { o.Layers = []int{2, 3} },
		"layers [1 0] of 3":       func(o *Options) { o.Layers = []int{1, 0} },
		"layers [1] have nothing": func(o *Options) { o.Layers = []int{1} },
		"a window of 96 tokens":   func(o *Options) { o.Budgets = []int{window} },
		"rank 0 of layer 2":       func(o *Options) { o.Ranks = map[int]int{2: 0} },
		"hidden size 9 of layer 3: want one of the model's 3 layers": func(o *Options) { o.Hiddens = map[int]int{1: 2, 3: 9} },
	} {
		o := options(t, "b.gguf")
		change(&o)
		_, err := Run(context.Background(), o, &fake{}, windows(t))
		assert.ErrorIs(t, err, ErrOption, says)
		assert.ErrorContains(t, err, says)
	}
	o = options(t, "c.gguf")
	o.Disk = 1000
	_, err = Run(context.Background(), o, &fake{}, windows(t))
	assert.ErrorIs(t, err, ErrDisk)
}
