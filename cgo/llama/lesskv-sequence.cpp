// lesskv-sequence.cpp: the operations on sequences, and what of them a folded cache refuses.

#include "lesskv-memory.h"

#include "llama-impl.h"

#include <algorithm>
#include <limits>

bool lesskv_memory::valid(llama_seq_id seq_id) const {
    return seq_id >= 0 && (size_t) seq_id < seqs.size();
}

lesskv_cache * lesskv_memory::cache(llama_seq_id seq_id, size_t i) const {
    if (!valid(seq_id) || i >= seqs[seq_id].caches.size()) {
        return nullptr;
    }
    return seqs[seq_id].caches[i].get();
}

bool lesskv_memory::make(sequence & seq) {
    std::vector<cache_ptr> caches(layers.size());
    for (const auto & l : layers) {
        if (!l.used || l.shares) {
            continue;
        }
        lesskv_cache * c = nullptr;
        const auto status = lesskv_cache_new(&c, &l.params);
        if (status != LESSKV_OK) {
            return fail(format("cannot make the cache of layer %d: %s", l.il, lesskv_status_str(status)));
        }
        caches[l.i].reset(c);
    }
    seq.caches = std::move(caches);
    return true;
}

bool lesskv_memory::home(const sequence & seq) const {
    if (seq.at_work) {
        return fail("its last decode failed half-way, and what the device holds of the sequence is of no use: clear it");
    }
    if (!seq.ahead) {
        return true;
    }
    try {
        for (const auto & l : layers) {
            if (seq.caches[l.i] && !l.shares) {
                dev->download(seq.seat, l.i, seq.caches[l.i].get());
            }
        }
    } catch (const std::exception & e) {
        return fail(e.what());
    }
    seq.ahead = false;
    return true;
}

bool lesskv_memory::take_seat(llama_seq_id seq_id) {
    auto & seq = seqs[seq_id];
    seq.used = ++n_used;
    if (seq.seat >= 0) {
        return true;
    }
    std::vector<sequence *> in(dev->seats());
    for (auto & s : seqs) {
        if (s.seat >= 0) {
            in[s.seat] = &s;
        }
    }
    int32_t seat = 0; // a free one, or that of the sequence that has not decoded for longest
    for (int32_t i = 1; i < dev->seats() && in[seat]; ++i) {
        seat = !in[i] || in[i]->used < in[seat]->used ? i : seat;
    }
    if (auto * last = in[seat]) {
        if (!last->at_work && !home(*last)) { // or there is nothing to bring
            return false;
        }
        last->seat = -1;
    }
    try {
        for (const auto & l : layers) {
            if (seq.caches[l.i] && !l.shares) {
                dev->upload(seat, l.i, seq.caches[l.i].get());
            }
        }
    } catch (const std::exception & e) {
        return fail(e.what());
    }
    seq.seat = seat;
    return true;
}

bool lesskv_memory::consistent(const sequence & seq, int64_t seen) const {
    if (seq.at_work) {
        return false;
    }
    for (const auto & c : seq.caches) {
        if (c && stats_of(c.get()).seen != seen) {
            return false;
        }
    }
    return true;
}

llama_pos lesskv_memory::pos_max(const sequence & seq) const {
    llama_pos res = -1;
    for (const auto & c : seq.caches) {
        if (c) {
            res = std::max(res, stats_of(c.get()).pos_max);
        }
    }
    return res;
}

// The lowest position to which a layer can be cut back. Of a sliding window it is the one whose own window is still held.
static int64_t lowest_cut(const lesskv_memory_layer & l, const lesskv_stats & s) {
    return l.params.n_swa > 0 && s.folded > 0 ? s.pos_min + INT64_C(-1) + l.params.n_swa : s.pos_min;
}

// The same of the sequence.
llama_pos lesskv_memory::pos_min(const sequence & seq) const {
    if (seq.at_work || !home(seq)) {
        return pos_max(seq); // nothing is cut from it
    }
    llama_pos res = -1;
    for (const auto & l : layers) {
        const auto * c = l.i < seq.caches.size() ? seq.caches[l.i].get() : nullptr;
        if (!c) {
            continue;
        }
        const auto s = stats_of(c);
        res = std::max(res, (llama_pos) std::min<int64_t>(s.pos_max, lowest_cut(l, s)));
    }
    return res;
}

bool lesskv_memory::can_cut(const sequence & seq, llama_pos p0) const {
    for (const auto & l : layers) {
        const auto * c = l.i < seq.caches.size() ? seq.caches[l.i].get() : nullptr;
        if (!c) {
            continue;
        }
        const auto s = stats_of(c);
        if (s.folded > 0 && p0 < lowest_cut(l, s)) {
            return false;
        }
    }
    return true;
}

bool lesskv_memory::can_cut_beside(llama_seq_id seq_id, llama_pos p0) const {
    GGML_UNUSED(seq_id);
    GGML_UNUSED(p0);
    return true;
}

// A poisoned sequence says that it is empty: llama_decode compares positions before it asks for a batch, and would answer
// that they are wrong where the reason is another.
llama_pos lesskv_memory::seq_pos_min(llama_seq_id seq_id) const {
    return valid(seq_id) && seqs[seq_id].poison.empty() ? pos_min(seqs[seq_id]) : -1;
}

llama_pos lesskv_memory::seq_pos_max(llama_seq_id seq_id) const {
    return valid(seq_id) && seqs[seq_id].poison.empty() ? pos_max(seqs[seq_id]) : -1;
}

void lesskv_memory::poison(llama_seq_id seq_id, const std::string & why) {
    seqs[seq_id].poison = format("sequence %d refuses to decode until it is cleared: %s", seq_id, why.c_str());
    fail(seqs[seq_id].poison);
}

void lesskv_memory::clear(bool data) {
    GGML_UNUSED(data);
    for (auto & seq : seqs) {
        seq = {};
    }
    in_flight.clear();
    error.clear();
}

bool lesskv_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= (llama_seq_id) seqs.size()) {
        return fail(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
    }
    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? (llama_seq_id) seqs.size() : seq_id + 1;

    const auto max = std::numeric_limits<llama_pos>::max();
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? max : p1;

    const auto clears = [&](const sequence & seq) { // the whole sequence goes
        const auto end = pos_max(seq);
        return p0 == 0 && p1 > (end < 0 && !seq.poison.empty() ? max - 1 : end); // nobody knows where it would have ended
    };

    // llama_decode takes back a graph that failed in this way, sequence by sequence, and ignores the answer
    for (size_t i = 0; i < in_flight.size();) {
        const flight f = in_flight[i];
        if (f.seq < s0 || f.seq >= s1) {
            ++i;
            continue;
        }
        in_flight.erase(in_flight.begin() + i);
        if (clears(seqs[f.seq])) {
            continue;
        }
        if (f.whole && !(can_cut_beside(f.seq, p0) && can_cut(seqs[f.seq], p0))) {
            return false; // it is as good with its token
        }
        if (!f.whole && !consistent(seqs[f.seq], f.seen)) {
            poison(f.seq, "its last decode failed or was aborted half-way, and what its layers took in cannot be taken back");
        }
    }

    for (llama_seq_id s = s0; s < s1; ++s) {
        const auto & seq = seqs[s];
        if (clears(seq) || p0 > pos_max(seq) || p0 >= p1) {
            continue;
        }
        if (!seq.poison.empty()) {
            return fail(seq.poison);
        }
        if (p1 <= pos_max(seq)) {
            return fail(format("positions %d to %d of sequence %d can't be removed: only the end of a sequence can be cut off, and it ends at %d",
                        p0, p1, s, pos_max(seq)));
        }
        if (!home(seq)) {
            return false;
        }
        if (!can_cut_beside(s, p0)) {
            return fail(format("sequence %d can't be cut back to position %d: its recurrent layers hold the state of its end, position %d, and no longer that one",
                        s, p0, pos_max(seq)));
        }
        if (!can_cut(seq, p0)) {
            return fail(format("sequence %d can't be cut back to position %d: what lies before %d has been folded into the state",
                        s, p0, pos_min(seq)));
        }
    }

    for (llama_seq_id s = s0; s < s1; ++s) {
        auto & seq = seqs[s];
        if (clears(seq)) {
            seq = {};
        } else if (p0 <= pos_max(seq) && p0 < p1) {
            seq.seat = -1; // and goes there anew
            for (auto & c : seq.caches) {
                if (c && lesskv_cache_cut(c.get(), p0) != LESSKV_OK) {
                    poison(s, "it could be cut in some layers only");
                    return false;
                }
            }
        }
    }
    return true;
}

void lesskv_memory::seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    if (src == dst) {
        return;
    }
    if (!valid(dst)) {
        fail(format("there is no sequence %d, the context has %zu", dst, seqs.size()));
        return;
    }
    if (!valid(src)) {
        poison(dst, format("it was to become a copy of sequence %d, which does not exist", src));
        return;
    }
    const auto & from = seqs[src];
    auto       & to   = seqs[dst];

    if (!from.poison.empty()) {
        poison(dst, format("it was to become a copy of sequence %d, which is refused itself", src));
        return;
    }
    const llama_pos end = pos_max(from);
    if (end < 0) {
        to = {};
        return;
    }
    if (p0 > 0 || (p1 >= 0 && p1 <= end)) {
        poison(dst, format("it was to become a copy of positions %d to %d of sequence %d, and only a whole sequence can be copied", p0, p1, src));
        return;
    }
    sequence copy;
    if (!home(from)) {
        poison(dst, format("sequence %d could not be read from its device: %s", src, std::string(error).c_str()));
        return;
    }
    if (!make(copy)) {
        poison(dst, format("no memory for a copy of sequence %d", src));
        return;
    }
    for (size_t i = 0; i < copy.caches.size(); ++i) {
        if (copy.caches[i] && lesskv_cache_copy(copy.caches[i].get(), from.caches[i].get()) != LESSKV_OK) {
            poison(dst, format("sequence %d could not be copied to it", src));
            return;
        }
    }
    to = std::move(copy);
}

void lesskv_memory::seq_keep(llama_seq_id seq_id) {
    for (size_t s = 0; s < seqs.size(); ++s) {
        if ((llama_seq_id) s != seq_id) {
            seqs[s] = {};
        }
    }
}

// Whether no token of the sequence has a position from p0 on and before p1.
bool lesskv_memory::nothing_in(const sequence & seq, llama_pos p0, llama_pos p1) const {
    p0 = std::max(p0, 0);
    return p0 > pos_max(seq) || (p1 >= 0 && p1 <= p0);
}

void lesskv_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (!valid(seq_id) || shift == 0 || nothing_in(seqs[seq_id], p0, p1)) {
        return;
    }
    poison(seq_id, "its positions were to be shifted, which a folded cache cannot do");
}

void lesskv_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (!valid(seq_id) || d == 1 || nothing_in(seqs[seq_id], p0, p1)) {
        return;
    }
    poison(seq_id, "its positions were to be divided, which a folded cache cannot do");
}
