// The hooks inside the graph. With LESS on the device its operations are lesskv-device-graph.cpp's. Without, there are
// one control input, and two custom nodes a layer, attend and commit (and one for each of k and v, where slots are quantised), with the barrier that ggml puts between any two nodes. A layer that shares another's cache attends before that one commits; each of the two then has a node
// more, which gathers what pairs were worth to it.

#include "lesskv-hooks.h"
#include "lesskv-hybrid.h"
#include "lesskv-memory.h"

#include "llama-arch.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

namespace {

// {sequence, position of the first token}. The nodes read it when they run, so one graph serves every micro-batch of its
// size, and reserving a graph needs no sequence.
ggml_tensor * new_control(const llm_graph_context & g) {
    ggml_tensor * t = ggml_new_tensor_1d(g.ctx0, GGML_TYPE_I32, 2);
    ggml_set_input(t);
    g.cb(t, "lesskv_control", -1);
    return t;
}

void set_control(ggml_tensor * t, const llama_ubatch * ub) {
    const int32_t v[2] = { ub->seq_id[0][0], ub->pos[0] };
    ggml_backend_tensor_set(t, v, 0, sizeof(v));
}

// What a layer whose cache is shared has in a graph: its sharers attend to the same k and v.
struct shared {
    ggml_tensor * k = nullptr, * v = nullptr; // as the slots hold them
};

// What the nodes of a graph are given beside q, k and v.
struct inputs {
    explicit inputs(const llm_graph_context & g) : mem(static_cast<const lesskv_memory_context *>(g.mctx)->memory()) {
        if (mem->device()) {
            device = std::make_unique<lesskv_device_inputs>(g, mem);
            return;
        }
        control = new_control(g);
        for (const auto & [n, matrix] : mem->rotations()) {
            hadamard[n] = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_F32, n, n);
            ggml_set_input(hadamard[n]);
            g.cb(hadamard[n], "lesskv_hadamard", -1);
        }
    }

    void set(const llama_ubatch * ub) {
        if (device) {
            device->set(ub);
            return;
        }
        set_control(control, ub);
        for (const auto & [n, t] : hadamard) {
            if (t->buffer) { // or no layer that is computed needs it
                ggml_backend_tensor_set(t, mem->rotations().at(n).data(), 0, ggml_nbytes(t));
            }
        }
    }

    // Whether the graph serves another micro-batch of as many tokens: the nodes have no other shapes, but on the device the sequence's own
    // tensors.
    bool serve(const llama_ubatch & ub) const { return !device || mem->seat_of(ub) == device->seat; }

    lesskv_memory * mem;
    std::unique_ptr<lesskv_device_inputs> device; // NULL: LESS is beside the device
    ggml_tensor * control = nullptr;
    std::map<int32_t, ggml_tensor *> hadamard; // by size
    mutable std::map<size_t, shared> owners;   // by cache, while this graph is built
};

// Stands where llama.cpp's own attention input stands; that one's tensors stay NULL, nobody here asks for them.
template <class base>
struct input : public base, public inputs {
    explicit input(const llm_graph_context & g) : base(g.hparams, g.cparams, nullptr), inputs(g) {}

    void set_input(const llama_ubatch * ub) override { inputs::set(ub); }

    // llm_graph_params has compared the number of tokens already
    bool can_reuse(const llm_graph_params & params) override { return serve(params.ubatch); }
};

// Stands where llama.cpp's input of a hybrid stands, with the input above in it.
template <class base, class attn>
struct hybrid_input : public base {
    hybrid_input(const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs)
        : base(g.cparams, std::make_unique<input<attn>>(g), std::move(rs), nullptr) {}

    void set_input(const llama_ubatch * ub) override {
        this->inp_attn->set_input(ub);
        if (this->inp_rs->s_copy->buffer) { // or no layer is recurrent
            this->inp_rs->set_input(ub);
        }
    }

    // as llm_graph_input_rs says of itself, of the right memory
    bool can_reuse(const llm_graph_params & params) override {
        auto &       rs   = *this->inp_rs;
        const auto * mctx = static_cast<const lesskv_hybrid_context *>(params.mctx)->recurrent();
        rs.mctx = mctx;
        return this->inp_attn->can_reuse(params) && rs.s_copy->ne[0] == mctx->get_n_rs() && rs.s_copy_main->ne[0] == params.ubatch.n_seqs &&
            rs.head == mctx->get_head() && rs.rs_z == mctx->get_rs_z();
    }
};

enum { SRC_Q, SRC_K, SRC_V, SRC_CONTROL, SRC_SINKS };

lesskv_ubatch ubatch_of(const lesskv_memory_layer & l, const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const int32_t * control) {
    lesskv_ubatch ub;
    memset(&ub, 0, sizeof(ub));
    ub.n_tokens = (int32_t) k->ne[2];
    ub.pos      = control[1];
    if (q) {
        ub.q       = q->data;
        ub.q_head  = q->nb[1];
        ub.q_token = q->nb[2];
    }
    ub.k       = k->data;
    ub.k_head  = k->nb[1];
    ub.k_token = k->nb[2];
    ub.v       = v->data;
    ub.v_head  = v->nb[1];
    ub.v_token = v->nb[2];
    ub.scale    = l.scale;
    ub.soft_cap = l.soft_cap;
    ub.layer    = l.shares ? &l.params : nullptr;
    ub.worth    = l.mem->worth_of(l.i);
    ub.profile  = l.mem->profile_data();
    return ub;
}

void attend(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    auto * mem = l.mem;

    const auto * control = (const int32_t *) dst->src[SRC_CONTROL]->data;
    const auto * cache   = mem->cache(control[0], l.i);
    if (!cache) {
        return; // apply() has seen to it that there is one
    }
    auto ub = ubatch_of(l, dst->src[SRC_Q], dst->src[SRC_K], dst->src[SRC_V], control);
    ub.out   = (float *) dst->data;
    ub.sinks = dst->src[SRC_SINKS] ? (const float *) dst->src[SRC_SINKS]->data : nullptr;

    if (double * worth = mem->reference_worth(l)) {
        if (ith == 0) {
            mem->note_status(l, lesskv_attend_ref(cache, &ub, worth));
        }
        return;
    }
    lesskv_attend(cache, &ub, mem->scratch_data(), mem->scratch_threads(), ith, nth);
}

void gather(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    auto * mem = l.mem;

    const auto * control = (const int32_t *) dst->src[SRC_CONTROL]->data;
    const auto * cache   = mem->cache(control[0], l.i);
    if (!cache || mem->reference_worth(l)) { // the plain loops have one place for it all
        return;
    }
    const auto ub = ubatch_of(l, nullptr, dst->src[SRC_K], dst->src[SRC_V], control);
    lesskv_gather(cache, &ub, mem->scratch_data(), mem->scratch_threads(), ith, nth);
}

void commit(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    auto * mem = l.mem;

    const auto * control = (const int32_t *) dst->src[SRC_CONTROL]->data;
    auto *       cache   = mem->cache(control[0], l.i);
    if (!cache) {
        return;
    }
    auto ub = ubatch_of(l, nullptr, dst->src[SRC_K], dst->src[SRC_V], control);

    if (const double * worth = mem->reference_worth(l)) {
        if (ith == 0) {
            mem->note_status(l, lesskv_commit_ref(cache, &ub, worth, nullptr));
        }
        return;
    }
    mem->note_status(l, lesskv_commit(cache, &ub, mem->scratch_data(), mem->scratch_threads(), ith, nth));
}

// Rows of k or v in a quantised type, as ggml rounds them, but for what is not finite.
void quantise(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);
    const ggml_tensor * src = dst->src[0];
    const auto from_float = ggml_get_type_traits_cpu(dst->type)->from_float;
    for (int64_t i = ith; i < dst->ne[1]*dst->ne[2]; i += nth) {
        const int64_t head = i % dst->ne[1], token = i / dst->ne[1];
        const auto * from = (const float *) ((const char *) src->data + head*src->nb[1] + token*src->nb[2]);
        char *       to   = (char *) dst->data + head*dst->nb[1] + token*dst->nb[2];
        from_float(from, to, dst->ne[0]);
        lesskv_mark_not_finite((lesskv_type) dst->type, to, from, dst->ne[0]);
    }
}

// A node of ours: it works in main memory, which not every device says of it (an RPC server's says that it can compute everything).
ggml_tensor * new_node(const llm_graph_context & g, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, ggml_tensor ** src, int n_src, ggml_custom_op_t what, lesskv_memory_layer & l, const char * name) {
    ggml_tensor * t = ggml_custom_4d(g.ctx0, type, ne0, ne1, ne2, 1, src, n_src, what, GGML_N_TASKS_MAX, &l);
    ggml_backend_sched_set_tensor_backend(g.sched, t, g.backend_cpu);
    g.cb(t, name, l.il);
    ggml_build_forward_expand(g.gf, t); // nodes run as they are added
    return t;
}

// k or v as the slots will hold it.
ggml_tensor * rounded(const llm_graph_context & g, ggml_tensor * x, ggml_type type, lesskv_memory_layer & l) {
    if (x->type == type) {
        return x;
    }
    if (!ggml_is_quantized(type)) {
        return ggml_cast(g.ctx0, x, type);
    }
    x = x->type == GGML_TYPE_F32 ? x : ggml_cast(g.ctx0, x, GGML_TYPE_F32);
    return new_node(g, type, x->ne[0], x->ne[1], x->ne[2], &x, 1, quantise, l, "lesskv_rounded");
}

// The output's projection, as in build_attn.
ggml_tensor * project(const llm_graph_context & g, ggml_tensor * cur, ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s) {
    if (wo) {
        if (g.arch == LLM_ARCH_GLM4 || g.arch == LLM_ARCH_GLM4_MOE || g.arch == LLM_ARCH_JAIS2) {
            cur = g.build_lora_mm(wo, cur);
            ggml_prec_set_acc(cur, GGML_PREC_F32);
            cur = wo_s ? ggml_mul(g.ctx0, cur, wo_s) : cur;
        } else {
            cur = g.build_lora_mm(wo, cur, wo_s);
        }
    }
    if (wo_b) {
        cur = ggml_add(g.ctx0, cur, wo_b);
    }
    return cur;
}

ggml_tensor * build(
        const llm_graph_context & g, const inputs & in,
        ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla,
        float kq_scale, int il) {
    auto * mem = static_cast<const lesskv_memory_context *>(g.mctx)->memory();

    // what no list of architectures can promise is found here, while the context is being made
    if (kq_b) {
        mem->refuse("LESS does not cover attention with a bias on q.k (relative positions): turn it off for this model");
    }
    if (v_mla) {
        mem->refuse("LESS does not cover multi-head latent attention (MLA): turn it off for this model");
    }
    auto & l = mem->layer(il);
    const auto & p = l.params;
    if (l.shares != (!k || !v) || (l.shares && in.owners.count(l.i) == 0)) {
        mem->refuse("LESS does not cover how layer " + std::to_string(il) + " shares keys and values with another one: turn it off for this model");
    }
    const auto has_shape = [](const ggml_tensor * t, int64_t d, int64_t h, int64_t n) {
        return t->ne[0] == d && t->ne[1] == h && t->ne[2] == n && t->ne[3] == 1 && t->nb[0] == ggml_type_size(t->type);
    };
    if (!has_shape(q, p.dk, p.n_head, g.n_tokens) ||
            (!l.shares && (!has_shape(k, p.dk, p.n_head_kv, g.n_tokens) || !has_shape(v, p.dv, p.n_head_kv, g.n_tokens))) ||
            q->type != GGML_TYPE_F32 || (sinks && sinks->type != GGML_TYPE_F32)) {
        mem->refuse("LESS does not cover the shapes of this model's attention in layer " + std::to_string(il) + ": turn it off for this model");
    }
    if (!g.loras->empty()) {
        mem->note_lora();
    }
    l.used  = true;
    l.scale = kq_scale;

    ggml_build_forward_expand(g.gf, q);
    if (in.device) {
        if (sinks || k->type != GGML_TYPE_F32 || v->type != GGML_TYPE_F32) {
            mem->refuse("LESS on the device does not cover attention sinks, or keys and values that are not f32: leave it beside the device");
        }
        ggml_build_forward_expand(g.gf, v);
        ggml_build_forward_expand(g.gf, k);
        return project(g, in.device->attend(g, l, q, k, v), wo, wo_b, wo_s);
    }
    if (l.rot_k) {
        q = llama_mul_mat_hadamard(g.ctx0, q, in.hadamard.at(l.rot_k));
    }
    if (l.shares) {
        k = in.owners.at(l.i).k;
        v = in.owners.at(l.i).v;
    } else {
        ggml_build_forward_expand(g.gf, v);
        ggml_build_forward_expand(g.gf, k);
        if (l.rot_k) {
            k = llama_mul_mat_hadamard(g.ctx0, k, in.hadamard.at(l.rot_k));
        }
        if (l.rot_v) {
            v = llama_mul_mat_hadamard(g.ctx0, v, in.hadamard.at(l.rot_v));
        }
        k = rounded(g, k, (ggml_type) p.type_k, l);
        v = rounded(g, v, (ggml_type) p.type_v, l);
    }

    ggml_tensor * src[] = { q, k, v, in.control, sinks };
    ggml_tensor * out = new_node(g, GGML_TYPE_F32, p.dv, p.n_head, g.n_tokens, src, sinks ? 5 : 4, attend, l, "lesskv_attn");

    const auto then = [&](ggml_custom_op_t what, lesskv_memory_layer & of, const char * name) {
        src[SRC_Q] = out; // behind the attention
        new_node(g, GGML_TYPE_F32, 1, 1, 1, src, 4, what, of, name);
    };
    auto & owner = mem->owner(l);
    if (owner.last_sharer >= 0) {
        in.owners.insert({ l.i, { k, v } });
        if (mem->worth_of(l.i)) {
            then(gather, l, "lesskv_gather");
        }
    }
    if (owner.last_sharer < 0 || owner.last_sharer == il) {
        then(commit, owner, "lesskv_commit");
    }

    if (l.rot_v) { // H's part with it, which sums rotated values
        out = llama_mul_mat_hadamard(g.ctx0, out, in.hadamard.at(l.rot_v));
    }
    return project(g, ggml_reshape_2d(g.ctx0, out, (int64_t) p.dv*p.n_head, g.n_tokens), wo, wo_b, wo_s);
}

} // namespace

llm_graph_input_attn_kv * lesskv_build_inp_kv(const llm_graph_context & g) {
    return static_cast<llm_graph_input_attn_kv *>(g.res->add_input(std::make_unique<input<llm_graph_input_attn_kv>>(g)));
}

llm_graph_input_attn_kv_iswa * lesskv_build_inp_kv_iswa(const llm_graph_context & g) {
    return static_cast<llm_graph_input_attn_kv_iswa *>(g.res->add_input(std::make_unique<input<llm_graph_input_attn_kv_iswa>>(g)));
}

template <class base, class attn>
static base * build_hybrid(const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs) {
    return static_cast<base *>(g.res->add_input(std::make_unique<hybrid_input<base, attn>>(g, std::move(rs))));
}

llm_graph_input_mem_hybrid * lesskv_build_inp_mem_hybrid(const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs) {
    return build_hybrid<llm_graph_input_mem_hybrid, llm_graph_input_attn_kv>(g, std::move(rs));
}

llm_graph_input_mem_hybrid_iswa * lesskv_build_inp_mem_hybrid_iswa(const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs) {
    return build_hybrid<llm_graph_input_mem_hybrid_iswa, llm_graph_input_attn_kv_iswa>(g, std::move(rs));
}

const llama_memory_recurrent_context * lesskv_recurrent(const llm_graph_context & g) {
    return static_cast<const lesskv_hybrid_context *>(g.mctx)->recurrent();
}

ggml_tensor * lesskv_build_attn(
        const llm_graph_context & g, const llm_graph_input_attn_kv * inp,
        ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla,
        float kq_scale, int il) {
    return build(g, *static_cast<const input<llm_graph_input_attn_kv> *>(inp), wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il);
}

ggml_tensor * lesskv_build_attn(
        const llm_graph_context & g, const llm_graph_input_attn_kv_iswa * inp,
        ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla,
        float kq_scale, int il) {
    return build(g, *static_cast<const input<llm_graph_input_attn_kv_iswa> *>(inp), wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il);
}

void lesskv_refuse_attn(const llm_graph_context & g) {
    static_cast<const lesskv_memory_context *>(g.mctx)->memory()->refuse(
            "LESS does not cover attention to keys alone, or to keys that an index chooses: turn it off for this model");
}

uint32_t lesskv_graph_nodes(llama_memory_i * memory) {
    auto * mem = dynamic_cast<lesskv_memory *>(memory);
    return mem && mem->device() ? 160*(uint32_t) mem->all_layers().size() : 0;
}

bool lesskv_computed(llama_memory_context_i * mctx) {
    auto * ctx = dynamic_cast<lesskv_memory_context *>(mctx);
    return !ctx || ctx->memory()->computed();
}

int lesskv_refuse_call(llama_memory_i * memory, const char * call) {
    if (auto * mem = dynamic_cast<lesskv_memory *>(memory)) {
        mem->fail(std::string("LESS does not cover ") + call + ": use a context without it");
    }
    return -1;
}

void lesskv_refuse_other(llama_memory_i * memory) {
    if (dynamic_cast<lesskv_memory *>(memory)) {
        throw std::runtime_error("this model attends to the cache of another context, which LESS bounds and no other model can read: turn LESS off for that context");
    }
}

llama_memory_i * lesskv_create_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams) {
    // of other contexts a hybrid has no such memory, and no other kind must get a second one of llama.cpp's
    if (llm_arch_is_hybrid(model.arch) && lesskv_supported(&model, nullptr, 0) && params.ctx_type == LLAMA_CONTEXT_TYPE_DEFAULT) {
        return nullptr;
    }
    return new lesskv_memory(model, params, cparams);
}

llama_memory_i * lesskv_create_hybrid(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
        const llama_memory_i::layer_filter_cb & attends, const llama_memory_i::layer_filter_cb & recurs) {
    return new lesskv_hybrid(model, params, cparams, attends, recurs);
}
