package kernels

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// A testCase is a layer and a run of micro-batches through it. Tests and benchmarks read the same table.
type testCase struct {
	name       string
	layer      Layer
	rank       int // 0: no kernels
	hidden     int
	kernelType Type
	scaled     bool // query heads have scales
	softCap    float32
	sinks      bool
	loud       float32 // scale of the logits' spread; 0: 1
	constant   float32 // added to the logits of even query heads, and twice taken from those of odd ones: a constant of all keys
	mute       bool    // queries of zero: every pair is worth the same, and scores tie
	tokens     []int   // T of each micro-batch
	fill       int     // the first of them only fill the cache: the reference, slow where they are long, does not run
}

func repeat(t, n int) []int {
	tokens := make([]int, n)
	for i := range tokens {
		tokens[i] = t
	}
	return tokens
}

// layer is one with a policy's own share of heavy hitters, in f16.
func layer(hq, hkv, d, dv, b int, policy string) Layer {
	h, err := PolicyHeavy(policy, b)
	if err != nil {
		panic(err)
	}
	return Layer{Heads: hq, HeadsKV: hkv, KeySize: d, ValueSize: dv, KeyType: F16, ValueType: F16,
		Policy: policy, Budget: b, Heavy: h, Pinned: min(1, h)}
}

// cases are the situations that must not be left to chance.
func cases() []testCase {
	list := []testCase{
		{name: "prompt", layer: layer(8, 2, 64, 64, 102, "h2o"), rank: 8, hidden: 16, tokens: []int{32, 32, 32, 32, 32, 7}},
		{name: "decoding", layer: layer(8, 2, 64, 64, 20, "h2o"), rank: 8, hidden: 16, tokens: repeat(1, 40)},
		{name: "prompt, then decoding", layer: layer(6, 2, 80, 80, 33, "peak"), rank: 8, hidden: 16, tokens: append([]int{70, 40}, repeat(1, 10)...)},
		{name: "nothing evicted", layer: layer(4, 2, 64, 64, 200, "h2o"), rank: 8, hidden: 16, tokens: []int{64, 64, 8, 1, 1}},
		{name: "T above B", layer: layer(4, 2, 16, 16, 5, "h2o"), rank: 4, hidden: 8, tokens: []int{60, 60, 3, 60}},
		{name: "one slot", layer: layer(4, 2, 16, 16, 1, "lambda"), rank: 4, hidden: 8, tokens: []int{5, 1, 1, 20, 9}},
		{name: "all recent", layer: Layer{Heads: 2, HeadsKV: 1, KeySize: 24, ValueSize: 24, KeyType: F32, ValueType: F32, Policy: "h2o", Budget: 10}, rank: 3, hidden: 5, tokens: []int{4, 4, 4, 30, 1, 1}},
		{name: "all heavy", layer: Layer{Heads: 2, HeadsKV: 1, KeySize: 24, ValueSize: 24, KeyType: F32, ValueType: F32, Policy: "peak", Budget: 10, Heavy: 10, Pinned: 10}, rank: 3, hidden: 5, tokens: []int{4, 4, 4, 30, 1, 1}},
		{name: "large heads", layer: layer(2, 1, 256, 256, 40, "h2o"), rank: 16, hidden: 40, tokens: []int{33, 33, 2}},
		{name: "odd sizes", layer: layer(3, 1, 37, 53, 21, "peak"), rank: 5, hidden: 7, tokens: []int{19, 17, 1, 2, 8}},
		{name: "soft cap and sinks", layer: layer(8, 1, 64, 128, 40, "h2o"), rank: 8, hidden: 16, softCap: 5, sinks: true, tokens: []int{50, 20, 1, 1}},
		{name: "sharp", layer: layer(4, 2, 64, 64, 40, "h2o"), rank: 8, hidden: 16, loud: 30, tokens: []int{50, 20, 1, 1}},
		{name: "ties", layer: layer(2, 1, 8, 8, 12, "peak"), rank: 4, hidden: 8, mute: true, tokens: append(repeat(200, 10), repeat(1, 20)...)}, // long enough for the first scores to fade
		{name: "scales", layer: layer(6, 3, 32, 32, 20, "peak"), rank: 8, hidden: 16, scaled: true, softCap: 8, sinks: true, tokens: []int{50, 20, 1, 1, 7}},
		{name: "logits above 88 and below -100", layer: layer(4, 2, 64, 64, 24, "h2o"), rank: 8, hidden: 16, scaled: true, constant: 96, tokens: []int{50, 20, 1, 1, 7}},
		{name: "several blocks of queries", layer: layer(4, 2, 64, 64, 102, "h2o"), rank: 8, hidden: 16, tokens: []int{390, 170, 300}},
		{name: "several blocks, large heads", layer: layer(2, 1, 80, 128, 40, "peak"), rank: 8, hidden: 16, softCap: 5, sinks: true, tokens: []int{390, 170}},
		{name: "so many slots that fewer blocks go together", layer: layer(2, 1, 16, 16, 30000, "h2o"), rank: 4, hidden: 8, tokens: []int{390, 170}},
		{name: "so many slots that one block goes alone", layer: layer(2, 1, 16, 16, 70000, "peak"), rank: 4, hidden: 8, tokens: []int{390, 170}},
		{name: "sparse only", layer: layer(4, 2, 64, 64, 40, "h2o"), tokens: []int{50, 20, 1, 1}},
	}
	for _, policy := range PolicyNames() {
		list = append(list,
			testCase{name: "decoding " + policy, layer: layer(4, 4, 32, 32, 9, policy), rank: 4, hidden: 8, tokens: repeat(1, 40)},
			testCase{name: "few and many tokens " + policy, layer: layer(6, 2, 32, 32, 24, policy), rank: 4, hidden: 8, tokens: []int{70, 3, 33, 7, 1, 20, 2}})
	}
	window := layer(4, 2, 64, 64, 1, "h2o")
	for _, n := range []int{1, 2, 17, 100} {
		window.Window = n
		list = append(list, testCase{name: fmt.Sprintf("window of %d", n), layer: window, tokens: []int{9, 40, 64, 1, 1, 3, 130, 390}})
	}
	q8 := layer(8, 2, 64, 96, 30, "h2o")
	q8.KeyType, q8.ValueType = Q80, Q80
	list = append(list, testCase{name: "q8_0", layer: q8, rank: 32, hidden: 32, kernelType: Q80, tokens: []int{40, 40, 1, 1}})
	q4 := q8
	q4.KeyType, q4.Policy = Q40, "peak"
	list = append(list, testCase{name: "q4_0 and q8_0", layer: q4, rank: 8, hidden: 16, tokens: []int{40, 40, 1, 1}})
	q4.Heads, q4.HeadsKV, q4.ValueType, q4.ValueSize = 3, 3, F16, 50 // one query a KV head
	list = append(list, testCase{name: "q4_0 and f16", layer: q4, rank: 8, hidden: 16, tokens: []int{40, 40, 1, 1}})
	q4.Heads, q4.HeadsKV, q4.ValueType, q4.ValueSize = 6, 2, Q40, 96
	list = append(list, testCase{name: "q4_0", layer: q4, rank: 8, hidden: 16, tokens: []int{40, 40, 1, 1, 3}})
	for _, typ := range []Type{F16, Q80, Q40} {
		rotated := layer(4, 2, 64, 64, 30, "peak")
		rotated.KeyType, rotated.ValueType, rotated.Rotation = typ, typ, 64
		list = append(list, testCase{name: fmt.Sprint("rotated ", typ), layer: rotated, rank: 4, hidden: 4, kernelType: F16, scaled: true, tokens: []int{40, 40, 1, 1, 3, 9}})
		rotated.KeySize, rotated.Rotation, rotated.Policy = 96, 32, "h2o"
		list = append(list, testCase{name: fmt.Sprint("rotated in blocks ", typ), layer: rotated, rank: 8, hidden: 16, tokens: []int{40, 40, 1, 1, 3}})
	}
	return list
}

// manySlots are few tokens over slots in several parts; among the budgets some that have more parts while the cache fills than
// when it is full.
func manySlots() (list []testCase) {
	for _, p := range []struct{ headsKV, budget, prompt int }{{3, 1600, 1450}, {1, 4097, 3800}, {2, 2100, 2000}} {
		l := layer(p.headsKV, p.headsKV, 32, 32, p.budget, "h2o")
		l.KeyType, l.ValueType = Q40, Q80
		list = append(list, testCase{name: fmt.Sprintf("many parts of %d heads", p.headsKV), layer: l, rank: 4, hidden: 8, tokens: append(repeat(50, p.prompt/50), 1, 1, 7), fill: p.prompt / 50})
	}
	parts := layer(4, 2, 32, 32, 300, "peak")
	list = append(list, testCase{name: "parts, evicting", layer: parts, rank: 4, hidden: 8, softCap: 8, sinks: true, tokens: []int{299, 1, 1, 1, 3, 7}, fill: 1})
	parts.Policy, parts.ValueType = "h2o", Q80
	list = append(list, testCase{name: "parts, evicting h2o", layer: parts, rank: 4, hidden: 8, tokens: []int{299, 1, 1, 1, 3, 7}, fill: 1})
	unequal := layer(6, 3, 32, 32, 1, "peak") // parts of heads with few slots, many and none
	unequal.Pinned, unequal.Budgets = 0, []Budget{{300, 75}, {1, 0}, {8, 2}}
	list = append(list, testCase{name: "unequal heads", layer: unequal, rank: 4, hidden: 8, softCap: 8, sinks: true, tokens: []int{299, 1, 3, 40, 1, 1, 7}, fill: 1})
	unequal.Policy, unequal.Budgets = "h2o", []Budget{{3, 1}, {130, 64}, {400, 200}}
	list = append(list, testCase{name: "unequal heads h2o", layer: unequal, rank: 4, hidden: 8, tokens: []int{399, 2, 1, 1, 7, 40}, fill: 1})
	wide := layer(1, 1, 8, 8, 23000, "lambda") // so many slots that of the blocks of a chunk not all go together
	list = append(list, testCase{name: "few blocks", layer: wide, rank: 4, hidden: 8, tokens: []int{512, 512, 7}})
	policies, tokens := PolicyNames(), []int{40, 1, 5, 3, 40}
	if testing.Short() { // also of TestOnArm64, whose emulator is slow
		policies, tokens = []string{"peak"}, tokens[:3]
	}
	for _, policy := range policies { // so many query heads that not every chunk has room for its scores
		many := layer(1000, 1, 8, 8, 2100, policy)
		list = append(list, testCase{name: "many query heads " + policy, layer: many, rank: 4, hidden: 8, tokens: tokens})
	}
	parts.Window = 400
	list = append(list, testCase{name: "parts of a window", layer: parts, softCap: 8, sinks: true, tokens: []int{350, 1, 3, 60, 1, 1}, fill: 1})
	return list
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// randomCase draws a shape that NewCache accepts.
func randomCase(rng *rand.Rand) testCase {
	c := testCase{name: "random", kernelType: pick(rng, F32, F16, Q80), loud: pick[float32](rng, 1, 1, 4)}
	l := &c.layer
	l.HeadsKV = 1 + rng.IntN(3)
	l.Heads = l.HeadsKV * (1 + rng.IntN(8))
	l.KeyType, l.ValueType = pick(rng, F32, F16, Q80, Q40), pick(rng, F32, F16, Q80, Q40)
	sizes := []int{8, 16, 20, 24, 33, 40, 64, 72, 80, 96, 100, 112, 128, 192, 256, 8 + rng.IntN(100)}
	l.KeySize, l.ValueSize = pick(rng, sizes...), pick(rng, sizes...)
	c.rank, c.hidden = 1+rng.IntN(20), 1+rng.IntN(40)
	if c.kernelType == Q80 {
		c.rank, c.hidden, l.KeySize = 32, 32*(1+rng.IntN(2)), pick(rng, 32, 64, 96, 128)
	}
	if l.KeyType == Q80 || l.KeyType == Q40 {
		l.KeySize = pick(rng, 32, 64, 96, 128)
	}
	if l.ValueType == Q80 || l.ValueType == Q40 {
		l.ValueSize = pick(rng, 32, 64, 96, 128)
	}
	if rng.IntN(4) == 0 {
		c.rank = 0
	}
	if rng.IntN(5) == 0 {
		l.Window, c.rank = 1+rng.IntN(60), 0
	}
	l.Policy = pick(rng, PolicyNames()...)
	l.Budget = 1 + rng.IntN(60)
	l.Heavy = rng.IntN(l.Budget + 1)
	l.Pinned = rng.IntN(min(l.Heavy, 5) + 1)
	if rng.IntN(2) == 0 {
		for range l.HeadsKV {
			b := max(1, l.Pinned) + rng.IntN(90)
			l.Budgets = append(l.Budgets, Budget{b, l.Pinned + rng.IntN(b-l.Pinned+1)})
		}
	}
	c.softCap = pick[float32](rng, 0, 0, 10)
	c.sinks = rng.IntN(4) == 0
	c.scaled = rng.IntN(3) == 0
	for n := 0; n < 100; {
		c.tokens = append(c.tokens, pick(rng, 1, 2, 7, 8, 9, 16, 1+rng.IntN(50)))
		n += 10 + c.tokens[len(c.tokens)-1]
	}
	if n := l.KeySize & -l.KeySize >> rng.IntN(3); n >= 16 && rng.IntN(3) > 0 {
		l.Rotation = n
	}
	return c
}

func normal(rng *rand.Rand, n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * scale)
	}
	return x
}

// mats draws kernels; the matrices keep the size of activations.
func (c *testCase) mats(rng *rand.Rand) (phi [2]Mat, psi [3]Mat) {
	l := &c.layer
	mat := func(heads, out, in int) Mat {
		return Mat{c.kernelType, c.kernelType.FromF32(normal(rng, heads*out*in, 1.5/math.Sqrt(float64(in))))}
	}
	phi = [2]Mat{mat(l.Heads, c.hidden, l.KeySize), mat(l.Heads, c.rank, c.hidden)}
	psi = [3]Mat{mat(l.HeadsKV, c.hidden, l.KeySize), mat(l.HeadsKV, c.rank, c.hidden), mat(l.HeadsKV, c.rank, c.rank)}
	return phi, psi
}

// scales draws what query heads add to the logit of the low-rank part, about as large as the others; nil where they have none.
func (c *testCase) scales(rng *rand.Rand) []float32 {
	if !c.scaled {
		return nil
	}
	x := normal(rng, c.layer.Heads, 2)
	for i := range x {
		x[i] += c.shift(i)
	}
	return x
}

// shift is what the keys' constant adds to the logits of a query head.
func (c *testCase) shift(head int) float32 {
	if head%2 == 1 {
		return -2 * c.constant
	}
	return c.constant
}

// kernels gives the case's layer its kernels, to be closed after the caches.
func (c *testCase) kernels(t testing.TB, rng *rand.Rand) {
	if c.rank == 0 {
		return
	}
	phi, psi := c.mats(rng)
	l := &c.layer
	k, err := NewKernels(Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}, phi, psi, c.scales(rng))
	require.NoError(t, err)
	t.Cleanup(k.Close)
	l.Kernels = k
}

func (c *testCase) cache(t testing.TB) *Cache {
	cache, err := NewCache(c.layer)
	require.NoError(t, err)
	t.Cleanup(cache.Close)
	return cache
}

// ubatch draws a micro-batch whose vectors lie in some order and with gaps that are no numbers.
func (c *testCase) ubatch(rng *rand.Rand, tokens, pos int) *Ubatch {
	l := &c.layer
	u := &Ubatch{Tokens: tokens, Pos: pos, Scale: float32(1 / math.Sqrt(float64(l.KeySize))), SoftCap: c.softCap}
	loud := max(c.loud, 1)
	if c.mute {
		loud = 0
	}
	q, k := normal(rng, tokens*l.Heads*l.KeySize, float64(loud)), normal(rng, tokens*l.HeadsKV*l.KeySize, 1)
	if c.constant != 0 {
		const constant = 100
		for i := range tokens * l.HeadsKV {
			k[i*l.KeySize] = constant
		}
		for i := range tokens * l.Heads {
			q[i*l.KeySize] = c.shift(i%l.Heads) / constant / u.Scale
		}
	}
	qb, qh, qt := scatter(rng, tokens, l.Heads, F32.FromF32(q), 4)
	u.Q, u.QHead, u.QToken = unsafe.Slice((*float32)(unsafe.Pointer(&qb[0])), len(qb)/4), qh, qt
	u.K, u.KHead, u.KToken = scatter(rng, tokens, l.HeadsKV, l.KeyType.FromF32(k), 1)
	u.V, u.VHead, u.VToken = scatter(rng, tokens, l.HeadsKV, l.ValueType.FromF32(normal(rng, tokens*l.HeadsKV*l.ValueSize, 1)), 1)
	if c.sinks {
		u.Sinks = normal(rng, l.Heads, 2)
		u.Sinks[rng.IntN(l.Heads)] = pick[float32](rng, -200, 0, 200) // beyond what exp can hold
	}
	u.Out = make([]float32, tokens*l.Heads*l.ValueSize)
	return u
}

// scatter lays out rows, [tokens][heads] without gaps, by token or by head, with gaps of a multiple of unit bytes.
func scatter(rng *rand.Rand, tokens, heads int, rows []byte, unit int) (b []byte, head, token int) {
	row := len(rows) / (tokens * heads)
	gap := func() int { return pick(rng, 0, unit*rng.IntN(9)) }
	if rng.IntN(2) == 0 {
		head = row + gap()
		token = heads*head + gap()
	} else {
		token = row + gap()
		head = tokens*token + gap()
	}
	b = bytes.Repeat([]byte{0xff}, (tokens-1)*token+(heads-1)*head+row)
	for i := range tokens * heads {
		copy(b[i/heads*token+i%heads*head:], rows[i*row:(i+1)*row])
	}
	return b, head, token
}

// A savedHead is one KV head of a saved state: the format of save.c, written down a second time.
type savedHead struct {
	n, last, evicted int
	folded           int64
	k, v             []byte
	pos              []int32
	score            []float32
	H, z             []float32
}

const (
	savedHeader = 8 + 16 + 10*4
	savedSum    = 8
)

func parse(t testing.TB, cache *Cache) []savedHead {
	return parseSave(t, cache, cache.Save())
}

// parseSave reads what a cache like this one saved.
func parseSave(t testing.TB, cache *Cache, saved []byte) []savedHead {
	l := cache.layer
	rank := 0
	if l.Kernels != nil && l.Window == 0 {
		rank = l.Kernels.shape.Rank
	}
	b := saved[savedHeader:]
	r := bytes.NewReader(b[:len(b)-savedSum])
	heads := make([]savedHead, l.HeadsKV)
	for i := range heads {
		h := &heads[i]
		var fixed struct {
			Slots, Heavy               int32
			N, Last, Evicted, Reserved int32
			Folded                     int64
		}
		require.NoError(t, binary.Read(r, binary.NativeEndian, &fixed))
		h.n, h.last, h.evicted, h.folded = int(fixed.N), int(fixed.Last), int(fixed.Evicted), fixed.Folded
		h.k = make([]byte, h.n*l.KeyType.RowSize(l.KeySize))
		h.v = make([]byte, h.n*l.ValueType.RowSize(l.ValueSize))
		h.pos, h.score = make([]int32, h.n), make([]float32, h.n)
		h.H, h.z = make([]float32, rank*l.ValueSize), make([]float32, rank)
		for _, to := range []any{h.k, h.v, h.pos, h.score, h.H, h.z} {
			require.NoError(t, binary.Read(r, binary.NativeEndian, to))
		}
	}
	require.Zero(t, r.Len())
	return heads
}
