// mat.c: the products of rows with one query or with a block of them.

#include "internal.h"
#include "vec.h"

// Rows whose sums are kept in registers at once: ROWS x LANES/VW accumulators, and room for a vector or two.
#if defined(__AVX512F__)
#define ROWS 12
#elif defined(__AVX__) || defined(__aarch64__)
#define ROWS 6
#else
#define ROWS 2
#endif
_Static_assert(TILE % ROWS == 0, "a tile is a whole number of register blocks");

#define NV (LANES / VW)

static inline const char * row_at(const struct rows * a, int32_t i) {
    return (const char *) a->data + (size_t) i * a->stride;
}

// VW elements from the i-th on; a constant type costs nothing at run time.
static inline __attribute__((always_inline)) vf load(enum lesskv_type type, const char * row, int32_t i) {
    return type == LESSKV_TYPE_F16 ? vf_load_f16(row + i * 2) : vf_load(row + i * 4);
}

static inline __attribute__((always_inline)) float load1(enum lesskv_type type, const char * row, int32_t i) {
    if (type == LESSKV_TYPE_F16) {
        uint16_t h;
        memcpy(&h, row + i * 2, sizeof h);
        return f16_to_f32(h);
    }
    float f;
    memcpy(&f, row + i * 4, sizeof f);
    return f;
}

static inline __attribute__((always_inline)) float dot(enum lesskv_type type, const char * row, const float * x, int32_t n) {
    vf s[4] = {{0}, {0}, {0}, {0}}; // enough additions in flight to hide their latency
    int32_t i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW) {
        for (int j = 0; j < 4; j++) {
            s[j] = vf_fma(load(type, row, i + j * VW), vf_load(x + i + j * VW), s[j]);
        }
    }
    for (; i + VW <= n; i += VW) {
        s[0] = vf_fma(load(type, row, i), vf_load(x + i), s[0]);
    }
    float sum = vf_sum((s[0] + s[1]) + (s[2] + s[3]));
    for (; i < n; i++) {
        sum += load1(type, row, i) * x[i];
    }
    return sum;
}

static inline float dot_q8_0(const char * row, const float * x, int32_t n) {
    vf sum = {0};
    for (int32_t i = 0; i < n; i += 32, row += 34) {
        uint16_t d;
        memcpy(&d, row, sizeof d);
        vf s = {0};
        for (int32_t j = 0; j < 32; j += VW) {
            s = vf_fma(vf_load_i8(row + 2 + j), vf_load(x + i + j), s);
        }
        sum = vf_fma(vf_set(f16_to_f32(d)), s, sum);
    }
    return vf_sum(sum);
}

void lesskv_rows_one(struct rows a, int32_t n, const float * x, float * out) {
    switch (a.type) {
        case LESSKV_TYPE_F32:
            for (int32_t r = 0; r < a.n; r++) {
                out[r] = dot(LESSKV_TYPE_F32, row_at(&a, r), x, n);
            }
            break;
        case LESSKV_TYPE_F16:
            for (int32_t r = 0; r < a.n; r++) {
                out[r] = dot(LESSKV_TYPE_F16, row_at(&a, r), x, n);
            }
            break;
        case LESSKV_TYPE_Q8_0:
            for (int32_t r = 0; r < a.n; r++) {
                out[r] = dot_q8_0(row_at(&a, r), x, n);
            }
            break;
    }
}

// out[n] += p[0] row[0] + .. + p[3] row[3]
static inline __attribute__((always_inline)) void add4(enum lesskv_type type, const char * const row[4], const float p[4], float * out, int32_t n) {
    const vf p0 = vf_set(p[0]), p1 = vf_set(p[1]), p2 = vf_set(p[2]), p3 = vf_set(p[3]);
    int32_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf s = vf_load(out + i);
        s = vf_fma(p0, load(type, row[0], i), s);
        s = vf_fma(p1, load(type, row[1], i), s);
        s = vf_fma(p2, load(type, row[2], i), s);
        s = vf_fma(p3, load(type, row[3], i), s);
        vf_store(out + i, s);
    }
    for (; i < n; i++) {
        for (int j = 0; j < 4; j++) {
            out[i] += p[j] * load1(type, row[j], i);
        }
    }
}

void lesskv_cols_one(struct rows a, int32_t n, const float * p, float * out, float * tile) {
    for (int32_t r = 0; r < a.n; r += 4) {
        const char * row[4];
        float w[4];
        for (int j = 0; j < 4; j++) {
            const int32_t i = r + j < a.n ? r + j : r; // past the end: a row that is there, times zero
            row[j] = row_at(&a, i);
            w[j]   = r + j < a.n ? p[i] : 0;
            if (a.type == LESSKV_TYPE_Q8_0) {
                lesskv_to_f32(a.type, tile + (size_t) j * n, row[j], n);
                row[j] = (const char *) (tile + (size_t) j * n);
            }
        }
        if (a.type == LESSKV_TYPE_F16) {
            add4(LESSKV_TYPE_F16, row, w, out, n);
        } else {
            add4(LESSKV_TYPE_F32, row, w, out, n);
        }
    }
}

// out[ROWS][LANES] = tile[ROWS][n] . x[n][LANES]
static inline void rows_tile(const float * tile, int32_t n, const float * x, float * out) {
    vf s[ROWS][NV] = {{{0}}};
    for (int32_t d = 0; d < n; d++) {
        vf b[NV];
        for (int j = 0; j < NV; j++) {
            b[j] = vf_load(x + d * LANES + j * VW);
        }
        for (int i = 0; i < ROWS; i++) {
            const vf a = vf_set(tile[(size_t) i * n + d]);
            for (int j = 0; j < NV; j++) {
                s[i][j] = vf_fma(a, b[j], s[i][j]);
            }
        }
    }
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < NV; j++) {
            vf_store(out + i * LANES + j * VW, s[i][j]);
        }
    }
}

void lesskv_rows_block(struct rows a, int32_t n, const float * x, float * out, float * tile) {
    for (int32_t r = 0; r < a.n; r += ROWS) {
        const int32_t m = a.n - r < ROWS ? a.n - r : ROWS;
        for (int32_t i = 0; i < ROWS; i++) {
            lesskv_to_f32(a.type, tile + (size_t) i * n, row_at(&a, i < m ? r + i : r), n);
        }
        if (m == ROWS) {
            rows_tile(tile, n, x, out + (size_t) r * LANES);
        } else {
            float last[ROWS * LANES];
            rows_tile(tile, n, x, last);
            memcpy(out + (size_t) r * LANES, last, (size_t) m * LANES * sizeof(float));
        }
    }
}

void lesskv_cols_block(struct rows a, int32_t n, const float * p, int32_t nq, float * out, float * tile) {
    enum { Q = 4 }; // queries at a time; two vectors of each
    const size_t ld = round_up((size_t) n, PAD);
    for (int32_t r = 0; r < a.n; r += TILE) {
        const int32_t m = a.n - r < TILE ? a.n - r : TILE;
        for (int32_t i = 0; i < m; i++) {
            lesskv_to_f32(a.type, tile + i * ld, row_at(&a, r + i), n);
            memset(tile + i * ld + n, 0, (ld - (size_t) n) * sizeof(float));
        }
        for (size_t c = 0; c < ld; c += 2 * VW) {
            for (int q = 0; q < nq; q += Q) {
                vf s[Q][2];
                for (int j = 0; j < Q; j++) {
                    s[j][0] = vf_load(out + (q + j) * ld + c);
                    s[j][1] = vf_load(out + (q + j) * ld + c + VW);
                }
                for (int32_t i = 0; i < m; i++) {
                    const vf v0 = vf_load_once(tile + i * ld + c);
                    const vf v1 = vf_load_once(tile + i * ld + c + VW);
                    for (int j = 0; j < Q; j++) {
                        const vf w = vf_set(p[(size_t) (r + i) * LANES + q + j]);
                        s[j][0] = vf_fma(w, v0, s[j][0]);
                        s[j][1] = vf_fma(w, v1, s[j][1]);
                    }
                }
                for (int j = 0; j < Q; j++) {
                    vf_store(out + (q + j) * ld + c, s[j][0]);
                    vf_store(out + (q + j) * ld + c + VW, s[j][1]);
                }
            }
        }
    }
}
