// train_math.h: the inner loops of training.

#ifndef LESSKV_TRAIN_MATH_H
#define LESSKV_TRAIN_MATH_H

#include "internal.h"
#include "vec.h"

#include <stdbool.h>

#ifdef LESSKV_PREFIX
#define lesskv_gemm      LESSKV_NAME(lesskv_gemm)
#define lesskv_gemm_panels LESSKV_NAME(lesskv_gemm_panels)
#define lesskv_state_mix LESSKV_NAME(lesskv_state_mix)
#define lesskv_state_dot LESSKV_NAME(lesskv_state_dot)
#define lesskv_state_add LESSKV_NAME(lesskv_state_add)
#endif

#define GEMM_M 4  // rows of c kept in registers
#define GEMM_N 16 // columns

// Floats that gemm packs into.
static inline size_t gemm_pack(int32_t m, int32_t k) {
    return (round_up((size_t) m, GEMM_M) + GEMM_N) * (size_t) k;
}

// c[m][n] = a[m][k] b[k][n], or += it. Element (i, j) of a is a[i ra + j ca], of b b[i rb + j cb], of c c[i ldc + j].
// pack: gemm_pack(m, k) floats.
void lesskv_gemm(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, size_t ca, const float * b, size_t rb, size_t cb,
    float * c, size_t ldc, bool add, float * pack);

// c = a b, b packed: panels[n/16][k][16], zeros past n. For a large b that many products share: packing it costs as much as
// half the product. Rows of a are ra apart. pack: as above.
void lesskv_gemm_panels(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, const float * panels, float * c, size_t ldc, float * pack);

// The state's rows are ld floats, a multiple of 8: H's Dv columns, z's one, zeros.
void lesskv_state_mix(const float * H, const float * p, int32_t rank, size_t ld, float * y); // y[ld] = sum of p[r] H[r]
void lesskv_state_dot(const float * H, const float * y, int32_t rank, size_t ld, float * p); // p[r] = H[r] . y
void lesskv_state_add(float * H, const float * p, const float * y, int32_t rank, size_t ld); // H[r] += p[r] y

// y = gelu(x); n rounded up to a multiple of VW floats are touched, as below.
static inline void gelu_all(const float * x, float * y, size_t n) {
    for (size_t i = 0; i < n; i += VW) {
        vf_store(y + i, vf_gelu(vf_load(x + i)));
    }
}

// d *= gelu'(x) = Phi(x) + x e^(-x^2/2) / sqrt(2 pi); near 0 Phi(x) = gelu(x)/x is 1/2 + x / sqrt(2 pi).
static inline void gelu_back(const float * x, float * d, size_t n) {
    for (size_t i = 0; i < n; i += VW) {
        const vf a    = vf_load(x + i);
        const vf pdf  = 0x1.988454p-2f * vf_exp(-0.5f * a * a);
        const vf near = vf_fma(a, vf_set(0x1.988454p-2f), vf_set(0.5f));
        const vi tiny = vf_abs(a) < 1e-3f;
        const vf cdf  = vf_select(tiny, near, vf_gelu(a) / vf_select(tiny, vf_set(1), a));
        vf_store(d + i, vf_load(d + i) * vf_fma(a, pdf, cdf));
    }
}

#endif
