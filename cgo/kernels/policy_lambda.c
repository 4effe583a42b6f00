// policy_lambda.c: the first and the last (Xiao et al., arXiv 2309.17453; Han et al., arXiv 2308.16137): the h oldest
// positions of the sequence and the r newest. With h = 0 it is a sliding window, and serves for one.

#include "policy.h"

static int32_t lambda_heavy(int32_t budget) {
    return budget < 4 ? budget : 4;
}

static void lambda_keys(const struct lesskv_policy_head * head, uint64_t * key, const float * score, const int32_t * pos, int32_t n) {
    (void) head;
    (void) score;
    for (int32_t i = 0; i < n; i++) {
        key[i] = (uint32_t) ~pos[i] ^ 0x80000000u;
    }
}

LESSKV_POLICY(lambda) = {
    .name  = "lambda",
    .help  = "the oldest and the newest",
    .worth = LESSKV_WORTH_NONE,
    .heavy = lambda_heavy,
    .keys  = lambda_keys,
};
