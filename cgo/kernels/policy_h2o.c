// policy_h2o.c: heavy hitters (Zhang et al., arXiv 2306.14048): the score is all the attention that a pair ever got.

#include "policy.h"

static int32_t heavy(int32_t budget) {
    return budget / 2;
}

static void score(float * score, const float * worth, int32_t n, int32_t n_tokens) {
    (void) n_tokens;
    for (int32_t i = 0; i < n; i++) {
        score[i] += worth[i];
    }
}

static void keys(uint64_t * key, const float * score, const int32_t * pos, int32_t n) {
    lesskv_keys_score(key, score, pos, n);
}

const struct lesskv_policy lesskv_policy_h2o = { "h2o", LESSKV_WORTH_SUM, heavy, score, keys };
