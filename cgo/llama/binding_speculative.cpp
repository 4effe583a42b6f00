// Speculative sampling (Leviathan et al., arXiv 2211.17192, with a greedy draft): a small model guesses the next tokens one by
// one, and the large one evaluates them all at once. Every token of the text is sampled from the large model's logits, so the
// text is what it would have written alone, up to the rounding of batches of different sizes. With LESS it is not: a wrong guess
// has evicted pairs before it is taken back, and they stay evicted.

#include "binding_impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>

namespace binding {

// Whether token numbers mean the same to both: where they do not, no guess is right. Sizes may differ a little: vocabularies are padded.
static bool same_vocabulary(const model & m, const model & draft) {
    const llama_vocab * a = m.vocab(), * b = draft.vocab();
    const int32_t na = llama_vocab_n_tokens(a), nb = llama_vocab_n_tokens(b);
    bool same = llama_vocab_type(a) == llama_vocab_type(b) && std::abs(na - nb) <= 128;
    for (llama_token t = 0; same && t < std::min(na, nb); ++t) {
        same = strcmp(llama_vocab_get_text(a, t), llama_vocab_get_text(b, t)) == 0;
    }
    if (!same) {
        warn_once(m, "nothing is drafted: the draft model's vocabulary is another");
    }
    return same;
}

// The draft model and what it has read of the text.
class drafter {
public:
    drafter(const model & m, model & draft, const params & p) : s(draft.main), p(p), interrupted(m.interrupted),
            n_vocab(std::min(llama_vocab_n_tokens(m.vocab()), llama_vocab_n_tokens(draft.vocab()))) {
        s.set_threads(p.n_threads);
    }

    // At most n tokens that may follow the text, each at least twice as likely to the draft model as any other, as upstream
    // has it. None where the text is longer than its context.
    std::vector<llama_token> guess(const std::vector<llama_token> & text, int32_t n) {
        std::vector<llama_token> tokens;
        n = (int32_t) std::min<int64_t>(n, s.limit() - (int64_t) text.size());
        if (n < 1 || *std::max_element(text.begin(), text.end()) >= n_vocab || !read(text)) {
            return tokens;
        }
        while (!interrupted) {
            const llama_token token = likely();
            if (token == LLAMA_TOKEN_NULL) {
                break;
            }
            tokens.push_back(token);
            if ((int32_t) tokens.size() == n) {
                break;
            }
            s.decode(&token, 1);
        }
        return tokens;
    }

private:
    // Makes its cache hold the text. False if it was interrupted.
    bool read(const std::vector<llama_token> & text) {
        if (!s.cut(s.common(text))) {
            s.forget();
        }
        const size_t done = s.tokens.size();
        return s.feed(&text[done], text.size() - done, p.n_batch, interrupted);
    }

    llama_token likely() const {
        const float * logits = s.logits();
        if (!logits) {
            return LLAMA_TOKEN_NULL;
        }
        llama_token best = 0;
        float second = -INFINITY;
        for (llama_token t = 1; t < n_vocab; ++t) {
            if (logits[t] > logits[best]) {
                second = logits[best];
                best   = t;
            } else {
                second = std::max(second, logits[t]);
            }
        }
        return logits[best] - second >= std::log(2.0f) ? best : LLAMA_TOKEN_NULL;
    }

    sequence & s;
    const params & p;
    const std::atomic<bool> & interrupted;
    int32_t n_vocab;
};

// Tokens that can be drafted at a time: they are evaluated in one batch with the one before, and with LESS they must still be slots of
// their own when some are taken back.
static int32_t draft_size(const model & m, const model & draft, const params & p) {
    const llama_model * weights = m.weights.get();
    int32_t n = std::max(0, std::min(p.n_draft, std::min<int32_t>(p.n_batch, llama_n_ubatch(m.main.ctx.get())) - 1));
    if (n > 0 && (llama_model_is_recurrent(weights) || llama_model_is_hybrid(weights))) {
        warn_once(m, "nothing is drafted: a recurrent model cannot take back tokens that were wrong");
        return 0;
    }
    lesskv_info info;
    if (n > 0 && lesskv_get_info(m.main.ctx.get(), &info) && n >= info.recent) {
        n = std::max(0, info.recent - 1);
        warn_once(m, "%d tokens are drafted at a time: with LESS those that turn out wrong must not have been folded, and of the budget of %d only the %d newest pairs are sure to stay",
                n, info.budget, info.recent);
    }
    return n > 0 && same_vocabulary(m, draft) ? n : 0;
}

// Tokens that a text can have while drafts can be taken back: with LESS, a layer with a sliding window holds just that window.
static int64_t draft_limit(const model & m) {
    lesskv_info info;
    const bool windows = lesskv_get_info(m.main.ctx.get(), &info) && info.n_layer_swa > 0;
    return windows ? std::min<int64_t>(m.main.limit(), llama_model_n_swa(m.weights.get()) - 1) : m.main.limit();
}

static llama_binding_stop generate(model & m, params & p, sampler & s, drafter & draft, int32_t n_draft, size_t n_prompt, const token_callback & on_token) {
    const int64_t limit   = draft_limit(m);
    bool told = false; // that it is reached
    sequence & text = m.main;
    writer out(m, p, on_token);

    llama_token next = s.sample(text);
    auto stop = out.add(next);
    while (stop == LLAMA_BINDING_STOP_NONE && !m.interrupted) {
        stop = text.full() ? text.make_room(kept(p, n_prompt), p.n_batch, m.interrupted) : LLAMA_BINDING_STOP_NONE;
        if (stop != LLAMA_BINDING_STOP_NONE) {
            break;
        }
        const size_t at = text.tokens.size();
        auto all = text.tokens;
        all.push_back(next);
        std::vector<llama_token> batch = { next };
        const int64_t room = limit - (int64_t) all.size();
        if (room < n_draft && limit < text.limit() && !told) {
            told = true;
            log(GGML_LOG_LEVEL_WARN, "lesskv: from token %lld on nothing is drafted: with LESS, layers with a sliding window of %d hold no more than it\n",
                    (long long) limit, llama_model_n_swa(m.weights.get()));
        }
        const auto guessed = draft.guess(all, (int32_t) std::min<int64_t>(n_draft, room));
        batch.insert(batch.end(), guessed.begin(), guessed.end());

        text.decode(batch.data(), batch.size(), true);
        size_t right = 0; // of the guesses
        std::exception_ptr error; // the others are taken back before it goes on
        try {
            for (;; ++right) {
                next = s.sample(text, (int32_t) right);
                stop = out.add(next);
                if (stop != LLAMA_BINDING_STOP_NONE || right == guessed.size() || guessed[right] != next) {
                    break;
                }
            }
        } catch (...) {
            error = std::current_exception();
        }

        m.last.n_drafted  += guessed.size();
        m.last.n_accepted += right;
        if (!text.cut(at + 1 + right)) {
            log_errors errors;
            const std::string why = text.reason(errors);
            text.forget();
            fail(LLAMA_BINDING_FAILED, "drafted tokens that were wrong cannot be taken back%s%s: the cache has been emptied", why.empty() ? "" : ": ", why.c_str());
        }
        if (error) {
            std::rethrow_exception(error);
        }
    }
    return stop == LLAMA_BINDING_STOP_NONE ? LLAMA_BINDING_STOP_INTERRUPT : stop;
}

static void speculate(model & m, model & draft, params & p, const token_callback & on_token) {
    check_generates(m, p);
    check_generates(draft, p);
    if (!p.path_prompt_cache.empty() || p.negative_prompt_scale > 1.0f) { // which upstream did not read
        warn_once(m, "speculative sampling goes without a prompt cache and without a negative prompt: they are ignored");
    }
    const int32_t n_draft = draft_size(m, draft, p);
    sampler s(m, p);
    drafter d(m, draft, p);

    const auto prompt = prompt_tokens(m, p, p.prompt);
    if (!evaluate(m, p, prompt)) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
        return;
    }
    for (const llama_token token : prompt) {
        s.accept(token);
    }
    const int64_t start = llama_time_us();
    m.last.stop = p.n_predict == 0 ? LLAMA_BINDING_STOP_LENGTH : generate(m, p, s, d, n_draft, prompt.size(), on_token);
    m.last.us_generate = llama_time_us() - start;
}

void speculate(model & m, model & draft, params & p, bool debug, const token_callback & on_token) {
    m.last = {};
    try {
        speculate(m, draft, p, on_token);
    } catch (const interruption &) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
    }
    conclude(m, debug);
}

} // namespace binding
