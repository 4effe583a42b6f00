// The hooks inside the graph. With LESS on the device its operations are lesskv-device-graph.cpp's. Without, there are
// one control input, and two custom nodes a layer, attend and commit (and one for each of k and v, where slots are quantised), with the barrier that ggml puts between any two nodes. A layer that
// shares another's cache attends before that one commits; each of the two then has a node more, which gathers what pairs were worth to it.
// Where a graph has a token of each of several sequences, a node does each one's micro-batch, in its own cache.

#include "lesskv-hooks.h"
#include "lesskv-hybrid.h"
#include "lesskv-memory.h"

#include "llama-arch.h"
#include "llama-graph.h"
#include "llama-hparams.h"
#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <map>
#include <vector>

namespace {

// {sequence, position} of each token. The nodes read it when they run, so one graph serves every ubatch of its size, and reserving a graph
// needs no sequence.
ggml_tensor * new_control(const llm_graph_context & g) {
    ggml_tensor * t = ggml_new_tensor_2d(g.ctx0, GGML_TYPE_I32, 2, g.n_tokens);
    ggml_set_input(t);
    g.cb(t, "lesskv_control", -1);
    return t;
}

void set_control(ggml_tensor * t, const llama_ubatch * ub) {
    std::vector<int32_t> v;
    for (uint32_t i = 0; i < ub->n_tokens; ++i) {
        v.push_back(ub->seq_id[i][0]);
        v.push_back(ub->pos[i]);
    }
    ggml_backend_tensor_set(t, v.data(), 0, v.size()*sizeof(v[0]));
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

    // Whether the graph serves another ubatch of as many tokens: the nodes have no other shapes, but on the device the sequence's own tensors.
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

// A micro-batch, of which a thread of a node does its share.
struct task {
    llama_seq_id   seq;
    lesskv_cache * cache;
    lesskv_ubatch  ub;     // without q, out and sinks
    void *         scratch;
    double *       worth;  // of the plain loops; NULL: the fast kernels
    int            ith;
};

// Data of a tensor for the i-th token.
template <class T>
T * row(const ggml_tensor * t, int32_t i) {
    return (T *) ((char *) t->data + i*t->nb[2]);
}

// Calls f with each micro-batch of a node and its first token: of one sequence with all tokens, or of several with one token each. These need no
// barrier between them. A thread has another share of each, so that sequences whose work makes fewer shares than there are threads keep all
// of them busy.
template <class F>
void each_task(const ggml_tensor * dst, int ith, int nth, const lesskv_memory_layer & l, F f) {
    const ggml_tensor * k = dst->src[SRC_K], * v = dst->src[SRC_V];
    const auto *  control  = (const int32_t (*)[2]) dst->src[SRC_CONTROL]->data;
    const int32_t n_tokens = (int32_t) k->ne[2];
    const int32_t n_task   = control[0][0] != control[n_tokens - 1][0] ? n_tokens : 1;
    auto * mem = l.mem;
    for (int32_t i = 0; i < n_task; ++i) {
        task t = { control[i][0], mem->cache(control[i][0], l.i), {}, mem->scratch_of(i), mem->reference_worth(l, i), (ith + i) % nth };
        if (!t.cache) {
            return; // apply() has seen to it that there is one
        }
        auto & ub = t.ub;
        ub.n_tokens = n_tokens/n_task;
        ub.pos      = control[i][1];
        ub.k        = row<void>(k, i);
        ub.k_head   = k->nb[1];
        ub.k_token  = k->nb[2];
        ub.v        = row<void>(v, i);
        ub.v_head   = v->nb[1];
        ub.v_token  = v->nb[2];
        ub.scale    = l.scale;
        ub.soft_cap = l.soft_cap;
        ub.layer    = l.shares ? &l.params : nullptr;
        ub.worth    = mem->worth_of(l, i);
        ub.profile  = mem->profile_of(ith);
        f(t, i);
    }
}

void attend(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    const ggml_tensor * q = dst->src[SRC_Q], * sinks = dst->src[SRC_SINKS];
    each_task(dst, ith, nth, l, [&](task & t, int32_t i) {
        t.ub.q       = row<void>(q, i);
        t.ub.q_head  = q->nb[1];
        t.ub.q_token = q->nb[2];
        t.ub.out     = row<float>(dst, i);
        t.ub.sinks   = sinks ? (const float *) sinks->data : nullptr;
        if (!t.worth) {
            lesskv_attend(t.cache, &t.ub, t.scratch, l.mem->scratch_threads(), t.ith, nth);
        } else if (t.ith == 0) {
            l.mem->note_status(t.seq, l, lesskv_attend_ref(t.cache, &t.ub, t.worth));
        }
    });
}

void gather(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    each_task(dst, ith, nth, l, [&](task & t, int32_t) {
        if (!t.worth) { // the plain loops have one place for it all
            lesskv_gather(t.cache, &t.ub, t.scratch, l.mem->scratch_threads(), t.ith, nth);
        }
    });
}

void commit(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & l = *(const lesskv_memory_layer *) userdata;
    each_task(dst, ith, nth, l, [&](task & t, int32_t) {
        if (!t.worth) {
            l.mem->note_status(t.seq, l, lesskv_commit(t.cache, &t.ub, t.scratch, l.mem->scratch_threads(), t.ith, nth));
        } else if (t.ith == 0) {
            l.mem->note_status(t.seq, l, lesskv_commit_ref(t.cache, &t.ub, t.worth, nullptr));
        }
    });
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
        if (!l.shares && (k->type != GGML_TYPE_F32 || v->type != GGML_TYPE_F32)) {
            mem->refuse("LESS on the device does not cover keys and values that are not f32: keep the cache in main memory");
        }
        if (!l.shares) {
            ggml_build_forward_expand(g.gf, v);
            ggml_build_forward_expand(g.gf, k);
            in.owners.insert({ l.i, { k, v } });
        }
        return project(g, in.device->attend(g, l, q, k, v, sinks), wo, wo_b, wo_s);
    }
    if (p.rotation) {
        q = llama_mul_mat_hadamard(g.ctx0, q, in.hadamard.at(p.rotation));
    }
    if (l.shares) {
        k = in.owners.at(l.i).k;
        v = in.owners.at(l.i).v;
    } else {
        ggml_build_forward_expand(g.gf, v);
        ggml_build_forward_expand(g.gf, k);
        if (p.rotation) {
            k = llama_mul_mat_hadamard(g.ctx0, k, in.hadamard.at(p.rotation));
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
        if (mem->worth_of(l, 0)) {
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
