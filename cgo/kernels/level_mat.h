// level_mat.h: the products of rows with a few queries or with a block of them.

// Rows whose sums are kept in registers at once: ROWS x LANES/VW accumulators, and room for a vector or two.
#if defined(VEC_AVX512)
#define ROWS 12
#elif defined(VEC_AVX) || defined(VEC_NEON)
#define ROWS 6
#else
#define ROWS 2
#endif
_Static_assert(TILE % ROWS == 0, "a tile is a whole number of register blocks");

#define NV (LANES / VW)

// Of 1 to 4 queries: the rows, or the vectors of a row, whose sums are kept at once. They hide an addition's latency and leave
// registers for the rest.
#if defined(VEC_AVX512) || defined(VEC_NEON)
enum { ROWS_1 = 8, ROWS_2 = 8, ROWS_3 = 4, ROWS_4 = 4, MOST_ROWS = 8, SUMS = 16 };
enum { COLS_1 = 4, COLS_2 = 4, COLS_3 = 4, COLS_4 = 4 };
#else
enum { ROWS_1 = 8, ROWS_2 = 4, ROWS_3 = 4, ROWS_4 = 2, MOST_ROWS = 8, SUMS = 16 };
enum { COLS_1 = 8, COLS_2 = 4, COLS_3 = 2, COLS_4 = 2 };
#endif

static inline __attribute__((always_inline)) bool in_blocks(enum lesskv_type type) {
    return type == LESSKV_TYPE_Q4_0 || type == LESSKV_TYPE_Q8_0;
}

// The i-th element's block.
static inline __attribute__((always_inline)) const char * block_at(enum lesskv_type type, const char * row, int32_t i) {
    return row + i / 32 * (type == LESSKV_TYPE_Q4_0 ? (int32_t) sizeof(struct block_q4_0) : (int32_t) sizeof(struct block_q8_0));
}

// Its scale; 1 of a type without.
static inline __attribute__((always_inline)) vf scale_at(enum lesskv_type type, const char * row, int32_t i) {
    return in_blocks(type) ? vf_set_f16(block_at(type, row, i)) : vf_set(1);
}

// VW elements from the i-th on, a multiple of VW, of quantised types without their scale: they never leave a block of q8_0, nor half a
// block of q4_0. A constant type costs nothing at run time.
static inline __attribute__((always_inline)) vf load(enum lesskv_type type, const char * row, int32_t i) {
    switch (type) {
        case LESSKV_TYPE_F16:  return vf_load_f16(row + i * 2);
        case LESSKV_TYPE_Q4_0: return vf_load_u4(block_at(type, row, i) + 2 + i % 16, i % 32 / 16 * 4);
        case LESSKV_TYPE_Q8_0: return vf_load_i8(block_at(type, row, i) + 2 + i % 32);
        default:               return vf_load(row + i * 4);
    }
}

// One element of a type that is not in blocks.
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

// Where a number of queries is a parameter of an inlined function it is a constant: the arrays are registers.

// s[q][r] += row[r][i ..] x[q][i ..], VW elements.
static inline __attribute__((always_inline)) void add_vector(enum lesskv_type type, const int nq, const int nr, const char * const * row, int32_t i,
        const float * x, size_t ldx, vf * s) {
    vf v[4];
    for (int q = 0; q < nq; q++) {
        v[q] = vf_load_once(x + (size_t) q * ldx + i);
    }
    for (int r = 0; r < nr; r++) {
        const vf w = load(type, row[r], i);
        for (int q = 0; q < nq; q++) {
            s[q * nr + r] = vf_fma(w, v[q], s[q * nr + r]);
        }
    }
}

// The same of a block. Its scale multiplies whichever is less: the block's vectors or the queries' sums.
static inline __attribute__((always_inline)) void add_block(enum lesskv_type type, const int nq, const int nr, const char * const * row, int32_t i,
        const float * x, size_t ldx, vf * s) {
    const bool sums = nq < 32 / VW;
    for (int r = 0; r < nr; r++) {
        const vf scale = scale_at(type, row[r], i);
        vf t[4] = {{0}};
        for (int j = 0; j < 32; j += VW) {
            const vf w = sums ? load(type, row[r], i + j) : scale * load(type, row[r], i + j);
            for (int q = 0; q < nq; q++) {
                vf * to = sums ? &t[q] : &s[q * nr + r];
                *to = vf_fma(w, vf_load(x + (size_t) q * ldx + i + j), *to);
            }
        }
        for (int q = 0; q < nq && sums; q++) {
            s[q * nr + r] = vf_fma(scale, t[q], s[q * nr + r]);
        }
    }
}

// out[q][at ..] = row[at ..] . x[q], nr rows or fewer; returns the next row. nq nr is a multiple of 4.
static inline __attribute__((always_inline)) int32_t rows_group(enum lesskv_type type, const int nq, const int nr, struct rows a, int32_t at, int32_t n,
        const float * x, size_t ldx, float * out, size_t ldo) {
    const int32_t m = a.n - at < nr ? a.n - at : nr;
    const char * row[MOST_ROWS];
    for (int r = 0; r < nr; r++) {
        row[r] = row_at(a, r < m ? at + r : at); // past the end: a row that is there
    }
    vf s[SUMS] = {{0}};
    int32_t i = 0;
    for (; i + 32 <= n && in_blocks(type); i += 32) {
        add_block(type, nq, nr, row, i, x, ldx, s);
    }
    for (; i + VW <= n && !in_blocks(type); i += VW) {
        add_vector(type, nq, nr, row, i, x, ldx, s);
    }
    float sum[SUMS];
    vf_across(true, nq * nr, s, sum);
    for (; i < n; i++) { // of a type that is not in blocks
        for (int r = 0; r < nr; r++) {
            const float w = load1(type, row[r], i);
            for (int q = 0; q < nq; q++) {
                sum[q * nr + r] += w * x[(size_t) q * ldx + i];
            }
        }
    }
    for (int q = 0; q < nq; q++) {
        float * to = out + (size_t) q * ldo + at;
        if (m == nr) {
            memcpy(to, sum + q * nr, (size_t) nr * sizeof(float)); // a few moves
        } else {
            memcpy(to, sum + q * nr, (size_t) m * sizeof(float));
        }
    }
    return at + nr;
}

// Queries four at a time, then what is left.
static inline __attribute__((always_inline)) void rows_of(enum lesskv_type type, struct rows a, int32_t n, const float * x, size_t ldx, int32_t nq, float * out, size_t ldo) {
    for (; nq >= 4; nq -= 4, x += 4 * ldx, out += 4 * ldo) {
        for (int32_t at = 0; at < a.n;) {
            at = rows_group(type, 4, ROWS_4, a, at, n, x, ldx, out, ldo);
        }
    }
    for (int32_t at = 0; at < a.n && nq > 0;) {
        switch (nq) {
            case 3:  at = rows_group(type, 3, ROWS_3, a, at, n, x, ldx, out, ldo); break;
            case 2:  at = rows_group(type, 2, ROWS_2, a, at, n, x, ldx, out, ldo); break;
            default: at = rows_group(type, 1, type == LESSKV_TYPE_Q4_0 ? ROWS_2 : ROWS_1, a, at, n, x, ldx, out, ldo); break;
        }
    }
}

// Apart from the others, from whose loops it would take registers.
static __attribute__((noinline)) void rows_of_q4_0(struct rows a, int32_t n, const float * x, size_t ldx, int32_t nq, float * out, size_t ldo) {
    rows_of(LESSKV_TYPE_Q4_0, a, n, x, ldx, nq, out, ldo);
}

static void rows_few(struct rows a, int32_t n, const float * x, size_t ldx, int32_t nq, float * out, size_t ldo) {
    switch (a.type) {
        case LESSKV_TYPE_F32:  rows_of(LESSKV_TYPE_F32,  a, n, x, ldx, nq, out, ldo); break;
        case LESSKV_TYPE_F16:  rows_of(LESSKV_TYPE_F16,  a, n, x, ldx, nq, out, ldo); break;
        case LESSKV_TYPE_Q4_0: rows_of_q4_0(a, n, x, ldx, nq, out, ldo); break;
        case LESSKV_TYPE_Q8_0: rows_of(LESSKV_TYPE_Q8_0, a, n, x, ldx, nq, out, ldo); break;
    }
}

// out[q][c .. c + nc VW - 1] += sum over rows of p[q][row] a[row][c ..]. Several vectors begin a block if they are of a type in blocks.
static inline __attribute__((always_inline)) void cols_group(enum lesskv_type type, const int nq, const int nc, struct rows a, int32_t c,
        const float * p, size_t ldp, float * out, size_t ldo) {
    const bool blocks  = in_blocks(type);
    const bool weights = blocks && nq < nc && nq < 32 / VW; // a scale multiplies whichever is less: the weights or the block's vectors
    vf s[4][8];
    for (int q = 0; q < nq; q++) {
        for (int j = 0; j < nc; j++) {
            s[q][j] = vf_load(out + (size_t) q * ldo + c + j * VW);
        }
    }
    for (int32_t r = 0; r < a.n; r++) {
        const char * row = row_at(a, r);
        vf scale = {0}, w[4];
        for (int j = 0; j < nc; j++) {
            if (j * VW % 32 == 0) {
                scale = scale_at(type, row, c + j * VW);
                for (int q = 0; q < nq; q++) {
                    w[q] = vf_set(p[(size_t) q * ldp + r]);
                    w[q] = weights ? scale * w[q] : w[q];
                }
            }
            vf v = load(type, row, c + j * VW);
            v = blocks && !weights ? scale * v : v;
            for (int q = 0; q < nq; q++) {
                s[q][j] = vf_fma(w[q], v, s[q][j]);
            }
        }
    }
    for (int q = 0; q < nq; q++) {
        for (int j = 0; j < nc; j++) {
            vf_store(out + (size_t) q * ldo + c + j * VW, s[q][j]);
        }
    }
}

// All columns, of at most four queries.
static inline __attribute__((always_inline)) void cols_quad(enum lesskv_type type, const int nq, struct rows a, int32_t n, const float * p, size_t ldp, float * out, size_t ldo) {
    const int nc = nq == 1 ? COLS_1 : nq == 2 ? COLS_2 : nq == 3 ? COLS_3 : COLS_4;
    int32_t c = 0;
    for (; c + nc * VW <= n; c += nc * VW) {
        cols_group(type, nq, nc, a, c, p, ldp, out, ldo);
    }
    for (; c + 2 * VW <= n && nc > 2; c += 2 * VW) {
        cols_group(type, nq, 2, a, c, p, ldp, out, ldo);
    }
    for (; c + VW <= n; c += VW) {
        cols_group(type, nq, 1, a, c, p, ldp, out, ldo);
    }
    for (; c < n; c++) {
        for (int32_t r = 0; r < a.n; r++) {
            const float v = load1(type, row_at(a, r), c);
            for (int q = 0; q < nq; q++) {
                out[(size_t) q * ldo + c] += p[(size_t) q * ldp + r] * v;
            }
        }
    }
}

static inline __attribute__((always_inline)) void cols_of(enum lesskv_type type, struct rows a, int32_t n, const float * p, size_t ldp, int32_t nq, float * out, size_t ldo) {
    for (; nq >= 4; nq -= 4, p += 4 * ldp, out += 4 * ldo) {
        cols_quad(type, 4, a, n, p, ldp, out, ldo);
    }
    switch (nq) {
        case 3: cols_quad(type, 3, a, n, p, ldp, out, ldo); break;
        case 2: cols_quad(type, 2, a, n, p, ldp, out, ldo); break;
        case 1: cols_quad(type, 1, a, n, p, ldp, out, ldo); break;
    }
}

// Apart, as rows_of_q4_0 is.
static __attribute__((noinline)) void cols_of_q4_0(struct rows a, int32_t n, const float * p, size_t ldp, int32_t nq, float * out, size_t ldo) {
    cols_of(LESSKV_TYPE_Q4_0, a, n, p, ldp, nq, out, ldo);
}

static void cols_few(struct rows a, int32_t n, const float * p, size_t ldp, int32_t nq, float * out, size_t ldo) {
    switch (a.type) {
        case LESSKV_TYPE_F32:  cols_of(LESSKV_TYPE_F32,  a, n, p, ldp, nq, out, ldo); break;
        case LESSKV_TYPE_F16:  cols_of(LESSKV_TYPE_F16,  a, n, p, ldp, nq, out, ldo); break;
        case LESSKV_TYPE_Q4_0: cols_of_q4_0(a, n, p, ldp, nq, out, ldo); break;
        case LESSKV_TYPE_Q8_0: cols_of(LESSKV_TYPE_Q8_0, a, n, p, ldp, nq, out, ldo); break;
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

static void rows_block(struct rows a, int32_t n, const float * x, int32_t nq, float * out, size_t ld, float * tile) {
    for (int32_t r = 0; r < a.n; r += ROWS) {
        const int32_t m = a.n - r < ROWS ? a.n - r : ROWS;
        for (int32_t i = 0; i < ROWS; i++) {
            to_f32(a.type, tile + (size_t) i * n, row_at(a, i < m ? r + i : r), n);
        }
        for (int32_t block = 0; block * LANES < nq; block++) {
            const float * from = x + (size_t) block * LANES * (size_t) n;
            float * to = out + (size_t) block * ld + (size_t) r * LANES;
            if (m == ROWS) {
                rows_tile(tile, n, from, to);
            } else {
                float last[ROWS * LANES];
                rows_tile(tile, n, from, last);
                memcpy(to, last, (size_t) m * LANES * sizeof(float));
            }
        }
    }
}

static void cols_block(struct rows a, int32_t n, const float * p, size_t ld, int32_t nq, float * out, float * tile) {
    enum { Q = 4 }; // queries at a time; two vectors of each
    const size_t width = round_up((size_t) n, PAD);
    for (int32_t r = 0; r < a.n; r += TILE) {
        const int32_t m = a.n - r < TILE ? a.n - r : TILE;
        for (int32_t i = 0; i < m; i++) {
            to_f32(a.type, tile + i * width, row_at(a, r + i), n);
            memset(tile + i * width + n, 0, (width - (size_t) n) * sizeof(float));
        }
        for (size_t c = 0; c < width; c += 2 * VW) {
            for (int32_t q = 0; q < nq; q += Q) {
                const float * weight = p + (size_t) (q / LANES) * ld + (size_t) r * LANES + q % LANES;
                float * to = out + (size_t) q * width + c;
                vf s[Q][2];
                for (int j = 0; j < Q; j++) {
                    s[j][0] = vf_load(to + j * width);
                    s[j][1] = vf_load(to + j * width + VW);
                }
                for (int32_t i = 0; i < m; i++) {
                    const vf v0 = vf_load_once(tile + i * width + c);
                    const vf v1 = vf_load_once(tile + i * width + c + VW);
                    for (int j = 0; j < Q; j++) {
                        const vf w = vf_set(weight[i * LANES + j]);
                        s[j][0] = vf_fma(w, v0, s[j][0]);
                        s[j][1] = vf_fma(w, v1, s[j][1]);
                    }
                }
                for (int j = 0; j < Q; j++) {
                    vf_store(to + j * width, s[j][0]);
                    vf_store(to + j * width + VW, s[j][1]);
                }
            }
        }
    }
}
