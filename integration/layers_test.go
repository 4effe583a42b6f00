package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

// Models whose layers share another layer's keys and values, or differ in their heads.

// layered returns those of the tiny models.
func layered(t *testing.T) (models []tinymodels.Model) {
	t.Helper()
	for _, m := range tinymodels.Supported() {
		if m.Shared > 0 || m.Differ {
			models = append(models, m)
		}
	}
	require.GreaterOrEqual(t, len(models), 5)
	return models
}

// owners maps every layer of a tiny model that shares another one's keys and values to that layer: of those that have their own, the
// last, or the one before it, which has a window. window tells of each layer whether it has one.
func owners(m tinymodels.Model, window []bool) map[int]int {
	of := map[int]int{}
	first := len(window) - m.Shared
	for il := first; m.Shared > 0 && il < len(window); il++ {
		of[il] = first - 1
		if window[il] {
			of[il] = first - 2
		}
	}
	return of
}

// windowed tells which layers of a model have a sliding window: of those that share, what their heads' size or the pattern says.
func windowed(m tinymodels.Model, path string, n int) ([]bool, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if m.Architecture == "gemma3n" {
		window := make([]bool, n)
		for il := range window {
			window[il] = il%5 != 4
		}
		return window, nil
	}
	if f.Has(m.Architecture + ".attention.sliding_window_pattern") {
		return gguf.GetArray[bool](f, m.Architecture+".attention.sliding_window_pattern")
	}
	return make([]bool, n), nil
}

// A case of one layer after the other: what the runtime's cache was given in it, and what it answered.
type capturedLayers struct {
	micro [][]worker.Attention // [layer][micro-batch]
	kept  [][][][]int32        // [layer][micro-batch][KV head]
	info  []worker.LayerInfo   // of the layers that have a cache
	heads []worker.HeadInfo    // that have a budget
}

// captureLayers decodes tokens in micro-batches and looks at all layers after each.
func captureLayers(t *testing.T, w *worker.Worker, n int, tokens []int32, ubatch int) capturedLayers {
	t.Helper()
	require.NoError(t, w.Capture())
	c := capturedLayers{micro: make([][]worker.Attention, n), kept: make([][][][]int32, n)}
	for pos := 0; pos < len(tokens); pos += ubatch {
		_, err := w.Decode(0, pos, tokens[pos:min(pos+ubatch, len(tokens))], worker.Last)
		require.NoError(t, err)
		all, err := w.Captured()
		require.NoError(t, err)
		for _, a := range all {
			c.micro[a.Layer] = append(c.micro[a.Layer], a)
			heads := make([][]int32, a.HeadsKV)
			for j := range heads {
				heads[j], _, err = w.Slots(0, a.Layer, j)
				require.NoError(t, err)
			}
			c.kept[a.Layer] = append(c.kept[a.Layer], heads)
		}
	}
	var err error
	c.info, err = w.Layers(0)
	require.NoError(t, err)
	c.heads, err = w.Heads()
	require.NoError(t, err)
	return c
}

// The contract, layer by layer, where layers share and differ: the plain Go of package reference on the runtime's own q, k and v, with
// evictions. Every sharer attends to its owner's cache, and its weights count in the owner's scores. Slots are f32; where their sizes are
// rotated, 64 in windows and 128 in full layers, they are quantised, and each layer has a budget of its own and may have types of its own.
func TestLayersContract(t *testing.T) {
	t.Parallel()
	const budget = 24
	for _, m := range layered(t) {
		path := write(t, m, gguf.F32)
		base, err := weights.ReadModel(path)
		require.NoError(t, err)
		wide := m.Name == "gemma4-64"
		for p, policy := range reference.Policies() {
			for u, ubatch := range []int{32, 1, 7} {
				if testing.Short() && (p+u)%3 != 0 || m.Shared == 0 && p%3 != u {
					continue
				}
				t.Run(fmt.Sprint(m.Name, " ", policy, " T", ubatch), func(t *testing.T) {
					t.Parallel()
					less := &worker.LESS{Policy: policy.String(), Budget: budget, TypeK: "f32", TypeV: "f32", Reference: p == 1 && u == 2}
					like := reference.Layer{Policy: policy, Pinned: 1}
					var types []reference.Types // by layer
					if wide {
						less.Budget, less.Slots = 0, []int{budget + 9, budget - 9}
						var err error
						less.TypeK, less.TypeV, err = worker.SlotTypes([]string{"q8_0,q4_0", "q8_0,1=q4_0,2.k=f16,3.v=q4_0", "q4_0,q8_0,0=q8_0,2.k=f32,5=f32", "q4_0"}[p%4])
						require.NoError(t, err)
						all, err := worker.LayerTypes(less.TypeK, less.TypeV, base.Layers)
						require.NoError(t, err)
						for _, l := range all {
							types = append(types, reference.Types(l))
						}
					}
					var phi []*reference.Kernels
					if (p+u)%3 < 2 { // of two policies with each micro-batch
						a := unequal(base, weights.Trained{Policy: less.Policy, Heavy: policy.Heavy(budget), Recent: budget - policy.Heavy(budget), Ubatch: ubatch, Context: 512}, uint64(3*p+u))
						if m.Shared > 0 && u == 1 { // the owner of full layers reads the slots alone; what it folds, its sharers read
							last := base.Layers - m.Shared - 1
							a.Kernels[last].Phi = [2]weights.Matrix{}
						}
						less.Adapter = filepath.Join(t.TempDir(), "a.gguf")
						require.NoError(t, a.Write(less.Adapter))
						phi = kernels(a)
					}
					w := start(t, worker.Patched)
					info, err := w.Open(worker.Config{Model: path, Context: 512, Ubatch: ubatch, Capture: true,
						LESS: less})
					require.NoError(t, err)
					got := captureLayers(t, w, info.Layers, randomTokens(160, info.Vocab), ubatch)
					window, err := windowed(m, path, info.Layers)
					require.NoError(t, err)
					of := owners(m, window)
					require.Len(t, of, m.Shared)
					layersContract(t, m, got, of, like, types, phi)
				})
			}
		}
	}
}

// layersContract runs the reference over what was captured: each cache with its sharers, of being the owners. like has the policy, the
// pinned tokens and the slots' types, but for those of layers that have others, as they were given to the runtime; types and kernels may be nil.
func layersContract(t *testing.T, m tinymodels.Model, got capturedLayers, of map[int]int, like reference.Layer, types []reference.Types, kernels []*reference.Kernels) {
	t.Helper()
	require.Len(t, got.info, len(got.micro)-m.Shared-m.Without)
	kernel := func(il int) *reference.Kernels {
		if kernels == nil {
			return nil
		}
		return kernels[il]
	}
	followed, sharers, evicted := 0, 0, int64(0)
	for _, cache := range got.info {
		il := cache.Layer
		first := got.micro[il][0]
		l := like
		l.Heads, l.HeadsKV, l.KeyLength, l.ValueLength = first.Heads, first.HeadsKV, first.KeyLength, first.ValueLength
		l.Scale, l.SoftCap, l.Kernels = float64(cache.Scale), float64(cache.SoftCap), kernel(il)
		if types != nil {
			l.KeyType, l.ValueType = types[il].Key, types[il].Value
		}
		if cache.Window {
			l.Window = m.Window
		} else {
			evicted += cache.Folded
			for _, h := range got.heads {
				if h.Layer == il {
					l.Budgets = append(l.Budgets, reference.Budget{Slots: h.Budget, Heavy: max(l.Pinned, l.Policy.Heavy(h.Budget))})
				}
			}
		}
		var share []int
		var layers []reference.Sharer
		for s := range got.micro {
			if owner, ok := of[s]; ok && owner == il {
				share = append(share, s)
				layers = append(layers, reference.Sharer{Heads: got.micro[s][0].Heads, Scale: l.Scale, Kernels: kernel(s)})
			}
		}
		sharers += len(share)
		c, err := reference.NewCache(l)
		require.NoError(t, err)
		pos := 0
		for i, a := range got.micro[il] {
			a = rotatedBack(l, a)
			queries, outs := [][]float32{a.Q}, [][]float32{a.Out}
			for _, s := range share {
				b := rotatedBack(l, got.micro[s][i])
				require.Equal(t, a.K, b.K, "the keys of layer %d in layer %d", il, s)
				queries, outs = append(queries, b.Q), append(outs, b.Out)
			}
			want, err := c.StepShared(pos, queries, a.K, a.V, layers, got.kept[il][i])
			require.NoError(t, err, "layer %d, micro-batch %d", il, i)
			for k := range want {
				assert.Less(t, headError(t, want[k], outs[k], l.ValueLength), attentionBound, "layer %d, query layer %d of it, micro-batch %d", il, k, i)
			}
			pos += a.Tokens
		}
		followed += c.Followed()
	}
	assert.Equal(t, m.Shared, sharers)
	assert.NotZero(t, evicted)
	t.Logf("%d ties followed", followed)
}

// What layers that share or differ hold is the sum over the layers that have keys and values of their own, whatever the length of the
// sequence, and a budget in bytes is kept.
func TestLayersMemory(t *testing.T) {
	t.Parallel()
	const ubatch = 32
	for _, m := range layered(t) {
		path := write(t, m, gguf.F32)
		base, err := weights.ReadModel(path)
		require.NoError(t, err)
		window, err := windowed(m, path, base.Layers)
		require.NoError(t, err)
		of := owners(m, window)
		adapter := filepath.Join(t.TempDir(), "a.gguf")
		a := unequal(base, weights.Trained{Policy: "h2o", Heavy: 32, Recent: 32, Ubatch: ubatch, Context: 512}, 1)
		a.Budget = make([]float32, heads(base))
		for il, at := 0, 0; il < base.Layers; il++ {
			if n := base.Layer(il).HeadsKV; n > 0 && !window[il] { // the first with a budget
				a.Budget[at] = 1
				break
			} else {
				at += n
			}
		}
		require.NoError(t, a.Write(adapter))

		// "Memory, per sequence" in algorithm.md, with a budget of so many slots
		formula := func(budget int) (slots, state int64) {
			for il := range base.Layers {
				s := base.Layer(il)
				slot := int64(s.HeadsKV) * int64(2*(s.KeyLength+s.ValueLength)+4+4)
				if _, shares := of[il]; shares {
					continue
				}
				if window[il] {
					slots += slot * int64(m.Window-1)
					continue
				}
				slots += slot * int64(budget)
				state += int64(s.HeadsKV*a.Kernels[il].Rank*(s.ValueLength+1)) * 4
			}
			return slots, state
		}
		w := start(t, worker.Patched)
		measure := func(less worker.LESS, lengths ...int) worker.LESSInfo {
			t.Helper()
			less.Adapter = adapter
			info, err := w.Open(worker.Config{Model: path, Context: 4096, Ubatch: ubatch, LESS: &less})
			require.NoError(t, err)
			tokens := randomTokens(lengths[len(lengths)-1], info.Vocab)
			at := 0
			var i worker.LESSInfo
			for _, n := range lengths {
				_, err = w.Feed(0, at, tokens[at:n], worker.None)
				require.NoError(t, err)
				at = n
				i, err = w.LESS()
				require.NoError(t, err)
				slots, state := formula(i.Budget)
				assert.Equal(t, []int64{slots, state, int64(a.Bytes())}, []int64{i.SlotBytes, i.StateBytes, i.KernelBytes}, "%s after %d tokens", m.Name, n)
			}
			assert.Equal(t, m.Shared, i.SharedLayers, m.Name)
			assert.Equal(t, base.Layers-m.Shared-m.Without, i.Layers+i.WindowLayers, m.Name)
			heads, err := w.Heads() // of which the adapter gives the first one all but the floor of the others
			require.NoError(t, err)
			total := 0
			for _, h := range heads {
				total += h.Budget
			}
			assert.Equal(t, len(heads)*i.Budget, total, m.Name)
			assert.Equal(t, total-(len(heads)-1)*min(i.Budget, 8), heads[0].Budget, m.Name)
			require.NoError(t, w.CloseModel())
			return i
		}
		i := measure(worker.LESS{Budget: 64}, 100, 700, 3000)
		assert.Equal(t, 64, i.Budget)
		slots, state := formula(50)
		i = measure(worker.LESS{BudgetBytes: slots + state + int64(a.Bytes()) + 7}, 100)
		assert.Equal(t, 50, i.Budget, "%s: the largest that fits", m.Name)
	}
}

// Quantised slots of a layer are rotated by its own head sizes, a sharer's queries as its owner's keys: with nothing evicted they are the
// runtime's quantised caches, of which the one for windows and the one for full layers each have a size of their own too.
func TestQuantisedLayers(t *testing.T) {
	const n = 256
	path := tiny(t, "gemma4-64")
	tokens := randomTokens(n, 384)
	asTheRuntimes(t, path, tokens, "q4_0", "q8_0")
}

// trained trains an adapter of h2o on random tokens: windows of a context, cut from so many tokens, of which so many are used.
func trained(t *testing.T, path string, context, tokens, used int, o train.Options) (base *weights.Model, out string, report *train.Report) {
	t.Helper()
	base, err := weights.ReadModel(path)
	require.NoError(t, err)
	program, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	runtime, err := activations.Open(t.Context(), program, path, context, 1)
	require.NoError(t, err)
	defer runtime.Close()
	windows, err := train.Cut(randomTokens(tokens, 384), context, used, runtime.Start())
	require.NoError(t, err)
	out = filepath.Join(t.TempDir(), "a.lesskv.gguf")
	o.Model, o.Output, o.Policy, o.Rank, o.Hidden, o.Type = base, out, "h2o", 4, 8, gguf.F16
	report, err = train.Run(t.Context(), o, runtime, windows)
	require.NoError(t, err)
	return base, out, report
}

// Training records and fits layers of whatever heads. A layer that shares another's cache gets phi for that one's psi.
func TestTrainLayers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct{ trained, exact, sharers []int }{
		"gemma4":  {[]int{2, 5}, []int{0, 1, 3, 4, 6, 8}, []int{7, 9}},
		"openelm": {[]int{0, 1, 2, 3}, nil, nil},
	} {
		path := tiny(t, name)
		const context, budget, ubatch = 128, 24, 16
		base, out, report := trained(t, path, context, 10*context, 6*context, train.Options{Budgets: []int{budget}, Ubatch: ubatch, Steps: 20})
		assert.Equal(t, want.exact, report.Exact, name)
		assert.Empty(t, report.Shared, name)
		for _, l := range report.Layers {
			t.Logf("%s: %+v", name, l)
			assert.Empty(t, l.Sparse, "%s, layer %d", name, l.Layer)
			assert.Less(t, l.Valid, 1., "%s, layer %d", name, l.Layer)
		}

		a, err := weights.Read(out)
		require.NoError(t, err)
		_, err = weights.Check(a, base)
		require.NoError(t, err)
		for il := range a.Kernels {
			assert.Equal(t, slices.Contains(want.trained, il), a.Kernels[il].HasPsi(), "%s, layer %d", name, il)
			assert.Equal(t, slices.Contains(append(want.trained, want.sharers...), il), a.Kernels[il].HasPhi(), "%s, layer %d", name, il)
		}
		w := open(t, worker.Patched, worker.Config{Model: path, Context: 512, Ubatch: ubatch, LESS: &worker.LESS{Policy: "h2o", Budget: budget, Adapter: out}})
		_, err = w.Feed(0, 0, randomTokens(100, 384), worker.Last)
		require.NoError(t, err)
		info, err := w.LESS()
		require.NoError(t, err)
		assert.Equal(t, len(want.trained)+len(want.sharers), info.KernelLayers, name)
	}
}
