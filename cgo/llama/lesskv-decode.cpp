// lesskv-decode.cpp: a batch becomes graphs, of a micro-batch of one sequence or of a token of each of several, and a failed one is known.

#include "lesskv-memory.h"

#include "llama-impl.h"

#include <cmath>
#include <cstdint>
#include <cstring>

// Whether token i has the positions that a token of a text has: one, or with M-RoPE three that are equal, and a fourth that
// llama.cpp sets to 0 (or, of tokens, to the first until then).
static bool on_a_line(const llama_ubatch & ub, uint32_t i) {
    const auto at = [&](uint32_t section) { return ub.pos[section*ub.n_tokens + i]; };
    return ub.n_pos < 3 || (at(1) == at(0) && at(2) == at(0) && (ub.n_pos < 4 || at(3) == 0 || at(3) == at(0)));
}

llama_memory_context_ptr lesskv_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);

    const auto no = [&](const std::string & why) {
        fail(why);
        return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    };

    config_error = nullptr; // the configuration is the caller's again
    status       = LESSKV_OK;

    if (!cparams.causal_attn) {
        return no("LESS needs causal attention, and this context has been switched to non-causal attention: switch it back, or turn LESS off for it");
    }

    const llama_batch & batch = balloc.get_batch();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.n_seq_id[i] != 1) {
            return no(format("token %d of the batch belongs to %d sequences: with LESS each token belongs to one; copy the sequence instead", i, batch.n_seq_id[i]));
        }
        const llama_seq_id s = batch.seq_id[i][0];
        if (!valid(s)) {
            return no(format("token %d of the batch is of sequence %d, the context has %zu", i, s, seqs.size()));
        }
        if (!seqs[s].poison.empty()) {
            return no(seqs[s].poison);
        }
    }

    std::vector<int32_t> behind(batch.n_tokens); // how many tokens of its sequence come after each
    std::vector<int32_t> left(seqs.size(), 0);   // of each sequence, how many have no ubatch yet
    for (int32_t i = batch.n_tokens - 1; i >= 0; --i) {
        behind[i] = left[batch.seq_id[i][0]]++;
    }
    // How many neighbours in the batch, from the first token without a ubatch on, are each the last of their sequence: they have a graph together,
    // which reads the weights once for all of them.
    const auto last_ones = [&] {
        const auto has_ubatch = [&](int32_t i) { return behind[i] >= left[batch.seq_id[i][0]]; };
        int32_t first = 0;
        while (first < batch.n_tokens && has_ubatch(first)) {
            ++first;
        }
        int32_t end = first;
        while (end < batch.n_tokens && end - first < (int32_t) n_ubatch && !has_ubatch(end) && behind[end] == 0) {
            ++end;
        }
        return end - first;
    };
    if (!on_device) {
        const auto why = reserve_scratch(1);
        if (!why.empty()) {
            return no(why);
        }
    }
    bool together = !on_device && groups(); // on the device a graph has the tensors of one sequence

    balloc.split_reset();
    std::vector<llama_ubatch> ubatches;
    std::vector<int64_t>      next(seqs.size(), -1);
    while (true) {
        const int32_t n = together ? last_ones() : 0;
        if (n > 1) {
            const auto why = reserve_scratch(n);
            if (!why.empty()) {
                together = false;
                if (!warned_together) {
                    warned_together = true;
                    LLAMA_LOG_WARN("lesskv: sequences decode one after the other: %s\n", why.c_str());
                }
            }
        }
        auto ub = n > 1 && together ? balloc.split_simple(n) : balloc.split_seq(n_ubatch);
        if (ub.n_tokens == 0) {
            break;
        }
        for (uint32_t i = 0; i < ub.n_tokens; ++i) {
            const llama_seq_id s = ub.seq_id[i][0];
            if (next[s] < 0) {
                const llama_pos end = pos_max(seqs[s]);
                next[s] = end < 0 ? ub.pos[i] : end + INT64_C(1);
            }
            if (!on_a_line(ub, i)) {
                return no(format("an embedding of sequence %d has the positions %d, %d, %d, as those of images have: LESS serves text, whose tokens have one position each; turn LESS off for images",
                            s, ub.pos[i], ub.pos[ub.n_tokens + i], ub.pos[2*ub.n_tokens + i]));
            }
            if (ub.pos[i] != next[s]) {
                return no(format("the tokens of sequence %d must be in order: position %d where %lld was expected", s, ub.pos[i], (long long) next[s]));
            }
            if (ub.pos[i] < 0 || ub.pos[i] == INT32_MAX) { // what comes after the last would have no number
                return no(format("position %d of sequence %d: they go from 0 to %d", ub.pos[i], s, INT32_MAX - 1));
            }
            next[s]++;
            left[s]--;
        }
        ubatches.push_back(std::move(ub));
    }
    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        return no("the batch could not be split into micro-batches");
    }

    for (llama_seq_id s = 0; valid(s); ++s) {
        if (next[s] < 0) {
            continue; // it has no token in the batch
        }
        if (seqs[s].caches.empty() && !make(seqs[s])) {
            return no(error);
        }
        if (on_device && next[s] > lesskv_device::max_pos) {
            return no(format("LESS on the device counts %d positions, sequence %d has more: keep the cache in main memory", lesskv_device::max_pos, s));
        }
        if (adapter && adapter->bytes > 0 && !warned_context && next[s] > (int64_t) adapter->context) {
            warned_context = true;
            LLAMA_LOG_WARN("%s: the adapter was trained on contexts of %u tokens, this sequence is longer\n", __func__, adapter->context);
        }
    }

    error.clear();
    return std::make_unique<lesskv_memory_context>(this, std::move(ubatches));
}

void lesskv_memory::note_sizing() {
    if (sized) {
        config_error = nullptr; // the context is there, and the configuration the caller's again
    }
    sized = true;
}

llama_memory_context_ptr lesskv_memory::init_full() {
    note_sizing();
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_SUCCESS);
}

llama_memory_context_ptr lesskv_memory::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_NO_UPDATE);
}

bool lesskv_memory::apply(const llama_ubatch & ubatch) {
    std::vector<flight> now;
    for (uint32_t i = 0; i < ubatch.n_tokens; i += ubatch.n_seq_tokens) {
        const llama_seq_id s = ubatch.seq_id[i][0];
        const auto & seq = seqs[s];

        int64_t seen = -1;
        for (const auto & c : seq.caches) {
            if (c) {
                seen = stats_of(c.get()).seen;
                break;
            }
        }
        if (!seq.poison.empty()) {
            return fail(seq.poison);
        }
        if (seen < 0 || !consistent(seq, seen)) {
            poison(s, "its layers have seen different numbers of tokens");
            return false;
        }
        if (on_device && !take_seat(s)) {
            return false;
        }
        now.push_back({ s, seen, seen + ubatch.n_seq_tokens, ubatch.pos[i], (int32_t) ubatch.n_seq_tokens });
    }
    in_flight = std::move(now);
    return true;
}

void lesskv_memory::done() {
    in_flight.clear();
}

void lesskv_memory::settle() noexcept {
    for (const auto & f : in_flight) {
        if (f.whole || consistent(seqs[f.seq], f.seen)) {
            continue;
        }
        try {
            poison(f.seq, "its last decode failed half-way");
        } catch (...) {
            seqs[f.seq].poison = "no memory"; // it takes none
        }
    }
    in_flight.clear();
}

void lesskv_memory::note_status(llama_seq_id seq_id, const lesskv_memory_layer & l, lesskv_status status) {
    if (status == LESSKV_OK) {
        return;
    }
    std::lock_guard<std::mutex> lock(failing);
    for (auto & f : in_flight) {
        if (f.seq == seq_id && f.status == LESSKV_OK) {
            f.status = status;
            f.il     = layers[l.i].il;
        }
    }
}

int32_t lesskv_memory::seat_of(const llama_ubatch & ubatch) const {
    return ubatch.seq_id && ubatch.seq_id[0] ? std::max(seqs[ubatch.seq_id[0][0]].seat, 0) : 0;
}

void lesskv_memory::begin(llama_seq_id seq_id, const lesskv_device_inputs & graph) {
    check       = graph.check;
    sched       = graph.sched;
    n_begun     = n_begun % lesskv_device::max_pos + 1;
    seqs[seq_id].at_work = true;
}

int32_t lesskv_memory::in_use(llama_seq_id seq_id, bool window) const {
    for (const auto & l : layers) {
        const auto * c = cache(seq_id, l.i);
        if (c && (l.params.n_swa > 0) == window) {
            return (int32_t) stats_of(c).kept;
        }
    }
    return 0;
}

// A graph's last node has the number of the micro-batch: or it ended before, or a state is not finite and so is that.
void lesskv_memory::end() {
    float got;
    ggml_backend_sched_synchronize(sched);
    ggml_backend_tensor_get(check, &got, 0, sizeof(got));
    const auto & f = in_flight[0]; // on the device there is one
    auto & seq = seqs[f.seq];
    for (const auto & l : layers) {
        if (!std::isfinite(got) && !dev->finite(seq.seat, l.i)) {
            note_status(f.seq, l, LESSKV_ERR_FINITE);
        }
    }
    if (got != number()) {
        return;
    }
    for (const auto & c : seq.caches) {
        if (c) {
            lesskv_cache_count(c.get(), f.pos, f.n_tokens);
        }
    }
    seq.at_work = false;
    seq.ahead   = true;
}

bool lesskv_memory::computed() {
    if (on_device && !in_flight.empty()) {
        end();
    }
    std::vector<flight> others;
    for (const auto & f : in_flight) {
        if (f.status != LESSKV_OK) {
            status = f.status;
            poison(f.seq, format("layer %d: %s", f.il, lesskv_status_str(status)));
        } else if (!consistent(seqs[f.seq], f.end)) {
            poison(f.seq, "the graph of its last decode ended before its end: cb_eval says so by returning false");
        } else {
            others.push_back(f);
            others.back().whole = true;
        }
    }
    if (others.size() == in_flight.size()) {
        return true;
    }
    in_flight = std::move(others); // of the rest it is said; llama_decode takes back what it can
    return false;
}

bool lesskv_memory_context::apply() {
    return ubatches.empty() || mem->apply(ubatches[i]);
}

bool lesskv_memory_context::next() {
    mem->done();
    return ++i < ubatches.size();
}
