package kernels

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
)

// algorithm.md once more, in plain Go and double precision, knowing nothing of the C side but its inputs.

type pair struct {
	k, v  []float64
	pos   int
	score float64
}

// asking are the kernels of a layer's queries; without w they see the slots alone.
type asking struct {
	w     [2][]float64
	scale []float64 // [Hq]; nil: 0
}

type contract struct {
	c     *testCase
	phi   asking
	psi   [3][]float64
	pairs [][]pair    // [Hkv]; between step and evict with what is too many
	H     [][]float64 // [Hkv][R Dv]
	z     [][]float64 // [Hkv][R]
}

func wide(x []float32) []float64 {
	y := make([]float64, len(x))
	for i := range x {
		y[i] = float64(x[i])
	}
	return y
}

func newContract(c *testCase, phi [2]Mat, psi [3]Mat, scale []float32) *contract {
	l := &c.layer
	m := &contract{c: c, pairs: make([][]pair, l.HeadsKV)}
	for range l.HeadsKV {
		m.H = append(m.H, make([]float64, c.rank*l.ValueSize))
		m.z = append(m.z, make([]float64, c.rank))
	}
	read := func(mat Mat, n int) []float64 { return wide(mat.Type.ToF32(mat.Data, n)) }
	if c.rank > 0 && psi[0].Data != nil {
		m.phi.w[0] = read(phi[0], l.Heads*c.hidden*l.KeySize)
		m.phi.w[1] = read(phi[1], l.Heads*c.rank*c.hidden)
		if scale != nil {
			m.phi.scale = wide(scale)
		}
		m.psi[0] = read(psi[0], l.HeadsKV*c.hidden*l.KeySize)
		m.psi[1] = read(psi[1], l.HeadsKV*c.rank*c.hidden)
		m.psi[2] = read(psi[2], l.HeadsKV*c.rank*c.rank)
	}
	return m
}

// product returns f of each of the n sums of x times a row of head's matrix.
func product(w []float64, head, n int, x []float64, f func(float64) float64) []float64 {
	y := make([]float64, n)
	for o := range y {
		for i := range x {
			y[o] += w[(head*n+o)*len(x)+i] * x[i]
		}
		y[o] = f(y[o])
	}
	return y
}

func absGelu(x float64) float64 { return math.Abs(gelu(x)) }

func (m *contract) phiOf(phi asking, head int, q []float64) []float64 {
	return product(phi.w[1], head, m.c.rank, product(phi.w[0], head, m.c.hidden, q, gelu), absGelu)
}

func (m *contract) psiOf(head int, k []float64) []float64 {
	x := product(m.psi[0], head, m.c.hidden, k, gelu)
	return product(m.psi[2], head, m.c.rank, product(m.psi[1], head, m.c.rank, x, gelu), math.Abs)
}

// rotatedBack is a query or a key as it was before the rotation.
func (m *contract) rotatedBack(x []float64) []float64 {
	return reference.Hadamard(x, m.c.layer.Rotation)
}

// micro is a micro-batch on its way: for each KV head the pairs that are held, it among them, and what they gained so far.
type micro struct {
	all  [][]pair
	gain [][]float64
}

// take begins a micro-batch.
func (m *contract) take(u *Ubatch) micro {
	l := &m.c.layer
	var b micro
	for j := range l.HeadsKV {
		all := slices.Clone(m.pairs[j])
		for t := range u.Tokens {
			k := l.KeyType.ToF32(u.K[j*u.KHead+t*u.KToken:], l.KeySize)
			v := l.ValueType.ToF32(u.V[j*u.VHead+t*u.VToken:], l.ValueSize)
			all = append(all, pair{wide(k), wide(v), u.Pos + t, 0})
		}
		b.all = append(b.all, all)
		b.gain = append(b.gain, make([]float64, len(all)))
	}
	return b
}

// ask is step 1 for the heads of a layer, its own or a sharer, and returns the outputs, [T][Hq][Dv].
func (m *contract) ask(u *Ubatch, heads int, phi asking, b micro) []float64 {
	l := &m.c.layer
	g := heads / l.HeadsKV
	out := make([]float64, u.Tokens*heads*l.ValueSize)
	for i := range heads {
		j := i / g
		for t := range u.Tokens {
			at := (i*u.QHead + t*u.QToken) / 4
			m.attend(j, i, t, u, wide(u.Q[at:at+l.KeySize]), phi, b.all[j], b.gain[j], out[(t*heads+i)*l.ValueSize:][:l.ValueSize])
		}
	}
	return out
}

// score is step 2.
func (m *contract) score(u *Ubatch, b micro) {
	l := &m.c.layer
	for j, all := range b.all {
		for i := range all {
			if l.scored() {
				all[i].score = l.plain().Score(all[i].score, b.gain[j][i], u.Tokens)
			}
		}
		m.pairs[j] = all
	}
}

// step does steps 1 and 2 of a micro-batch and returns the outputs, [T][Hq][Dv].
func (m *contract) step(u *Ubatch) []float64 {
	b := m.take(u)
	out := m.ask(u, m.c.layer.Heads, m.phi, b)
	m.score(u, b)
	return out
}

// plain is the policy in plain Go, and what a layer without a window goes by.
func (l *Layer) plain() *reference.Policy { return reference.PolicyOf(l.Policy) }

// scored reports whether scores decide what stays.
func (l *Layer) scored() bool { return l.Window == 0 && l.plain().Scored() }

// attend is "Attention of one query", and what pairs gain by it.
func (m *contract) attend(j, head, t int, u *Ubatch, q []float64, kernel asking, all []pair, gain, out []float64) {
	l := &m.c.layer
	s := float64(u.Scale)
	p := u.Pos + t
	logit := make([]float64, len(all))
	base := math.Inf(-1)
	for i, a := range all {
		logit[i] = math.Inf(-1)
		if a.pos > p || l.Window > 0 && a.pos <= p-l.Window {
			continue
		}
		logit[i] = 0
		for d := range q {
			logit[i] += s * q[d] * a.k[d]
		}
		if c := float64(u.SoftCap); c > 0 {
			logit[i] = c * math.Tanh(logit[i]/c)
		}
		base = max(base, logit[i])
	}
	var total float64
	for i := range all {
		total += math.Exp(logit[i] - base)
	}
	for i := range all {
		if l.scored() && l.plain().Counts(t, u.Tokens) {
			gain[i] = l.plain().Gain(gain[i], math.Exp(logit[i]-base)/total)
		}
	}

	den := total
	for i, a := range all {
		for c := range out {
			out[c] += math.Exp(logit[i]-base) * a.v[c]
		}
	}
	if u.Sinks != nil {
		den += math.Exp(float64(u.Sinks[head]) - base)
	}
	if kernel.w[0] != nil {
		scale := -base
		if kernel.scale != nil {
			scale += kernel.scale[head]
		}
		qn := make([]float64, len(q))
		for d := range q {
			qn[d] = q[d] * s * math.Sqrt(float64(l.KeySize))
		}
		phi := m.phiOf(kernel, head, m.rotatedBack(qn))
		for r := range phi { // exp(L) times value and 1: phi H and phi z
			for c := range out {
				out[c] += math.Exp(scale) * phi[r] * m.H[j][r*l.ValueSize+c]
			}
			den += math.Exp(scale) * phi[r] * m.z[j][r]
		}
	}
	for c := range out {
		out[c] /= den
	}
}

// evict is steps 3 and 4. theirs are the positions that the C side kept: where scores tie but for rounding, its choice is this one's.
func (m *contract) evict(j int, theirs []int32) {
	l := &m.c.layer
	all := m.pairs[j]
	b, h := l.BudgetOf(j).Slots, l.BudgetOf(j).Heavy
	pinned := func(x pair) bool { return x.pos < l.Pinned && l.Window == 0 }
	slices.SortFunc(all, func(x, y pair) int { return x.pos - y.pos })
	if len(all) <= b {
		return
	}
	others, recent := all[:len(all)-(b-h)], all[len(all)-(b-h):]
	better := slices.Clone(others)
	slices.SortStableFunc(better, func(x, y pair) int {
		px, py := pinned(x), pinned(y)
		switch {
		case px != py && px:
			return -1
		case px != py:
			return 1
		case !l.scored():
			return x.pos - y.pos
		case x.score > y.score:
			return -1
		case x.score < y.score:
			return 1
		}
		return y.pos - x.pos
	})
	kept, gone := better[:h], better[h:]
	for i := range kept {
		if !l.scored() || pinned(kept[i]) || slices.Contains(theirs, int32(kept[i].pos)) {
			continue
		}
		for o := range gone {
			if slices.Contains(theirs, int32(gone[o].pos)) && m.c.tied(kept[i].score, gone[o].score) {
				kept[i], gone[o] = gone[o], kept[i]
				break
			}
		}
	}
	slices.SortFunc(gone, func(x, y pair) int { return x.pos - y.pos })
	for _, a := range gone {
		if m.c.rank == 0 {
			break
		}
		for r, p := range m.psiOf(j, m.rotatedBack(a.k)) {
			for c := range a.v {
				m.H[j][r*l.ValueSize+c] += p * a.v[c]
			}
			m.z[j][r] += p
		}
	}
	m.pairs[j] = append(kept, recent...)
}

// tied reports whether rounding could have put two scores in either order. Where all pairs are worth the same, it has no say: each
// side computes the same scores, and the newer one stays.
func (c *testCase) tied(a, b float64) bool {
	return !c.mute && math.Abs(a-b) <= 2*scoreBound*c.slack()*max(1, a, b)
}

// TestContract runs whole sequences through the C side, fast and in plain loops, and through the Go above, each with its own state:
// what they keep must be the same, but for ties, and outputs agree to 1e-4 where logits are of ordinary size.
func TestContract(t *testing.T) {
	n := 20
	if testing.Short() { // also of TestOnArm64, whose emulator is slow
		n = 5
	}
	list := cases()
	for i := range n {
		c := randomCase(rand.New(rand.NewPCG(9, uint64(i))))
		list = append(list, c)
	}
	for i, c := range list {
		draw := rand.New(rand.NewPCG(10, uint64(i)))
		phi, psi := c.mats(draw)
		scale := c.scales(draw)
		if c.rank > 0 {
			l := &c.layer
			k, err := NewKernels(Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}, phi, psi, scale)
			require.NoError(t, err)
			defer k.Close()
			l.Kernels = k
		}
		for name, run := range map[string]func(cache *Cache, u *Ubatch){
			"fast": func(cache *Cache, u *Ubatch) {
				require.NoError(t, cache.Attend(u, 2))
				require.NoError(t, cache.Commit(u, 2))
			},
			"plain": func(cache *Cache, u *Ubatch) {
				weights, err := cache.AttendRef(u)
				require.NoError(t, err)
				require.NoError(t, cache.CommitRef(u, weights, nil))
			},
		} {
			if name == "plain" && testing.Short() {
				continue // TestDifferential compares the two
			}
			rng := rand.New(rand.NewPCG(11, uint64(i)))
			cache, goes := c.cache(t), newContract(&c, phi, psi, scale)
			pos := 0
			for _, tokens := range c.tokens {
				u := c.ubatch(rng, tokens, pos)
				want := goes.step(u)
				run(cache, u)
				compare(t, &c, i, want, u.Out)
				for j := range goes.pairs {
					kept, _ := cache.Slots(j)
					goes.evict(j, kept)
					sameSlots(t, name, &c, goes.pairs[j], cache, j)
				}
				pos += tokens
			}
		}
	}
}

// sameSlots compares positions, and scores to 1e-5, or what large logits leave of that.
func sameSlots(t *testing.T, path string, c *testCase, want []pair, cache *Cache, j int) {
	t.Helper()
	pos, score := cache.Slots(j)
	require.Len(t, pos, len(want))
	for _, a := range want {
		i := slices.Index(pos, int32(a.pos))
		require.GreaterOrEqual(t, i, 0, "%s, %s: KV head %d holds %v, want %d too", path, c.name, j, pos, a.pos)
		if !(math.Abs(float64(score[i])-a.score) <= scoreBound*c.slack()*max(1, a.score)) {
			require.Failf(t, "scores differ", "%s, %s: KV head %d, position %d: %v, want %v", path, c.name, j, a.pos, score[i], a.score)
		}
	}
}

func compare(t *testing.T, c *testCase, i int, want []float64, got []float32) {
	t.Helper()
	for o := range want {
		if !(math.Abs(want[o]-float64(got[o])) <= 1e-4) {
			require.Failf(t, "outputs differ", "case %d, %s: output %d is %v, want %v", i, c.name, o, got[o], want[o])
		}
	}
}

// A choice that rounding could have made is followed, and no other.
func TestContractFollowsTies(t *testing.T) {
	c := testCase{layer: Layer{Heads: 1, HeadsKV: 1, KeySize: 1, ValueSize: 1, Policy: "h2o", Budget: 4, Heavy: 2, Pinned: 1}}
	for _, test := range []struct{ theirs, want []int }{
		{[]int{0, 2, 4, 5}, []int{0, 2, 4, 5}},
		{[]int{0, 1, 4, 5}, []int{0, 1, 4, 5}}, // tied
		{[]int{0, 3, 4, 5}, []int{0, 2, 4, 5}}, // worse
		{[]int{1, 2, 4, 5}, []int{0, 2, 4, 5}}, // without the pinned one
		{[]int{0, 1, 2, 5}, []int{0, 2, 4, 5}}, // without a recent one
	} {
		m := newContract(&c, [2]Mat{}, [3]Mat{}, nil)
		for pos, score := range []float64{1, 5, 5.00001, 4, 0, 0} {
			m.pairs[0] = append(m.pairs[0], pair{k: []float64{1}, v: []float64{1}, pos: pos, score: score})
		}
		var theirs []int32
		for _, p := range test.theirs {
			theirs = append(theirs, int32(p))
		}
		m.evict(0, theirs)
		var got []int
		for _, p := range m.pairs[0] {
			got = append(got, p.pos)
		}
		slices.Sort(got)
		require.Equal(t, test.want, got, "theirs are %v", test.theirs)
	}
}
