// cache.c: what a layer keeps of one sequence, and what can be done to it as a whole.

#include "internal.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

const char * lesskv_status_str(enum lesskv_status status) {
    switch (status) {
        case LESSKV_OK:         return "ok";
        case LESSKV_ERR_NOMEM:  return "out of memory";
        case LESSKV_ERR_ARG:    return "a parameter that makes no sense";
        case LESSKV_ERR_FOLDED: return "the positions are folded into the low-rank state and can't be taken back";
        case LESSKV_ERR_FORMAT: return "not a saved state of a cache like this one";
        case LESSKV_ERR_FINITE: return "a key or value that is not finite, or too large, was to be folded into the low-rank state";
    }
    return "unknown status";
}

struct lesskv_layer lesskv_layer_plain(const struct lesskv_layer * layer) {
    struct lesskv_layer l = *layer;
    if (l.n_swa > 0) {
        l.policy  = lesskv_policy_find("lambda");
        l.budget  = (struct lesskv_budget) { l.n_swa - 1, 0 };
        l.budgets = NULL;
        l.pinned  = 0;
        l.kernels = NULL;
    }
    for (int32_t j = 0; l.budgets && j < l.n_head_kv; j++) {
        l.budget = j == 0 || l.budgets[j].slots > l.budget.slots ? l.budgets[j] : l.budget;
    }
    return l;
}

static struct lesskv_budget budget_of(const struct lesskv_layer * l, int32_t head_kv) {
    return l->budgets ? l->budgets[head_kv] : l->budget;
}

struct lesskv_layer lesskv_layer_asking(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub) {
    struct lesskv_layer l = cache->layer;
    if (ub->layer) {
        l.n_head  = ub->layer->n_head;
        l.kernels = l.n_swa > 0 ? NULL : ub->layer->kernels;
    }
    if (l.kernels && (!l.kernels->phi[0].data || l.kernels->rank != cache->rank)) {
        l.kernels = NULL;
    }
    return l;
}

static bool mat_ok(const struct lesskv_mat * m, int32_t n_in) {
    return m->data && lesskv_row_size(m->type, n_in) > 0;
}

static bool layer_ok(const struct lesskv_layer * l) {
    if (l->n_head <= 0 || l->n_head_kv <= 0 || l->n_head % l->n_head_kv != 0) {
        return false;
    }
    if (lesskv_row_size(l->type_k, l->dk) == 0 || lesskv_row_size(l->type_v, l->dv) == 0) {
        return false;
    }
    if (l->n_swa < 0 || !l->policy || l->pinned < 0) {
        return false;
    }
    const int32_t n = l->rotation;
    if (n != 0 && (n < LANES || (n & (n - 1)) != 0 || l->dk % n != 0)) {
        return false;
    }
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        const struct lesskv_budget b = budget_of(l, j);
        if (b.slots < (l->n_swa == 0) || b.heavy < l->pinned || b.heavy > b.slots) {
            return false;
        }
    }
    const struct lesskv_kernels * w = l->kernels;
    return !w || (w->rank > 0 && w->hidden > 0 &&
        ((!w->phi[0].data && !w->phi[1].data) || (mat_ok(&w->phi[0], l->dk) && mat_ok(&w->phi[1], w->hidden))) &&
        mat_ok(&w->psi[0], l->dk) && mat_ok(&w->psi[1], w->hidden) && mat_ok(&w->psi[2], w->rank));
}

void lesskv_layer_bytes(const struct lesskv_layer * layer, size_t * slots, size_t * state) {
    const struct lesskv_layer l = lesskv_layer_plain(layer);
    size_t n = 0;
    for (int32_t j = 0; j < l.n_head_kv; j++) {
        n = plus(n, (size_t) budget_of(&l, j).slots);
    }
    *slots = times(n, lesskv_store_slot(&l));
    *state = times((size_t) l.n_head_kv, lesskv_state_bytes(&l));
}

// One head's store and state, in the memory at `at`; returns the size.
static size_t lay_head(struct lesskv_head * h, const struct lesskv_layer * l, uintptr_t at) {
    const size_t store = lesskv_store_lay(&h->store, l, h->budget.slots, at);
    return plus(store, lesskv_state_lay(&h->state, l, at + store));
}

enum lesskv_status lesskv_cache_new(struct lesskv_cache ** out, const struct lesskv_layer * layer) {
    *out = NULL;
    const struct lesskv_layer l = lesskv_layer_plain(layer);
    if (!layer_ok(&l)) {
        return LESSKV_ERR_ARG;
    }
    const size_t n_head_kv = (size_t) l.n_head_kv;
    struct lesskv_budget * budgets;
    struct lesskv_cache * c = malloc(sizeof *c + n_head_kv * (sizeof c->head[0] + sizeof c->arrived[0] + sizeof budgets[0]));
    if (!c) {
        return LESSKV_ERR_NOMEM;
    }
    c->arrived = (atomic_int *) &c->head[n_head_kv];
    budgets    = (struct lesskv_budget *) &c->arrived[n_head_kv];
    for (int32_t j = 0; j < l.n_head_kv; j++) {
        atomic_init(&c->arrived[j], 0);
        budgets[j] = c->head[j].budget = budget_of(&l, j);
    }
    c->layer = l;
    c->layer.budgets = l.budgets ? budgets : NULL;
    c->rank = l.kernels ? l.kernels->rank : 0;

    size_t all = 63;
    for (int32_t j = 0; j < l.n_head_kv; j++) {
        all = plus(all, lay_head(&c->head[j], &l, 0));
    }
    c->data = all < SIZE_MAX / 2 ? malloc(all) : NULL;
    if (!c->data) {
        free(c);
        return LESSKV_ERR_NOMEM;
    }
    uintptr_t at = round_up((uintptr_t) c->data, 64);
    for (int32_t j = 0; j < l.n_head_kv; j++) {
        at += lay_head(&c->head[j], &l, at);
    }
    lesskv_cache_clear(c);
    *out = c;
    return LESSKV_OK;
}

void lesskv_cache_free(struct lesskv_cache * cache) {
    if (cache) {
        free(cache->data);
        free(cache);
    }
}

void lesskv_cache_clear(struct lesskv_cache * cache) {
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        struct lesskv_head * h = &cache->head[j];
        h->last    = -1;
        h->evicted = -1;
        h->folded  = 0;
        h->store.n = 0;
        lesskv_state_clear(&h->state, &cache->layer);
    }
}

const struct lesskv_layer * lesskv_cache_layer(const struct lesskv_cache * cache) {
    return &cache->layer;
}

int32_t lesskv_cache_width(const struct lesskv_cache * cache) {
    return cache->layer.budget.slots;
}

static bool layer_equal(const struct lesskv_layer * a, const struct lesskv_layer * b) {
    bool equal = a->n_head == b->n_head && a->n_head_kv == b->n_head_kv && a->dk == b->dk && a->dv == b->dv &&
        a->type_k == b->type_k && a->type_v == b->type_v && a->policy == b->policy &&
        a->pinned == b->pinned && a->n_swa == b->n_swa && a->kernels == b->kernels && a->rotation == b->rotation;
    for (int32_t j = 0; equal && j < a->n_head_kv; j++) {
        const struct lesskv_budget x = budget_of(a, j), y = budget_of(b, j);
        equal = x.slots == y.slots && x.heavy == y.heavy;
    }
    return equal;
}

enum lesskv_status lesskv_cache_copy(struct lesskv_cache * dst, const struct lesskv_cache * src) {
    if (!layer_equal(&dst->layer, &src->layer)) {
        return LESSKV_ERR_ARG;
    }
    if (dst == src) {
        return LESSKV_OK;
    }
    for (int32_t j = 0; j < src->layer.n_head_kv; j++) {
        const struct lesskv_head * s = &src->head[j];
        struct lesskv_head * d = &dst->head[j];
        d->last    = s->last;
        d->evicted = s->evicted;
        d->folded  = s->folded;
        lesskv_store_copy(&d->store, &s->store);
        lesskv_state_copy(&d->state, &s->state, &src->layer);
    }
    return LESSKV_OK;
}

static int32_t highest_evicted(const struct lesskv_cache * cache) {
    int32_t top = -1;
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        top = cache->head[j].evicted > top ? cache->head[j].evicted : top;
    }
    return top;
}

enum lesskv_status lesskv_cache_cut(struct lesskv_cache * cache, int32_t pos) {
    const struct lesskv_layer * l = &cache->layer;
    if (pos > cache->head[0].last) {
        return LESSKV_OK; // there is nothing to forget
    }
    const int64_t evicted = highest_evicted(cache);
    // Evicted for good: what lies below pos, or for a window what the query at pos no longer sees.
    if (evicted >= 0 && evicted > (l->n_swa > 0 ? (int64_t) pos - l->n_swa : (int64_t) pos - 1)) {
        return LESSKV_ERR_FOLDED;
    }
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        struct lesskv_head * h = &cache->head[j];
        for (int32_t i = 0; i < h->store.n;) {
            if (h->store.pos[i] < pos) {
                i++;
            } else {
                lesskv_store_drop(&h->store, i);
            }
        }
        h->last = h->store.n > 0 || h->folded > 0 ? pos - 1 : -1;
    }
    return LESSKV_OK;
}

void lesskv_cache_stats(const struct lesskv_cache * cache, struct lesskv_stats * stats) {
    const struct lesskv_head * h = &cache->head[0]; // what was seen and the last position are the same in all
    *stats = (struct lesskv_stats) { .seen = h->store.n + h->folded, .pos_min = -1, .pos_max = h->last };
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        stats->kept   = cache->head[j].store.n > stats->kept   ? cache->head[j].store.n : stats->kept;
        stats->folded = cache->head[j].folded  > stats->folded ? cache->head[j].folded  : stats->folded;
    }
    if (stats->folded > 0) {
        stats->pos_min = highest_evicted(cache) + 1;
    } else if (h->store.n > 0) { // all positions are there; the slots may not be: lesskv_cache_count
        stats->pos_min = h->last - h->store.n + 1;
    }
}

struct lesskv_arrays lesskv_cache_arrays(struct lesskv_cache * cache, int32_t head_kv) {
    struct lesskv_head * h = &cache->head[head_kv];
    return (struct lesskv_arrays) {
        .k = h->store.k, .v = h->store.v, .pos = h->store.pos, .score = h->store.score, .H = h->state.H, .z = h->state.z,
        .n = h->store.n, .last = h->last, .folded = h->folded, .evicted = &h->evicted,
    };
}

void lesskv_cache_count(struct lesskv_cache * cache, int32_t pos, int32_t n_tokens) {
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        struct lesskv_head * h = &cache->head[j];
        const int32_t held = h->store.n + n_tokens;
        h->store.n = held < h->budget.slots ? held : h->budget.slots;
        h->folded += held - h->store.n;
        h->last    = pos + (n_tokens - 1);
    }
}

int32_t lesskv_cache_slots(const struct lesskv_cache * cache, int32_t head_kv, int32_t max, int32_t * pos, float * score) {
    if (head_kv < 0 || head_kv >= cache->layer.n_head_kv || max <= 0) {
        return 0;
    }
    const struct store * s = &cache->head[head_kv].store;
    const int32_t n = s->n < max ? s->n : max;
    memcpy(pos,   s->pos,   (size_t) n * sizeof pos[0]);
    memcpy(score, s->score, (size_t) n * sizeof score[0]);
    return n;
}
