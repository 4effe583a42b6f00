// state.h: what becomes of the evicted pairs of one KV head: LESS's sums H and z. To a query they are one more token, with a
// logit and a value.

#ifndef LESSKV_STATE_H
#define LESSKV_STATE_H

#include "lesskv.h"

#include <stdbool.h>

struct scratch;

struct state {
    float * H; // [R][Dv]
    float * z; // [R]
};

// `layer` is the cache's own, but in a query, where it is the one that asks; R is that of its kernels, without which there is no
// state: 0 bytes.
size_t lesskv_state_bytes(const struct lesskv_layer * layer);
size_t lesskv_state_lay  (struct state * s, const struct lesskv_layer * layer, uintptr_t at); // as lesskv_store_lay
void   lesskv_state_clear(struct state * s, const struct lesskv_layer * layer);
void   lesskv_state_copy (struct state * dst, const struct state * src, const struct lesskv_layer * layer);

// Whether the folds so far can be answered for. A sum that is not finite never is again, and no psi or v that is not finite leaves the
// sums so: 0 times infinity is NaN. One look behind the last fold sees them all.
bool lesskv_state_finite(const struct state * s, const struct lesskv_layer * layer);

// Saved, a state is H and then z.
char *       lesskv_state_save(const struct state * s, const struct lesskv_layer * layer, char * to);
const char * lesskv_state_load(struct state * s, const struct lesskv_layer * layer, const char * from);
bool         lesskv_state_saved_ok(const struct lesskv_layer * layer, const char * from); // finite, which a sequence's always is

// Step 4: H += psi(k)^T v, z += psi(k) for m <= LANES pairs, rows of the layer's types. Uses scratch's x, tile, phi, tmp and low. Here
// and below keys and queries are as the layer has them, rotated or not.
void lesskv_state_fold(struct state * s, const struct lesskv_layer * layer, int32_t head_kv, const void * const * k, const void * const * v,
        int32_t m, const struct scratch * scratch);

// logit = scale + log(phi(qn).z), value[Dv] = phi(qn)H / phi(qn).z; a logit of -INFINITY, and no value, where phi(qn).z is 0. Both rotate qn
// back in its place, and use scratch's phi and tmp; the second tile too.
// m <= FEW_BLOCK queries qn[m][D], each of its query head; values are ldv apart.
void lesskv_state_query(const struct state * s, const struct lesskv_layer * layer, const int32_t * head_q, float * qn, int32_t m,
        float * logit, float * value, size_t ldv, const struct scratch * scratch);
// A block qn[D][LANES] of one query head, of which the first m lanes count: logit[LANES], value[LANES][round_up(Dv, PAD)].
void lesskv_state_query_block(const struct state * s, const struct lesskv_layer * layer, int32_t head_q, float * qn, int32_t m,
        float * logit, float * value, const struct scratch * scratch);

// The same in simple loops and double precision. sums: [R][Dv + 1], a row of H and its element of z. phi, psi: R floats; tmp: R' + 2 R;
// row: D of a query, 2 D + Dv of a pair.
double lesskv_state_query_ref(const struct state * s, const struct lesskv_layer * layer, int32_t head_q, const float * qn, double * value, float * row, float * phi, float * tmp);
void   lesskv_state_fold_ref (double * sums, const struct lesskv_layer * layer, int32_t head_kv, const void * k, const void * v, float * row, float * psi, float * tmp);
void   lesskv_state_widen    (const struct state * s, const struct lesskv_layer * layer, double * sums);
void   lesskv_state_round    (struct state * s, const struct lesskv_layer * layer, const double * sums);

#endif
