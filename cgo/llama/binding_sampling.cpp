// Sampling in upstream's order: logit bias, guidance, penalties, grammar; then greedy, mirostat, or top-k, tail-free, typical, top-p,
// temperature.

#include "binding_impl.h"
#include "lesskv-grammar.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace binding {

static void need_finite(const char * name, float value) {
    if (!std::isfinite(value)) {
        fail(LLAMA_BINDING_ARGUMENT, "%s is %g: want a finite number", name, value);
    }
}

static void check_sampling(const model & m, const params & p) {
    need_finite("temperature",       p.temp);
    need_finite("top-p",             p.top_p);
    need_finite("typical-p",         p.typical_p);
    need_finite("repeat penalty",    p.repeat_penalty);
    need_finite("frequency penalty", p.frequency_penalty);
    need_finite("presence penalty",  p.presence_penalty);
    need_finite("mirostat eta",      p.mirostat_eta);
    need_finite("mirostat tau",      p.mirostat_tau);
    need_finite("negative prompt scale", p.negative_prompt_scale);
    if (p.repeat_penalty == 0.0f) {
        warn_once(m, "a repeat penalty of 0, by which logits would be divided, is taken for 1: no penalty");
    }
    if (p.mirostat < 0 || p.mirostat > 2) {
        warn_once(m, "mirostat %d is taken for 0: off; 1 and 2 are its versions", p.mirostat);
    }
}

// "TOKEN+BIAS" or "TOKEN-BIAS", as upstream has it, which took what does not begin so for none, like "".
static void parse_bias(const model & m, const std::string & text, int32_t n_vocab, std::vector<llama_logit_bias> & out) {
    if (text.empty()) {
        return;
    }
    char * sign;
    char * end;
    const long  token = strtol(text.c_str(), &sign, 10);
    const float value = strtof(sign, &end);
    if (sign == text.c_str() || (*sign != '+' && *sign != '-') || !sign[1]) {
        warn_once(m, "the logit bias \"%s\" is ignored: want TOKEN+BIAS or TOKEN-BIAS, like 15043+1", text.c_str());
        return;
    }
    if (end == sign || *end || std::isnan(value) || value == INFINITY) {
        fail(LLAMA_BINDING_ARGUMENT, "logit bias \"%s\": want TOKEN+BIAS or TOKEN-BIAS, like 15043+1", text.c_str());
    }
    if (token < 0 || token >= n_vocab) {
        fail(LLAMA_BINDING_ARGUMENT, "logit bias \"%s\": the model has tokens 0 to %d", text.c_str(), n_vocab - 1);
    }
    out.push_back({ (llama_token) token, value });
}

// llama.cpp calls itself for each open parenthesis when it parses a grammar, and for rules that begin with one another when it looks
// for left recursion. What stands in quotes and classes counts too: few grammars have much of it. (What it calls itself for later,
// it bounds itself: patches/llama.cpp/0005.)
static void check_depth(const std::string & grammar) {
    const int most_open = 1000, most_parts = 4000;
    int open = 0, parts = 0;
    for (const char c : grammar) {
        open  += c == '(' ? 1 : c == ')' && open > 0 ? -1 : 0;
        parts += c == '?' || c == '*' || c == '+' || c == '{' || c == '=';
        if (open > most_open) {
            fail(LLAMA_BINDING_ARGUMENT, "the grammar has more than %d parentheses open at a time", most_open);
        }
        if (parts > most_parts) {
            fail(LLAMA_BINDING_ARGUMENT, "the grammar has more than %d rules and repetitions", most_parts);
        }
    }
}

// Tail-free sampling: where the sorted probabilities flatten out begins the tail, which goes. Each token weighs as much as the curve bends
// behind it, |p[i] - 2 p[i+1] + p[i+2]| of the sum of these; the first that makes more than z of it together are followed by the tail,
// and the one that is over goes with it. One stays at least, and all do where z is 1 or more, or no number.
static void apply_tail_free(llama_sampler * s, llama_token_data_array * array) {
    const float  z = *(const float *) s->ctx;
    const size_t n = array->size;
    if (z >= 1.0f || n <= 2) {
        return;
    }
    if (!array->sorted) {
        std::sort(array->data, array->data + n, [](const llama_token_data & a, const llama_token_data & b) { return a.logit > b.logit; });
        array->sorted = true;
    }
    std::vector<double> p(n), bend(n - 2);
    double sum = 0.0, bends = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += p[i] = std::exp((double) array->data[i].logit - array->data[0].logit);
    }
    for (size_t i = 0; i < n - 2; ++i) {
        bends += bend[i] = std::fabs(p[i] - 2*p[i + 1] + p[i + 2])/sum;
    }
    double together = 0.0;
    for (size_t i = 0; i < n - 2; ++i) {
        together += bends > 1e-6 ? bend[i]/bends : 1.0/(n - 2); // a straight line bends nowhere
        if (i > 0 && together > z) {
            array->size = i;
            return;
        }
    }
}

static llama_sampler * init_tail_free(float z) {
    static llama_sampler_i tail_free = [] {
        llama_sampler_i i = {};
        i.name  = [](const llama_sampler *) { return "tail-free"; };
        i.apply = apply_tail_free;
        i.free  = [](llama_sampler * s) { delete (float *) s->ctx; };
        return i;
    }();
    return llama_sampler_init(&tail_free, new float(z));
}

static llama_sampler_ptr make_chain(const params & p, int32_t n_vocab) {
    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto add = [&](llama_sampler * s) { llama_sampler_chain_add(chain.get(), s); };
    const uint32_t seed = p.seed; // -1 is LLAMA_DEFAULT_SEED: at random
    if (p.temp < 1e-30f) { // logits divided by less would be infinite
        add(llama_sampler_init_greedy());
    } else if (p.mirostat == 1) {
        add(llama_sampler_init_temp(p.temp));
        add(llama_sampler_init_mirostat(n_vocab, seed, p.mirostat_tau, p.mirostat_eta, 100));
    } else if (p.mirostat == 2) {
        add(llama_sampler_init_temp(p.temp));
        add(llama_sampler_init_mirostat_v2(seed, p.mirostat_tau, p.mirostat_eta));
    } else {
        add(llama_sampler_init_top_k(p.top_k));
        add(init_tail_free(p.tfs_z));
        add(llama_sampler_init_typical(p.typical_p, 1));
        add(llama_sampler_init_top_p(p.top_p, 1));
        add(llama_sampler_init_temp(p.temp));
        add(llama_sampler_init_dist(seed));
    }
    return chain;
}

// Runs a call of the grammar's: what is too much is an error, and an interruption ends it.
template <typename F>
static void with_grammar(const model & m, F && call) {
    lesskv_grammar_work work(m.interrupted);
    try {
        call(work);
    } catch (const lesskv_grammar_error & e) {
        if (e.interrupted) {
            throw interruption();
        }
        fail(LLAMA_BINDING_ARGUMENT, "the grammar is refused: %s", e.what());
    }
}

static llama_sampler_ptr make_grammar(const model & m, const std::string & text) {
    llama_sampler_ptr grammar;
    check_depth(text);
    log_errors errors;
    with_grammar(m, [&](lesskv_grammar_work & work) {
        work.count(0, 16*text.size());
        grammar.reset(llama_sampler_init_grammar(m.vocab(), text.c_str(), "root"));
    });
    if (!grammar) {
        const std::string why = errors.text();
        if (m.interrupted) { // the parser took that for an error
            throw interruption();
        }
        fail(LLAMA_BINDING_ARGUMENT, "the grammar does not parse%s%s: want GBNF with a rule named root", why.empty() ? "" : ": ", why.c_str());
    }
    return grammar;
}

sampler::sampler(const model & m, const params & p) : m(m) {
    check_sampling(m, p);
    vocab    = m.vocab();
    n_vocab  = llama_vocab_n_tokens(vocab);
    guidance = p.negative_prompt_scale;
    newline = p.penalize_nl ? LLAMA_TOKEN_NULL : llama_vocab_nl(vocab);

    std::vector<llama_logit_bias> biases;
    parse_bias(m, p.logit_bias, n_vocab, biases);
    for (llama_token t = 0; p.ignore_eos && t < n_vocab; ++t) {
        if (llama_vocab_is_eog(vocab, t)) {
            biases.push_back({ t, -INFINITY });
        }
    }
    bias.reset(llama_sampler_init_logit_bias(n_vocab, biases.size(), biases.data()));

    const int32_t most = std::min(m.main.limit(), 1 << 20); // it takes the memory of all at once
    const int32_t last_n = p.repeat_last_n < 0 ? most : std::min(p.repeat_last_n, most);
    penalties.reset(llama_sampler_init_penalties(n_vocab, last_n, p.repeat_penalty == 0.0f ? 1.0f : p.repeat_penalty, p.frequency_penalty, p.presence_penalty));

    if (!p.grammar.empty()) {
        grammar = make_grammar(m, p.grammar);
    }
    chain = make_chain(p, n_vocab);
    candidates.resize(n_vocab);
}

void sampler::accept(llama_token token) {
    llama_sampler_accept(penalties.get(), token);
}

static float log_sum_exp(const float * x, int32_t n) {
    const float max = *std::max_element(x, x + n);
    double sum = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::exp(x[i] - max);
    }
    return max + (float) std::log(sum);
}

// Classifier-free guidance (Sanchez et al., arXiv 2306.17806, eq. 7): the log-probabilities of the guide, and from there `scale`
// times as far as it is to those of the text.
static void apply_guidance(llama_token_data_array & array, const float * guide, float scale) {
    const int32_t n = array.size;
    std::vector<float> logits(n);
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = array.data[i].logit;
    }
    const float text_norm = log_sum_exp(logits.data(), n), guide_norm = log_sum_exp(guide, n);
    for (int32_t i = 0; i < n; ++i) {
        const float a = logits[i] - text_norm, b = guide[i] - guide_norm;
        array.data[i].logit = b + scale*(a - b);
    }
}

static const float * logits_of(const sequence & s, int32_t row) {
    const float * logits = s.logits(row);
    if (!logits) {
        fail(LLAMA_BINDING_FAILED, "the model left no logits");
    }
    return logits;
}

// The token that ends the text where the grammar has all that it wants, though a bias forbids it, or LLAMA_TOKEN_NULL.
static llama_token grammar_end(const llama_vocab * vocab, llama_sampler * grammar) {
    llama_token_data end = { llama_vocab_eos(vocab), 0.0f, 0.0f };
    if (!grammar || end.id == LLAMA_TOKEN_NULL || !llama_vocab_is_eog(vocab, end.id)) {
        return LLAMA_TOKEN_NULL;
    }
    llama_token_data_array array = { &end, 1, -1, false };
    llama_sampler_apply(grammar, &array);
    return end.logit > -INFINITY ? end.id : LLAMA_TOKEN_NULL;
}

// llama.cpp lets a token follow whose beginning fits a character class where a rule wants one token behind that, and cannot take it then.
static void accept_in(llama_sampler * grammar, llama_token id) {
    try {
        llama_sampler_accept(grammar, id);
    } catch (const lesskv_grammar_error &) {
        throw;
    } catch (const failure &) { // llama.cpp gave up
        throw;
    } catch (const std::runtime_error & e) {
        fail(LLAMA_BINDING_ARGUMENT, "the grammar is refused: it lets a token follow that it cannot take (%s), as where a rule has characters and tokens: want one of the two", e.what());
    }
}

llama_token sampler::sample(const sequence & s, int32_t row, const sequence * guide) {
    llama_token token = LLAMA_TOKEN_NULL;
    with_grammar(m, [&](lesskv_grammar_work &) { token = choose(s, row, guide); });
    return token;
}

llama_token sampler::choose(const sequence & s, int32_t row, const sequence * guide) {
    const float * logits = logits_of(s, row);
    for (llama_token t = 0; t < n_vocab; ++t) {
        candidates[t] = { t, logits[t], 0.0f };
    }
    llama_token_data_array array = { candidates.data(), candidates.size(), -1, false };

    llama_sampler_apply(bias.get(), &array);
    if (guide) {
        apply_guidance(array, logits_of(*guide, -1), guidance);
    }
    const float spared = newline == LLAMA_TOKEN_NULL ? 0.0f : candidates[newline].logit;
    llama_sampler_apply(penalties.get(), &array);
    if (newline != LLAMA_TOKEN_NULL) {
        candidates[newline].logit = spared;
    }
    if (grammar) {
        llama_sampler_apply(grammar.get(), &array);
    }
    for (const auto & c : candidates) {
        if (std::isnan(c.logit) || c.logit == INFINITY) {
            fail(LLAMA_BINDING_FAILED, "the logit of token %d is %g after bias, guidance and penalties: want less extreme ones, or the model is broken", c.id, c.logit);
        }
    }
    // typical and mirostat would take the logarithm of their probability
    const auto end = std::remove_if(array.data, array.data + array.size, [](const llama_token_data & c) { return !(c.logit > -INFINITY); });
    array.size = end - array.data;
    if (array.size > 0) {
        llama_sampler_apply(chain.get(), &array);
    } else if (const llama_token end = grammar_end(vocab, grammar.get()); end != LLAMA_TOKEN_NULL) {
        return end;
    }

    if (array.selected < 0 || (size_t) array.selected >= array.size || !(array.data[array.selected].logit > -INFINITY)) {
        fail(LLAMA_BINDING_FAILED, "no token can follow: %s", grammar ? "the grammar allows none" : "every logit is minus infinity");
    }
    const llama_token id = array.data[array.selected].id;
    if (!llama_vocab_is_eog(vocab, id)) { // after which nothing comes
        accept(id);
        if (grammar) {
            accept_in(grammar.get(), id);
        }
        llama_sampler_accept(chain.get(), id);
    }
    return id;
}

} // namespace binding
