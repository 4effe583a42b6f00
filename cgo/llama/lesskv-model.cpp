#include "lesskv-model.h"

#include "lesskv-llama.h"

#include "llama.h"
#include "llama-arch.h"
#include "llama-hparams.h"
#include "llama-model.h"

#include <cstdio>

uint32_t lesskv_owner(const llama_hparams & h, uint32_t il) {
    if (h.has_kv(il)) {
        return il;
    }
    const int32_t owner = h.n_layer_kv_from_start - (h.is_swa(il) ? 2 : 1); // as llama_model::create_memory has it
    return owner < 0 ? il : (uint32_t) owner;
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
