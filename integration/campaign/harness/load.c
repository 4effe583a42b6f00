// load.c: lesskv_cache_load, and what is done with a cache that it filled. The first byte chooses a layer, the rest are edits of what
// such a cache saved. What is refused changes nothing; what is taken is saved as a state that loads as itself, and the cache goes on:
// it attends, evicts and is cut.

#include "harness.h"

#include "lesskv.h"

enum { HQ = 4, HKV = 2, D = 32, B = 4, R = 2, RH = 3, T = 3, MAX_SCRATCH = 1 << 20 };

static struct lesskv_kernels kernels;
static struct lesskv_layer   layers[64];
static int                   n_layers;
static char                  scratch[MAX_SCRATCH];

// Any numbers, always the same.
static float next(void) {
    static uint32_t x = 1;
    x = x*1664525u + 1013904223u;
    return (float) (x >> 8)/(1 << 24) - 0.5f;
}

static struct lesskv_mat mat(size_t n) {
    float * w = (float *) malloc(n*sizeof(float)); // for the life of the process
    HOLDS(w);
    for (size_t i = 0; i < n; i++) {
        w[i] = next();
    }
    return (struct lesskv_mat) { LESSKV_TYPE_F32, w };
}

static void step(struct lesskv_cache * cache, int32_t pos) {
    const struct lesskv_layer * l = lesskv_cache_layer(cache);
    const size_t row_k = lesskv_row_size(l->type_k, D), row_v = lesskv_row_size(l->type_v, D);
    float q[T*HQ*D], x[T*HKV*D], out[T*HQ*D];
    char  k[T*HKV*D*4], v[T*HKV*D*4];
    for (int i = 0; i < T*HQ*D; i++) {
        q[i] = next();
    }
    for (int i = 0; i < T*HKV*D; i++) {
        x[i] = next();
    }
    for (int i = 0; i < T*HKV; i++) {
        lesskv_from_f32(l->type_k, k + (size_t) i*row_k, x + i*D, D);
        lesskv_from_f32(l->type_v, v + (size_t) i*row_v, x + i*D, D);
    }
    const struct lesskv_ubatch ub = {
        .n_tokens = T, .pos = pos,
        .q = q, .q_head = D*sizeof(float), .q_token = HQ*D*sizeof(float),
        .k = k, .k_head = row_k, .k_token = HKV*row_k,
        .v = v, .v_head = row_v, .v_token = HKV*row_v,
        .scale = 0.2f, .out = out,
    };
    HOLDS(lesskv_scratch_size(l, T, 1) <= MAX_SCRATCH);
    lesskv_attend(cache, &ub, scratch, 1, 0, 1);
    lesskv_commit(cache, &ub, scratch, 1, 0, 1);
}

static uint8_t * save(const struct lesskv_cache * cache, size_t * n) {
    *n = lesskv_cache_save_size(cache);
    uint8_t * b = (uint8_t *) malloc(*n);
    HOLDS(b);
    lesskv_cache_save(cache, b);
    return b;
}

static struct lesskv_cache * filled(const struct lesskv_layer * l, int steps) {
    struct lesskv_cache * cache = NULL;
    HOLDS(lesskv_cache_new(&cache, l) == LESSKV_OK);
    for (int i = 0; i < steps; i++) {
        step(cache, i*T);
    }
    return cache;
}

int LLVMFuzzerInitialize(int * argc, char *** argv) {
    (void) argc;
    (void) argv;
    kernels = (struct lesskv_kernels) { R, RH, { mat(HQ*RH*D), mat(HQ*R*RH) }, { mat(HKV*RH*D), mat(HKV*R*RH), mat(HKV*R*R) }, NULL };
    static const enum lesskv_type types[][2] = {
        { LESSKV_TYPE_F16, LESSKV_TYPE_F16 }, { LESSKV_TYPE_F32, LESSKV_TYPE_F32 }, { LESSKV_TYPE_Q8_0, LESSKV_TYPE_Q8_0 }, { LESSKV_TYPE_Q4_0, LESSKV_TYPE_Q8_0 },
    };
    for (int p = 0; lesskv_policy_at(p); p++) {
        for (size_t t = 0; t < sizeof types/sizeof types[0]; t++) {
            for (int k = 0; k < 2; k++) {
                HOLDS(n_layers < (int) (sizeof layers/sizeof layers[0]) - 2);
                layers[n_layers++] = (struct lesskv_layer) {
                    .n_head = HQ, .n_head_kv = HKV, .dk = D, .dv = D, .type_k = types[t][0], .type_v = types[t][1],
                    .policy = lesskv_policy_at(p), .budget = { B, 2 }, .pinned = 1, .kernels = k ? &kernels : NULL,
                };
            }
        }
    }
    layers[n_layers] = layers[0];
    layers[n_layers++].n_swa = B;
    static const struct lesskv_budget budgets[HKV] = { { B, 2 }, { 3, 1 } };
    layers[n_layers] = layers[1];
    layers[n_layers++].budgets = budgets;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const struct lesskv_layer * l = &layers[size > 0 ? data[0] % n_layers : 0];
    // The first byte's high bit: a cache that has evicted, or one that has not.
    struct lesskv_cache * good = filled(l, size > 0 && data[0] >= 128 ? 1 : 3);
    struct lesskv_cache * to   = filled(l, 2);
    size_t n_base, n, n_before, n_first, n_second;
    uint8_t * base   = save(good, &n_base);
    uint8_t * before = save(to, &n_before);
    uint8_t * state  = edited(base, n_base, size > 0 ? data + 1 : data, size > 0 ? size - 1 : 0, &n);

    const enum lesskv_status status = lesskv_cache_load(to, state, n);
    uint8_t * first = save(to, &n_first);
    if (status != LESSKV_OK) {
        HOLDS(status == LESSKV_ERR_FORMAT);
        HOLDS(size > 1); // the good one is taken
        HOLDS(n_first == n_before && memcmp(first, before, n_before) == 0);
    } else {
        HOLDS(n_first == n);
        struct lesskv_stats s;
        lesskv_cache_stats(to, &s);
        HOLDS(s.seen <= s.kept + s.folded && s.kept <= lesskv_cache_width(to));
        HOLDS(s.pos_max >= -1 && s.pos_min >= -1);
        HOLDS(lesskv_cache_load(good, first, n_first) == LESSKV_OK);
        uint8_t * second = save(good, &n_second);
        HOLDS(n_second == n_first && memcmp(first, second, n_first) == 0);
        free(second);
        if (s.pos_max < INT32_MAX - 2*T) {
            step(to, s.pos_max + 1);
            struct lesskv_stats after;
            lesskv_cache_stats(to, &after);
            HOLDS(after.kept <= lesskv_cache_width(to) && after.pos_max <= s.pos_max + T); // what is not finite may not be committed
        }
        if (lesskv_cache_cut(to, s.pos_max) == LESSKV_OK) {
            struct lesskv_stats after;
            lesskv_cache_stats(to, &after);
            HOLDS(after.pos_max < s.pos_max || s.pos_max < 0);
        }
    }
    free(first);
    free(state);
    free(before);
    free(base);
    lesskv_cache_free(to);
    lesskv_cache_free(good);
    return 0;
}
