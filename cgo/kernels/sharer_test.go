package kernels

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// A sharing is a case whose cache other layers share: the layer itself, first, and its sharers, each with other query heads, or fewer.
type sharing struct {
	testCase
	layers []Layer
	phi    []asking // of each layer
	psi    [3][]float64
}

// newSharing gives a case one to three sharers. Of all layers some have phi; the first has psi if one has, and only then.
func newSharing(t *testing.T, c testCase, rng *rand.Rand) *sharing {
	s := &sharing{testCase: c}
	s.rank = 0
	var phi [][2]Mat
	var psi [3]Mat
	var scales [][]float32
	read := func(m Mat, n int) []float64 { return wide(m.Type.ToF32(m.Data, n)) }
	for i := range 2 + rng.IntN(3) {
		one := c
		l := &one.layer
		if i > 0 {
			l.Heads = l.HeadsKV * pick(rng, 1, 2, 3, l.Heads/l.HeadsKV)
		}
		s.layers = append(s.layers, *l)
		of, its := one.mats(rng)
		if i == 0 {
			psi = its
		}
		if c.rank == 0 || rng.IntN(3) == 0 {
			phi, s.phi, scales = append(phi, [2]Mat{}), append(s.phi, asking{}), append(scales, nil)
			continue
		}
		s.rank = c.rank
		phi = append(phi, of)
		ask := asking{w: [2][]float64{read(of[0], l.Heads*c.hidden*l.KeySize), read(of[1], l.Heads*c.rank*c.hidden)}}
		scale := one.scales(rng)
		if scale != nil {
			ask.scale = wide(scale)
		}
		s.phi, scales = append(s.phi, ask), append(scales, scale)
	}
	if s.rank > 0 {
		kv := c.layer.HeadsKV
		s.psi = [3][]float64{read(psi[0], kv*c.hidden*c.layer.KeySize), read(psi[1], kv*c.rank*c.hidden), read(psi[2], kv*c.rank*c.rank)}
	}
	for i := range s.layers {
		if s.rank == 0 || i > 0 && phi[i][0].Data == nil {
			continue
		}
		l := &s.layers[i]
		k, err := NewKernels(Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}, phi[i], psi, scales[i])
		require.NoError(t, err)
		psi = [3]Mat{} // the first one's alone
		t.Cleanup(k.Close)
		l.Kernels = k
	}
	s.layer = s.layers[0]
	return s
}

// ubatches draws a micro-batch's queries for each of the layers, beside one set of keys and values.
func (s *sharing) ubatches(rng *rand.Rand, tokens, pos int) []*Ubatch {
	var all []*Ubatch
	for i := range s.layers {
		one := s.testCase
		one.layer = s.layers[i]
		u := one.ubatch(rng, tokens, pos)
		if i > 0 {
			u.K, u.KHead, u.KToken, u.V, u.VHead, u.VToken = all[0].K, all[0].KHead, all[0].KToken, all[0].V, all[0].VHead, all[0].VToken
			u.Layer = &s.layers[i]
		}
		all = append(all, u)
	}
	return all
}

// run lets all layers attend and then commits. Between them the scratch serves others: it comes to each attend as garbage.
func (s *sharing) run(t *testing.T, cache *Cache, us []*Ubatch, rng *rand.Rand, planned, nth int) {
	var scratch []byte
	worth := make([]float32, s.layer.WorthSize(us[0].Tokens+rng.IntN(9)))
	for i := range worth {
		worth[i] = 1e30
	}
	for _, u := range us {
		size, err := cache.asking(u).ScratchSize(u.Tokens, planned)
		require.NoError(t, err)
		scratch = make([]byte, size)
		for i := range scratch {
			scratch[i] = 0xff
		}
		u.Worth = worth
		if len(worth) == 0 {
			u.Worth = nil
		}
		require.NoError(t, cache.AttendWith(u, scratch, planned, nth))
		require.NoError(t, cache.GatherWith(u, scratch, planned, nth))
	}
	size, err := s.layer.ScratchSize(us[0].Tokens, planned)
	require.NoError(t, err)
	require.NoError(t, cache.CommitWith(us[0], make([]byte, size), planned, nth))
}

// TestSharers: a cache that other layers share, by the fast path, in plain loops and in the Go of the contract, each with its own
// state: outputs of all layers, what is kept, and the scores, to which all of them add.
func TestSharers(t *testing.T) {
	n, list := 60, cases()
	if testing.Short() { // also of TestOnArm64, whose emulator is slow
		n = 4
		for i := range len(list) / 3 {
			list[i] = list[3*i]
		}
		list = list[:len(list)/3]
	}
	for i := range n {
		list = append(list, randomCase(rand.New(rand.NewPCG(19, uint64(i)))))
	}
	for i, c := range list {
		t.Run(fmt.Sprint(i, " ", c.name), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(20, uint64(i)))
			s := newSharing(t, c, rng)
			fast, one, ref := s.cache(t), s.cache(t), s.cache(t)
			goes := newContract(&s.testCase, [2]Mat{}, [3]Mat{}, nil)
			goes.psi = s.psi
			pos := 0
			for _, tokens := range s.tokens {
				us := s.ubatches(rng, tokens, pos)
				b := goes.take(us[0])
				var want [][]float64
				for i, u := range us {
					want = append(want, goes.ask(u, s.layers[i].Heads, s.phi[i], b))
				}
				goes.score(us[0], b)

				require.NoError(t, ref.CopyFrom(fast))
				worth, err := ref.AttendRef(us[0])
				require.NoError(t, err)
				for _, u := range us[1:] {
					require.NoError(t, ref.ShareRef(u, worth))
				}
				require.NoError(t, ref.CommitRef(us[0], worth, nil))
				var plain [][]float32
				for i, u := range us {
					compare(t, &s.testCase, i, want[i], u.Out)
					plain = append(plain, append([]float32(nil), u.Out...))
				}

				s.run(t, one, us, rng, 1, 1)
				planned := 1 + rng.IntN(6)
				s.run(t, fast, us, rng, planned, pick(rng, planned, planned+3, 1, 1+rng.IntN(planned)))
				require.Equal(t, one.Save(), fast.Save(), "states differ by the number of threads")
				for i, u := range us {
					near(t, plain[i], u.Out, func(float64) float64 { return outBound * s.slack() }, "layer %d at position %d", i, pos)
				}
				sameState(t, &s.testCase, parse(t, ref), parse(t, fast))
				for j := range goes.pairs {
					kept, _ := fast.Slots(j)
					goes.evict(j, kept)
					sameSlots(t, "fast", &s.testCase, goes.pairs[j], fast, j)
				}
				pos += tokens
			}
		})
	}
}

func TestSharersRefused(t *testing.T) {
	c := cases()[0]
	rng := rand.New(rand.NewPCG(21, 1))
	c.kernels(t, rng)
	cache := c.cache(t)
	for name, change := range map[string]func(*Layer){
		"heads":  func(l *Layer) { l.Heads = 7 },
		"none":   func(l *Layer) { l.Heads = 0 },
		"budget": func(l *Layer) { l.Budget++ },
		"key":    func(l *Layer) { l.KeySize = 32; l.Kernels = nil },
		"rank": func(l *Layer) {
			other := c
			other.rank++
			other.layer.Kernels = nil
			other.kernels(t, rng)
			l.Kernels = other.layer.Kernels
		},
	} {
		u := c.ubatch(rng, 4, 0)
		l := c.layer
		change(&l)
		u.Layer = &l
		require.ErrorIs(t, cache.Attend(u, 1), ErrArgument, name)
	}
	u := c.ubatch(rng, 4, 0)
	require.NoError(t, cache.Attend(u, 1))
	require.ErrorIs(t, cache.GatherWith(u, cache.scratch, 1, 1), ErrArgument, "no room")
	u.Worth = make([]float32, 1)
	require.ErrorIs(t, cache.GatherWith(u, cache.scratch, 1, 1), ErrArgument, "too little room")
}
