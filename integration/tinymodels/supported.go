package tinymodels

import (
	"math"

	"github.com/lesskv/lesskv/weights/gguf"
)

func llama(b *builder) {
	llamaOf(b, shape{layers: layers, embd: 128, ff: 192, heads: 8, headsKV: 2, dim: 16})
}

func llamaOf(b *builder, s shape) {
	b.shape(s)
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, peaked)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

func graniteSWA(b *builder) {
	s := shape{layers: layers, embd: 128, ff: 192, heads: 8, headsKV: 2, dim: 16}
	llamaOf(b, s)
	b.key("embedding_scale", float32(1.2))
	b.key("residual_scale", float32(.8))
	b.key("logit_scale", float32(1.5))
	b.key("attention.scale", float32(.2))
	b.key("attention.sliding_window", uint32(32))
	b.key("attention.sliding_window_pattern", []bool{true, true, true, false})
	for i := range s.layers {
		b.add(blk(i, "attn_sinks.weight"), gguf.F32, 1, 1, s.heads)
	}
}

func qwen3(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 32}
	b.shape(s)
	b.rmsNorm()
	b.key("rope.freq_base", float32(1e6))
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, 1)
		b.norm(blk(i, "attn_q_norm"), peaked, s.dim)
		b.norm(blk(i, "attn_k_norm"), peaked, s.dim)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

// gemma adds what the Gemmas share: embeddings that are scaled and tied, a norm before and after each branch.
func (b *builder) gemma(s shape, gain float64) {
	b.shape(s)
	b.rmsNorm()
	b.embed(1/math.Sqrt(float64(s.embd)), s.embd)
	b.norm("output_norm", 3, s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, gain)
		b.norm(blk(i, "post_attention_norm"), 1.5, s.embd)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
		b.norm(blk(i, "post_ffw_norm"), coarse, s.embd)
	}
}

func gemma2(b *builder) {
	b.key("attention.sliding_window", uint32(32))
	b.key("attn_logit_softcapping", float32(5))
	b.key("final_logit_softcapping", float32(10))
	b.gemma(shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 32}, peaked)
}

func gemma3(b *builder) {
	s := shape{layers: 6, embd: 64, ff: 128, heads: 4, headsKV: 1, dim: 16}
	b.key("attention.sliding_window", uint32(24))
	b.key("rope.freq_base", float32(1e6))
	b.gemma(s, 1)
	for i := range s.layers {
		b.norm(blk(i, "attn_q_norm"), peaked, s.dim)
		b.norm(blk(i, "attn_k_norm"), peaked, s.dim)
	}
}

func phi3(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 96, heads: 4, headsKV: 2, dim: 16}
	b.shape(s)
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.fused(i, s, peaked)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.matrix(blk(i, "ffn_up"), 1, s.embd, 2*s.ff) // gate and up in one
		b.matrix(blk(i, "ffn_down"), 1, s.ff, s.embd)
	}
}

func falcon(b *builder) {
	s := shape{layers: layers, embd: 128, ff: 256, heads: 4, headsKV: 1, dim: 32}
	b.shape(s)
	b.layerNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	b.bias("output_norm", s.embd)
	for i := range s.layers {
		b.normBias(blk(i, "attn_norm"), s.embd)
		b.fused(i, s, peaked)
		b.plain(i, s, coarse)
	}
}

// gptLayer adds a layer as GPT-2 has it: norms and projections with biases.
func (b *builder) gptLayer(i int, s shape) {
	b.normBias(blk(i, "attn_norm"), s.embd)
	b.fused(i, s, peaked)
	b.bias(blk(i, "attn_qkv"), (s.heads+2*s.headsKV)*s.dim)
	b.bias(blk(i, "attn_output"), s.embd)
	b.normBias(blk(i, "ffn_norm"), s.embd)
	b.plain(i, s, coarse)
	b.bias(blk(i, "ffn_up"), s.ff)
	b.bias(blk(i, "ffn_down"), s.embd)
}

func gpt2(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 4, dim: 16}
	b.shape(s)
	b.layerNorm()
	b.embed(1, s.embd)
	b.add("position_embd.weight", gguf.F32, 0, .5, s.embd, context)
	b.output(s.embd)
	b.bias("output_norm", s.embd)
	for i := range s.layers {
		b.gptLayer(i, s)
	}
}

func gptOSS(b *builder) {
	const experts = 4
	s := shape{layers: layers, embd: 64, ff: 64, heads: 8, headsKV: 2, dim: 16}
	b.shape(s)
	b.rmsNorm()
	b.key("attention.sliding_window", uint32(32))
	b.key("expert_feed_forward_length", uint32(s.ff))
	b.key("expert_count", uint32(experts))
	b.key("expert_used_count", uint32(2))
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, peaked)
		b.bias(blk(i, "attn_q"), s.heads*s.dim)
		b.bias(blk(i, "attn_k"), s.headsKV*s.dim)
		b.bias(blk(i, "attn_v"), s.headsKV*s.dim)
		b.bias(blk(i, "attn_output"), s.embd)
		b.add(blk(i, "attn_sinks.weight"), gguf.F32, 3, 2, s.heads) // of the size of the largest logits
		b.norm(blk(i, "post_attention_norm"), 1, s.embd)
		b.experts(i, experts, s)
		b.bias(blk(i, "ffn_gate_inp"), experts)
		b.bias(blk(i, "ffn_gate_exps"), s.ff, experts)
		b.bias(blk(i, "ffn_up_exps"), s.ff, experts)
		b.bias(blk(i, "ffn_down_exps"), s.embd, experts)
	}
}
