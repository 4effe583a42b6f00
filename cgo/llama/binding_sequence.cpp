// One text in a context: what its cache holds, and how that grows and shrinks.

#include "binding_impl.h"

#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace binding {

bool sequence::less() const { return lesskv_enabled(ctx.get()); }

int32_t sequence::limit() const {
    const int32_t n_ctx   = llama_n_ctx_seq(ctx.get());
    const int32_t n_train = llama_model_n_ctx_train(llama_get_model(ctx.get()));
    if (llama_get_model(ctx.get())->pos_embd) {
        return less() ? n_train : std::min(n_ctx, n_train); // there is no row for a later position
    }
    return less() ? std::max(n_ctx, n_train) : n_ctx;
}

// Whether llama.cpp can turn the keys of every layer to another place. It turns all layers, also those of models that
// leave some without a rotation, and asserts where a position is more than one number.
static bool can_rotate(const llama_model * model) {
    const auto type = llama_model_rope_type(model);
    if (type != LLAMA_ROPE_TYPE_NORM && type != LLAMA_ROPE_TYPE_NEOX) {
        return false;
    }
    char arch[64] = "";
    llama_model_meta_val_str(model, "general.architecture", arch, sizeof(arch));
    for (const char * whole : { "llama", "qwen3", "gemma2", "gemma3", "phi3", "falcon" }) { // those of TestContextMakesRoomByRotation
        if (strcmp(arch, whole) == 0) {
            return true;
        }
    }
    return false;
}

void sequence::forget() {
    tokens.clear();
    copies.cut(0);
    restored = false;
    try {
        if (llama_memory_t memory = llama_get_memory(ctx.get())) {
            llama_memory_clear(memory, true);
        }
    } catch (const std::exception &) {
        broken = true; // its device is gone; this is called by a destructor, too
    }
}

size_t sequence::common(const std::vector<llama_token> & text) const {
    size_t n = 0;
    while (n + 1 < text.size() && n < tokens.size() && tokens[n] == text[n]) {
        ++n;
    }
    return n;
}

bool sequence::cut(size_t n) {
    if (n >= tokens.size()) {
        return true;
    }
    log_errors refusal;
    if (!llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, (llama_pos) n, -1)) {
        refusal.text(); // the caller has another way, or says why itself
        return false;
    }
    tokens.resize(n);
    copies.cut(n);
    restored = false;
    return true;
}

void sequence::replaced(std::vector<llama_token> now) {
    tokens = std::move(now);
    copies.cut(0); // of another text
    restored = false;
}

const float * sequence::logits(int32_t row) const {
    return row == -1 && restored ? copies.newest().logits.data() : llama_get_logits_ith(ctx.get(), row);
}

llama_binding_stop sequence::make_room(size_t n_keep, int32_t n_batch, const std::atomic<bool> & interrupted) {
    n_keep = std::min(n_keep, tokens.size());
    const size_t n_discard = (tokens.size() - n_keep)/2;
    if (n_discard == 0 || less()) {
        return LLAMA_BINDING_STOP_CONTEXT;
    }
    llama_memory_t memory = llama_get_memory(ctx.get());
    const auto first = tokens.begin() + n_keep;
    // Rotary keys are turned to their new places. Where that is not sure to be right, the rest is evaluated anew.
    if (can_rotate(llama_get_model(ctx.get())) && llama_memory_can_shift(memory) && llama_memory_seq_rm(memory, 0, n_keep, n_keep + n_discard)) {
        llama_memory_seq_add(memory, 0, n_keep + n_discard, -1, -(llama_pos) n_discard);
        tokens.erase(first, first + n_discard);
        return LLAMA_BINDING_STOP_NONE;
    }
    auto kept = tokens;
    kept.erase(kept.begin() + n_keep, kept.begin() + n_keep + n_discard);
    forget();
    return feed(kept.data(), kept.size(), n_batch, interrupted) ? LLAMA_BINDING_STOP_NONE : LLAMA_BINDING_STOP_INTERRUPT;
}

void sequence::decode(const llama_token * added, int32_t n, bool every_row) {
    llama_batch batch;
    std::unique_ptr<llama_batch, void (*)(llama_batch *)> owned(nullptr, [](llama_batch * b) { llama_batch_free(*b); });
    if (every_row) {
        batch = llama_batch_init(n, 0, 1);
        owned.reset(&batch);
        batch.n_tokens = n;
        for (int32_t i = 0; i < n; ++i) {
            batch.token[i]     = added[i];
            batch.pos[i]       = (llama_pos) tokens.size() + i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = true;
        }
    } else {
        batch = llama_batch_get_one(const_cast<llama_token *>(added), n); // it only lacks a const
    }
    restored = false;
    log_errors errors;
    std::string why;
    bool not_finite = false; // the graph was computed, and the context is as good as before
    try {
        tokens.reserve(tokens.size() + n);
        const int32_t status = llama_decode(ctx.get(), batch);
        if (status == 0) {
            tokens.insert(tokens.end(), added, added + n);
            return;
        }
        not_finite = status == -3 && lesskv_not_finite(ctx.get());
        broken = status < -1 && !not_finite;
        const std::string said = reason(errors);
        why = "status " + std::to_string(status) + (said.empty() ? "" : ": ") + said;
    } catch (const std::exception & e) {
        broken = true;
        why = e.what();
    }
    const size_t at = tokens.size();
    const auto code = not_finite ? LLAMA_BINDING_NOT_FINITE : LLAMA_BINDING_FAILED;
    forget(); // part of it may be in the cache
    fail(code, "decoding %d tokens at position %zu failed with %s: the cache has been emptied", n, at, why.c_str());
}

bool sequence::feed(const llama_token * added, size_t n, int32_t n_batch, const std::atomic<bool> & interrupted) {
    const size_t step = std::min<size_t>(n_batch, llama_n_batch(ctx.get()));
    size_t i = 0;
    for (; i < n && !interrupted; i += step) {
        decode(added + i, std::min(step, n - i));
    }
    llama_synchronize(ctx.get()); // a device that is gone is an error of this call, not of a destructor that waits
    return i >= n;
}

void sequence::set_threads(int32_t n) {
    // ggml's threads wait by spinning: more of them than CPUs, like upstream's default of 4, take turns at that
    static const int32_t n_cpus = usable_cpus();
    n = std::min({ n < 1 ? GGML_DEFAULT_N_THREADS : n, n_cpus, GGML_MAX_N_THREADS });
    llama_set_n_threads(ctx.get(), n, n);
}

std::string sequence::reason(log_errors & errors) const {
    const std::string logged = errors.text();
    const std::string said   = less() ? lesskv_error(ctx.get()) : "";
    return said.empty() ? logged : said;
}

} // namespace binding
