// train.c: the error of a layer's output over a window, and its gradient. See train.h for the formulas.

#include "train.h"
#include "train_math.h"

#include <stdlib.h>

enum { BLOCK = 64 }; // tokens at a time

// phi or psi of one head: n layers, gelu after the first two, | | at the end.
struct chain {
    int32_t n;
    int32_t width[4];  // input, then each layer's output
    size_t  weight[3]; // where each layer's matrix lies in the array of weights
};

// A block of vectors on their way through a chain.
struct pass {
    float * x;      // [BLOCK][D] input
    float * pre[3]; // [BLOCK][width] before the activation
    float * act[2]; // [BLOCK][width] after it
    float * out;    // [BLOCK][R]
};

static size_t at(size_t start, int32_t head, int32_t out, int32_t in) {
    return start + (size_t) head * (size_t) out * (size_t) in;
}

static struct chain phi_of(const struct lesskv_train_shape * s, int32_t head) {
    const size_t one = (size_t) s->n_head * (size_t) s->hidden * (size_t) s->dk;
    return (struct chain) { 2, { s->dk, s->hidden, s->rank }, { at(0, head, s->hidden, s->dk), at(one, head, s->rank, s->hidden) } };
}

static struct chain psi_of(const struct lesskv_train_shape * s, int32_t head) {
    const size_t phi = (size_t) s->n_head * (size_t) s->hidden * (size_t) (s->dk + s->rank);
    const size_t one = phi + (size_t) s->n_head_kv * (size_t) s->hidden * (size_t) s->dk;
    const size_t two = one + (size_t) s->n_head_kv * (size_t) s->hidden * (size_t) s->rank;
    return (struct chain) { 3, { s->dk, s->hidden, s->rank, s->rank },
        { at(phi, head, s->hidden, s->dk), at(one, head, s->rank, s->hidden), at(two, head, s->rank, s->rank) } };
}

// Where the scales lie, behind all matrices.
static size_t scale_at(const struct lesskv_train_shape * s) {
    const size_t hidden = (size_t) s->hidden, rank = (size_t) s->rank;
    return (size_t) s->n_head * hidden * ((size_t) s->dk + rank) + (size_t) s->n_head_kv * (hidden * ((size_t) s->dk + rank) + rank * rank);
}

size_t lesskv_train_weights(const struct lesskv_train_shape * s) {
    return scale_at(s) + (size_t) s->n_head;
}

static void forward(const struct chain * c, const float * weights, const struct pass * p, int32_t n, float * pack) {
    const float * in = p->x;
    for (int32_t l = 0; l < c->n; l++) {
        const int32_t wi = c->width[l], wo = c->width[l + 1];
        lesskv_gemm(n, wo, wi, in, (size_t) wi, 1, weights + c->weight[l], 1, (size_t) wi, p->pre[l], (size_t) wo, false, pack);
        if (l < 2) {
            lesskv_level()->gelu(p->pre[l], p->act[l], (size_t) n * (size_t) wo);
            in = p->act[l];
        }
    }
    const float * last = c->n == 2 ? p->act[1] : p->pre[2];
    for (int32_t i = 0; i < n * c->width[c->n]; i++) {
        p->out[i] = fabsf(last[i]);
    }
}

// Adds to grad; d[BLOCK][R] holds the error's derivative by the output and is used up, as is tmp[2][BLOCK][max(R', R)].
static void backward(const struct chain * c, const float * weights, const struct pass * p, int32_t n, float * d, float * tmp, size_t tmp_size, float * grad, float * pack) {
    const float * last = c->n == 2 ? p->act[1] : p->pre[2];
    for (int32_t i = 0; i < n * c->width[c->n]; i++) {
        d[i] = last[i] < 0 ? -d[i] : d[i];
    }
    for (int32_t l = c->n - 1; l >= 0; l--) {
        const int32_t wi = c->width[l], wo = c->width[l + 1];
        if (l < 2) {
            lesskv_level()->gelu_back(p->pre[l], d, (size_t) n * (size_t) wo);
        }
        const float * in = l > 0 ? p->act[l - 1] : p->x;
        lesskv_gemm(wo, wi, n, d, 1, (size_t) wo, in, (size_t) wi, 1, grad + c->weight[l], (size_t) wi, true, pack);
        if (l > 0) {
            float * before = tmp + (l % 2 ? 0 : tmp_size);
            lesskv_gemm(n, wi, wo, d, (size_t) wo, 1, weights + c->weight[l], (size_t) wi, 1, before, (size_t) wi, false, pack);
            d = before;
        }
    }
}

// The parts of the scratch.
struct room {
    size_t  ld;    // floats of a state's row
    size_t  state; // floats of a state: [R][ld]
    int32_t n_state; // of one KV head: before each micro-batch, and after the last
    float * H;     // [Hkv][n_state][R][ld]
    float * dH;    // the same: the derivatives; first those by micro-batch, then their sums from the end
    struct pass pass;   // psi
    struct pass * heads; // [Hq] phi
    float * inv;   // [BLOCK][Hq] p / (phi z)
    float * a;     // [BLOCK][Hq][Dv] the output, then its error
    float * e;     // [BLOCK][Hq][Dv] the error
    float * y;     // [BLOCK][Hq][Dv] error times gram
    float * row;   // [ld]
    float * d;     // [BLOCK][R]
    float * tmp;   // [2][tmp_size]
    size_t  tmp_size;
    float * pack;
};

// Memory that is given away piece by piece; without base it is only counted.
struct arena {
    char * base;
    size_t used;
};

static void * take_bytes(struct arena * a, size_t n) {
    void * p = a->base ? a->base + a->used : NULL;
    a->used += round_up(n, 64);
    return p;
}

// n floats, and room for a vector's end.
static float * take(struct arena * a, size_t n) {
    return take_bytes(a, (n + 16) * sizeof(float));
}

static struct pass take_pass(struct arena * p, const struct lesskv_train_shape * s) {
    const size_t dk = (size_t) s->dk, hidden = (size_t) s->hidden, rank = (size_t) s->rank;
    struct pass t;
    t.x      = take(p, BLOCK * dk);
    t.pre[0] = take(p, BLOCK * hidden);
    t.pre[1] = take(p, BLOCK * rank);
    t.pre[2] = take(p, BLOCK * rank);
    t.act[0] = take(p, BLOCK * hidden);
    t.act[1] = take(p, BLOCK * rank);
    t.out    = take(p, BLOCK * rank);
    return t;
}

static struct room lay(const struct lesskv_train_shape * s, int32_t n_tokens, int32_t n_ubatch, struct arena * end) {
    struct room w;
    const size_t hkv = (size_t) s->n_head_kv, n_out = (size_t) s->n_head * (size_t) s->dv;
    w.ld      = round_up((size_t) s->dv + 1, LANES);
    w.state   = (size_t) s->rank * w.ld;
    w.n_state = (n_tokens + n_ubatch - 1) / n_ubatch + 1;
    w.heads   = take_bytes(end, (size_t) s->n_head * sizeof(struct pass));
    w.H  = take(end, hkv * (size_t) w.n_state * w.state);
    w.dH = take(end, hkv * (size_t) w.n_state * w.state);
    w.pass = take_pass(end, s);
    for (int32_t i = 0; i < s->n_head; i++) {
        const struct pass p = take_pass(end, s);
        if (w.heads) {
            w.heads[i] = p;
        }
    }
    w.inv = take(end, BLOCK * (size_t) s->n_head);
    w.a   = take(end, BLOCK * n_out);
    w.e   = take(end, BLOCK * n_out);
    w.y   = take(end, BLOCK * n_out);
    w.row = take(end, w.ld);
    w.d   = take(end, BLOCK * (size_t) s->rank);
    w.tmp_size = BLOCK * max_of((size_t) s->hidden, (size_t) s->rank) + 16;
    w.tmp  = take(end, 2 * w.tmp_size);
    const size_t k = max_of(max_of((size_t) s->dk, (size_t) s->hidden), max_of(n_out, (size_t) s->rank));
    const size_t m = max_of((size_t) s->hidden, (size_t) s->rank);
    w.pack = take(end, max_of(gemm_pack(BLOCK, (int32_t) k), gemm_pack((int32_t) m, BLOCK)));
    return w;
}

size_t lesskv_train_scratch(const struct lesskv_train_shape * s, int32_t n_tokens, int32_t n_ubatch) {
    struct arena a = { NULL, 0 };
    lay(s, n_tokens, n_ubatch, &a);
    return a.used + 64;
}

static void load_f16(const uint16_t * from, float * to, int32_t n) {
    lesskv_to_f32(LESSKV_TYPE_F16, to, from, n);
}

// Rows of one head of a [S][heads][size] array, tokens t0 .. t0 + n - 1.
static void load_head(const uint16_t * from, int32_t heads, int32_t head, int32_t size, int32_t t0, int32_t n, float * to) {
    for (int32_t i = 0; i < n; i++) {
        load_f16(from + ((size_t) (t0 + i) * (size_t) heads + (size_t) head) * (size_t) size, to + (size_t) i * (size_t) size, size);
    }
}

static float * state_at(const struct room * r, float * H, int32_t head, int32_t m) {
    return H + ((size_t) head * (size_t) r->n_state + (size_t) m) * r->state;
}

// A pair's value and the one that z counts: [v, 1, 0 ...].
static void load_value(const struct lesskv_train_shape * s, const struct lesskv_train_window * w, int32_t head, int32_t t, size_t ld, float * row) {
    load_head(w->v, s->n_head_kv, head, s->dv, t, 1, row);
    row[s->dv] = 1;
    memset(row + s->dv + 1, 0, (ld - (size_t) s->dv - 1) * sizeof(float));
}

static bool any_evicted(const int32_t * evicted, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (evicted[i] != INT32_MAX) {
            return true;
        }
    }
    return false;
}

// 1. psi of what is evicted, summed into the state before each micro-batch.
static void build_states(const struct lesskv_train_shape * s, const float * weights, const struct lesskv_train_window * w, const struct room * r) {
    memset(r->H, 0, (size_t) s->n_head_kv * (size_t) r->n_state * r->state * sizeof(float));
    for (int32_t j = 0; j < s->n_head_kv; j++) {
        const int32_t * evicted = w->evicted + (size_t) j * (size_t) w->n_tokens;
        const struct chain psi = psi_of(s, j);
        for (int32_t t0 = 0; t0 < w->n_tokens; t0 += BLOCK) {
            const int32_t n = w->n_tokens - t0 < BLOCK ? w->n_tokens - t0 : BLOCK;
            if (!any_evicted(evicted + t0, n)) {
                continue;
            }
            load_head(w->k, s->n_head_kv, j, s->dk, t0, n, r->pass.x);
            forward(&psi, weights, &r->pass, n, r->pack);
            for (int32_t i = 0; i < n; i++) {
                if (evicted[t0 + i] != INT32_MAX) {
                    load_value(s, w, j, t0 + i, r->ld, r->row);
                    lesskv_level()->state_add(state_at(r, r->H, j, evicted[t0 + i] + 1), r->pass.out + (size_t) i * (size_t) s->rank, r->row, s->rank, r->ld);
                }
            }
        }
        for (int32_t m = 1; m < r->n_state; m++) {
            float * H = state_at(r, r->H, j, m);
            for (size_t c = 0; c < r->state; c++) {
                H[c] += H[c - r->state];
            }
        }
    }
}

// 2. The output of a block's queries, in r->a; phi is kept.
static void attend(const struct lesskv_train_shape * s, const float * weights, const struct lesskv_train_window * w, const struct room * r, int32_t t0, int32_t n, double * log_mass) {
    const int32_t g = s->n_head / s->n_head_kv;
    for (int32_t h = 0; h < s->n_head; h++) {
        const struct chain phi = phi_of(s, h);
        const struct pass * p = &r->heads[h];
        load_head(w->q, s->n_head, h, s->dk, t0, n, p->x);
        forward(&phi, weights, p, n, r->pack);
        for (int32_t i = 0; i < n; i++) {
            const int32_t t = t0 + i;
            float * a = r->a + ((size_t) i * (size_t) s->n_head + (size_t) h) * (size_t) s->dv;
            lesskv_level()->state_mix(state_at(r, r->H, h / g, t / w->n_ubatch), p->out + (size_t) i * (size_t) s->rank, s->rank, r->ld, r->row);
            const double mass = (double) r->row[s->dv];
            const double L = (double) weights[scale_at(s) + (size_t) h] + log(mass);
            const double share = 1 / (1 + exp((double) w->lse[(size_t) t * (size_t) s->n_head + (size_t) h] - L)); // 0 where mass is
            const float low = (float) share, keep = (float) (1 - share);
            for (int32_t c = 0; mass != 0 && c < s->dv; c++) {
                a[c] = low * (r->row[c] / r->row[s->dv]) + keep * a[c]; // a held the sparse part
            }
            r->inv[i * s->n_head + h] = mass == 0 ? 0 : (float) (share / mass);
            if (log_mass && mass > 0) {
                log_mass[h] += log(mass);
                log_mass[s->n_head + h]++;
            }
        }
    }
}

// 4. The derivatives by phi, on through its weights, by the scale, and by the states. y: by the output, less the factor 2. The output
// depends on the scale as on the length of phi, whose logarithm is added to it: the derivative by the scale is phi times that by phi.
static void attend_back(const struct lesskv_train_shape * s, const float * weights, const struct lesskv_train_window * w, const struct room * r, int32_t t0, int32_t n, float * grad) {
    const int32_t g = s->n_head / s->n_head_kv;
    memset(r->row, 0, r->ld * sizeof(float));
    for (int32_t h = 0; h < s->n_head; h++) {
        const struct chain phi = phi_of(s, h);
        for (int32_t i = 0; i < n; i++) {
            const size_t at = (size_t) i * (size_t) s->n_head + (size_t) h;
            const float * a = r->a + at * (size_t) s->dv, * y = r->y + at * (size_t) s->dv;
            const float f = 2 * r->inv[at];
            float all = 0;
            for (int32_t c = 0; c < s->dv; c++) {
                r->row[c] = f * y[c];
                all += y[c] * a[c];
            }
            r->row[s->dv] = -f * all;
            const int32_t m = (t0 + i) / w->n_ubatch;
            float * d = r->d + (size_t) i * (size_t) s->rank;
            const float * out = r->heads[h].out + (size_t) i * (size_t) s->rank;
            lesskv_level()->state_dot(state_at(r, r->H, h / g, m), r->row, s->rank, r->ld, d);
            lesskv_level()->state_add(state_at(r, r->dH, h / g, m), out, r->row, s->rank, r->ld);
            for (int32_t x = 0; x < s->rank; x++) {
                grad[scale_at(s) + (size_t) h] += out[x] * d[x];
            }
        }
        backward(&phi, weights, &r->heads[h], n, r->d, r->tmp, r->tmp_size, grad, r->pack);
    }
}

// 5. A pair evicted at the end of micro-batch m is in every state after it: sums from the end, and on through psi.
static void states_back(const struct lesskv_train_shape * s, const float * weights, const struct lesskv_train_window * w, const struct room * r, float * grad) {
    for (int32_t j = 0; j < s->n_head_kv; j++) {
        const int32_t * evicted = w->evicted + (size_t) j * (size_t) w->n_tokens;
        const struct chain psi = psi_of(s, j);
        for (int32_t m = r->n_state - 2; m >= 0; m--) {
            float * dH = state_at(r, r->dH, j, m);
            for (size_t c = 0; c < r->state; c++) {
                dH[c] += dH[c + r->state];
            }
        }
        for (int32_t t0 = 0; t0 < w->n_tokens; t0 += BLOCK) {
            const int32_t n = w->n_tokens - t0 < BLOCK ? w->n_tokens - t0 : BLOCK;
            if (!any_evicted(evicted + t0, n)) {
                continue;
            }
            load_head(w->k, s->n_head_kv, j, s->dk, t0, n, r->pass.x);
            forward(&psi, weights, &r->pass, n, r->pack);
            for (int32_t i = 0; i < n; i++) {
                float * d = r->d + (size_t) i * (size_t) s->rank;
                memset(d, 0, (size_t) s->rank * sizeof(float));
                if (evicted[t0 + i] != INT32_MAX) {
                    load_value(s, w, j, t0 + i, r->ld, r->row);
                    lesskv_level()->state_dot(state_at(r, r->dH, j, evicted[t0 + i] + 1), r->row, s->rank, r->ld, d);
                }
            }
            backward(&psi, weights, &r->pass, n, r->d, r->tmp, r->tmp_size, grad, r->pack);
        }
    }
}

// The first token whose queries find something evicted; n_tokens if none does.
static int32_t first_live(const struct lesskv_train_shape * s, const struct lesskv_train_window * w) {
    int32_t m = INT32_MAX;
    for (size_t i = 0; i < (size_t) s->n_head_kv * (size_t) w->n_tokens; i++) {
        m = w->evicted[i] < m ? w->evicted[i] : m;
    }
    return m < (w->n_tokens - 1) / w->n_ubatch ? (m + 1) * w->n_ubatch : w->n_tokens;
}

double lesskv_train_error(const struct lesskv_train_shape * s, const float * weights, const struct lesskv_train_window * w,
        const float * gram, void * scratch, int32_t every, int32_t from, int32_t * n, double * log_mass, float * grad) {
    struct arena memory = { (char *) round_up((uintptr_t) scratch, 64), 0 };
    const struct room r = lay(s, w->n_tokens, w->n_ubatch, &memory);
    const int32_t n_out = s->n_head * s->dv;
    const int32_t first = first_live(s, w);
    const int32_t step = (w->n_tokens - first + BLOCK - 1) / BLOCK < 2 * every ? BLOCK : every * BLOCK;
    *n = 0;
    if (weights) {
        build_states(s, weights, w, &r);
    }
    if (log_mass) {
        memset(log_mass, 0, 2 * (size_t) s->n_head * sizeof *log_mass);
    }
    if (grad) {
        memset(r.dH, 0, (size_t) s->n_head_kv * (size_t) r.n_state * r.state * sizeof(float));
    }
    double error = 0;
    for (int32_t t0 = first + (step > BLOCK ? from * BLOCK : 0); t0 < w->n_tokens; t0 += step) {
        const int32_t nb = w->n_tokens - t0 < BLOCK ? w->n_tokens - t0 : BLOCK;
        *n += nb;
        load_f16(w->sparse + (size_t) t0 * (size_t) n_out, r.a, nb * n_out);
        if (weights) {
            attend(s, weights, w, &r, t0, nb, log_mass);
        }

        // 3. the error, and what it costs behind the output projection
        load_f16(w->full + (size_t) t0 * (size_t) n_out, r.e, nb * n_out);
        for (int32_t i = 0; i < nb * n_out; i++) {
            r.e[i] = r.a[i] - r.e[i];
        }
        lesskv_gemm_panels(nb, n_out, n_out, r.e, (size_t) n_out, gram, r.y, (size_t) n_out, r.pack);
        for (int32_t i = 0; i < nb; i++) {
            float sum = 0;
            for (int32_t c = i * n_out; c < (i + 1) * n_out; c++) {
                sum += r.e[c] * r.y[c];
            }
            error += (double) sum;
        }
        if (weights && grad) {
            attend_back(s, weights, w, &r, t0, nb, grad);
        }
    }
    if (weights && grad) {
        states_back(s, weights, w, &r, grad);
    }
    for (int32_t h = 0; log_mass && h < s->n_head; h++) {
        log_mass[h] /= log_mass[s->n_head + h]; // NaN if none is above 0
    }
    return error;
}

size_t lesskv_train_gram_size(int32_t n_in) {
    return round_up((size_t) n_in, GEMM_N) * (size_t) n_in;
}

enum lesskv_status lesskv_train_gram(const float * wo, int32_t n_out, int32_t n_in, float * gram) {
    const size_t n = (size_t) n_in;
    float * pack = malloc(gemm_pack(n_in, n_out) * sizeof *pack);
    float * rows = malloc(n * n * sizeof *rows);
    if (pack && rows) {
        lesskv_gemm(n_in, n_in, n_out, wo, 1, n, wo, n, 1, rows, n, false, pack);
        for (size_t j = 0; j < n; j += GEMM_N) {
            for (size_t i = 0; i < n; i++) {
                for (size_t x = 0; x < GEMM_N; x++) {
                    *gram++ = j + x < n ? rows[i * n + j + x] : 0;
                }
            }
        }
    }
    const bool ok = pack && rows;
    free(rows);
    free(pack);
    return ok ? LESSKV_OK : LESSKV_ERR_NOMEM;
}
