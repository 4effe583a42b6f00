package tinymodels

import (
	"math"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Models whose layers differ: some share another layer's keys and values, some have other heads.

// gemma3n has a full layer behind four windowed ones. Layers from 20 on share those of 18, windowed, and 19.
func gemma3n(b *builder) {
	const altup, laurel, perLayer = 4, 64, 256 // fixed in llama.cpp, as is the first layer without KV of its own, 20
	s := shape{layers: 25, embd: 64, ff: 64, heads: 4, headsKV: 1, dim: 16}
	b.key("attention.sliding_window", uint32(32))
	b.gemma(s, 1)
	b.add("per_layer_token_embd.weight", b.typ, 0, 1./16, perLayer*s.layers, b.vocab)
	b.matrix("altup_proj", 1, s.embd, s.embd, altup-1)
	b.matrix("altup_unembd_proj", 1, s.embd, s.embd, altup-1)
	b.matrix("per_layer_model_proj", 1, s.embd, perLayer*s.layers)
	b.norm("per_layer_proj_norm", 1, perLayer)
	for i := range s.layers {
		b.norm(blk(i, "attn_q_norm"), .75, s.dim) // the scale of its attention is 1
		b.norm(blk(i, "attn_k_norm"), .8, s.dim)
		b.matrix(blk(i, "inp_gate"), 1, s.embd, perLayer)
		b.matrix(blk(i, "proj"), 1, perLayer, s.embd)
		b.norm(blk(i, "post_norm"), .05, s.embd) // behind a GELU too, in many layers
		b.matrix(blk(i, "altup_correct_coef"), .5, altup, altup)
		b.norm(blk(i, "altup_correct_scale"), 1, s.embd)
		b.matrix(blk(i, "altup_predict_coef"), .5, altup, altup*altup)
		b.matrix(blk(i, "altup_router"), 1, s.embd, altup)
		b.norm(blk(i, "altup_router_norm"), 1, s.embd)
		b.matrix(blk(i, "laurel_l"), 1, s.embd, laurel)
		b.matrix(blk(i, "laurel_r"), 1, laurel, s.embd)
		b.norm(blk(i, "laurel_post_norm"), 1, s.embd)
	}
}

// layered is a layer of a model whose layers differ.
type layered struct {
	windowed            bool
	heads, headsKV, dim int
	bare                bool // no projection of values: keys are values
}

// ints returns a number of each layer, as a key has it.
func ints(layers []layered, of func(layered) int) []int32 {
	var all []int32
	for _, l := range layers {
		all = append(all, int32(of(l)))
	}
	return all
}

// gemma4 has windowed layers with more and smaller heads than the full ones. The last four share the keys and values of 4, windowed,
// and 5, which serves two of them.
func gemma4(b *builder) { b.gemma4([]int{0, 0, 1, 0, 0, 1, 0, 1, 0, 1}, 4, 16, 32, 64) }

// gemma4Wide has head sizes that quantised slots are rotated in, each of its own, and no input of each layer.
func gemma4Wide(b *builder) { b.gemma4([]int{0, 1, 0, 1, 0, 1, 1}, 3, 64, 128, 0) }

func (b *builder) gemma4(full []int, shared, dimWindow, dimFull, perLayer int) {
	const embd, ff = 64, 96
	var all []layered
	for i, f := range full {
		l := layered{windowed: true, heads: 8, headsKV: 2, dim: dimWindow}
		if f == 1 {
			l = layered{heads: 4, headsKV: 1, dim: dimFull, bare: i == 2}
		}
		all = append(all, l)
	}
	windowed := make([]bool, len(all))
	for i, l := range all {
		windowed[i] = l.windowed
	}
	b.key("block_count", uint32(len(all)))
	b.key("embedding_length", uint32(embd))
	b.key("feed_forward_length", uint32(ff))
	b.key("attention.head_count", ints(all, func(l layered) int { return l.heads }))
	b.key("attention.head_count_kv", ints(all, func(l layered) int { return l.headsKV }))
	for _, name := range []string{"key_length", "value_length"} {
		b.key("attention."+name, uint32(dimFull))
		b.key("attention."+name+"_swa", uint32(dimWindow))
	}
	b.key("rope.dimension_count", uint32(dimFull))
	b.key("rope.dimension_count_swa", uint32(dimWindow))
	b.key("rope.freq_base", float32(1e6))
	b.key("rope.freq_base_swa", float32(1e4))
	b.key("attention.sliding_window", uint32(32))
	b.key("attention.sliding_window_pattern", windowed)
	b.key("attention.shared_kv_layers", uint32(shared))
	b.key("embedding_length_per_layer_input", uint32(perLayer))
	b.key("final_logit_softcapping", float32(10))
	b.rmsNorm()
	b.embed(1/math.Sqrt(embd), embd)
	b.norm("output_norm", 3, embd)
	b.add("rope_freqs.weight", gguf.F32, 1.5, .3, dimFull/2)
	if perLayer > 0 {
		b.add("per_layer_token_embd.weight", b.typ, 0, 1/math.Sqrt(float64(perLayer)), perLayer*len(all), b.vocab)
		b.matrix("per_layer_model_proj", 1, embd, perLayer*len(all))
		b.norm("per_layer_proj_norm", 1, perLayer)
	}
	for i, l := range all {
		b.norm(blk(i, "attn_norm"), 1, embd)
		b.matrix(blk(i, "attn_q"), 1, embd, l.heads*l.dim)
		peak := peaked / math.Pow(float64(l.dim), .25) // the scale of its attention is 1
		b.norm(blk(i, "attn_q_norm"), peak, l.dim)
		if i < len(all)-shared {
			b.matrix(blk(i, "attn_k"), 1, embd, l.headsKV*l.dim)
			b.norm(blk(i, "attn_k_norm"), peak, l.dim)
			if !l.bare {
				b.matrix(blk(i, "attn_v"), 1, embd, l.headsKV*l.dim)
			}
		}
		b.matrix(blk(i, "attn_output"), 1.5, l.heads*l.dim, embd)
		b.norm(blk(i, "post_attention_norm"), 1.5, embd)
		b.norm(blk(i, "ffn_norm"), 1, embd)
		b.gated(i, shape{embd: embd, ff: ff})
		b.norm(blk(i, "post_ffw_norm"), coarse, embd)
		b.add(blk(i, "layer_output_scale.weight"), gguf.F32, 1, .1, 1)
		if perLayer > 0 {
			b.matrix(blk(i, "inp_gate"), 1, embd, perLayer)
			b.matrix(blk(i, "proj"), 1, perLayer, embd)
			b.norm(blk(i, "post_norm"), coarse, embd) // behind a GELU too
		}
	}
}

// Gemma4Assistant drafts for a Gemma 4: it attends to that one's cache, and has no keys and values. It is none of All, because it needs
// the other one's context.
func Gemma4Assistant() Model {
	return Model{Name: "gemma4-assistant", Architecture: "gemma4-assistant", build: func(b *builder) {
		const embd, backbone, ff, dim, n = 32, 64, 64, 16, 2
		b.key("block_count", uint32(n))
		b.key("nextn_predict_layers", uint32(n))
		b.key("embedding_length", uint32(embd))
		b.key("embedding_length_out", uint32(backbone))
		b.key("feed_forward_length", uint32(ff))
		b.key("attention.head_count", uint32(4))
		b.key("attention.head_count_kv", uint32(2))
		for _, name := range []string{"key_length", "value_length", "key_length_swa", "value_length_swa"} {
			b.key("attention."+name, uint32(dim))
		}
		b.key("rope.dimension_count", uint32(dim))
		b.key("rope.freq_base_swa", float32(1e4))
		b.key("attention.sliding_window", uint32(32))
		b.key("attention.sliding_window_pattern", []bool{true, false})
		b.rmsNorm()
		b.embed(1, embd)
		b.norm("output_norm", 1, embd)
		b.matrix("nextn.post_projection", 1, embd, backbone)
		b.matrix("nextn.pre_projection", 1, 2*backbone, embd)
		b.add("rope_freqs.weight", gguf.F32, 1.5, .3, dim/2)
		for i := range n {
			b.norm(blk(i, "attn_norm"), 1, embd)
			b.matrix(blk(i, "attn_q"), 1, embd, 4*dim)
			b.matrix(blk(i, "attn_output"), 1, 4*dim, embd)
			b.norm(blk(i, "attn_q_norm"), 1, dim)
			b.norm(blk(i, "post_attention_norm"), 1, embd)
			b.add(blk(i, "layer_output_scale.weight"), gguf.F32, 1, .1, 1)
			b.norm(blk(i, "ffn_norm"), 1, embd)
			b.gated(i, shape{embd: embd, ff: ff})
			b.norm(blk(i, "post_ffw_norm"), 1, embd)
		}
	}}
}

// openelm has more heads, and a wider feed-forward network, the deeper the layer.
func openelm(b *builder) {
	const embd, dim = 64, 16
	all := []layered{{heads: 3, headsKV: 1}, {heads: 4, headsKV: 2}, {heads: 6, headsKV: 2}, {heads: 8, headsKV: 4}}
	b.key("block_count", uint32(len(all)))
	b.key("embedding_length", uint32(embd))
	b.key("feed_forward_length", []int32{64, 96, 96, 128})
	b.key("attention.head_count", ints(all, func(l layered) int { return l.heads }))
	b.key("attention.head_count_kv", ints(all, func(l layered) int { return l.headsKV }))
	b.key("attention.key_length", uint32(dim))
	b.key("attention.value_length", uint32(dim))
	b.key("rope.dimension_count", uint32(dim))
	b.rmsNorm()
	b.embed(1, embd)
	b.norm("output_norm", .4, embd) // the output matrix is the embeddings
	for i, l := range all {
		b.norm(blk(i, "attn_norm"), 1, embd)
		b.fused(i, shape{embd: embd, heads: l.heads, headsKV: l.headsKV, dim: dim}, 1)
		b.norm(blk(i, "attn_q_norm"), peaked, dim)
		b.norm(blk(i, "attn_k_norm"), peaked, dim)
		b.norm(blk(i, "ffn_norm"), 1, embd)
		b.gated(i, shape{embd: embd, ff: []int{64, 96, 96, 128}[i]})
	}
}

// deci has a layer without attention, one with a matrix in its place, and two with different KV heads; some have no feed-forward network.
func deci(b *builder) {
	const embd, dim = 64, 16
	all := []layered{{heads: 4, headsKV: 4}, {heads: 0, headsKV: 0}, {heads: 4, headsKV: 0}, {heads: 4, headsKV: 2}, {heads: 4, headsKV: 1}}
	ff := []int32{96, 64, 0, 128, 96}
	b.key("block_count", uint32(len(all)))
	b.key("embedding_length", uint32(embd))
	b.key("feed_forward_length", ff)
	b.key("attention.head_count", ints(all, func(l layered) int { return l.heads }))
	b.key("attention.head_count_kv", ints(all, func(l layered) int { return l.headsKV }))
	b.key("attention.key_length", uint32(dim))
	b.key("attention.value_length", uint32(dim))
	b.key("rope.dimension_count", uint32(dim))
	b.rmsNorm()
	b.embed(1, embd)
	b.output(embd)
	for i, l := range all {
		switch {
		case l.headsKV > 0:
			b.norm(blk(i, "attn_norm"), 1, embd)
			b.qkvo(i, shape{embd: embd, heads: l.heads, headsKV: l.headsKV, dim: dim}, peaked)
		case l.heads > 0:
			b.norm(blk(i, "attn_norm"), 1, embd)
			b.matrix(blk(i, "attn_output"), .5, embd, embd)
		}
		if ff[i] > 0 {
			b.norm(blk(i, "ffn_norm"), 1, embd)
			b.gated(i, shape{embd: embd, ff: int(ff[i])})
		}
	}
}
