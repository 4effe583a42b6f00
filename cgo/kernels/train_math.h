// train_math.h: the inner loops of training, by the level of instruction sets in use (level.h).

#ifndef LESSKV_TRAIN_MATH_H
#define LESSKV_TRAIN_MATH_H

#include "internal.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

// Floats that gemm packs into.
static inline size_t gemm_pack(int32_t m, int32_t k) {
    return (round_up((size_t) m, GEMM_M) + GEMM_N) * (size_t) k;
}

// c[m][n] = a[m][k] b[k][n], or += it. Element (i, j) of a is a[i ra + j ca], of b b[i rb + j cb], of c c[i ldc + j].
// pack: gemm_pack(m, k) floats.
static inline void lesskv_gemm(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, size_t ca, const float * b, size_t rb, size_t cb,
        float * c, size_t ldc, bool add, float * pack) {
    lesskv_level()->gemm(m, n, k, a, ra, ca, b, rb, cb, c, ldc, add, pack);
}

// c = a b, b packed: panels[n / GEMM_N][k][GEMM_N], zeros past n. For a large b that many products share: packing it costs as much as
// half the product. Rows of a are ra apart. pack: as above.
static inline void lesskv_gemm_panels(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, const float * panels, float * c, size_t ldc, float * pack) {
    lesskv_level()->gemm_panels(m, n, k, a, ra, panels, c, ldc, pack);
}

#endif
