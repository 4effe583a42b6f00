// Evaluating a prompt and generating from it.
//
// A prompt that goes on where the cache ends needs only what is new; any other starts from a checkpoint, or else from an empty cache. With
// a prompt cache in a file, the cache is the file's first.

#include "binding_impl.h"

#include "llama-model.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <exception>
#include <memory>

#include <pthread.h>
#include <sys/stat.h>

namespace binding {

// llama.cpp cuts texts into words with std::regex, whose matcher calls itself for each character of a word: a long one
// would run off the stack. Runs the call where the stack has room for n characters; it is memory only as far as it is used.
static void with_stack(size_t n, const std::function<void()> & call) {
    struct job { const std::function<void()> & call; std::exception_ptr error; } j = { call, nullptr };
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    int status = pthread_attr_setstacksize(&attr, (((n << 10) + (8 << 20)) >> 16) << 16);
    status = status ? status : pthread_create(&thread, &attr, [](void * p) -> void * {
        auto & j = *static_cast<job *>(p);
        try {
            catching assertions;
            j.call();
        } catch (...) {
            j.error = std::current_exception();
        }
        return nullptr;
    }, &j);
    pthread_attr_destroy(&attr);
    if (status != 0) {
        fail(LLAMA_BINDING_FAILED, "a text of %zu bytes needs %zu MiB of stack to be cut into words, which cannot be had: shorten it", n, (n >> 10) + 8);
    }
    pthread_join(thread, nullptr);
    if (j.error) {
        std::rethrow_exception(j.error);
    }
}

std::vector<llama_token> tokenize(const model & m, const params & p, const std::string & text) {
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
    std::vector<llama_token> tokens;
    const auto call = [&] {
        tokens.resize(std::min<size_t>(text.size(), 1 << 24) + 3); // a token a byte, and what the vocabulary adds: room for hardly any text is short
        int32_t n = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, !p.plain_text);
        if (n == std::numeric_limits<int32_t>::min()) {
            fail(LLAMA_BINDING_ARGUMENT, "a text of %zu bytes has more tokens than can be counted", text.size());
        }
        if (n < 0) {
            tokens.resize(-n);
            n = llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, !p.plain_text);
        }
        tokens.resize(std::max(n, 0));
    };
    if (text.size() < 4096) {
        call();
    } else {
        with_stack(text.size(), call);
    }
    return tokens;
}

std::string piece_of(const model & m, llama_token token) {
    std::string s(32, '\0');
    int32_t n = llama_token_to_piece(m.vocab(), token, &s[0], s.size(), 0, false);
    if (n < 0) {
        s.resize(-n);
        n = llama_token_to_piece(m.vocab(), token, &s[0], s.size(), 0, false);
    }
    s.resize(std::max(n, 0));
    return s;
}

void check(const model & m, const params & p) {
    if (p.n_batch < 1) {
        fail(LLAMA_BINDING_ARGUMENT, "batch size %d: want at least 1", p.n_batch);
    }
    // what New was given, or else what the model says
    const auto & hparams = m.weights->hparams;
    const float base  = m.cparams.rope_freq_base  != 0.0f ? m.cparams.rope_freq_base  : hparams.rope_freq_base_train;
    const float scale = m.cparams.rope_freq_scale != 0.0f ? m.cparams.rope_freq_scale : hparams.rope_freq_scale_train;
    const auto same = [](float value, float standard, float loaded) { return value == 0.0f || value == standard || value == loaded; };
    if (!same(p.rope_freq_base, 10000.0f, base) || !same(p.rope_freq_scale, 1.0f, scale)) {
        warn_once(m, "a call's rope frequency base %g and scale %g are ignored: they belong to the loaded model, where they are %g and %g; give them to New",
                p.rope_freq_base, p.rope_freq_scale, base, scale);
    }
}

void check_generates(const model & m, const params & p) {
    check(m, p);
    if (llama_model_has_encoder(m.weights.get()) || !llama_get_memory(m.main.ctx.get())) {
        fail(LLAMA_BINDING_MISSING, "models with an encoder, or without a cache, cannot generate text in this runtime");
    }
}

void check_fits(const sequence & s, size_t n_prompt) {
    if ((int64_t) n_prompt > s.limit()) {
        fail(LLAMA_BINDING_CONTEXT, "the prompt has %zu tokens, the context holds %d: shorten it, or load the model with a larger context", n_prompt, s.limit());
    }
}

std::vector<llama_token> prompt_tokens(const model & m, const params & p, const std::string & text) {
    auto tokens = tokenize(m, p, text);
    if (tokens.empty()) {
        const llama_token bos = llama_vocab_bos(m.vocab());
        if (bos == LLAMA_TOKEN_NULL) {
            fail(LLAMA_BINDING_ARGUMENT, "the prompt is empty, and the model has no token that begins a text");
        }
        tokens.push_back(bos);
    }
    return tokens;
}

// How many of the prompt's tokens the sequence holds when this returns: all that it has, those of a checkpoint, or none. Where they are
// the whole prompt, the last one's logits are there too. What LESS could still cut back is not cut: scores and evictions would stay as
// the tokens behind the cut made them.
static size_t reuse(sequence & s, const std::vector<llama_token> & prompt, size_t n_checkpoints) {
    const size_t n = std::min(s.tokens.size(), prompt.size());
    const size_t same = std::mismatch(prompt.begin(), prompt.begin() + n, s.tokens.begin()).first - prompt.begin();
    if (same < s.tokens.size() || same == prompt.size()) {
        s.restore(same, prompt.size());
    } else if (n_checkpoints > 1) { // the only one is of the prompt's end
        s.copies.take(s, n_checkpoints, false); // of the answer's end
    }
    return s.tokens.size();
}

// Measures how a prompt comes into the cache: its evaluation, and what of it a checkpoint restores or keeps.
class prompt_timer {
public:
    prompt_timer(model & m, size_t n_prompt) : m(m), start(llama_time_us()) { m.last.n_prompt = n_prompt; }
    ~prompt_timer() {
        m.last.us_prompt   = llama_time_us() - start;
        m.last.n_evaluated = std::max<int32_t>(m.main.tokens.size(), m.last.n_cached) - m.last.n_cached;
    }
    prompt_timer(const prompt_timer &) = delete;
    prompt_timer & operator=(const prompt_timer &) = delete;
private:
    model & m;
    int64_t start;
};

bool evaluate(model & m, const params & p, const std::vector<llama_token> & prompt) {
    check_fits(m.main, prompt.size());
    m.main.set_threads(p.n_threads);
    prompt_timer timer(m, prompt.size());
    const size_t done = reuse(m.main, prompt, m.n_checkpoints);
    m.last.n_cached = done;
    if (!m.main.feed(prompt.data() + done, prompt.size() - done, p.n_batch, m.interrupted)) {
        return false;
    }
    m.main.copies.take(m.main, m.n_checkpoints, true);
    return true;
}

void evaluate(model & m, const params & p, const std::string & text) {
    m.last = {};
    check_generates(m, p);
    if (!evaluate(m, p, prompt_tokens(m, p, text))) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
    }
}

// A prompt cache in a file. It is written before the prompt's last token is evaluated: who reads it evaluates that token
// for its logits, and does exactly what the call did that wrote it. With LESS, too, where a step back would not be exact.
class prompt_cache {
public:
    prompt_cache(model & m, const params & p) : m(m), p(p) {
        struct stat st;
        if (stat(p.path_prompt_cache.c_str(), &st) != 0) {
            if (errno != ENOENT) {
                fail(LLAMA_BINDING_FAILED, "the prompt cache %s: %s", p.path_prompt_cache.c_str(), strerror(errno));
            }
            return; // to be made
        }
        try {
            load_state(m.main, p.path_prompt_cache);
            loaded = true;
        } catch (const failure & e) {
            if (e.code != LLAMA_BINDING_STATE || !is_state(p.path_prompt_cache)) {
                throw;
            }
            warn_once(m, "the prompt cache cannot serve, and %s: %s", p.prompt_cache_ro ? "is left alone" : "will be replaced", e.what());
        }
    }

    // The prompt's tokens, or, where it has no text, the file's.
    std::vector<llama_token> prompt() {
        saved = p.prompt.empty() && loaded && !m.main.tokens.empty();
        return saved ? m.main.tokens : prompt_tokens(m, p, p.prompt);
    }

    bool evaluate(const std::vector<llama_token> & prompt) {
        auto & s = m.main;
        check_fits(s, prompt.size());
        s.set_threads(p.n_threads);
        const size_t same = s.common(prompt);
        // what LESS has evicted for the sake of what is cut off does not come back
        if (!loaded || (s.less() && same < s.tokens.size()) || !s.cut(same)) {
            s.forget();
        }
        const size_t done = s.tokens.size(), last = prompt.size() - 1;
        prompt_timer timer(m, prompt.size());
        m.last.n_cached = done;
        if (!s.feed(&prompt[done], last - done, p.n_batch, m.interrupted)) {
            return false;
        }
        if (done < last && !saved) {
            save();
        }
        return s.feed(&prompt[last], 1, p.n_batch, m.interrupted);
    }

    void save_all() {
        if (p.prompt_cache_all) {
            save();
        }
    }

private:
    void save() {
        if (!p.prompt_cache_ro) {
            save_state(m.main, p.path_prompt_cache);
        }
    }

    model & m;
    const params & p;
    bool loaded = false; // the file
    bool saved  = false; // it has the prompt
};

// Classifier-free guidance: a second text that begins with the negative prompt instead, and goes on with the same tokens.
class guide {
public:
    guide(model & m, const params & p) : m(m), p(p), text(new_sequence(m, 2)) {
        const auto prompt = prompt_tokens(m, p, p.negative_prompt);
        check_fits(text, prompt.size());
        n_keep = std::min<size_t>(prompt.size(), text.limit()/2);
        text.set_threads(p.n_threads);
        text.feed(prompt.data(), prompt.size(), p.n_batch, m.interrupted); // if it was interrupted, nothing is sampled
    }
    // Why the text ends with the token, if it does.
    llama_binding_stop add(llama_token token) {
        const auto stop = text.full() ? text.make_room(n_keep, p.n_batch, m.interrupted) : LLAMA_BINDING_STOP_NONE;
        if (stop == LLAMA_BINDING_STOP_NONE) {
            text.decode(&token, 1);
        }
        return stop;
    }
    const sequence & get() const { return text; }
private:
    model & m;
    const params & p;
    sequence text;
    size_t   n_keep;
};

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

llama_binding_stop writer::add(llama_token token) {
    if (llama_vocab_is_eog(m.vocab(), token)) {
        return LLAMA_BINDING_STOP_EOG;
    }
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
    return p.n_predict >= 0 && m.last.n_generated >= p.n_predict ? LLAMA_BINDING_STOP_LENGTH : LLAMA_BINDING_STOP_NONE;
}

size_t kept(const params & p, size_t n_prompt) {
    return p.n_keep < 0 ? n_prompt : std::min<size_t>(std::max(p.n_keep, 1), n_prompt);
}

// Generates until something stops it. The last token sampled is not evaluated. moved: whether the context had to make room.
static llama_binding_stop generate(model & m, params & p, sampler & s, guide * g, size_t n_prompt, const token_callback & on_token, bool & moved) {
    writer out(m, p, on_token);
    while (!m.interrupted) {
        const llama_token token = s.sample(m.main, -1, g ? &g->get() : nullptr);
        auto stop = out.add(token);
        if (stop == LLAMA_BINDING_STOP_NONE && m.main.full()) {
            stop  = m.main.make_room(kept(p, n_prompt), p.n_batch, m.interrupted);
            moved = moved || stop == LLAMA_BINDING_STOP_NONE;
        }
        if (stop == LLAMA_BINDING_STOP_NONE) {
            m.main.decode(&token, 1);
            stop = g ? g->add(token) : LLAMA_BINDING_STOP_NONE;
        }
        if (stop != LLAMA_BINDING_STOP_NONE) {
            return stop;
        }
    }
    return LLAMA_BINDING_STOP_INTERRUPT;
}

static void predict(model & m, params & p, const token_callback & on_token) {
    check_generates(m, p);
    sampler s(m, p);

    std::unique_ptr<prompt_cache> cache;
    if (!p.path_prompt_cache.empty()) {
        cache = std::make_unique<prompt_cache>(m, p);
    }
    const auto prompt = cache ? cache->prompt() : prompt_tokens(m, p, p.prompt);
    if (!(cache ? cache->evaluate(prompt) : evaluate(m, p, prompt))) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
        return;
    }
    std::unique_ptr<guide> g;
    if (p.negative_prompt_scale > 1.0f) {
        g = std::make_unique<guide>(m, p);
    }
    for (const llama_token token : prompt) {
        s.accept(token);
    }

    const int64_t start = llama_time_us();
    bool moved = false;
    m.last.stop = p.n_predict == 0 ? LLAMA_BINDING_STOP_LENGTH : generate(m, p, s, g.get(), prompt.size(), on_token, moved);
    m.last.us_generate = llama_time_us() - start;
    if (cache && !moved) {
        cache->save_all();
    }
}

void predict(model & m, params & p, bool debug, const token_callback & on_token) {
    m.last = {};
    try {
        predict(m, p, on_token);
    } catch (const interruption &) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
    }
    conclude(m, debug);
}

void conclude(const model & m, bool debug) {
    const auto & t = m.last;
    if (debug) {
        log(GGML_LOG_LEVEL_NONE, "predict: prompt %d tokens, %d of them from the cache, %.1f ms; generated %d tokens, %.1f ms\n",
                t.n_prompt, t.n_cached, t.us_prompt/1e3, t.n_generated, t.us_generate/1e3);
    }
    if (t.stop == LLAMA_BINDING_STOP_CONTEXT) {
        log(GGML_LOG_LEVEL_WARN, "lesskv: a text ends because the context of %d tokens is full, after %d prompt tokens and %d generated: with a larger one it would go on\n",
                m.main.limit(), t.n_prompt, t.n_generated);
    }
}

} // namespace binding
