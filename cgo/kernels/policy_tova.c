// policy_tova.c: token omission via attention (Oren et al., arXiv 2401.06104): what the last query gives least weight goes.
// Nothing is remembered of earlier queries, and of the recent pairs only the newest stays for being that, as in every policy: a text can
// be cut back by its last token. The authors average over the heads of a layer;
// here each KV head has its own choice, by its g query heads.

#include "policy.h"

#include <string.h>

static int32_t tova_heavy(int32_t budget) {
    return budget > 0 ? budget - 1 : 0;
}

static void tova_score(const struct lesskv_policy_head * head, float * score, const float * worth, int32_t n) {
    (void) head;
    memcpy(score, worth, (size_t) n * sizeof(float));
}

LESSKV_POLICY(tova) = {
    .name    = "tova",
    .help    = "the most attention of the last query",
    .worth   = LESSKV_WORTH_SUM,
    .queries = 1,
    .heavy   = tova_heavy,
    .score   = tova_score,
    .keys    = lesskv_keys_score,
};
