package kernels

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPhiPsi compares with the Go of contract_test.go: 1e-6, and 1e-5 of the largest of the R outputs.
func TestPhiPsi(t *testing.T) {
	for i := range 40 {
		rng := rand.New(rand.NewPCG(11, uint64(i)))
		c := randomCase(rng)
		c.rank = max(c.rank, 1)
		if c.kernelType == Q80 {
			c.rank = 32
		}
		l := &c.layer
		phi, psi := c.mats(rng)
		k, err := NewKernels(Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}, phi, psi, nil)
		require.NoError(t, err)
		defer k.Close()
		m := newContract(&c, phi, psi, nil)

		x := normal(rng, 3*l.KeySize, 1)
		for head := range l.Heads {
			got, err := k.Phi(head, x)
			require.NoError(t, err)
			for n := range 3 {
				sameVector(t, m.phiOf(m.phi, head, wide(x[n*l.KeySize:][:l.KeySize])), got[n*c.rank:][:c.rank])
			}
		}
		for head := range l.HeadsKV {
			got, err := k.Psi(head, x)
			require.NoError(t, err)
			for n := range 3 {
				sameVector(t, m.psiOf(head, wide(x[n*l.KeySize:][:l.KeySize])), got[n*c.rank:][:c.rank])
			}
		}
	}
}

func sameVector(t *testing.T, want []float64, got []float32) {
	t.Helper()
	var top float64
	for _, w := range want {
		top = max(top, w)
	}
	for i := range want {
		require.InDelta(t, want[i], got[i], 1e-5*top+1e-6)
	}
}

func TestKernelsRefused(t *testing.T) {
	c := cases()[0]
	rng := rand.New(rand.NewPCG(12, 1))
	phi, psi := c.mats(rng)
	l := &c.layer
	shape := Shape{l.Heads, l.HeadsKV, l.KeySize, c.rank, c.hidden}

	bad := shape
	bad.Rank = 0
	_, err := NewKernels(bad, phi, psi, nil)
	require.ErrorIs(t, err, ErrArgument)
	bad = shape
	bad.Hidden++
	_, err = NewKernels(bad, phi, psi, nil)
	require.ErrorIs(t, err, ErrArgument)
	require.ErrorContains(t, err, "phi 0: 32768 bytes, want 34816")
	odd := psi
	odd[2].Type = Q80
	_, err = NewKernels(shape, phi, odd, nil)
	require.ErrorContains(t, err, "psi 2: rows of 8 elements can't be Q8_0")
	_, err = NewKernels(shape, phi, psi, make([]float32, l.Heads-1))
	require.ErrorContains(t, err, "7 scales of phi")
	_, err = NewKernels(shape, [2]Mat{}, psi, make([]float32, l.Heads))
	require.ErrorIs(t, err, ErrArgument, "scales without phi")

	k, err := NewKernels(shape, phi, psi, nil)
	require.NoError(t, err)
	_, err = k.Phi(l.Heads, nil)
	require.ErrorIs(t, err, ErrArgument)
	_, err = k.Psi(0, make([]float32, 3))
	require.ErrorIs(t, err, ErrArgument)
	empty, err := k.Psi(0, nil)
	require.NoError(t, err)
	require.Empty(t, empty)
	k.Close()
	k.Close()
	_, err = k.Phi(0, make([]float32, l.KeySize))
	require.ErrorIs(t, err, ErrArgument)
	l.Kernels = k
	_, err = NewCache(*l)
	require.ErrorIs(t, err, ErrArgument)
}
