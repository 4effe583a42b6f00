// save.c: a cache as bytes, and back, of which nothing is believed.

#include "internal.h"

#include <stdbool.h>
#include <string.h>

// A saved cache is this header, every head, and a checksum of both.
struct header {
    char    magic[8];
    char    policy[16];
    int32_t n_head, n_head_kv, dk, dv, type_k, type_v, pinned, n_swa, rank, reserved;
};

// A saved head is this, then its n slots, then its state.
struct saved_head {
    struct lesskv_budget budget;
    int32_t n, last, evicted, reserved;
    int64_t folded;
};

static struct header header_of(const struct lesskv_cache * cache) {
    const struct lesskv_layer * l = &cache->layer;
    struct header h = {
        .magic = { 'l', 'e', 's', 's', 'k', 'v', 0, 2 },
        .n_head = l->n_head, .n_head_kv = l->n_head_kv, .dk = l->dk, .dv = l->dv,
        .type_k = (int32_t) l->type_k, .type_v = (int32_t) l->type_v,
        .pinned = l->pinned, .n_swa = l->n_swa, .rank = cache->rank,
    };
    strncpy(h.policy, l->policy->name, sizeof h.policy - 1);
    return h;
}

// Any change of one byte changes it: each step is a bijection of the sum so far.
static uint64_t checksum(const void * data, size_t n) {
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, (const char *) data + i, n - i < 8 ? n - i : 8);
        sum = (sum ^ word) * 0x100000001b3;
        sum ^= sum >> 32;
    }
    return sum;
}

size_t lesskv_cache_save_size(const struct lesskv_cache * cache) {
    const struct lesskv_layer * l = &cache->layer;
    size_t size = sizeof(struct header) + sizeof(uint64_t);
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        size += sizeof(struct saved_head) + (size_t) cache->head[j].store.n * lesskv_store_slot(l) + lesskv_state_bytes(l);
    }
    return size;
}

void lesskv_cache_save(const struct lesskv_cache * cache, void * buf) {
    const struct header header = header_of(cache);
    char * p = put(buf, &header, sizeof header);
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        const struct lesskv_head * h = &cache->head[j];
        const struct saved_head saved = { .budget = h->budget, .n = h->store.n, .last = h->last, .evicted = h->evicted, .folded = h->folded };
        p = put(p, &saved, sizeof saved);
        p = lesskv_store_save(&h->store, p);
        p = lesskv_state_save(&h->state, &cache->layer, p);
    }
    const uint64_t sum = checksum(buf, (size_t) (p - (char *) buf));
    put(p, &sum, sizeof sum);
}

// Whether a saved head could be head j, the first being the pattern for the others: they have seen the same tokens.
static bool head_ok(const struct lesskv_cache * cache, int32_t j, const struct saved_head * h, const struct saved_head * first) {
    const struct lesskv_budget budget = cache->head[j].budget;
    if (h->budget.slots != budget.slots || h->budget.heavy != budget.heavy || h->folded < 0 || h->folded > INT64_MAX - h->n || h->reserved != 0 ||
        h->n + h->folded != first->n + first->folded || h->n + h->folded > h->last + INT64_C(1) || h->last != first->last ||
        h->last == INT32_MAX) { // which the token after it would be beyond
        return false;
    }
    return h->evicted >= -1 && h->evicted <= h->last && (h->evicted >= 0) == (h->folded > 0);
}

static bool saved_ok(const struct lesskv_cache * cache, const char * buf, size_t size) {
    const struct header header = header_of(cache);
    uint64_t sum;
    if (size < sizeof header + sizeof sum || memcmp(buf, &header, sizeof header) != 0) {
        return false;
    }
    const size_t body = size - sizeof sum;
    memcpy(&sum, buf + body, sizeof sum);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION // no fuzzer guesses it
    if (sum != checksum(buf, body)) {
        return false;
    }
#endif
    const size_t slot = lesskv_store_slot(&cache->layer), state = lesskv_state_bytes(&cache->layer);
    struct saved_head first = {0};
    size_t at = sizeof header;
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        struct saved_head h;
        if (body - at < sizeof h) {
            return false;
        }
        memcpy(&h, buf + at, sizeof h);
        at += sizeof h;
        first = j == 0 ? h : first;
        if (h.n < 0 || h.n > cache->head[j].budget.slots || body - at < (size_t) h.n * slot + state) {
            return false;
        }
        if (!head_ok(cache, j, &h, &first) || !lesskv_store_saved_ok(&cache->head[j].store, h.n, h.last, buf + at)) {
            return false;
        }
        at += (size_t) h.n * slot;
        if (!lesskv_state_saved_ok(&cache->layer, buf + at)) {
            return false;
        }
        at += state;
    }
    return at == body;
}

enum lesskv_status lesskv_cache_load(struct lesskv_cache * cache, const void * buf, size_t size) {
    if (!saved_ok(cache, buf, size)) {
        return LESSKV_ERR_FORMAT;
    }
    const char * p = (const char *) buf + sizeof(struct header);
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        struct lesskv_head * h = &cache->head[j];
        struct saved_head saved;
        p = get(&saved, p, sizeof saved);
        h->last    = saved.last;
        h->evicted = saved.evicted;
        h->folded  = saved.folded;
        p = lesskv_store_load(&h->store, saved.n, p);
        p = lesskv_state_load(&h->state, &cache->layer, p);
    }
    return LESSKV_OK;
}
