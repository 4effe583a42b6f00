// worker_bench.h: what lesskv bench asks of the worker and verification does not.

#pragma once

#include "worker_wire.h"

#include "llama.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using wire::refuse;

// A state of one sequence in the layout of llama_kv_cache::state_write (v0.5.0), made longer: cell i of n is a copy of
// cell i % m of the m that there are, at position i. Speed does not depend on what keys and values are, only on how many.
class grower {
public:
    grower(const std::vector<uint8_t> & state, uint32_t n) : in(state), n(n) {}

    std::vector<uint8_t> grow() {
        copy<uint32_t>();     // a magic number
        copy<llama_seq_id>(); // whose it was
        while (at < in.size()) { // a cache with sliding windows is two of them
            const auto n_stream = copy<uint32_t>();
            for (uint32_t s = 0; s < n_stream; s++) {
                stream();
            }
        }
        return std::move(out);
    }

private:
    const std::vector<uint8_t> & in;
    std::vector<uint8_t>         out;
    const uint32_t               n;
    uint32_t                     m  = 0;
    size_t                       at = 0;

    const uint8_t * take(size_t size) {
        if (size > in.size() - at) {
            refuse("fill: this is not the cache layout that is known here");
        }
        const uint8_t * p = in.data() + at;
        at += size;
        return p;
    }

    template <typename T>
    T copy() {
        T v;
        const uint8_t * p = take(sizeof(v));
        memcpy(&v, p, sizeof(v));
        out.insert(out.end(), p, p + sizeof(v));
        return v;
    }

    template <typename T>
    void put(T v) {
        const auto * p = reinterpret_cast<const uint8_t *>(&v);
        out.insert(out.end(), p, p + sizeof(v));
    }

    void repeat(uint64_t row) {
        const uint8_t * p = take(size_t(m)*row);
        for (uint32_t i = 0; i < n; i += m) {
            out.insert(out.end(), p, p + std::min(m, n - i)*row);
        }
    }

    void stream() {
        const uint8_t * p = take(sizeof(m));
        memcpy(&m, p, sizeof(m));
        if (m == 0) {
            put(m);
            return;
        }
        put(n);
        out.reserve(out.size() + (in.size() - at)/m*n + 4096);
        constexpr size_t cell = 3*sizeof(int32_t); // position, one sequence, its number
        p = take(size_t(m)*cell);
        for (uint32_t i = 0; i < n; i++) {
            put(int32_t(i));
            out.insert(out.end(), p + sizeof(int32_t), p + cell);
        }
        const bool v_trans = copy<uint32_t>() != 0;
        const auto n_layer = copy<uint32_t>();
        for (uint32_t il = 0; il < n_layer; il++) {
            copy<int32_t>(); // type
            repeat(copy<uint64_t>());
        }
        for (uint32_t il = 0; il < n_layer; il++) {
            copy<int32_t>();
            if (!v_trans) {
                repeat(copy<uint64_t>());
                continue;
            }
            const auto size = copy<uint32_t>();
            const auto rows = copy<uint32_t>();
            for (uint32_t r = 0; r < rows; r++) {
                repeat(size);
            }
        }
    }
};

inline llama_ftype file_type(const std::string & name) {
    static const struct {
        const char * name;
        llama_ftype  type;
    } types[] = {
        { "F32",    LLAMA_FTYPE_ALL_F32 },
        { "F16",    LLAMA_FTYPE_MOSTLY_F16 },
        { "BF16",   LLAMA_FTYPE_MOSTLY_BF16 },
        { "Q4_0",   LLAMA_FTYPE_MOSTLY_Q4_0 },
        { "Q4_1",   LLAMA_FTYPE_MOSTLY_Q4_1 },
        { "Q5_0",   LLAMA_FTYPE_MOSTLY_Q5_0 },
        { "Q5_1",   LLAMA_FTYPE_MOSTLY_Q5_1 },
        { "Q8_0",   LLAMA_FTYPE_MOSTLY_Q8_0 },
        { "Q2_K",   LLAMA_FTYPE_MOSTLY_Q2_K },
        { "Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M },
        { "Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S },
        { "Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M },
        { "Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M },
        { "Q6_K",   LLAMA_FTYPE_MOSTLY_Q6_K },
        { "IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL },
    };
    std::string known;
    for (const auto & t : types) {
        if (name == t.name) {
            return t.type;
        }
        known += std::string(known.empty() ? "" : ", ") + t.name;
    }
    refuse("type=%.32s: want one of %s", name.c_str(), known.c_str());
}

// Microseconds of the two products of a prompt's attention by ggml's own ggml_mul_mat: keys [d, pairs, heads_kv] in f16 times
// queries [d, tokens, heads], and values [pairs, d, heads_kv] in f16 times weights [pairs, tokens, heads]; the median of rounds.
inline int64_t matmul_us(int64_t d, int64_t pairs, int64_t tokens, int64_t heads, int64_t heads_kv, int threads, int rounds) {
    const size_t floats = size_t(tokens*heads)*size_t(2*d + 2*pairs);
    const size_t halves = size_t(pairs*heads_kv)*size_t(2*d);
    // plan.work_size of ggml_graph_compute_with_ctx lies in the context too: src1 rounded to f16
    ggml_init_params params = { floats*sizeof(float)*2 + halves*2 + (size_t(16) << 20), nullptr, false };
    std::unique_ptr<ggml_context, void (*)(ggml_context *)> ctx(ggml_init(params), ggml_free);
    if (!ctx) {
        refuse("matmul: no memory");
    }
    ggml_tensor * k = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, d, pairs, heads_kv);
    ggml_tensor * v = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, pairs, d, heads_kv);
    ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, d, tokens, heads);
    ggml_tensor * w = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, pairs, tokens, heads);
    for (ggml_tensor * t : { k, v, q, w }) {
        if (t->type == GGML_TYPE_F32) {
            std::fill_n(static_cast<float *>(t->data), ggml_nelements(t), 0.5f);
        } else {
            std::fill_n(static_cast<uint16_t *>(t->data), ggml_nelements(t), uint16_t(0x3800));
        }
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, ggml_mul_mat(ctx.get(), k, q));
    ggml_build_forward_expand(graph, ggml_mul_mat(ctx.get(), v, w));

    ggml_cplan plan = ggml_graph_plan(graph, threads, nullptr);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    std::vector<int64_t> us;
    for (int i = 0; i <= rounds; i++) { // the first one warms up
        const int64_t start = ggml_time_us();
        if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) {
            refuse("matmul: ggml_graph_compute failed");
        }
        if (i > 0) {
            us.push_back(ggml_time_us() - start);
        }
    }
    std::nth_element(us.begin(), us.begin() + us.size()/2, us.end());
    return us[us.size()/2];
}

// Forgets the process's peak so far, where the system can (Linux).
inline void reset_peak() {
#ifdef __linux__
    if (FILE * f = fopen("/proc/self/clear_refs", "w")) {
        fputs("5", f);
        fclose(f);
    }
#endif
}

} // namespace bench
