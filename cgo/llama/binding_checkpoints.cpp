// Copies of a LESS cache at ends of prompts and answers. What was folded into the state is not taken out again, so a text that changes
// behind such an end cannot be cut back to it; but a sequence has one size, and a copy of it is small. A copy goes back as it was, bit for bit.

#include "binding_impl.h"

#include <algorithm>
#include <exception>

namespace binding {

void checkpoints::take(const sequence & s, size_t most, bool with_logits) {
    if (!s.less() || s.tokens.empty() || most == 0) {
        return;
    }
    try {
        if (all.empty() || all.back().n_tokens != s.tokens.size()) {
            checkpoint c;
            if (all.size() >= most) { // its memory serves again
                c = std::move(all.front());
                all.erase(all.begin(), all.end() - (most - 1));
                c.logits.clear();
            }
            c.n_tokens = s.tokens.size();
            c.size     = lesskv_state_size(s.ctx.get(), 0);
            if (c.size > c.room) {
                c.state.reset();
                if (c.size > memory_left()) {
                    return;
                }
                c.state.reset(new uint8_t[c.size]);
                c.room = c.size;
            }
            log_errors errors;
            if (llama_state_seq_get_data(s.ctx.get(), c.state.get(), c.size, 0) != c.size) {
                errors.text(); // the text goes on without a copy
                return;
            }
            all.push_back(std::move(c));
        }
        if (with_logits && all.back().logits.empty()) {
            const float * logits = s.logits();
            const int32_t n = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(s.ctx.get())));
            all.back().logits.assign(logits, logits + (logits ? n : 0));
        }
    } catch (const std::exception &) {
        // no memory for it: the text goes on without
    }
}

const checkpoints::checkpoint * checkpoints::find(size_t n, size_t n_prompt) const {
    const auto at = std::find_if(all.rbegin(), all.rend(), [&](const checkpoint & c) {
        return c.n_tokens <= n && (c.n_tokens < n_prompt || !c.logits.empty());
    });
    return at == all.rend() ? nullptr : &*at;
}

void checkpoints::cut(size_t n) {
    all.erase(std::find_if(all.begin(), all.end(), [n](const checkpoint & c) { return c.n_tokens > n; }), all.end());
}

uint64_t checkpoints::bytes() const {
    uint64_t bytes = 0;
    for (const auto & c : all) {
        bytes += c.room + c.logits.capacity()*sizeof(c.logits[0]);
    }
    return bytes;
}

bool sequence::restore(size_t n, size_t n_prompt) {
    const auto * c = copies.find(n, n_prompt);
    log_errors errors;
    try {
        if (c) {
            llama_memory_clear(llama_get_memory(ctx.get()), false); // else loading would take a second cache
            if (llama_state_seq_set_data(ctx.get(), c->state.get(), c->size, 0) == c->size) {
                tokens.resize(c->n_tokens);
                copies.cut(tokens.size());
                restored = !copies.newest().logits.empty();
                return true;
            }
        }
    } catch (const std::exception &) {
        // no memory for it, or a device that is gone
    }
    errors.text(); // the caller evaluates anew
    forget();
    return false;
}

} // namespace binding
