// lesskv-device-graph.cpp: attention, scores, eviction and folds as ggml operations. Shapes and formulas are those of "LESS on the device" in
// algorithm.md: all are of fixed size for a micro-batch of T tokens, whatever the slots hold. ggml computes nodes in the order in which
// they were added, which is that of the steps of a micro-batch.

#include "lesskv-device.h"
#include "lesskv-memory.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-impl.h"

#include <cfloat>
#include <cmath>
#include <cstring>

// What pairs were worth, [W, Hkv], of the weights of n queries of each KV head, [W, n, Hkv]: their largest or their mean. A weight that is no
// number counts as none.
static ggml_tensor * pooled(ggml_context * ctx, ggml_tensor * weights, ggml_op_pool op) {
    const int n = (int) weights->ne[1];
    auto * t = ggml_pool_2d(ctx, ggml_relu(ctx, weights), op, 1, n, 1, n, 0, 0);
    return ggml_reshape_2d(ctx, t, t->ne[0], t->ne[2]);
}

static ggml_tensor * sum_of(ggml_context * ctx, ggml_tensor * weights) {
    return ggml_scale(ctx, pooled(ctx, weights, GGML_OP_POOL_AVG), (float) weights->ne[1]);
}

// Of all queries of a KV head: its query heads lie behind one another.
static ggml_tensor * by_kv_head(ggml_context * ctx, ggml_tensor * weights, int64_t n_head_kv) {
    return ggml_reshape_3d(ctx, weights, weights->ne[0], weights->ne[1]*weights->ne[2]/n_head_kv, n_head_kv);
}

static ggml_tensor * larger(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    return ggml_add(ctx, a, ggml_relu(ctx, ggml_sub(ctx, b, a)));
}

static ggml_tensor * sum_of_all(ggml_context * ctx, ggml_tensor * weights, int64_t n_head_kv) {
    return sum_of(ctx, by_kv_head(ctx, weights, n_head_kv));
}

static ggml_tensor * largest_of_all(ggml_context * ctx, ggml_tensor * weights, int64_t n_head_kv) {
    return pooled(ctx, by_kv_head(ctx, weights, n_head_kv), GGML_OP_POOL_MAX);
}

static ggml_tensor * sum_of_last(ggml_context * ctx, ggml_tensor * w, int64_t n_head_kv) {
    w = ggml_view_3d(ctx, w, w->ne[0], w->ne[2]/n_head_kv, n_head_kv, w->nb[2], w->nb[2]*(w->ne[2]/n_head_kv), (w->ne[1] - 1)*w->nb[1]);
    return sum_of(ctx, ggml_cont(ctx, w));
}

static ggml_tensor * score_h2o(ggml_context * ctx, ggml_tensor * score, ggml_tensor * worth, int64_t) {
    return ggml_add(ctx, score, worth);
}

static ggml_tensor * score_peak(ggml_context * ctx, ggml_tensor * score, ggml_tensor * worth, int64_t n_tokens) {
    return larger(ctx, ggml_scale(ctx, score, powf(0.95f, (float) n_tokens/32)), worth);
}

static ggml_tensor * score_tova(ggml_context *, ggml_tensor *, ggml_tensor * worth, int64_t) {
    return worth;
}

// The policies that are known here. weights [W, T, Hq] of one layer; worth, what pairs were worth to all layers of a cache, and score, which was the
// pairs' and is 0 of new ones, [W, Hkv].
static const struct {
    const char * name;
    ggml_tensor * (*worth)(ggml_context * ctx, ggml_tensor * weights, int64_t n_head_kv); // to one layer; NULL: the oldest stay
    ggml_tensor * (*both) (ggml_context * ctx, ggml_tensor * worth, ggml_tensor * other); // to two
    ggml_tensor * (*score)(ggml_context * ctx, ggml_tensor * score, ggml_tensor * worth, int64_t n_tokens);
} policies[] = {
    { "h2o",    sum_of_all,     ggml_add, score_h2o  },
    { "lambda", nullptr,        nullptr,  nullptr    },
    { "peak",   largest_of_all, larger,   score_peak },
    { "tova",   sum_of_last,    ggml_add, score_tova },
};

// Of a micro-batch: it is among the r newest of every head.
static bool all_new_stay(const lesskv_layer & l, int64_t n_tokens) {
    for (int32_t j = 0; j < l.n_head_kv; ++j) {
        const auto b = budget_of(l, j);
        if (n_tokens > b.slots - b.heavy) {
            return false;
        }
    }
    return true;
}

static decltype(&policies[0]) policy_of(const lesskv_policy * policy) {
    for (const auto & p : policies) {
        if (strcmp(p.name, lesskv_policy_name(policy)) == 0) {
            return &p;
        }
    }
    return nullptr;
}

bool lesskv_device::knows(const lesskv_policy * policy) {
    return policy_of(policy) != nullptr;
}

// A layer without a window: of slots all say the same, or that heads have budgets of their own. Or any layer, if there is none.
static const lesskv_layer & with_budget(const lesskv_memory & mem) {
    const auto & layers = mem.all_layers();
    const auto l = std::find_if(layers.begin(), layers.end(), [](const lesskv_memory_layer & l) { return l.params.n_swa == 0; });
    return (l == layers.end() ? layers.front() : *l).params;
}

lesskv_device_inputs::lesskv_device_inputs(const llm_graph_context & g, lesskv_memory * mem) : mem(mem), seat(mem->seat_of(g.ubatch)) {
    const auto & bounded = with_budget(*mem);
    by_head = bounded.budgets;
    slots   = by_head || bounded.n_swa > 0 ? 0 : bounded.budget.slots;
    heads   = window = 0;
    for (const auto & l : mem->all_layers()) {
        heads  = std::max(heads,  l.params.n_head_kv);
        window = std::max(window, l.params.n_swa);
    }
    const auto input = [&](ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, const char * name) {
        auto * t = ggml_new_tensor_3d(g.ctx0, type, ne0, ne1, ne2);
        ggml_set_input(t);
        g.cb(t, name, -1);
        return t;
    };
    const int64_t T = g.n_tokens, W = slots + T;
    fresh    = input(GGML_TYPE_I32, T, 1, 1, "lesskv_fresh");
    arrivals = input(GGML_TYPE_F32, T, heads, 1, "lesskv_arrivals");
    rows     = ggml_reshape_3d(g.ctx0, arrivals, 1, T, heads); // here, so that a device gets a copy of it once
    mask     = input(GGML_TYPE_F32, W, 1, T, "lesskv_mask");
    unused   = input(GGML_TYPE_F32, all_new_stay(bounded, T) ? slots : W, 1, 1, "lesskv_unused");
    middle   = input(GGML_TYPE_F32, 1, 1, 1, "lesskv_middle");
    half     = input(GGML_TYPE_F32, 1, 1, 1, "lesskv_half");
    if (window > 0) {
        window_mask = input(GGML_TYPE_F32, window - 1 + T, 1, T, "lesskv_window_mask");
    }
    if (window > 1) {
        window_rows = input(GGML_TYPE_I32, std::min<int64_t>(T, window - 1), 1, 1, "lesskv_window_rows");
    }
    number   = input(GGML_TYPE_F32, 1, 1, 1, "lesskv_number");
    check    = number;
    sched    = g.sched;
}

template <class T>
static void set(ggml_tensor * t, const std::vector<T> & values) {
    if (t->buffer) { // or nothing that is computed needs it
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
}

void lesskv_device_inputs::set(const llama_ubatch * ub) {
    const auto & layer = with_budget(*mem);
    const llama_seq_id seq = ub->seq_id[0][0];
    const int32_t T = (int32_t) ub->n_tokens, W = slots + T, used = std::min(slots, mem->in_use(seq, false));
    mem->begin(seq, *this);

    std::vector<int32_t> spare(T);
    std::vector<float> pos((size_t) T*heads), sees((size_t) W*T), first(W);
    for (int32_t t = 0; t < T; ++t) {
        spare[t] = slots + t;
        for (int32_t j = 0; j < heads; ++j) {
            pos[(size_t) j*T + t] = (float) (ub->pos[0] + t);
        }
        for (int32_t i = 0; i < W; ++i) {
            sees[(size_t) t*W + i] = i < used || (i >= slots && i <= slots + t) ? 0.0f : -INFINITY;
        }
    }
    for (int32_t i = used; i < slots; ++i) {
        first[i] = lesskv_device::EMPTY*(float) (slots - i + 1); // in this order, so that slots in use are the first ones
    }
    const int32_t recent = by_head ? 0 : layer.budget.slots - layer.budget.heavy;
    const float lowest = (float) layer.pinned, highest = (float) (ub->pos[0] + T - 1 - recent); // that may go
    ::set(fresh,    spare);
    ::set(arrivals, pos);
    ::set(mask,     sees);
    ::set(unused,   first);
    ::set(middle,   std::vector<float>{ -(lowest + highest)/2 });
    ::set(half,     std::vector<float>{ -(highest - lowest)/2 });
    ::set(number,   std::vector<float>{ mem->number() });
    if (window > 0) {
        set_window(ub->pos[0], T, mem->in_use(seq, true));
    }
}

// Of a window in whose ring the used positions before begin are: query t, at begin + t, sees a position where the distance is less than n_swa.
void lesskv_device_inputs::set_window(int32_t begin, int32_t T, int32_t used) {
    const int32_t B = window - 1, W = B + T;
    std::vector<float> sees((size_t) W*T, -INFINITY);
    for (int32_t t = 0; t < T; ++t) {
        for (int32_t back = 0; back < std::min(window, t + used + 1); ++back) {
            sees[(size_t) t*W + (back <= t ? B + t - back : (begin + t - back) % B)] = 0.0f;
        }
    }
    ::set(window_mask, sees);
    std::vector<int32_t> rows;
    for (int32_t t = std::max(0, T - B); t < T; ++t) {
        rows.push_back((begin + t) % B);
    }
    if (window_rows) {
        ::set(window_rows, rows);
    }
}

// The steps of a micro-batch in one cache: of a layer, and of those that share it.
struct lesskv_device_steps {
    lesskv_device_steps(const llm_graph_context & g, const lesskv_device_inputs & in, const lesskv_memory_layer & l)
        : g(g), in(in), l(l), ctx(g.ctx0), t(in.mem->device()->layer(ctx, l.i, in.seat)), T(g.n_tokens), B(t.slots), W(B + T),
          Hkv(l.params.n_head_kv), D(l.params.dk), Dv(l.params.dv),
          all_new_stay(::all_new_stay(l.params, T)) {}

    void take(ggml_tensor * k, ggml_tensor * v);
    ggml_tensor * attend(const lesskv_memory_layer & of, ggml_tensor * q, ggml_tensor * sinks);
    ggml_tensor * low_rank(const lesskv_memory_layer & of, ggml_tensor * q, ggml_tensor * logits, float scale, ggml_tensor * out, ggml_tensor * sinks);
    ggml_tensor * share(ggml_tensor * logits, float scale, ggml_tensor * other);
    void commit();
    void score();
    void evict();
    void fold();
    void keep();
    void keep_window();
    ggml_tensor * keep(ggml_tensor * slots, ggml_tensor * all, ggml_tensor * added, const char * name);
    ggml_tensor * keep_numbers(ggml_tensor * slots, ggml_tensor * all, ggml_tensor * added, const char * name);
    ggml_tensor * check(ggml_tensor * number);
    ggml_tensor * run(ggml_tensor * x, const char * name) { return run(x, name, l.il); }
    ggml_tensor * run(ggml_tensor * x, const char * name, int32_t il);

    ggml_tensor * columns(ggml_tensor * x) const; // [n, rows, ..] as f32 [rows, n, ..]
    ggml_tensor * first_slots(ggml_tensor * x) const { return ggml_view_2d(ctx, x, B, Hkv, x->nb[1], 0); } // of all pairs
    ggml_tensor * last_added(ggml_tensor * x) const { return ggml_view_3d(ctx, x, 1, T, Hkv, x->nb[0], x->nb[1], B*x->nb[0]); } // likewise
    ggml_tensor * f32(ggml_tensor * x) const { return x->type == GGML_TYPE_F32 ? x : ggml_cast(ctx, x, GGML_TYPE_F32); }

    const llm_graph_context    & g;
    const lesskv_device_inputs & in;
    const lesskv_memory_layer  & l; // whose cache it is
    ggml_context * ctx;
    lesskv_device_layer t;
    const int64_t T, B, W, Hkv, D, Dv;
    const bool all_new_stay;

    ggml_tensor * new_k, * new_v;       // [D, T, Hkv], [Dv, T, Hkv]
    ggml_tensor * keys, * values;       // of all pairs, [D, W, Hkv], [Dv, W, Hkv]
    ggml_tensor * mask;                 // [W, 1, T]; NULL: a token sees all that is not unused
    ggml_tensor * bias = nullptr;       // [W, 1, Hkv]: -INFINITY of what is unused, which no query sees; NULL where the mask says it
    ggml_tensor * worth = nullptr;      // [W, Hkv], to the layers that have attended; NULL where the policy has no scores
    ggml_tensor * pos = nullptr;        // [W, Hkv]; NULL where all new pairs stay
    ggml_tensor * scores;               // [W, Hkv]; NULL where the policy has none
    ggml_tensor * unused = nullptr;     // [W, Hkv]; NULL where the input says it
    ggml_tensor * go, * stay = nullptr; // i32 [T, Hkv], [B, Hkv]
};

// What is written to the device's tensors must be computed there; the scheduler finds a place for the rest.
ggml_tensor * lesskv_device_steps::run(ggml_tensor * x, const char * name, int32_t il) {
    if (!in.mem->device()->computes(x, il)) {
        in.mem->refuse(format("LESS on the device: that of layer %d cannot compute %s (%s): keep the cache in main memory", il, ggml_op_desc(x), name));
    }
    g.cb(x, name, il);
    ggml_build_forward_expand(g.gf, x);
    return x;
}

ggml_tensor * lesskv_device_steps::columns(ggml_tensor * x) const {
    x = ggml_permute(ctx, x, 1, 0, 2, 3);
    return x->type == GGML_TYPE_F32 ? ggml_cont(ctx, x) : ggml_cast(ctx, x, GGML_TYPE_F32);
}

// k and v behind the slots, rounded to their type.
void lesskv_device_steps::take(ggml_tensor * k, ggml_tensor * v) {
    new_k = ggml_permute(ctx, k, 0, 2, 1, 3);
    new_v = ggml_permute(ctx, v, 0, 2, 1, 3);
    auto * fresh = t.spare ? ggml_view_1d(ctx, t.spare, T, 0) : in.fresh;
    t.k = ggml_set_rows(ctx, t.k, new_k, fresh);
    t.v = ggml_set_rows(ctx, t.v, new_v, fresh);
    keys   = ggml_view_3d(ctx, t.k, D,  W, Hkv, t.k->nb[1], t.k->nb[2], 0);
    values = ggml_view_3d(ctx, t.v, Dv, W, Hkv, t.v->nb[1], t.v->nb[2], 0);

    mask = l.params.n_swa > 0 ? in.window_mask : in.mask;
    if (t.unused) {
        unused = ggml_pad(ctx, t.unused, (int) T, 0, 0, 0);
        bias   = ggml_reshape_3d(ctx, ggml_scale(ctx, ggml_abs(ctx, unused), -1e30f), W, 1, Hkv);
        mask   = T == 1 ? nullptr : ggml_pad_ext(ctx, mask, (int) B, 0, 0, 0, 0, 0, 0, 0);
    }
}

// Softmax over A = slots and micro-batch.
ggml_tensor * lesskv_device_steps::attend(const lesskv_memory_layer & of, ggml_tensor * q, ggml_tensor * sinks) {
    const int64_t Hq = of.params.n_head;
    q = ggml_permute(ctx, q, 0, 2, 1, 3);
    auto * logits = ggml_mul_mat(ctx, f32(keys), q); // [W, T, Hq]
    float scale = of.scale;
    if (of.soft_cap > 0) {
        logits = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, logits, scale/of.soft_cap)), of.soft_cap);
        scale  = 1;
    }
    if (bias) {
        logits = ggml_add(ctx, ggml_reshape_3d(ctx, logits, W, T*Hq/Hkv, Hkv), bias);
    }
    logits = ggml_reshape_3d(ctx, logits, W, 1, T*Hq); // a row has the mask of its token
    auto * weights = ggml_reshape_3d(ctx, ggml_soft_max_ext(ctx, logits, mask, scale, 0.0f), W, T, Hq);
    auto * out = ggml_mul_mat(ctx, columns(values), weights); // [Dv, T, Hq]
    sinks = sinks ? ggml_reshape_3d(ctx, sinks, 1, 1, Hq) : nullptr;
    if (t.state && in.mem->device()->kernels(of.n).phi[0]) {
        out = low_rank(of, q, logits, scale, out, sinks);
    } else if (sinks) {
        out = ggml_mul(ctx, out, share(logits, scale, ggml_repeat_4d(ctx, sinks, 1, T, Hq, 1)));
    }
    out = run(ggml_cont(ctx, ggml_permute(ctx, out, 0, 2, 1, 3)), "lesskv_attn", of.il);
    if (t.score) {
        const auto & policy = *policy_of(l.params.policy);
        auto * own = policy.worth(ctx, weights, Hkv);
        worth = worth ? policy.both(ctx, worth, own) : own;
        if (l.last_sharer >= 0) {
            ggml_build_forward_expand(g.gf, worth); // the weights are not kept until the last one has attended
        }
    }
    return out;
}

// The share of A, [1, T, Hq], where one logit more [1, T, Hq] joins the softmax.
ggml_tensor * lesskv_device_steps::share(ggml_tensor * logits, float scale, ggml_tensor * other) {
    auto * w = ggml_soft_max_ext(ctx, logits, mask, scale, 0.0f);
    ggml_soft_max_add_sinks(w, ggml_reshape_1d(ctx, other, ggml_nelements(other)));
    return ggml_reshape_3d(ctx, ggml_sum_rows(ctx, w), 1, other->ne[1], other->ne[2]);
}

// One token more, of logit L = scale_i + log(phi.z) and value phi H / phi.z. With a sink the two are one, which has the token's value in the token's part of it.
ggml_tensor * lesskv_device_steps::low_rank(const lesskv_memory_layer & of, ggml_tensor * q, ggml_tensor * logits, float scale, ggml_tensor * out, ggml_tensor * sinks) {
    const int64_t Hq = of.params.n_head;
    const auto & own = in.mem->device()->kernels(of.n);
    auto * phi = ggml_scale(ctx, ggml_mul_mat(ctx, own.phi[0], q), of.scale*sqrtf((float) D));
    phi = ggml_abs(ctx, ggml_gelu_erf(ctx, ggml_mul_mat(ctx, own.phi[1], ggml_gelu_erf(ctx, phi)))); // [R, T, Hq]
    auto * sums = ggml_mul_mat(ctx, t.state, phi); // [Dv + 1, T, Hq]
    auto * mass = ggml_cont(ctx, ggml_view_3d(ctx, sums, 1, T, Hq, sums->nb[1], sums->nb[2], Dv*sums->nb[0]));
    auto * L = ggml_log(ctx, mass); // -INFINITY: it is left out
    if (own.phi_scale) {
        L = ggml_add(ctx, L, own.phi_scale);
    }
    auto * value = ggml_div(ctx, ggml_view_3d(ctx, sums, Dv, T, Hq, sums->nb[1], sums->nb[2], 0), ggml_scale_bias(ctx, mass, 1, FLT_MIN));

    if (sinks) {
        auto * above = ggml_sub(ctx, L, sinks);
        value = ggml_mul(ctx, value, ggml_sigmoid(ctx, above));
        L     = ggml_add(ctx, ggml_softplus(ctx, above), sinks);
    }
    return ggml_add(ctx, value, ggml_mul(ctx, ggml_sub(ctx, out, value), share(logits, scale, L)));
}

void lesskv_device_steps::commit() {
    if (l.params.n_swa > 0) {
        keep_window();
        return;
    }
    score();
    evict();
    if (t.state) {
        fold();
    }
    keep();
}

void lesskv_device_steps::score() {
    scores = t.score ? policy_of(l.params.policy)->score(ctx, ggml_pad(ctx, t.score, (int) T, 0, 0, 0), worth, T) : nullptr;
}

// The T that have the largest keys go, empty slots before all others. Of all pairs, or where all new ones stay, of the slots: so that it is a slot whatever
// they hold.
void lesskv_device_steps::evict() {
    auto * at = t.pos, * worth = scores, * last = in.unused, * middle = in.middle, * half = in.half;
    if (!all_new_stay) {
        auto * added = Hkv == in.heads ? in.arrivals : ggml_view_2d(ctx, in.arrivals, T, Hkv, in.arrivals->nb[1], 0);
        at = pos = ggml_concat(ctx, t.pos, added, 0);
    } else if (scores) {
        worth = first_slots(scores);
    }
    if (t.unused) {
        last   = all_new_stay ? t.unused : unused;
        last   = ggml_mul(ctx, last, ggml_view_1d(ctx, t.turn, last->ne[0], 0));
        middle = ggml_add(ctx, t.recent, middle);
        half   = ggml_add(ctx, t.recent, half);
    }
    auto * away = ggml_abs(ctx, ggml_add(ctx, at, middle));
    auto * kept = ggml_step(ctx, ggml_add(ctx, away, half)); // 1: the newest and the pinned
    auto * key  = ggml_add(ctx, ggml_scale(ctx, kept, lesskv_device::KEPT), last);
    key = worth ? ggml_sub(ctx, key, worth) : ggml_add(ctx, key, at);

    if (all_new_stay && T == 1) {
        go = ggml_reshape_2d(ctx, ggml_argmax(ctx, key), 1, Hkv);
        return;
    }
    auto * order = ggml_argsort(ctx, key, GGML_SORT_ORDER_ASC);
    go   = ggml_view_2d(ctx, order, T, Hkv, order->nb[1], (order->ne[0] - T)*order->nb[0]);
    stay = all_new_stay ? nullptr : first_slots(order); // those that no head may use first, empty ones last
}

// psi of an empty slot, which is 0, is 0.
void lesskv_device_steps::fold() {
    auto * psi = ggml_get_rows(ctx, keys, go);
    psi = ggml_gelu_erf(ctx, ggml_mul_mat(ctx, t.psi[0], psi));
    psi = ggml_gelu_erf(ctx, ggml_mul_mat(ctx, t.psi[1], psi));
    psi = ggml_abs(ctx, ggml_mul_mat(ctx, psi, t.psi[2])); // [T, R, Hkv]
    auto * H = ggml_mul_mat(ctx, psi, columns(ggml_get_rows(ctx, values, go)));
    auto * z = ggml_reshape_3d(ctx, ggml_sum_rows(ctx, psi), psi->ne[1], 1, Hkv);
    t.state = run(ggml_add_inplace(ctx, t.state, ggml_concat(ctx, H, z, 1)), "lesskv_state");
}

// What stays of all pairs [n, W, Hkv] becomes the slots [n, B.., Hkv]; where all that were added [n, T, Hkv] stay, these alone are put there.
ggml_tensor * lesskv_device_steps::keep(ggml_tensor * slots, ggml_tensor * all, ggml_tensor * added, const char * name) {
    return run(all_new_stay ? ggml_set_rows(ctx, slots, added, go) :
        ggml_cpy(ctx, ggml_get_rows(ctx, all, stay), ggml_view_3d(ctx, slots, slots->ne[0], B, Hkv, slots->nb[1], slots->nb[2], 0)), name);
}

// The same of one number for each pair, all [W, Hkv].
ggml_tensor * lesskv_device_steps::keep_numbers(ggml_tensor * slots, ggml_tensor * all, ggml_tensor * added, const char * name) {
    return keep(ggml_reshape_3d(ctx, slots, 1, B, Hkv), all_new_stay ? nullptr : ggml_reshape_3d(ctx, all, 1, W, Hkv), added, name);
}

void lesskv_device_steps::keep() {
    keep(t.k, keys, new_k, "lesskv_keys");
    keep(t.v, values, new_v, "lesskv_values");
    auto * rows = Hkv == in.heads ? in.rows : ggml_view_3d(ctx, in.rows, 1, T, Hkv, in.rows->nb[1], in.rows->nb[2], 0);
    t.pos = keep_numbers(t.pos, pos, rows, "lesskv_positions");
    if (scores) { // those of all pairs have changed
        keep_numbers(all_new_stay ? ggml_cpy(ctx, first_slots(scores), t.score) : t.score, scores, last_added(scores), "lesskv_scores");
    }
    if (t.unused) {
        keep_numbers(t.unused, unused, last_added(unused), "lesskv_unused");
    }
}

// The last tokens go where those were that leave the window.
void lesskv_device_steps::keep_window() {
    if (!in.window_rows) {
        return;
    }
    const int64_t n = in.window_rows->ne[0];
    const auto last = [&](ggml_tensor * x) { return ggml_view_3d(ctx, x, x->ne[0], n, Hkv, x->nb[1], x->nb[2], (T - n)*x->nb[1]); };
    run(ggml_set_rows(ctx, t.k, last(new_k), in.window_rows), "lesskv_keys");
    run(ggml_set_rows(ctx, t.v, last(new_v), in.window_rows), "lesskv_values");
}

// The number, plus 0 times the state, behind all that is written. In a window nothing has to be finite.
ggml_tensor * lesskv_device_steps::check(ggml_tensor * number) {
    auto * of  = t.state ? t.state : t.pos;
    auto * sum = of ? ggml_add(ctx, number, ggml_sum(ctx, ggml_scale(ctx, of, 0.0f))) : ggml_scale(ctx, number, 1.0f);
    ggml_set_output(sum);
    return run(sum, "lesskv_check");
}

ggml_tensor * lesskv_device_inputs::attend(const llm_graph_context & g, const lesskv_memory_layer & l, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * sinks) const {
    const int n_before = ggml_graph_n_nodes(g.gf);
    auto & steps = open[l.i];
    if (!l.shares) {
        steps = std::make_shared<lesskv_device_steps>(g, *this, l);
        steps->take(k, v);
    }
    auto * out = steps->attend(l, q, sinks);
    const int n_attended = ggml_graph_n_nodes(g.gf), owner = steps->l.il; // whose device does the rest
    if (steps->l.last_sharer < 0 || steps->l.last_sharer == l.il) {
        steps->commit();
        check = steps->check(check);
        open.erase(l.i);
    }
    if (static_cast<const lesskv_memory_context *>(g.mctx)->micro_batches().empty()) { // the graph is reserved
        for (int i = n_before; i < ggml_graph_n_nodes(g.gf); ++i) {
            const int il = i < n_attended ? l.il : owner;
            if (!mem->device()->computes(ggml_graph_node(g.gf, i), il)) {
                mem->note_elsewhere(ggml_op_desc(ggml_graph_node(g.gf, i)), il);
            }
        }
    }
    return ggml_reshape_2d(g.ctx0, out, out->ne[0]*out->ne[1], out->ne[2]);
}
