// lesskv-hooks.cpp: the hooks outside the graph: which memory a context gets, whether its graph did well, and what it refuses.

#include "lesskv-hooks.h"
#include "lesskv-hybrid.h"
#include "lesskv-memory.h"

#include "llama-arch.h"
#include "llama-model.h"

#include <stdexcept>
#include <string>

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
