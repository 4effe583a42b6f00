package reference

import (
	"github.com/x448/float16"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
)

// matrix is [out][in], the layout of a GGUF tensor of dims in, out.
type matrix struct {
	in, out int
	w       []float32
	f16     bool // stored as F16
}

// mul returns x W^T for x [n][in]: [n][out].
func (m *matrix) mul(x []float32) []float32 {
	n := len(x) / m.in
	y := make([]float32, n*m.out)
	gonum.Implementation{}.Sgemm(blas.NoTrans, blas.Trans, n, m.out, m.in, 1, x, m.in, m.w, m.in, 0, y, m.out)
	return y
}

// roundF16 rounds x in place.
func roundF16(x []float32) {
	for i, a := range x {
		x[i] = float16.Fromfloat32(a).Float32()
	}
}
