// level.h: the inner loops, as functions of a table. They are compiled once for what the compiler's flags allow and, on x86-64, once
// for each level above that (level_*.c); which table is used is found out when the first of them is needed, so that a program that was
// compiled for any machine is fast on each. Results depend on the level in their last bits.
//
// What is in a table is in level_*.h, over the vectors of vec.h.

#ifndef LESSKV_LEVEL_H
#define LESSKV_LEVEL_H

#include "policy.h"
#include "store.h"

#define LANES 16 // queries of a block; a multiple of every VW
#define PAD   32 // accumulators' rows are multiples of this many floats: two of the widest vectors
#define TILE  24 // rows that are converted at a time

// Of training's products: rows are packed in multiples of GEMM_M, columns in panels of GEMM_N.
#define GEMM_M 8
#define GEMM_N 16

// What follows a product in a learned kernel.
enum lesskv_then { LESSKV_GELU, LESSKV_GELU_ABS, LESSKV_ABS };

struct lesskv_level {
    const char * name;

    // as lesskv_to_f32
    void (*to_f32)(enum lesskv_type type, float * dst, const void * src, int64_t n);

    // Products. n: elements of a row. tile: TILE x round_up(n, PAD) floats. nq queries of prompts are blocks of LANES, the last one
    // with lanes to spare; a row is converted once for all of them. ld: floats from one block to the next.
    // out[q][row] = a[row] . x[q][n], for nq queries; ldx, ldo: floats from one query to the next
    void (*rows_few)(struct rows a, int32_t n, const float * x, size_t ldx, int32_t nq, float * out, size_t ldo);
    // out[block][row][LANES] = a[row] . x[block][n][LANES]
    void (*rows_block)(struct rows a, int32_t n, const float * x, int32_t nq, float * out, size_t ld, float * tile);
    // out[q][n] += sum over rows of p[q][row] a[row], for nq queries
    void (*cols_few)(struct rows a, int32_t n, const float * p, size_t ldp, int32_t nq, float * out, size_t ldo);
    // out[block][LANES][round_up(n, PAD)] += sum over rows of p[block][row][LANES] a[row], for the first nq lanes at least
    void (*cols_block)(struct rows a, int32_t n, const float * p, size_t ld, int32_t nq, float * out, float * tile);

    // x[n] = cap tanh(x / cap), n a multiple of LANES
    void (*soft_cap)(float * x, size_t n, float cap);
    // top = the largest of x[n], sum = the sum of exp(x - top), which x becomes; n a multiple of LANES. A NaN is in sum alone.
    void (*softmax)(float * x, int32_t n, float * top, float * sum);
    // the same of each lane of x[n][LANES]
    void (*softmax_block)(float * x, int32_t n, float * top, float * sum);
    // worth[n] joined by the sum, or the largest, of x[n][LANES] * inv[LANES]
    void (*worth_block)(enum lesskv_worth kind, const float * x, int32_t n, const float * inv, float * worth);
    // x[0][n] = the sum, or the largest, of share[a] * x[a][n] over the queries a, of each `tokens` those from `from` on; ld: floats from
    // one query to the next. n is rounded up to a multiple of LANES.
    void (*worth_few)(enum lesskv_worth kind, float * x, size_t ld, int32_t n, const float * share, int32_t queries, int32_t tokens, int32_t from);
    void (*activate)(enum lesskv_then then, float * x, size_t n);
    // Rotates x[n][width] by the normalised Hadamard matrix of size dimensions, block by block; twice is not at all. width: 1 or LANES;
    // size: a power of two, LANES at least, that divides n.
    void (*rotate)(float * x, size_t n, size_t size, size_t width);

    // Training. The two products are in train_math.h.
    void (*gemm)(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, size_t ca, const float * b, size_t rb, size_t cb, float * c, size_t ldc, bool add, float * pack);
    void (*gemm_panels)(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, const float * panels, float * c, size_t ldc, float * pack);
    // A state's rows are ld floats, a multiple of LANES: H's Dv columns, z's one, zeros.
    void (*state_mix)(const float * H, const float * p, int32_t rank, size_t ld, float * y); // y[ld] = sum of p[r] H[r]
    void (*state_dot)(const float * H, const float * y, int32_t rank, size_t ld, float * p); // p[r] = H[r] . y
    void (*state_add)(float * H, const float * p, const float * y, int32_t rank, size_t ld); // H[r] += p[r] y
    // Of n floats, n rounded up to a multiple of LANES are touched.
    void (*gelu)(const float * x, float * y, size_t n);      // y = gelu(x)
    void (*gelu_back)(const float * x, float * d, size_t n); // d *= gelu'(x)
};

const struct lesskv_level * lesskv_level(void);      // the one in use
const struct lesskv_level * lesskv_level_at(int i);  // those that this processor has, the plainest first; NULL past the last
void lesskv_level_use(const struct lesskv_level * level); // for tests: from the next call on; NULL: it is chosen anew

// Above what the flags allow: see level_v3.c.
#if defined(__x86_64__) && !defined(__AVX512F__)
#define LESSKV_LEVEL_V4
#if !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#define LESSKV_LEVEL_V3
#endif
#endif

static inline void lesskv_rows_few(struct rows a, int32_t n, const float * x, size_t ldx, int32_t nq, float * out, size_t ldo) {
    lesskv_level()->rows_few(a, n, x, ldx, nq, out, ldo);
}

static inline void lesskv_rows_block(struct rows a, int32_t n, const float * x, int32_t nq, float * out, size_t ld, float * tile) {
    lesskv_level()->rows_block(a, n, x, nq, out, ld, tile);
}

static inline void lesskv_cols_few(struct rows a, int32_t n, const float * p, size_t ldp, int32_t nq, float * out, size_t ldo) {
    lesskv_level()->cols_few(a, n, p, ldp, nq, out, ldo);
}

static inline void lesskv_cols_block(struct rows a, int32_t n, const float * p, size_t ld, int32_t nq, float * out, float * tile) {
    lesskv_level()->cols_block(a, n, p, ld, nq, out, tile);
}

#endif
