package reference

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// sequence is n tokens' q, k and v for a layer.
type sequence struct{ q, k, v []float32 }

func newSequence(l Layer, n int) sequence {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	return sequence{random(r, n*l.Heads*l.KeyLength), random(r, n*l.HeadsKV*l.KeyLength), random(r, n*l.HeadsKV*l.ValueLength)}
}

// run feeds a sequence in micro-batches of these sizes, the last again and again.
func (s sequence) run(t *testing.T, l Layer, sizes ...int) (*Cache, []float32) {
	t.Helper()
	c, err := NewCache(l)
	require.NoError(t, err)
	q, k, v := l.Heads*l.KeyLength, l.HeadsKV*l.KeyLength, l.HeadsKV*l.ValueLength
	var out []float32
	for i, pos, n := 0, 0, len(s.q)/q; pos < n; i++ {
		end := min(pos+sizes[min(i, len(sizes)-1)], n)
		o, err := c.Step(pos, s.q[pos*q:end*q], s.k[pos*k:end*k], s.v[pos*v:end*v], nil)
		require.NoError(t, err)
		out = append(out, o...)
		pos = end
	}
	return c, out
}

// term is one summand of a softmax: a weight before normalising, and a value.
type term struct {
	weight float64
	value  []float32
}

// naive is attention written down at once: every token's terms, no cache, nothing subtracted from the logits.
func (s sequence) naive(l Layer, more func(token, head int) []term) []float32 {
	q, n := l.Heads*l.KeyLength, len(s.q)/(l.Heads*l.KeyLength)
	out := make([]float32, n*l.Heads*l.ValueLength)
	for t := range n {
		for i := range l.Heads {
			j := i / (l.Heads / l.HeadsKV)
			var terms []term
			for p := range t + 1 {
				if l.Window > 0 && p <= t-l.Window {
					continue
				}
				var x float64
				for d := range l.KeyLength {
					x += float64(s.q[t*q+i*l.KeyLength+d]) * float64(s.k[(p*l.HeadsKV+j)*l.KeyLength+d])
				}
				if x *= l.Scale; l.SoftCap > 0 {
					x = l.SoftCap * math.Tanh(x/l.SoftCap)
				}
				terms = append(terms, term{math.Exp(x), s.v[(p*l.HeadsKV+j)*l.ValueLength:][:l.ValueLength]})
			}
			if more != nil {
				terms = append(terms, more(t, i)...)
			}
			var sum float64
			for _, x := range terms {
				sum += x.weight
			}
			for _, x := range terms {
				for d, v := range x.value {
					out[(t*l.Heads+i)*l.ValueLength+d] += float32(x.weight / sum * float64(v))
				}
			}
		}
	}
	return out
}

func plain() Layer {
	return Layer{Heads: 6, HeadsKV: 2, KeyLength: 10, ValueLength: 7, Scale: 0.3, Policy: H2O, Budget: 40, Heavy: 20, Pinned: 1}
}

func TestNothingEvicted(t *testing.T) {
	list := map[string]func(*Layer){
		"plain":    func(l *Layer) {},
		"soft-cap": func(l *Layer) { l.SoftCap = 1.5 },
		"window":   func(l *Layer) { l.Window, l.Policy = 5, nil },
	}
	for _, p := range Policies() {
		list[p.Name] = func(l *Layer) { l.Policy = p }
	}
	for name, change := range list {
		t.Run(name, func(t *testing.T) {
			l := plain()
			change(&l)
			s := newSequence(l, 40)
			want := s.naive(l, nil)
			for _, sizes := range [][]int{{40}, {1}, {7, 1, 1, 12}} {
				c, out := s.run(t, l, sizes...)
				assert.InDeltaSlice(t, want, out, 1e-5, "micro-batches %v", sizes)
				if l.Window > 0 {
					assert.Equal(t, []int32{36, 37, 38, 39}, c.Kept(1))
				} else {
					assert.Len(t, c.Kept(1), 40)
				}
			}
		})
	}
}

func TestSinks(t *testing.T) {
	l := plain()
	l.Sinks = []float32{-1, 0, 1, 2, 30, -30}
	s := newSequence(l, 12)
	want := s.naive(l, func(_, head int) []term { return []term{{weight: math.Exp(float64(l.Sinks[head]))}} })
	_, out := s.run(t, l, 5)
	assert.InDeltaSlice(t, want, out, 1e-5)
}

// With the same psi for every key, the low-rank part is one more token whose value is the mean of the evicted ones, and
// whose weight is their number times phi psi, times e to the power of the head's scale.
func TestLowRankToken(t *testing.T) {
	l := plain()
	l.Policy, l.Budget, l.Heavy, l.Pinned = Lambda, 6, 2, 0
	one := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = 1
		}
		return x
	}
	// Kernels of one hidden unit that picks element 0, which is c in every query and key; gelu(c) = c, so psi is c.
	const c = 32
	pick := make([]float32, l.Heads*l.KeyLength)
	for h := range l.Heads {
		pick[h*l.KeyLength] = 1
	}
	l.Kernels = &Kernels{Rank: 1, Hidden: 1,
		Phi: [2][]float32{pick, one(l.Heads)},
		Psi: [3][]float32{pick[:l.HeadsKV*l.KeyLength], one(l.HeadsKV), one(l.HeadsKV)},

		Scale: []float32{0, 1, -2, 3, .5, -.5},
	}
	l.Scale = 1e-4
	s := newSequence(l, 9)
	for i := range s.q {
		if i%l.KeyLength == 0 {
			s.q[i] = c
		}
	}
	for i := range s.k {
		if i%l.KeyLength == 0 {
			s.k[i] = c
		}
	}
	cache, out := s.run(t, l, 8, 1)
	assert.Equal(t, []int32{0, 1, 5, 6, 7, 8}, cache.Kept(0)) // 2, 3 after the first micro-batch, 4 after the second

	phi := c * l.Scale * math.Sqrt(float64(l.KeyLength))
	phi = phi / 2 * (1 + math.Erf(phi/math.Sqrt2)) // twice: as gelu has it
	phi = phi / 2 * (1 + math.Erf(phi/math.Sqrt2))
	for i := range l.Heads {
		j, mass := i/3, phi*2*c*math.Exp(float64(l.Kernels.Scale[i]))
		var num, den float64
		for _, p := range []int{0, 1, 4, 5, 6, 7, 8} {
			var x float64
			for d := range l.KeyLength {
				x += float64(s.q[(8*l.Heads+i)*l.KeyLength+d]) * float64(s.k[(p*l.HeadsKV+j)*l.KeyLength+d])
			}
			w := math.Exp(x * l.Scale)
			num += w * float64(s.v[(p*l.HeadsKV+j)*l.ValueLength])
			den += w
		}
		num += mass * float64(s.v[(2*l.HeadsKV+j)*l.ValueLength]+s.v[(3*l.HeadsKV+j)*l.ValueLength]) / 2
		den += mass
		assert.InDelta(t, num/den, out[(8*l.Heads+i)*l.ValueLength], 1e-5, "head %d", i)
	}
}

// Kernels that are all zero act as none: phi(q).z is 0.
func TestZeroKernels(t *testing.T) {
	l := plain()
	l.KeyType, l.ValueType = gguf.F16, gguf.F16
	l.Budget, l.Heavy = 8, 4
	s := newSequence(l, 40)
	_, want := s.run(t, l, 3)
	l.Kernels = &Kernels{Rank: 2, Hidden: 3,
		Phi: [2][]float32{make([]float32, 6*3*10), make([]float32, 6*2*3)},
		Psi: [3][]float32{make([]float32, 2*3*10), make([]float32, 2*2*3), make([]float32, 2*2*2)},
	}
	_, got := s.run(t, l, 3)
	assert.Equal(t, want, got)
}

// A sharer with the queries of its cache's own layer sees what that sees, and gives every pair the same again: twice the sum, and
// the same largest. So do queries of which the layer asks one half and a sharer the other.
func TestSharers(t *testing.T) {
	for _, policy := range Policies() {
		l := plain()
		l.Policy, l.Budget, l.Heavy = policy, 12, 6
		random := func(n int) []float32 { return random(rand.New(rand.NewPCG(3, uint64(n))), n) }
		const rank, hidden = 3, 4
		l.Kernels = &Kernels{Rank: rank, Hidden: hidden,
			Phi: [2][]float32{random(6 * hidden * 10), random(6 * rank * hidden)},
			Psi: [3][]float32{random(2 * hidden * 10), random(2 * rank * hidden), random(2 * rank * rank)},
		}
		s := newSequence(l, 60)
		alone, want := s.run(t, l, 6)
		same := Sharer{Heads: l.Heads, Scale: l.Scale, Kernels: l.Kernels}
		blind := same
		blind.Kernels = nil
		cache, err := NewCache(l)
		require.NoError(t, err)
		row := func(x []float32, pos, width int) []float32 { return x[pos*width : (pos+6)*width] }
		for pos := 0; pos < 60; pos += 6 {
			q, k, v := row(s.q, pos, 60), row(s.k, pos, 20), row(s.v, pos, 14)
			outs, err := cache.StepShared(pos, [][]float32{q, q, q}, k, v, []Sharer{same, blind}, nil)
			require.NoError(t, err)
			assert.Equal(t, row(want, pos, 42), outs[0])
			assert.Equal(t, outs[0], outs[1])
			assert.Equal(t, pos <= 12, assert.ObjectsAreEqual(outs[0], outs[2]), "the slots alone, at %d", pos)
		}
		for j := range cache.heads {
			assert.Equal(t, alone.Kept(j), cache.Kept(j))
			for i, p := range cache.heads[j].slots {
				times := 1.0 // the largest weight of three layers
				if policy.Scored() {
					times = policy.Gain(policy.Gain(policy.Gain(0, 1), 1), 1)
				}
				assert.InDelta(t, times*alone.heads[j].slots[i].score, p.score, 1e-9)
			}
		}

		// one half each: heads 0, 1, 2 and 3, 4, 5 over two KV heads become 0, 1 and 2 of which a sharer has the third
		half := l
		half.Heads, half.Kernels = 4, nil
		whole := l
		whole.Kernels = nil
		alone, want = s.run(t, whole, 6)
		cache, err = NewCache(half)
		require.NoError(t, err)
		pick := func(q []float32, heads ...int) (out []float32) {
			for at := 0; at < len(q); at += 60 {
				for _, h := range heads {
					out = append(out, q[at+10*h:at+10*h+10]...)
				}
			}
			return out
		}
		for pos := 0; pos < 60; pos += 6 {
			q, k, v := row(s.q, pos, 60), row(s.k, pos, 20), row(s.v, pos, 14)
			outs, err := cache.StepShared(pos, [][]float32{pick(q, 0, 1, 3, 4), pick(q, 2, 5)}, k, v, []Sharer{{Heads: 2, Scale: l.Scale}}, nil)
			require.NoError(t, err)
			assert.Equal(t, row(want, pos, 42)[14:21], outs[1][:7])
		}
		for j := range cache.heads {
			assert.Equal(t, alone.Kept(j), cache.Kept(j))
		}
	}
	l := plain()
	c, err := NewCache(l)
	require.NoError(t, err)
	s := newSequence(l, 1)
	for _, wrong := range []Sharer{{Heads: 5, Scale: 1}, {Heads: 6}, {Heads: 6, Scale: 1, Kernels: &Kernels{Rank: 1, Hidden: 1}}} {
		_, err = c.StepShared(0, [][]float32{s.q, s.q}, s.k, s.v, []Sharer{wrong}, nil)
		assert.ErrorContains(t, err, "sharer")
	}
	_, err = c.StepShared(0, [][]float32{s.q, s.q[1:]}, s.k, s.v, []Sharer{{Heads: 6, Scale: 1}}, nil)
	assert.ErrorContains(t, err, "sharer")
	_, err = c.StepShared(0, [][]float32{s.q}, s.k, s.v, []Sharer{{Heads: 6, Scale: 1}}, nil)
	assert.ErrorContains(t, err, "2")
}

func TestChoose(t *testing.T) {
	pairs := func(scores ...float64) []pair {
		held := make([]pair, len(scores))
		for i, s := range scores {
			held[i] = pair{pos: i, score: s}
		}
		return held
	}
	for _, c := range []struct {
		name                  string
		policy                *Policy
		budget, heavy, pinned int
		scores                []float64
		want                  []int
	}{
		{"room for all", H2O, 4, 2, 1, []float64{1, 2, 3, 4}, []int{0, 1, 2, 3}},
		{"best of the old", H2O, 4, 2, 0, []float64{1, 5, 2, 4, 0, 0}, []int{1, 3, 4, 5}},
		{"equal: the newer", H2O, 3, 1, 0, []float64{5, 5, 5, 0, 0}, []int{2, 3, 4}},
		{"pinned counts towards heavy", H2O, 4, 2, 1, []float64{0, 5, 2, 4, 0, 0}, []int{0, 1, 4, 5}},
		{"heavy alone", Peak, 2, 2, 0, []float64{3, 1, 2, 0}, []int{0, 2}},
		{"recent alone", Peak, 2, 0, 0, []float64{3, 1, 2, 0}, []int{2, 3}},
		{"lambda has no scores", Lambda, 4, 2, 1, []float64{0, 0, 9, 9, 0, 0}, []int{0, 1, 4, 5}},
	} {
		h := head{Layer: &Layer{Policy: c.policy, Budget: c.budget, Heavy: c.heavy}}
		var got []int
		for i, keep := range h.choose(pairs(c.scores...), c.pinned) {
			if keep {
				got = append(got, i)
			}
		}
		assert.Equal(t, c.want, got, c.name)
	}
}

func TestScore(t *testing.T) {
	var sum, peak float64
	for _, w := range []float64{0.25, 0.5, 0.125} {
		sum, peak = H2O.Gain(sum, w), Peak.Gain(peak, w)
	}
	assert.Equal(t, 0.875, sum)
	assert.Equal(t, 0.5, peak)
	assert.Equal(t, 1.875, H2O.Score(1, sum, 3))
	assert.InDelta(t, 0.95, Peak.Score(1, peak, 32), 1e-12, "a score decays by 5 % in 32 tokens")
	assert.Equal(t, 0.5, Peak.Score(0.1, peak, 32))
	assert.Equal(t, []int{20, 4, 10}, []int{H2O.Heavy(41), Lambda.Heavy(41), Peak.Heavy(41)})
}

// A runtime's choice is adopted where rounding could have made it, and refused where the policy decides.
func TestFollow(t *testing.T) {
	held := func() []pair {
		var p []pair
		for i, s := range []float64{9, 5, 5.001, 4, 0, 0} {
			p = append(p, pair{pos: 10 + i, score: s})
		}
		return p
	}
	l := Layer{Policy: H2O, Budget: 4, Heavy: 2}
	const pinned = 11
	for _, c := range []struct {
		name     string
		theirs   []int32
		followed int
		fault    string // "": adopted
	}{
		{"own choice, any order", []int32{15, 10, 12, 14}, 0, ""},
		{"a tie", []int32{10, 11, 14, 15}, 1, ""},
		{"a worse one", []int32{10, 13, 14, 15}, 0, "position 12: evicted with score 5.001, while position 13 stays with 4"},
		{"without the pinned one", []int32{11, 12, 14, 15}, 0, "position 10: evicted, and its score has no say"},
		{"without a recent one", []int32{10, 11, 12, 15}, 0, "position 14: evicted, and its score has no say"},
		{"one too many", []int32{10, 11, 12, 14, 15}, 0, "5 are held: want 4"},
		{"one too few", []int32{10, 14, 15}, 0, "3 are held: want 4"},
		{"a stranger", []int32{10, 12, 14, 99}, 0, "position 99: kept, but it was not held"},
		{"one twice", []int32{10, 12, 14, 14}, 0, "position 14: kept, but it was not held"},
	} {
		h := head{Layer: &l}
		p := held()
		keep := h.choose(p, pinned)
		err := h.follow(p, keep, c.theirs, pinned)
		if c.fault == "" {
			require.NoError(t, err, c.name)
			for i := range p {
				assert.Equal(t, keep[i], contains(c.theirs, p[i].pos), c.name)
			}
		} else {
			var choice *ChoiceError
			require.ErrorAs(t, err, &choice, c.name)
			assert.ErrorContains(t, err, c.fault, c.name)
		}
		assert.Equal(t, c.followed, h.followed, c.name)
	}
	l.Policy = Lambda
	h := head{Layer: &l}
	p := held()
	assert.ErrorContains(t, h.follow(p, h.choose(p, pinned), []int32{10, 12, 14, 15}, pinned), "no say")
}

func contains(positions []int32, pos int) bool {
	for _, p := range positions {
		if int(p) == pos {
			return true
		}
	}
	return false
}

func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*Layer){
		"7 query heads over 2":      func(l *Layer) { l.Heads = 7 },
		"budget 0":                  func(l *Layer) { l.Budget, l.Heavy, l.Pinned = 0, 0, 0 },
		"heavy 41":                  func(l *Layer) { l.Heavy = 41 },
		"pinned 21":                 func(l *Layer) { l.Pinned = 21 },
		"no policy":                 func(l *Layer) { l.Policy = nil },
		"1 sinks":                   func(l *Layer) { l.Sinks = []float32{1} },
		"Q8_0 and F32":              func(l *Layer) { l.KeyType = gguf.Q8_0 },
		"F32 and BF16":              func(l *Layer) { l.ValueType = gguf.BF16 },
		"scale 0":                   func(l *Layer) { l.Scale = 0 },
		"kernel psi.0 has 0 values": func(l *Layer) { l.Kernels = &Kernels{Rank: 1, Hidden: 1} },
	} {
		l := plain()
		change(&l)
		_, err := NewCache(l)
		assert.ErrorContains(t, err, name)
	}
	l := plain()
	s := newSequence(l, 2)
	c, _ := s.run(t, l, 2)
	_, err := c.Step(5, s.q, s.k, s.v, nil)
	assert.ErrorContains(t, err, "position 5: want 2")
	_, err = c.Step(2, s.q[1:], s.k, s.v, nil)
	assert.ErrorContains(t, err, "want [T][6][10]")

	_, err = LoadModel(filepath.Join(t.TempDir(), "none.gguf"))
	assert.Error(t, err)
	_, err = LoadModel("../testdata/gopher-5m.peak-41.lesskv.gguf")
	assert.ErrorContains(t, err, "llama.block_count")
}

func TestModel(t *testing.T) {
	m, err := LoadModel("../testdata/gopher-5m.gguf")
	require.NoError(t, err)
	l := m.Layer()
	tokens := []int32{1, 300, 20, 3000, 5, 5, 77, 1024}
	want, err := m.Logits(tokens, Exact(l, len(tokens)))
	require.NoError(t, err)
	require.Len(t, want, len(tokens)*m.Vocab)

	// A token's logits depend on no later one, and not on the micro-batches while nothing is evicted.
	l.Policy, l.Budget, l.Heavy = H2O, 100, 50
	got, err := m.Logits(tokens[:5], LESS{Layer: l, Ubatch: 2}.Attention())
	require.NoError(t, err)
	assert.InDeltaSlice(t, want[:5*m.Vocab], got, 1e-3)

	_, err = m.Logits([]int32{1, 4096}, Exact(l, 2))
	assert.ErrorContains(t, err, "token 1 is 4096")
}
