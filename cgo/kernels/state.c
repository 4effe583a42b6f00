// state.c: H and z of one KV head: laid out, folded into, asked, copied and saved; the plain loops last. See state.h.

#include "internal.h"
#include "vec.h"

#include <string.h>

static size_t rank_of(const struct lesskv_layer * l) {
    return l->kernels ? (size_t) l->kernels->rank : 0;
}

// Bytes of H; those of z.
static size_t bytes_H(const struct lesskv_layer * l) {
    return times(rank_of(l), (size_t) l->dv * sizeof(float));
}

static size_t bytes_z(const struct lesskv_layer * l) {
    return rank_of(l) * sizeof(float);
}

size_t lesskv_state_bytes(const struct lesskv_layer * layer) {
    return plus(bytes_H(layer), bytes_z(layer));
}

size_t lesskv_state_lay(struct state * s, const struct lesskv_layer * layer, uintptr_t at) {
    size_t total = 0;
    s->H = lesskv_area(at, &total, bytes_H(layer));
    s->z = lesskv_area(at, &total, bytes_z(layer));
    return total;
}

void lesskv_state_clear(struct state * s, const struct lesskv_layer * layer) {
    memset(s->H, 0, bytes_H(layer));
    memset(s->z, 0, bytes_z(layer));
}

void lesskv_state_copy(struct state * dst, const struct state * src, const struct lesskv_layer * layer) {
    memcpy(dst->H, src->H, bytes_H(layer));
    memcpy(dst->z, src->z, bytes_z(layer));
}

static bool all_finite(const float * x, size_t n) {
    vf odd = {0}; // NaN once a number is not finite: so is 0 times infinity
    for (size_t i = 0; i < n; i += VW) {
        vf tail = {0};
        memcpy(&tail, x + i, (n - i < VW ? n - i : VW) * sizeof(float));
        odd += 0 * tail;
    }
    return vf_sum(odd) == 0;
}

bool lesskv_state_finite(const struct state * s, const struct lesskv_layer * layer) {
    return all_finite(s->H, bytes_H(layer) / sizeof(float)) && all_finite(s->z, bytes_z(layer) / sizeof(float));
}

char * lesskv_state_save(const struct state * s, const struct lesskv_layer * layer, char * to) {
    return put(put(to, s->H, bytes_H(layer)), s->z, bytes_z(layer));
}

const char * lesskv_state_load(struct state * s, const struct lesskv_layer * layer, const char * from) {
    return get(s->z, get(s->H, from, bytes_H(layer)), bytes_z(layer));
}

bool lesskv_state_saved_ok(const struct lesskv_layer * layer, const char * from) {
    float block[64]; // what is saved lies anywhere
    for (size_t n = lesskv_state_bytes(layer) / sizeof(float); n > 0;) {
        const size_t m = n < 64 ? n : 64;
        from = get(block, from, m * sizeof(float));
        if (!all_finite(block, m)) {
            return false;
        }
        n -= m;
    }
    return true;
}

// H += psi^T v, z += psi; psi[R], step apart.
static void fold_one(struct state * s, const struct lesskv_layer * l, const float * psi, size_t step, const void * row, float * v) {
    lesskv_to_f32(l->type_v, v, row, l->dv);
    for (int32_t r = 0; r < l->kernels->rank; r++) {
        const float p = psi[(size_t) r * step];
        float * H = s->H + (size_t) r * (size_t) l->dv;
        for (int32_t c = 0; c < l->dv; c++) {
            H[c] += p * v[c];
        }
        s->z[r] += p;
    }
}

// phi and psi are made for vectors that are not rotated: x[n][width], width as in level.h.
static void rotate_back(const struct lesskv_layer * l, float * x, size_t n, size_t width) {
    if (l->rotation > 0) {
        lesskv_level()->rotate(x, n, (size_t) l->rotation, width);
    }
}

void lesskv_state_fold(struct state * s, const struct lesskv_layer * layer, int32_t head_kv, const void * const * k, const void * const * v,
        int32_t m, const struct scratch * scratch) {
    const struct scratch * w = scratch;
    if (m < LANES / 2) { // a block costs as much with one lane as with all
        for (int32_t j = 0; j < m; j++) {
            lesskv_to_f32(layer->type_k, w->x, k[j], layer->dk);
            rotate_back(layer, w->x, (size_t) layer->dk, 1);
            lesskv_psi(layer->kernels, layer->dk, head_kv, w->x, 1, w->phi, w->tmp);
            fold_one(s, layer, w->phi, 1, v[j], w->low);
        }
        return;
    }
    for (int32_t j = 0; j < m; j++) {
        lesskv_to_f32(layer->type_k, w->tile, k[j], layer->dk);
        for (int32_t d = 0; d < layer->dk; d++) {
            w->x[(size_t) d * LANES + (size_t) j] = w->tile[d]; // lanes beyond m hold anything and are not looked at
        }
    }
    rotate_back(layer, w->x, (size_t) layer->dk, LANES);
    lesskv_psi_block(layer->kernels, layer->dk, head_kv, w->x, w->phi, w->tmp, w->tile);
    for (int32_t j = 0; j < m; j++) {
        fold_one(s, layer, w->phi + j, LANES, v[j], w->low);
    }
}

static struct rows rows_of_H(const struct state * s, const struct lesskv_layer * l) {
    return (struct rows) { LESSKV_TYPE_F32, s->H, (size_t) l->dv * sizeof(float), l->kernels->rank };
}

static float scale_of(const struct lesskv_layer * l, int32_t head_q) {
    return l->kernels->phi_scale ? l->kernels->phi_scale[head_q] : 0;
}

// The logit of a query of head_q whose phi(qn).z is mass; value[Dv] = phi(qn)H becomes its value.
static float answer(const struct lesskv_layer * l, int32_t head_q, float mass, float * value) {
    if (mass == 0) {
        return -INFINITY;
    }
    for (int32_t c = 0; c < l->dv; c++) {
        value[c] /= mass;
    }
    return scale_of(l, head_q) + logf(mass); // NaN stays
}

void lesskv_state_query(const struct state * s, const struct lesskv_layer * layer, const int32_t * head_q, float * qn, int32_t m,
        float * logit, float * value, size_t ldv, const struct scratch * scratch) {
    const size_t rank = rank_of(layer);
    rotate_back(layer, qn, (size_t) m * (size_t) layer->dk, 1);
    for (int32_t j = 0; j < m; j++) {
        float * phi = scratch->phi + (size_t) j * rank;
        lesskv_phi(layer->kernels, layer->dk, head_q[j], qn + (size_t) j * (size_t) layer->dk, 1, phi, scratch->tmp);
        logit[j] = 0;
        for (size_t r = 0; r < rank; r++) {
            logit[j] += phi[r] * s->z[r];
        }
    }
    memset(value, 0, (size_t) m * ldv * sizeof(float));
    lesskv_cols_few(rows_of_H(s, layer), layer->dv, scratch->phi, rank, m, value, ldv);
    for (int32_t j = 0; j < m; j++) {
        logit[j] = answer(layer, head_q[j], logit[j], value + (size_t) j * ldv);
    }
}

void lesskv_state_query_block(const struct state * s, const struct lesskv_layer * layer, int32_t head_q, float * qn, int32_t m,
        float * logit, float * value, const struct scratch * scratch) {
    const size_t ldv = round_up((size_t) layer->dv, PAD);
    rotate_back(layer, qn, (size_t) layer->dk, LANES);
    lesskv_phi_block(layer->kernels, layer->dk, head_q, qn, scratch->phi, scratch->tmp, scratch->tile);
    memset(logit, 0, LANES * sizeof(float));
    for (size_t r = 0; r < rank_of(layer); r++) {
        for (int i = 0; i < LANES; i++) {
            logit[i] += scratch->phi[r * LANES + (size_t) i] * s->z[r];
        }
    }
    memset(value, 0, ldv * LANES * sizeof(float));
    lesskv_cols_block(rows_of_H(s, layer), layer->dv, scratch->phi, 0, m, value, scratch->tile);
    for (int32_t i = 0; i < m; i++) {
        logit[i] = answer(layer, head_q, logit[i], value + (size_t) i * ldv);
    }
}

// out[D] = x[D] as it was before the rotation, element by element: the Hadamard matrix has -1 where the row's and the column's number have an
// odd number of bits in common.
static void rotate_back_ref(const struct lesskv_layer * l, const float * x, float * out) {
    const int32_t n = l->rotation > 0 ? l->rotation : 1;
    for (int32_t d = 0; d < l->dk; d++) {
        const float * block = x + d / n * n;
        double sum = 0;
        for (int32_t i = 0; i < n; i++) {
            sum += __builtin_parity((unsigned) (d % n & i)) ? -(double) block[i] : (double) block[i];
        }
        out[d] = (float) (sum / sqrt((double) n));
    }
}

double lesskv_state_query_ref(const struct state * s, const struct lesskv_layer * layer, int32_t head_q, const float * qn, double * value, float * row, float * phi, float * tmp) {
    const size_t rank = rank_of(layer), dv = (size_t) layer->dv;
    rotate_back_ref(layer, qn, row);
    lesskv_phi_ref(layer->kernels, layer->dk, head_q, row, phi, tmp);
    double mass = 0;
    for (size_t r = 0; r < rank; r++) {
        mass += (double) phi[r] * (double) s->z[r];
    }
    for (size_t c = 0; c < dv; c++) {
        value[c] = 0;
        for (size_t r = 0; r < rank && mass != 0; r++) {
            value[c] += (double) phi[r] * (double) s->H[r * dv + c] / mass;
        }
    }
    return mass != 0 ? (double) scale_of(layer, head_q) + log(mass) : -INFINITY;
}

void lesskv_state_fold_ref(double * sums, const struct lesskv_layer * layer, int32_t head_kv, const void * k, const void * v, float * row, float * psi, float * tmp) {
    float * slot = row, * key = slot + layer->dk, * value = key + layer->dk;
    lesskv_to_f32(layer->type_k, slot, k, layer->dk);
    lesskv_to_f32(layer->type_v, value, v, layer->dv);
    rotate_back_ref(layer, slot, key);
    lesskv_psi_ref(layer->kernels, layer->dk, head_kv, key, psi, tmp);
    for (int32_t r = 0; r < layer->kernels->rank; r++) {
        for (int32_t c = 0; c < layer->dv; c++) {
            *sums++ += (double) psi[r] * (double) value[c];
        }
        *sums++ += (double) psi[r];
    }
}

void lesskv_state_widen(const struct state * s, const struct lesskv_layer * layer, double * sums) {
    const size_t dv = (size_t) layer->dv;
    for (size_t r = 0; r < rank_of(layer); r++, sums += dv + 1) {
        for (size_t c = 0; c < dv; c++) {
            sums[c] = (double) s->H[r * dv + c];
        }
        sums[dv] = (double) s->z[r];
    }
}

void lesskv_state_round(struct state * s, const struct lesskv_layer * layer, const double * sums) {
    const size_t dv = (size_t) layer->dv;
    for (size_t r = 0; r < rank_of(layer); r++, sums += dv + 1) {
        for (size_t c = 0; c < dv; c++) {
            s->H[r * dv + c] = (float) sums[c];
        }
        s->z[r] = (float) sums[dv];
    }
}
