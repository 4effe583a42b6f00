package kernels

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
)

// run puts micro-batches through a cache from position pos on and returns the last output.
func (c *testCase) run(t testing.TB, cache *Cache, rng *rand.Rand, pos int, tokens ...int) []float32 {
	var out []float32
	for _, n := range tokens {
		u := c.ubatch(rng, n, pos)
		require.NoError(t, cache.Attend(u, 1))
		require.NoError(t, cache.Commit(u, 1))
		out, pos = u.Out, pos+n
	}
	return out
}

func sum(x []int) (n int) {
	for _, v := range x {
		n += v
	}
	return n
}

func TestNewCacheRefused(t *testing.T) {
	good := Layer{Heads: 4, HeadsKV: 2, KeySize: 32, ValueSize: 32, KeyType: F16, ValueType: F16, Policy: "h2o", Budget: 8, Heavy: 4, Pinned: 1}
	cache, err := NewCache(good)
	require.NoError(t, err)
	cache.Close()
	cache.Close()
	for name, spoil := range map[string]func(*Layer){
		"no heads":         func(l *Layer) { l.Heads = 0 },
		"no KV heads":      func(l *Layer) { l.HeadsKV = 0 },
		"heads":            func(l *Layer) { l.Heads = 5 },
		"key size":         func(l *Layer) { l.KeySize = -1 },
		"value size":       func(l *Layer) { l.ValueSize = 0 },
		"key type":         func(l *Layer) { l.KeyType = 99 },
		"value type":       func(l *Layer) { l.ValueType = -1 },
		"block":            func(l *Layer) { l.KeySize, l.KeyType = 40, Q80 },
		"block of keys":    func(l *Layer) { l.KeySize, l.KeyType = 48, Q40 },
		"block of values":  func(l *Layer) { l.ValueSize, l.ValueType = 48, Q40 },
		"policy":           func(l *Layer) { l.Policy = "oracle" },
		"no policy":        func(l *Layer) { l.Policy = "" },
		"budget":           func(l *Layer) { l.Budget = 0 },
		"heavy":            func(l *Layer) { l.Heavy = 9 },
		"negative heavy":   func(l *Layer) { l.Heavy = -1 },
		"pinned":           func(l *Layer) { l.Pinned = 5 },
		"negative pinned":  func(l *Layer) { l.Pinned = -1 },
		"negative window":  func(l *Layer) { l.Window = -1 },
		"rotation":         func(l *Layer) { l.KeySize, l.Rotation = 48, 24 },
		"large rotation":   func(l *Layer) { l.Rotation = 64 },
		"small rotation":   func(l *Layer) { l.Rotation = 8 },
		"negative":         func(l *Layer) { l.Rotation = -32 },
		"budgets":          func(l *Layer) { l.Budgets = []Budget{{8, 4}} },
		"a head's budget":  func(l *Layer) { l.Budgets = []Budget{{8, 4}, {0, 0}} },
		"a head's heavy":   func(l *Layer) { l.Budgets = []Budget{{8, 4}, {3, 4}} },
		"a head's pinned":  func(l *Layer) { l.Budgets = []Budget{{8, 0}, {8, 4}} },
		"heads and window": func(l *Layer) { l.Heads, l.Window = 3, 10 },
	} {
		l := good
		spoil(&l)
		_, err := NewCache(l)
		require.ErrorIs(t, err, ErrArgument, name)
	}
	huge := good
	huge.Heads, huge.HeadsKV, huge.Budget, huge.KeySize, huge.ValueSize = 1<<20, 1<<20, math.MaxInt32, 1<<30, 1<<30
	_, err = NewCache(huge)
	require.ErrorIs(t, err, ErrNoMemory)
}

func TestBytes(t *testing.T) {
	c := cases()[0] // 2 KV heads, 102 slots of 64 + 64 f16, rank 8
	c.kernels(t, rand.New(rand.NewPCG(13, 1)))
	slots, state, err := c.layer.Bytes()
	require.NoError(t, err)
	require.Equal(t, 2*102*(128+128+4+4), slots)
	require.Equal(t, 2*8*(64+1)*4, state)
	c.layer.Window = 33
	slots, state, err = c.layer.Bytes()
	require.NoError(t, err)
	require.Equal(t, []int{2 * 32 * (128 + 128 + 4 + 4), 0}, []int{slots, state})
}

// TestScratchIsBounded: what a budget of 131,072 tokens and 32 query heads take beyond the cache. Scores alone were 134 MB.
func TestScratchIsBounded(t *testing.T) {
	l := layer(32, 8, 128, 128, 131072, "h2o")
	for _, tokens := range []int{1, 7, 8, 512} {
		size, err := l.ScratchSize(tokens, 1)
		require.NoError(t, err)
		require.Less(t, size, 50<<20, "%d tokens", tokens)
	}
	// a float for each query head and pair is what it takes at least
	l = layer(1024, 8, 128, 128, 131072, "h2o")
	size, err := l.ScratchSize(512, 1)
	require.NoError(t, err)
	require.Less(t, size, 1024*(131072+512)*4+50<<20)
}

func TestPolicies(t *testing.T) {
	var names []string // of the files, in order: each registers its policy, and has a second one in plain Go
	files, err := filepath.Glob("policy_*.c")
	require.NoError(t, err)
	for _, file := range files {
		names = append(names, strings.TrimSuffix(strings.TrimPrefix(file, "policy_"), ".c"))
	}
	require.Contains(t, names, "h2o")
	require.Equal(t, names, PolicyNames())
	for _, p := range Policies() {
		require.NotEmpty(t, p.Help)
		require.Less(t, len(p.Name), 16, "%s: a saved cache has room for so many bytes", p.Name)
		plain := reference.PolicyOf(p.Name)
		require.NotNil(t, plain, p.Name)
		for budget := range 200 {
			h, err := PolicyHeavy(p.Name, budget)
			require.NoError(t, err)
			require.Equal(t, plain.Heavy(budget), h, "%s of %d", p.Name, budget)
		}
		h, err := PolicyHeavy(p.Name, -5)
		require.NoError(t, err)
		require.Zero(t, h)
	}
	_, err = PolicyHeavy("none", 10)
	require.ErrorContains(t, err, `policy "none": want one of `+strings.Join(names, ", "))
}

func TestStats(t *testing.T) {
	c := testCase{layer: Layer{Heads: 2, HeadsKV: 1, KeySize: 16, ValueSize: 16, Policy: "lambda", Budget: 10, Heavy: 2}}
	rng := rand.New(rand.NewPCG(14, 1))
	cache := c.cache(t)
	require.Equal(t, Stats{PosMin: -1, PosMax: -1}, cache.Stats())
	c.run(t, cache, rng, 5, 4)
	require.Equal(t, Stats{Seen: 4, Kept: 4, PosMin: 5, PosMax: 8}, cache.Stats())
	c.run(t, cache, rng, 9, 9)
	require.Equal(t, Stats{Seen: 13, Kept: 10, Folded: 3, PosMin: 10, PosMax: 17}, cache.Stats())
	cache.Clear()
	require.Equal(t, Stats{PosMin: -1, PosMax: -1}, cache.Stats())
}

// TestCut: what was cut is as if it had never been where nothing was evicted, and refused where it was folded.
// A micro-batch that was committed elsewhere is counted, and no slot is read for it, which has not been written.
func TestStatsOfWhatIsElsewhere(t *testing.T) {
	cache, err := NewCache(Layer{Heads: 4, HeadsKV: 2, KeySize: 32, ValueSize: 32, KeyType: F16, ValueType: F16, Policy: "h2o", Budget: 8, Heavy: 4, Pinned: 1})
	require.NoError(t, err)
	defer cache.Close()
	cache.count(100, 5)
	require.Equal(t, Stats{Seen: 5, Kept: 5, PosMin: 100, PosMax: 104}, cache.Stats())
	cache.count(105, 5)
	require.Equal(t, 10, cache.Stats().Seen)
}

func TestCut(t *testing.T) {
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(15, uint64(i)))
		c.kernels(t, rng)
		cache := c.cache(t)
		c.run(t, cache, rng, 0, c.tokens...)
		n := sum(c.tokens)
		require.NoError(t, cache.Cut(n), "the future")
		before, s := cache.Save(), cache.Stats()

		// What the window of the next token needs is more than what is not folded.
		first := s.PosMin
		if w := c.layer.Window; w > 0 && s.Folded > 0 {
			first += w - 1
		}
		for pos := range n {
			if s.Folded > 0 && pos < first {
				require.ErrorIs(t, cache.Cut(pos), ErrFolded, "%s at %d", c.name, pos)
				require.Equal(t, before, cache.Save())
				continue
			}
			require.NoError(t, cache.Cut(pos), "%s at %d", c.name, pos)
			kept := parse(t, cache)
			for j := range kept {
				var want []int32
				held := parseSave(t, cache, before)[j]
				for _, p := range held.pos {
					if int(p) < pos {
						want = append(want, p)
					}
				}
				got := slices.Clone(kept[j].pos)
				slices.Sort(want)
				slices.Sort(got)
				require.True(t, slices.Equal(want, got), "%s at %d", c.name, pos)
				for slot, p := range kept[j].pos { // each with what belongs to it
					was := slices.Index(held.pos, p)
					row := c.layer.KeyType.RowSize(c.layer.KeySize)
					require.Equal(t, held.score[was], kept[j].score[slot])
					require.Equal(t, held.k[was*row:][:row], kept[j].k[slot*row:][:row])
				}
			}
			after := cache.Stats()
			require.Equal(t, after.Seen, after.Kept+after.Folded)
			if after.Seen > 0 {
				require.Equal(t, pos-1, after.PosMax)
			} else {
				require.Equal(t, Stats{PosMin: -1, PosMax: -1}, after)
			}
			c.run(t, cache, rng, pos, 1, 20)
			require.NoError(t, cache.Load(before))
		}
	}
}

// TestCutAndGoOn: after a cut where nothing is folded the sequence continues as one that never saw the rest.
func TestCutAndGoOn(t *testing.T) {
	c := testCase{layer: Layer{Heads: 4, HeadsKV: 2, KeySize: 32, ValueSize: 32, KeyType: F16, ValueType: F16, Policy: "lambda", Budget: 60, Heavy: 4, Pinned: 1}, rank: 4, hidden: 8}
	c.kernels(t, rand.New(rand.NewPCG(16, 1)))
	for _, window := range []int{0, 41} {
		c.layer.Window = window
		cut, never := c.cache(t), c.cache(t)
		c.run(t, cut, rand.New(rand.NewPCG(16, 2)), 0, 20, 10)
		c.run(t, never, rand.New(rand.NewPCG(16, 2)), 0, 20)
		require.NoError(t, cut.Cut(20))
		require.Equal(t, never.Stats(), cut.Stats())
		a := c.run(t, cut, rand.New(rand.NewPCG(16, 3)), 20, 30, 30, 1)
		b := c.run(t, never, rand.New(rand.NewPCG(16, 3)), 20, 30, 30, 1)
		require.Equal(t, b, a)
	}
}

func TestCopy(t *testing.T) {
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(17, uint64(i)))
		c.kernels(t, rng)
		from, to := c.cache(t), c.cache(t)
		c.run(t, to, rng, 0, 30)
		c.run(t, from, rng, 0, c.tokens...)
		require.NoError(t, to.CopyFrom(from))
		require.NoError(t, to.CopyFrom(to))
		require.Equal(t, from.Save(), to.Save())
		n := sum(c.tokens)
		a := c.run(t, from, rand.New(rand.NewPCG(17, 99)), n, 5, 1)
		b := c.run(t, to, rand.New(rand.NewPCG(17, 99)), n, 5, 1)
		require.Equal(t, a, b)

		other := c
		other.layer.Pinned, other.layer.Heavy, other.layer.Budget, other.layer.Budgets, other.layer.Window = 0, 0, 7, nil, 0
		stranger := other.cache(t)
		require.ErrorIs(t, stranger.CopyFrom(from), ErrArgument)
		require.ErrorIs(t, stranger.Load(from.Save()), ErrFormat)
		require.Zero(t, stranger.Stats().Seen)

		other = c
		if other.layer.Rotation = 16; c.layer.Rotation == 16 {
			other.layer.Rotation = 0
		}
		if c.layer.KeySize%16 == 0 {
			require.ErrorIs(t, other.cache(t).CopyFrom(from), ErrArgument, "rotated otherwise")
		}
	}
}

// TestSave: a state is restored bit for bit, and nothing but a whole one is.
func TestSave(t *testing.T) {
	for i, c := range cases() {
		rng := rand.New(rand.NewPCG(18, uint64(i)))
		c.kernels(t, rng)
		from, to := c.cache(t), c.cache(t)
		require.NoError(t, to.Load(from.Save()), "an empty one")
		c.run(t, from, rng, 0, c.tokens...)
		c.run(t, to, rng, 0, 11)
		saved, mine := from.Save(), to.Save()

		step := max(1, len(saved)/199)
		for n := 0; n < len(saved); n += step {
			require.ErrorIs(t, to.Load(saved[:n]), ErrFormat, "%d of %d bytes", n, len(saved))
			spoiled := slices.Clone(saved)
			spoiled[n] ^= 1 << rng.IntN(8)
			require.ErrorIs(t, to.Load(spoiled), ErrFormat, "byte %d", n)
		}
		require.ErrorIs(t, to.Load(append(slices.Clone(saved), 0)), ErrFormat)
		require.ErrorIs(t, to.Load(nil), ErrFormat)
		require.Equal(t, mine, to.Save(), "a refused state changed the cache")

		require.NoError(t, to.Load(saved))
		require.Equal(t, saved, to.Save())
		n := sum(c.tokens)
		a := c.run(t, from, rand.New(rand.NewPCG(18, 99)), n, 5, 1)
		b := c.run(t, to, rand.New(rand.NewPCG(18, 99)), n, 5, 1)
		require.Equal(t, a, b)
	}
}

// resum gives spoiled bytes the right checksum: whoever writes a bad state on purpose can do so too.
func resum(b []byte) {
	body := b[:len(b)-savedSum]
	sum := uint64(0xcbf29ce484222325)
	for i := 0; i < len(body); i += 8 {
		var word [8]byte
		copy(word[:], body[i:])
		sum = (sum ^ binary.NativeEndian.Uint64(word[:])) * 0x100000001b3
		sum ^= sum >> 32
	}
	binary.NativeEndian.PutUint64(b[len(body):], sum)
}

// TestSaveForged: a bad head with a right checksum is refused too.
func TestSaveForged(t *testing.T) {
	c := cases()[0]
	cache := c.cache(t)
	c.run(t, cache, rand.New(rand.NewPCG(19, 1)), 0, c.tokens...)
	saved := cache.Save()
	same := slices.Clone(saved)
	resum(same)
	require.Equal(t, saved, same)

	const slots, heavy = savedHeader, savedHeader + 4
	const n, last, evicted, folded = savedHeader + 8, savedHeader + 12, savedHeader + 16, savedHeader + 24
	pos := savedHeader + 32 + 102*(128+128)
	for _, forged := range []struct {
		at    int
		value uint32
	}{{slots, 103}, {slots, 0}, {heavy, 50}, {n, 103}, {n, 0xffffffff}, {n, 0}, {n, 50}, {last, 1}, {evicted, 5000}, {evicted, 0xffffffff}, {evicted, 0x80000000},
		{folded, 0}, {folded + 4, 0x80000000}, {pos, 0xffffffff}, {pos, 5000}, {12, 1}} {
		b := slices.Clone(saved)
		binary.NativeEndian.PutUint32(b[forged.at:], forged.value)
		resum(b)
		require.ErrorIs(t, cache.Load(b), ErrFormat, forged)
	}
	require.Equal(t, saved, cache.Save())

	// no position is the largest number: the next one would have none
	for end, want := range map[uint32]error{math.MaxInt32: ErrFormat, math.MaxInt32 - 1: nil} {
		b := slices.Clone(saved)
		for at := last; at < len(b)-savedSum; at += (len(saved) - savedHeader - savedSum) / c.layer.HeadsKV {
			binary.NativeEndian.PutUint32(b[at:], end)
		}
		resum(b)
		require.ErrorIs(t, cache.Load(b), want, "%d", end)
	}
}

// FuzzLoad: any bytes are refused, or taken and used without harm.
func FuzzLoad(f *testing.F) {
	c := testCase{layer: Layer{Heads: 2, HeadsKV: 1, KeySize: 8, ValueSize: 8, Policy: "h2o", Budget: 4, Heavy: 2, Pinned: 1}, rank: 2, hidden: 3}
	c.kernels(f, rand.New(rand.NewPCG(20, 1)))
	cache := c.cache(f)
	f.Add(cache.Save())
	for range 3 {
		c.run(f, cache, rand.New(rand.NewPCG(20, 2)), cache.Stats().Seen, 3)
		f.Add(cache.Save())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= savedHeader+savedSum {
			resum(b)
		}
		before := cache.Save()
		if err := cache.Load(b); err != nil {
			require.ErrorIs(t, err, ErrFormat)
			require.Equal(t, before, cache.Save())
			return
		}
		require.Equal(t, b, cache.Save())
		rng, pos := rand.New(rand.NewPCG(20, 3)), 7
		for _, n := range []int{1, 9} {
			u := c.ubatch(rng, n, pos)
			require.NoError(t, cache.Attend(u, 1))
			if err := cache.Commit(u, 1); err != nil {
				require.ErrorIs(t, err, ErrFinite, "slots may hold what is not finite")
				cache.Clear()
				return
			}
			pos += n
		}
		_ = cache.Cut(5)
	})
}
