// policy_lambda.c: the first and the last (Xiao et al., arXiv 2309.17453; Han et al., arXiv 2308.16137): the h oldest
// positions of the sequence and the r newest. With h = 0 it is a sliding window.

#include "policy.h"

static int32_t heavy(int32_t budget) {
    return budget < 4 ? budget : 4;
}

static uint64_t key(float score, int32_t pos) {
    (void) score;
    return (uint32_t) ~pos ^ 0x80000000u;
}

const struct lesskv_policy lesskv_policy_lambda = { "lambda", LESSKV_WORTH_NONE, heavy, NULL, key };
