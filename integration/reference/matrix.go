package reference

import (
	"github.com/x448/float16"
	"gonum.org/v1/gonum/blas/gonum"
)

// matrix is [out][in], the layout of a GGUF tensor of dims in, out.
type matrix struct {
	in, out int
	w       []float32
	f16     bool // stored as F16
}

// chunk is how many rows of x a row of weights meets in turn: they stay in the nearest cache.
const chunk = 16

// mul returns x W^T for x [n][in]: [n][out].
func (m *matrix) mul(x []float32) []float32 {
	n := len(x) / m.in
	y := make([]float32, n*m.out)
	for first := 0; first < n; first += chunk {
		for o := range m.out {
			w := m.w[o*m.in:][:m.in]
			for t := first; t < min(first+chunk, n); t++ {
				y[t*m.out+o] = gonum.Implementation{}.Sdot(m.in, x[t*m.in:][:m.in], 1, w, 1)
			}
		}
	}
	return y
}

// roundF16 rounds x in place.
func roundF16(x []float32) {
	for i, a := range x {
		x[i] = float16.Fromfloat32(a).Float32()
	}
}
