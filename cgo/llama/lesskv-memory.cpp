// lesskv-memory.cpp: the cache as a context gets it, made of its configuration, and what it refuses and warns of.

#include "lesskv-memory.h"

#include "lesskv-model.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include <strings.h>

// The variable that makes every LESS cache of a process run the reference loops, whatever its configuration says: to find out
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
    LLAMA_LOG_WARN("lesskv: LESSKV_REFERENCE=%s: the reference loops run, which are slow\n", value);
    return true;
}

// Says so where the environment asks for inner loops that this build or this processor lacks.
static void warn_level() {
    const char * value = getenv("LESSKV_LEVEL");
    if (value && *value && strcmp(value, lesskv_level_name()) != 0) {
        LLAMA_LOG_WARN("lesskv: LESSKV_LEVEL=%s: there are no such inner loops here, those for %s run\n", value, lesskv_level_name());
    }
}

lesskv_memory::lesskv_memory(
        const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams, const layer_filter_cb & attends)
    : model(model), hparams(model.hparams), cparams(cparams), swa_full(params.swa_full) {
    const lesskv_config & cfg = *params.lesskv;

    config_error      = cfg.error;
    config_error_size = cfg.error_size;
    use_reference     = cfg.reference || forced_reference();
    use_profile       = cfg.profile;
    on_device         = cfg.device;

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
    resolve(cfg, attends);
    resolve_budget(cfg);
    warn_adapter();
    warn_level();

    if (on_device) {
        place(cfg);
    } else {
        const auto why = reserve_scratch(1);
        if (!why.empty()) {
            refuse(why);
        }
    }

    seqs.resize(cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max);

    LLAMA_LOG_INFO("%s: LESS cache: policy %s, budget %d (heavy %d, recent %d, pinned %d)%s, %s\n", __func__,
            lesskv_policy_name(policy), budget, heavy, budget - heavy, pinned, spread() ? ", spread by layer and head" : "",
            adapter && adapter->bytes > 0 ? format("phi and psi in %d layers, rank %d at most", adapter->n_layer, adapter->rank).c_str() : "sparse only");
}

// Makes the tensors of LESS on the device.
void lesskv_memory::place(const lesskv_config & cfg) {
    const auto why = use_reference || use_profile ? std::string("LESS on the device does not run the kernels: leave out the reference loops and the profile, or keep the cache in main memory") :
        lesskv_device::refusal(model, layers, cparams.n_ubatch);
    if (!why.empty()) {
        refuse(why);
    }
    if (!cparams.offload_kqv) {
        refuse("LESS on the device keeps the cache where the layers are, and offload_kqv = false asks for it in main memory: leave out one of the two");
    }
    try {
        dev = std::make_unique<const lesskv_device>(model, layers, cparams.n_ubatch, cparams.n_seq_max,
                cfg.main_memory > 0 ? cfg.main_memory : UINT64_MAX);
    } catch (const lesskv_device::no_memory & e) {
        if (cfg.no_memory) {
            *cfg.no_memory = true;
        }
        refuse(format("LESS on the device: a budget of %d slots%s takes %.1f GiB of %s%s: ask for a smaller one, a smaller n_ubatch (%u), fewer sequences (%u), or keep the cache in main memory",
                    budget, spread() ? " by head, where each head of a layer takes as many as the largest," : "", e.bytes/1073741824.0, e.where.c_str(), e.limit ? format(", and there are %.1f", e.limit/1073741824.0).c_str() : ", which has not as much",
                    cparams.n_ubatch, cparams.n_seq_max));
    } catch (const std::exception & e) {
        refuse(e.what());
    }
}

// Makes a layer that has no keys and values of its own a sharer; lesskv_supported has seen to it that the two fit.
void lesskv_memory::share(lesskv_memory_layer & l) {
    auto & owner = layers[layer_of[lesskv_owner(hparams, l.il)]];
    l.i      = owner.i;
    l.shares = true;
    owner.last_sharer = std::max(owner.last_sharer, l.il);
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

// The types of a layer's slots, and how vectors are rotated for them: as they were asked for, else the adapter's, else k and v. A layer
// that shares another's cache has that one's.
void lesskv_memory::set_types(lesskv_memory_layer & l, const lesskv_config & cfg, lesskv_type k, lesskv_type v) {
    const uint32_t il = lesskv_owner(hparams, l.il);
    auto & p = l.params;
    if (adapter && !adapter->types_k.empty()) {
        k = adapter->types_k[il];
        v = adapter->types_v[il];
    }
    const auto given = [&](const int32_t * layers, int32_t all, lesskv_type otherwise) {
        const int32_t type = layers ? layers[il] : all;
        if (type != -1 && !lesskv_slot_type(type)) {
            refuse(format("slots can't be of type %d: use f16 (1), f32 (0), q8_0 (8) or q4_0 (2)", type));
        }
        return type == -1 ? otherwise : (lesskv_type) type;
    };
    p.type_k = given(cfg.layer_type_k, cfg.type_k, k);
    p.type_v = given(cfg.layer_type_v, cfg.type_v, v);
    if (lesskv_row_size(p.type_k, p.dk) == 0 || lesskv_row_size(p.type_v, p.dv) == 0) {
        refuse(format("slots of type q8_0 and q4_0 need head sizes that are multiples of 32, those of layer %d are %d and %d: use f16", l.il, p.dk, p.dv));
    }
    // as llama_kv_cache does, so that with nothing evicted quantised slots are its quantised cache
    p.rotation = ggml_is_quantized((ggml_type) p.type_k) && p.dk % 64 == 0 ? p.dk & -p.dk : 0;
    l.rot_v    = ggml_is_quantized((ggml_type) p.type_v) && p.dv % 64 == 0 ? 64 : 0;
    for (const int32_t n : { p.rotation, l.rot_v }) {
        if (n > 0 && hadamard.count(n) == 0) {
            hadamard[n] = hadamard_matrix(n);
        }
    }
}

// Policy, types and layers, from what the configuration asks for and the model has.
void lesskv_memory::resolve(const lesskv_config & cfg, const layer_filter_cb & attends) {
    const char * name = cfg.policy && *cfg.policy ? cfg.policy : adapter ? adapter->policy.c_str() : "peak";
    policy = lesskv_policy_find(name);
    if (!policy) {
        std::string known;
        for (int i = 0; const auto * p = lesskv_policy_at(i); ++i) {
            known += std::string(i ? ", " : "") + lesskv_policy_name(p);
        }
        refuse(format("policy \"%s\" is unknown: use one of %s", name, known.c_str()));
    }
    if (adapter && adapter->policy != name) {
        refuse(format("the adapter %s was trained with policy %s, the configuration says %s: use that policy or another adapter",
                    adapter->path.c_str(), adapter->policy.c_str(), name));
    }

    if ((cfg.layer_type_k || cfg.layer_type_v) && cfg.n_layer_types != (int32_t) hparams.n_layer()) {
        refuse(format("types of the slots of %d layers, this model has %u: give one for each", cfg.n_layer_types, hparams.n_layer()));
    }
    const auto is_here = [&](uint32_t il) { return hparams.n_head_kv(il) > 0 && (!attends || attends(il)); };
    lesskv_type type_k = on_device ? LESSKV_TYPE_F16 : LESSKV_TYPE_Q8_0, type_v = type_k; // where none are given
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (is_here(il) && lesskv_row_size(LESSKV_TYPE_Q8_0, hparams.n_embd_head_k(il)) == 0) {
            type_k = LESSKV_TYPE_F16;
        }
        if (is_here(il) && lesskv_row_size(LESSKV_TYPE_Q8_0, hparams.n_embd_head_v(il)) == 0) {
            type_v = LESSKV_TYPE_F16;
        }
    }

    bytes_kernels = adapter ? adapter->bytes : 0;
    layer_of.assign(hparams.n_layer(), -1); // without those that predict further tokens
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (!is_here(il)) {
            continue;
        }
        lesskv_memory_layer l;
        l.mem      = this;
        l.il       = il;
        l.n        = layers.size();
        l.i        = l.n;
        l.soft_cap = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        l.params.n_head    = hparams.n_head(il);
        l.params.n_head_kv = hparams.n_head_kv(il);
        l.params.dk        = hparams.n_embd_head_k(il);
        l.params.dv        = hparams.n_embd_head_v(il);
        l.params.policy    = policy;
        l.params.n_swa     = hparams.is_swa(il) ? hparams.n_swa : 0;
        l.params.kernels   = adapter ? adapter->layer(il) : nullptr;
        set_types(l, cfg, type_k, type_v);
        if (!hparams.has_kv(il)) {
            share(l);
        }
        layer_of[il] = (int32_t) layers.size();
        layers.push_back(l);
    }
    if (layers.empty()) {
        refuse("LESS does not cover this model: no layer of it attends; turn LESS off for it");
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

void lesskv_memory::note_elsewhere(const char * op, int il) {
    if (elsewhere.insert(op).second) {
        LLAMA_LOG_WARN("lesskv: LESS on the device: that of layer %d cannot compute %s, which each micro-batch takes to the CPU and back\n", il, op);
    }
}

void lesskv_memory::note_lora() {
    if (adapter && adapter->bytes > 0 && !warned_lora) {
        warned_lora = true;
        LLAMA_LOG_WARN("%s: the LESS adapter was trained without the LoRA that this context applies\n", __func__);
    }
}
