package kernels

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Bounds of the fast path against the reference, which sums in double precision; the values are of size 1 and logits up to
// 16. Larger logits have an f32 rounding that is larger in proportion, and so do outputs and scores: see slack.
const (
	outBound   = 2e-5 // of an output, absolute
	scoreBound = 1e-5 // of a score, relative to 1 and to itself
	stateBound = 2e-5 // of H and z, relative to the largest element
)

// TestDifferential runs the fast path, of each level of instruction sets, against the reference, over the table and over random shapes.
func TestDifferential(t *testing.T) { eachLevel(t, testDifferential) }

func testDifferential(t *testing.T) {
	for i, c := range append(cases(), manySlots()...) {
		t.Run(c.name, func(t *testing.T) { differ(t, c, rand.New(rand.NewPCG(4, uint64(i)))) })
	}
	n := 150
	if testing.Short() {
		n = 30
	}
	for i := range n / len(levels()) {
		rng := rand.New(rand.NewPCG(5, uint64(i)))
		c := randomCase(rng)
		t.Run(fmt.Sprint("random ", i), func(t *testing.T) { differ(t, c, rng) })
	}
}

// slack is what the first two bounds are multiplied by: logits are four times loud, or less, beside the constant.
func (c *testCase) slack() float64 { return max(1, float64(c.loud)/4, float64(c.constant)/8) }

func differ(t *testing.T, c testCase, rng *rand.Rand) {
	c.kernels(t, rng)
	fast, one, ref := c.cache(t), c.cache(t), c.cache(t)
	pos := pick(rng, 0, 0, 1000)
	for i, tokens := range c.tokens {
		u := c.ubatch(rng, tokens, pos)
		if i < c.fill {
			require.NoError(t, fast.Attend(u, 1))
			require.NoError(t, fast.Commit(u, 1))
			require.NoError(t, one.CopyFrom(fast))
			pos += tokens
			continue
		}

		// the reference, from the same state
		require.NoError(t, ref.CopyFrom(fast))
		worth, err := ref.AttendRef(u)
		require.NoError(t, err)
		want := bytes.Clone(F32.FromF32(u.Out))
		require.NoError(t, ref.CommitRef(u, worth, nil))

		// one thread, then several, more than there is work for now and then
		guarded(t, &c, one, u, rng, 1, 1)
		alone := F32.FromF32(u.Out)
		clear(u.Out)
		planned := 1 + rng.IntN(6)
		guarded(t, &c, fast, u, rng, planned, pick(rng, planned, planned+3, 1, 1+rng.IntN(planned)))
		require.Equal(t, alone, F32.FromF32(u.Out), "bits differ by the number of threads")
		require.Equal(t, one.Save(), fast.Save(), "states differ by the number of threads")

		near(t, F32.ToF32(want, len(u.Out)), u.Out, func(float64) float64 { return outBound * c.slack() }, "output at position %d", pos)
		sameState(t, &c, parse(t, ref), parse(t, fast))
		pos += tokens

		// now and then a step back, after which the newest positions have gaps before them
		if back := rng.IntN(8); rng.IntN(2) == 0 && back < tokens && fast.Cut(pos-back) == nil {
			require.NoError(t, one.Cut(pos-back))
			pos -= back
		}
	}
}

// guarded runs one micro-batch in a scratch that begins anywhere and holds no numbers, with guards round scratch and output.
func guarded(t *testing.T, c *testCase, cache *Cache, u *Ubatch, rng *rand.Rand, planned, nth int) {
	const guard, untouched = 64, -12345
	size, err := c.layer.ScratchSize(u.Tokens, planned)
	require.NoError(t, err)
	big, err := c.layer.ScratchSize(u.Tokens+rng.IntN(20), planned+rng.IntN(3))
	require.NoError(t, err)
	require.GreaterOrEqual(t, big, size)

	at := guard + rng.IntN(64)
	scratch := bytes.Repeat([]byte{0xff}, at+size+guard)
	out := make([]float32, guard+len(u.Out)+guard)
	for i := range out {
		out[i] = untouched
	}
	mine := *u
	mine.Out = out[guard : guard+len(u.Out)]
	require.NoError(t, cache.AttendWith(&mine, scratch[at:at+size], planned, nth))
	require.NoError(t, cache.CommitWith(&mine, scratch[at:at+size], planned, nth))

	ff := bytes.Repeat([]byte{0xff}, at)
	require.Equal(t, ff, scratch[:at], "before the scratch")
	require.Equal(t, ff[:guard], scratch[at+size:], "behind the scratch")
	for i := range guard {
		if out[i] != untouched || out[len(out)-1-i] != untouched {
			require.Failf(t, "written beside the output", "%v before it, %v behind it", out[:guard], out[len(out)-guard:])
		}
	}
	copy(u.Out, mine.Out)
}

// near requires |got - want| <= bound(want) everywhere, which NaN is not.
func near(t *testing.T, want, got []float32, bound func(want float64) float64, format string, args ...any) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		w, g := float64(want[i]), float64(got[i])
		if far(w, g, bound(w)) {
			require.Failf(t, "too far apart", format+": element %d is %v, want %v within %v", append(args, i, g, w, bound(w))...)
		}
	}
}

func sameState(t *testing.T, c *testCase, want, got []savedHead) {
	for j := range want {
		w, g := &want[j], &got[j]
		require.Equal(t, []any{w.n, w.last, w.evicted, w.folded}, []any{g.n, g.last, g.evicted, g.folded})
		if !slices.Equal(w.pos, g.pos) {
			sameButForTies(t, c, j, w, g)
			continue // with other pairs in the slots and in the state; the next micro-batch begins with one of the two
		}
		require.True(t, bytes.Equal(w.k, g.k) && bytes.Equal(w.v, g.v), "slots of KV head %d", j)
		near(t, w.score, g.score, func(want float64) float64 { return scoreBound * c.slack() * max(1, want) }, "scores of KV head %d", j)
		for _, s := range [][2][]float32{{w.H, g.H}, {w.z, g.z}} {
			var top float64
			for _, x := range s[0] {
				top = max(top, math.Abs(float64(x)))
			}
			near(t, s[0], s[1], func(float64) float64 { return stateBound * top }, "state of KV head %d", j)
		}
	}
}

// sameButForTies requires that what only one of two has kept is tied with what only the other has, and was its score's to decide.
func sameButForTies(t *testing.T, c *testCase, j int, want, got *savedHead) {
	t.Helper()
	l := &c.layer
	only := func(a, b *savedHead) (scores []float64) {
		for i, p := range a.pos {
			if !slices.Contains(b.pos, p) {
				require.True(t, l.scored() && int(p) >= l.Pinned && int(p) <= want.last-(l.BudgetOf(j).Slots-l.BudgetOf(j).Heavy),
					"position %d is kept by one of two, and its score has no say: want %v, got %v", p, want.pos, got.pos)
				scores = append(scores, float64(a.score[i]))
			}
		}
		return scores
	}
	mine, theirs := only(want, got), only(got, want)
	require.NotEmpty(t, mine, "the same pairs in another order: want %v, got %v", want.pos, got.pos)
	for _, x := range mine {
		for _, y := range theirs {
			require.True(t, c.tied(x, y), "kept with scores of %g and %g: want %v, got %v", x, y, want.pos, got.pos)
		}
	}
	t.Logf("%d pairs were tied", len(mine))
}

// TestCachesTogether: caches whose threads run at the same time, each with a scratch of its own and no barrier between them, are what each
// is alone, bit for bit: so a graph may have a micro-batch of several sequences.
func TestCachesTogether(t *testing.T) {
	const threads, n = 3, 4
	for i, c := range append(cases(), manySlots()...) {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(23, uint64(i)))
			c.kernels(t, rng)
			together, alone := make([]*Cache, n), c.cache(t)
			fill := c.ubatch(rng, max(c.tokens[0], n), 0)
			for j := range together { // of different lengths
				together[j] = c.cache(t)
				u := *fill
				u.Tokens -= j
				require.NoError(t, together[j].Attend(&u, 1))
				require.NoError(t, together[j].Commit(&u, 1))
			}
			for step := range 3 {
				us, want := make([]*Ubatch, n), make([][]byte, n)
				states := make([][]byte, n)
				size, err := c.layer.ScratchSize(1, threads)
				require.NoError(t, err)
				scratch := make([][]byte, n)
				for j := range us {
					us[j], scratch[j] = c.ubatch(rng, 1, fill.Tokens-j+step), bytes.Repeat([]byte{0xff}, size)
					require.NoError(t, alone.CopyFrom(together[j]))
					require.NoError(t, alone.Attend(us[j], 1))
					want[j] = bytes.Clone(F32.FromF32(us[j].Out))
					require.NoError(t, alone.Commit(us[j], 1))
					states[j] = alone.Save()
					clear(us[j].Out)
				}
				for _, call := range []func(*Cache, *Ubatch, []byte, int, int) error{(*Cache).AttendWith, (*Cache).CommitWith} {
					var group sync.WaitGroup
					for j, cache := range together {
						group.Add(1)
						go func() {
							defer group.Done()
							assert.NoError(t, call(cache, us[j], scratch[j], threads, threads))
						}()
					}
					group.Wait()
				}
				for j, cache := range together {
					require.Equal(t, want[j], F32.FromF32(us[j].Out), "output of cache %d", j)
					require.Equal(t, states[j], cache.Save(), "cache %d", j)
				}
			}
		})
	}
}

// TestOddNumbers: NaN and infinite inputs give nonsense, not a crash, and a cleared cache is clean again.
func TestOddNumbers(t *testing.T) {
	odd := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 3e38, -3e38, 1e-45}
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(6, uint64(i)))
		c.kernels(t, rng)
		cache, clean := c.cache(t), c.cache(t)
		pos := 0
		for _, tokens := range c.tokens {
			u := c.ubatch(rng, tokens, pos)
			for range 3 {
				u.Q[rng.IntN(len(u.Q))] = pick(rng, odd...)
				for _, b := range [][]byte{u.K, u.V} {
					b[rng.IntN(len(b))] = 0x7f
					b[rng.IntN(len(b))] = 0xff
				}
			}
			require.NoError(t, cache.Attend(u, 2))
			if err := cache.Commit(u, 2); err != nil {
				require.ErrorIs(t, err, ErrFinite)
			}
			pos += tokens
			require.Equal(t, pos, cache.Stats().Seen)
			require.LessOrEqual(t, cache.Stats().Kept, cache.Width())
		}
		cache.Clear()
		require.Equal(t, clean.Save(), cache.Save())
	}
}

// TestNotFinite: a pair that is not finite is in the output of every query that sees it, and raises nothing while it is a slot or
// where it is dropped; folding it is an error, in the same micro-batch on both paths.
func TestNotFinite(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	type odd struct {
		key bool // else a value
		x   float32
	}
	overflowed := false
	odds := []odd{{true, nan}, {false, 3e38}, {true, inf}, {true, -inf}, {false, nan}, {false, inf}, {false, -inf}}
	if testing.Short() {
		odds = odds[:2]
	}
	for i, c := range cases() {
		for _, o := range odds {
			t.Run(fmt.Sprint(c.name, " key ", o.key, " ", o.x), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(16, uint64(i)))
				c.kernels(t, rng)
				fast, ref := c.cache(t), c.cache(t)
				odd := rng.IntN(sum(c.tokens)) // the token that is
				folded := false
				for pos, n := 0, 0; n < len(c.tokens) && !folded; pos, n = pos+c.tokens[n], n+1 {
					u := c.ubatch(rng, c.tokens[n], pos)
					if at := odd - pos; at >= 0 && at < u.Tokens {
						to, typ := u.V[at*u.VToken:], c.layer.ValueType
						if o.key {
							to, typ = u.K[at*u.KToken:], c.layer.KeyType
						}
						x := []float32{o.x}
						if typ == Q80 || typ == Q40 { // a whole block
							x = normal(rng, 32, 1)
							x[rng.IntN(32)] = o.x
						}
						copy(to, typ.FromF32(x))
					}
					require.NoError(t, ref.CopyFrom(fast))
					slots, _ := ref.Slots(0)
					held := slices.Contains(slots, int32(odd))
					worth, err := ref.AttendRef(u)
					require.NoError(t, err)
					want := slices.Clone(u.Out)
					threads := 1 + rng.IntN(3)
					require.NoError(t, fast.Attend(u, threads))
					row := c.layer.Heads * c.layer.ValueSize
					for j := range want {
						query, window := pos+j/row, c.layer.Window
						if there := held || odd >= pos && odd < pos+u.Tokens; there && (query < odd || window > 0 && query >= odd+window) {
							continue // a weight of zero, times what is not finite: NaN on the fast path, as in the full cache
						}
						w, g := float64(want[j]), float64(u.Out[j])
						if finite(w) != finite(g) || finite(w) && far(w, g, outBound*c.slack()*max(1, math.Abs(w))) {
							require.Failf(t, "too far apart", "output %d of the token at %d: %v, want %v", j%row, pos+j/row, g, w)
						}
					}
					wantErr, err := ref.CommitRef(u, worth, nil), fast.Commit(u, threads)
					require.Equal(t, wantErr != nil, err != nil, "%v, want %v", err, wantErr)
					require.Equal(t, ref.Stats(), fast.Stats())
					if err != nil {
						require.ErrorIs(t, err, ErrFinite)
						require.ErrorIs(t, wantErr, ErrFinite)
						require.ErrorIs(t, fast.Load(fast.Save()), ErrFormat, "a state of which nothing good comes")
						folded = true
						continue
					}
					sameState(t, &c, parse(t, ref), parse(t, fast))
				}
				gone := func(cache *Cache) bool {
					pos, _ := cache.Slots(0)
					return cache.Stats().Seen > odd && !slices.Contains(pos, int32(odd))
				}
				if o.x == 3e38 && c.layer.ValueType == F32 { // psi may be too small to make it infinite
					overflowed = overflowed || folded
					return
				}
				require.Equal(t, c.rank > 0 && gone(fast), folded)
			})
		}
	}
	require.True(t, overflowed, "finite pairs, and a sum that is not")
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// TestNotFiniteQuery: a query that is not finite spoils its own output and nothing else.
func TestNotFiniteQuery(t *testing.T) {
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(17, uint64(i)))
		c.kernels(t, rng)
		fast, ref := c.cache(t), c.cache(t)
		pos := 0
		for _, tokens := range c.tokens {
			u := c.ubatch(rng, tokens, pos)
			head, token := rng.IntN(c.layer.Heads), rng.IntN(tokens)
			u.Q[(head*u.QHead+token*u.QToken)/4] = float32(math.NaN())
			require.NoError(t, ref.CopyFrom(fast))
			worth, err := ref.AttendRef(u)
			require.NoError(t, err)
			want := slices.Clone(u.Out)
			require.NoError(t, fast.Attend(u, 2))
			for j := range want {
				spoilt := j/c.layer.ValueSize == token*c.layer.Heads+head
				if w, g := finite(float64(want[j])), finite(float64(u.Out[j])); w == spoilt || g == spoilt {
					require.Failf(t, "not what the query spoils", "output %d of the token at %d: %v and %v, spoilt %v", j, pos, want[j], u.Out[j], spoilt)
				}
			}
			require.NoError(t, ref.CommitRef(u, worth, nil))
			require.NoError(t, fast.Commit(u, 2))
			sameState(t, &c, parse(t, ref), parse(t, fast))
			pos += tokens
		}
	}
}

var folds = flag.Int("folds", 1_000_000, "of TestLongSums; without -short")

// TestLongSums: H and z are sums in single precision. How far they are off after many folds is in docs/algorithm.md ("Sums"); the
// reference, which has them in double precision, knows.
func TestLongSums(t *testing.T) {
	c := testCase{layer: layer(1, 1, 8, 8, 8, "lambda"), rank: 2, hidden: 4}
	c.layer.KeyType, c.layer.ValueType = F32, F32
	rng := rand.New(rand.NewPCG(18, 1))
	c.kernels(t, rng)
	fast, ref := c.cache(t), c.cache(t)
	sums := make([]float64, c.rank*(c.layer.ValueSize+1))

	// the same few tokens again and again, so that what they sum up to is known without summing
	const period, T = 64, 4
	pool := c.ubatch(rng, period, 0)
	pool.KToken, pool.VToken = 4*c.layer.KeySize, 4*c.layer.ValueSize
	pool.K, pool.V = F32.FromF32(normal(rng, period*c.layer.KeySize, 1)), F32.FromF32(normal(rng, period*c.layer.ValueSize, 1))
	psi, err := c.layer.Kernels.Psi(0, F32.ToF32(pool.K, period*c.layer.KeySize))
	require.NoError(t, err)

	// about twice what algorithm.md has as measured, and what it claims of a million
	bounds := map[int]float64{1000: 6e-7, 10_000: 3e-5, 100_000: 1.5e-4, 1_000_000: 1e-3, 10_000_000: 8e-2}
	n := *folds
	if testing.Short() {
		n = min(n, 100_000)
	}
	next := 1000
	worth := make([]float64, c.layer.Budget+T)
	scratch, err := c.layer.ScratchSize(T, 1)
	require.NoError(t, err)
	memory := make([]byte, scratch)
	for pos := 0; pos < n; pos += T {
		at := pos % period
		u := &Ubatch{Tokens: T, Pos: pos, Q: pool.Q, Scale: 1, Out: pool.Out,
			K: pool.K[at*pool.KToken:], KHead: pool.KToken, KToken: pool.KToken, V: pool.V[at*pool.VToken:], VHead: pool.VToken, VToken: pool.VToken}
		require.NoError(t, ref.CommitRef(u, worth, sums))
		require.NoError(t, fast.CommitWith(u, memory, 1, 1))
		if pos+T < next {
			continue
		}
		next *= 10
		want := make([]float64, c.rank)
		held, _ := fast.Slots(0)
		for p := range pos + T {
			if !slices.Contains(held, int32(p)) {
				for r := range want {
					want[r] += float64(psi[p%period*c.rank+r])
				}
			}
		}
		got, judge := parse(t, fast)[0], parse(t, ref)[0]
		for r := range want {
			exact := sums[r*(c.layer.ValueSize+1)+c.layer.ValueSize]
			require.InEpsilon(t, want[r], exact, 1e-6, "z of the reference")
			require.Equal(t, float32(exact), judge.z[r])
			require.InEpsilon(t, exact, float64(got.z[r]), bounds[pos+T], "z after %d folds", pos+T)
			t.Logf("%d folds: z[%d] is off by %.1e", pos+T, r, float64(got.z[r])/exact-1)
		}
	}
}

// TestMisplaced: positions that repeat or run backwards are the caller's mistake, and stay inside the memory.
func TestMisplaced(t *testing.T) {
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(7, uint64(i)))
		c.kernels(t, rng)
		cache, ref := c.cache(t), c.cache(t)
		for _, tokens := range append([]int{50}, c.tokens...) {
			u := c.ubatch(rng, tokens, rng.IntN(4))
			require.NoError(t, ref.CopyFrom(cache))
			require.NoError(t, cache.Attend(u, 1))
			require.NoError(t, cache.Commit(u, 1))
			worth, err := ref.AttendRef(u)
			require.NoError(t, err)
			require.NoError(t, ref.CommitRef(u, worth, nil))
			require.LessOrEqual(t, cache.Stats().Kept, cache.Width())
			require.Equal(t, ref.Stats().Kept, cache.Stats().Kept)
		}
	}
}

func TestUbatchRefused(t *testing.T) {
	c := cases()[0]
	cache := c.cache(t)
	rng := rand.New(rand.NewPCG(8, 1))
	for name, spoil := range map[string]func(*Ubatch){
		"tokens":   func(u *Ubatch) { u.Tokens = 0 },
		"position": func(u *Ubatch) { u.Pos = -1 },
		"the last": func(u *Ubatch) { u.Pos = 1<<31 - 1 },
		"q":        func(u *Ubatch) { u.Q = u.Q[:len(u.Q)-1] },
		"k":        func(u *Ubatch) { u.K = u.K[:len(u.K)-1] },
		"v":        func(u *Ubatch) { u.V = nil },
		"out":      func(u *Ubatch) { u.Out = u.Out[1:] },
		"stride":   func(u *Ubatch) { u.QHead = -4 },
		"sinks":    func(u *Ubatch) { u.Sinks = []float32{1} },
	} {
		u := c.ubatch(rng, 4, 0)
		spoil(u)
		require.ErrorIs(t, cache.Attend(u, 1), ErrArgument, name)
		_, err := cache.AttendRef(u)
		require.ErrorIs(t, err, ErrArgument, name)
	}
	u := c.ubatch(rng, 4, 0)
	require.ErrorIs(t, cache.AttendWith(u, make([]byte, 10), 1, 1), ErrArgument)
	require.ErrorIs(t, cache.Attend(u, 0), ErrArgument)
	require.ErrorIs(t, cache.CommitRef(u, nil, nil), ErrArgument)
	require.Zero(t, cache.Stats().Seen)
}
