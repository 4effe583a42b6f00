// level_softmax.h: what stands between the products: softmax and what it was worth, the soft-cap, gelu, the Hadamard transform.

static void soft_cap(float * x, size_t n, float cap) {
    const vf c = vf_set(cap);
    for (size_t i = 0; i < n; i += VW) {
        vf_store(x + i, c * vf_tanh(vf_load(x + i) / c));
    }
}

static void softmax(float * x, int32_t n, float * top, float * sum) {
    vf m = vf_set(-INFINITY), total = {0};
    for (int32_t i = 0; i < n; i += VW) {
        m = vf_max(vf_load(x + i), m);
    }
    *top = vf_top(m);
    const vf base = vf_set(*top > -INFINITY ? *top : 0);
    for (int32_t i = 0; i < n; i += VW) {
        const vf e = vf_exp(vf_load(x + i) - base);
        vf_store(x + i, e);
        total += e;
    }
    *sum = vf_sum(total);
}

static void softmax_block(float * x, int32_t n, float * top, float * sum) {
    for (int j = 0; j < LANES; j += VW) {
        vf m = vf_set(-INFINITY), total = {0};
        for (int32_t r = 0; r < n; r++) {
            m = vf_max(vf_load(x + (size_t) r * LANES + j), m);
        }
        const vf base = vf_select(m > -INFINITY, m, vf_set(0));
        for (int32_t r = 0; r < n; r++) {
            const vf e = vf_exp(vf_load(x + (size_t) r * LANES + j) - base);
            vf_store(x + (size_t) r * LANES + j, e);
            total += e;
        }
        vf_store(top + j, m);
        vf_store(sum + j, total);
    }
}

// VW rows at a time, or what is left of them.
static inline __attribute__((always_inline)) void worth_rows(const bool sum, const float * x, int32_t n, const float * inv, float * worth) {
    for (int32_t r = 0; r < n; r += VW) {
        const int32_t m = n - r < VW ? n - r : VW;
        vf w[VW];
        for (int i = 0; i < VW; i++) {
            const float * row = x + (size_t) (i < m ? r + i : r) * LANES;
            w[i] = vf_number(vf_load(row) * vf_load(inv));
            for (int j = VW; j < LANES; j += VW) {
                w[i] = vf_join(sum, vf_number(vf_load(row + j) * vf_load(inv + j)), w[i]);
            }
        }
        float add[VW];
        vf_across(sum, VW, w, add);
        for (int32_t i = 0; i < m; i++) {
            worth[r + i] = sum ? worth[r + i] + add[i] : add[i] > worth[r + i] ? add[i] : worth[r + i];
        }
    }
}

static void worth_block(enum lesskv_worth kind, const float * x, int32_t n, const float * inv, float * worth) {
    if (kind == LESSKV_WORTH_SUM) {
        worth_rows(true, x, n, inv, worth);
    } else {
        worth_rows(false, x, n, inv, worth);
    }
}

static void worth_few(enum lesskv_worth kind, float * x, size_t ld, int32_t n, const float * share, int32_t queries, int32_t tokens, int32_t from) {
    for (int32_t r = 0; r < n; r += VW) {
        vf worth = {0};
        for (int32_t head = 0; head < queries; head += tokens) {
            for (int32_t a = head + from; a < head + tokens; a++) {
                const vf w = vf_number(vf_set(share[a]) * vf_load(x + (size_t) a * ld + r));
                worth = kind == LESSKV_WORTH_SUM ? worth + w : vf_max(w, worth);
            }
        }
        vf_store(x + r, worth);
    }
}

static void activate(enum lesskv_then then, float * x, size_t n) {
    size_t i = 0;
    for (; i < n; i += VW) {
        vf tail = {0};
        const size_t m = n - i < VW ? n - i : VW;
        memcpy(&tail, x + i, m * sizeof(float));
        vf y = then == LESSKV_ABS ? tail : vf_gelu(tail);
        y = then == LESSKV_GELU ? y : vf_abs(y);
        memcpy(x + i, &y, m * sizeof(float));
    }
}

// The fast Walsh-Hadamard transform: sums and differences of neighbours, then of halves of ever more. Those of a vector's own lanes are taken in
// a register.
static void rotate(float * x, size_t n, size_t size, size_t width) {
    const size_t all = n * width;
    for (size_t i = 0; width == 1 && i < all; i += VW) {
        vf_store(x + i, vf_hadamard(vf_load(x + i)));
    }
    for (size_t half = width == 1 ? VW : width; half < size * width; half *= 2) {
        for (size_t at = 0; at < all; at += 2 * half) {
            for (float * a = x + at, * b = a + half; a < x + at + half; a += VW, b += VW) {
                const vf u = vf_load(a), v = vf_load(b);
                vf_store(a, u + v);
                vf_store(b, u - v);
            }
        }
    }
    const vf scale = vf_set(1 / sqrtf((float) size));
    for (size_t i = 0; i < all; i += VW) {
        vf_store(x + i, scale * vf_load(x + i));
    }
}
