// Evaluating a prompt and generating from it.

#include "binding_impl.h"

#include <algorithm>
#include <limits>
#include <thread>

namespace binding {

std::vector<llama_token> tokenize(const model & m, const std::string & text) {
    const llama_vocab * vocab = m.vocab();
    // llama.cpp aborts where a vocabulary asks for a token that it has not
    if ((llama_vocab_get_add_bos(vocab) && llama_vocab_bos(vocab) == LLAMA_TOKEN_NULL) ||
        (llama_vocab_get_add_eos(vocab) && llama_vocab_eos(vocab) == LLAMA_TOKEN_NULL) ||
        (llama_vocab_get_add_sep(vocab) && llama_vocab_sep(vocab) == LLAMA_TOKEN_NULL)) {
        fail(LLAMA_BINDING_MODEL, "the model's vocabulary wants a special token added to every text and does not have it");
    }
    if (text.size() >= (size_t) std::numeric_limits<int32_t>::max()) {
        fail(LLAMA_BINDING_ARGUMENT, "a text of %zu bytes: want less than 2 GiB", text.size());
    }
    int32_t n = llama_tokenize(vocab, text.data(), text.size(), nullptr, 0, true, true);
    if (n == std::numeric_limits<int32_t>::min()) {
        fail(LLAMA_BINDING_ARGUMENT, "a text of %zu bytes has more tokens than can be counted", text.size());
    }
    std::vector<llama_token> tokens(n < 0 ? -n : n);
    n = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, true);
    tokens.resize(std::max(n, 0));
    return tokens;
}

static std::string piece_of(const model & m, llama_token token) {
    std::string s(32, '\0');
    int32_t n = llama_token_to_piece(m.vocab(), token, &s[0], s.size(), 0, false);
    if (n < 0) {
        s.resize(-n);
        n = llama_token_to_piece(m.vocab(), token, &s[0], s.size(), 0, false);
    }
    s.resize(std::max(n, 0));
    return s;
}

static void check(const model & m, const params & p) {
    if (llama_model_has_encoder(m.weights.get()) || !llama_get_memory(m.ctx.get())) {
        fail(LLAMA_BINDING_MISSING, "models with an encoder, or without a cache, cannot generate text in this runtime");
    }
    if (p.n_threads < 1 || p.n_threads > GGML_MAX_N_THREADS) {
        fail(LLAMA_BINDING_ARGUMENT, "%d threads: want 1 to %d", p.n_threads, GGML_MAX_N_THREADS);
    }
    if (p.n_batch < 1) {
        fail(LLAMA_BINDING_ARGUMENT, "batch size %d: want at least 1", p.n_batch);
    }
    if (!p.path_prompt_cache.empty()) {
        fail(LLAMA_BINDING_MISSING, "prompt caches in files are not there yet: a prompt that extends the last one goes on from memory");
    }
    if (p.negative_prompt_scale > 1.0f) {
        fail(LLAMA_BINDING_MISSING, "negative prompts (classifier-free guidance) are not there yet: want a scale of at most 1");
    }
    const auto rope = [](float value, float standard, float loaded) { return value == 0.0f || value == standard || value == loaded; };
    if (!rope(p.rope_freq_base, 10000.0f, m.rope_freq_base) || !rope(p.rope_freq_scale, 1.0f, m.rope_freq_scale)) {
        fail(LLAMA_BINDING_ARGUMENT, "rope frequency base %g, scale %g: they belong to the loaded model and cannot change with a prompt; give them to New",
                p.rope_freq_base, p.rope_freq_scale);
    }
}

// Adds tokens to the cache. After a failure the cache is empty.
static void decode(model & m, const llama_token * tokens, int32_t n) {
    log_errors errors;
    // llama_batch_get_one does not change the tokens; it only lacks a const
    const int32_t status = llama_decode(m.ctx.get(), llama_batch_get_one(const_cast<llama_token *>(tokens), n));
    if (status == 0) {
        m.tokens.insert(m.tokens.end(), tokens, tokens + n);
        return;
    }
    std::string why = errors.text();
    if (lesskv_enabled(m.ctx.get())) {
        why = lesskv_error(m.ctx.get());
    }
    const size_t at = m.tokens.size();
    m.forget();
    fail(LLAMA_BINDING_FAILED, "decoding %d tokens at position %zu failed with status %d%s%s: the cache has been emptied", n, at, status,
            why.empty() ? "" : ": ", why.c_str());
}

// A prompt that goes on where the cache ends needs only what is new. Any other starts from an empty cache, one that
// equals it too: its last logits are gone, and a cache that has folded cannot step back.
static size_t reuse(model & m, const std::vector<llama_token> & prompt) {
    if (m.tokens.size() < prompt.size() && std::equal(m.tokens.begin(), m.tokens.end(), prompt.begin())) {
        return m.tokens.size();
    }
    m.forget();
    return 0;
}

// False if it was interrupted.
static bool evaluate(model & m, const params & p, const std::vector<llama_token> & prompt) {
    if ((int64_t) prompt.size() > m.limit()) {
        fail(LLAMA_BINDING_CONTEXT, "the prompt has %zu tokens, the context holds %d: shorten it, or load the model with a larger context", prompt.size(), m.limit());
    }
    // ggml's threads wait by spinning: more of them than CPUs, like upstream's default of 4, take turns at that
    const int32_t n_cpus    = std::thread::hardware_concurrency(); // 0: unknown
    const int32_t n_threads = n_cpus > 0 ? std::min(p.n_threads, n_cpus) : p.n_threads;
    llama_set_n_threads(m.ctx.get(), n_threads, n_threads);

    const int64_t start = llama_time_us();
    size_t done = reuse(m, prompt);
    m.last.n_prompt = prompt.size();
    m.last.n_cached = done;

    const size_t n_batch = std::min<size_t>(p.n_batch, llama_n_batch(m.ctx.get()));
    while (done < prompt.size() && !m.interrupted) {
        const size_t n = std::min(n_batch, prompt.size() - done);
        decode(m, &prompt[done], n);
        done += n;
    }
    llama_synchronize(m.ctx.get());
    m.last.us_prompt = llama_time_us() - start;
    return done == prompt.size();
}

static std::vector<llama_token> prompt_tokens(const model & m, const std::string & text) {
    auto tokens = tokenize(m, text);
    if (tokens.empty()) {
        const llama_token bos = llama_vocab_bos(m.vocab());
        if (bos == LLAMA_TOKEN_NULL) {
            fail(LLAMA_BINDING_ARGUMENT, "the prompt is empty, and the model has no token that begins a text");
        }
        tokens.push_back(bos);
    }
    return tokens;
}

void evaluate(model & m, params & p, const std::string & text) {
    m.last = {};
    check(m, p);
    evaluate(m, p, prompt_tokens(m, text));
}

// The first place where a stop word begins in text, which had `old` bytes when it was last asked, or npos.
static size_t find_stop(const std::vector<std::string> & words, const std::string & text, size_t old) {
    size_t first = std::string::npos;
    for (const auto & word : words) {
        if (!word.empty()) {
            first = std::min(first, text.find(word, old < word.size() ? 0 : old - word.size() + 1));
        }
    }
    return first;
}

// Generates until something stops it. The last token sampled is not evaluated.
static llama_binding_stop generate(model & m, params & p, sampler & s, const std::function<bool(const std::string &)> & on_token) {
    while (p.n_predict < 0 || m.last.n_generated < p.n_predict) {
        if (m.interrupted) {
            return LLAMA_BINDING_STOP_INTERRUPT;
        }
        const llama_token token = s.sample(m.ctx.get());
        if (llama_vocab_is_eog(m.vocab(), token)) {
            return LLAMA_BINDING_STOP_EOG;
        }
        s.accept_sampled(token);
        m.last.n_generated++;

        const std::string piece = piece_of(m, token);
        if (!on_token(piece)) {
            return LLAMA_BINDING_STOP_CALLBACK;
        }
        const size_t old = p.text.size();
        p.text += piece;
        const size_t stop = find_stop(p.stop, p.text, old);
        if (stop != std::string::npos) {
            p.text.resize(stop);
            return LLAMA_BINDING_STOP_WORD;
        }
        if (p.n_predict >= 0 && m.last.n_generated >= p.n_predict) {
            break;
        }
        if ((int64_t) m.tokens.size() >= m.limit()) {
            return LLAMA_BINDING_STOP_CONTEXT;
        }
        decode(m, &token, 1);
    }
    return LLAMA_BINDING_STOP_LENGTH;
}

void predict(model & m, params & p, bool debug, const std::function<bool(const std::string &)> & on_token) {
    m.last = {};
    check(m, p);
    sampler s(m, p);
    const auto prompt = prompt_tokens(m, p.prompt);
    if (!evaluate(m, p, prompt)) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
        return;
    }
    for (const llama_token token : prompt) {
        s.accept(token);
    }

    const int64_t start = llama_time_us();
    m.last.stop = generate(m, p, s, on_token);
    m.last.us_generate = llama_time_us() - start;

    if (debug) {
        const auto & t = m.last;
        log(GGML_LOG_LEVEL_NONE, "predict: prompt %d tokens, %d of them from the cache, %.1f ms; generated %d tokens, %.1f ms\n",
                t.n_prompt, t.n_cached, t.us_prompt/1e3, t.n_generated, t.us_generate/1e3);
    }
    if (m.last.stop == LLAMA_BINDING_STOP_CONTEXT) {
        fail(LLAMA_BINDING_CONTEXT, "the context of %d tokens is full after %d prompt tokens and %d generated: load the model with a larger one%s",
                m.limit(), m.last.n_prompt, m.last.n_generated, lesskv_enabled(m.ctx.get()) ? "" : ", or with LESS, which goes on");
    }
}

} // namespace binding
