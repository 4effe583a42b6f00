#include "lesskv-hybrid.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>

lesskv_hybrid::lesskv_hybrid(
        const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
        const layer_filter_cb & attends, const layer_filter_cb & recurs)
    : lesskv_memory(model, params, cparams, attends ? attends : [&](int32_t il) { return !model.hparams.is_recr(il); }) {
    try { // f32, and one state for each sequence, as llama.cpp makes it
        recr = std::make_unique<llama_memory_recurrent>(model, GGML_TYPE_F32, GGML_TYPE_F32, cparams.offload_kqv,
                std::max<uint32_t>(1, cparams.n_seq_max), cparams.n_seq_max, cparams.n_rs_seq,
                recurs ? recurs : [&](int32_t il) { return model.hparams.is_recr(il); });
    } catch (const std::exception & e) {
        refuse(format("no memory for the states of the recurrent layers, of %u sequences and %u tokens to go back to each: %s",
                    cparams.n_seq_max, cparams.n_rs_seq, e.what()));
    }
    seqs.resize(cparams.n_seq_max); // a unified cache has no more recurrent states than that either
    newest.resize(seqs.size());
}

llama_memory_context_ptr lesskv_hybrid::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    auto attn = lesskv_memory::init_batch(balloc, n_ubatch, embd_all);
    if (attn->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        return attn;
    }
    const auto & ubatches = static_cast<const lesskv_memory_context *>(attn.get())->micro_batches();
    if (!recr->prepare(ubatches)) {
        fail("the recurrent layers have no room for the sequences of this batch");
        return std::make_unique<lesskv_memory_context>(this, LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return std::make_unique<lesskv_hybrid_context>(this, ubatches);
}

llama_memory_context_ptr lesskv_hybrid::init_full() {
    note_sizing();
    return std::make_unique<lesskv_hybrid_context>(this);
}

bool lesskv_hybrid_context::apply() {
    if (!lesskv_memory_context::apply()) {
        return false;
    }
    if (!micro_batches().empty()) {
        recr.apply();
        hybrid->begun(get_ubatch());
    }
    return true;
}

bool lesskv_hybrid_context::next() {
    recr.next();
    return lesskv_memory_context::next();
}

void lesskv_hybrid::begun(const llama_ubatch & ubatch) {
    newest[ubatch.seq_id[0][0]] = ubatch.n_tokens; // of one sequence: they have no graph together
    in_flight[0].seen = -1; // a recurrent state that has gone on is not told from one that has not
}

void lesskv_hybrid::forget(llama_seq_id seq_id) {
    recr->seq_rm(seq_id, -1, -1);
    newest[seq_id] = 0;
}

void lesskv_hybrid::clear(bool data) {
    lesskv_memory::clear(data);
    recr->clear(data);
    std::fill(newest.begin(), newest.end(), 0);
}

// llama_memory_recurrent says yes to more than it can do: to states of micro-batches before the last, which have been written over,
// and where sequences share a state, whose position it would move for all of them.
bool lesskv_hybrid::can_cut_beside(llama_seq_id seq_id, llama_pos p0) const {
    const int32_t tail = recr->cells[seq_id].tail;
    if (tail < 0) {
        return true;
    }
    const auto & cell = recr->cells[tail];
    const int64_t back = (int64_t) cell.pos - p0 + 1;
    return back <= 0 ||
        (p0 > 0 && back <= recr->n_rs_seq && back < newest[seq_id] && recr->rs_idx[seq_id] == 0 && cell.seq_id.size() == 1);
}

bool lesskv_hybrid::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!lesskv_memory::seq_rm(seq_id, p0, p1)) {
        return false;
    }
    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? (llama_seq_id) seqs.size() : seq_id + 1;
    for (llama_seq_id s = s0; s < s1; ++s) {
        if (!seqs[s].poison.empty()) {
            continue; // it has its reason
        }
        if (seqs[s].caches.empty()) {
            forget(s);
        } else if (recr->seq_pos_max(s) > pos_max(seqs[s]) && !recr->seq_rm(s, pos_max(seqs[s]) + 1, -1)) {
            poison(s, "it could be cut in the layers that attend only");
            return false;
        }
    }
    return true;
}

void lesskv_hybrid::seq_cp(llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    lesskv_memory::seq_cp(src, dst, p0, p1);
    if (src == dst || !valid(dst) || !seqs[dst].poison.empty()) {
        return;
    }
    if (seqs[dst].caches.empty()) {
        forget(dst);
        return;
    }
    recr->seq_cp(src, dst, -1, -1); // one state for both, until either decodes
    recr->rs_idx[dst] = recr->rs_idx[src];
    newest[dst]       = newest[src];
}

void lesskv_hybrid::seq_keep(llama_seq_id seq_id) {
    lesskv_memory::seq_keep(seq_id);
    for (llama_seq_id s = 0; s < (llama_seq_id) seqs.size(); ++s) {
        if (s != seq_id) {
            forget(s);
        }
    }
}

llama_pos lesskv_hybrid::seq_pos_min(llama_seq_id seq_id) const {
    const llama_pos pos = lesskv_memory::seq_pos_min(seq_id);
    return pos < 0 ? pos : std::max(pos, recr->seq_pos_min(seq_id));
}

llama_pos lesskv_hybrid::seq_pos_max(llama_seq_id seq_id) const {
    const llama_pos pos = lesskv_memory::seq_pos_max(seq_id);
    return pos < 0 ? pos : std::min(pos, recr->seq_pos_max(seq_id));
}

std::map<ggml_backend_buffer_type_t, size_t> lesskv_hybrid::memory_breakdown() const {
    auto res = lesskv_memory::memory_breakdown();
    for (const auto & [type, size] : recr->memory_breakdown()) {
        res[type] += size;
    }
    return res;
}

void lesskv_hybrid::info(lesskv_info & out) const {
    lesskv_memory::info(out);
    for (const auto & [type, size] : recr->memory_breakdown()) {
        out.bytes_recurrent += size;
    }
}

// Saved states: what lesskv_memory writes, then the recurrent state of each of its sequences, in their order. Not in the form
// of llama_memory_recurrent, which clears before it has read, and ends the process at some of what a damaged file can say.

static const uint32_t STATE_MAGIC   = 0x724b534c; // "LSKr"
static const uint32_t STATE_VERSION = 1;

namespace {
struct row_header {
    uint32_t magic, version;
    int32_t  pos;      // of the last token, -1: the sequence is empty, and nothing follows
    uint32_t pad;
    uint64_t size;     // bytes that follow
    uint64_t checksum; // of those
};
}

static uint64_t checksum(const std::vector<uint8_t> & data) { // FNV-1a
    uint64_t h = 14695981039346656037u;
    for (const uint8_t b : data) {
        h = (h ^ b)*1099511628211u;
    }
    return h;
}

template <class F>
void lesskv_hybrid::each_tensor(F f) const {
    for (const auto * part : { &recr->r_l, &recr->s_l, &recr->p_l }) {
        for (ggml_tensor * t : *part) {
            if (t) {
                f(t, ggml_row_size(t->type, t->ne[0]));
            }
        }
    }
}

size_t lesskv_hybrid::row_size() const {
    size_t size = 0;
    each_tensor([&](ggml_tensor *, size_t n) { size += n; });
    return size;
}

lesskv_hybrid::row lesskv_hybrid::read_row(llama_seq_id seq_id) const {
    const int32_t tail = recr->cells[seq_id].tail;
    const int32_t src  = recr->cells[tail].src; // where the state is that the cell stands for
    const size_t  i    = (size_t) recr->rs_idx[seq_id]*recr->size + (src >= 0 ? src : tail);
    row    res(row_size());
    size_t at = 0;
    each_tensor([&](ggml_tensor * t, size_t n) {
        if (n > 0) {
            ggml_backend_tensor_get(t, res.data() + at, i*n, n);
        }
        at += n;
    });
    return res;
}

void lesskv_hybrid::place_row(llama_seq_id seq_id, llama_pos pos, const row & data) {
    forget(seq_id);
    if (pos < 0) {
        return;
    }
    uint32_t i = 0; // there is a free one: as many cells as sequences, and no sequence has two
    while (!recr->cells[i].is_empty()) {
        ++i;
    }
    auto & cell = recr->cells[i];
    cell.pos    = pos;
    cell.src    = (int32_t) i;
    cell.seq_id = { seq_id };
    recr->cells[seq_id].tail = (int32_t) i;
    recr->used++;

    size_t at = 0;
    each_tensor([&](ggml_tensor * t, size_t n) {
        if (n > 0) {
            ggml_backend_tensor_set(t, data.data() + at, i*n, n);
        }
        at += n;
    });
}

void lesskv_hybrid::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    lesskv_memory::state_write(io, seq_id, flags);
    try {
        for (const uint32_t s : saved(seq_id)) {
            row_header h = { STATE_MAGIC, STATE_VERSION, pos_max(seqs[s]), 0, 0, 0 };
            row data;
            if (h.pos >= 0) {
                data = read_row(s);
            }
            h.size     = data.size();
            h.checksum = checksum(data);
            io.write(&h, sizeof(h));
            if (!data.empty()) {
                io.write(data.data(), data.size());
            }
        }
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}

uint64_t lesskv_hybrid::state_size(llama_seq_id seq_id) const {
    return lesskv_memory::state_size(seq_id) + sizeof(row_header) + (pos_max(seqs[seq_id]) >= 0 ? row_size() : 0);
}

void lesskv_hybrid::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    try {
        check_flags(flags);
        auto loaded = read_sequences(io, seq_id);
        std::vector<std::pair<llama_pos, row>> states;
        for (const auto & [s, seq] : loaded) {
            row_header h;
            io.read(&h, sizeof(h));
            if (h.magic != STATE_MAGIC || h.version != STATE_VERSION || h.pad != 0) {
                throw std::runtime_error(format("the saved state of sequence %u is damaged, or of another version, where its recurrent layers begin", s));
            }
            if (h.pos != pos_max(seq) || h.size != (h.pos < 0 ? 0 : row_size())) {
                throw std::runtime_error(format("the saved state of sequence %u is damaged: its recurrent layers are at position %d with %llu bytes, %d and %zu were expected",
                            s, h.pos, (unsigned long long) h.size, pos_max(seq), row_size()));
            }
            row data(h.size);
            if (!data.empty()) {
                io.read(data.data(), data.size());
            }
            if (checksum(data) != h.checksum) {
                throw std::runtime_error(format("the saved state of sequence %u is damaged in its recurrent layers", s));
            }
            states.emplace_back(h.pos, std::move(data));
        }

        // all of it is good: from here nothing fails
        if (seq_id < 0) {
            recr->clear(false);
            std::fill(newest.begin(), newest.end(), 0);
        }
        for (size_t i = 0; i < loaded.size(); ++i) {
            place_row(loaded[i].first, states[i].first, states[i].second);
        }
        replace(std::move(loaded), seq_id);
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}
