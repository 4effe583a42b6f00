// scratch.c: how a micro-batch's work is cut, and where its intermediate results lie.

#include "internal.h"

// Space for n elements at *at, which moves on; a cache line's alignment keeps threads apart.
static void * take(uintptr_t * at, size_t n, size_t size) {
    const uintptr_t here = *at;
    *at += round_up(n * size, 64);
    return (void *) here;
}

// What the units of a small micro-batch leave for each other.
static uintptr_t lay_few(struct scratch * s, const struct lesskv_layer * l, size_t n_tokens, uintptr_t at) {
    const size_t heads = (size_t) l->n_head_kv;
    const size_t n     = (size_t) (l->n_head / l->n_head_kv) * (n_tokens < MAX_CHUNKS ? n_tokens : MAX_CHUNKS - 1);
    const size_t dv    = round_up((size_t) l->dv, PAD);
    size_t parts = 0; // of FEW_SLOTS each; or FEW_UNITS, and one more for what each head has left
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        parts += (size_t) lesskv_part_count(l->budgets ? l->budgets[j].slots : l->budget.slots, FEW_SLOTS);
    }
    parts = parts < FEW_UNITS + heads ? parts : FEW_UNITS + heads;

    s->part_top  = take(&at, parts * n, sizeof(float));
    s->part_sum  = take(&at, parts * n, sizeof(float));
    s->share     = take(&at, parts * n, sizeof(float));
    s->part_acc  = take(&at, parts * n * dv, sizeof(float));
    s->state_logit = take(&at, l->kernels ? heads * n : 0, sizeof(float));
    s->state_value = take(&at, l->kernels ? heads * n * dv : 0, sizeof(float));
    return at;
}

// Pairs of a KV head and a micro-batch of up to n_tokens, rounded up.
static size_t width_of(const struct lesskv_layer * l, size_t n_tokens) {
    return round_up((size_t) l->budget.slots + n_tokens, PAD);
}

static uintptr_t lay_thread(struct scratch * s, const struct lesskv_layer * l, size_t n_tokens, size_t blocks, uintptr_t at) {
    const size_t rank   = l->kernels ? (size_t) l->kernels->rank   : 0;
    const size_t hidden = l->kernels ? (size_t) l->kernels->hidden : 0;
    const size_t width  = width_of(l, n_tokens);
    const size_t dk     = (size_t) l->dk;
    const size_t dv     = round_up((size_t) l->dv, PAD);
    const size_t one = width * LANES, all = one * blocks, some = BLOCKS_BYTES / sizeof(float);

    s->x     = take(&at, blocks * dk * LANES, sizeof(float));
    s->logit = take(&at, all < some ? all : one > some ? one : some, sizeof(float));
    s->tile  = take(&at, TILE * max_of(max_of(dv, dk), max_of(hidden, rank)), sizeof(float));
    s->sum   = take(&at, blocks * dv * LANES, sizeof(float));
    s->low   = take(&at, dv * LANES, sizeof(float));
    s->phi   = take(&at, rank * LANES, sizeof(float));
    s->tmp   = take(&at, (hidden + 2 * rank) * LANES, sizeof(float));
    s->score = take(&at, n_tokens, sizeof(float));
    s->pos   = take(&at, n_tokens, sizeof(int32_t));
    s->key   = take(&at, width, sizeof(uint64_t));
    s->evict = take(&at, n_tokens, sizeof(uint64_t));
    return at;
}

// The chunks that a query head may have in a micro-batch of n_tokens, WORTH_BYTES being all that they may leave.
static int32_t max_chunks(const struct lesskv_layer * l, int32_t n_tokens) {
    if (!l->policy || l->policy->worth == LESSKV_WORTH_NONE) {
        return MAX_CHUNKS;
    }
    const size_t fit = WORTH_BYTES / sizeof(float) / (size_t) l->n_head / width_of(l, (size_t) n_tokens);
    return fit < 1 ? 1 : fit < MAX_CHUNKS ? (int32_t) fit : MAX_CHUNKS;
}

static uintptr_t lay(struct scratch * s, const struct lesskv_layer * l, int32_t n_tokens, int n_threads, uintptr_t at, int ith) {
    const int32_t most      = max_chunks(l, n_tokens);
    const int32_t per_chunk = (n_tokens + most - 1) / most;
    *s = (struct scratch) {0};
    s->few     = n_tokens < MAX_CHUNKS && n_tokens <= most;
    s->chunk   = s->few ? 1 : (int32_t) round_up((size_t) per_chunk, LANES);
    s->n_chunk = (n_tokens + s->chunk - 1) / s->chunk;
    s->width   = width_of(l, (size_t) n_tokens);

    const size_t blocks = round_up((size_t) s->chunk, LANES) / LANES, have = blocks < BLOCKS ? blocks : BLOCKS;
    const size_t fit    = s->width > 0 ? BLOCKS_BYTES / sizeof(float) / LANES / s->width : 0;
    s->blocks = (int32_t) (fit < 1 ? 1 : fit < have ? fit : have);

    at = round_up(at, 64);
    if (l->policy && l->policy->worth != LESSKV_WORTH_NONE) {
        // Room for the most chunks of any micro-batch up to this one, so that what fits it fits a smaller one.
        const size_t chunks = n_tokens < MAX_CHUNKS ? (size_t) n_tokens : MAX_CHUNKS;
        const size_t one = (size_t) l->n_head * s->width, all = one * chunks, some = WORTH_BYTES / sizeof(float);
        s->worth = take(&at, all < some ? all : one > some ? one : some, sizeof(float));
    }
    at = lay_few(s, l, (size_t) n_tokens, at);
    const size_t size = lay_thread(s, l, (size_t) n_tokens, have, 0);
    lay_thread(s, l, (size_t) n_tokens, have, at + (size_t) ith * size);
    return at + (size_t) n_threads * size;
}

struct scratch lesskv_scratch_plan(const struct lesskv_layer * layer, int32_t n_tokens, int n_threads, void * memory, int ith) {
    struct scratch s;
    lay(&s, layer, n_tokens, n_threads, (uintptr_t) memory, ith);
    return s;
}

size_t lesskv_scratch_size(const struct lesskv_layer * layer, int32_t n_tokens, int n_threads) {
    const struct lesskv_layer plain = lesskv_layer_plain(layer);
    struct scratch s;
    return lay(&s, &plain, n_tokens > 0 ? n_tokens : 1, n_threads > 0 ? n_threads : 1, 0, 0) + 63;
}

size_t lesskv_worth_size(const struct lesskv_layer * layer, int32_t n_tokens) {
    const struct lesskv_layer l = lesskv_layer_plain(layer);
    return l.policy && l.policy->worth != LESSKV_WORTH_NONE ? (size_t) l.n_head_kv * width_of(&l, (size_t) n_tokens) : 0;
}
