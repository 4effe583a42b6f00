// Sampling in upstream's order: logit bias, guidance, penalties, grammar; then greedy, mirostat, or top-k, typical, top-p,
// temperature.

#include "binding_impl.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace binding {

static void need_finite(const char * name, float value) {
    if (!std::isfinite(value)) {
        fail(LLAMA_BINDING_ARGUMENT, "%s is %g: want a finite number", name, value);
    }
}

static void check(const params & p) {
    need_finite("temperature",       p.temp);
    need_finite("top-p",             p.top_p);
    need_finite("typical-p",         p.typical_p);
    need_finite("repeat penalty",    p.repeat_penalty);
    need_finite("frequency penalty", p.frequency_penalty);
    need_finite("presence penalty",  p.presence_penalty);
    need_finite("mirostat eta",      p.mirostat_eta);
    need_finite("mirostat tau",      p.mirostat_tau);
    need_finite("negative prompt scale", p.negative_prompt_scale);
    if (p.repeat_penalty <= 0.0f) {
        fail(LLAMA_BINDING_ARGUMENT, "repeat penalty is %g: want a number above 0; 1 is no penalty", p.repeat_penalty);
    }
    if (p.tfs_z != 1.0f) {
        fail(LLAMA_BINDING_MISSING, "tail-free sampling z is %g: llama.cpp no longer has it; want 1, which is off", p.tfs_z);
    }
    if (p.mirostat < 0 || p.mirostat > 2) {
        fail(LLAMA_BINDING_ARGUMENT, "mirostat %d: want 0 (off), 1 or 2", p.mirostat);
    }
}

// "TOKEN+BIAS" or "TOKEN-BIAS", as upstream has it; "" is none.
static void parse_bias(const std::string & text, int32_t n_vocab, std::vector<llama_logit_bias> & out) {
    if (text.empty()) {
        return;
    }
    char * sign;
    char * end;
    const long  token = strtol(text.c_str(), &sign, 10);
    const float value = strtof(sign, &end);
    if (sign == text.c_str() || (*sign != '+' && *sign != '-') || end == sign || *end || std::isnan(value) || value == INFINITY) {
        fail(LLAMA_BINDING_ARGUMENT, "logit bias \"%s\": want TOKEN+BIAS or TOKEN-BIAS, like 15043+1", text.c_str());
    }
    if (token < 0 || token >= n_vocab) {
        fail(LLAMA_BINDING_ARGUMENT, "logit bias \"%s\": the model has tokens 0 to %d", text.c_str(), n_vocab - 1);
    }
    out.push_back({ (llama_token) token, value });
}

// llama.cpp calls itself for each open parenthesis when it parses a grammar, and for rules that begin with one another when it looks
// for left recursion. What stands in quotes and classes counts too: few grammars have much of it. (What it calls itself for later,
// it bounds itself: patches/llama.cpp/0006.)
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
        add(llama_sampler_init_typical(p.typical_p, 1));
        add(llama_sampler_init_top_p(p.top_p, 1));
        add(llama_sampler_init_temp(p.temp));
        add(llama_sampler_init_dist(seed));
    }
    return chain;
}

sampler::sampler(const model & m, const params & p) {
    check(p);
    vocab    = m.vocab();
    n_vocab  = llama_vocab_n_tokens(vocab);
    guidance = p.negative_prompt_scale;
    newline = p.penalize_nl ? LLAMA_TOKEN_NULL : llama_vocab_nl(vocab);

    std::vector<llama_logit_bias> biases;
    parse_bias(p.logit_bias, n_vocab, biases);
    for (llama_token t = 0; p.ignore_eos && t < n_vocab; ++t) {
        if (llama_vocab_is_eog(vocab, t)) {
            biases.push_back({ t, -INFINITY });
        }
    }
    bias.reset(llama_sampler_init_logit_bias(n_vocab, biases.size(), biases.data()));

    const int32_t last_n = p.repeat_last_n < 0 ? m.main.limit() : std::min(p.repeat_last_n, m.main.limit());
    penalties.reset(llama_sampler_init_penalties(n_vocab, last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty));

    if (!p.grammar.empty()) {
        check_depth(p.grammar);
        log_errors errors;
        grammar.reset(llama_sampler_init_grammar(vocab, p.grammar.c_str(), "root"));
        if (!grammar) {
            const std::string why = errors.text();
            fail(LLAMA_BINDING_ARGUMENT, "the grammar does not parse%s%s: want GBNF with a rule named root", why.empty() ? "" : ": ", why.c_str());
        }
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
    const float * logits = llama_get_logits_ith(s.ctx.get(), row);
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

llama_token sampler::sample(const sequence & s, int32_t row, const sequence * guide) {
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
            llama_sampler_accept(grammar.get(), id);
        }
        llama_sampler_accept(chain.get(), id);
    }
    return id;
}

} // namespace binding
