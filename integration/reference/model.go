package reference

import (
	"fmt"
	"math"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Model is a llama-architecture model in memory: RMS norms, RoPE on interleaved pairs, grouped queries, SwiGLU.
type Model struct {
	Layers                     int
	Embd, FeedForward, Vocab   int // widths
	Heads, HeadsKV, HeadLength int // of every layer
	Epsilon                    float32
	RopeBase                   float32
	Unrounded                  bool // multiply F16 weights by float32 activations, not by F16 ones as llama.cpp does on a CPU
	embedding, outputNorm      []float32
	output                     matrix
	blocks                     []block
}

type block struct {
	attnNorm, ffnNorm []float32
	q, k, v, o        matrix
	gate, up, down    matrix
}

// LoadModel reads a model whose tensors are F32 or F16. It fails on other architectures and on what of llama's it does not
// compute: scaled or partial RoPE, biases, experts.
func LoadModel(path string) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	defer f.Close()
	l := loader{file: f}
	if arch := key[string](&l, "general.architecture"); l.err == nil && arch != "llama" {
		return nil, fmt.Errorf("reference: %s: architecture %s: want llama", path, arch)
	}
	m := &Model{
		Layers:      int(key[uint32](&l, "llama.block_count")),
		Embd:        int(key[uint32](&l, "llama.embedding_length")),
		FeedForward: int(key[uint32](&l, "llama.feed_forward_length")),
		Heads:       int(key[uint32](&l, "llama.attention.head_count")),
		HeadsKV:     int(key[uint32](&l, "llama.attention.head_count_kv")),
		Epsilon:     key[float32](&l, "llama.attention.layer_norm_rms_epsilon"),
		RopeBase:    key[float32](&l, "llama.rope.freq_base"),
	}
	rope := int(key[uint32](&l, "llama.rope.dimension_count"))
	if l.err == nil && (m.Heads < 1 || m.HeadsKV < 1 || m.Embd%m.Heads != 0 || m.Heads%m.HeadsKV != 0 || rope != m.Embd/m.Heads || rope%2 != 0) {
		return nil, fmt.Errorf("reference: %s: %d wide, %d and %d heads, RoPE over %d: want whole groups of heads, and RoPE over all of one",
			path, m.Embd, m.Heads, m.HeadsKV, rope)
	}
	for _, key := range []string{"llama.rope.scaling.type", "llama.rope.scale_linear", "llama.expert_count", "llama.attention.key_length"} {
		if f.Has(key) {
			return nil, fmt.Errorf("reference: %s: key %s: this forward pass does not know it", path, key)
		}
	}
	m.HeadLength = rope
	known := 2 // tensors
	if dims := l.dims("token_embd.weight"); len(dims) == 2 {
		m.Vocab = int(dims[1])
	}
	tied := l.matrix("token_embd.weight", m.Embd, m.Vocab)
	m.embedding, m.output = tied.w, tied
	if f.Has("output.weight") || len(l.dims("output.weight")) > 0 {
		m.output = l.matrix("output.weight", m.Embd, m.Vocab)
		known++
	}
	m.outputNorm = l.vector("output_norm.weight", m.Embd)
	m.blocks = make([]block, m.Layers)
	kv := m.HeadsKV * m.HeadLength
	for i := range m.blocks {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s.weight", i, s) }
		m.blocks[i] = block{
			attnNorm: l.vector(name("attn_norm"), m.Embd),
			ffnNorm:  l.vector(name("ffn_norm"), m.Embd),
			q:        l.matrix(name("attn_q"), m.Embd, m.Embd),
			k:        l.matrix(name("attn_k"), m.Embd, kv),
			v:        l.matrix(name("attn_v"), m.Embd, kv),
			o:        l.matrix(name("attn_output"), m.Embd, m.Embd),
			gate:     l.matrix(name("ffn_gate"), m.Embd, m.FeedForward),
			up:       l.matrix(name("ffn_up"), m.Embd, m.FeedForward),
			down:     l.matrix(name("ffn_down"), m.FeedForward, m.Embd),
		}
		known += 9
	}
	if l.err != nil {
		return nil, fmt.Errorf("reference: %w", l.err)
	}
	if len(f.Tensors) != known {
		return nil, fmt.Errorf("reference: %s: %d tensors: this forward pass knows what to do with %d", path, len(f.Tensors), known)
	}
	return m, nil
}

// loader keeps the first error.
type loader struct {
	file *gguf.File
	err  error
}

func key[T gguf.Scalar](l *loader, name string) T {
	v, err := gguf.Get[T](l.file, name)
	if l.err == nil {
		l.err = err
	}
	return v
}

func (l *loader) dims(name string) []uint64 {
	info, _ := l.file.Tensor(name)
	return info.Dims
}

func (l *loader) vector(name string, n int) []float32 {
	if l.err != nil {
		return nil
	}
	var x []float32
	if x, l.err = l.file.Floats(name); l.err == nil && len(x) != n {
		l.err = fmt.Errorf("%s: tensor %s has %d values: want %d", l.file.Name, name, len(x), n)
	}
	return x
}

func (l *loader) matrix(name string, in, out int) matrix {
	info, _ := l.file.Tensor(name)
	if l.err == nil && len(info.Dims) == 2 && info.Dims[0] != uint64(in) {
		l.err = fmt.Errorf("%s: tensor %s has rows of %d: want %d", l.file.Name, name, info.Dims[0], in)
	}
	return matrix{in, out, l.vector(name, in*out), info.Type == gguf.F16}
}

// Layer returns the attention of the model's layers, with slots of f16, without policy and budget.
func (m *Model) Layer() Layer {
	return Layer{
		Heads: m.Heads, HeadsKV: m.HeadsKV, KeyLength: m.HeadLength, ValueLength: m.HeadLength,
		KeyType: gguf.F16, ValueType: gguf.F16,
		Scale: 1 / math.Sqrt(float64(m.HeadLength)),
	}
}

// Attention computes one layer's attention for a whole sequence of n tokens from position 0 on: q [n][Hq][D] and k [n][Hkv][D]
// after RoPE, v [n][Hkv][Dv], out [n][Hq][Dv]. It is called for layer 0, 1, …, once each.
type Attention func(layer int, q, k, v []float32) (out []float32, err error)

// Logits decodes a sequence from position 0 on and returns the logits after every token, [n][Vocab]. It goes through the model
// layer by layer, each over all tokens: a cache only sees its own layer, so its micro-batches are no matter of this order.
func (m *Model) Logits(tokens []int32, attend Attention) ([]float32, error) {
	x := make([]float32, 0, len(tokens)*m.Embd)
	for i, t := range tokens {
		if t < 0 || int(t) >= m.Vocab {
			return nil, fmt.Errorf("reference: token %d is %d: want one of %d", i, t, m.Vocab)
		}
		x = append(x, m.embedding[int(t)*m.Embd:][:m.Embd]...)
	}
	turns := m.turns(len(tokens))
	for i := range m.blocks {
		b := &m.blocks[i]
		y := m.norm(x, b.attnNorm)
		q, k, v := m.apply(&b.q, y), m.apply(&b.k, y), m.apply(&b.v, y)
		m.rotate(q, turns)
		m.rotate(k, turns)
		out, err := attend(i, q, k, v)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		add(x, m.apply(&b.o, out))

		y = m.norm(x, b.ffnNorm)
		gate, up := m.apply(&b.gate, y), m.apply(&b.up, y)
		for j, g := range gate {
			up[j] *= g / (1 + float32(math.Exp(-float64(g))))
		}
		add(x, m.apply(&b.down, up))
	}
	return m.apply(&m.output, m.norm(x, m.outputNorm)), nil
}

// apply multiplies x by a matrix; it may round x.
func (m *Model) apply(w *matrix, x []float32) []float32 {
	if w.f16 && !m.Unrounded {
		roundF16(x)
	}
	return w.mul(x)
}

// norm is RMSNorm, row by row.
func (m *Model) norm(x, weight []float32) []float32 {
	y := make([]float32, len(x))
	for i := 0; i < len(x); i += m.Embd {
		sum := 0.0
		for _, a := range x[i:][:m.Embd] {
			sum += float64(a * a)
		}
		scale := 1 / float32(math.Sqrt(float64(float32(sum/float64(m.Embd))+m.Epsilon)))
		for d, a := range x[i:][:m.Embd] {
			y[i+d] = a * scale * weight[d]
		}
	}
	return y
}

// turns returns the cosines and sines of RoPE for n positions, [n][D/2]. The angles are float32 products, as llama.cpp has
// them: at position 2,000 they are off by 1e-4, which shows.
func (m *Model) turns(n int) [][2]float32 {
	step := float32(math.Pow(float64(m.RopeBase), -2/float64(m.HeadLength)))
	var turns [][2]float32
	for pos := range n {
		angle := float32(pos)
		for range m.HeadLength / 2 {
			sin, cos := math.Sincos(float64(angle))
			turns = append(turns, [2]float32{float32(cos), float32(sin)})
			angle *= step
		}
	}
	return turns
}

// rotate applies RoPE to x [n][heads][D], in place: element 2i turns with 2i+1.
func (m *Model) rotate(x []float32, turns [][2]float32) {
	half := m.HeadLength / 2
	width := len(x) / (len(turns) / half)
	for i := 0; i < len(x); i += 2 {
		turn := turns[i/width*half+i/2%half]
		a, b := x[i], x[i+1]
		x[i], x[i+1] = a*turn[0]-b*turn[1], a*turn[1]+b*turn[0]
	}
}

func add(x, y []float32) {
	for i := range x {
		x[i] += y[i]
	}
}
