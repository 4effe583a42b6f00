// phi_psi.c: the learned functions ("phi and psi" in algorithm.md; LESS, equations 5 and 6).
//
//     phi(q) = | gelu( gelu(q W1) W2 ) |       psi(k) = | gelu( gelu(k U1) U2 ) U3 |
//
// Both are a chain of layers; a layer's matrix is stored output by output, so that each output is a row times the input.

#include "internal.h"

#include <math.h>

// One head's n_out rows of a stack of matrices.
static struct rows head_of(struct lesskv_mat m, int32_t head, int32_t n_out, int32_t n_in) {
    const size_t row = lesskv_row_size(m.type, n_in);
    return (struct rows) { m.type, (const char *) m.data + (size_t) head * (size_t) n_out * row, row, n_out };
}

static void layer(struct lesskv_mat m, int32_t head, int32_t n_out, int32_t n_in, enum lesskv_then then, const float * x, float * out, float * tile) {
    lesskv_rows_block(head_of(m, head, n_out, n_in), n_in, x, LANES, out, 0, tile);
    lesskv_level()->activate(then, out, (size_t) n_out * LANES);
}

void lesskv_phi_block(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, float * out, float * tmp, float * tile) {
    layer(w->phi[0], head, w->hidden, dk,        LESSKV_GELU,     x,   tmp, tile);
    layer(w->phi[1], head, w->rank,   w->hidden, LESSKV_GELU_ABS, tmp, out, tile);
}

void lesskv_psi_block(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, float * out, float * tmp, float * tile) {
    float * mid = tmp + (size_t) w->hidden * LANES;
    layer(w->psi[0], head, w->hidden, dk,        LESSKV_GELU, x,   tmp, tile);
    layer(w->psi[1], head, w->rank,   w->hidden, LESSKV_GELU, tmp, mid, tile);
    layer(w->psi[2], head, w->rank,   w->rank,   LESSKV_ABS,  mid, out, tile);
}

static void layer_one(struct lesskv_mat m, int32_t head, int32_t n_out, int32_t n_in, enum lesskv_then then, const float * x, float * out) {
    lesskv_rows_few(head_of(m, head, n_out, n_in), n_in, x, 0, 1, out, 0);
    lesskv_level()->activate(then, out, (size_t) n_out);
}

void lesskv_phi(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, int32_t n, float * out, float * tmp) {
    for (int32_t i = 0; i < n; i++, x += dk, out += w->rank) {
        layer_one(w->phi[0], head, w->hidden, dk,        LESSKV_GELU,     x,   tmp);
        layer_one(w->phi[1], head, w->rank,   w->hidden, LESSKV_GELU_ABS, tmp, out);
    }
}

void lesskv_psi(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, int32_t n, float * out, float * tmp) {
    float * mid = tmp + w->hidden;
    for (int32_t i = 0; i < n; i++, x += dk, out += w->rank) {
        layer_one(w->psi[0], head, w->hidden, dk,        LESSKV_GELU, x,   tmp);
        layer_one(w->psi[1], head, w->rank,   w->hidden, LESSKV_GELU, tmp, mid);
        layer_one(w->psi[2], head, w->rank,   w->rank,   LESSKV_ABS,  mid, out);
    }
}

// The i-th element of a row.
static float element(enum lesskv_type type, const char * row, int32_t i) {
    float block[32];
    if (lesskv_row_size(type, 1) == 0) { // in blocks
        lesskv_to_f32(type, block, row + (size_t) (i / 32) * lesskv_row_size(type, 32), 32);
        return block[i % 32];
    }
    lesskv_to_f32(type, block, row + lesskv_row_size(type, 1) * (size_t) i, 1);
    return block[0];
}

// out[n_out] = x[n_in] times one head's matrix, element by element.
static void product_ref(struct lesskv_mat m, int32_t head, int32_t n_out, int32_t n_in, const float * x, float * out) {
    const size_t row = lesskv_row_size(m.type, n_in);
    for (int32_t o = 0; o < n_out; o++) {
        const char * w = (const char *) m.data + ((size_t) head * (size_t) n_out + (size_t) o) * row;
        double sum = 0;
        for (int32_t i = 0; i < n_in; i++) {
            sum += (double) element(m.type, w, i) * (double) x[i];
        }
        out[o] = (float) sum;
    }
}

static float gelu_ref(float x) {
    return (float) (x / 2.0 * erfc(-x / sqrt(2.0)));
}

void lesskv_phi_ref(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, float * out, float * tmp) {
    product_ref(w->phi[0], head, w->hidden, dk, x, tmp);
    for (int32_t i = 0; i < w->hidden; i++) {
        tmp[i] = gelu_ref(tmp[i]);
    }
    product_ref(w->phi[1], head, w->rank, w->hidden, tmp, out);
    for (int32_t i = 0; i < w->rank; i++) {
        out[i] = fabsf(gelu_ref(out[i]));
    }
}

void lesskv_psi_ref(const struct lesskv_kernels * w, int32_t dk, int32_t head, const float * x, float * out, float * tmp) {
    float * mid = tmp + w->hidden;
    product_ref(w->psi[0], head, w->hidden, dk, x, tmp);
    for (int32_t i = 0; i < w->hidden; i++) {
        tmp[i] = gelu_ref(tmp[i]);
    }
    product_ref(w->psi[1], head, w->rank, w->hidden, tmp, mid);
    for (int32_t i = 0; i < w->rank; i++) {
        mid[i] = gelu_ref(mid[i]);
    }
    product_ref(w->psi[2], head, w->rank, w->rank, mid, out);
    for (int32_t i = 0; i < w->rank; i++) {
        out[i] = fabsf(out[i]);
    }
}
