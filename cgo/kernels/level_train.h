// level_train.h: the inner loops of training (train_math.h).

// Rows of c kept in registers, GEMM_N columns of each, or twice that where two panels lie behind one another.
#if defined(VEC_AVX512)
#define GEMM_ROWS 8
#elif defined(VEC_AVX) || defined(VEC_NEON)
#define GEMM_ROWS 4
#else
#define GEMM_ROWS 2
#endif
_Static_assert(GEMM_M % GEMM_ROWS == 0, "gemm_pack has room for the rows");

#define GEMM_NV (GEMM_N / VW)

// Rows of a, GEMM_ROWS side by side: pa[m / GEMM_ROWS][k][GEMM_ROWS], zeros past m.
static void gemm_rows(int32_t m, int32_t k, const float * a, size_t ra, size_t ca, float * pa) {
    for (int32_t i = 0; i < m; i += GEMM_ROWS) {
        float * to = pa + (size_t) i * (size_t) k;
        for (int32_t p = 0; p < k; p++) {
            for (int32_t r = 0; r < GEMM_ROWS; r++) {
                to[p * GEMM_ROWS + r] = i + r < m ? a[(size_t) (i + r) * ra + (size_t) p * ca] : 0;
            }
        }
    }
}

// nj columns of c, at most np GEMM_N, out of packed rows and np panels pb[np][k][GEMM_N].
static inline __attribute__((always_inline)) void gemm_panel(const int np, int32_t m, int32_t nj, int32_t k, const float * pa, const float * pb,
        float * c, size_t ldc, bool add) {
    for (int32_t i = 0; i < m; i += GEMM_ROWS) {
        const float * ai = pa + (size_t) i * (size_t) k;
        vf s[GEMM_ROWS][2 * GEMM_NV] = {{{0}}};
        for (int32_t p = 0; p < k; p++) {
            vf b[2 * GEMM_NV];
            for (int x = 0; x < np * GEMM_NV; x++) {
                b[x] = vf_load_once(pb + ((size_t) (x / GEMM_NV) * (size_t) k + (size_t) p) * GEMM_N + x % GEMM_NV * VW);
            }
            for (int r = 0; r < GEMM_ROWS; r++) {
                const vf one = vf_set(ai[p * GEMM_ROWS + r]);
                for (int x = 0; x < np * GEMM_NV; x++) {
                    s[r][x] = vf_fma(one, b[x], s[r][x]);
                }
            }
        }
        for (int32_t r = 0; r < GEMM_ROWS && i + r < m; r++) {
            float * to = c + (size_t) (i + r) * ldc;
            float row[2 * GEMM_N];
            memcpy(row, s[r], sizeof row);
            for (int32_t x = 0; x < nj; x++) {
                to[x] = add ? to[x] + row[x] : row[x];
            }
        }
    }
}

static void gemm(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, size_t ca, const float * b, size_t rb, size_t cb,
        float * c, size_t ldc, bool add, float * pack) {
    float * pb = pack + round_up((size_t) m, GEMM_M) * (size_t) k; // [k][GEMM_N]
    gemm_rows(m, k, a, ra, ca, pack);
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
        gemm_panel(1, m, nj, k, pack, pb, c + j, ldc, add);
    }
}

static void gemm_panels(int32_t m, int32_t n, int32_t k, const float * a, size_t ra, const float * panels, float * c, size_t ldc, float * pack) {
    gemm_rows(m, k, a, ra, 1, pack);
    int32_t j = 0;
#if GEMM_NV == 1 // registers for two
    for (; j + GEMM_N < n; j += 2 * GEMM_N) {
        gemm_panel(2, m, n - j < 2 * GEMM_N ? n - j : 2 * GEMM_N, k, pack, panels + (size_t) j * (size_t) k, c + j, ldc, false);
    }
#endif
    for (; j < n; j += GEMM_N) {
        gemm_panel(1, m, n - j < GEMM_N ? n - j : GEMM_N, k, pack, panels + (size_t) j * (size_t) k, c + j, ldc, false);
    }
}

static void state_mix(const float * H, const float * p, int32_t rank, size_t ld, float * y) {
    for (size_t c = 0; c < ld; c += VW) {
        vf s = {0};
        for (int32_t r = 0; r < rank; r++) {
            s = vf_fma(vf_set(p[r]), vf_load(H + (size_t) r * ld + c), s);
        }
        vf_store(y + c, s);
    }
}

static void state_dot(const float * H, const float * y, int32_t rank, size_t ld, float * p) {
    for (int32_t r = 0; r < rank; r++) {
        vf s = {0};
        for (size_t c = 0; c < ld; c += VW) {
            s = vf_fma(vf_load(H + (size_t) r * ld + c), vf_load(y + c), s);
        }
        p[r] = vf_sum(s);
    }
}

static void state_add(float * H, const float * p, const float * y, int32_t rank, size_t ld) {
    for (int32_t r = 0; r < rank; r++) {
        for (size_t c = 0; c < ld; c += VW) {
            float * to = H + (size_t) r * ld + c;
            vf_store(to, vf_fma(vf_set(p[r]), vf_load(y + c), vf_load(to)));
        }
    }
}

static void gelu_all(const float * x, float * y, size_t n) {
    for (size_t i = 0; i < n; i += VW) {
        vf_store(y + i, vf_gelu(vf_load(x + i)));
    }
}

// gelu'(x) = Phi(x) + x e^(-x^2/2) / sqrt(2 pi); near 0 Phi(x) = gelu(x)/x is 1/2 + x / sqrt(2 pi).
static void gelu_back(const float * x, float * d, size_t n) {
    for (size_t i = 0; i < n; i += VW) {
        const vf a    = vf_load(x + i);
        const vf pdf  = 0x1.988454p-2f * vf_exp(-0.5f * a * a);
        const vf near = vf_fma(a, vf_set(0x1.988454p-2f), vf_set(0.5f));
        const vi tiny = vf_abs(a) < 1e-3f;
        const vf cdf  = vf_select(tiny, near, vf_gelu(a) / vf_select(tiny, vf_set(1), a));
        vf_store(d + i, vf_load(d + i) * vf_fma(a, pdf, cdf));
    }
}
