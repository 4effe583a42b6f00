// worker_sequence.cpp: what the cache holds of a sequence, changed.

#include "worker.h"

namespace {

struct range { int32_t p0, p1; };

range range_of(request & req) {
    return { int32_t(req.integer("p0", -1, max_i32, -1)), int32_t(req.integer("p1", -1, max_i32, -1)) };
}

} // namespace

// llama.cpp aborts on shifting a cache that can't be. LESS answers for itself.
void worker::check_shift() const {
    const auto rope = llama_model_rope_type(model.get());
    if (!less_on && (!llama_memory_can_shift(cache()) || rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE)) {
        refuse("this cache can't be shifted");
    }
}

void worker::seq_rm(request & req, reply &) {
    const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1));
    const range r = range_of(req);
    req.done();
    if (!llama_memory_seq_rm(cache(), seq, r.p0, r.p1)) {
        throw failure(with_reason("seq_rm was refused"));
    }
}

void worker::seq_cp(request & req, reply &) {
    const int32_t from = seq_of(req, "from");
    const int32_t to   = seq_of(req, "to");
    const range r = range_of(req);
    req.done();
    if (!less_on && !unified && from != to && (r.p0 > 0 || r.p1 >= 0)) {
        refuse("a part of a sequence can't be copied unless kv_unified=1");
    }
    llama_memory_seq_cp(cache(), from, to, r.p0, r.p1);
}

void worker::seq_keep(request & req, reply &) {
    const int32_t seq = seq_of(req);
    req.done();
    llama_memory_seq_keep(cache(), seq);
}

void worker::seq_add(request & req, reply &) {
    const int32_t seq = seq_of(req);
    const range r = range_of(req);
    const int32_t delta = int32_t(req.integer("delta", -max_ctx, max_ctx));
    req.done();
    check_shift();
    llama_memory_seq_add(cache(), seq, r.p0, r.p1, delta);
}

void worker::seq_div(request & req, reply &) {
    const int32_t seq = seq_of(req);
    const range r = range_of(req);
    const int32_t by = int32_t(req.integer("by", 1, max_ctx));
    req.done();
    check_shift();
    llama_memory_seq_div(cache(), seq, r.p0, r.p1, by);
}

void worker::seq_pos(request & req, reply & out) {
    const int32_t seq = seq_of(req);
    req.done();
    out.set("min", llama_memory_seq_pos_min(cache(), seq));
    out.set("max", llama_memory_seq_pos_max(cache(), seq));
}

void worker::clear(request & req, reply &) {
    req.done();
    llama_memory_clear(cache(), true);
}
