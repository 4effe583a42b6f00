// The C ABI of lesskv-llama.h.

#include "lesskv-llama.h"

#include "lesskv-adapter.h"
#include "lesskv-fingerprint.h"
#include "lesskv-memory.h"

#include "llama.h"

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
