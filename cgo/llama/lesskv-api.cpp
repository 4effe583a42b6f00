// The C ABI of lesskv-llama.h.

#include "lesskv-llama.h"

#include "lesskv-adapter.h"
#include "lesskv-fingerprint.h"
#include "lesskv-memory.h"

#include "llama.h"
#include "llama-arch.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

static const lesskv_memory * memory_of(const llama_context * ctx) {
    return ctx ? dynamic_cast<const lesskv_memory *>(llama_get_memory(ctx)) : nullptr;
}

lesskv_config lesskv_config_default(void) {
    lesskv_config c;
    memset(&c, 0, sizeof(c));
    c.heavy  = -1;
    c.pinned = 1;
    c.type_k = -1;
    c.type_v = -1;
    return c;
}

bool lesskv_policy_text(int i, const char ** name, const char ** help) {
    const auto * p = lesskv_policy_at(i);
    if (p) {
        *name = lesskv_policy_name(p);
        *help = lesskv_policy_help(p);
    }
    return p;
}

#ifdef LESSKV_GGML_LEVELS
const char * lesskv_ggml_level(); // lesskv-ggml-level.cpp
#else
static const char * lesskv_ggml_level() { return ""; }
#endif

void lesskv_levels(const char ** less, const char ** ggml) {
    *less = lesskv_level_name();
    *ggml = lesskv_ggml_level();
}

lesskv_adapter * lesskv_adapter_load(const llama_model * model, const char * path, bool force, char * error, size_t error_size) {
    try {
        return new lesskv_adapter(path, *model, force);
    } catch (const std::exception & e) {
        if (error && error_size > 0) {
            snprintf(error, error_size, "%s", e.what());
        }
        return nullptr;
    }
}

void lesskv_adapter_free(lesskv_adapter * adapter) {
    delete adapter;
}

// Whether layers that have no keys and values of their own can read their owner's.
static bool shares_well(const llama_hparams & h) {
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        const uint32_t o = lesskv_owner(h, il);
        if (h.has_kv(il)) {
            continue;
        }
        if (o >= il || h.n_head_kv(o) == 0 || h.is_swa(o) != h.is_swa(il) || h.n_head_kv(o) != h.n_head_kv(il) || h.n_head(il) % h.n_head_kv(o) != 0 ||
                h.n_embd_head_k(o) != h.n_embd_head_k(il) || h.n_embd_head_v(o) != h.n_embd_head_v(il)) {
            return false;
        }
    }
    return true;
}

// The rest is found by the graph itself: see build() in lesskv-graph.cpp.
bool lesskv_supported(const llama_model * model, char * error, size_t error_size) {
    const auto & h = model->hparams;

    const char * why = nullptr;
    if (llama_model_is_recurrent(model)) {
        why = "is recurrent and has no KV cache to bound";
    } else if (llama_model_has_encoder(model)) {
        why = "has an encoder";
    } else if (!h.causal_attn || model->arch == LLM_ARCH_DREAM || model->arch == LLM_ARCH_LLADA || model->arch == LLM_ARCH_LLADA_MOE || model->arch == LLM_ARCH_RND1) {
        why = "attends without causality and keeps no KV cache"; // encoders, embedding and diffusion models
    } else if (h.use_alibi || h.f_max_alibi_bias > 0.0f) {
        why = "biases attention by distance (ALiBi)";
    } else if (h.is_mla() || model->arch == LLM_ARCH_DEEPSEEK2 || model->arch == LLM_ARCH_KIMI_LINEAR || model->arch == LLM_ARCH_KIMI_K3 || model->arch == LLM_ARCH_BAILINGMOE3) {
        why = "uses multi-head latent attention (MLA)";
    } else if (model->arch == LLM_ARCH_GEMMA4_ASSISTANT) {
        why = "drafts for another model and attends to that one's cache";
    } else if (model->arch == LLM_ARCH_QWEN4EXP) {
        why = "keeps an index of its keys beside them, and attends to those that it chooses";
    } else if (model->arch == LLM_ARCH_DEEPSEEK4) {
        why = "attends to compressed keys, and to those that an index chooses";
    } else if (h.swa_type == LLAMA_SWA_TYPE_CHUNKED) {
        why = "uses chunked attention";
    } else if (h.swa_type == LLAMA_SWA_TYPE_SYMMETRIC) {
        why = "uses a symmetric attention window";
    } else if (h.n_layer_kv_from_start >= 0 && h.n_layer_kv_from_start < (int32_t) h.n_layer() && model->arch != LLM_ARCH_GEMMA3N && model->arch != LLM_ARCH_GEMMA4) {
        why = "has layers that share keys and values in a way of its own"; // llama_model::create_memory has the two's
    } else if (!shares_well(h)) {
        why = "has layers that share the keys and values of a layer with another window or other heads";
    } else if (model->arch == LLM_ARCH_GROK) {
        why = "scales its attention logits in a way of its own";
    }
    if (why && error && error_size > 0) {
        snprintf(error, error_size, "LESS does not cover this model: architecture %s %s; turn LESS off for it", llm_arch_name(model->arch), why);
    }
    return !why;
}

bool lesskv_enabled(const llama_context * ctx) {
    return memory_of(ctx) != nullptr;
}

const char * lesskv_error(const llama_context * ctx) {
    const auto * mem = memory_of(ctx);
    return mem ? mem->last_error().c_str() : "";
}

bool lesskv_not_finite(const llama_context * ctx) {
    const auto * mem = memory_of(ctx);
    return mem && mem->last_status() == LESSKV_ERR_FINITE;
}

uint64_t lesskv_state_size(const llama_context * ctx, int32_t seq_id) {
    const auto * mem = memory_of(ctx);
    if (!mem || !mem->valid(seq_id)) {
        return 0;
    }
    return sizeof(uint32_t) + sizeof(llama_seq_id) + mem->state_size(seq_id); // llama.cpp begins with a magic number and the sequence
}

bool lesskv_get_info(const llama_context * ctx, lesskv_info * info) {
    const auto * mem = memory_of(ctx);
    if (!mem) {
        return false;
    }
    mem->info(*info);
    return true;
}

bool lesskv_get_profile(llama_context * ctx, int32_t i, lesskv_profile_info * info) {
    const auto * mem = memory_of(ctx);
    if (!mem || mem->profile().empty() || i < 0 || !lesskv_phase_name(i)) {
        return false;
    }
    *info = {};
    info->name = lesskv_phase_name(i);
    for (const auto & p : mem->profile()) {
        info->ns    += p.ns[i];
        info->attend = std::max(info->attend, p.attend);
        info->commit = std::max(info->commit, p.commit);
    }
    return true;
}

void lesskv_reset_profile(llama_context * ctx) {
    if (auto * mem = const_cast<lesskv_memory *>(memory_of(ctx))) {
        mem->reset_profile();
    }
}

bool lesskv_get_layer(const llama_context * ctx, int32_t seq_id, int32_t i, lesskv_layer_info * info) {
    const auto * mem = memory_of(ctx);
    return mem && i >= 0 && mem->layer_info(seq_id, i, *info);
}

bool lesskv_get_head(const llama_context * ctx, int32_t il, int32_t head_kv, lesskv_head_info * info) {
    const auto * mem = memory_of(ctx);
    return mem && mem->head_info(il, head_kv, *info);
}

int32_t lesskv_get_slots(const llama_context * ctx, int32_t seq_id, int32_t il, int32_t head_kv, int32_t max, int32_t * pos, float * score) {
    const auto * mem = memory_of(ctx);
    return mem ? mem->slots(seq_id, il, head_kv, max, pos, score) : -1;
}

bool lesskv_fingerprint(const llama_model * model, char hex[65]) {
    try {
        snprintf(hex, 65, "%s", lesskv_model_fingerprint(*model).c_str());
        return true;
    } catch (const std::exception &) {
        return false; // no memory
    }
}
