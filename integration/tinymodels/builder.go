package tinymodels

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/lesskv/lesskv/weights/gguf"
)

const (
	context = 4096
	layers  = 4   // where an architecture doesn't need more
	peaked  = 1.6 // gain of Wq and Wk: logits of a head then have a standard deviation of peaked^2
	eps     = float32(1e-5)

	// Gain of a feed-forward network with GELU: ggml looks it up in a table of half floats, whose steps would otherwise drown small
	// differences in the attention.
	coarse = .15
)

// builder collects a model's keys and tensors.
type builder struct {
	arch    string
	typ     gguf.Type
	seed    uint64
	vocab   int
	pairs   []gguf.KeyValue
	tensors []gguf.Tensor
}

func newBuilder(m Model, t gguf.Type, seed uint64, v Vocabulary) *builder {
	b := &builder{arch: m.Architecture, typ: t, seed: seed, vocab: len(v.tokens)}
	b.pairs = append(b.pairs,
		gguf.KeyValue{Key: "general.architecture", Value: m.Architecture},
		gguf.KeyValue{Key: "general.name", Value: "tiny random model"}) // with "phi3" in it, llama.cpp looks for Phi-3's tokens
	b.pairs = append(b.pairs, v.pairs()...)
	b.key("context_length", uint32(context))
	return b
}

// key sets a key of the architecture.
func (b *builder) key(name string, value any) {
	b.pairs = append(b.pairs, gguf.KeyValue{Key: b.arch + "." + name, Value: value})
}

// change gives another value to a key that is there.
func (b *builder) change(name string, value any) {
	i := slices.IndexFunc(b.pairs, func(kv gguf.KeyValue) bool { return kv.Key == b.arch+"."+name })
	b.pairs[i].Value = value
}

// shape is what the transformers among the models have in common.
type shape struct {
	layers, embd, ff    int
	heads, headsKV, dim int // dim: of a head, for keys and values
}

func (b *builder) shape(s shape) {
	b.key("block_count", uint32(s.layers))
	b.key("embedding_length", uint32(s.embd))
	b.key("feed_forward_length", uint32(s.ff))
	b.key("attention.head_count", uint32(s.heads))
	b.key("attention.head_count_kv", uint32(s.headsKV))
	b.key("attention.key_length", uint32(s.dim))
	b.key("attention.value_length", uint32(s.dim))
	b.key("rope.dimension_count", uint32(s.dim))
}

// rmsNorm and layerNorm set the epsilon of the norms.
func (b *builder) rmsNorm()   { b.key("attention.layer_norm_rms_epsilon", eps) }
func (b *builder) layerNorm() { b.key("attention.layer_norm_epsilon", eps) }

// add adds a tensor of normally distributed values. Each tensor has a random sequence of its own, so that one more or one
// less leaves the others as they are.
func (b *builder) add(name string, t gguf.Type, mean, deviation float64, dims ...int) {
	n := 1
	tensor := gguf.Tensor{Name: name, Type: t}
	for _, d := range dims {
		n *= d
		tensor.Dims = append(tensor.Dims, uint64(d))
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	r := rand.New(rand.NewPCG(b.seed, h.Sum64()))
	tensor.Values = make([]float32, n)
	for i := range tensor.Values {
		tensor.Values[i] = float32(mean + deviation*r.NormFloat64())
	}
	b.tensors = append(b.tensors, tensor)
}

// matrix adds weights that turn dims[0] values of unit variance into values of variance gain^2.
func (b *builder) matrix(name string, gain float64, dims ...int) {
	b.add(name+".weight", b.typ, 0, gain/math.Sqrt(float64(dims[0])), dims...)
}

// norm adds the weights of a norm, round mean; normBias those and a bias.
func (b *builder) norm(name string, mean float64, n int) {
	b.add(name+".weight", gguf.F32, mean, .1*mean, n)
}

func (b *builder) normBias(name string, n int) {
	b.norm(name, 1, n)
	b.bias(name, n)
}

func (b *builder) bias(name string, dims ...int) {
	b.add(name+".bias", gguf.F32, 0, .2, dims...)
}

// blk names a tensor of layer i.
func blk(i int, name string) string { return fmt.Sprintf("blk.%d.%s", i, name) }

// embed adds the token embeddings, of standard deviation 1 where the architecture doesn't scale them itself.
func (b *builder) embed(deviation float64, embd int) {
	b.add("token_embd.weight", b.typ, 0, deviation, embd, b.vocab)
}

// output adds the final norm and an output matrix whose logits spread by about three.
func (b *builder) output(embd int) {
	b.norm("output_norm", 1, embd)
	b.matrix("output", 3, embd, b.vocab)
}

// qkvo adds separate projections, gain that of q and k.
func (b *builder) qkvo(i int, s shape, gain float64) {
	b.matrix(blk(i, "attn_q"), gain, s.embd, s.heads*s.dim)
	b.matrix(blk(i, "attn_k"), gain, s.embd, s.headsKV*s.dim)
	b.matrix(blk(i, "attn_v"), 1, s.embd, s.headsKV*s.dim)
	b.matrix(blk(i, "attn_output"), 1.5, s.heads*s.dim, s.embd)
}

// fused adds one projection for q, k and v, gain that of all three, and the output's.
func (b *builder) fused(i int, s shape, gain float64) {
	b.matrix(blk(i, "attn_qkv"), gain, s.embd, (s.heads+2*s.headsKV)*s.dim)
	b.matrix(blk(i, "attn_output"), 1, s.heads*s.dim, s.embd)
}

// gated adds a feed-forward network with a gate, plain one without, gain that of its output.
func (b *builder) gated(i int, s shape) {
	b.matrix(blk(i, "ffn_gate"), 1, s.embd, s.ff)
	b.plain(i, s, 1)
}

func (b *builder) plain(i int, s shape, gain float64) {
	b.matrix(blk(i, "ffn_up"), 1, s.embd, s.ff)
	b.matrix(blk(i, "ffn_down"), gain, s.ff, s.embd)
}

// experts adds n experts of size ff, and their router.
func (b *builder) experts(i, n int, s shape) {
	b.matrix(blk(i, "ffn_gate_inp"), 1, s.embd, n)
	b.matrix(blk(i, "ffn_gate_exps"), 1, s.embd, s.ff, n)
	b.matrix(blk(i, "ffn_up_exps"), 1, s.embd, s.ff, n)
	b.matrix(blk(i, "ffn_down_exps"), 1, s.ff, s.embd, n)
}
