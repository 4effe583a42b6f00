// Package importer makes adapters out of the checkpoints of the LESS authors' code (github.com/hdong920/LESS): one
// layer_N.pth for each layer, as its training writes them.
//
// A .pth file is a zip archive with a pickle in it. The pickle is read, never executed: it can name tensors and plain
// containers, and any other class is refused. Whatever a file says, reading it takes memory in proportion to its length.
package importer

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/nlpodyssey/gopickle/pytorch"
	"github.com/nlpodyssey/gopickle/types"

	"github.com/lesskv/lesskv/weights"
)

// ErrCheckpoint is what errors about a checkpoint's content wrap.
var ErrCheckpoint = errors.New("not a LESS checkpoint for this model")

// Rotary says in which order the base model's file has the elements of q and k ("Rotary order" in algorithm.md).
type Rotary int

// The orders.
const (
	Auto        Rotary = iota // Interleaved for the architecture llama, Halves for others
	Halves                    // as Hugging Face and the checkpoints have it
	Interleaved               // as llama.cpp's converter permutes it
)

// Options are what a checkpoint does not say.
type Options struct {
	Model   *weights.Model
	Trained weights.Trained
	Rotary  Rotary
}

// Import reads layer_0.pth, layer_1.pth, … in dir, in F32. Layers without a file run sparse-only; without any it fails. Errors about
// content wrap ErrCheckpoint and name the file.
func Import(dir string, o Options) (*weights.Adapter, error) {
	var a *weights.Adapter
	for layer := range o.Model.Layers {
		path := filepath.Join(dir, fmt.Sprintf("layer_%d.pth", layer))
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if owner := o.Model.Owner(layer); owner != layer {
			return nil, fmt.Errorf("%s: layer %d shares the keys of layer %d, and has no phi and psi of its own: %w", path, layer, owner, ErrCheckpoint)
		}
		k, err := o.layer(path, layer)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if a == nil {
			a = weights.New(o.Model, o.Trained)
		}
		a.Kernels[layer] = k
	}
	if a == nil {
		return nil, fmt.Errorf("%s: no layer_0.pth to layer_%d.pth: %w", dir, o.Model.Layers-1, ErrCheckpoint)
	}
	return a, nil
}

// layer reads the checkpoint of a layer.
func (o *Options) layer(path string, layer int) (k weights.Kernels, err error) {
	c, err := open(path)
	if err != nil {
		return k, err
	}
	defer c.close()
	state, err := c.state()
	if err != nil {
		return k, err
	}
	m := o.Model.Layer(layer)
	r := &reader{state: state}

	var rank, hidden int // those of phi, whose matrices are [Hq][in][out] in every model
	if shape := r.shape("kernel_q_mat2"); len(shape) == 3 {
		hidden, rank = shape[1], shape[2]
	}
	phi0 := r.heads("kernel_q_mat1", m.Heads, m.KeyLength, hidden)
	phi1 := r.heads("kernel_q_mat2", m.Heads, hidden, rank)
	psi0 := r.heads("kernel_k_mat1", m.HeadsKV, m.KeyLength, hidden)
	psi1 := r.heads("kernel_k_mat2", m.HeadsKV, hidden, rank)
	interaction := r.heads("interaction_k", m.HeadsKV, rank, rank)
	scale := r.rows("scalingD", m.HeadsKV, rank)
	scale2 := r.rows("scalingD2", m.HeadsKV, rank)
	if r.err != nil {
		return k, r.err
	}
	if o.Rotary == Interleaved || o.Rotary == Auto && o.Model.Architecture == "llama" {
		if m.KeyLength%2 != 0 {
			return k, fmt.Errorf("heads of %d can't be interleaved: %w", m.KeyLength, ErrCheckpoint)
		}
		phi0, psi0 = interleave(phi0, m.KeyLength, hidden), interleave(psi0, m.KeyLength, hidden)
	}
	// U3 = diag(|scalingD|) (I + interaction_k diag(scalingD2))
	u3 := make([]float32, len(interaction))
	for h := range m.HeadsKV {
		for i := range rank {
			for j := range rank {
				x := float64(interaction[(h*rank+i)*rank+j]) * float64(scale2[h*rank+j])
				if i == j {
					x++
				}
				u3[(h*rank+i)*rank+j] = float32(math.Abs(float64(scale[h*rank+i])) * x)
			}
		}
	}
	k.Rank, k.Hidden = rank, hidden
	k.Phi[0].Values = transpose(phi0, m.KeyLength, hidden)
	k.Phi[1].Values = transpose(phi1, hidden, rank)
	k.Psi[0].Values = transpose(psi0, m.KeyLength, hidden)
	k.Psi[1].Values = transpose(psi1, hidden, rank)
	k.Psi[2].Values = transpose(u3, rank, rank)
	return k, nil
}

// transpose turns [heads][in][out] into [heads][out][in].
func transpose(x []float32, in, out int) []float32 {
	y := make([]float32, len(x))
	for h := 0; h < len(x); h += in * out {
		for i := range in {
			for j := range out {
				y[h+j*in+i] = x[h+i*out+j]
			}
		}
	}
	return y
}

// interleave reorders the input rows of [heads][in][out]: row 2i comes from i, row 2i+1 from i + in/2.
func interleave(x []float32, in, out int) []float32 {
	y := make([]float32, len(x))
	for h := 0; h < len(x); h += in * out {
		for i := range in {
			from := i / 2
			if i%2 == 1 {
				from += in / 2
			}
			copy(y[h+i*out:h+(i+1)*out], x[h+from*out:])
		}
	}
	return y
}

// entries returns what a Python dict has under strings.
func entries(v any) map[string]any {
	items := map[string]any{}
	switch d := v.(type) {
	case *types.Dict:
		for _, e := range *d {
			if name, ok := e.Key.(string); ok {
				items[name] = e.Value
			}
		}
	case *types.OrderedDict:
		for key, e := range d.Map {
			if name, ok := key.(string); ok {
				items[name] = e.Value
			}
		}
	}
	return items
}

// reader takes tensors out of a checkpoint and keeps the first error.
type reader struct {
	state map[string]*pytorch.Tensor
	err   error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format+": %w", append(args, ErrCheckpoint)...)
	}
}

func (r *reader) shape(name string) []int {
	t, ok := r.state[name]
	if !ok {
		r.fail("there is no %s", name)
		return nil
	}
	return t.Size
}

// heads returns a [heads][in][out] parameter. Where one head serves all it may be an nn.Linear instead: NAME.weight, [out][in].
func (r *reader) heads(name string, heads, in, out int) []float32 {
	if t, ok := r.state[name+".weight"]; ok && heads == 1 {
		if len(t.Size) != 2 || t.Size[0] != out || t.Size[1] != in {
			r.fail("%s.weight: found shape %v, want [%d %d]", name, t.Size, out, in)
			return nil
		}
		return transpose(r.values(name+".weight", t), out, in)
	}
	s := r.shape(name)
	if r.err != nil {
		return nil
	}
	if len(s) != 3 || s[0] != heads || s[1] != in || s[2] != out || in*out == 0 {
		r.fail("%s: found shape %v, want [%d %d %d]", name, s, heads, in, out)
		return nil
	}
	return r.values(name, r.state[name])
}

// rows returns a [1, heads, 1, n] parameter.
func (r *reader) rows(name string, heads, n int) []float32 {
	s := r.shape(name)
	if r.err != nil {
		return nil
	}
	if len(s) != 4 || s[0] != 1 || s[1] != heads || s[2] != 1 || s[3] != n {
		r.fail("%s: found shape %v, want [1 %d 1 %d]", name, s, heads, n)
		return nil
	}
	return r.values(name, r.state[name])
}

// values returns a tensor's elements in the order of its indices, whatever its strides are.
func (r *reader) values(name string, t *pytorch.Tensor) []float32 {
	source, ok := t.Source.(*storage)
	if !ok {
		r.fail("%s: elements of %T", name, t.Source)
		return nil
	}
	size := source.size
	n, last := 1, t.StorageOffset
	if len(t.Stride) != len(t.Size) {
		r.fail("%s: %d strides for shape %v", name, len(t.Stride), t.Size)
		return nil
	}
	for d, s := range t.Size {
		if s < 1 || s > size || t.Stride[d] < 0 || t.Stride[d] > size {
			r.fail("%s: shape %v with strides %v in %d elements", name, t.Size, t.Stride, size)
			return nil
		}
		n *= s
		last += (s - 1) * t.Stride[d]
	}
	if t.StorageOffset < 0 || last >= size || n > size {
		r.fail("%s: shape %v with strides %v from %d on in %d elements", name, t.Size, t.Stride, t.StorageOffset, size)
		return nil
	}
	at, err := source.elements()
	if err != nil {
		r.fail("%s: %w", name, err)
		return nil
	}
	out := make([]float32, n)
	for i := range out {
		from, rest := t.StorageOffset, i
		for d := len(t.Size) - 1; d >= 0; d-- {
			from += rest % t.Size[d] * t.Stride[d]
			rest /= t.Size[d]
		}
		out[i] = at(from)
		if x := float64(out[i]); math.IsNaN(x) || math.IsInf(x, 0) {
			r.fail("%s: element %d is %v", name, i, x)
			return nil
		}
	}
	return out
}
