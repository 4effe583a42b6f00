// internal.h: what the kernel files share.
//
// Matrix products come in two forms. For prompts, a block of LANES queries is one operand, transposed: x[n][LANES], so
// that a vector is the same element of all queries, a row of the other operand is read once for all of them, and softmax
// needs no horizontal operation; a few blocks go together, for which a row is converted to floats once. For decoding, one
// query is a plain vector and the work is reading rows.

#ifndef LESSKV_INTERNAL_H
#define LESSKV_INTERNAL_H

#include "level.h"
#include "lesskv.h"
#include "policy.h"
#include "state.h"
#include "store.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

// n rounded up to a multiple of m.
static inline size_t round_up(size_t n, size_t m) {
    return (n + m - 1) / m * m;
}

// a b, or SIZE_MAX where that is too much; and so on.
static inline size_t times(size_t a, size_t b) {
    return b > 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}

static inline size_t plus(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

static inline size_t max_of(size_t a, size_t b) {
    return a > b ? a : b;
}

// The next area of size bytes in the memory at `at`, of which *total bytes are given away, whole cache lines each.
static inline void * lesskv_area(uintptr_t at, size_t * total, size_t size) {
    void * area = (void *) (at + *total);
    *total = size < SIZE_MAX / 8 ? plus(*total, round_up(size, 64)) : SIZE_MAX;
    return area;
}

// n bytes to what is being saved, or from what was; both return where it goes on.
static inline char * put(char * to, const void * from, size_t n) {
    memcpy(to, from, n);
    return to + n;
}

static inline const char * get(void * to, const char * from, size_t n) {
    memcpy(to, from, n);
    return from + n;
}

// One KV head of a cache: its budget, what stays and what becomes of the rest.
struct lesskv_head {
    struct lesskv_budget budget;
    int32_t last;    // last position committed, -1 if none
    int32_t evicted; // highest position evicted, -1 if none
    int64_t folded;  // pairs evicted
    struct store store;
    struct state state;
};

struct lesskv_cache {
    struct lesskv_layer layer; // a sliding window as its equal: policy lambda, h = 0, B = n_swa - 1, no kernels. budget is the
                               // largest of the heads'; budgets, where there are some, lie behind arrived
    int32_t rank;              // 0 without kernels
    void *  data;              // what the heads point into
    atomic_int * arrived;      // [Hkv] units of attend in a small micro-batch, or shares of commit, that are done; 0 between two calls
    struct lesskv_head head[]; // [Hkv]
};

// A KV head's keys and values of a micro-batch, as a cache of this layer holds them.
static inline struct rows lesskv_batch_keys(const struct lesskv_layer * l, const struct lesskv_ubatch * ub, int32_t head_kv) {
    return (struct rows) { l->type_k, (const char *) ub->k + (size_t) head_kv * ub->k_head, ub->k_token, ub->n_tokens };
}

static inline struct rows lesskv_batch_values(const struct lesskv_layer * l, const struct lesskv_ubatch * ub, int32_t head_kv) {
    return (struct rows) { l->type_v, (const char *) ub->v + (size_t) head_kv * ub->v_head, ub->v_token, ub->n_tokens };
}

// phi_psi.c: x[D][LANES] into out[R][LANES], x already scaled. tmp: (hidden + rank) x LANES floats.
void lesskv_phi_block(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, float * out, float * tmp, float * tile);
void lesskv_psi_block(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, float * out, float * tmp, float * tile);
// As lesskv_phi and lesskv_psi of one vector.
void lesskv_phi_ref(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, float * out, float * tmp);
void lesskv_psi_ref(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, float * out, float * tmp);

// select.c
uint64_t lesskv_select(const uint64_t * key, int32_t n, int32_t k); // the k-th smallest of n, 1 <= k <= n
void     lesskv_sort(uint64_t * key, int32_t n);                    // ascending, in place

// scratch.c. How attend's work is cut into units depends on the micro-batch and the cache, never on the number of threads:
// results are the same for any. Where the policy asks for it each unit leaves what pairs were worth to its queries.
//
// A micro-batch of MAX_CHUNKS tokens or more is cut by query heads and, each, into at most MAX_CHUNKS chunks of queries. A
// smaller one is bound by reading the slots: it is cut by KV heads and, each, into parts of the slots, the last with the
// micro-batch, and one unit more for the low-rank state. Every part leaves its sums, and the unit that is done last makes
// them one. Where MAX_CHUNKS chunks of all query heads would leave more than WORTH_BYTES, there are fewer, one at least, and
// what has more tokens than that is no small micro-batch.
#define MAX_CHUNKS 8
#define WORTH_BYTES (32 << 20)
#define FEW_UNITS  32  // parts of all KV heads together, about: enough for any number of threads, also with one KV head
#define FEW_SLOTS  128 // slots of a part, at least, but for the last
#define FEW_BLOCK  16  // queries at a time
#define COMMIT_UNITS 8 // shares of the scores of all KV heads together, about

// So many blocks of a chunk's queries go together, if their logits do not take more than so many bytes; one at least.
#define BLOCKS 4
#define BLOCKS_BYTES (4 << 20)

struct scratch {
    int32_t chunk;   // queries of a unit; 1 in a small micro-batch
    int32_t blocks;  // of LANES queries that go together
    int32_t n_chunk; // chunks of a query head
    size_t  width;   // B + T, rounded up: floats between two chunks' worths, rows between two blocks' logits
    float * worth;   // [Hq][n_chunk][width]: slots, micro-batch; NULL if the policy has no use for it
    bool    few;     // a small micro-batch: worth holds exponentials, to be multiplied by share

    // of a small micro-batch; n = g T queries of a KV head, query h T + i being token i of its query head h
    float * part_top;  // [parts of all KV heads][n] largest logit
    float * part_sum;  // [parts][n] sum of exponentials below it
    float * part_acc;  // [parts][n][round_up(Dv, PAD)] the same of values
    float * share;     // [parts][n] what makes a part's exponentials softmax weights over A
    float * state_logit; // [Hkv][n] the state's answer to each
    float * state_value; // [Hkv][n][round_up(Dv, PAD)]

    // of one thread
    float * x;     // [blocks][D][LANES] queries; [D][LANES] keys to fold; [FEW_BLOCK][D]
    float * logit; // [blocks][width][LANES]; [FEW_BLOCK][slots of a part + T]
    float * tile;  // for products
    float * sum;   // [blocks][LANES][round_up(Dv, PAD)] over A
    float * low;   // [LANES][round_up(Dv, PAD)] the state's values; a value to fold
    float * phi;   // [R][LANES]; [FEW_BLOCK][R]; psi
    float * tmp;   // [R' + 2 R][LANES]
    float * score; // [T] scores of the micro-batch's pairs
    int32_t * pos; // [T] their positions
    uint64_t * key;   // [B + T]
    uint64_t * evict; // [T]
    struct lesskv_profile * profile; // NULL: nobody asks
};

// profile.c. Each phase lasts from the end of the one before it; p may be NULL.
uint64_t lesskv_now(void); // nanoseconds

static inline void lesskv_start(struct lesskv_profile * p) {
    if (p) {
        p->last = lesskv_now();
    }
}

static inline void lesskv_lap(struct lesskv_profile * p, enum lesskv_phase phase) {
    if (p) {
        const uint64_t now = lesskv_now();
        p->ns[phase] += now - p->last;
        p->last = now;
    }
}

// How the slots of a KV head are cut in a small micro-batch. A head of many slots has many parts, so that the parts of heads with
// unequal budgets take about as long as those of equal ones.
struct parts {
    int32_t slots; // of every part but the last
    int32_t n;     // one at least
    int32_t first; // the number of the first one among those of all heads
};

// Parts of n slots.
static inline int32_t lesskv_part_count(int64_t n, int32_t slots) {
    return n > slots ? (int32_t) ((n + slots - 1) / slots) : 1;
}

// For a KV head that has n slots of the `seen` tokens of the sequence. It asks what the other heads could hold and not what they do:
// commit changes that while it asks.
static inline struct parts lesskv_parts(const struct lesskv_cache * cache, int32_t head_kv, int32_t n, int64_t seen) {
    int64_t held = 0;
    for (int32_t j = 0; j < cache->layer.n_head_kv; j++) {
        const int32_t most = cache->head[j].budget.slots;
        held += seen < most ? seen : most;
    }
    const int32_t even = (int32_t) round_up((size_t) ((held + FEW_UNITS - 1) / FEW_UNITS), LANES);
    struct parts p = { .slots = even > FEW_SLOTS ? even : FEW_SLOTS };
    for (int32_t j = 0; j < head_kv; j++) {
        const int32_t most = cache->head[j].budget.slots;
        p.first += lesskv_part_count(seen < most ? seen : most, p.slots);
    }
    p.n = lesskv_part_count(n, p.slots);
    return p;
}

// The parts of scratch, memory as lesskv_scratch_size asks for; of thread ith.
struct scratch lesskv_scratch_plan(const struct lesskv_layer * layer, int32_t n_tokens, int n_threads, void * memory, int ith);

// cache.c: a layer as it is kept, with a sliding window as its equal (see struct lesskv_cache).
struct lesskv_layer lesskv_layer_plain(const struct lesskv_layer * layer);

// cache.c: the layer whose queries a micro-batch has, as it attends to the cache: the cache's own or a sharer, without kernels
// where it has no phi or the cache no state for it.
struct lesskv_layer lesskv_layer_asking(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub);

#endif
