// worker_bench.cpp: what lesskv bench asks for, with worker_bench.h.

#include "worker.h"

#include "worker_bench.h"

void worker::fill(request & req, reply &) {
    const int32_t seq = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
    const int64_t n   = req.integer("n", 1, llama_n_ctx(ctx.get()));
    req.done();
    if (less_on || !cache() || llama_memory_seq_pos_min(cache(), seq) != 0) {
        refuse("fill: want an unmodified cache that holds a sequence from position 0 on");
    }
    std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), seq));
    llama_state_seq_get_data(ctx.get(), state.data(), state.size(), seq);
    state = bench::grower(state, uint32_t(n)).grow();
    llama_memory_seq_rm(cache(), seq, -1, -1);
    if (llama_state_seq_set_data(ctx.get(), state.data(), state.size(), seq) != state.size()) {
        throw failure(with_reason("can't fill the cache"));
    }
}

void worker::quantize(request & req, reply &) {
    const std::string from = req.text("from");
    const std::string to   = req.text("to");
    auto params = llama_model_quantize_default_params();
    params.ftype   = bench::file_type(req.text("type"));
    params.nthread = int32_t(req.integer("threads", 1, max_threads, 1));
    req.done();
    if (llama_model_quantize(from.c_str(), to.c_str(), &params) != 0) {
        throw failure(with_reason("can't quantise " + from));
    }
}

void worker::matmul(request & req, reply & out) {
    const int64_t d        = req.integer("d",        1, 1 << 12);
    const int64_t pairs    = req.integer("pairs",    1, 1 << 20);
    const int64_t tokens   = req.integer("tokens",   1, 1 << 14);
    const int64_t heads_kv = req.integer("heads_kv", 1, 1 << 10);
    const int64_t heads    = req.integer("heads", heads_kv, 1 << 10);
    const int     threads  = int(req.integer("threads", 1, max_threads));
    const int     rounds   = int(req.integer("rounds", 1, 1000, 5));
    req.done();
    if (heads % heads_kv != 0 || tokens*heads*(2*d + 2*pairs) > int64_t(1) << 31) {
        refuse("matmul: %lld heads of %lld KV heads, or too large", (long long) heads, (long long) heads_kv);
    }
    out.set("us", bench::matmul_us(d, pairs, tokens, heads, heads_kv, threads, rounds));
}
