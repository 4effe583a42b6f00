package tinymodels

import "github.com/lesskv/lesskv/weights/gguf"

// The hybrids: models in which some layers attend and others are recurrent. With them stand those whose positions have
// several parts (M-RoPE), which of text are one.

// heads gives heads, those of keys and values layer by layer (0: the layer does not attend), and their size.
func (b *builder) heads(s shape, headsKV []int32) {
	b.key("block_count", uint32(len(headsKV)))
	b.key("embedding_length", uint32(s.embd))
	b.key("attention.head_count", uint32(s.heads))
	b.key("attention.head_count_kv", headsKV)
	b.key("attention.key_length", uint32(s.dim))
	b.key("attention.value_length", uint32(s.dim))
	b.key("rope.dimension_count", uint32(s.dim))
}

// normed adds projections whose q and k a norm follows, which gives them their size.
func (b *builder) normed(i int, s shape) {
	b.qkvo(i, s, 1)
	b.norm(blk(i, "attn_q_norm"), peaked, s.dim)
	b.norm(blk(i, "attn_k_norm"), peaked, s.dim)
}

// bare adds a norm whose name does not end in ".weight".
func (b *builder) bare(name string, mean float64, n int) {
	b.add(name, gguf.F32, mean, .1*mean, n)
}

// shared adds an expert that every token goes to.
func (b *builder) shared(i, ff int, s shape, gate bool) {
	if gate {
		b.matrix(blk(i, "ffn_gate_shexp"), 1, s.embd, ff)
	}
	b.matrix(blk(i, "ffn_up_shexp"), 1, s.embd, ff)
	b.matrix(blk(i, "ffn_down_shexp"), 1, ff, s.embd)
}

// routed gives the keys of experts of size ff, of which two of four are used.
func (b *builder) routed(ff int) {
	b.key("expert_count", uint32(4))
	b.key("expert_used_count", uint32(2))
	b.key("expert_feed_forward_length", uint32(ff))
}

// delta are the sizes of a gated delta net: heads of keys and of values, size of both.
type delta struct{ conv, state, keys, values int }

func (b *builder) delta(d delta) {
	b.key("ssm.conv_kernel", uint32(d.conv))
	b.key("ssm.state_size", uint32(d.state))
	b.key("ssm.group_count", uint32(d.keys))
	b.key("ssm.time_step_rank", uint32(d.values))
	b.key("ssm.inner_size", uint32(d.values*d.state))
}

// deltaLayer adds all of a layer but beta and alpha, whose tensors differ.
func (b *builder) deltaLayer(i, embd int, d delta) {
	keys, values := d.keys*d.state, d.values*d.state
	b.matrix(blk(i, "attn_qkv"), 1, embd, 2*keys+values)
	b.matrix(blk(i, "attn_gate"), 1, embd, values)
	b.add(blk(i, "ssm_conv1d.weight"), gguf.F32, 0, .7, d.conv, 2*keys+values)
	b.bias(blk(i, "ssm_dt"), d.values)
	b.add(blk(i, "ssm_a"), gguf.F32, -.1, .01, d.values) // remembers some ten tokens
	b.norm(blk(i, "ssm_norm"), 1, d.state)
	b.matrix(blk(i, "ssm_out"), 1.5, values, embd)
}

// gatedAttention adds attention whose output is gated, beside q in its projection.
func (b *builder) gatedAttention(i int, s shape) {
	b.matrix(blk(i, "attn_q"), 1, s.embd, 2*s.heads*s.dim)
	b.matrix(blk(i, "attn_k"), 1, s.embd, s.headsKV*s.dim)
	b.matrix(blk(i, "attn_v"), 1, s.embd, s.headsKV*s.dim)
	b.matrix(blk(i, "attn_output"), 3, s.heads*s.dim, s.embd)
	b.norm(blk(i, "attn_q_norm"), peaked, s.dim)
	b.norm(blk(i, "attn_k_norm"), peaked, s.dim)
}

// qwenHybrid is what Qwen3-Next and Qwen 3.5 share: every fourth layer attends. ffn and ba add the rest of a layer.
func (b *builder) qwenHybrid(s shape, d delta, ba, ffn func(i int)) {
	b.shape(s)
	b.rmsNorm()
	b.delta(d)
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.norm(blk(i, "post_attention_norm"), 1, s.embd)
		if (i+1)%4 == 0 {
			b.gatedAttention(i, s)
		} else {
			b.deltaLayer(i, s.embd, d)
			ba(i)
		}
		ffn(i)
	}
}

// betaAlpha adds a projection each for beta and alpha.
func (b *builder) betaAlpha(s shape, d delta) func(int) {
	return func(i int) {
		b.matrix(blk(i, "ssm_beta"), 1, s.embd, d.values)
		b.matrix(blk(i, "ssm_alpha"), 1, s.embd, d.values)
	}
}

// qwenExperts adds experts and a shared one with a gate.
func (b *builder) qwenExperts(s shape) func(int) {
	b.routed(s.ff)
	b.key("expert_shared_feed_forward_length", uint32(s.ff))
	return func(i int) {
		b.experts(i, 4, s)
		b.shared(i, s.ff, s, true)
		b.add(blk(i, "ffn_gate_inp_shexp.weight"), gguf.F32, 0, 1./8, s.embd)
	}
}

var qwen35Shape = shape{layers: 8, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 64}

func qwen35(b *builder) {
	s := qwen35Shape
	d := delta{conv: 4, state: 16, keys: 2, values: 4}
	b.key("rope.dimension_sections", []int32{11, 11, 10, 0})
	b.qwenHybrid(s, d, b.betaAlpha(s, d), func(i int) { b.gated(i, s) })
}

// qwen35Ahead has one layer more, which attends and predicts the token after the next.
func qwen35Ahead(b *builder) {
	qwen35(b)
	s, i := qwen35Shape, qwen35Shape.layers
	b.ahead(i)
	b.norm(blk(i, "attn_norm"), 1, s.embd)
	b.norm(blk(i, "post_attention_norm"), 1, s.embd)
	b.gatedAttention(i, s)
	b.gated(i, s)
	b.matrix(blk(i, "nextn.eh_proj"), 1, 2*s.embd, s.embd)
	b.norm(blk(i, "nextn.enorm"), 1, s.embd)
	b.norm(blk(i, "nextn.hnorm"), 1, s.embd)
}

// ahead says that behind n layers stands one that predicts one token more.
func (b *builder) ahead(n int) {
	b.change("block_count", uint32(n+1))
	b.key("nextn_predict_layers", uint32(1))
}

func qwen35MoE(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 32}
	d := delta{conv: 4, state: 16, keys: 2, values: 4}
	b.key("rope.dimension_sections", []int32{6, 5, 5, 0})
	b.qwenHybrid(s, d, b.betaAlpha(s, d), b.qwenExperts(s))
}

func qwen3Next(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 32}
	d := delta{conv: 4, state: 16, keys: 2, values: 4}
	b.qwenHybrid(s, d, func(i int) { b.matrix(blk(i, "ssm_ba"), 1, s.embd, 2*d.values) }, b.qwenExperts(s))
}

// lfm2 has short convolutions where the others have a state.
func lfm2(b *builder) {
	s := shape{embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	b.lfm2(s, func(i int) { b.gated(i, s) })
}

func lfm2Window(b *builder) {
	b.key("attention.sliding_window", uint32(32))
	lfm2(b)
}

func lfm2MoE(b *builder) {
	s := shape{embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 16}
	b.routed(s.ff)
	b.key("leading_dense_block_count", uint32(2))
	b.key("expert_gating_func", uint32(2)) // sigmoid
	b.lfm2(s, func(i int) {
		if i < 2 {
			b.gated(i, s)
			return
		}
		b.experts(i, 4, s)
		b.bias(blk(i, "exp_probs_b"), 4)
	})
}

func (b *builder) lfm2(s shape, ffn func(i int)) {
	const cache = 3
	headsKV := []int32{0, 0, int32(s.headsKV), 0, int32(s.headsKV), 0}
	b.heads(s, headsKV)
	b.key("feed_forward_length", uint32(s.ff))
	b.key("shortconv.l_cache", uint32(cache))
	b.rmsNorm()
	b.embed(1, s.embd)
	b.norm("token_embd_norm", 1, s.embd) // the output's, under the name that it got
	b.matrix("output", 3, s.embd, b.vocab)
	for i, n := range headsKV {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if n > 0 {
			b.normed(i, s)
		} else {
			b.add(blk(i, "shortconv.conv.weight"), gguf.F32, 0, .7, cache, s.embd)
			b.matrix(blk(i, "shortconv.in_proj"), 1, s.embd, 3*s.embd)
			b.matrix(blk(i, "shortconv.out_proj"), 1, s.embd, s.embd)
		}
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		ffn(i)
	}
}

// mamba2 are the sizes of a Mamba 2 layer.
type mamba2 struct{ conv, inner, state, heads, groups int }

func (b *builder) mamba2(m mamba2) {
	b.key("ssm.conv_kernel", uint32(m.conv))
	b.key("ssm.inner_size", uint32(m.inner))
	b.key("ssm.state_size", uint32(m.state))
	b.key("ssm.time_step_rank", uint32(m.heads))
	b.key("ssm.group_count", uint32(m.groups))
}

func (b *builder) mamba2Layer(i, embd int, m mamba2) {
	conv := m.inner + 2*m.groups*m.state
	b.matrix(blk(i, "ssm_in"), 1, embd, m.inner+conv+m.heads)
	b.add(blk(i, "ssm_conv1d.weight"), gguf.F32, 0, .5, m.conv, conv)
	b.bias(blk(i, "ssm_conv1d"), conv)
	b.bias(blk(i, "ssm_dt"), m.heads)
	b.add(blk(i, "ssm_a"), gguf.F32, -.2, .02, 1, m.heads) // below zero: the state decays
	b.add(blk(i, "ssm_d"), gguf.F32, 1, .1, 1, m.heads)
	b.add(blk(i, "ssm_norm.weight"), gguf.F32, 1, .1, m.inner/m.groups, m.groups)
	b.matrix(blk(i, "ssm_out"), 1, m.inner, embd)
}

func graniteHybrid(b *builder) {
	s := shape{embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	m := mamba2{conv: 4, inner: 128, state: 16, heads: 8, groups: 1}
	headsKV := []int32{0, 0, 2, 0, 2, 0}
	b.heads(s, headsKV)
	b.key("feed_forward_length", uint32(s.ff))
	b.key("embedding_scale", float32(2))
	b.key("residual_scale", float32(.7))
	b.key("logit_scale", float32(2))
	b.key("attention.scale", float32(.2))
	b.mamba2(m)
	b.rmsNorm()
	b.embed(.5, s.embd)
	b.norm("output_norm", 1, s.embd)
	b.matrix("output", 6, s.embd, b.vocab)
	for i, n := range headsKV {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if n > 0 {
			b.qkvo(i, s, peaked)
		} else {
			b.mamba2Layer(i, s.embd, m)
		}
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

// nemotronH's layers are one thing each: recurrent, attention, or feed-forward.
func nemotronH(b *builder) {
	s := shape{embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	b.nemotronH(s, func(i int) { b.plain(i, s, coarse) })
}

func nemotronHMoE(b *builder) {
	s := shape{embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 16}
	b.routed(s.ff)
	b.key("expert_shared_feed_forward_length", uint32(s.ff))
	b.key("expert_shared_count", uint32(1))
	b.key("expert_weights_norm", true)
	b.key("expert_weights_scale", float32(1))
	b.nemotronH(s, func(i int) {
		b.matrix(blk(i, "ffn_gate_inp"), 1, s.embd, 4)
		b.bias(blk(i, "exp_probs_b"), 4)
		b.matrix(blk(i, "ffn_up_exps"), 1, s.embd, s.ff, 4)
		b.matrix(blk(i, "ffn_down_exps"), coarse, s.ff, s.embd, 4)
		b.shared(i, s.ff, s, false)
	})
}

func (b *builder) nemotronH(s shape, ffn func(i int)) {
	const recurrent, forward = 'r', 'f'
	m := mamba2{conv: 4, inner: 128, state: 16, heads: 8, groups: 2}
	kinds := "rfarfraf"
	headsKV, ff := make([]int32, len(kinds)), make([]int32, len(kinds))
	for i, kind := range kinds {
		switch kind {
		case recurrent:
		case forward:
			ff[i] = int32(s.ff)
		default:
			headsKV[i] = int32(s.headsKV)
		}
	}
	b.heads(s, headsKV)
	b.key("feed_forward_length", ff)
	b.mamba2(m)
	b.rmsNorm()
	b.layerNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i, kind := range kinds {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		switch kind {
		case recurrent:
			b.mamba2Layer(i, s.embd, m)
		case forward:
			ffn(i)
		default:
			b.qkvo(i, s, peaked)
		}
	}
}

// falconH1 attends and recurs in every layer, side by side.
func falconH1(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	m := mamba2{conv: 4, inner: 96, state: 16, heads: 6, groups: 1}
	b.shape(s)
	b.mamba2(m)
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.qkvo(i, s, peaked)
		b.mamba2Layer(i, s.embd, m)
		b.bare(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

func jamba(b *builder) {
	m := ssm{conv: 4, state: 8, rank: 4}
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	headsKV := []int32{0, int32(s.headsKV), 0, int32(s.headsKV)}
	b.key("block_count", uint32(s.layers))
	b.key("embedding_length", uint32(s.embd))
	b.key("feed_forward_length", uint32(s.ff))
	b.key("attention.head_count", uint32(s.heads))
	b.key("attention.head_count_kv", headsKV)
	b.rmsNorm()
	b.ssm(m, s.embd)
	b.embed(1, s.embd)
	b.output(s.embd)
	for i, n := range headsKV {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if n == 0 {
			b.mambaLayer(i, s.embd, m)
			b.norm(blk(i, "ssm_dt_norm"), 1, m.rank)
			b.norm(blk(i, "ssm_b_norm"), 1, m.state)
			b.norm(blk(i, "ssm_c_norm"), 1, m.state)
		} else {
			b.qkvo(i, s, peaked)
		}
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

func plamo2(b *builder) {
	const (
		rank  = 64 // at least, in llama.cpp
		heads = 8  // of its Mamba layers
	)
	s := shape{embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	m := ssm{conv: 4, state: 16}
	headsKV := []int32{0, int32(s.headsKV), 0, int32(s.headsKV)}
	inner := 2 * s.embd
	b.heads(s, headsKV)
	b.key("feed_forward_length", uint32(s.ff))
	b.key("ssm.conv_kernel", uint32(m.conv))
	b.key("ssm.inner_size", uint32(inner))
	b.key("ssm.state_size", uint32(m.state))
	b.key("ssm.time_step_rank", uint32(heads))
	b.key("ssm.group_count", uint32(0))
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i, n := range headsKV {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if n == 0 {
			b.matrix(blk(i, "ssm_in"), 1, s.embd, 2*inner)
			b.add(blk(i, "ssm_conv1d.weight"), gguf.F32, 0, .5, m.conv, inner)
			b.matrix(blk(i, "ssm_x"), 1, inner, rank+2*m.state)
			b.matrix(blk(i, "ssm_dt"), 1, rank, heads)
			b.bias(blk(i, "ssm_dt"), heads)
			b.add(blk(i, "ssm_a"), gguf.F32, -.2, .02, heads)
			b.add(blk(i, "ssm_d"), gguf.F32, 1, .1, heads)
			b.matrix(blk(i, "ssm_out"), 1, inner, s.embd)
			b.bare(blk(i, "ssm_dt_norm"), 1, rank)
			b.bare(blk(i, "ssm_b_norm"), 1, m.state)
			b.bare(blk(i, "ssm_c_norm"), 1, m.state)
		} else {
			b.fused(i, s, 1)
			b.add(blk(i, "attn_q_norm.weight"), gguf.F32, peaked, .1, s.dim, s.heads)
			b.add(blk(i, "attn_k_norm.weight"), gguf.F32, peaked, .1, s.dim, s.headsKV)
		}
		b.bare(blk(i, "post_attention_norm"), 1, s.embd)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.matrix(blk(i, "ffn_up"), 1, s.embd, 2*s.ff)
		b.matrix(blk(i, "ffn_down"), 1, s.ff, s.embd)
		b.bare(blk(i, "post_ffw_norm"), 1, s.embd)
	}
}

func minimax01(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 64, heads: 4, headsKV: 2, dim: 16}
	b.shape(s)
	b.rmsNorm()
	b.routed(s.ff)
	b.key("full_attention_interval", uint32(2))
	b.key("residual_scale", float32(1.5))
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if i%2 == 1 {
			b.qkvo(i, s, peaked)
		} else {
			b.norm(blk(i, "attn_norm_2"), 1, s.heads*s.dim)
			b.matrix(blk(i, "attn_qkv"), 1, s.embd, 3*s.heads*s.dim)
			b.matrix(blk(i, "attn_gate"), 1, s.embd, s.heads*s.dim)
			b.matrix(blk(i, "attn_output"), 1, s.heads*s.dim, s.embd)
		}
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.experts(i, 4, s)
	}
}

// kimiLinear attends with a latent in every other layer, to keys alone.
func kimiLinear(b *builder) {
	const (
		conv, kda  = 4, 16
		rank       = 32
		nope, rope = 16, 8
		dimV       = 16
	)
	s := shape{layers: 2, embd: 64, ff: 128, heads: 4}
	b.key("block_count", uint32(s.layers))
	b.key("embedding_length", uint32(s.embd))
	b.key("feed_forward_length", uint32(s.ff))
	b.key("attention.head_count", uint32(s.heads))
	b.key("attention.head_count_kv", []int32{0, 1})
	b.key("attention.key_length", uint32(rank+rope))
	b.key("attention.value_length", uint32(rank))
	b.key("attention.key_length_mla", uint32(nope+rope))
	b.key("attention.value_length_mla", uint32(dimV))
	b.key("attention.kv_lora_rank", uint32(rank))
	b.key("rope.dimension_count", uint32(rope))
	b.key("ssm.conv_kernel", uint32(conv))
	b.key("kda.head_dim", uint32(kda))
	b.routed(s.ff)
	b.key("expert_shared_count", uint32(1))
	b.key("expert_gating_func", uint32(2))
	b.key("leading_dense_block_count", uint32(s.layers))
	b.rmsNorm()
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		if i == 0 {
			all := s.heads * kda
			for _, name := range []string{"q", "k", "v"} {
				b.add(blk(i, "ssm_conv1d_"+name+".weight"), gguf.F32, 0, .5, conv, 1, all)
				b.matrix(blk(i, "attn_"+name), 1, s.embd, all)
			}
			b.matrix(blk(i, "ssm_f_a"), 1, s.embd, kda)
			b.matrix(blk(i, "ssm_f_b"), 1, kda, all)
			b.matrix(blk(i, "ssm_beta"), 1, s.embd, s.heads)
			b.add(blk(i, "ssm_a"), gguf.F32, -.2, .02, 1, s.heads)
			b.bias(blk(i, "ssm_dt"), all)
			b.matrix(blk(i, "ssm_g_a"), 1, s.embd, kda)
			b.matrix(blk(i, "ssm_g_b"), 1, kda, all)
			b.norm(blk(i, "ssm_norm"), 1, kda)
			b.matrix(blk(i, "attn_output"), 1, all, s.embd)
		} else {
			b.matrix(blk(i, "attn_q"), peaked, s.embd, s.heads*(nope+rope))
			b.latent(i, s, rank, nope, rope, dimV)
		}
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}

// qwen2vl and qwen3vl are the text half of vision models.
func qwen2vl(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 128, heads: 4, headsKV: 2, dim: 16}
	b.key("rope.dimension_sections", []int32{2, 3, 3, 0}) // of half a head: time, height, width
	llamaOf(b, s)
	for i := range s.layers {
		b.bias(blk(i, "attn_q"), s.heads*s.dim)
		b.bias(blk(i, "attn_k"), s.headsKV*s.dim)
		b.bias(blk(i, "attn_v"), s.headsKV*s.dim)
	}
}

func qwen3vl(b *builder) {
	s := shape{layers: layers, embd: 64, ff: 128, heads: 2, headsKV: 2, dim: 32}
	b.shape(s)
	b.rmsNorm()
	b.key("rope.dimension_sections", []int32{6, 5, 5, 0})
	b.embed(1, s.embd)
	b.output(s.embd)
	for i := range s.layers {
		b.norm(blk(i, "attn_norm"), 1, s.embd)
		b.normed(i, s)
		b.norm(blk(i, "ffn_norm"), 1, s.embd)
		b.gated(i, s)
	}
}
