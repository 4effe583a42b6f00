// train_math.c: the inner loops of training, for whatever the processor has: the Go package is compiled for any machine.

#include "train_math.h"

// A second version of a function, for AVX2, chosen when the program starts. Not under a sanitizer, which starts later; nor by clang, whose
// version 14 gives it a name that no other file finds.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__AVX2__) && !defined(__clang__)
#if defined(__has_attribute)
#if __has_attribute(target_clones)
#define CLONES __attribute__((target_clones("avx2", "default")))
#endif
#endif
#endif
#ifndef CLONES
#define CLONES
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));

// Rows of a, four side by side: pa[m/4][k][4].
static inline __attribute__((always_inline)) void pack_rows(int32_t m, int32_t k, const float * a, size_t ra, size_t ca, float * pa) {
    for (int32_t i = 0; i < m; i += GEMM_M) {
        float * to = pa + (size_t) i * (size_t) k;
        for (int32_t p = 0; p < k; p++) {
            for (int32_t r = 0; r < GEMM_M; r++) {
                to[p * GEMM_M + r] = i + r < m ? a[(size_t) (i + r) * ra + (size_t) p * ca] : 0;
            }
        }
    }
}

// nj columns of c, out of packed rows and a panel pb[k][16].
static inline __attribute__((always_inline)) void panel(int32_t m, int32_t nj, int32_t k, const float * pa, const float * pb, float * c, size_t ldc, bool add) {
    for (int32_t i = 0; i < m; i += GEMM_M) {
        const float * ai = pa + (size_t) i * (size_t) k;
        v8 s[GEMM_M][2] = {{{0}}};
        for (int32_t p = 0; p < k; p++) {
            const v8 b0 = *(const v8 *) (pb + p * GEMM_N);
            const v8 b1 = *(const v8 *) (pb + p * GEMM_N + 8);
            for (int32_t r = 0; r < GEMM_M; r++) {
                s[r][0] += ai[p * GEMM_M + r] * b0;
                s[r][1] += ai[p * GEMM_M + r] * b1;
            }
        }
        for (int32_t r = 0; r < GEMM_M && i + r < m; r++) {
            float * to = c + (size_t) (i + r) * ldc;
            float row[GEMM_N];
            memcpy(row, s[r], sizeof row);
            for (int32_t x = 0; x < nj; x++) {
                to[x] = add ? to[x] + row[x] : row[x];
            }
        }
    }
}

CLONES void lesskv_gemm(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, size_t ca, const float * b, size_t rb, size_t cb,
        float * c, size_t ldc, bool add, float * pack) {
    float * pb = pack + round_up((size_t) m, GEMM_M) * (size_t) k; // [k][16]
    pack_rows(m, k, a, ra, ca, pack);
    for (int32_t j = 0; j < n; j += GEMM_N) {
        const int32_t nj = n - j < GEMM_N ? n - j : GEMM_N;
        for (int32_t p = 0; p < k; p++) {
            const float * from = b + (size_t) p * rb + (size_t) j * cb;
            float * to = pb + p * GEMM_N;
            if (cb == 1 && nj == GEMM_N) {
                memcpy(to, from, GEMM_N * sizeof(float));
                continue;
            }
            for (int32_t x = 0; x < GEMM_N; x++) {
                to[x] = x < nj ? from[(size_t) x * cb] : 0;
            }
        }
        panel(m, nj, k, pack, pb, c + j, ldc, add);
    }
}

CLONES void lesskv_gemm_panels(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, const float * panels, float * c, size_t ldc, float * pack) {
    pack_rows(m, k, a, ra, 1, pack);
    for (int32_t j = 0; j < n; j += GEMM_N) {
        panel(m, n - j < GEMM_N ? n - j : GEMM_N, k, pack, panels + (size_t) j * (size_t) k, c + j, ldc, false);
    }
}

CLONES void lesskv_state_mix(const float * H, const float * p, int32_t rank, size_t ld, float * y) {
    for (size_t c = 0; c < ld; c += 8) {
        v8 s = {0};
        for (int32_t r = 0; r < rank; r++) {
            s += p[r] * *(const v8 *) (H + (size_t) r * ld + c);
        }
        *(v8 *) (y + c) = s;
    }
}

CLONES void lesskv_state_dot(const float * H, const float * y, int32_t rank, size_t ld, float * p) {
    for (int32_t r = 0; r < rank; r++) {
        v8 s = {0};
        for (size_t c = 0; c < ld; c += 8) {
            s += *(const v8 *) (H + (size_t) r * ld + c) * *(const v8 *) (y + c);
        }
        p[r] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
}

CLONES void lesskv_state_add(float * H, const float * p, const float * y, int32_t rank, size_t ld) {
    for (int32_t r = 0; r < rank; r++) {
        for (size_t c = 0; c < ld; c += 8) {
            *(v8 *) (H + (size_t) r * ld + c) += p[r] * *(const v8 *) (y + c);
        }
    }
}

