// train.h: what training needs of one layer: the sparse policy's replay over a recorded window, and the error of the
// layer's output with its gradient, both in time linear in the window. Training itself is Go.
//
// A window is S tokens of one sequence that the full cache has seen, cut into micro-batches of T. Replayed once, its sparse
// part is constant: every query keeps the output s and the log of the softmax denominator of what it sees exactly, every
// pair the micro-batch at whose end it is evicted. The low-rank state before micro-batch m is then a cumulative sum over the
// pairs evicted before m, and its gradient one from the other end:
//
//     a    = p phi H_m / phi z_m + (1 - p) s        H_m = sum of psi(k)^T v, z_m = sum of psi(k), evicted < m
//     p    = 1 / (1 + e^(lse - L))                  L = scale + log(phi z_m), of logits of any size
//     loss = sum over queries of |(a - full) Wo|^2 = (a - full) (Wo Wo^T) (a - full)^T
//
// where a stands for all heads of a token, joined. Symbols as in lesskv.h. All 16-bit data is f16.

#ifndef LESSKV_TRAIN_H
#define LESSKV_TRAIN_H

#include "lesskv.h"

#ifdef LESSKV_PREFIX
#define lesskv_train_replay    LESSKV_NAME(lesskv_train_replay)
#define lesskv_train_missing   LESSKV_NAME(lesskv_train_missing)
#define lesskv_train_weights   LESSKV_NAME(lesskv_train_weights)
#define lesskv_train_scratch   LESSKV_NAME(lesskv_train_scratch)
#define lesskv_train_error     LESSKV_NAME(lesskv_train_error)
#define lesskv_train_gram_size LESSKV_NAME(lesskv_train_gram_size)
#define lesskv_train_gram      LESSKV_NAME(lesskv_train_gram)
#endif

struct lesskv_train_window {
    int32_t n_tokens;       // S
    int32_t n_ubatch;       // T
    const uint16_t * q;     // [S][Hq][D], as phi takes it (qn in algorithm.md): q s sqrt(D)
    const uint16_t * k;     // [S][Hkv][D], as the cache rounded it
    const uint16_t * v;     // [S][Hkv][Dv], the same
    const uint16_t * full;  // [S][Hq][Dv]: attention over the full cache
    uint16_t *       sparse;  // [S][Hq][Dv]: attention over A alone, sinks in the denominator
    float *          lse;     // [S][Hq]: log of that attention's denominator
    int32_t *        evicted; // [Hkv][S]: the micro-batch at whose end the pair goes; INT32_MAX if it stays
};

// A layer that shares the cache of another over the same window: what pairs are worth to its queries counts too.
struct lesskv_train_sharer {
    int32_t n_head;                       // Hq, a multiple of Hkv
    const struct lesskv_train_window * w; // as the owner's, k and v included, but for the queries and what they see
    const float * sinks;                  // [Hq] or NULL
};

// Fills sparse, lse and evicted of the window and of the sharers' windows. layer: its types are f16, it has no kernels and no window.
// LESSKV_ERR_NOMEM, LESSKV_ERR_ARG.
enum lesskv_status lesskv_train_replay(const struct lesskv_layer * layer, const struct lesskv_train_window * w, float soft_cap, const float * sinks,
    const struct lesskv_train_sharer * sharers, int32_t n_sharers);

// missing[3][Hq]: the logarithm of the softmax mass that the sparse part misses, log of the sum of e^(qn k / sqrt(D)) over the pairs
// evicted before the query's micro-batch: its mean over every step-th query past the head's first eviction, and the least and the most
// of it; a mean of NaN where nothing is evicted. LESSKV_ERR_NOMEM.
enum lesskv_status lesskv_train_missing(const struct lesskv_layer * layer, const struct lesskv_train_window * w, float soft_cap, int32_t step, double * missing);

// What the kernels are trained as: one array of f32, the matrices of struct lesskv_kernels one after the other, each
// [head][out][in]: phi 0, phi 1, psi 0, psi 1, psi 2; and phi's scale [Hq].
struct lesskv_train_shape {
    int32_t n_head, n_head_kv; // Hq, Hkv
    int32_t dk, dv;            // D, Dv
    int32_t rank, hidden;      // R, R'
};
size_t lesskv_train_weights(const struct lesskv_train_shape * shape); // floats
size_t lesskv_train_scratch(const struct lesskv_train_shape * shape, int32_t n_tokens, int32_t n_ubatch); // bytes

// The squared error over the tokens past the first eviction, and their number in *n. Of their blocks of 64 tokens every `every`-th one
// counts, from the from-th on, 0 <= from < every; all of them where there are fewer than 2 every.
//     weights   NULL: the sparse part alone
//     gram      Wo Wo^T, as lesskv_train_gram has it
//     log_mass  [2][Hq]: log(phi z), its mean over the queries that find it above 0, NaN if none does, and behind that the
//               number of these; or NULL
//     grad      as weights: the error's gradient is added to it, and is not finite where f32 does not hold it, as phi z near 1e-38 may
//               make it; or NULL
double lesskv_train_error(const struct lesskv_train_shape * shape, const float * weights, const struct lesskv_train_window * w,
    const float * gram, void * scratch, int32_t every, int32_t from, int32_t * n, double * log_mass, float * grad);

// Wo Wo^T, a square matrix of n_in, in columns of 16 (lesskv_gemm_panels): gram has lesskv_train_gram_size floats. Wo is stored output
// by output: wo[n_out][n_in]. LESSKV_ERR_NOMEM is the only failure.
size_t lesskv_train_gram_size(int32_t n_in);
enum lesskv_status lesskv_train_gram(const float * wo, int32_t n_out, int32_t n_in, float * gram);

#endif
