#include "lesskv-memory.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include <strings.h>

// Set-up

// The variable that makes every LESS cache of a process run the plain loops, whatever its configuration says: to find out
// whether a fast path is at fault.
static bool forced_reference() {
    const char * value = getenv("LESSKV_REFERENCE");
    bool on = false; // as the Go package reads the others
    for (const char * word : { "1", "on", "true", "yes" }) {
        on = on || (value && strcasecmp(value, word) == 0);
    }
    if (!on) {
        return false;
    }
    LLAMA_LOG_WARN("lesskv: LESSKV_REFERENCE=%s: the kernels' plain loops run, which are slow\n", value);
    return true;
}

lesskv_memory::lesskv_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams)
    : model(model), hparams(model.hparams), cparams(cparams), swa_full(params.swa_full) {
    const lesskv_config & cfg = *params.lesskv;

    config_error      = cfg.error;
    config_error_size = cfg.error_size;
    use_reference     = cfg.reference || forced_reference();
    use_profile       = cfg.profile;

    char why[512];
    if (!lesskv_supported(&model, why, sizeof(why))) {
        refuse(why);
    }
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        refuse("LESS serves the layers of the text, this context is for those that predict further tokens: turn LESS off for it");
    }
    if (params.mem_other) {
        refuse("LESS keeps a cache of its own, this context asks for another context's: turn LESS off for it");
    }
    if (!cparams.causal_attn) {
        refuse("LESS needs causal attention, this context asks for non-causal attention: turn LESS off for it");
    }

    load_adapter(cfg);
    resolve(cfg, params);

    if (!reserve_scratch()) {
        refuse(error);
    }

    seqs.resize(cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max);

    LLAMA_LOG_INFO("%s: LESS cache: policy %s, budget %d (heavy %d, recent %d, pinned %d), %s\n", __func__,
            lesskv_policy_name(policy), budget, heavy, budget - heavy, pinned,
            adapter ? ("rank " + std::to_string(adapter->rank)).c_str() : "sparse only");
}

static std::vector<float> hadamard_matrix(int32_t n) {
    std::vector<float> m((size_t) n*n, 1.0f/std::sqrt((float) n));
    for (int32_t half = 1; half < n; half *= 2) {
        for (int32_t i = 0; i < n; ++i) {
            for (int32_t j = 0; j < n; ++j) {
                if ((i & half) != 0 && (j & half) != 0) {
                    m[(size_t) i*n + j] = -m[(size_t) i*n + j];
                }
            }
        }
    }
    return m;
}

// The settings of algorithm.md ("Budgets") from what the configuration asks for, and the layers that follow from them.
void lesskv_memory::resolve(const lesskv_config & cfg, const llama_memory_params & params) {
    GGML_UNUSED(params);

    const char * name = cfg.policy && *cfg.policy ? cfg.policy : adapter ? adapter->policy.c_str() : "h2o";
    policy = lesskv_policy_find(name);
    if (!policy) {
        std::string known;
        for (int i = 0; lesskv_policy_at(i); ++i) {
            known += std::string(i ? ", " : "") + lesskv_policy_at(i);
        }
        refuse(format("policy \"%s\" is unknown: use one of %s", name, known.c_str()));
    }
    if (adapter && adapter->policy != name) {
        refuse(format("the adapter %s was trained with policy %s, the configuration says %s: use that policy or another adapter",
                    adapter->path.c_str(), adapter->policy.c_str(), name));
    }

    if (cfg.type_v == GGML_TYPE_Q4_0) {
        refuse("values can't be of type q4_0, only keys can: use f16, f32 or q8_0 for the values");
    }
    for (const int32_t type : { cfg.type_k, cfg.type_v }) {
        if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_Q8_0 && type != GGML_TYPE_Q4_0) {
            refuse(format("slots can't be of type %d: use f16 (1), f32 (0), q8_0 (8) or, for keys, q4_0 (2)", type));
        }
    }
    type_k = (lesskv_type) cfg.type_k;
    type_v = (lesskv_type) cfg.type_v;

    bytes_kernels = adapter ? adapter->bytes : 0;
    layer_of.assign(hparams.n_layer(), -1); // without those that predict further tokens
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (hparams.n_head_kv(il) == 0) {
            continue;
        }
        lesskv_memory_layer l;
        l.mem      = this;
        l.il       = il;
        l.i        = layers.size();
        l.soft_cap = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        l.params.n_head    = hparams.n_head(il);
        l.params.n_head_kv = hparams.n_head_kv(il);
        l.params.dk        = hparams.n_embd_head_k(il);
        l.params.dv        = hparams.n_embd_head_v(il);
        l.params.type_k    = type_k;
        l.params.type_v    = type_v;
        l.params.n_swa     = hparams.is_swa(il) ? hparams.n_swa : 0;
        l.params.kernels   = adapter ? adapter->layer(il) : nullptr;
        if (lesskv_row_size(type_k, l.params.dk) == 0 || lesskv_row_size(type_v, l.params.dv) == 0) {
            refuse(format("slots of type q8_0 and q4_0 need head sizes that are multiples of 32, this model's are %d and %d: use f16",
                        l.params.dk, l.params.dv));
        }
        // as llama_kv_cache does, so that with nothing evicted quantised slots are its quantised cache
        l.rot_k = ggml_is_quantized((ggml_type) type_k) && l.params.dk % 64 == 0 ? l.params.dk & -l.params.dk : 0;
        l.rot_v = ggml_is_quantized((ggml_type) type_v) && l.params.dv % 64 == 0 ? 64 : 0;
        for (const int32_t n : { l.rot_k, l.rot_v }) {
            if (n > 0 && hadamard.count(n) == 0) {
                hadamard[n] = hadamard_matrix(n);
            }
        }
        if (l.params.kernels && l.rot_k && l.params.n_swa == 0) {
            l.params.kernels = adapter->rotated(il, l.params.n_head, l.params.n_head_kv, l.params.dk, l.rot_k, bytes_kernels);
        }
        layer_of[il] = (int32_t) l.i;
        layers.push_back(l);
    }

    // B
    const int64_t n_ctx = cparams.n_ctx_seq;
    if (cfg.budget < 0 || !(cfg.budget_share >= 0.0) || (cfg.budget > 0) + (cfg.budget_share > 0.0) + (cfg.budget_bytes > 0) > 1) {
        refuse(format("budget %d tokens, %g of the context, %llu bytes: give one of the three, and none below 0",
                    cfg.budget, cfg.budget_share, (unsigned long long) cfg.budget_bytes));
    }
    int64_t n = 0;
    if (cfg.budget > 0) {
        n = cfg.budget;
    } else if (cfg.budget_bytes > 0) {
        uint64_t fixed = bytes_kernels;
        uint64_t slot  = 0;
        for (const auto & l : layers) {
            lesskv_layer p = l.params;
            p.budget = 1;
            size_t slots, state;
            lesskv_layer_bytes(&p, &slots, &state);
            fixed += state + (p.n_swa > 0 ? slots : 0);
            slot  += p.n_swa > 0 ? 0 : slots;
        }
        if (cfg.budget_bytes < fixed + slot) {
            refuse(format("a budget of %.3f MiB is too small: state, kernels and sliding windows take %.3f MiB, each slot %.4f MiB",
                        cfg.budget_bytes/1048576.0, fixed/1048576.0, slot/1048576.0));
        }
        n = slot > 0 ? (int64_t) ((cfg.budget_bytes - fixed)/slot) : n_ctx;
    } else {
        const double share = cfg.budget_share > 0.0 ? cfg.budget_share : 0.05;
        n = std::max<int64_t>(64, (int64_t) std::floor(std::min(share, 1.0)*n_ctx));
    }
    budget = (int32_t) std::min(n, n_ctx); // with B >= n_ctx nothing is evicted

    heavy  = cfg.heavy >= 0 ? std::min<int64_t>(cfg.heavy, n < n_ctx ? cfg.heavy : budget) : lesskv_policy_heavy(policy, budget);
    pinned = cfg.pinned;
    if (heavy > budget) {
        refuse(format("heavy %d is more than the budget of %d: they share it with the recent ones", heavy, budget));
    }
    if (pinned < 0 || pinned > heavy) {
        refuse(format("pinned %d must be between 0 and heavy, which is %d of a budget of %d: raise the budget or heavy, or pin fewer",
                    pinned, heavy, budget));
    }

    for (auto & l : layers) {
        l.params.policy = policy;
        l.params.budget = budget;
        l.params.heavy  = heavy;
        l.params.pinned = pinned;
    }

    if (adapter && budget < n_ctx) {
        if ((int32_t) adapter->heavy != heavy || (int32_t) adapter->recent != budget - heavy) {
            LLAMA_LOG_WARN("%s: the adapter was trained with %u heavy + %u recent, this cache keeps %d + %d\n", __func__,
                    adapter->heavy, adapter->recent, heavy, budget - heavy);
        }
        if (adapter->ubatch != cparams.n_ubatch) {
            LLAMA_LOG_WARN("%s: the adapter was trained with micro-batches of %u tokens, prompts come in %u here\n", __func__,
                    adapter->ubatch, cparams.n_ubatch);
        }
        if (cparams.rope_freq_base != hparams.rope_freq_base_train || cparams.rope_freq_scale != hparams.rope_freq_scale_train) {
            LLAMA_LOG_WARN("%s: the adapter was trained with the model's own RoPE settings (base %g, scale %g), this context changes them (%g, %g)\n",
                    __func__, hparams.rope_freq_base_train, hparams.rope_freq_scale_train, cparams.rope_freq_base, cparams.rope_freq_scale);
        }
    }
}

void lesskv_memory::load_adapter(const lesskv_config & cfg) {
    adapter = cfg.loaded;
    if (adapter || !cfg.adapter || !*cfg.adapter) {
        return;
    }
    try {
        own     = std::make_unique<lesskv_adapter>(cfg.adapter, model, cfg.force_adapter);
        adapter = own.get();
    } catch (const std::exception & e) {
        refuse(e.what());
    }
}

void lesskv_memory::free_scratch::operator()(void * p) const {
    ::operator delete(p, std::align_val_t(64));
}

// Sizes the scratch for the context's threads, which llama_set_n_threads may have changed.
bool lesskv_memory::reserve_scratch() {
    const int want = std::max(1, std::max(cparams.n_threads, cparams.n_threads_batch));
    if (scratch && want <= n_threads) {
        return true;
    }
    size_t size = 0;
    for (const auto & l : layers) {
        size = std::max(size, lesskv_scratch_size(&l.params, cparams.n_ubatch, want));
    }
    std::unique_ptr<void, free_scratch> p(::operator new(std::max<size_t>(size, 64), std::align_val_t(64), std::nothrow));
    if (!p) {
        return fail(format("no memory for a scratch buffer of %.1f MiB: lower n_ubatch (%u) or the budget (%d)",
                    size/1048576.0, cparams.n_ubatch, budget));
    }
    if (use_profile) {
        profiles.resize(want);
    }
    if (use_reference) {
        size_t n = 1; // a layer whose policy asks for nothing needs none
        for (const auto & l : layers) {
            n = std::max(n, l.params.n_swa > 0 ? 0 : (size_t) l.params.n_head_kv*((size_t) budget + cparams.n_ubatch));
        }
        worth.resize(n);
        size += n*sizeof(worth[0]);
    }
    scratch      = std::move(p);
    scratch_size = size;
    n_threads    = want;
    return true;
}

void lesskv_memory::refuse(const std::string & why) const {
    error = why;
    if (config_error && config_error_size > 0) {
        snprintf(config_error, config_error_size, "%s", why.c_str());
    }
    throw std::runtime_error(why);
}

bool lesskv_memory::fail(const std::string & why) const {
    error = why;
    LLAMA_LOG_ERROR("lesskv: %s\n", why.c_str());
    return false;
}

lesskv_memory_layer & lesskv_memory::layer(int il) {
    if (il < 0 || il >= (int) layer_of.size() || layer_of[il] < 0) {
        refuse(format("layer %d attends but has no KV heads of its own: LESS cannot serve this model, turn it off", il));
    }
    return layers[layer_of[il]];
}

void lesskv_memory::note_lora() {
    if (adapter && !warned_lora) {
        warned_lora = true;
        LLAMA_LOG_WARN("%s: the LESS adapter was trained without the LoRA that this context applies\n", __func__);
    }
}

// Sequences

bool lesskv_memory::valid(llama_seq_id seq_id) const {
    return seq_id >= 0 && (size_t) seq_id < seqs.size();
}

lesskv_cache * lesskv_memory::cache(llama_seq_id seq_id, size_t i) const {
    if (!valid(seq_id) || i >= seqs[seq_id].caches.size()) {
        return nullptr;
    }
    return seqs[seq_id].caches[i].get();
}

bool lesskv_memory::make(sequence & seq) {
    std::vector<cache_ptr> caches(layers.size());
    for (const auto & l : layers) {
        if (!l.used) {
            continue;
        }
        lesskv_cache * c = nullptr;
        const auto status = lesskv_cache_new(&c, &l.params);
        if (status != LESSKV_OK) {
            return fail(format("cannot make the cache of layer %d: %s", l.il, lesskv_status_str(status)));
        }
        caches[l.i].reset(c);
    }
    seq.caches = std::move(caches);
    return true;
}

static lesskv_stats stats_of(const lesskv_cache * c) {
    lesskv_stats s;
    lesskv_cache_stats(c, &s);
    return s;
}

bool lesskv_memory::consistent(const sequence & seq, int64_t seen) const {
    for (const auto & c : seq.caches) {
        if (c && stats_of(c.get()).seen != seen) {
            return false;
        }
    }
    return true;
}

llama_pos lesskv_memory::pos_max(const sequence & seq) const {
    llama_pos res = -1;
    for (const auto & c : seq.caches) {
        if (c) {
            res = std::max(res, stats_of(c.get()).pos_max);
        }
    }
    return res;
}

// The lowest position to which the sequence can be cut back. Of a sliding window it is the one whose own window is still held.
llama_pos lesskv_memory::pos_min(const sequence & seq) const {
    llama_pos res = -1;
    for (const auto & l : layers) {
        const auto * c = l.i < seq.caches.size() ? seq.caches[l.i].get() : nullptr;
        if (!c) {
            continue;
        }
        const auto s = stats_of(c);
        res = std::max(res, l.params.n_swa > 0 && s.folded > 0 ? std::min(s.pos_max, s.pos_min - 1 + l.params.n_swa) : s.pos_min);
    }
    return res;
}

bool lesskv_memory::can_cut(const sequence & seq, llama_pos p0) const {
    for (const auto & l : layers) {
        const auto * c = l.i < seq.caches.size() ? seq.caches[l.i].get() : nullptr;
        if (!c) {
            continue;
        }
        const auto s = stats_of(c);
        if (s.folded > 0 && p0 < (l.params.n_swa > 0 ? s.pos_min - 1 + l.params.n_swa : s.pos_min)) {
            return false;
        }
    }
    return true;
}

// A poisoned sequence says that it is empty: llama_decode compares positions before it asks for a batch, and would answer
// that they are wrong where the reason is another.
llama_pos lesskv_memory::seq_pos_min(llama_seq_id seq_id) const {
    return valid(seq_id) && seqs[seq_id].poison.empty() ? pos_min(seqs[seq_id]) : -1;
}

llama_pos lesskv_memory::seq_pos_max(llama_seq_id seq_id) const {
    return valid(seq_id) && seqs[seq_id].poison.empty() ? pos_max(seqs[seq_id]) : -1;
}

void lesskv_memory::poison(llama_seq_id seq_id, const std::string & why) {
    seqs[seq_id].poison = format("sequence %d refuses to decode until it is cleared: %s", seq_id, why.c_str());
    fail(seqs[seq_id].poison);
}

void lesskv_memory::clear(bool data) {
    GGML_UNUSED(data);
    for (auto & seq : seqs) {
        seq = {};
    }
    in_flight = -1;
    error.clear();
}

bool lesskv_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= (llama_seq_id) seqs.size()) {
        return fail(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
    }
    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? (llama_seq_id) seqs.size() : seq_id + 1;

    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    const auto clears = [&](const sequence & seq) { // the whole sequence goes
        return p0 == 0 && p1 > pos_max(seq);
    };

    // llama_decode takes back a micro-batch that failed in this way, and ignores the answer
    if (in_flight >= s0 && in_flight < s1) {
        auto & seq = seqs[in_flight];
        if (!clears(seq) && !consistent(seq, in_flight_seen)) {
            poison(in_flight, "its last decode failed or was aborted half-way, and what it folded cannot be taken back");
        }
        in_flight = -1;
    }

    for (llama_seq_id s = s0; s < s1; ++s) {
        const auto & seq = seqs[s];
        if (clears(seq) || p0 > pos_max(seq) || p0 >= p1) {
            continue;
        }
        if (!seq.poison.empty()) {
            return fail(seq.poison);
        }
        if (p1 <= pos_max(seq)) {
            return fail(format("positions %d to %d of sequence %d can't be removed: only the end of a sequence can be cut off, and it ends at %d",
                        p0, p1, s, pos_max(seq)));
        }
        if (!can_cut(seq, p0)) {
            return fail(format("sequence %d can't be cut back to position %d: what lies before %d has been folded into the state",
                        s, p0, pos_min(seq)));
        }
    }

    for (llama_seq_id s = s0; s < s1; ++s) {
        auto & seq = seqs[s];
        if (clears(seq)) {
            seq = {};
        } else if (p0 <= pos_max(seq) && p0 < p1) {
            for (auto & c : seq.caches) {
                if (c && lesskv_cache_cut(c.get(), p0) != LESSKV_OK) {
                    poison(s, "it could be cut in some layers only");
                    return false;
                }
            }
        }
    }
    return true;
}

void lesskv_memory::seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    if (src == dst) {
        return;
    }
    if (!valid(dst)) {
        fail(format("there is no sequence %d, the context has %zu", dst, seqs.size()));
        return;
    }
    if (!valid(src)) {
        poison(dst, format("it was to become a copy of sequence %d, which does not exist", src));
        return;
    }
    const auto & from = seqs[src];
    auto       & to   = seqs[dst];

    if (!from.poison.empty()) {
        poison(dst, format("it was to become a copy of sequence %d, which is refused itself", src));
        return;
    }
    const llama_pos end = pos_max(from);
    if (end < 0) {
        to = {};
        return;
    }
    if (p0 > 0 || (p1 >= 0 && p1 <= end)) {
        poison(dst, format("it was to become a copy of positions %d to %d of sequence %d, and only a whole sequence can be copied", p0, p1, src));
        return;
    }
    sequence copy;
    if (!make(copy)) {
        poison(dst, format("no memory for a copy of sequence %d", src));
        return;
    }
    for (size_t i = 0; i < copy.caches.size(); ++i) {
        if (copy.caches[i] && lesskv_cache_copy(copy.caches[i].get(), from.caches[i].get()) != LESSKV_OK) {
            poison(dst, format("sequence %d could not be copied to it", src));
            return;
        }
    }
    to = std::move(copy);
}

void lesskv_memory::seq_keep(llama_seq_id seq_id) {
    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((llama_seq_id) s != seq_id) {
            seqs[s] = {};
        }
    }
}

void lesskv_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (!valid(seq_id) || shift == 0 || p0 > pos_max(seqs[seq_id]) || (p1 >= 0 && p1 <= std::max(p0, 0))) {
        return;
    }
    poison(seq_id, "its positions were to be shifted, which a folded cache cannot do");
}

void lesskv_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (!valid(seq_id) || d == 1 || p0 > pos_max(seqs[seq_id]) || (p1 >= 0 && p1 <= std::max(p0, 0))) {
        return;
    }
    poison(seq_id, "its positions were to be divided, which a folded cache cannot do");
}

// Decoding

llama_memory_context_ptr lesskv_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    const auto no = [&](const std::string & why) {
        fail(why);
        return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    };

    config_error = nullptr; // the configuration is the caller's again
    status       = LESSKV_OK;

    if (!cparams.causal_attn) {
        return no("LESS needs causal attention, and this context has been switched to non-causal attention: switch it back, or turn LESS off for it");
    }

    if (in_flight >= 0) { // a decode that ended in an exception
        if (!consistent(seqs[in_flight], in_flight_seen)) {
            poison(in_flight, "its last decode failed half-way");
        }
        in_flight = -1;
    }
    if (!reserve_scratch()) {
        return no(error);
    }

    const llama_batch & batch = balloc.get_batch();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.n_seq_id[i] != 1) {
            return no(format("token %d of the batch belongs to %d sequences: with LESS each token belongs to one; copy the sequence instead", i, batch.n_seq_id[i]));
        }
        const llama_seq_id s = batch.seq_id[i][0];
        if (!valid(s)) {
            return no(format("token %d of the batch is of sequence %d, the context has %zu", i, s, seqs.size()));
        }
        if (!seqs[s].poison.empty()) {
            return no(seqs[s].poison);
        }
    }

    balloc.split_reset();
    std::vector<llama_ubatch> ubatches;
    std::vector<llama_pos>    next(seqs.size(), -1);
    while (true) {
        auto ub = balloc.split_seq(n_ubatch);
        if (ub.n_tokens == 0) {
            break;
        }
        const llama_seq_id s = ub.seq_id[0][0];
        if (next[s] < 0) {
            const llama_pos end = pos_max(seqs[s]);
            next[s] = end < 0 ? ub.pos[0] : end + 1;
        }
        for (uint32_t i = 0; i < ub.n_tokens; ++i) {
            if (ub.pos[i] != next[s]) {
                return no(format("the tokens of sequence %d must be in order: position %d where %d was expected", s, ub.pos[i], next[s]));
            }
            next[s]++;
        }
        ubatches.push_back(std::move(ub));
    }
    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        return no("the batch could not be split into micro-batches");
    }

    for (const auto & ub : ubatches) {
        auto & seq = seqs[ub.seq_id[0][0]];
        if (seq.caches.empty() && !make(seq)) {
            return no(error);
        }
        if (adapter && !warned_context && (uint32_t) next[ub.seq_id[0][0]] > adapter->context) {
            warned_context = true;
            LLAMA_LOG_WARN("%s: the adapter was trained on contexts of %u tokens, this sequence is longer\n", __func__, adapter->context);
        }
    }

    error.clear();
    return std::make_unique<lesskv_memory_context>(this, std::move(ubatches));
}

llama_memory_context_ptr lesskv_memory::init_full() {
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_SUCCESS);
}

llama_memory_context_ptr lesskv_memory::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_NO_UPDATE);
}

bool lesskv_memory::apply(const llama_ubatch & ubatch) {
    const llama_seq_id s = ubatch.seq_id[0][0];
    const auto & seq = seqs[s];

    int64_t seen = -1;
    for (const auto & c : seq.caches) {
        if (c) {
            seen = stats_of(c.get()).seen;
            break;
        }
    }
    if (!seq.poison.empty()) {
        return fail(seq.poison);
    }
    if (seen < 0 || !consistent(seq, seen)) {
        poison(s, "its layers have seen different numbers of tokens");
        return false;
    }
    in_flight      = s;
    in_flight_seen = seen;
    failed         = 0;
    return true;
}

void lesskv_memory::done() {
    in_flight = -1;
}

void lesskv_memory::note_status(const lesskv_memory_layer & l, lesskv_status status) {
    uint64_t none = 0;
    if (status != LESSKV_OK) {
        failed.compare_exchange_strong(none, (uint64_t) l.i << 32 | (uint64_t) status);
    }
}

bool lesskv_memory::computed() {
    const uint64_t what = failed.exchange(0);
    if (what == 0) {
        return true;
    }
    status = (lesskv_status) (uint32_t) what;
    poison(in_flight, format("layer %d: %s", layers[what >> 32].il, lesskv_status_str(status)));
    in_flight = -1; // said already; llama_decode takes back what it can
    return false;
}

bool lesskv_memory_context::apply() {
    return ubatches.empty() || mem->apply(ubatches[i]);
}

bool lesskv_memory_context::next() {
    mem->done();
    return ++i < ubatches.size();
}

// Numbers

std::map<ggml_backend_buffer_type_t, size_t> lesskv_memory::memory_breakdown() const {
    lesskv_info inf;
    info(inf);
    // what a budget in bytes counts; scratch is computing's, as upstream's buffers for it are not part of a cache
    return { { ggml_backend_cpu_buffer_type(), inf.bytes_slots + inf.bytes_state + inf.bytes_kernels } };
}

void lesskv_memory::info(lesskv_info & out) const {
    out = {};
    snprintf(out.policy, sizeof(out.policy), "%s", lesskv_policy_name(policy));
    out.budget = budget;
    out.heavy  = heavy;
    out.recent = budget - heavy;
    out.pinned = pinned;

    const uint64_t n_ctx = cparams.n_ctx_seq;
    // as llama_kv_cache_iswa sizes its sliding-window half
    const uint64_t n_ctx_swa = swa_full ? n_ctx : GGML_PAD(std::min<uint64_t>(n_ctx, hparams.n_swa*(cparams.kv_unified ? cparams.n_seq_max : 1) + cparams.n_ubatch), 256);

    uint64_t slots = 0, state = 0;
    for (const auto & l : layers) {
        if (!l.used) {
            continue;
        }
        out.n_layer     += l.params.n_swa == 0;
        out.n_layer_swa += l.params.n_swa > 0;
        out.n_layer_kernels += l.params.n_swa == 0 && l.params.kernels;
        size_t s, st;
        lesskv_layer_bytes(&l.params, &s, &st);
        slots += s;
        state += st;
        out.bytes_full += (uint64_t) l.params.n_head_kv*(l.params.dk + l.params.dv)*2*(l.params.n_swa > 0 ? n_ctx_swa : n_ctx);
    }
    for (const auto & seq : seqs) {
        out.n_seq += !seq.caches.empty();
    }
    out.bytes_slots   = slots*out.n_seq;
    out.bytes_state   = state*out.n_seq;
    out.bytes_scratch = scratch_size;
    if (adapter) {
        out.rank          = adapter->rank;
        out.hidden        = adapter->hidden;
        out.bytes_kernels = bytes_kernels;
        snprintf(out.adapter_sha256, sizeof(out.adapter_sha256), "%s", adapter->sha256.c_str());
    }
}

bool lesskv_memory::layer_info(llama_seq_id seq_id, size_t i, lesskv_layer_info & out) const {
    out = {};
    size_t k = 0;
    for (const auto & l : layers) {
        if (!l.used || k++ != i) {
            continue;
        }
        const auto * c = cache(seq_id, l.i);
        if (!c) {
            return false;
        }
        const auto s = stats_of(c);
        size_t slots, state;
        lesskv_layer_bytes(&l.params, &slots, &state);
        out.il      = l.il;
        out.swa     = l.params.n_swa > 0;
        out.kernels = l.params.kernels && !out.swa;
        out.seen    = s.seen;
        out.kept    = s.kept;
        out.folded  = s.folded;
        out.bytes_slots = slots;
        out.bytes_state = state;
        out.scale       = l.scale;
        out.soft_cap    = l.soft_cap;
        return true;
    }
    return false;
}

int32_t lesskv_memory::slots(llama_seq_id seq_id, int32_t il, int32_t head_kv, int32_t max, int32_t * pos, float * score) const {
    if (il < 0 || il >= (int32_t) layer_of.size() || layer_of[il] < 0) {
        return -1;
    }
    const auto * c = cache(seq_id, layer_of[il]);
    if (!c || head_kv < 0 || head_kv >= layers[layer_of[il]].params.n_head_kv) {
        return -1;
    }
    return lesskv_cache_slots(c, head_kv, max, pos, score);
}

// State: a header that must be equal at loading, then the sequences.

static const uint32_t STATE_MAGIC   = 0x764b534c; // "LSKv"
static const uint32_t STATE_VERSION = 4;

// What a saved state must share with the context that loads it. Plain numbers and padded strings, compared one by one.
struct lesskv_memory::state_header {
    uint32_t magic, version;
    char     policy[32];
    char     adapter[65];
    char     model[65];
    char     pad[2];
    int32_t  budget, heavy, pinned;
    int32_t  type_k, type_v;
    uint32_t n_ubatch, n_layer;
    float    rope_freq_base, rope_freq_scale;
    uint32_t n_ctx_orig_yarn;
    float    yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow;
};

lesskv_memory::state_header lesskv_memory::make_header() const {
    state_header h;
    memset(&h, 0, sizeof(h));
    h.magic   = STATE_MAGIC;
    h.version = STATE_VERSION;
    snprintf(h.policy,  sizeof(h.policy),  "%s", lesskv_policy_name(policy));
    snprintf(h.adapter, sizeof(h.adapter), "%s", adapter ? adapter->sha256.c_str() : "");
    if (fingerprint.empty()) {
        fingerprint = lesskv_model_fingerprint(model);
    }
    snprintf(h.model,   sizeof(h.model),   "%s", fingerprint.c_str());
    h.budget = budget;
    h.heavy  = heavy;
    h.pinned = pinned;
    h.type_k = type_k;
    h.type_v = type_v;
    h.n_ubatch = cparams.n_ubatch;
    h.n_layer  = (uint32_t) layers.size();
    h.rope_freq_base   = cparams.rope_freq_base;
    h.rope_freq_scale  = cparams.rope_freq_scale;
    h.n_ctx_orig_yarn  = cparams.n_ctx_orig_yarn;
    h.yarn_ext_factor  = cparams.yarn_ext_factor;
    h.yarn_attn_factor = cparams.yarn_attn_factor;
    h.yarn_beta_fast   = cparams.yarn_beta_fast;
    h.yarn_beta_slow   = cparams.yarn_beta_slow;
    return h;
}

void lesskv_memory::check_header(llama_io_read_i & io) const {
    const auto want = make_header();
    state_header h;
    io.read(&h, sizeof(h));
    const bool same = memcmp(&h, &want, sizeof(h)) == 0;

    const auto differ = [](const char * what, const std::string & found, const std::string & wanted) {
        throw std::runtime_error(format("the saved state is not for this context: %s is %s there and %s here", what, found.c_str(), wanted.c_str()));
    };
    if (h.magic != STATE_MAGIC) {
        throw std::runtime_error("this is not the state of a LESS cache");
    }
    h.policy [sizeof(h.policy)  - 1] = 0;
    h.adapter[sizeof(h.adapter) - 1] = 0;
    h.model  [sizeof(h.model)   - 1] = 0;

    const auto num = [&](const char * what, double found, double wanted) {
        if (found != wanted) {
            differ(what, format("%g", found), format("%g", wanted));
        }
    };
    num("the format version", h.version, want.version);
    if (strcmp(h.model, want.model) != 0) {
        differ("the model's fingerprint", h.model, want.model);
    }
    if (strcmp(h.policy, want.policy) != 0) {
        differ("the policy", h.policy, want.policy);
    }
    if (strcmp(h.adapter, want.adapter) != 0) {
        differ("the adapter's SHA-256", h.adapter[0] ? h.adapter : "(none)", want.adapter[0] ? want.adapter : "(none)");
    }
    num("the budget",             h.budget,           want.budget);
    num("heavy",                  h.heavy,            want.heavy);
    num("pinned",                 h.pinned,           want.pinned);
    num("the slots' key type",    h.type_k,           want.type_k);
    num("the slots' value type",  h.type_v,           want.type_v);
    num("n_ubatch",               h.n_ubatch,         want.n_ubatch);
    num("the number of layers",   h.n_layer,          want.n_layer);
    num("rope_freq_base",         h.rope_freq_base,   want.rope_freq_base);
    num("rope_freq_scale",        h.rope_freq_scale,  want.rope_freq_scale);
    num("the YaRN context",       h.n_ctx_orig_yarn,  want.n_ctx_orig_yarn);
    num("the YaRN mix factor",    h.yarn_ext_factor,  want.yarn_ext_factor);
    num("the YaRN magnitude",     h.yarn_attn_factor, want.yarn_attn_factor);
    num("the YaRN low dimension", h.yarn_beta_fast,   want.yarn_beta_fast);
    num("the YaRN high dimension",h.yarn_beta_slow,   want.yarn_beta_slow);
    if (!same) {
        throw std::runtime_error("the saved state is damaged in its header, where it pads its strings");
    }
}

void lesskv_memory::write_seq(llama_io_write_i & io, const sequence & seq) const {
    std::vector<uint8_t> buf;
    uint32_t n = 0;
    for (const auto & c : seq.caches) {
        n += c != nullptr;
    }
    io.write(&n, sizeof(n));
    for (size_t i = 0; i < seq.caches.size(); ++i) {
        const auto * c = seq.caches[i].get();
        if (!c) {
            continue;
        }
        const uint64_t size = lesskv_cache_save_size(c);
        const uint32_t il   = layers[i].il;
        buf.resize(size);
        lesskv_cache_save(c, buf.data());
        io.write(&il,   sizeof(il));
        io.write(&size, sizeof(size));
        io.write(buf.data(), size); // with a checksum of its own
    }
}

lesskv_memory::sequence lesskv_memory::read_seq(llama_io_read_i & io) const {
    uint32_t n;
    io.read(&n, sizeof(n));

    sequence seq;
    if (n == 0) {
        return seq;
    }
    if (!const_cast<lesskv_memory *>(this)->make(seq)) {
        throw std::runtime_error(error);
    }
    uint32_t want = 0;
    for (const auto & c : seq.caches) {
        want += c != nullptr;
    }
    if (n != want) {
        throw std::runtime_error(format("the saved state is not for this model: %u layers there, %u here", n, want));
    }
    std::vector<uint8_t> buf;
    int64_t seen = -1;
    for (size_t i = 0; i < seq.caches.size(); ++i) {
        if (!seq.caches[i]) {
            continue;
        }
        uint32_t il;
        uint64_t size;
        io.read(&il,   sizeof(il));
        io.read(&size, sizeof(size));

        // no more than a full cache takes: a damaged size must not become an allocation
        size_t slots, state;
        lesskv_layer_bytes(&layers[i].params, &slots, &state);
        if (il != (uint32_t) layers[i].il || size > 2*(slots + state) + (1u << 20)) {
            throw std::runtime_error(format("the saved state is damaged at layer %d", layers[i].il));
        }
        buf.resize(size);
        io.read(buf.data(), size);
        const auto status = lesskv_cache_load(seq.caches[i].get(), buf.data(), size);
        if (status != LESSKV_OK) {
            throw std::runtime_error(format("the saved state of layer %d is damaged: %s", layers[i].il, lesskv_status_str(status)));
        }
        const int64_t s = stats_of(seq.caches[i].get()).seen;
        if (seen >= 0 && s != seen) {
            throw std::runtime_error("the saved state is damaged: its layers have seen different numbers of tokens");
        }
        seen = s;
    }
    return seq;
}

void lesskv_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    GGML_UNUSED(flags);

    try {
        if (seq_id >= (llama_seq_id) seqs.size()) {
            throw std::runtime_error(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
        }
        std::vector<uint32_t> ids;
        for (size_t s = 0; s < seqs.size(); ++s) {
            if (seq_id >= 0 ? (llama_seq_id) s == seq_id : !seqs[s].caches.empty() || !seqs[s].poison.empty()) {
                if (!seqs[s].poison.empty()) {
                    throw std::runtime_error(seqs[s].poison);
                }
                ids.push_back((uint32_t) s);
            }
        }
        const auto h = make_header();
        io.write(&h, sizeof(h));
        const uint32_t n = ids.size();
        io.write(&n, sizeof(n));
        for (const uint32_t s : ids) {
            io.write(&s, sizeof(s));
            write_seq(io, seqs[s]);
        }
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}

void lesskv_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    GGML_UNUSED(flags);

    try {
        if (seq_id >= (llama_seq_id) seqs.size()) {
            throw std::runtime_error(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
        }
        check_header(io);
        uint32_t n;
        io.read(&n, sizeof(n));
        if (n > seqs.size() || (seq_id >= 0 && n != 1)) {
            throw std::runtime_error(format("the saved state holds %u sequences, %zu fit", n, seq_id >= 0 ? (size_t) 1 : seqs.size()));
        }
        std::vector<sequence> loaded(seqs.size());
        std::vector<bool>     seen(seqs.size());
        for (uint32_t i = 0; i < n; ++i) {
            uint32_t s;
            io.read(&s, sizeof(s));
            if (seq_id >= 0) {
                s = seq_id;
            }
            if (s >= seqs.size() || seen[s]) {
                throw std::runtime_error(format("the saved state names sequence %u, %zu fit", s, seqs.size()));
            }
            seen[s]   = true;
            loaded[s] = read_seq(io);
        }

        // all of it is good: from here nothing fails
        if (seq_id >= 0) {
            seqs[seq_id] = std::move(loaded[seq_id]);
        } else {
            seqs = std::move(loaded);
        }
        in_flight = -1;
        error.clear();
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}
