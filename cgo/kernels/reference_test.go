package kernels

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/weights/gguf"
)

// reference is the layer in plain Go.
func (c *testCase) reference(phi [2]Mat, psi [3]Mat, scale []float32) reference.Layer {
	l := &c.layer
	r := reference.Layer{
		Heads: l.Heads, HeadsKV: l.HeadsKV, KeyLength: l.KeySize, ValueLength: l.ValueSize, Scale: 1 / math.Sqrt(float64(l.KeySize)), SoftCap: float64(c.softCap),
		KeyType: gguf.Type(l.KeyType), ValueType: gguf.Type(l.ValueType), Window: l.Window, Policy: l.plain(), Budget: l.Budget, Heavy: l.Heavy, Pinned: l.Pinned,
	}
	for _, b := range l.Budgets {
		r.Budgets = append(r.Budgets, reference.Budget{Slots: b.Slots, Heavy: b.Heavy})
	}
	if c.rank > 0 {
		r.Kernels = &reference.Kernels{Rank: c.rank, Hidden: c.hidden, Scale: scale}
		read := func(m Mat) []float32 { return m.Type.ToF32(m.Data, len(m.Data)*32/m.Type.RowSize(32)) }
		for i, m := range phi {
			r.Kernels.Phi[i] = read(m)
		}
		for i, m := range psi {
			r.Kernels.Psi[i] = read(m)
		}
	}
	return r
}

// TestReference runs random layers through the C side and package reference, which alone rotates and rounds: what it is given are vectors
// as a model computes them. Now and then one is not finite. What the two keep must be the same, but for ties, outputs agree to 1e-4, and the
// same fold fails.
func TestReference(t *testing.T) {
	n := 60
	if testing.Short() { // also of TestOnArm64, whose emulator is slow
		n = 20
	}
	rotated, failed := 0, 0
	for i := range n {
		rng := rand.New(rand.NewPCG(25, uint64(i)))
		c := randomCase(rng)
		if i%2 == 0 { // those that quantised slots are rotated in
			c.layer.KeySize, c.layer.ValueSize = pick(rng, 64, 128, 192), pick(rng, 64, 128, 192)
		}
		c.sinks = false
		phi, psi := c.mats(rng)
		scale := c.scales(rng)
		layer := c.reference(phi, psi, scale)
		key, value := layer.Rotations()
		l := &c.layer
		l.Rotation = key
		if key+value > 0 {
			rotated++
		}
		if c.rank > 0 {
			k, err := NewKernels(Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}, phi, psi, scale)
			require.NoError(t, err)
			t.Cleanup(k.Close)
			l.Kernels = k
		}
		t.Run(fmt.Sprintf("%d %v %v %s", i, l.KeyType, l.ValueType, l.Policy), func(t *testing.T) {
			goes, err := reference.NewCache(layer)
			require.NoError(t, err)
			cache := c.cache(t)
			pos, spoilt := 0, false
			for _, tokens := range c.tokens {
				q := normal(rng, tokens*l.Heads*l.KeySize, float64(c.loud))
				k, v := normal(rng, tokens*l.HeadsKV*l.KeySize, 1), normal(rng, tokens*l.HeadsKV*l.ValueSize, 1)
				if i%4 > 1 && pos > 20 {
					odd := pick(rng, k, v)
					spoilt = true
					odd[rng.IntN(len(odd))] = float32(pick(rng, math.NaN(), math.Inf(1), math.Inf(-1)))
				}
				u := &Ubatch{Tokens: tokens, Pos: pos, Q: reference.Hadamard(q, key), K: l.KeyType.FromF32(reference.Hadamard(k, key)),
					V: l.ValueType.FromF32(reference.Hadamard(v, value)), Scale: float32(layer.Scale), SoftCap: c.softCap, Out: make([]float32, tokens*l.Heads*l.ValueSize)}
				require.NoError(t, cache.Attend(u, 2))
				got := cache.Commit(u, 2)
				var kept [][]int32
				for j := range l.HeadsKV {
					slots, _ := cache.Slots(j)
					kept = append(kept, slots)
				}
				want, err := goes.Step(pos, q, k, v, kept)
				if errors.Is(got, ErrFinite) {
					require.ErrorIs(t, err, reference.ErrNotFinite)
					failed++
					return
				}
				require.NoError(t, got)
				require.NoError(t, err)
				for o, x := range reference.Hadamard(u.Out, value) {
					w, g := float64(want[o]), float64(x)
					if finite(g) && !(math.Abs(w-g) <= 1e-4) || !finite(g) && finite(w) && !spoilt { // who does not see what is not finite may find it, too
						require.Failf(t, "outputs differ", "position %d: output %d is %v, want %v", pos, o, g, w)
					}
				}
				pos += tokens
			}
		})
	}
	require.Greater(t, rotated, n/5)
	require.Positive(t, failed)
	t.Logf("%d of %d rotated, %d folds failed", rotated, n, failed)
}
