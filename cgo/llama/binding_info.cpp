// What a loaded model holds.

#include "binding_impl.h"

#include "llama-memory.h"

// What f finds of a model that serves no call; false if there is none, or it can't be asked.
template <typename F>
static bool ask(void * state, F && f) {
    if (!state) {
        return false;
    }
    auto & m = *static_cast<binding::model *>(state);
    try {
        binding::catching assertions;
        binding::session only(m);
        return f(m);
    } catch (const std::exception & e) {
        if (!m.busy) { // or the error is that of the call that it serves
            m.code  = LLAMA_BINDING_FAILED;
            m.error = e.what();
        }
        return false;
    }
}

bool llama_binding_get_info(void * state, llama_binding_info * info) {
    *info = {};
    return ask(state, [&](const binding::model & m) {
        const auto * ctx = m.main.ctx.get();
        llama_model_desc(m.weights.get(), info->desc, sizeof(info->desc));
        info->bytes_model = llama_model_size(m.weights.get());
        info->n_ctx       = llama_n_ctx_seq(ctx);
        info->n_ctx_train = llama_model_n_ctx_train(m.weights.get());
        info->n_limit     = m.main.limit();
        info->n_batch     = llama_n_batch(ctx);
        info->n_ubatch    = llama_n_ubatch(ctx);
        if (const llama_memory_i * memory = llama_get_memory(ctx)) {
            for (const auto & part : memory->memory_breakdown()) {
                info->bytes_cache += part.second;
            }
        }
        info->has_less = lesskv_get_info(ctx, &info->less);
        info->bytes_cache -= info->less.bytes_recurrent; // no budget counts them
        info->n_checkpoints     = (int32_t) m.main.copies.count();
        info->bytes_checkpoints = m.main.copies.bytes();
        return true;
    });
}

bool llama_binding_get_layer(void * state, int32_t i, lesskv_layer_info * info) {
    *info = {};
    return ask(state, [&](const binding::model & m) { return lesskv_get_layer(m.main.ctx.get(), 0, i, info); });
}

bool llama_binding_get_head(void * state, int32_t il, int32_t head_kv, lesskv_head_info * info) {
    *info = {};
    return ask(state, [&](const binding::model & m) { return lesskv_get_head(m.main.ctx.get(), il, head_kv, info); });
}

bool llama_binding_get_timings(void * state, llama_binding_timings * timings) {
    *timings = {};
    if (!state) {
        return false;
    }
    try {
        auto & m = *static_cast<binding::model *>(state);
        binding::session only(m, false);
        *timings = m.last;
        return true;
    } catch (const std::exception &) {
        return false;
    }
}
