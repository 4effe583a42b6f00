// state.cpp: the state of a LESS cache, as llama_state_seq_set_data reads it, with the model $LESSKV_FUZZ_MODEL and the adapter
// $LESSKV_FUZZ_ADAPTER. The input are edits of a saved sequence. What is refused leaves the sequence as it was and says why; what is
// taken is saved as a state that loads as itself, and the sequence goes on.

#include "harness.h"

#include "lesskv-llama.h"
#include "llama.h"

#include <string>
#include <vector>

enum { N_CTX = 64, N_UBATCH = 8, BUDGET = 6 };

static llama_context *      ctx;
static std::vector<uint8_t> good, running; // of a sequence that has folded; of another

static std::string variable(const char * name) {
    const char * value = getenv(name);
    if (!value) {
        fprintf(stderr, "%s is not set: go run ./integration/campaign sets it\n", name);
        exit(2);
    }
    return value;
}

static std::vector<uint8_t> save(llama_seq_id seq) {
    std::vector<uint8_t> b(llama_state_seq_get_size(ctx, seq));
    HOLDS(!b.empty() && llama_state_seq_get_data(ctx, b.data(), b.size(), seq) == b.size());
    return b;
}

static int decode(llama_seq_id seq, llama_pos pos, int n) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i]     = 3 + (pos + i)*7 % 300;
        batch.pos[i]       = pos + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i]    = i == n - 1;
    }
    const int status = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return status;
}

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(variable("LESSKV_FUZZ_MODEL").c_str(), llama_model_default_params());
    HOLDS(model);
    const std::string adapter = variable("LESSKV_FUZZ_ADAPTER");
    char error[512] = "";
    lesskv_config cfg = lesskv_config_default();
    cfg.budget     = BUDGET;
    cfg.type_k     = cfg.type_v = GGML_TYPE_F16; // as the corpus has them
    cfg.adapter    = adapter.c_str();
    cfg.error      = error;
    cfg.error_size = sizeof(error);
    llama_context_params p = llama_context_default_params();
    p.lesskv    = &cfg;
    p.n_ctx     = N_CTX;
    p.n_batch   = N_CTX;
    p.n_ubatch  = N_UBATCH;
    p.n_seq_max = 1;
    p.n_threads = p.n_threads_batch = 1;
    ctx = llama_init_from_model(model, p);
    if (!ctx) {
        fprintf(stderr, "%s\n", error);
    }
    HOLDS(ctx);
    HOLDS(decode(0, 0, 20) == 0);
    good = save(0);
    llama_memory_clear(llama_get_memory(ctx), true);
    HOLDS(decode(0, 0, 5) == 0);
    running = save(0);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    llama_memory_t mem = llama_get_memory(ctx);
    size_t n;
    uint8_t * state = edited(good.data(), good.size(), data, size, &n);
    const size_t read = llama_state_seq_set_data(ctx, state, n, 0);
    free(state);
    if (read == 0) {
        HOLDS(size > 0); // the good one is taken
        HOLDS(save(0) == running);
        return 0;
    }
    HOLDS(read <= n);
    if (llama_memory_seq_pos_max(mem, 0) >= 0) {
        const auto first = save(0);
        HOLDS(llama_state_seq_set_data(ctx, first.data(), first.size(), 0) == first.size());
        HOLDS(save(0) == first);
    }
    const llama_pos end = llama_memory_seq_pos_max(mem, 0) + 1;
    if (end < N_CTX && decode(0, end, 1) == 0) {
        HOLDS(llama_memory_seq_pos_max(mem, 0) == end);
        if (llama_memory_seq_rm(mem, 0, end, -1)) {
            HOLDS(llama_memory_seq_pos_max(mem, 0) < end);
        }
    }
    llama_memory_clear(mem, true);
    HOLDS(llama_state_seq_set_data(ctx, running.data(), running.size(), 0) == running.size());
    return 0;
}
