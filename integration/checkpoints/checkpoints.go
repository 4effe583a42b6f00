// Package checkpoints writes checkpoints as the training of github.com/hdong920/LESS does, for tests.
package checkpoints

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// A Tensor is in row-major order.
type Tensor struct {
	Size   []int
	Values []float32
}

// Random draws a tensor of a size.
func Random(r *rand.Rand, size ...int) Tensor {
	n := 1
	for _, s := range size {
		n *= s
	}
	t := Tensor{size, make([]float32, n)}
	for i := range t.Values {
		t.Values[i] = float32(r.NormFloat64())
	}
	return t
}

// A Pickler writes what torch.save pickles, protocol 2.
type Pickler struct{ bytes.Buffer }

// Str writes a string.
func (p *Pickler) Str(s string) {
	p.WriteByte('X')
	binary.Write(p, binary.LittleEndian, uint32(len(s)))
	p.WriteString(s)
}

func (p *Pickler) int(n int) {
	p.WriteByte('J')
	binary.Write(p, binary.LittleEndian, int32(n))
}

func (p *Pickler) ints(n []int) {
	p.WriteByte('(')
	for _, x := range n {
		p.int(x)
	}
	p.WriteByte('t')
}

// Tensor writes one of numel elements in the storage of that key.
func (p *Pickler) Tensor(key string, size, stride []int, numel int) {
	p.WriteString("ctorch._utils\n_rebuild_tensor_v2\n((")
	p.Str("storage")
	p.WriteString("ctorch\nFloatStorage\n")
	p.Str(key)
	p.Str("cpu")
	p.int(numel)
	p.WriteString("tQ")
	p.int(0)
	p.ints(size)
	p.ints(stride)
	p.WriteString("\x89ccollections\nOrderedDict\n)RtR")
}

// Write makes a checkpoint. The tensor named swapped is stored with its last two dimensions transposed.
func Write(t testing.TB, path, swapped string, state map[string]Tensor) {
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	z := zip.NewWriter(f)
	p := &Pickler{}
	p.WriteString("\x80\x02}(")
	p.Str("epoch")
	p.int(3)
	p.Str("model_state_dict")
	p.WriteString("ccollections\nOrderedDict\n)R(")
	n := 0
	for name, v := range state {
		key := fmt.Sprint(n)
		n++
		stride := make([]int, len(v.Size))
		for d, s := len(v.Size)-1, 1; d >= 0; d-- {
			stride[d] = s
			s *= v.Size[d]
		}
		values := v.Values
		if name == swapped {
			rows, cols := v.Size[len(v.Size)-2], v.Size[len(v.Size)-1]
			values = transposed(values, rows, cols)
			stride[len(stride)-2], stride[len(stride)-1] = 1, rows
		}
		p.Str(name)
		p.Tensor(key, v.Size, stride, len(values))
		w, err := z.CreateHeader(&zip.FileHeader{Name: "layer/data/" + key})
		require.NoError(t, err)
		require.NoError(t, binary.Write(w, binary.LittleEndian, values))
	}
	p.WriteString("uu.")
	w, err := z.CreateHeader(&zip.FileHeader{Name: "layer/data.pkl"})
	require.NoError(t, err)
	_, err = w.Write(p.Bytes())
	require.NoError(t, err)
	require.NoError(t, z.Close())
}

// transposed turns matrices of rows x cols into such of cols x rows.
func transposed(x []float32, rows, cols int) []float32 {
	y := make([]float32, len(x))
	for i := range x {
		m, row, col := i/(rows*cols), i/cols%rows, i%cols
		y[m*rows*cols+col*rows+row] = x[i]
	}
	return y
}

// A Shape is that of a layer.
type Shape struct{ Heads, HeadsKV, Size, Hidden, Rank int }

// Layer draws what training leaves of a layer; linear: psi in matrices that all x.Heads share, as nn.Linear has them.
func Layer(r *rand.Rand, x Shape, linear bool) map[string]Tensor {
	s := map[string]Tensor{
		"kernel_q_mat1": Random(r, x.Heads, x.Size, x.Hidden), "kernel_q_mat2": Random(r, x.Heads, x.Hidden, x.Rank),
		"scalingD": Random(r, 1, x.HeadsKV, 1, x.Rank), "scalingD2": Random(r, 1, x.HeadsKV, 1, x.Rank),
	}
	if linear {
		s["kernel_k_mat1.weight"], s["kernel_k_mat2.weight"], s["interaction_k.weight"] = Random(r, x.Hidden, x.Size), Random(r, x.Rank, x.Hidden), Random(r, x.Rank, x.Rank)
	} else {
		s["kernel_k_mat1"], s["kernel_k_mat2"], s["interaction_k"] = Random(r, x.HeadsKV, x.Size, x.Hidden), Random(r, x.HeadsKV, x.Hidden, x.Rank), Random(r, x.HeadsKV, x.Rank, x.Rank)
	}
	return s
}
