// binding_impl.h: what the files of the binding share. The C ABI is in binding.cpp; each other file has one subject.

#pragma once

#include "binding_lesskv.h"

#include "llama-cpp.h"

#include <atomic>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace binding {

struct failure : std::runtime_error {
    llama_binding_code code;
    failure(llama_binding_code code, const std::string & why) : std::runtime_error(why), code(code) {}
};

[[noreturn]] __attribute__((format(printf, 2, 3)))
void fail(llama_binding_code code, const char * format, ...);

// What a LLama of the Go package holds.
struct model {
    llama_model_ptr   weights;
    llama_context_ptr ctx; // freed before the weights

    float rope_freq_base = 0.0f, rope_freq_scale = 0.0f; // as asked for

    std::vector<llama_token> tokens; // those that are in the cache, in order
    llama_binding_timings    last = {};
    std::string              error;  // of the calls without params

    std::atomic<bool> busy{false};
    std::atomic<bool> interrupted{false};

    const llama_vocab * vocab() const { return llama_model_get_vocab(weights.get()); }
    int32_t limit() const; // tokens that the sequence can have
    void    forget();      // empties the cache
};

// The model's one call. Throws LLAMA_BINDING_BUSY.
class session {
public:
    explicit session(model & m);
    ~session();
    session(const session &) = delete;
    session & operator=(const session &) = delete;
private:
    model & m;
};

// What llama_allocate_params was given, and what came of it.
struct params {
    std::string prompt;
    std::vector<std::string> stop;

    int32_t seed, n_threads, n_predict, n_batch, n_keep, n_draft;

    int32_t     top_k, repeat_last_n, mirostat;
    float       top_p, temp, tfs_z, typical_p;
    float       repeat_penalty, frequency_penalty, presence_penalty;
    float       mirostat_eta, mirostat_tau;
    bool        ignore_eos, penalize_nl;
    std::string logit_bias, grammar;

    std::string path_prompt_cache;
    bool        prompt_cache_all, prompt_cache_ro;
    float       rope_freq_base, rope_freq_scale;
    float       negative_prompt_scale;
    std::string negative_prompt;

    llama_binding_code       code = LLAMA_BINDING_OK;
    std::string              error;
    std::string              text;
    std::vector<llama_token> tokens;
};

// binding_model.cpp

struct load_options {
    const char * path;
    int32_t n_ctx, n_gpu_layers, n_batch;
    bool    memory_f16, mlock, mmap, numa;
    const char * main_gpu;
    const char * tensor_split;
    float   rope_freq_base, rope_freq_scale;
    const char * lora;
    const char * lora_base;
    const lesskv_config * less;
};
model * load(const load_options & options);

// binding_predict.cpp

// The text as the model's tokens, begin-of-sequence token included where the model wants one, special tokens parsed.
std::vector<llama_token> tokenize(const model & m, const std::string & text);

// Makes the cache hold the tokens of the text: goes on from it if they extend those that are there, else starts anew.
void evaluate(model & m, params & p, const std::string & text);

// Evaluates the prompt and generates p.text. on_token gets each token's bytes, which may be a part of a UTF-8 sequence;
// false ends the generation, and that token is not part of the text.
void predict(model & m, params & p, bool debug, const std::function<bool(const std::string &)> & on_token);

// binding_sampling.cpp

class sampler {
public:
    sampler(const model & m, const params & p); // throws LLAMA_BINDING_ARGUMENT
    void        accept(llama_token token);      // a token of the text, for the penalties
    llama_token sample(llama_context * ctx);    // from the logits of the last token; does not accept
    void        accept_sampled(llama_token token);
private:
    int32_t     n_vocab;
    llama_token newline; // the token that the penalties spare, or LLAMA_TOKEN_NULL
    llama_sampler_ptr bias, penalties, grammar, chain;
    std::vector<llama_token_data> candidates;
};

// binding_log.cpp

__attribute__((format(printf, 2, 3)))
void log(ggml_log_level level, const char * format, ...);

// Collects the error lines that this thread logs while it lives, for the error that the caller gets. Where text() is never
// asked, they go to the log after all.
class log_errors {
public:
    log_errors();
    ~log_errors();
    log_errors(const log_errors &) = delete;
    log_errors & operator=(const log_errors &) = delete;
    std::string text(); // joined by "; ", or "" if there was none
private:
    friend bool collect(ggml_log_level level, const char * text);
    std::vector<std::string> lines;
    bool                     open = false; // the last line is not finished
    bool                     told = false;
    log_errors *             outer;
};

} // namespace binding
