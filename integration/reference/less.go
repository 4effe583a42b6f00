package reference

import (
	"fmt"

	"github.com/lesskv/lesskv/weights/gguf"
)

// LESS is the attention of a model with a LESS cache in every layer.
type LESS struct {
	Layer   Layer      // of every layer, but for the kernels
	Kernels []*Kernels // by layer; nil: none
	Budgets [][]Budget // by layer, of each KV head; nil: all have the layer's
	Types   []Types    // of the slots, by layer; nil: the layer's
	Ubatch  int        // T; the last micro-batch of a sequence may be shorter

	// Kept returns the positions that each KV head of another implementation held after micro-batch i of a layer, for
	// [Cache.Step]; nil: nobody is followed.
	Kept func(layer, i int) [][]int32
	// Followed, if not nil, is added the number of pairs that were kept because the other side had kept them.
	Followed *int
}

// Types are those of a layer's slots.
type Types struct{ Key, Value gguf.Type }

// Exact is plain causal attention over n tokens at most: a cache that never evicts.
func Exact(layer Layer, n int) Attention {
	layer.Policy, layer.Budget, layer.Heavy, layer.Pinned = Lambda, n, 0, 0
	return LESS{Layer: layer, Ubatch: n}.Attention()
}

// Attention returns the attention of one sequence after another, each from position 0 on.
func (l LESS) Attention() Attention {
	return func(layer int, q, k, v []float32) ([]float32, error) {
		g := l.Layer
		if l.Kernels != nil {
			g.Kernels = l.Kernels[layer]
		}
		if l.Budgets != nil {
			g.Budgets = l.Budgets[layer]
		}
		if l.Types != nil {
			g.KeyType, g.ValueType = l.Types[layer].Key, l.Types[layer].Value
		}
		cache, err := NewCache(g)
		if err != nil {
			return nil, err
		}
		rowQ, rowK, rowV := g.Heads*g.KeyLength, g.HeadsKV*g.KeyLength, g.HeadsKV*g.ValueLength
		n := len(q) / rowQ
		out := make([]float32, 0, n*g.Heads*g.ValueLength)
		for i, pos := 0, 0; pos < n; i, pos = i+1, pos+l.Ubatch {
			end := min(pos+l.Ubatch, n)
			var kept [][]int32
			if l.Kept != nil {
				kept = l.Kept(layer, i)
			}
			o, err := cache.Step(pos, q[pos*rowQ:end*rowQ], k[pos*rowK:end*rowK], v[pos*rowV:end*rowV], kept)
			if err != nil {
				return nil, fmt.Errorf("micro-batch %d: %w", i, err)
			}
			out = append(out, o...)
		}
		if l.Followed != nil {
			*l.Followed += cache.Followed()
		}
		return out, nil
	}
}
