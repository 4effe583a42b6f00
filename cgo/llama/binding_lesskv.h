// binding_lesskv.h: what the runtime adds to upstream's binding.h. C ABI, seen by the Go package llama through cgo.
//
// binding.h has three kinds of fault that its signatures force: no reason for a failure, results written into buffers of
// the caller's guess, and no place for a LESS configuration. Here they get one each:
//
//     a call with params    returns 0, or -1 and llama_binding_error(params) says why; its results are in the params until
//                           llama_free_params: llama_binding_text, _tokens, _embedding. The result arguments of binding.h
//                           must be NULL, and the text of eval may be: it is the prompt then
//     a call without them   load_state, save_state: llama_binding_state_error(state)
//     load_model            load_model_lesskv: the same arguments, a configuration, and room for the reason
//
// No C++ exception leaves these functions. A model serves one call at a time: a second one, from the token callback or
// another thread, is refused. llama_tokenize_string may be called at any time.

#ifndef BINDING_LESSKV_H
#define BINDING_LESSKV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lesskv-llama.h"

#ifdef __cplusplus
extern "C" {
#endif

enum llama_binding_code {
    LLAMA_BINDING_OK = 0,
    LLAMA_BINDING_FAILED,      // decoding, memory
    LLAMA_BINDING_ARGUMENT,    // an option or argument that makes no sense
    LLAMA_BINDING_MISSING,     // not in this runtime
    LLAMA_BINDING_BUSY,        // the model is serving another call
    LLAMA_BINDING_CONTEXT,     // the context is full, or too small for the prompt
    LLAMA_BINDING_MODEL,       // the model file cannot be loaded
    LLAMA_BINDING_UNSUPPORTED, // LESS does not cover the model
    LLAMA_BINDING_CONFIG,      // the LESS configuration is refused
    LLAMA_BINDING_ADAPTER,     // the adapter is refused
    LLAMA_BINDING_NOT_FINITE,  // LESS was to fold a pair that is not finite
    LLAMA_BINDING_STATE,       // the state file is refused
};

struct llama_binding_failure {
    enum llama_binding_code code;
    char text[2048];
};

// As load_model. less: NULL for the unmodified cache; its error fields are not used. rpc: servers whose devices are the first ones, as
// "host:port" with commas between them; NULL or "" for none. NULL: failure says why.
void * load_model_lesskv(const char * fname, int n_ctx, int n_seed, bool memory_f16, bool mlock, bool embeddings, bool mmap,
        bool low_vram, int n_gpu, int n_batch, const char * maingpu, const char * tensorsplit, bool numa, float rope_freq_base,
        float rope_freq_scale, bool mul_mat_q, const char * lora, const char * lora_base, bool perplexity,
        const struct lesskv_config * less, const char * rpc, struct llama_binding_failure * failure);

// Whether the runtime was assembled with a backend for devices, this machine's or servers'.
bool llama_binding_has_devices(void);

// The prompt, the negative one too, is text alone: what reads like a control token ("<s>") is not one. For Predict's family and
// llama_tokenize_string. Off by default, since chat templates are written with such tokens.
void llama_binding_plain_text(void * params, bool on);

// How many copies of a LESS cache a model keeps, of the newest ends of prompts and answers: 2, unless this says otherwise; 1 is of the
// newest prompt's end, 0 is none. A prompt that shares a prefix with the cached text resumes from the latest checkpoint within that prefix.
void llama_binding_checkpoints(void * state, int n);

// What the last call with these params came to. Valid until the next, or llama_free_params.
enum llama_binding_code llama_binding_status(const void * params);
const char *    llama_binding_error (const void * params);             // "" after success
const char *    llama_binding_text  (const void * params, size_t * n); // bytes, any of them; not of llama_tokenize_string
const int32_t * llama_binding_tokens(const void * params, size_t * n); // of llama_tokenize_string
const float *   llama_binding_embedding(const void * params, size_t * n); // of get_embeddings, get_token_embeddings

// The text of a chat in the form of the model's own template, to llama_binding_text: n messages, of each its role and its text. open: the
// assistant's turn is begun. LLAMA_BINDING_MISSING where there is no template, or none that llama.cpp knows. At any time.
int llama_binding_chat(void * params, void * state, const char ** messages, int n, bool open);

// Why the last load_state or save_state failed, "" if it did not.
const char * llama_binding_state_error(const void * state);
enum llama_binding_code llama_binding_state_status(const void * state);

// Ends the call that is running, or else the next one, after the token or batch it is at, as the token callback could; the end
// of that call takes it back, as on = false does. From any thread.
void llama_binding_interrupt(void * state, bool on);

struct llama_binding_info {
    char     desc[128];          // "llama 5M F16"
    uint64_t bytes_model;        // of all tensors
    int32_t  n_ctx, n_ctx_train; // tokens
    int32_t  n_limit;            // tokens that a sequence can have here: n_ctx, with LESS up to n_ctx_train
    int32_t  n_batch, n_ubatch;
    uint64_t bytes_cache;        // what the cache holds in memory now, whichever it is; with LESS what a budget in bytes counts
    bool     has_less;
    int32_t  n_checkpoints;      // copies of the cache that there are, llama_binding_checkpoints
    uint64_t bytes_checkpoints;  // that they take, beside bytes_cache
    struct lesskv_info less;     // if has_less
};
// False: the model is busy or freed, or its device is gone (llama_binding_state_error).
bool llama_binding_get_info(void * state, struct llama_binding_info * info);
// Layer i of the LESS cache, as lesskv_get_layer; false past the last.
bool llama_binding_get_layer(void * state, int32_t i, struct lesskv_layer_info * info);
// What a KV head of layer il may keep, as lesskv_get_head; false past the last.
bool llama_binding_get_head(void * state, int32_t il, int32_t head_kv, struct lesskv_head_info * info);

enum llama_binding_stop {
    LLAMA_BINDING_STOP_NONE = 0,
    LLAMA_BINDING_STOP_EOG,       // the model's end-of-generation token
    LLAMA_BINDING_STOP_LENGTH,    // as many tokens as were asked for
    LLAMA_BINDING_STOP_WORD,      // a stop word
    LLAMA_BINDING_STOP_CALLBACK,  // the token callback said so
    LLAMA_BINDING_STOP_INTERRUPT, // llama_binding_interrupt
    LLAMA_BINDING_STOP_CONTEXT,   // the context is full
};

// The last llama_predict, speculative_sampling or eval.
struct llama_binding_timings {
    int32_t n_prompt;    // tokens of the prompt
    int32_t n_cached;    // of them, already in the cache
    int32_t n_evaluated; // of the rest, evaluated: all, unless it was interrupted or failed
    int32_t n_generated; // tokens sampled
    int32_t n_drafted;   // tokens that the draft model guessed (speculative sampling)
    int32_t n_accepted;  // of them, right
    int64_t us_prompt;   // microseconds in the evaluation of those, and in restoring and taking checkpoints
    int64_t us_generate; // microseconds from the first sampled token to the last
    enum llama_binding_stop stop;
};
bool llama_binding_get_timings(void * state, struct llama_binding_timings * timings);

// Log lines of llama.cpp and of the binding go to the Go package: level is a ggml_log_level, text may be a part of a
// line (GGML_LOG_LEVEL_CONT). llama_binding_log_init makes it so, once.
void llama_binding_log_init(void);
extern void lesskvLog(int level, char * text);

#ifdef __cplusplus
}
#endif

#endif
