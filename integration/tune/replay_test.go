package tune

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

func TestReplayLevels(t *testing.T) {
	assert.Equal(t, []int{8, 13, 26, 53, 107, 215, 430, 860, 1720, 1884}, replayLevels(215, 2048))
	assert.Equal(t, []int{8, 16, 32, 64, 128, 256, 512, 1024, 1536}, replayLevels(1024, 2048))
	assert.Equal(t, []int{8, 12, 24, 48, 96, 144}, replayLevels(24, 192))
	assert.Equal(t, []int{3, 6, 12, 24, 48, 54}, replayLevels(3, 60), "a budget below what a head has at least")
	assert.Equal(t, 53, calibrationLevel(215, replayLevels(215, 2048)))
	assert.Equal(t, 3, calibrationLevel(3, replayLevels(3, 60)))
}

// Small models are measured, as they were before there were replays.
func TestMethod(t *testing.T) {
	o := &Options{}
	assert.Equal(t, MeasureHeads, o.method(mostMeasured))
	assert.Equal(t, ReplayHeads, o.method(mostMeasured+1))
	o.Heads = MeasureHeads
	assert.Equal(t, MeasureHeads, o.method(1000))
	assert.Equal(t, []int{4, 1}, []int{o.rounds(false), o.rounds(true)})
	o.Rounds = 2
	assert.Equal(t, 2, o.rounds(true))
	o.Rounds = -1
	assert.Zero(t, o.rounds(true))
}

// Heads cost together what their layer was measured to cost, at that level, and in proportion to their errors at every level. A layer of
// which nothing can be measured costs as little, for its errors, as the one that costs least.
func TestCalibrate(t *testing.T) {
	r := &Result{Levels: []int{10, 20, 40}, Heads: make([]Head, 4)}
	for j := range r.Heads {
		r.Heads[j].Distance = make([]float64, 3)
	}
	losses := []Loss{{Error: []float64{6, 3, 1}}, {Error: []float64{2, 1, 0}}, {Error: []float64{5, 2, 3}}, {Error: []float64{0, 0, 0}}}
	calibrate(r, [][]int{{0, 1}, {2}, {3}}, losses, 20, []float64{.4, 0, 0})
	assert.InDeltaSlice(t, []float64{.6, .3, .1}, r.Heads[0].Distance, 1e-12)
	assert.InDeltaSlice(t, []float64{.2, .1, 0}, r.Heads[1].Distance, 1e-12)
	assert.InDeltaSlice(t, []float64{.5, .3, .3}, r.Heads[2].Distance, 1e-12, "a curve that does not rise")
	assert.Equal(t, []float64{0, 0, 0}, r.Heads[3].Distance)
	assert.InDeltaSlice(t, []float64{.8, .4, .1}, r.Layers[0], 1e-12)

	c := corrected(r, [][]int{{0, 1}, {2}, {3}}, []float64{2, 1, 1})
	assert.InDeltaSlice(t, []float64{1.2, .6, .2}, c.Heads[0].Distance, 1e-12)
	assert.InDeltaSlice(t, []float64{.6, .3, .1}, r.Heads[0].Distance, 1e-12, "as it was")
}

// tiny returns options for a tiny model.
func tiny(t *testing.T, name string) Options {
	tiny, err := tinymodels.Find(name)
	require.NoError(t, err)
	path, err := tiny.WriteIn(t.TempDir(), gguf.F32, 1)
	require.NoError(t, err)
	bin, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(3, 4))
	window := func() (tokens []int32) {
		for range 192 {
			tokens = append(tokens, int32(3+random.IntN(380)))
		}
		return tokens
	}
	return Options{
		Model: path, Worker: bin, Windows: [][]int32{window(), window()}, Valid: [][]int32{window()}, Budget: worker.Budget{Tokens: 24}, Ubatch: 16,
		Heads: ReplayHeads, Work: t.TempDir(),
	}
}

// Where many heads can't be replayed they are measured, and why is said once.
func TestRunNotReplayed(t *testing.T) {
	mostMeasured = 4
	t.Cleanup(func() { mostMeasured = 16 })
	o := tiny(t, "llama")
	llama, err := tinymodels.Find("llama")
	require.NoError(t, err)
	huge := slices.Repeat([]float32{1e30}, 128*128) // its square is no f32
	require.NoError(t, llama.WriteChanged(o.Model, gguf.F32, 1, map[string][]float32{"blk.1.attn_output.weight": huge}))
	o.Windows, o.Rounds = o.Windows[:1], -1
	var why []string
	o.Progress = func(e Event) {
		if e.Why != "" {
			why = append(why, e.Why)
		}
	}
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, train.ErrModel, "replays were asked for")
	assert.Empty(t, why)

	o.Heads = ""
	r, err := Run(t.Context(), o)
	require.NoError(t, err)
	assert.False(t, r.Replayed)
	require.Len(t, why, 1)
	assert.Regexp(t, `^layer 1, head 0: the error of a replay with \d+ slots is `, why[0])
}

// A sharer may have another hidden size than the cache that it reads. The smaller of the two is padded, which is as if its file had zeros there.
func TestPhiPsiOfSizes(t *testing.T) {
	const d, rank, heads = 3, 2, 4
	m := &weights.Model{Geometry: weights.Geometry{Layers: 2, Heads: heads, HeadsKV: 2, KeyLength: d, ValueLength: d}}
	shape := weights.Shape{Heads: heads, HeadsKV: 2, KeyLength: d, ValueLength: d}
	f := family{{Layer: train.Layer{Index: 0}, Shape: shape}, {Layer: train.Layer{Index: 1}, Shape: shape}}
	a, b := weights.Random(m, rank, 3, weights.Trained{}, 1), weights.Random(m, rank, 3, weights.Trained{}, 1)
	small := weights.Random(m, rank, 1, weights.Trained{}, 2).Kernels[1]
	a.Kernels[1], b.Kernels[1] = small, weights.Kernels{Rank: rank, Hidden: 3}
	for h := range heads {
		phi := &b.Kernels[1].Phi
		phi[0].Values = append(append(phi[0].Values, small.Phi[0].Values[h*d:(h+1)*d]...), make([]float32, 2*d)...)
		for r := range rank {
			phi[1].Values = append(phi[1].Values, small.Phi[1].Values[h*rank+r], 0, 0)
		}
	}
	for j := range 2 {
		all := phiPsi(a, f, 1, j)
		assert.Equal(t, phiPsi(b, f, 1, j), all)
		of := kernels.TrainShape{Shape: kernels.Shape{Heads: heads / 2, HeadsKV: 1, KeySize: d, Rank: rank, Hidden: 3}, ValueSize: d}
		assert.Len(t, all, of.Weights())
	}
}

// kinds of attention: none of everything special, and each special thing.
var kinds = []string{"llama", "gemma2", "gpt-oss", "qwen35", "openelm", "gemma3n", "gemma4"}

// TestReplayIsTheRuntime: what a replay finds is what the layer's output is off by in the runtime, behind the output projection, where that
// head alone is limited. Of a layer whose cache others share it is more, by what those are off by.
func TestReplayIsTheRuntime(t *testing.T) {
	for _, name := range append([]string{"llama, phi and psi"}, kinds...) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			kind, _, adapted := strings.Cut(name, ",")
			o := tiny(t, kind)
			o.Windows = o.Windows[:1]
			require.NoError(t, o.fill())
			model, err := weights.ReadModel(o.Model)
			require.NoError(t, err)
			if adapted {
				a := weights.Random(model, 4, 4, weights.Trained{Policy: o.Policy, Heavy: 6, Recent: 18, Ubatch: o.Ubatch, Context: 192}, 1)
				a.Kernels[1] = weights.Random(model, 3, 7, a.Trained, 1).Kernels[1]
				o.Adapter = o.Model + ".lesskv.gguf"
				require.NoError(t, a.Write(o.Adapter))
			}
			m, err := open(ctx, &o)
			require.NoError(t, err)
			defer m.close()
			levels := []int{8, 48}
			losses, err := m.replay(ctx, levels, true)
			require.NoError(t, err)
			file, err := activations.Open(ctx, o.Worker, o.Model, 192, 1)
			require.NoError(t, err)
			defer file.Close()

			output := func(layer int, slots []int) (out []float32) {
				w, err := worker.Start(ctx, o.Worker)
				require.NoError(t, err)
				defer w.Close()
				_, err = w.Open(worker.Config{Model: o.Model, Context: 192, Batch: 192, Ubatch: o.Ubatch, Threads: 1, Capture: true,
					LESS: &worker.LESS{Policy: o.Policy, TypeK: "f16", TypeV: "f16", Slots: slots, Adapter: o.Adapter}})
				require.NoError(t, err)
				require.NoError(t, w.Capture(layer))
				_, err = w.Decode(0, 0, o.Windows[0], worker.None)
				require.NoError(t, err)
				all, err := w.Captured()
				require.NoError(t, err)
				for _, a := range all {
					out = append(out, a.Out...)
				}
				return out
			}
			random := rand.New(rand.NewPCG(1, 1))
			for range 3 {
				j, k := random.IntN(len(m.heads)), random.IntN(len(levels))
				h := m.heads[j]
				what := fmt.Sprintf("layer %d, head %d, %d slots", h.Layer, h.Head, levels[k])
				wo, rows, err := train.Projection(file, model, h.Layer)
				require.NoError(t, err)
				in := len(wo) / rows
				full, have := output(h.Layer, m.limited(nil, 0)), output(h.Layer, m.limited([]int{j}, levels[k]))
				require.Len(t, have, in*192)
				sum := 0.0
				for i := m.first() * in; i < len(have); i += in {
					for r := range rows {
						x := 0.0
						for c := range in {
							x += float64(wo[r*in+c]) * float64(have[i+c]-full[i+c])
						}
						sum += x * x
					}
				}
				want := sum / float64(192-m.first())
				shared := false
				for i := range model.Layers {
					shared = shared || i != h.Layer && model.Owner(i) == h.Layer
				}
				t.Logf("%s: %.4g, the runtime %.4g, attention lost %.3f", what, losses[j].Error[k], want, losses[j].Mass[k])
				require.Positive(t, want, what)
				if shared {
					assert.Greater(t, losses[j].Error[k], .95*want, what)
				} else {
					assert.InEpsilon(t, want, losses[j].Error[k], .05, what) // queries are recorded in f16: of two pairs with nearly one score the other may go
				}
				assert.Greater(t, losses[j].Mass[k], 0.)
				assert.Less(t, losses[j].Mass[k], 1.)
			}
			for j := range losses {
				assert.Greater(t, losses[j].Mass[0], losses[j].Mass[1], "head %d: fewer slots", j)
			}
		})
	}
}

// A run whose heads are replayed spreads all slots, is no worse than equal budgets, and goes on where it was interrupted.
func TestRunReplayed(t *testing.T) {
	for _, name := range kinds {
		t.Run(name, func(t *testing.T) {
			if name == "gemma3n" && testing.Short() {
				t.Skip("its 25 layers take half of the time")
			}
			o := tiny(t, name)
			stages := map[Stage]int{}
			o.Progress = func(e Event) { stages[e.Stage]++ }
			r, err := Run(t.Context(), o)
			require.NoError(t, err)
			assert.True(t, r.Replayed)
			total := 0
			for _, h := range r.Heads {
				total += h.Slots
				assert.False(t, h.Measured)
				assert.Len(t, h.Distance, len(r.Levels))
			}
			assert.Equal(t, 24*len(r.Heads), total)
			assert.LessOrEqual(t, r.Tuned, r.Equal)
			assert.LessOrEqual(t, r.TunedValid, r.EqualValid)
			assert.NotZero(t, stages[Replays])
			assert.Zero(t, stages[Heads])
			t.Logf("KL %.4f, with equal budgets %.4f, predicted %.4f", r.Tuned, r.Equal, r.Guess)

			first := stages[Layers]
			clear(stages)
			again, err := Run(t.Context(), o)
			require.NoError(t, err)
			assert.Equal(t, r, again)
			assert.Less(t, stages[Layers], first, "what was measured is kept")
		})
	}
}
