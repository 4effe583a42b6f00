// window.c: a policy that goes by a window, the last 3 queries of a micro-batch (as SnapKV does, Li et al., arXiv 2404.14469). It is one
// definition; none that this package comes with counts more queries than one and fewer than all. window_test.go compiles and runs it. The status is 1
// where what stays is not what the window's queries looked at, or where the fast loops and the plain ones disagree.

#include "../policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 3, D = 32, MOST = 40 };

static void fail(const char * what) {
    puts(what);
    exit(1);
}

static int32_t half(int32_t budget) {
    return budget / 2;
}

static void window_score(const struct lesskv_policy_head * head, float * score, const float * worth, int32_t n) {
    const struct lesskv_layer * l = head->layer;
    const int32_t slots = l->budgets ? l->budgets[head->head_kv].slots : l->budget.slots;
    if (head->head_kv < 0 || head->head_kv >= l->n_head_kv || head->budget.slots != slots || head->budget.heavy != half(slots) || head->n_tokens < 1) {
        fail("the policy sees another head");
    }
    memcpy(score, worth, (size_t) n * sizeof *score);
}

LESSKV_POLICY(window) = {
    .name    = "window",
    .help    = "the most attention of the last 3 queries",
    .worth   = LESSKV_WORTH_SUM,
    .queries = WINDOW,
    .heavy   = half,
    .score   = window_score,
    .keys    = lesskv_keys_score,
};

static float rnd(void) {
    static uint32_t x = 1;
    x = x * 1664525 + 1013904223;
    return (float) (x >> 8) / (1 << 24) - 0.5f;
}

static struct lesskv_cache * empty(const struct lesskv_layer * layer) {
    struct lesskv_cache * cache;
    if (lesskv_cache_new(&cache, layer) != LESSKV_OK) {
        fail("no cache");
    }
    return cache;
}

// q [T][Hq][D], k and v [T][Hkv][D]
static struct lesskv_ubatch ubatch(const struct lesskv_layer * layer, int32_t pos, int32_t n, const float * q, const float * k, const float * v, float * out) {
    const size_t row = D*sizeof(float), kv = (size_t) layer->n_head_kv*row;
    return (struct lesskv_ubatch) { .n_tokens = n, .pos = pos, .q = q, .q_head = row, .q_token = (size_t) layer->n_head*row,
        .k = k, .k_head = row, .k_token = kv, .v = v, .v_head = row, .v_token = kv, .scale = 1, .out = out };
}

// Five queries look at the first pair, then two at the second and one at the third: by a window of three the first goes.
static void looked_at(const struct lesskv_layer * layer) {
    static const int looks[] = { 0, 0, 0, 0, 0, 1, 1, 2 };
    static float q[8*D], k[8*D], v[8*D], out[8*D];
    for (int t = 0; t < 8; t++) {
        k[t*D + t]        = 1;
        q[t*D + looks[t]] = 20;
    }
    struct lesskv_cache * cache = empty(layer);
    const struct lesskv_ubatch ub = ubatch(layer, 0, 8, q, k, v, out);
    void * scratch = malloc(lesskv_scratch_size(layer, 8, 1));
    lesskv_attend(cache, &ub, scratch, 1, 0, 1);
    lesskv_commit(cache, &ub, scratch, 1, 0, 1);
    int32_t pos[8];
    float score[8];
    int stays[8] = { 0 };
    const int32_t n = lesskv_cache_slots(cache, 0, 8, pos, score);
    for (int32_t i = 0; i < n; i++) {
        stays[pos[i]] = 1;
    }
    if (n != 4 || !stays[1] || !stays[2] || !stays[6] || !stays[7]) { // two by attention, two as the newest
        fail("the window's queries do not decide what stays");
    }
    free(scratch);
    lesskv_cache_free(cache);
}

// Micro-batches shorter than the window, as long and longer, by the fast loops and by the plain ones.
static void agree(const struct lesskv_layer * layer) {
    static const int32_t batches[] = { 40, 1, 2, 3, 4, 17, 1, 40, 5, 3 };
    struct lesskv_cache * fast = empty(layer), * plain = empty(layer);
    void * scratch = malloc(lesskv_scratch_size(layer, MOST, 1));
    double * worth = malloc((size_t) layer->n_head_kv*(size_t) (lesskv_cache_width(plain) + MOST)*sizeof *worth);
    int32_t at = 0;
    for (size_t i = 0; i < sizeof batches/sizeof batches[0]; i++) {
        static float q[MOST*4*D], k[MOST*2*D], v[MOST*2*D], out[2][MOST*4*D];
        const int32_t n = batches[i];
        for (int j = 0; j < MOST*4*D; j++) {
            q[j] = 6*rnd();
        }
        for (int j = 0; j < MOST*2*D; j++) {
            k[j] = rnd();
            v[j] = rnd();
        }
        const struct lesskv_ubatch a = ubatch(layer, at, n, q, k, v, out[0]), b = ubatch(layer, at, n, q, k, v, out[1]);
        lesskv_attend(fast, &a, scratch, 1, 0, 1);
        lesskv_commit(fast, &a, scratch, 1, 0, 1);
        memset(worth, 0, (size_t) layer->n_head_kv*(size_t) (lesskv_cache_width(plain) + n)*sizeof *worth);
        if (lesskv_attend_ref(plain, &b, worth) != LESSKV_OK || lesskv_commit_ref(plain, &b, worth, NULL) != LESSKV_OK) {
            fail("the plain loops fail");
        }
        for (int j = 0; j < n*layer->n_head*D; j++) {
            if (!(fabsf(out[0][j] - out[1][j]) <= 1e-4f)) {
                fail("outputs differ");
            }
        }
        for (int32_t h = 0; h < layer->n_head_kv; h++) {
            int32_t pos[2][MOST];
            float score[2][MOST];
            const int32_t held = lesskv_cache_slots(fast, h, MOST, pos[0], score[0]);
            if (held != lesskv_cache_slots(plain, h, MOST, pos[1], score[1]) || memcmp(pos[0], pos[1], (size_t) held*sizeof(int32_t)) != 0) {
                fail("other pairs stay");
            }
            for (int32_t j = 0; j < held; j++) {
                if (!(fabsf(score[0][j] - score[1][j]) <= 1e-4f)) {
                    fail("scores differ");
                }
            }
        }
        at += n;
    }
    free(worth);
    free(scratch);
    lesskv_cache_free(fast);
    lesskv_cache_free(plain);
}

int main(void) {
    const struct lesskv_policy * policy = lesskv_policy_find("window");
    if (!policy || strcmp(lesskv_policy_name(policy), "window") != 0) {
        fail("the policy is not in the list");
    }
    const struct lesskv_layer one = { .n_head = 1, .n_head_kv = 1, .dk = D, .dv = D, .type_k = LESSKV_TYPE_F32, .type_v = LESSKV_TYPE_F32,
        .policy = policy, .budget = { 4, lesskv_policy_heavy(policy, 4) } };
    looked_at(&one);
    struct lesskv_layer grouped = one;
    grouped.n_head    = 4;
    grouped.n_head_kv = 2;
    static const struct lesskv_budget budgets[] = { { 8, 4 }, { 16, 8 } };
    grouped.budgets   = budgets;
    grouped.pinned    = 1;
    agree(&grouped);
    return 0;
}
