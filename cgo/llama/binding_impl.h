// binding_impl.h: what the files of the binding share. The C ABI is in binding.cpp; each other file has one subject.

#pragma once

#include "binding_lesskv.h"
#include "binding_limits.h"

#include "llama-cpp.h"

#include <locale.h>
#ifdef __APPLE__
#include <xlocale.h>
#endif

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace binding {

struct failure : std::runtime_error {
    llama_binding_code code;
    failure(llama_binding_code code, const std::string & why) : std::runtime_error(why), code(code) {}
};

// What ends a call that llama_binding_interrupt ends in the middle of something.
struct interruption : failure {
    interruption() : failure(LLAMA_BINDING_FAILED, "interrupted") {}
};

[[noreturn]] __attribute__((format(printf, 2, 3)))
void fail(llama_binding_code code, const char * format, ...);

// While it lives, an assertion of llama.cpp's or ggml's on this thread is a failure that is thrown, and not the end of the
// process: damaged models and rare combinations come to some. Not so for those of ggml's kernels.
class catching {
public:
    catching();
    ~catching();
    catching(const catching &) = delete;
    catching & operator=(const catching &) = delete;
};

// While it lives, numbers are read and printed as in C on this thread, "0.5", whatever locale the program has set.
class plain_numbers {
public:
    plain_numbers();
    ~plain_numbers();
    plain_numbers(const plain_numbers &) = delete;
    plain_numbers & operator=(const plain_numbers &) = delete;
private:
    locale_t before;
};

class sequence;

// Copies of a sequence's cache, each of a beginning of its text, the shortest first. (binding_checkpoints.cpp)
class checkpoints {
public:
    struct checkpoint {
        size_t n_tokens = 0;
        std::unique_ptr<uint8_t[]> state;
        size_t size = 0, room = 0;   // of the state, in bytes; of the memory it is in
        std::vector<float> logits;   // of the last token, or none
    };

    // Copies the cache as it is, if it is of LESS; no more than the newest `most` copies stay. Where there is no memory for a copy, there
    // is none.
    void take(const sequence & s, size_t most, bool with_logits);

    const checkpoint & newest() const { return all.back(); }

    // The longest of at most n tokens; one that is a whole prompt of n_prompt tokens must have logits. NULL: none.
    const checkpoint * find(size_t n, size_t n_prompt) const;

    void     cut(size_t n); // forgets those of more than n tokens
    size_t   count() const { return all.size(); }
    uint64_t bytes() const;
private:
    std::vector<checkpoint> all;
};

// One text in a context of its own: a sequence, and the tokens that its cache holds, in order. (binding_sequence.cpp)
class sequence {
public:
    llama_context_ptr        ctx;
    std::vector<llama_token> tokens;
    checkpoints              copies;
    bool broken = false; // llama.cpp threw or failed while it decoded: a graph may be half made, and taken for whole the next time

    int32_t limit() const; // tokens that it can have: n_ctx, with LESS up to the trained context
    bool    less()  const;
    bool    full()  const { return (int64_t) tokens.size() >= limit(); }

    void forget(); // empties the cache; throws nothing

    // How many tokens it has in common with the beginning of a text, of which at least the last is left to evaluate.
    size_t common(const std::vector<llama_token> & text) const;

    // Keeps the first n tokens. False, and nothing is changed, if the cache cannot step back so far.
    bool cut(size_t n);

    // The cache was replaced: by that of these tokens.
    void replaced(std::vector<llama_token> now);

    // Goes back to the longest checkpoint of at most n tokens, for a prompt of n_prompt. False if there is none, or it cannot be had: the
    // text is forgotten then.
    bool restore(size_t n, size_t n_prompt);

    // The logits of a row of the last decode, -1 for the last one; after restore those of its last token. NULL if there are none.
    const float * logits(int32_t row = -1) const;

    // Where the cache is full: keeps the first n_keep tokens and of the rest the newer half, and returns LLAMA_BINDING_STOP_NONE;
    // _CONTEXT where nothing can go, with LESS because it has been folded; _INTERRUPT where that ended it.
    llama_binding_stop make_room(size_t n_keep, int32_t n_batch, const std::atomic<bool> & interrupted);

    // Adds tokens; the last has logits then, with every_row each. After a failure the cache is empty.
    void decode(const llama_token * added, int32_t n, bool every_row = false);

    // Adds tokens in batches. False if it was interrupted.
    bool feed(const llama_token * added, size_t n, int32_t n_batch, const std::atomic<bool> & interrupted);

    void set_threads(int32_t n);

    // Why the last call of llama.cpp's failed, as LESS or else its log has it; "" if neither says.
    std::string reason(class log_errors & errors) const;

private:
    bool restored = false; // the cache is as the newest checkpoint has it, and so are the logits
};

// A LESS configuration with strings of its own.
class less_config {
public:
    explicit less_config(const lesskv_config * config); // NULL: off
    bool          on = false;
    lesskv_config get() const; // valid while this lives
private:
    lesskv_config config = {};
    std::string   policy, adapter;
};

struct free_adapter { void operator()(lesskv_adapter * a) const { lesskv_adapter_free(a); } };

// What a LLama of the Go package holds.
struct model {
    llama_model_ptr        weights;
    less_config            less;
    std::unique_ptr<lesskv_adapter, free_adapter> adapter; // of all its contexts; may be NULL
    llama_context_params   cparams = {};
    llama_adapter_lora_ptr lora; // may be NULL
    sequence               main; // freed first
    size_t                 n_checkpoints = 2; // of main, at most

    llama_binding_timings    last = {};
    llama_binding_code       code = LLAMA_BINDING_OK; // of the calls without params
    std::string              error;

    mutable std::set<std::string> warned; // what warn_once has said

    std::atomic<bool> busy{false};
    std::atomic<bool> interrupted{false};

    explicit model(const lesskv_config * config) : less(config) {}
    const llama_vocab * vocab() const { return llama_model_get_vocab(weights.get()); }
};

// The model's one call. Throws LLAMA_BINDING_BUSY.
class session {
public:
    explicit session(model & m, bool whole = true); // whole: in the place of a broken sequence there is a new one
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
    bool        plain_text = false; // what reads like a control token is text

    llama_binding_code       code = LLAMA_BINDING_OK;
    std::string              error;
    std::string              text;
    std::vector<llama_token> tokens;
    std::vector<float>       embedding;
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
    const char * rpc; // servers whose devices take part, "host:port" with commas between them; NULL or "": none
};
model * load(const load_options & options);

// A context of the model, empty; the n-th that there is at a time. Throws.
sequence new_sequence(const model & m, int n = 1);

// binding_predict.cpp

// The text as the model's tokens, begin-of-sequence token included where the model wants one; what reads like a control token is one,
// unless the text is to be plain.
std::vector<llama_token> tokenize(const model & m, const params & p, const std::string & text);

// The same, with the begin-of-sequence token where there would be none: something to evaluate.
std::vector<llama_token> prompt_tokens(const model & m, const params & p, const std::string & text);

// The token's bytes, which may be a part of a UTF-8 sequence; none for one that only controls.
std::string piece_of(const model & m, llama_token token);

// Tokens of the prompt that stay when the context makes room.
size_t kept(const params & p, size_t n_prompt);

// Refuses options that no call can serve, and warns of those that it ignores. Throws LLAMA_BINDING_ARGUMENT.
void check(const model & m, const params & p);

// The same for a call that generates; LLAMA_BINDING_MISSING for a model that cannot.
void check_generates(const model & m, const params & p);

// Refuses a prompt that is longer than what the sequence can hold. Throws LLAMA_BINDING_CONTEXT.
void check_fits(const sequence & s, size_t n_prompt);

// Makes the model's sequence hold the tokens: goes on from it if they extend those that are there, else starts anew. False if it was
// interrupted.
bool evaluate(model & m, const params & p, const std::vector<llama_token> & prompt);

// The same for the tokens of a text.
void evaluate(model & m, const params & p, const std::string & text);

using token_callback = std::function<bool(const std::string &)>;

// What becomes of a sampled token: p.text, the callback, and whether the text ends with it.
class writer {
public:
    writer(model & m, params & p, const token_callback & on_token) : m(m), p(p), on_token(on_token) {}
    // LLAMA_BINDING_STOP_NONE: go on. A token that ends the text because the model or the callback says so is not part of it.
    llama_binding_stop add(llama_token token);
private:
    model & m;
    params & p;
    const token_callback & on_token;
};

// Evaluates the prompt and generates p.text.
void predict(model & m, params & p, bool debug, const token_callback & on_token);

// Logs what the last call did, if it is asked to, and that it ended because the context is full.
void conclude(const model & m, bool debug);

// binding_speculative.cpp

// The same, with tokens that the draft model guesses and this one only checks.
void speculate(model & m, model & draft, params & p, bool debug, const token_callback & on_token);

// binding_embeddings.cpp

// Evaluates the tokens from an empty cache and leaves p.embedding; the cache is empty afterwards.
void embed(model & m, params & p, std::vector<llama_token> tokens);

// binding_chat.cpp

// The text of a chat in the form of the model's own template; open: the assistant's turn is begun. Throws LLAMA_BINDING_MISSING where
// there is no template, or none that llama.cpp knows.
std::string chat(const model & m, const std::vector<llama_chat_message> & messages, bool open);

// binding_state.cpp

// A sequence, to a file and back. A file that is refused changes nothing, but for a state that holds more or fewer tokens than it says: then the
// cache is empty. Throws, LLAMA_BINDING_STATE where the file could be read and is
// not a state of this model and cache.
void save_state(const sequence & s, const std::string & path);
void load_state(sequence & s, const std::string & path);

// Whether a file begins as the states of any model and version do, upstream's prompt caches among them.
bool is_state(const std::string & path);

// binding_sampling.cpp

class sampler {
public:
    sampler(const model & m, const params & p); // throws LLAMA_BINDING_ARGUMENT, or interruption
    void accept(llama_token token);             // a token of the prompt, for the penalties

    // Samples from the logits of a row of the last decode, -1 for the last one, and accepts the token. With a guide the
    // logits move away from those of its last row. Throws interruption where a grammar was at work.
    llama_token sample(const sequence & s, int32_t row = -1, const sequence * guide = nullptr);
private:
    llama_token choose(const sequence & s, int32_t row, const sequence * guide);

    const model & m;
    const llama_vocab * vocab;
    int32_t     n_vocab;
    float       guidance;
    llama_token newline; // the token that the penalties spare, or LLAMA_TOKEN_NULL
    llama_sampler_ptr bias, penalties, grammar, chain;
    std::vector<llama_token_data> candidates;
};

// binding_log.cpp

// A line, the format's end included; cut if it is longer than about a thousand bytes.
__attribute__((format(printf, 2, 3)))
void log(ggml_log_level level, const char * format, ...);

// A warning that this model's log has not had yet. Its text may come from requests: after a hundred of them there are no more.
__attribute__((format(printf, 2, 3)))
void warn_once(const model & m, const char * format, ...);

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
