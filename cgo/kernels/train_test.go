package kernels

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/x448/float16"
)

func halves(r *rand.Rand, n int, scale float64) []uint16 {
	h := make([]uint16, n)
	for i := range h {
		h[i] = float16.Fromfloat32(float32(scale * r.NormFloat64())).Bits()
	}
	return h
}

func halfBytes(h []uint16) []byte {
	b := make([]byte, 0, 2*len(h))
	for _, x := range h {
		b = append(b, byte(x), byte(x>>8))
	}
	return b
}

func widen(h []uint16) []float32 {
	f := make([]float32, len(h))
	for i, x := range h {
		f[i] = float16.Frombits(x).Float32()
	}
	return f
}

func gauss(r *rand.Rand, n int, scale float64) []float32 {
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(scale * r.NormFloat64())
	}
	return f
}

// trainCase is a small layer and a window over it, replayed.
type trainCase struct {
	layer   Layer
	shape   TrainShape
	w       *TrainWindow
	weights []float32
	wo      []float32 // [9][40]
	gram    []float32
	softCap float32
	sinks   []float32
}

func newTrainCase(t testing.TB, seed uint64, policy string, tokens, ubatch, budget int, softCap float32, withSinks bool) *trainCase {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &trainCase{
		layer: Layer{Heads: 4, HeadsKV: 2, KeySize: 12, ValueSize: 10, KeyType: F16, ValueType: F16, Policy: policy, Budget: budget, Heavy: budget / 2, Pinned: 1},
		shape: TrainShape{Shape{Heads: 4, HeadsKV: 2, KeySize: 12, Rank: 5, Hidden: 7}, 10}, softCap: softCap,
	}
	if withSinks {
		c.sinks = gauss(r, 4, 1)
	}
	c.w = &TrainWindow{
		Tokens: tokens, Ubatch: ubatch, Q: halves(r, tokens*48, 1.5), K: halves(r, tokens*24, 1.5), V: halves(r, tokens*20, 1), Full: halves(r, tokens*40, 1),
		Sparse: make([]uint16, tokens*40), LSE: make([]float32, tokens*4), Evicted: make([]int32, tokens*2),
	}
	require.NoError(t, c.w.Replay(c.layer, softCap, c.sinks))
	c.weights = gauss(r, c.shape.Weights(), .4)
	var err error
	c.wo = gauss(r, 9*40, .3)
	c.gram, err = TrainGram(c.wo, 9, 40)
	require.NoError(t, err)
	return c
}

// large gives all keys a constant, as Qwen 2 has one, so that the logits of even query heads are some 110 and those of odd ones -120,
// and the heads scales to match.
func (c *trainCase) large(t testing.TB) {
	shift := []float32{110, -120, 110, -120}
	for i := 0; i < len(c.w.K); i += 12 {
		c.w.K[i] = float16.Fromfloat32(100).Bits()
	}
	for i := 0; i < len(c.w.Q); i += 12 {
		c.w.Q[i] = float16.Fromfloat32(shift[i/12%4] / 100 * float32(math.Sqrt(12))).Bits()
	}
	require.NoError(t, c.w.Replay(c.layer, c.softCap, c.sinks))
	for i, x := range shift {
		c.weights[len(c.weights)-4+i] += x
	}
}

func (c *trainCase) error(t testing.TB, weights, grad []float32) TrainError {
	e, err := c.w.Error(c.shape, weights, c.gram, make([]byte, c.shape.Scratch(c.w.Tokens, c.w.Ubatch)), grad)
	require.NoError(t, err)
	return e
}

// kernels are the weights as inference takes them.
func (c *trainCase) kernels(t testing.TB) *Kernels {
	var m [5]Mat
	at := 0
	for i, n := range c.shape.Sizes() {
		if i < len(m) {
			m[i] = Mat{F32, F32.FromF32(c.weights[at : at+n])}
		}
		at += n
	}
	require.Equal(t, at, len(c.weights))
	k, err := NewKernels(c.shape.Shape, [2]Mat{m[0], m[1]}, [3]Mat{m[2], m[3], m[4]}, c.weights[at-c.shape.Heads:])
	require.NoError(t, err)
	return k
}

// TestTrainIsInference: the error that training sees is that of the cache with the same kernels over the same window.
func TestTrainIsInference(t *testing.T) { eachLevel(t, testTrainIsInference) }

func testTrainIsInference(t *testing.T) {
	type window struct {
		policy         string
		tokens, ubatch int
		softCap        float32
		sinks, large   bool
	}
	windows := []window{{"peak", 150, 16, 4, false, false}, {"lambda", 97, 1, 0, true, false}, {"h2o", 131, 70, 0, false, false}}
	for _, policy := range PolicyNames() {
		windows = append(windows, window{policy, 150, 8, 0, false, false}, window{policy, 150, 8, 0, false, true},
			window{policy, 150, 8, 0, true, true}, window{policy, 150, 8, 200, true, true})
	}
	for _, test := range windows {
		c := newTrainCase(t, 3, test.policy, test.tokens, test.ubatch, 14, test.softCap, test.sinks)
		if test.large {
			c.large(t)
		}
		layer := c.layer
		layer.Kernels = c.kernels(t)
		defer layer.Kernels.Close()
		for _, with := range []bool{true, false} {
			if !with {
				layer.Kernels = nil
			}
			cache, err := NewCache(layer)
			require.NoError(t, err)
			defer cache.Close()
			full := widen(c.w.Full)
			q := widen(c.w.Q)
			var want float64
			tokens := 0
			for pos := 0; pos < test.tokens; pos += test.ubatch {
				n := min(test.ubatch, test.tokens-pos)
				live := cache.Stats().Folded > 0
				u := &Ubatch{
					Tokens: n, Pos: pos, Q: q[pos*48 : (pos+n)*48], K: halfBytes(c.w.K[pos*24 : (pos+n)*24]), V: halfBytes(c.w.V[pos*20 : (pos+n)*20]),
					Scale: float32(1 / math.Sqrt(12)), SoftCap: test.softCap, Sinks: c.sinks, Out: make([]float32, n*40),
				}
				require.NoError(t, cache.Attend(u, 1))
				require.NoError(t, cache.Commit(u, 1))
				for i := range n {
					if live {
						e := make([]float64, 40)
						for x := range e {
							e[x] = float64(u.Out[i*40+x] - full[(pos+i)*40+x])
						}
						for out := range 9 { // behind Wo itself
							var y float64
							for x := range e {
								y += e[x] * float64(c.wo[out*40+x])
							}
							want += y * y
						}
						tokens++
					}
				}
			}
			var weights []float32
			if with {
				weights = c.weights
			}
			got := c.error(t, weights, nil)
			assert.Equal(t, tokens, got.Tokens)
			assert.Positive(t, tokens)
			assert.InEpsilon(t, want, got.Sum, 2e-3, "%+v, kernels %v; the sparse part is kept in f16", test, with)
		}
	}
}

// TestTrainTinyMass: phi z below the normal numbers of single precision, with scales to match, costs what an ordinary one does.
func TestTrainTinyMass(t *testing.T) { eachLevel(t, testTrainTinyMass) }

func testTrainTinyMass(t *testing.T) {
	c := newTrainCase(t, 3, "peak", 150, 8, 14, 0, false)
	want := c.error(t, c.weights, nil)
	sizes := c.shape.Sizes()
	scale := len(c.weights) - sizes[5]
	for i := scale - sizes[4]; i < scale; i++ {
		c.weights[i] *= 0x1p-133 // psi 2, to which z and H are in proportion
	}
	for h := range sizes[5] {
		c.weights[scale+h] += 133 * math.Ln2
	}
	got := c.error(t, c.weights, nil)
	for h, x := range got.LogMass {
		assert.Less(t, x, math.Log(0x1p-126), "query head %d: its phi z is no normal number", h)
	}
	assert.InEpsilon(t, want.Sum, got.Sum, 1e-2)
	c.weights[0] = float32(math.NaN())
	assert.True(t, math.IsNaN(c.error(t, c.weights, nil).Sum), "weights that are not finite are seen")
}

// TestTrainGradient compares the gradient with central differences, weight by weight, in every matrix.
func TestTrainGradient(t *testing.T) { eachLevel(t, testTrainGradient) }

func testTrainGradient(t *testing.T) {
	c := newTrainCase(t, 5, "h2o", 150, 8, 14, 0, false)
	t.Run("ordinary logits", func(t *testing.T) { gradient(t, c) })
	c.large(t)
	t.Run("large logits", func(t *testing.T) { gradient(t, c) })
}

func gradient(t *testing.T, c *trainCase) {
	grad := make([]float32, len(c.weights))
	c.error(t, c.weights, grad)
	names := []string{"phi 0", "phi 1", "psi 0", "psi 1", "psi 2", "scale"}
	r := rand.New(rand.NewPCG(9, 9))
	at := 0
	for i, n := range c.shape.Sizes() {
		var top float64
		for _, g := range grad[at : at+n] {
			top = max(top, math.Abs(float64(g)))
		}
		require.Positive(t, top, names[i])
		for range 24 {
			at := at + r.IntN(n)
			// A large step crosses kinks of | |, a small one drowns in rounding: one of them must agree.
			away := math.Inf(1)
			for _, h := range []float32{2e-3, 7e-4, 2e-4} {
				moved := slices.Clone(c.weights)
				moved[at] = c.weights[at] + h
				up := c.error(t, moved, nil).Sum
				moved[at] = c.weights[at] - h
				down := c.error(t, moved, nil).Sum
				away = min(away, math.Abs((up-down)/(2*float64(h))-float64(grad[at])))
			}
			assert.Less(t, away, .01*top, "%s, weight %d of gradient %v", names[i], at, grad[at])
		}
		at += n
	}
}

// TestTrainParts: errors and gradients of the parts are those of the whole; a window of few blocks has no parts.
func TestTrainParts(t *testing.T) {
	for every, tokens := range map[int]int{1: 300, 3: 500, 4: 700} {
		c := newTrainCase(t, 6, "peak", tokens, 8, 14, 0, false)
		grad, sum := make([]float32, len(c.weights)), make([]float32, len(c.weights))
		scratch := make([]byte, c.shape.Scratch(tokens, 8))
		whole := c.error(t, c.weights, grad)
		var parts TrainError
		for from := range every {
			e, err := c.w.ErrorOfPart(c.shape, c.weights, c.gram, scratch, sum, every, from)
			require.NoError(t, err)
			assert.Less(t, e.Tokens, tokens/every+64)
			parts.Tokens += e.Tokens
			parts.Sum += e.Sum
		}
		assert.Equal(t, whole.Tokens, parts.Tokens)
		assert.InEpsilon(t, whole.Sum, parts.Sum, 1e-5)
		assert.InDeltaSlice(t, grad, sum, 1e-3*whole.Sum)
		e, err := c.w.ErrorOfPart(c.shape, c.weights, c.gram, scratch, nil, 50, 49)
		require.NoError(t, err)
		assert.Equal(t, whole.Sum, e.Sum)
		for _, wrong := range [][2]int{{0, 0}, {2, 2}, {2, -1}, {math.MaxInt32, 0}} {
			_, err := c.w.ErrorOfPart(c.shape, c.weights, c.gram, scratch, nil, wrong[0], wrong[1])
			assert.ErrorIs(t, err, ErrArgument)
		}
	}
}

// TestTrainSharers: query heads of which the cache's layer has one half and a sharer the other see what they would see together, and
// what they are worth decides together what goes.
func TestTrainSharers(t *testing.T) { eachLevel(t, testTrainSharers) }

func testTrainSharers(t *testing.T) {
	for _, policy := range PolicyNames() {
		whole := newTrainCase(t, 11, policy, 150, 8, 14, 4, true)
		half := func(from []uint16, odd, size int) (to []uint16) { // of heads 0, 1 over one KV head and 2, 3 over the other
			for i := odd * size; i < len(from); i += 2 * size {
				to = append(to, from[i:i+size]...)
			}
			return to
		}
		var windows [2]*TrainWindow
		var sinks [2][]float32
		for odd := range windows {
			windows[odd] = &TrainWindow{
				Tokens: 150, Ubatch: 8, Q: half(whole.w.Q, odd, 12), K: whole.w.K, V: whole.w.V, Full: half(whole.w.Full, odd, 10),
				Sparse: make([]uint16, 150*20), LSE: make([]float32, 150*2), Evicted: make([]int32, 150*2),
			}
			sinks[odd] = []float32{whole.sinks[odd], whole.sinks[2+odd]}
		}
		layer := whole.layer
		layer.Heads = 2
		require.NoError(t, windows[0].Replay(layer, 4, sinks[0], TrainSharer{2, windows[1], sinks[1]}))
		for odd, w := range windows {
			assert.Equal(t, whole.w.Evicted, w.Evicted, policy)
			assert.InDeltaSlice(t, widen(half(whole.w.Sparse, odd, 10)), widen(w.Sparse), 2e-3, policy)
			for i, x := range w.LSE {
				assert.InDelta(t, whole.w.LSE[2*i+odd], x, 1e-5, policy)
			}
		}
		if policy == "h2o" {
			require.NoError(t, windows[0].Replay(layer, 4, sinks[0]))
			assert.NotEqual(t, whole.w.Evicted, windows[0].Evicted, "without the sharer other pairs go")
		}
		for _, wrong := range []TrainSharer{{3, windows[1], nil}, {2, windows[1], sinks[1][1:]}, {4, windows[1], nil}} {
			assert.ErrorIs(t, windows[0].Replay(layer, 4, sinks[0], wrong), ErrArgument)
		}
	}
}

// TestTrainMissing: a query's missing mass and its sparse part's are what the full cache's softmax is made of.
func TestTrainMissing(t *testing.T) { eachLevel(t, testTrainMissing) }

func testTrainMissing(t *testing.T) {
	c := newTrainCase(t, 7, "peak", 120, 8, 14, 0, false)
	missing, err := c.w.Missing(c.layer, 0, 5)
	require.NoError(t, err)
	q, k := widen(c.w.Q), widen(c.w.K)
	first := slices.Min(c.w.Evicted)
	for h := range 4 {
		var sum, n float64
		least, most := math.Inf(1), math.Inf(-1)
		for at := (int(first) + 1) * 8; at < 120; at += 5 {
			var gone, held float64
			for i := range at + 1 {
				var dot float64
				for d := range 12 {
					dot += float64(q[(at*4+h)*12+d] * k[(i*2+h/2)*12+d])
				}
				if int(c.w.Evicted[h/2*120+i]) < at/8 {
					gone += math.Exp(dot / math.Sqrt(12))
				} else {
					held += math.Exp(dot / math.Sqrt(12))
				}
			}
			assert.InDelta(t, math.Log(held), c.w.LSE[at*4+h], 1e-4)
			mass := math.Log(gone)
			sum, n, least, most = sum+mass, n+1, min(least, mass), max(most, mass)
		}
		assert.InDelta(t, sum/n, missing[h].Mean, 1e-4)
		assert.InDelta(t, least, missing[h].Least, 1e-4)
		assert.InDelta(t, most, missing[h].Most, 1e-4)
	}

	c.large(t)
	missing, err = c.w.Missing(c.layer, 0, 1)
	require.NoError(t, err)
	for h, shift := range []float64{110, -120, 110, -120} {
		m := missing[h]
		assert.InDelta(t, shift, m.Mean, 15, "query head %d", h)
		assert.Less(t, m.Least, m.Mean, "query head %d", h)
		assert.Less(t, m.Mean, m.Most, "query head %d", h)
		assert.Less(t, m.Most-m.Least, 15., "query head %d", h)
	}

	c = newTrainCase(t, 7, "peak", 20, 8, 200, 0, false)
	missing, err = c.w.Missing(c.layer, 0, 5)
	require.NoError(t, err)
	for _, m := range missing {
		assert.True(t, math.IsNaN(m.Mean), "nothing is evicted")
	}
	assert.Zero(t, c.error(t, c.weights, nil).Tokens)
}

// TestTrainMissingByHead: heads of unequal budgets miss what each has evicted, whichever is the first.
func TestTrainMissingByHead(t *testing.T) {
	for _, budgets := range [][]Budget{{{6, 2}, {60, 20}}, {{60, 20}, {6, 2}}, {{200, 50}, {14, 4}}, {{14, 4}, {200, 50}}} {
		c := newTrainCase(t, 7, "peak", 120, 8, 14, 0, false)
		both := make([][]Missing, 2)
		masses := make([][]float64, 2)
		for i, b := range budgets { // each head as it is where both have its budget
			c.layer.Budget, c.layer.Heavy, c.layer.Budgets = b.Slots, b.Heavy, nil
			require.NoError(t, c.w.Replay(c.layer, 0, nil))
			missing, err := c.w.Missing(c.layer, 0, 1)
			require.NoError(t, err)
			both[i] = missing
			masses[i] = c.error(t, c.weights, nil).LogMass
		}
		c.layer.Budgets = budgets
		require.NoError(t, c.w.Replay(c.layer, 0, nil))
		missing, err := c.w.Missing(c.layer, 0, 1)
		require.NoError(t, err)
		mass := c.error(t, c.weights, nil).LogMass
		for h := range 4 {
			j := h / 2
			if budgets[j].Slots > 120 {
				assert.True(t, math.IsNaN(missing[h].Mean) && math.IsNaN(mass[h]), "%v", budgets)
				continue
			}
			assert.Equal(t, both[j][h], missing[h], "%v", budgets)
			assert.InDelta(t, masses[j][h], mass[h], 1e-6, "%v", budgets)
		}
	}
}

func TestTrainRefuses(t *testing.T) {
	c := newTrainCase(t, 1, "h2o", 40, 8, 14, 0, false)
	_, err := c.w.Error(c.shape, c.weights[1:], c.gram, make([]byte, 1<<20), nil)
	assert.ErrorIs(t, err, ErrArgument)
	_, err = c.w.Error(c.shape, c.weights, c.gram, nil, nil)
	assert.ErrorIs(t, err, ErrArgument)
	c.w.K = c.w.K[1:]
	assert.ErrorIs(t, c.w.Replay(c.layer, 0, nil), ErrArgument)
	_, err = TrainGram(make([]float32, 5), 2, 3)
	assert.ErrorIs(t, err, ErrArgument)
}

// BenchmarkTrainWindow is a window of 2,048 tokens in one layer, of gopher-5m and of Llama-3.2-1B.
func BenchmarkTrainWindow(b *testing.B) {
	const tokens, size = 2048, 64
	for _, c := range []struct {
		name           string
		heads, headsKV int
		hidden         int
	}{{"gopher-5m, hidden 4", 4, 2, 4}, {"gopher-5m, hidden 16", 4, 2, 16}, {"llama-3.2-1b, hidden 4", 32, 8, 4}, {"llama-3.2-1b, hidden 16", 32, 8, 16}} {
		r := rand.New(rand.NewPCG(1, 1))
		layer := Layer{Heads: c.heads, HeadsKV: c.headsKV, KeySize: size, ValueSize: size, KeyType: F16, ValueType: F16, Policy: "h2o", Budget: 102, Heavy: 51, Pinned: 1}
		shape := TrainShape{Shape{Heads: c.heads, HeadsKV: c.headsKV, KeySize: size, Rank: 8, Hidden: c.hidden}, size}
		q, kv := c.heads*size, c.headsKV*size
		w := &TrainWindow{
			Tokens: tokens, Ubatch: 32, Q: halves(r, tokens*q, 1), K: halves(r, tokens*kv, 1), V: halves(r, tokens*kv, 1), Full: halves(r, tokens*q, 1),
			Sparse: make([]uint16, tokens*q), LSE: make([]float32, tokens*c.heads), Evicted: make([]int32, tokens*c.headsKV),
		}
		b.Run(c.name+"/replay", func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, w.Replay(layer, 0, nil))
			}
		})
		gram, err := TrainGram(gauss(r, q*q, .1), q, q)
		require.NoError(b, err)
		weights := gauss(r, shape.Weights(), .1)
		grad := make([]float32, len(weights))
		scratch := make([]byte, shape.Scratch(tokens, 32))
		for every, name := range map[int]string{1: "gradient", 4: "gradient of a quarter"} {
			b.Run(c.name+"/"+name, func(b *testing.B) {
				b.ReportMetric(float64(len(scratch))/(1<<20), "MiB")
				for b.Loop() {
					_, err := w.ErrorOfPart(shape, weights, gram, scratch, grad, every, 1%every)
					require.NoError(b, err)
				}
			})
		}
	}
}
