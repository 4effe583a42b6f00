package train

import (
	"fmt"

	"github.com/lesskv/lesskv/weights"
)

// A Layer is what the runtime knows about one attention layer.
type Layer struct {
	Index   int
	Window  bool    // a sliding window: exact already, there is nothing to train
	Scale   float32 // s
	SoftCap float32 // 0: none
}

// An Attention is one micro-batch in one layer under the full cache.
type Attention struct {
	Layer  int
	Tokens int       // T
	Q      []float32 // [T][Hq][D], after RoPE, not scaled
	K      []float32 // [T][Hkv][D], after RoPE, rounded to f16
	V      []float32 // [T][Hkv][Dv], rounded to f16
	Out    []float32 // [T][Hq][Dv]
}

// A Runtime runs the base model with a cache that evicts nothing.
type Runtime interface {
	// Layers lists the attention layers.
	Layers() ([]Layer, error)
	// Record runs tokens as a sequence of their own and hands out what the attention of the named layers saw, in order.
	Record(tokens []int32, layers []int, each func(Attention) error) error
	// Tensor returns a tensor of the model, first dimension fastest; nil if there is none of that name.
	Tensor(name string) (values []float32, dims []uint64, err error)
}

// Projection returns a layer's output projection, [out][Hq Dv]. ErrModel if there is none of that width.
func Projection(r Runtime, m *weights.Model, layer int) (values []float32, out int, err error) {
	name := fmt.Sprintf("blk.%d.attn_output.weight", layer)
	values, dims, err := r.Tensor(name)
	if err != nil {
		return nil, 0, err
	}
	in := m.Layer(layer).Heads * m.Layer(m.Owner(layer)).ValueLength
	if values == nil || len(dims) != 2 || dims[0] != uint64(in) {
		return nil, 0, fmt.Errorf("train: tensor %s: found dimensions %v, want %d and the embedding's: %w", name, dims, in, ErrModel)
	}
	return values, int(dims[1]), nil
}

// Sinks returns a layer's sink logits, [Hq], or nil. ErrModel if there is another number of them.
func Sinks(r Runtime, m *weights.Model, layer int) ([]float32, error) {
	values, dims, err := r.Tensor(fmt.Sprintf("blk.%d.attn_sinks.weight", layer))
	if heads := m.Layer(layer).Heads; err == nil && values != nil && len(values) != heads {
		err = fmt.Errorf("train: sinks of layer %d: found dimensions %v, want %d: %w", layer, dims, heads, ErrModel)
	}
	return values, err
}
