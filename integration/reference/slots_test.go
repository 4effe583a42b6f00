package reference

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

func TestRotations(t *testing.T) {
	for _, want := range []struct {
		key, value gguf.Type
		d, dv      int
		pk, pv     int
	}{
		{gguf.Q8_0, gguf.Q4_0, 64, 64, 64, 64},
		{gguf.Q4_0, gguf.Q8_0, 128, 256, 128, 64},
		{gguf.Q8_0, gguf.Q8_0, 192, 192, 64, 64},
		{gguf.Q8_0, gguf.F16, 320, 64, 64, 0},
		{gguf.F16, gguf.Q8_0, 64, 64, 0, 64},
		{gguf.Q8_0, gguf.Q8_0, 96, 32, 0, 0},
		{gguf.F32, gguf.F16, 64, 64, 0, 0},
	} {
		l := Layer{KeyType: want.key, ValueType: want.value, KeyLength: want.d, ValueLength: want.dv}
		pk, pv := l.Rotations()
		assert.Equal(t, []int{want.pk, want.pv}, []int{pk, pv}, want)
	}
}

func TestHadamard(t *testing.T) {
	assert.Equal(t, []float64{5, -1, -2, 0, 10, -2, -4, 0}, Hadamard([]float64{1, 2, 3, 4, 2, 4, 6, 8}, 4))
	x := random(rand.New(rand.NewPCG(4, 1)), 192)
	assert.Equal(t, x, Hadamard(x, 0))
	assert.InDeltaSlice(t, x, Hadamard(Hadamard(x, 64), 64), 1e-6)
}

// The published blocks, in numbers that f16 has.
func TestRounded(t *testing.T) {
	block := func(x ...float32) []float32 { return append(x, make([]float32, 32-len(x))...) }
	assert.Equal(t, []float64{127, -3, 2, 2, 0}, rounded(block(127, -3.4, 1.5, 2.5, .5), gguf.Q8_0)[:5])
	assert.Equal(t, []float64{-2, 1.75, .75, .25, .25, 0}, rounded(block(-2, 2, .625, .374, .126, -.125), gguf.Q4_0)[:6])
	assert.Equal(t, []float64{8, -7, 1}, rounded(block(8, -8, 1.4), gguf.Q4_0)[:3], "a negative scale")
	assert.Equal(t, []float64{1, 2049. - 1}, rounded([]float32{1 + 0x1p-12, 2048.5}, gguf.F16))
	for _, typ := range []gguf.Type{gguf.Q8_0, gguf.Q4_0} {
		assert.Equal(t, make([]float64, 64), rounded(make([]float32, 64), typ))
		x := random(rand.New(rand.NewPCG(4, 2)), 64)
		x[40] = float32(math.Inf(-1))
		y := rounded(x, typ)
		assert.True(t, allFinite(y[:32]))
		assert.False(t, slices.ContainsFunc(y[32:], func(a float64) bool { return !math.IsNaN(a) }), "%v", y[32:])
		x[40] = 1e38 // beyond the largest f16, as a scale
		assert.True(t, math.IsInf(rounded(x, typ)[40], 1))
	}
}

// Rounding what a slot holds changes nothing: so what another implementation's slots hold can be given to a Cache.
func TestSlotOfSlot(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 3))
	for _, typ := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0, gguf.Q4_0} {
		for _, n := range []int{0, 64, 128} {
			x := random(r, 256)
			y := slotOf(x, typ, n)
			again := make([]float32, len(y))
			for i, a := range y {
				again[i] = float32(a)
			}
			assert.InDeltaSlice(t, y, slotOf(again, typ, n), 1e-6, "%v, %d", typ, n)
		}
	}
}

// A pair that is not finite is an error where it is folded, not where it is a slot or dropped. Its weights count 0.
func TestNotFinite(t *testing.T) {
	for _, odd := range []float32{float32(math.NaN()), float32(math.Inf(1)), 3e38} {
		for _, key := range []bool{false, true} {
			l := plain()
			l.Budget, l.Heavy = 6, 3
			l.KeyType, l.ValueType = gguf.F16, gguf.F16
			s := newSequence(l, 20)
			if at := 9 * l.HeadsKV; key { // of the first KV head
				s.k[at*l.KeyLength] = odd
			} else {
				s.v[at*l.ValueLength] = odd
			}
			c, out := s.run(t, l, 1) // dropped
			assert.NotContains(t, c.Kept(0), int32(9))
			row := l.Heads * l.ValueLength
			for i, x := range out {
				sees := i/row >= 9 && i/row <= 12 && i%row < row/2 // its own query and three more, of the first KV head
				switch {
				case !sees || !key && i%l.ValueLength != 0:
					assert.True(t, finite(float64(x)), "output %d of token %d", i%row, i/row)
				case !key || odd != odd: // a logit of minus infinity is a weight of 0
					assert.False(t, finite(float64(x)), "output %d of token %d", i%row, i/row)
				}
			}

			random := func(n int) []float32 { return random(rand.New(rand.NewPCG(4, 4)), n) }
			l.Kernels = &Kernels{Rank: 2, Hidden: 3,
				Phi: [2][]float32{random(6 * 3 * 10), random(6 * 2 * 3)},
				Psi: [3][]float32{random(2 * 3 * 10), random(2 * 2 * 3), random(2 * 2 * 2)},
			}
			c, err := NewCache(l)
			require.NoError(t, err)
			pos := 0
			for ; err == nil && pos < 20; pos++ {
				_, err = c.Step(pos, s.q[pos*60:][:60], s.k[pos*20:][:20], s.v[pos*14:][:14], nil)
			}
			assert.ErrorIs(t, err, ErrNotFinite)
			assert.Equal(t, 12+1, pos, "the step in which it leaves the recent slots")
		}
	}
}
