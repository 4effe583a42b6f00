// lesskv-info.cpp: what the cache holds, in numbers.

#include "lesskv-memory.h"

#include "llama-hparams.h"
#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cstdio>

std::map<ggml_backend_buffer_type_t, size_t> lesskv_memory::memory_breakdown() const {
    if (dev) {
        auto sizes = dev->memory();
        sizes[ggml_backend_cpu_buffer_type()] += bytes_kernels; // as they were read
        return sizes;
    }
    lesskv_info inf;
    info(inf);
    // what a budget in bytes counts; scratch is computing's, as upstream's buffers for it are not part of a cache
    return { { ggml_backend_cpu_buffer_type(), inf.bytes_slots + inf.bytes_state + inf.bytes_kernels } };
}

uint64_t lesskv_memory::full_bytes(const lesskv_memory_layer & l) const {
    uint64_t n = cparams.n_ctx_seq;
    if (l.params.n_swa > 0 && !swa_full) { // as llama_kv_cache_iswa sizes its sliding-window half
        n = GGML_PAD(std::min<uint64_t>(n, hparams.n_swa*(cparams.kv_unified ? cparams.n_seq_max : 1) + cparams.n_ubatch), 256);
    }
    return (uint64_t) l.params.n_head_kv*(l.params.dk + l.params.dv)*2*n;
}

void lesskv_memory::info(lesskv_info & out) const {
    out = {};
    snprintf(out.policy, sizeof(out.policy), "%s", lesskv_policy_name(policy));
    out.budget = budget;
    out.heavy  = heavy;
    out.recent = budget - heavy;
    out.pinned = pinned;
    out.spread = spread();
    for (const auto & b : budgets) {
        out.recent = std::min(out.recent, b.slots - b.heavy);
    }

    uint64_t slots = 0, state = 0;
    for (const auto & l : layers) {
        if (!l.used) {
            continue;
        }
        out.n_layer_kernels += l.params.n_swa == 0 && l.params.kernels;
        if (l.shares) {
            out.n_layer_shared++;
            continue;
        }
        out.n_layer     += l.params.n_swa == 0;
        out.n_layer_swa += l.params.n_swa > 0;
        size_t s, st;
        lesskv_layer_bytes(&l.params, &s, &st);
        slots += s;
        state += st;
        out.bytes_full += full_bytes(l);
    }
    for (const auto & seq : seqs) {
        out.n_seq += !seq.caches.empty();
    }
    out.bytes_slots    = slots*out.n_seq;
    out.bytes_state    = state*out.n_seq;
    out.bytes_sequence = slots + state;
    out.bytes_scratch = scratch_size;
    if (dev) { // all that a device has room for is taken at once; the caches here are but asked now and then
        out.bytes_sequence = (dev->bytes_slots() + dev->bytes_state())/dev->seats();
        out.bytes_scratch = out.bytes_slots + out.bytes_state;
        out.bytes_slots   = dev->bytes_slots();
        out.bytes_state   = dev->bytes_state();
    }
    if (adapter) {
        out.rank          = adapter->rank;
        out.hidden        = adapter->hidden;
        out.bytes_kernels = bytes_kernels + (dev ? dev->bytes_kernels() : 0);
        snprintf(out.adapter_sha256, sizeof(out.adapter_sha256), "%s", adapter->sha256.c_str());
    }
}

bool lesskv_memory::layer_info(llama_seq_id seq_id, size_t i, lesskv_layer_info & out) const {
    out = {};
    size_t k = 0;
    for (const auto & l : layers) {
        if (!l.used || l.shares || k++ != i) {
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
        out.rank    = out.kernels ? l.params.kernels->rank   : 0;
        out.hidden  = out.kernels ? l.params.kernels->hidden : 0;
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

bool lesskv_memory::head_info(int32_t il, int32_t head_kv, lesskv_head_info & out) const {
    out = {};
    if (il < 0 || il >= (int32_t) layer_of.size() || layer_of[il] < 0) {
        return false;
    }
    const auto & l = layers[layer_of[il]];
    const auto & p = l.params;
    if (p.n_swa > 0 || l.shares || head_kv < 0 || head_kv >= p.n_head_kv) {
        return false;
    }
    const auto b = budget_of(p, head_kv);
    out.budget = b.slots;
    out.heavy  = b.heavy;
    return true;
}

int32_t lesskv_memory::slots(llama_seq_id seq_id, int32_t il, int32_t head_kv, int32_t max, int32_t * pos, float * score) const {
    if (il < 0 || il >= (int32_t) layer_of.size() || layer_of[il] < 0) {
        return -1;
    }
    const auto * c = cache(seq_id, layers[layer_of[il]].i);
    if (!c || !home(seqs[seq_id]) || head_kv < 0 || head_kv >= layers[layer_of[il]].params.n_head_kv) {
        return -1;
    }
    return lesskv_cache_slots(c, head_kv, max, pos, score);
}
