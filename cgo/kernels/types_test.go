package kernels

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"
)

func TestF16ToF32(t *testing.T) {
	all := make([]byte, 2<<16)
	for i := range 1 << 16 {
		binary.NativeEndian.PutUint16(all[2*i:], uint16(i))
	}
	for _, shift := range []int{0, 1} { // in vectors, and the rest that fills none
		for i, x := range F16.ToF32(all[2*shift:], 1<<16-shift) {
			h := float16.Frombits(uint16(i + shift))
			sameFloat(t, h.Float32(), x, i+shift)
		}
	}
	for i := range 1 << 16 {
		sameFloat(t, float16.Frombits(uint16(i)).Float32(), F16.ToF32(all[2*i:], 1)[0], i)
	}
}

// sameFloat wants the same bits, or two NaN. For each of a million numbers require.Equal takes too long, above all in an emulator.
func sameFloat(t *testing.T, want, got float32, bits int) {
	if math.Float32bits(want) != math.Float32bits(got) && !(math.IsNaN(float64(want)) && math.IsNaN(float64(got))) {
		require.Failf(t, "not the same", "%#x is %v, want %v", bits, got, want)
	}
}

func TestF16FromF32(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	var x []float32
	for i := range 1 << 16 { // every number, the middle to the next one, and that middle's neighbours
		bits := math.Float32bits(float16.Frombits(uint16(i)).Float32())
		x = append(x, math.Float32frombits(bits), math.Float32frombits(bits+1<<12),
			math.Float32frombits(bits+1<<12-1), math.Float32frombits(bits+1<<12+1))
	}
	for range 1 << 16 {
		x = append(x, math.Float32frombits(rng.Uint32()), float32(rng.NormFloat64()*1e-6))
	}
	b := F16.FromF32(x)
	for i := range x {
		got, want := float16.Frombits(binary.NativeEndian.Uint16(b[2*i:])), float16.Fromfloat32(x[i])
		sameFloat(t, want.Float32(), got.Float32(), int(math.Float32bits(x[i])))
	}
}

func TestQ80(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	x := make([]float32, 32*100)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * math.Exp(float64(i/32%20-10)))
	}
	y := Q80.ToF32(Q80.FromF32(x), len(x))
	for i := range x {
		var top float64
		for _, v := range x[i/32*32 : i/32*32+32] {
			top = max(top, math.Abs(float64(v)))
		}
		// half a step, and the rounding of the step to f16, which is coarser where that is subnormal
		bound := top/127/2*1.001 + top*0x1p-11 + 127*0x1p-25
		require.LessOrEqual(t, math.Abs(float64(x[i]-y[i])), bound, "element %d", i)
	}
	again := Q80.ToF32(Q80.FromF32(make([]float32, 32)), 32)
	require.Equal(t, make([]float32, 32), again)
}

// TestQ40 holds the C side to the format, read in plain Go.
func TestQ40(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 3))
	const blocks = 200
	x := make([]float32, 32*blocks)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * math.Exp(float64(i/32%20-10)))
	}
	b := Q40.FromF32(x)
	require.Len(t, b, 18*blocks)
	y := Q40.ToF32(b, len(x))
	for n := range blocks {
		block, in := b[18*n:][:18], x[32*n:][:32]
		var top float32
		for _, v := range in {
			if math.Abs(float64(v)) > math.Abs(float64(top)) {
				top = v
			}
		}
		d := top / -8
		require.Equal(t, float16.Fromfloat32(d).Bits(), binary.NativeEndian.Uint16(block), "scale of block %d", n)
		scale := float16.Frombits(binary.NativeEndian.Uint16(block)).Float32()
		for i, v := range in {
			q := int(block[2+i%16]) >> (i / 16 * 4) & 15
			require.Equal(t, min(15, int(float32(v*(1/d))+8.5)), q, "element %d of block %d", i, n)
			require.Equal(t, float32(q-8)*scale, y[32*n+i], "element %d of block %d", i, n)
			// a step where it clamps, half a step elsewhere, and the rounding of the scale
			step := math.Abs(float64(d))
			bound := step/2*1.001 + 8*(step*0x1p-11+0x1p-25)
			if q == 15 {
				bound += step / 2
			}
			require.LessOrEqual(t, math.Abs(float64(v-y[32*n+i])), bound, "element %d of block %d", i, n)
		}
	}

	both := append([]float32{-2, 2}, make([]float32, 30)...) // the first of equal magnitude is exact, its opposite clamped
	require.Equal(t, []float32{-2, 1.75, 0}, Q40.ToF32(Q40.FromF32(both), 32)[:3])
	for _, v := range Q40.ToF32(Q40.FromF32(make([]float32, 32)), 32) {
		require.Zero(t, v)
	}
}

// TestNotFiniteBlocks: a block with a number that is not finite, or too large for the scale, has none that is finite, wherever it is; the
// blocks beside it are as without.
func TestNotFiniteBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 4))
	plain := normal(rng, 96, 1)
	for _, typ := range []Type{Q80, Q40} {
		want := typ.ToF32(typ.FromF32(plain), 96)
		check := func(x []float32) {
			t.Helper()
			got := typ.ToF32(typ.FromF32(x), 96)
			for i, y := range got {
				if i/32 != 1 {
					require.Equal(t, want[i], y)
				} else {
					require.False(t, finite(float64(y)), "%v, element %d is %v", typ, i-32, y)
				}
			}
		}
		for _, odd := range []float32{float32(math.NaN()), -float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 1e38, -1e38} {
			for at := range 32 {
				x := slices.Clone(plain)
				x[32+at] = odd
				check(x)
			}
			check(slices.Concat(plain[:32], slices.Repeat([]float32{odd}, 32), plain[64:]))
		}
	}
}

func TestRowSize(t *testing.T) {
	require.Equal(t, []int{20, 10, 0, 34, 0, 36, 0, 0, 0}, []int{
		F32.RowSize(5), F16.RowSize(5), Q80.RowSize(5), Q80.RowSize(32), Q40.RowSize(48), Q40.RowSize(64), F32.RowSize(0), F16.RowSize(-1), Type(7).RowSize(32)})
	require.Panics(t, func() { Q80.FromF32(make([]float32, 31)) })
	require.Panics(t, func() { F32.ToF32(make([]byte, 3), 1) })
}
