package reference

import (
	"fmt"
	"math"
)

// Kernels are the trained weights of one layer ("phi and psi" in algorithm.md), each matrix [heads][out][in], as the adapter file has
// it: phi.0 and psi.0 from D to R', phi.1 and psi.1 from R' to R, psi.2 from R to R; phi has Hq heads and psi Hkv. A sharer has no
// psi; a layer whose own queries see the slots alone, its cache being folded for sharers, has no phi.
type Kernels struct {
	Rank, Hidden int // R, R'
	Phi          [2][]float32
	Psi          [3][]float32
	Scale        []float32 // [Hq]: what each query head adds to log(phi z); nil: 0
}

// check looks for the matrices of a layer; folds: psi among them.
func (w *Kernels) check(l *Layer, folds bool) error {
	d, r, hidden := l.KeyLength, w.Rank, w.Hidden
	for i, m := range []struct {
		name      string
		got, want int
	}{
		{"phi.0", len(w.Phi[0]), l.Heads * hidden * d},
		{"phi.1", len(w.Phi[1]), l.Heads * r * hidden},
		{"psi.0", len(w.Psi[0]), l.HeadsKV * hidden * d},
		{"psi.1", len(w.Psi[1]), l.HeadsKV * r * hidden},
		{"psi.2", len(w.Psi[2]), l.HeadsKV * r * r},
	} {
		if i < 2 && folds && w.Phi[0] == nil && w.Phi[1] == nil || i >= 2 && !folds {
			continue
		}
		if m.got != m.want || m.got == 0 {
			return fmt.Errorf("reference: kernel %s has %d values: want %d", m.name, m.got, m.want)
		}
	}
	if w.Scale != nil && len(w.Scale) != l.Heads {
		return fmt.Errorf("reference: %d scales of phi: want one for each of %d query heads", len(w.Scale), l.Heads)
	}
	return nil
}

// logit of query head i whose phi(qn).z is mass: L.
func (w *Kernels) logit(i int, mass float64) float64 {
	l := math.Log(mass)
	if w.Scale != nil {
		l += float64(w.Scale[i])
	}
	return l
}

// phi(qn) = | gelu( gelu(qn W1) W2 ) | of query head i; R values.
func (w *Kernels) phi(i int, qn []float64) []float64 {
	x := linear(w.Phi[0], i, w.Hidden, qn)
	each(x, gelu)
	x = linear(w.Phi[1], i, w.Rank, x)
	each(x, gelu)
	each(x, math.Abs)
	return x
}

// psi(k) = | gelu( gelu(k U1) U2 ) U3 | of KV head j; R values.
func (w *Kernels) psi(j int, k []float64) []float64 {
	x := linear(w.Psi[0], j, w.Hidden, k)
	each(x, gelu)
	x = linear(w.Psi[1], j, w.Rank, x)
	each(x, gelu)
	x = linear(w.Psi[2], j, w.Rank, x)
	each(x, math.Abs)
	return x
}

// linear applies matrix [n][len(x)] of one head.
func linear(w []float32, head, n int, x []float64) []float64 {
	y := make([]float64, n)
	w = w[head*n*len(x):]
	for o := range y {
		row, sum := w[o*len(x):][:len(x)], 0.0
		for i, a := range row {
			sum += float64(a) * x[i]
		}
		y[o] = sum
	}
	return y
}

func each(x []float64, f func(float64) float64) {
	for i := range x {
		x[i] = f(x[i])
	}
}

// gelu is the exact one.
func gelu(x float64) float64 { return x / 2 * (1 + math.Erf(x/math.Sqrt2)) }
