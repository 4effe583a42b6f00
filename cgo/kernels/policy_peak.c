// policy_peak.c: the highest weight that any query gave a pair, fading by d = 0.95^(1/32) a token. What was needed once,
// recently, stays.

#include "policy.h"

#include <math.h>

static int32_t peak_heavy(int32_t budget) {
    return budget / 4;
}

static void peak_score(const struct lesskv_policy_head * head, float * score, const float * worth, int32_t n) {
    const float fade = powf(0.95f, (float) head->n_tokens / 32);
    for (int32_t i = 0; i < n; i++) {
        const float old = score[i] * fade;
        score[i] = worth[i] > old ? worth[i] : old; // a NaN leaves no trace
    }
}

LESSKV_POLICY(peak) = {
    .name  = "peak",
    .help  = "the most attention at any one time, of late, and the newest",
    .worth = LESSKV_WORTH_MAX,
    .heavy = peak_heavy,
    .score = peak_score,
    .keys  = lesskv_keys_score,
};
