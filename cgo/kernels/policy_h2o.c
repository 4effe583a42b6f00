// policy_h2o.c: heavy hitters (Zhang et al., arXiv 2306.14048): the score is all the attention that a pair ever got.

#include "policy.h"

static int32_t h2o_heavy(int32_t budget) {
    return budget / 2;
}

static void h2o_score(const struct lesskv_policy_head * head, float * score, const float * worth, int32_t n) {
    (void) head;
    for (int32_t i = 0; i < n; i++) {
        score[i] += worth[i];
    }
}

LESSKV_POLICY(h2o) = {
    .name  = "h2o",
    .help  = "the most attention since they came, and the newest",
    .worth = LESSKV_WORTH_SUM,
    .heavy = h2o_heavy,
    .score = h2o_score,
    .keys  = lesskv_keys_score,
};
