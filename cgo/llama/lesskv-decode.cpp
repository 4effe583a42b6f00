// lesskv-decode.cpp: a batch becomes micro-batches of one sequence each, and a failed one is known.

#include "lesskv-memory.h"

#include "llama-impl.h"

#include <cmath>
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

    if (in_flight >= 0) { // a decode that ended in an exception
        if (!consistent(seqs[in_flight], in_flight_seen)) {
            poison(in_flight, "its last decode failed half-way");
        }
        in_flight = -1;
    }
    if (!on_device && !reserve_scratch()) {
        return no(error);
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

    balloc.split_reset();
    std::vector<llama_ubatch> ubatches;
    std::vector<llama_pos>    next(seqs.size(), -1);
    while (true) {
        auto ub = balloc.split_seq(n_ubatch);
        if (ub.n_tokens == 0) {
            break;
        }
        const llama_seq_id s = ub.seq_id[0][0];
        if (next[s] < 0) {
            const llama_pos end = pos_max(seqs[s]);
            next[s] = end < 0 ? ub.pos[0] : end + 1;
        }
        for (uint32_t i = 0; i < ub.n_tokens; ++i) {
            if (!on_a_line(ub, i)) {
                return no(format("an embedding of sequence %d has the positions %d, %d, %d, as those of images have: LESS serves text, whose tokens have one position each; turn LESS off for images",
                            s, ub.pos[i], ub.pos[ub.n_tokens + i], ub.pos[2*ub.n_tokens + i]));
            }
            if (ub.pos[i] != next[s]) {
                return no(format("the tokens of sequence %d must be in order: position %d where %d was expected", s, ub.pos[i], next[s]));
            }
            next[s]++;
        }
        ubatches.push_back(std::move(ub));
    }
    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        return no("the batch could not be split into micro-batches");
    }

    for (const auto & ub : ubatches) {
        auto & seq = seqs[ub.seq_id[0][0]];
        if (seq.caches.empty() && !make(seq)) {
            return no(error);
        }
        if (on_device && next[ub.seq_id[0][0]] > lesskv_device::max_pos) {
            return no(format("LESS on the device counts %d positions, sequence %d has more: keep the cache in main memory", lesskv_device::max_pos, ub.seq_id[0][0]));
        }
        if (adapter && adapter->bytes > 0 && !warned_context && (uint32_t) next[ub.seq_id[0][0]] > adapter->context) {
            warned_context = true;
            LLAMA_LOG_WARN("%s: the adapter was trained on contexts of %u tokens, this sequence is longer\n", __func__, adapter->context);
        }
    }

    error.clear();
    return std::make_unique<lesskv_memory_context>(this, std::move(ubatches));
}

llama_memory_context_ptr lesskv_memory::init_full() {
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_SUCCESS);
}

llama_memory_context_ptr lesskv_memory::init_update(llama_context * lctx, bool optimize) {
    GGML_UNUSED(lctx);
    GGML_UNUSED(optimize);
    return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_NO_UPDATE);
}

bool lesskv_memory::apply(const llama_ubatch & ubatch) {
    const llama_seq_id s = ubatch.seq_id[0][0];
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
    in_flight      = s;
    in_flight_seen = seen;
    in_flight_end  = seen + ubatch.n_tokens;
    in_flight_pos    = ubatch.pos[0];
    in_flight_tokens = (int32_t) ubatch.n_tokens;
    failed         = 0;
    return true;
}

void lesskv_memory::done() {
    in_flight = -1;
}

void lesskv_memory::note_status(const lesskv_memory_layer & l, lesskv_status status) {
    uint64_t none = 0;
    if (status != LESSKV_OK) {
        failed.compare_exchange_strong(none, (uint64_t) l.i << 32 | (uint64_t) status);
    }
}

int32_t lesskv_memory::seat_of(const llama_ubatch & ubatch) const {
    return ubatch.seq_id && ubatch.seq_id[0] ? std::max(seqs[ubatch.seq_id[0][0]].seat, 0) : 0;
}

int32_t lesskv_memory::begin(llama_seq_id seq_id, const lesskv_device_inputs & graph) {
    auto & seq  = seqs[seq_id];
    check       = graph.check;
    sched       = graph.sched;
    n_begun     = n_begun % lesskv_device::max_pos + 1;
    seq.at_work = true;
    for (const auto & c : seq.caches) {
        if (c) {
            return (int32_t) stats_of(c.get()).kept; // in all layers and heads
        }
    }
    return 0;
}

// A graph's last node has the number of the micro-batch: or it ended before, or a state is not finite and so is that.
void lesskv_memory::end() {
    float got;
    ggml_backend_sched_synchronize(sched);
    ggml_backend_tensor_get(check, &got, 0, sizeof(got));
    auto & seq = seqs[in_flight];
    for (const auto & l : layers) {
        if (!std::isfinite(got) && !dev->finite(seq.seat, l.i)) {
            note_status(l, LESSKV_ERR_FINITE);
        }
    }
    if (got != number()) {
        return;
    }
    for (const auto & c : seq.caches) {
        if (c) {
            lesskv_cache_count(c.get(), in_flight_pos, in_flight_tokens);
        }
    }
    seq.at_work = false;
    seq.ahead   = true;
}

bool lesskv_memory::computed() {
    if (on_device && in_flight >= 0) {
        end();
    }
    const uint64_t what = failed.exchange(0);
    if (what == 0 && in_flight >= 0 && !consistent(seqs[in_flight], in_flight_end)) {
        poison(in_flight, "the graph of its last decode ended before its end: cb_eval says so by returning false");
        in_flight = -1;
        return false;
    }
    if (what == 0) {
        return true;
    }
    status = (lesskv_status) (uint32_t) what;
    poison(in_flight, format("layer %d: %s", layers[what >> 32].il, lesskv_status_str(status)));
    in_flight = -1; // said already; llama_decode takes back what it can
    return false;
}

bool lesskv_memory_context::apply() {
    return ubatches.empty() || mem->apply(ubatches[i]);
}

bool lesskv_memory_context::next() {
    mem->done();
    return ++i < ubatches.size();
}
