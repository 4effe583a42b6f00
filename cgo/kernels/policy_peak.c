// policy_peak.c: the highest weight that any query gave a pair, fading by d = 0.95^(1/32) a token. What was needed once,
// recently, stays.

#include "policy.h"

#include <math.h>

static int32_t heavy(int32_t budget) {
    return budget / 4;
}

static void score(float * score, const float * worth, int32_t n, int32_t n_tokens) {
    const float fade = powf(0.95f, (float) n_tokens / 32);
    for (int32_t i = 0; i < n; i++) {
        const float old = score[i] * fade;
        score[i] = worth[i] > old ? worth[i] : old; // a NaN leaves no trace
    }
}

static void keys(uint64_t * key, const float * score, const int32_t * pos, int32_t n) {
    lesskv_keys_score(key, score, pos, n);
}

const struct lesskv_policy lesskv_policy_peak = { "peak", LESSKV_WORTH_MAX, heavy, score, keys };
