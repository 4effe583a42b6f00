// The C ABI of binding.h and binding_lesskv.h: arguments in, exceptions caught, the rest is elsewhere.

#include "binding.h"
#include "binding_impl.h"

#include "devices.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#endif

using binding::fail;
using binding::model;
using binding::params;

namespace binding {

void fail(llama_binding_code code, const char * format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    throw failure(code, text);
}

static thread_local int n_catching = 0;

catching::catching() {
    static std::once_flag once;
    std::call_once(once, [] {
        ggml_set_abort_callback([](const char * message) {
            // Not where ggml computes (ggml/src/ggml-cpu): its other threads would wait for this one for ever.
            if (n_catching > 0 && !strstr(message, "ggml-cpu")) {
                fail(LLAMA_BINDING_FAILED, "llama.cpp gave up: %s", message);
            }
            fprintf(stderr, "%s\n", message);
        });
    });
    ++n_catching;
}

catching::~catching() { --n_catching; }

plain_numbers::plain_numbers() {
    static const locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t) 0); // 0 where there is no memory: then uselocale changes nothing
    before = uselocale(c);
}

plain_numbers::~plain_numbers() { uselocale(before); }

// Runs a call and keeps what it threw where the caller finds it. Returns 0 or -1.
template <typename F>
static int guard(llama_binding_code & code, std::string & error, F && call) {
    code = LLAMA_BINDING_OK;
    error.clear();
    try {
        catching assertions;
        plain_numbers numbers;
        call();
        return 0;
    } catch (const failure & e) {
        code  = e.code;
        error = e.what();
    } catch (const std::bad_alloc &) {
        code  = LLAMA_BINDING_FAILED;
        error = "no memory";
    } catch (const std::exception & e) {
        code  = LLAMA_BINDING_FAILED;
        error = e.what();
    }
    return -1;
}

static model & model_of(void * state) {
    if (!state) {
        fail(LLAMA_BINDING_ARGUMENT, "the model has been freed");
    }
    return *static_cast<model *>(state);
}

// Results are in the params: a buffer of the caller's would be written without its size.
static void no_buffer(const void * result) {
    if (result) {
        fail(LLAMA_BINDING_ARGUMENT, "the result argument must be NULL: the result stays in the params");
    }
}

// Go calls from many threads, and the C library has a heap for each few of them: what a call had in one would stay there
// while the next call fills another.
static void give_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

static token_callback callback_of(void * state) {
    return [state](const std::string & piece) { return tokenCallback(state, const_cast<char *>(piece.c_str())) != 0; };
}

template <typename F>
static int with_params(void * params_ptr, F && call) {
    auto * p = static_cast<params *>(params_ptr);
    if (!p) {
        return -1;
    }
    p->text.clear();
    p->tokens.clear();
    p->embedding.clear();
    return guard(p->code, p->error, [&] { call(*p); });
}

template <typename F>
static int with_state(void * state, F && call) {
    auto * m = static_cast<model *>(state);
    if (!m) {
        return -1;
    }
    return guard(m->code, m->error, [&] { call(*m); });
}

} // namespace binding

using namespace binding;

// Models

void * load_model_lesskv(const char * fname, int n_ctx, int, bool memory_f16, bool mlock, bool, bool mmap, bool, int n_gpu, int n_batch,
        const char * maingpu, const char * tensorsplit, bool numa, float rope_freq_base, float rope_freq_scale, bool, const char * lora,
        const char * lora_base, bool, const lesskv_config * less, const char * rpc, llama_binding_failure * failure) {
    model * m = nullptr;
    std::string error;
    llama_binding_log_init();
    guard(failure->code, error, [&] {
        m = load({ fname, n_ctx, n_gpu, n_batch, memory_f16, mlock, mmap, numa, maingpu, tensorsplit, rope_freq_base, rope_freq_scale, lora, lora_base, less, rpc });
    });
    snprintf(failure->text, sizeof(failure->text), "%s", error.c_str());
    return m;
}

bool llama_binding_has_devices(void) {
    return devices::built_for().any();
}

void * load_model(const char * fname, int n_ctx, int n_seed, bool memory_f16, bool mlock, bool embeddings, bool mmap, bool low_vram, int n_gpu,
        int n_batch, const char * maingpu, const char * tensorsplit, bool numa, float rope_freq_base, float rope_freq_scale, bool mul_mat_q,
        const char * lora, const char * lora_base, bool perplexity) {
    llama_binding_failure failure;
    return load_model_lesskv(fname, n_ctx, n_seed, memory_f16, mlock, embeddings, mmap, low_vram, n_gpu, n_batch, maingpu, tensorsplit, numa,
            rope_freq_base, rope_freq_scale, mul_mat_q, lora, lora_base, perplexity, nullptr, nullptr, &failure);
}

void llama_binding_free_model(void * state) {
    catching assertions; // of a device that is gone
    delete static_cast<model *>(state);
    give_back();
}

void llama_binding_interrupt(void * state, bool on) {
    if (state) {
        static_cast<model *>(state)->interrupted = on;
    }
}

void llama_binding_checkpoints(void * state, int n) {
    static_cast<model *>(state)->n_checkpoints = (size_t) n;
}

// Params

void * llama_allocate_params(const char * prompt, int seed, int threads, int tokens, int top_k, float top_p, float temp, float repeat_penalty,
        int repeat_last_n, bool ignore_eos, bool, int n_batch, int n_keep, const char ** antiprompt, int antiprompt_count, float tfs_z,
        float typical_p, float frequency_penalty, float presence_penalty, int mirostat, float mirostat_eta, float mirostat_tau, bool penalize_nl,
        const char * logit_bias, const char * session_file, bool prompt_cache_all, bool, bool, const char *, const char *, bool prompt_cache_ro,
        const char * grammar, float rope_freq_base, float rope_freq_scale, float negative_prompt_scale, const char * negative_prompt, int n_draft) {
    std::unique_ptr<params> p;
    llama_binding_code code;
    std::string error;
    const int status = guard(code, error, [&] {
        p = std::make_unique<params>();
        p->prompt = prompt;
        p->stop.assign(antiprompt, antiprompt + antiprompt_count);
        p->seed      = seed;
        p->n_threads = threads;
        p->n_predict = tokens;
        p->n_batch   = n_batch;
        p->n_keep    = n_keep;
        p->n_draft   = n_draft;
        p->top_k     = top_k;
        p->top_p     = top_p;
        p->temp      = temp;
        p->tfs_z     = tfs_z;
        p->typical_p = typical_p;
        p->repeat_last_n     = repeat_last_n;
        p->repeat_penalty    = repeat_penalty;
        p->frequency_penalty = frequency_penalty;
        p->presence_penalty  = presence_penalty;
        p->mirostat     = mirostat;
        p->mirostat_eta = mirostat_eta;
        p->mirostat_tau = mirostat_tau;
        p->ignore_eos   = ignore_eos;
        p->penalize_nl  = penalize_nl;
        p->logit_bias   = logit_bias;
        p->grammar      = grammar;
        p->path_prompt_cache = session_file;
        p->prompt_cache_all  = prompt_cache_all;
        p->prompt_cache_ro   = prompt_cache_ro;
        p->rope_freq_base    = rope_freq_base;
        p->rope_freq_scale   = rope_freq_scale;
        p->negative_prompt   = negative_prompt;
        p->negative_prompt_scale = negative_prompt_scale;
    });
    return status == 0 ? p.release() : nullptr; // no memory
}

void llama_binding_plain_text(void * params_ptr, bool on) {
    static_cast<params *>(params_ptr)->plain_text = on;
}

void llama_free_params(void * params_ptr) {
    delete static_cast<params *>(params_ptr);
}

enum llama_binding_code llama_binding_status(const void * params_ptr) {
    return static_cast<const params *>(params_ptr)->code;
}

const char * llama_binding_error(const void * params_ptr) {
    return static_cast<const params *>(params_ptr)->error.c_str();
}

const char * llama_binding_text(const void * params_ptr, size_t * n) {
    const auto & text = static_cast<const params *>(params_ptr)->text;
    *n = text.size();
    return text.data();
}

const int32_t * llama_binding_tokens(const void * params_ptr, size_t * n) {
    const auto & tokens = static_cast<const params *>(params_ptr)->tokens;
    *n = tokens.size();
    return tokens.data();
}

const float * llama_binding_embedding(const void * params_ptr, size_t * n) {
    const auto & embedding = static_cast<const params *>(params_ptr)->embedding;
    *n = embedding.size();
    return embedding.data();
}

const char * llama_binding_state_error(const void * state) {
    return state ? static_cast<const model *>(state)->error.c_str() : "the model has been freed";
}

enum llama_binding_code llama_binding_state_status(const void * state) {
    return state ? static_cast<const model *>(state)->code : LLAMA_BINDING_ARGUMENT;
}

// Calls

int llama_predict(void * params_ptr, void * state, char * result, bool debug) {
    return with_params(params_ptr, [&](params & p) {
        no_buffer(result);
        auto & m = model_of(state);
        session only(m);
        predict(m, p, debug, callback_of(state));
        give_back();
    });
}

int eval(void * params_ptr, void * state, char * text) {
    return with_params(params_ptr, [&](params & p) {
        auto & m = model_of(state);
        session only(m);
        evaluate(m, p, text ? text : p.prompt);
    });
}

int llama_tokenize_string(void * params_ptr, void * state, int * result) {
    return with_params(params_ptr, [&](params & p) {
        no_buffer(result);
        p.tokens = tokenize(model_of(state), p, p.prompt);
    });
}

int llama_binding_chat(void * params_ptr, void * state, const char ** messages, int n, bool open) {
    return with_params(params_ptr, [&](params & p) {
        std::vector<llama_chat_message> all;
        for (int i = 0; i < n; ++i) {
            all.push_back({ messages[2*i], messages[2*i + 1] });
        }
        p.text = chat(model_of(state), all, open);
    });
}

int get_embeddings(void * params_ptr, void * state, float * result) {
    return with_params(params_ptr, [&](params & p) {
        no_buffer(result);
        auto & m = model_of(state);
        session only(m);
        m.last = {};
        embed(m, p, prompt_tokens(m, p, p.prompt));
        give_back();
    });
}

int get_token_embeddings(void * params_ptr, void * state, int * tokens, int n_tokens, float * result) {
    return with_params(params_ptr, [&](params & p) {
        no_buffer(result);
        auto & m = model_of(state);
        session only(m);
        embed(m, p, std::vector<llama_token>(tokens, tokens + n_tokens));
        give_back();
    });
}

int load_state(void * state, char * path, char *) {
    return with_state(state, [&](model & m) {
        session only(m);
        load_state(m.main, path);
    });
}

void save_state(void * state, char * path, char *) {
    with_state(state, [&](model & m) {
        session only(m);
        save_state(m.main, path);
    });
}

int speculative_sampling(void * params_ptr, void * target_model, void * draft_model, char * result, bool debug) {
    return with_params(params_ptr, [&](params & p) {
        no_buffer(result);
        auto & m     = model_of(target_model);
        auto & draft = model_of(draft_model);
        if (&m == &draft) {
            fail(LLAMA_BINDING_ARGUMENT, "the model cannot draft for itself: load it a second time");
        }
        session only(m), only_draft(draft);
        speculate(m, draft, p, debug, callback_of(target_model));
        give_back();
    });
}
