// policy.h: what a policy is. A new one is a file policy_NAME.c and its line in policy.c (and, for the second copy's
// sake, in lesskv_prefix.h).

#ifndef LESSKV_POLICY_H
#define LESSKV_POLICY_H

#include "lesskv.h"

// What the micro-batch's queries and the g heads give a pair, made one number: its worth.
enum lesskv_worth {
    LESSKV_WORTH_NONE, // nothing is asked; there are no scores
    LESSKV_WORTH_SUM,  // the sum of their softmax weights over A
    LESSKV_WORTH_MAX,  // the largest
};

struct lesskv_policy {
    const char *      name;
    enum lesskv_worth worth;

    // h where none is given; 0 <= h <= budget
    int32_t (*heavy)(int32_t budget);

    // Step 2: score[n] after a micro-batch of n_tokens in which the pairs were worth[n]. A new pair comes with 0.
    // NULL with LESSKV_WORTH_NONE.
    void (*score)(float * score, const float * worth, int32_t n, int32_t n_tokens);

    // Step 3, among the pairs that are neither pinned nor of the r newest: the h with the largest keys stay. key[n] of n
    // pairs; distinct positions must get distinct keys; a score may be NaN.
    void (*keys)(uint64_t * key, const float * score, const int32_t * pos, int32_t n);
};

extern const struct lesskv_policy lesskv_policy_h2o;
extern const struct lesskv_policy lesskv_policy_lambda;
extern const struct lesskv_policy lesskv_policy_peak;

// By score; of equal scores the newer one stays. Scores are never negative; NaN, which no comparison puts in its place,
// counts as zero.
static inline void lesskv_keys_score(uint64_t * key, const float * score, const int32_t * pos, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const union { float f; uint32_t u; } s = { score[i] > 0 ? score[i] : 0 };
        key[i] = (uint64_t) s.u << 32 | ((uint32_t) pos[i] ^ 0x80000000u);
    }
}

#endif
