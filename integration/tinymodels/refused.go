package tinymodels

import "github.com/lesskv/lesskv/weights/gguf"

func mpt(b *builder) {
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4, headsKV: 4, dim: 16}
	b.shape(s)
	b.layerNorm()
	b.key("attention.max_alibi_bias", float32(8))
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.fused(i, s, peaked)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.plain(i, s, coarse)
	}
}

func bloom(b *builder) {
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4, headsKV: 4, dim: 16}
	b.shape(s)
	b.layerNorm()
	b.embed(1, s.embd)
	b.normBias("token_embd_norm", s.embd)
	b.output(s.embd)
	b.bias("output_norm", s.embd)
	for i := range s.layers {
		b.gptLayer(i, s)
	}
}

func bert(b *builder) {
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4, headsKV: 4, dim: 16}
	b.shape(s)
	b.layerNorm()
	b.key("attention.causal", false)
	b.key("pooling_type", uint32(1)) // mean
	b.pairs = append(b.pairs, gguf.KeyValue{Key: "tokenizer.ggml.token_type_count", Value: uint32(2)})
	b.embed(1, s.embd)
	b.add("position_embd.weight", gguf.F32, 0, .5, s.embd, context)
	b.add("token_types.weight", gguf.F32, 0, .5, s.embd, 2)
	b.normBias("token_embd_norm", s.embd)
	for i := range s.layers {
		b.qkvo(i, s, peaked)
		for _, name := range []string{"attn_q", "attn_k", "attn_v"} {
			b.bias(blk(i, name), s.embd)
		}
		b.normBias(blk(i, "attn_output_norm"), s.embd)
		b.plain(i, s, coarse)
		b.normBias(blk(i, "layer_output_norm"), s.embd)
	}
}

// ssm are the sizes of a Mamba layer; the inner one is twice the embedding's.
type ssm struct{ conv, state, rank int }

func (b *builder) ssm(m ssm, embd int) {
	b.key("ssm.conv_kernel", uint32(m.conv))
	b.key("ssm.inner_size", uint32(2*embd))
	b.key("ssm.state_size", uint32(m.state))
	b.key("ssm.time_step_rank", uint32(m.rank))
}

func (b *builder) mambaLayer(i, embd int, m ssm) {
	inner := 2 * embd
	b.matrix(blk(i, "ssm_in"), 1, embd, 2*inner)
	b.add(blk(i, "ssm_conv1d.weight"), gguf.F32, 0, .5, m.conv, inner)
	b.bias(blk(i, "ssm_conv1d"), inner)
	b.matrix(blk(i, "ssm_x"), 1, inner, m.rank+2*m.state)
	b.matrix(blk(i, "ssm_dt"), 1, m.rank, inner)
	b.bias(blk(i, "ssm_dt"), inner)
	b.add(blk(i, "ssm_a"), gguf.F32, -1, .1, m.state, inner) // below zero: the state decays
	b.add(blk(i, "ssm_d"), gguf.F32, 1, .1, inner)
	b.matrix(blk(i, "ssm_out"), 1, inner, embd)
}

func mamba(b *builder) {
	const embd = 64
	m := ssm{conv: 4, state: 8, rank: 4}
	b.key("block_count", uint32(2))
	b.key("embedding_length", uint32(embd))
	b.rmsNorm()
	b.ssm(m, embd)
	b.embed(1, embd)
	b.output(embd)
	for i := range 2 {
		b.norm(blk(i, "attn_norm"), 1, embd)
		b.mambaLayer(i, embd, m)
	}
}

// latent adds multi-head latent attention but for its queries: keys of nope and rope elements, without and with rotation.
func (b *builder) latent(i int, s shape, rank, nope, rope, dimV int) {
	b.matrix(blk(i, "attn_kv_a_mqa"), 1, s.embd, rank+rope)
	b.norm(blk(i, "attn_kv_a_norm"), 1, rank)
	b.matrix(blk(i, "attn_k_b"), peaked, nope, rank, s.heads)
	b.matrix(blk(i, "attn_v_b"), 1, rank, dimV, s.heads)
	b.matrix(blk(i, "attn_output"), 1, s.heads*dimV, s.embd)
}

func deepseek2(b *builder) {
	const (
		rankQ, rankKV = 32, 32
		nope, rope    = 16, 8 // of a head's keys, without and with rotation
		dimV          = 16
	)
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4}
	b.key("block_count", uint32(s.layers))
	b.key("embedding_length", uint32(s.embd))
	b.key("feed_forward_length", uint32(s.ff))
	b.key("attention.head_count", uint32(s.heads))
	b.key("attention.head_count_kv", uint32(1)) // the compressed one
	b.key("attention.key_length", uint32(rankKV+rope))
	b.key("attention.value_length", uint32(rankKV))
	b.key("attention.key_length_mla", uint32(nope+rope))
	b.key("attention.value_length_mla", uint32(dimV))
	b.key("attention.q_lora_rank", uint32(rankQ))
	b.key("attention.kv_lora_rank", uint32(rankKV))
	b.key("rope.dimension_count", uint32(rope))
	b.key("leading_dense_block_count", uint32(s.layers))
	b.key("expert_feed_forward_length", uint32(s.ff))
	b.key("expert_shared_count", uint32(0))
	b.key("expert_weights_scale", float32(1))
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.matrix(blk(i, "attn_q_a"), 1, s.embd, rankQ)
		b.norm(blk(i, "attn_q_a_norm"), 1, rankQ)
		b.matrix(blk(i, "attn_q_b"), peaked, rankQ, s.heads*(nope+rope))
		b.latent(i, s, rankKV, nope, rope, dimV)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

func t5(b *builder) {
	const buckets = 32
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4, headsKV: 4, dim: 16}
	b.shape(s)
	b.rmsNorm()
	b.key("attention.relative_buckets_count", uint32(buckets))
	b.key("decoder_start_token_id", uint32(0))
	b.embed(1, s.embd)
	b.norm("enc.output_norm", 1, s.embd)
	b.norm("dec.output_norm", 1, s.embd)
	b.matrix("output", 3, s.embd, b.vocab)
	for i := range s.layers {
		for _, part := range []struct{ prefix, attn string }{{"enc.", "attn"}, {"dec.", "attn"}, {"dec.", "cross_attn"}} {
			name := func(suffix string) string { return part.prefix + blk(i, part.attn+suffix) }
			b.norm(name("_norm"), 1, s.embd)
			b.matrix(name("_q"), .8, s.embd, s.heads*s.dim) // the scale of T5's attention is 1
			b.matrix(name("_k"), .8, s.embd, s.heads*s.dim)
			b.matrix(name("_v"), 1, s.embd, s.heads*s.dim)
			b.matrix(name("_o"), 1, s.heads*s.dim, s.embd)
			b.add(name("_rel_b.weight"), gguf.F32, 0, 1, s.heads, buckets)
		}
		for _, prefix := range []string{"enc.", "dec."} {
			b.norm(prefix+blk(i, "ffn_norm"), 1, s.embd)
			b.matrix(prefix+blk(i, "ffn_up"), 1, s.embd, s.ff)
			b.matrix(prefix+blk(i, "ffn_down"), 1, s.ff, s.embd)
		}
	}
}

func llama4(b *builder) {
	const experts = 4
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16} // three chunked layers and a full one
	b.shape(s)
	b.rmsNorm()
	b.key("expert_feed_forward_length", uint32(s.ff))
	b.key("expert_count", uint32(experts))
	b.key("expert_used_count", uint32(1))
	b.key("interleave_moe_layer_step", uint32(2))
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, peaked)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		if i%2 == 0 {
			b.gated(i, s)
			continue
		}
		b.experts(i, experts, s)
		b.matrix(blk(i, "ffn_gate_shexp"), 1, s.embd, s.ff)
		b.matrix(blk(i, "ffn_up_shexp"), 1, s.embd, s.ff)
		b.matrix(blk(i, "ffn_down_shexp"), 1, s.ff, s.embd)
	}
}

func grok(b *builder) {
	const experts = 4
	s := shape{layers: 2, embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 16}
	b.shape(s)
	b.rmsNorm()
	b.key("expert_count", uint32(experts))
	b.key("expert_used_count", uint32(2))
	b.key("embedding_scale", float32(1))
	b.key("logit_scale", float32(1))
	b.key("attention.output_scale", float32(.25)) // 1/sqrt(dim)
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, peaked)
		b.norm(blk(i, "attn_output_norm"), 1, s.embd)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.experts(i, experts, s)
		b.norm(blk(i, "post_ffw_norm"), coarse, s.embd)
	}
}
