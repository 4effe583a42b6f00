// train_replay.c: the sparse policy over a recorded window, once: what each query gets without the low-rank state, and
// when each pair leaves.

#include "train.h"
#include "train_math.h"

#include <stdlib.h>

// What a replay works in. n_pair: B + T, the pairs that a query can see.
struct room {
    float *   q;       // [T][Hq][D]
    float *   out;     // [T][Hq][Dv]
    float *   key;     // [n_pair][D]
    float *   logit;   // [T][n_pair, rounded up to LANES]
    float *   pack;
    int32_t * pos;     // [B]
    float *   score;   // [B]
    float *   worth;   // lesskv_gather's, where layers share the cache
    void *    scratch;
};

static void free_room(struct room * r) {
    free(r->q);
    free(r->out);
    free(r->key);
    free(r->logit);
    free(r->pack);
    free(r->pos);
    free(r->score);
    free(r->worth);
    free(r->scratch);
}

// l: of all layers that attend the one with the most query heads.
static bool new_room(struct room * r, const struct lesskv_layer * l, int32_t t) {
    const size_t n = (size_t) t, pairs = (size_t) l->budget.slots + n;
    r->q       = malloc(n * (size_t) l->n_head * (size_t) l->dk * sizeof(float));
    r->out     = malloc(n * (size_t) l->n_head * (size_t) l->dv * sizeof(float));
    r->key     = malloc(pairs * (size_t) l->dk * sizeof(float));
    r->logit   = malloc(n * round_up(pairs, LANES) * sizeof(float));
    r->pack    = malloc(gemm_pack(t, l->dk) * sizeof(float));
    r->pos     = malloc((size_t) l->budget.slots * sizeof(int32_t));
    r->score   = malloc((size_t) l->budget.slots * sizeof(float));
    r->worth   = malloc((lesskv_worth_size(l, t) + 1) * sizeof(float));
    r->scratch = malloc(lesskv_scratch_size(l, t, 1));
    return r->q && r->out && r->key && r->logit && r->pack && r->pos && r->score && r->worth && r->scratch;
}

static float capped(float x, float soft_cap) {
    return soft_cap > 0 ? soft_cap * tanhf(x / soft_cap) : x;
}

// log of the sum of e^x[n], and of e^sink if there is one; x is used up, up to the next multiple of LANES. Everything is -INFINITY: -INFINITY.
static float log_sum(float * x, int32_t n, float sink) {
    const int32_t even = (int32_t) round_up((size_t) n, LANES);
    for (int32_t i = n; i < even; i++) {
        x[i] = -INFINITY;
    }
    float top = -INFINITY, sum = 0;
    if (n > 0) {
        lesskv_level()->softmax(x, even, &top, &sum);
    }
    const float all = top > sink ? top : sink;
    if (all == -INFINITY) {
        return all;
    }
    return all + (float) log((double) sum * exp((double) (top - all)) + exp((double) (sink - all)));
}

// w->lse of one KV head's queries in a micro-batch of n tokens from pos on, over held slots and the micro-batch.
static void add_lse(const struct lesskv_layer * l, const struct lesskv_train_window * w, const struct room * r, int32_t head_kv,
        int32_t pos, int32_t n, int32_t held, float soft_cap, const float * sinks) {
    const int32_t g = l->n_head / l->n_head_kv, pairs = held + n;
    const size_t ld = round_up((size_t) pairs, LANES);
    const float s = 1 / sqrtf((float) l->dk);
    for (int32_t i = 0; i < pairs; i++) {
        const int32_t t = i < held ? r->pos[i] : pos + i - held;
        lesskv_to_f32(LESSKV_TYPE_F16, r->key + (size_t) i * (size_t) l->dk, w->k + ((size_t) t * (size_t) l->n_head_kv + (size_t) head_kv) * (size_t) l->dk, l->dk);
    }
    for (int32_t h = head_kv * g; h < (head_kv + 1) * g; h++) {
        lesskv_gemm(n, pairs, l->dk, r->q + (size_t) h * (size_t) l->dk, (size_t) l->n_head * (size_t) l->dk, 1, r->key, 1, (size_t) l->dk, r->logit, ld, false, r->pack);
        for (int32_t i = 0; i < n; i++) {
            float * x = r->logit + (size_t) i * ld;
            const int32_t seen = held + i + 1;
            for (int32_t c = 0; c < seen; c++) {
                x[c] *= s;
            }
            if (soft_cap > 0) {
                lesskv_level()->soft_cap(x, round_up((size_t) seen, LANES), soft_cap);
            }
            w->lse[(size_t) (pos + i) * (size_t) l->n_head + (size_t) h] = log_sum(x, seen, sinks ? sinks[h] : -INFINITY);
        }
    }
}

// Pairs that were there before the commit and are none of the n slots after it get micro-batch m; before: the number of tokens
// committed. A pair that has gone earlier has its number already.
static void mark(const struct lesskv_train_window * w, const struct room * r, int32_t head_kv, int32_t before, int32_t n, int32_t m) {
    int32_t * evicted = w->evicted + (size_t) head_kv * (size_t) w->n_tokens;
    for (int32_t i = 0; i < n; i++) {
        evicted[r->pos[i]] = -1;
    }
    for (int32_t t = 0; t < before; t++) {
        if (evicted[t] == INT32_MAX) {
            evicted[t] = m;
        } else if (evicted[t] < 0) {
            evicted[t] = INT32_MAX;
        }
    }
}

// One layer, of n_head query heads, attends to the cache in the micro-batch of n tokens from pos on; sharer: it is not the cache's own.
static void attend(struct lesskv_cache * cache, const struct lesskv_train_window * w, int32_t n_head, bool sharer, struct lesskv_ubatch * ub,
        const struct room * r) {
    struct lesskv_layer l = *lesskv_cache_layer(cache);
    l.n_head = n_head;
    const size_t q = (size_t) l.n_head * (size_t) l.dk, o = (size_t) l.n_head * (size_t) l.dv;
    const int32_t n = ub->n_tokens, pos = ub->pos;
    lesskv_to_f32(LESSKV_TYPE_F16, r->q, w->q + (size_t) pos * q, (int64_t) n * (int64_t) q);
    ub->q       = r->q;
    ub->q_token = q * 4;
    ub->layer   = sharer ? &l : NULL;
    lesskv_attend(cache, ub, r->scratch, 1, 0, 1);
    if (ub->worth) {
        lesskv_gather(cache, ub, r->scratch, 1, 0, 1);
    }
    ub->layer = NULL;
    lesskv_from_f32(LESSKV_TYPE_F16, w->sparse + (size_t) pos * o, r->out, (int64_t) n * (int64_t) o);
    for (int32_t j = 0; j < l.n_head_kv; j++) {
        const int32_t held = lesskv_cache_slots(cache, j, lesskv_cache_width(cache), r->pos, r->score);
        add_lse(&l, w, r, j, pos, n, held, ub->soft_cap, ub->sinks);
    }
}

enum lesskv_status lesskv_train_replay(const struct lesskv_layer * layer, const struct lesskv_train_window * w, float soft_cap, const float * sinks,
        const struct lesskv_train_sharer * sharers, int32_t n_sharers) {
    const struct lesskv_layer * l = layer;
    if (l->type_k != LESSKV_TYPE_F16 || l->type_v != LESSKV_TYPE_F16 || l->kernels || l->n_swa > 0 || w->n_tokens < 1 || w->n_ubatch < 1) {
        return LESSKV_ERR_ARG;
    }
    struct lesskv_cache * cache;
    const enum lesskv_status status = lesskv_cache_new(&cache, l);
    if (status != LESSKV_OK) {
        return status;
    }
    l = lesskv_cache_layer(cache);
    struct lesskv_layer most = *l;
    for (int32_t i = 0; i < n_sharers; i++) {
        most.n_head = sharers[i].n_head > most.n_head ? sharers[i].n_head : most.n_head;
    }
    struct room r;
    const bool ok = new_room(&r, &most, w->n_ubatch);
    const size_t pairs = (size_t) l->n_head_kv * (size_t) w->n_tokens;
    for (size_t i = 0; i < pairs; i++) {
        w->evicted[i] = INT32_MAX;
    }
    for (int32_t pos = 0, m = 0; ok && pos < w->n_tokens; pos += w->n_ubatch, m++) {
        const int32_t n = w->n_tokens - pos < w->n_ubatch ? w->n_tokens - pos : w->n_ubatch;
        const size_t k = (size_t) l->n_head_kv * (size_t) l->dk, v = (size_t) l->n_head_kv * (size_t) l->dv;
        struct lesskv_ubatch ub = {
            .n_tokens = n, .pos = pos,                                     .q_head = (size_t) l->dk * 4,
            .k = w->k + (size_t) pos * k,    .k_head = (size_t) l->dk * 2, .k_token = k * 2,
            .v = w->v + (size_t) pos * v,    .v_head = (size_t) l->dv * 2, .v_token = v * 2,
            .scale = 1 / sqrtf((float) l->dk), .soft_cap = soft_cap, .sinks = sinks, .out = r.out,
            .worth = n_sharers > 0 && lesskv_worth_size(l, w->n_ubatch) > 0 ? r.worth : NULL,
        };
        attend(cache, w, l->n_head, false, &ub, &r);
        for (int32_t i = 0; i < n_sharers; i++) {
            ub.sinks = sharers[i].sinks;
            attend(cache, sharers[i].w, sharers[i].n_head, true, &ub, &r);
        }
        lesskv_commit(cache, &ub, r.scratch, 1, 0, 1);
        for (int32_t j = 0; j < l->n_head_kv; j++) {
            const int32_t held = lesskv_cache_slots(cache, j, lesskv_cache_width(cache), r.pos, r.score);
            mark(w, &r, j, pos + n, held, m);
        }
    }
    for (int32_t i = 0; i < n_sharers; i++) {
        memcpy(sharers[i].w->evicted, w->evicted, pairs * sizeof w->evicted[0]);
    }
    free_room(&r);
    lesskv_cache_free(cache);
    return ok ? LESSKV_OK : LESSKV_ERR_NOMEM;
}

enum lesskv_status lesskv_train_missing(const struct lesskv_layer * l, const struct lesskv_train_window * w, float soft_cap, int32_t step, double * missing) {
    float * f = malloc((2 * (size_t) l->dk + round_up((size_t) w->n_tokens, LANES)) * sizeof *f);
    if (!f) {
        return LESSKV_ERR_NOMEM;
    }
    float * q = f, * k = f + l->dk, * x = k + l->dk;
    const int32_t g = l->n_head / l->n_head_kv;
    const float s = 1 / sqrtf((float) l->dk);
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        const int32_t * evicted = w->evicted + (size_t) j * (size_t) w->n_tokens;
        int32_t first = INT32_MAX;
        for (int32_t t = 0; t < w->n_tokens; t++) {
            first = evicted[t] < first ? evicted[t] : first;
        }
        for (int32_t h = j * g; h < (j + 1) * g; h++) {
            double sum = 0, least = INFINITY, most = -INFINITY;
            int32_t count = 0;
            for (int64_t at = ((int64_t) first + 1) * w->n_ubatch; at < w->n_tokens; at += step, count++) {
                const int32_t t = (int32_t) at;
                lesskv_to_f32(LESSKV_TYPE_F16, q, w->q + ((size_t) t * (size_t) l->n_head + (size_t) h) * (size_t) l->dk, l->dk);
                int32_t n = 0;
                for (int32_t i = 0; i < t; i++) {
                    if (evicted[i] < t / w->n_ubatch) {
                        lesskv_to_f32(LESSKV_TYPE_F16, k, w->k + ((size_t) i * (size_t) l->n_head_kv + (size_t) j) * (size_t) l->dk, l->dk);
                        float dot = 0;
                        for (int32_t d = 0; d < l->dk; d++) {
                            dot += q[d] * k[d];
                        }
                        x[n++] = capped(s * dot, soft_cap);
                    }
                }
                const double mass = (double) log_sum(x, n, -INFINITY);
                sum  += mass;
                least = mass < least ? mass : least;
                most  = mass > most ? mass : most;
            }
            missing[h] = sum / (double) count;
            missing[l->n_head + h]     = least;
            missing[2 * l->n_head + h] = most;
        }
    }
    free(f);
    return LESSKV_OK;
}
