package kernels

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// worst returns the largest error of f against exact over x, as error(got, want).
func worst(f func(x, y []float32), exact func(float64) float64, x []float32, err func(got, want float64) float64) (float64, float32) {
	y := make([]float32, len(x))
	f(x, y)
	var top float64
	var at float32
	for i := range x {
		if e := err(float64(y[i]), exact(float64(x[i]))); !(e <= top) {
			top, at = e, x[i]
		}
	}
	return top, at
}

func relative(got, want float64) float64 { return math.Abs(got/want - 1) }
func absolute(got, want float64) float64 { return math.Abs(got - want) }

func grid(from, to float64) []float32 {
	x := make([]float32, 1<<18)
	for i := range x {
		x[i] = float32(from + (to-from)*float64(i)/float64(len(x)-1))
	}
	return x
}

func gelu(x float64) float64 { return x / 2 * math.Erfc(-x/math.Sqrt2) }

func TestExp(t *testing.T) {
	e, at := worst(exp32, math.Exp, grid(-87, 88), relative)
	require.LessOrEqual(t, e, 3e-7, "at %v", at)

	inf := float32(math.Inf(1))
	nan := float32(math.NaN())
	x := []float32{-inf, -1e30, -88, inf, 1e30, 0, nan, -nan, 89, 1, float32(math.Copysign(0, -1)), 1e-30, -1e-30, 2, 3, 4}
	y := make([]float32, len(x))
	exp32(x, y)
	require.Equal(t, []float32{0, 0, 0, inf, inf, 1}, y[:6])
	require.True(t, math.IsNaN(float64(y[6])) && math.IsNaN(float64(y[7])))
	require.Equal(t, []float32{1, 1, 1}, y[10:13])
}

func TestTanh(t *testing.T) {
	e, at := worst(tanh32, math.Tanh, grid(-100, 100), absolute)
	require.LessOrEqual(t, e, 2e-7, "at %v", at)
	e, at = worst(tanh32, math.Tanh, grid(-1, 1), absolute)
	require.LessOrEqual(t, e, 2e-7, "at %v", at)
}

func TestGelu(t *testing.T) {
	e, at := worst(gelu32, gelu, grid(1e-3, 20), relative)
	require.LessOrEqual(t, e, 6e-7, "at %v", at)
	e, at = worst(gelu32, gelu, grid(-1, -1e-3), relative)
	require.LessOrEqual(t, e, 6e-7, "at %v", at)
	e, at = worst(gelu32, gelu, grid(-12, -1), relative)
	require.LessOrEqual(t, e, 2e-5, "at %v", at)
	e, at = worst(gelu32, gelu, grid(-100, 0), absolute)
	require.LessOrEqual(t, e, 2e-7, "at %v", at)
}

func TestSelect(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		key := make([]uint64, 1+rng.IntN(300))
		for i := range key {
			key[i] = rng.Uint64() >> rng.IntN(64) // many repeat
			if rng.IntN(8) == 0 {
				key[i] = math.MaxUint64
			}
		}
		sorted := slices.Sorted(slices.Values(key))
		for _, k := range []int{1, 2, len(key), 1 + rng.IntN(len(key))} {
			if k <= len(key) {
				require.Equal(t, sorted[k-1], selectKey(key, k))
			}
		}
		sortKeys(key)
		require.Equal(t, sorted, key)
	}
}

// far reports whether a result is too far from what it should be, or NaN.
func far(want, got, delta float64) bool { return !(math.Abs(got-want) <= delta) }

// TestProducts: rows of every type times 1 to 9 queries, rows and elements in any number, against sums in double precision.
func TestProducts(t *testing.T) { eachLevel(t, testProducts) }

func testProducts(t *testing.T) {
	for i := range 300 {
		rng := rand.New(rand.NewPCG(24, uint64(i)))
		kind, nq, count := []Type{F32, F16, Q80, Q40}[i%4], 1+rng.IntN(9), 1+rng.IntN(70)
		n := 1 + rng.IntN(150)
		if kind == Q80 || kind == Q40 {
			n = 32 * (1 + n/32)
		}
		data := kind.FromF32(normal(rng, count*n, 1))
		a := kind.ToF32(data, count*n)

		x, got := normal(rng, nq*n, 1), normal(rng, nq*count, 1)
		rowsFew(kind, data, n, x, nq, got)
		for q := range nq {
			for r := range count {
				want, size := 0.0, 0.0
				for c := range n {
					term := float64(a[r*n+c]) * float64(x[q*n+c])
					want, size = want+term, size+math.Abs(term)
				}
				if far(want, float64(got[q*count+r]), 1e-6*size) {
					require.Failf(t, "too far apart", "%v [%d][%d] times query %d of %d, row %d: %v, want %v", kind, count, n, q, nq, r, got[q*count+r], want)
				}
			}
		}

		p, sum := normal(rng, nq*count, 1), normal(rng, nq*n, 1)
		got = slices.Clone(sum)
		colsFew(kind, data, n, p, nq, got)
		for q := range nq {
			for c := range n {
				want, size := float64(sum[q*n+c]), math.Abs(float64(sum[q*n+c]))
				for r := range count {
					term := float64(p[q*count+r]) * float64(a[r*n+c])
					want, size = want+term, size+math.Abs(term)
				}
				if far(want, float64(got[q*n+c]), 1e-6*size) {
					require.Failf(t, "too far apart", "weights %d of %d times %v [%d][%d], column %d: %v, want %v", q, nq, kind, count, n, c, got[q*n+c], want)
				}
			}
		}
	}
}

// TestGemm: products of training, rows, columns and sums of any length, against sums in double precision.
func TestGemm(t *testing.T) { eachLevel(t, testGemm) }

func testGemm(t *testing.T) {
	n := 200
	if testing.Short() { // what judges is Go, which the sanitizers make slow
		n = 50
	}
	for i := range n {
		rng := rand.New(rand.NewPCG(25, uint64(i)))
		m, n, k := 1+rng.IntN(40), 1+rng.IntN(70), 1+rng.IntN(50)
		a, b, before := normal(rng, m*k, 1), normal(rng, k*n, 1), normal(rng, m*n, 1)
		check := func(got []float32, add bool, at func(i, p int) float32, bt func(p, j int) float32) {
			t.Helper()
			for i := range m {
				for j := range n {
					want, size := 0.0, 0.0
					if add {
						want = float64(before[i*n+j])
						size = math.Abs(want)
					}
					for p := range k {
						term := float64(at(i, p)) * float64(bt(p, j))
						want, size = want+term, size+math.Abs(term)
					}
					if far(want, float64(got[i*n+j]), 1e-6*size) {
						require.Failf(t, "too far apart", "[%d][%d] times [%d][%d], row %d, column %d: %v, want %v", m, k, k, n, i, j, got[i*n+j], want)
					}
				}
			}
		}
		rows := func(i, p int) float32 { return a[i*k+p] }
		turned := func(i, p int) float32 { return a[p*m+i] }
		for _, add := range []bool{false, true} {
			got := slices.Clone(before)
			gemm(m, n, k, a, k, 1, b, n, 1, got, add)
			check(got, add, rows, func(p, j int) float32 { return b[p*n+j] })
			got = slices.Clone(before)
			gemm(m, n, k, a, 1, m, b, 1, k, got, add)
			check(got, add, turned, func(p, j int) float32 { return b[j*k+p] })
		}
		panels := make([]float32, (n+15)/16*16*k)
		for p := range k {
			for j := range n {
				panels[(j/16*k+p)*16+j%16] = b[p*n+j]
			}
		}
		got := slices.Clone(before)
		gemmPanels(m, n, k, a, panels, got)
		check(got, false, rows, func(p, j int) float32 { return b[p*n+j] })
	}
}

// TestGeluBack: the derivative, against that in double precision.
func TestGeluBack(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		derivative := func(x float64) float64 {
			return math.Erfc(-x/math.Sqrt2)/2 + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi)
		}
		e, at := worst(func(x, y []float32) {
			for i := range y {
				y[i] = 1
			}
			geluBack(x, y)
		}, derivative, grid(-20, 20), absolute)
		require.LessOrEqual(t, e, 1e-6, "at %v", at)
	})
}
