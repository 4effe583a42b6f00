// commit.c: what a micro-batch does to the cache once it has attended: score, evict, fold (steps 2 to 4 of "A micro-batch
// of T tokens" in algorithm.md).

#include "internal.h"

#include <stdlib.h>

// One KV head's work. A pair's index: slots 0 .. n - 1, then the micro-batch's tokens.
struct task {
    struct lesskv_cache *        cache; // gather only reads it
    const struct lesskv_layer *  layer; // whose attend came before: the cache's own, or a sharer
    const struct lesskv_ubatch * ub;
    struct lesskv_head *         head;
    int32_t head_kv;
    int32_t n, n_pair;
    struct rows batch_k, batch_v; // [T]
};

static struct task task_of(struct lesskv_cache * cache, const struct lesskv_layer * layer, const struct lesskv_ubatch * ub, int32_t head_kv) {
    struct lesskv_head * h = &cache->head[head_kv];
    return (struct task) {
        cache, layer, ub, h, head_kv, h->store.n, h->store.n + ub->n_tokens,
        lesskv_batch_keys(&cache->layer, ub, head_kv), lesskv_batch_values(&cache->layer, ub, head_kv),
    };
}

// How many pairs go.
static int32_t evicts(const struct task * t) {
    const int32_t slots = t->head->budget.slots;
    return t->n_pair > slots ? t->n_pair - slots : 0;
}

static int32_t pos_at(const struct task * t, int32_t i) {
    return i < t->n ? t->head->store.pos[i] : t->ub->pos + (i - t->n);
}

static const void * key_at(const struct task * t, int32_t i) {
    return i < t->n ? row_at(store_keys(&t->head->store), i) : row_at(t->batch_k, i - t->n);
}

static const void * value_at(const struct task * t, int32_t i) {
    return i < t->n ? row_at(store_values(&t->head->store), i) : row_at(t->batch_v, i - t->n);
}

// Makes a token of the micro-batch a slot. What was in the slot is folded already.
static void keep(const struct task * t, int32_t slot, int32_t i, float score) {
    lesskv_store_write(&t->head->store, slot, key_at(t, i), value_at(t, i), pos_at(t, i), score);
}

// What pairs were worth in a small micro-batch: attend left every query's exponentials, and what makes each part of them softmax
// weights.
static const float * add_few(const struct task * t, const struct scratch * s) {
    const struct lesskv_layer *  l = t->layer;
    const int32_t T     = t->ub->n_tokens;
    const int32_t n     = l->n_head / l->n_head_kv * T;
    const int32_t from  = lesskv_policy_from(l->policy, T);
    const struct parts parts = lesskv_parts(t->cache, t->head_kv, t->n, t->n + t->head->folded);
    float * all = s->worth + (size_t) t->head_kv * (size_t) n * s->width; // in the first query's place
    for (int32_t i = 0; i < parts.n; i++) {
        const float * share = s->share + (size_t) (parts.first + i) * (size_t) n;
        const int32_t r0 = i * parts.slots;
        const int32_t r1 = i + 1 < parts.n ? r0 + parts.slots : t->n_pair;
        // what lies behind r1 is of no part, and no one's
        lesskv_level()->worth_few(l->policy->worth, all + r0, s->width, r1 - r0, share, n, T, from);
    }
    return all;
}

// attend's units of a KV head in a large micro-batch.
static size_t units_of(const struct task * t, const struct scratch * s) {
    const struct lesskv_layer * l = t->layer;
    return (size_t) (l->n_head / l->n_head_kv) * (size_t) s->n_chunk;
}

// Where one of them left what pairs are worth; the last of them knows all tokens.
static float * worth_of(const struct task * t, const struct scratch * s, size_t unit) {
    return s->worth + ((size_t) t->head_kv * units_of(t, s) + unit) * s->width;
}

// A share of step 2, which other threads may have the rest of: attend's units become one, in the place of the last, for the
// pairs from r0 on, below r1.
static const float * add_units(const struct task * t, const struct scratch * s, int32_t r0, int32_t r1) {
    const struct lesskv_layer * l = t->layer;
    const size_t units = units_of(t, s);
    float * all = worth_of(t, s, units - 1);
    for (size_t u = 0; u + 1 < units; u++) {
        const float * unit = worth_of(t, s, u);
        const int64_t seen = t->n + ((int64_t) u % s->n_chunk + 1) * s->chunk; // pairs up to the unit's last query
        const int32_t n    = seen < r1 ? (int32_t) seen : r1;
        if (l->policy->worth == LESSKV_WORTH_SUM) {
            for (int32_t i = r0; i < n; i++) {
                all[i] += unit[i];
            }
        } else {
            for (int32_t i = r0; i < n; i++) {
                all[i] = unit[i] > all[i] ? unit[i] : all[i];
            }
        }
    }
    return all;
}

// How many shares a KV head's pairs are cut into, where attend's units are many; and the first pair of one of them.
static int32_t shares_of(const struct lesskv_layer * l, const struct scratch * s) {
    return s->worth && !s->few ? COMMIT_UNITS / l->n_head_kv + 1 : 1;
}

static int32_t share_at(const struct task * t, int32_t shares, int32_t share) {
    const int32_t each = (int32_t) round_up((size_t) (t->n_pair / shares + 1), LANES);
    return share * each < t->n_pair ? share * each : t->n_pair;
}

void lesskv_gather(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth) {
    const int workers = nth < n_threads ? nth : n_threads;
    const struct lesskv_layer l = lesskv_layer_asking(cache, ub);
    const struct scratch s = lesskv_scratch_plan(&l, ub->n_tokens, n_threads, scratch, ith);
    if (ith >= workers || !s.worth) {
        return;
    }
    struct lesskv_profile * profile = ub->profile;
    lesskv_start(profile);
    const uint64_t begin = profile ? profile->last : 0;
    const int32_t shares = shares_of(&l, &s);
    for (int32_t u = ith; u < shares * l.n_head_kv; u += workers) {
        const struct task t = task_of((struct lesskv_cache *) cache, &l, ub, u / shares);
        const int32_t r0 = share_at(&t, shares, u % shares);
        const int32_t r1 = share_at(&t, shares, u % shares + 1);
        const float * all = s.few ? add_few(&t, &s) : add_units(&t, &s, r0, r1);
        float * worth = ub->worth + (size_t) t.head_kv * s.width;
        for (int32_t i = r0; i < r1; i++) {
            const float before = ub->layer ? worth[i] : 0; // the first finds what the last micro-batch left
            const float more   = l.policy->worth == LESSKV_WORTH_SUM ? before + all[i] : all[i];
            worth[i] = more > before ? more : before;
        }
    }
    lesskv_lap(profile, LESSKV_PHASE_SCORE);
    if (profile) {
        profile->commit += lesskv_now() - begin;
    }
}

// The head as its policy sees it.
static struct lesskv_policy_head seen(const struct task * t) {
    return (struct lesskv_policy_head) { &t->cache->layer, t->head_kv, t->head->budget, t->ub->n_tokens };
}

// Step 2.
static void score(const struct task * t, const struct scratch * s) {
    const struct lesskv_policy * policy = t->cache->layer.policy;
    const int32_t n_token = t->ub->n_tokens;
    memset(s->score, 0, (size_t) n_token * sizeof(float));
    if (s->worth) {
        const float * all = t->ub->worth ? t->ub->worth + (size_t) t->head_kv * s->width
            : s->few ? add_few(t, s) : worth_of(t, s, units_of(t, s) - 1);
        const struct lesskv_policy_head head = seen(t);
        policy->score(&head, t->head->store.score, all, t->n);
        policy->score(&head, s->score, all + t->n, n_token);
    }
}

// The position from which on pairs are among the r newest. None of these positions is missing: nothing newer than that was
// ever evicted, and where the sequence was cut by c tokens, nothing is evicted again before more than c have come.
static int64_t newest(const struct task * t) {
    const struct lesskv_budget b = t->head->budget;
    return (int64_t) t->ub->pos + t->ub->n_tokens - (b.slots - b.heavy);
}

// The keys of pairs that stay in any case become the largest there is: pinned ones, and the r newest.
static void spare(const struct task * t, uint64_t * key, const int32_t * pos, int32_t n) {
    const int64_t newest_from = newest(t);
    const int32_t from   = newest_from > 0 ? (int32_t) newest_from : 0; // at most the position behind the micro-batch
    const int32_t pinned = t->cache->layer.pinned;
    for (int32_t i = 0; i < n; i++) {
        key[i] = ((pos[i] < pinned) | (pos[i] >= from)) ? UINT64_MAX : key[i];
    }
}

// An evicted pair as a number: its position, for sorting, and below that its index.
static uint64_t evicted(const struct task * t, int32_t i) {
    return (uint64_t) ((uint32_t) pos_at(t, i) ^ 0x80000000u) << 32 | (uint32_t) i;
}

static int32_t index_of(uint64_t gone) {
    return (int32_t) (gone & 0xffffffff);
}

// Step 3: s->evict becomes the n_evict pairs to go, slots before tokens, and both in position order. Returns the number of
// slots.
static int32_t evict(const struct task * t, const struct scratch * s, int32_t n_evict) {
    const struct lesskv_layer * l = &t->cache->layer;
    const int32_t n_token = t->ub->n_tokens;
    for (int32_t i = 0; i < n_token; i++) {
        s->pos[i] = t->ub->pos + i;
    }
    const struct store * slots = &t->head->store;
    const struct lesskv_policy_head head = seen(t);
    l->policy->keys(&head, s->key,        slots->score, slots->pos, t->n);
    l->policy->keys(&head, s->key + t->n, s->score,     s->pos,     n_token);
    spare(t, s->key,        slots->pos, t->n);
    spare(t, s->key + t->n, s->pos,     n_token);

    const uint64_t last = lesskv_select(s->key, t->n_pair, n_evict);
    if (n_evict == 1) { // decoding; of equal keys the first, as below
        int32_t i = 0;
        while (s->key[i] != last) {
            i++;
        }
        s->evict[0] = evicted(t, i);
        return i < t->n;
    }
    int32_t equal = n_evict; // that go too: one, unless positions repeat
    for (int32_t i = 0; i < t->n_pair; i++) {
        equal -= s->key[i] < last;
    }
    int32_t n = 0, n_slot = 0;
    for (int32_t i = 0; i < t->n_pair; i++) {
        if (s->key[i] < last || (s->key[i] == last && equal-- > 0)) {
            s->evict[n++] = evicted(t, i);
            n_slot += i < t->n;
        }
    }
    lesskv_sort(s->evict, n_slot);
    return n_slot;
}

// Step 4.
static enum lesskv_status fold(const struct task * t, const struct scratch * s, int32_t n_evict) {
    const struct lesskv_layer * l = &t->cache->layer;
    if (!l->kernels) {
        return LESSKV_OK;
    }
    for (int32_t e = 0; e < n_evict; e += LANES) {
        const void * k[LANES], * v[LANES];
        int32_t m = 0;
        for (; m < LANES && e + m < n_evict; m++) {
            k[m] = key_at(t, index_of(s->evict[e + m]));
            v[m] = value_at(t, index_of(s->evict[e + m]));
        }
        lesskv_state_fold(&t->head->state, l, t->head_kv, k, v, m, s);
    }
    return lesskv_state_finite(&t->head->state, l) ? LESSKV_OK : LESSKV_ERR_FINITE;
}

// The tokens that stay take the places of the n_slot slots that go, and then new ones, all in position order.
static void move(const struct task * t, const struct scratch * s, int32_t n_evict, int32_t n_slot) {
    int32_t hole = 0, gone = n_slot;
    for (int32_t i = t->n; i < t->n_pair; i++) {
        if (gone < n_evict && index_of(s->evict[gone]) == i) {
            gone++;
            continue;
        }
        const int32_t slot = hole < n_slot ? index_of(s->evict[hole++]) : t->head->store.n;
        keep(t, slot, i, s->score[i - t->n]);
    }
}

static void count(const struct task * t, int32_t n_evict, int32_t highest) {
    t->head->folded += n_evict;
    t->head->evicted = n_evict > 0 && highest > t->head->evicted ? highest : t->head->evicted;
    t->head->last    = t->ub->pos + (t->ub->n_tokens - 1);
}

enum lesskv_status lesskv_commit(struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth) {
    const int workers = nth < n_threads ? nth : n_threads;
    if (ith >= workers) {
        return LESSKV_OK;
    }
    enum lesskv_status status = LESSKV_OK;
    const struct lesskv_layer * l = &cache->layer;
    struct scratch s = lesskv_scratch_plan(l, ub->n_tokens, n_threads, scratch, ith);
    s.profile = ub->profile;
    lesskv_start(s.profile);
    const uint64_t begin = s.profile ? s.profile->last : 0;
    // a large micro-batch has much to add up, and may have one KV head: the sums are shared, the rest is the last one's
    const int32_t shares = ub->worth ? 1 : shares_of(l, &s);
    for (int32_t u = ith; u < shares * l->n_head_kv; u += workers) {
        const int32_t j = u / shares;
        const struct task t = task_of(cache, l, ub, j);
        if (s.worth && !s.few && !ub->worth) {
            add_units(&t, &s, share_at(&t, shares, u % shares), share_at(&t, shares, u % shares + 1));
            lesskv_lap(s.profile, LESSKV_PHASE_SCORE);
        }
        if (atomic_fetch_add_explicit(&cache->arrived[j], 1, memory_order_acq_rel) != shares - 1) {
            continue;
        }
        atomic_store_explicit(&cache->arrived[j], 0, memory_order_relaxed);
        const int32_t n_evict = evicts(&t);
        int32_t n_slot = 0, highest = -1;
        score(&t, &s);
        lesskv_lap(s.profile, LESSKV_PHASE_SCORE);
        if (n_evict > 0) {
            n_slot  = evict(&t, &s, n_evict);
            highest = pos_at(&t, index_of(s.evict[n_evict - 1]));
            lesskv_lap(s.profile, LESSKV_PHASE_POLICY);
            status  = fold(&t, &s, n_evict) != LESSKV_OK ? LESSKV_ERR_FINITE : status;
            lesskv_lap(s.profile, LESSKV_PHASE_FOLD);
        }
        move(&t, &s, n_evict, n_slot);
        count(&t, n_evict, highest);
        lesskv_lap(s.profile, LESSKV_PHASE_MOVE);
    }
    if (s.profile) {
        s.profile->commit += lesskv_now() - begin;
    }
    return status;
}

// What the reference works in.
struct room {
    float *   score; // [n + T]
    char *    gone;  // [n + T] whether a pair is evicted
    int32_t * order; // [T] the evicted in position order
    float *   row;   // [2 D + Dv]
    float *   psi;   // [R]
    float *   tmp;   // [R' + 2 R]
    double *  sum;   // [R][Dv + 1]
};

static void score_ref(const struct task * t, const struct room * w, const double * worth) {
    const struct lesskv_layer * l = &t->cache->layer;
    const struct lesskv_policy_head head = seen(t);
    for (int32_t i = 0; i < t->n_pair; i++) {
        w->score[i] = i < t->n ? t->head->store.score[i] : 0;
        if (l->policy->worth == LESSKV_WORTH_NONE) {
            continue;
        }
        const float all = (float) worth[i < t->n ? i : lesskv_cache_width(t->cache) + i - t->n];
        l->policy->score(&head, &w->score[i], &all, 1);
    }
    for (int32_t i = 0; i < t->n; i++) {
        t->head->store.score[i] = w->score[i];
    }
}

// What a pair's staying is worth: all there is if it is pinned or one of the r newest.
static uint64_t key_ref(const struct task * t, const struct room * w, int32_t i) {
    const struct lesskv_layer * l = &t->cache->layer;
    int32_t newer = 0;
    for (int32_t j = 0; j < t->n_pair; j++) {
        newer += pos_at(t, j) > pos_at(t, i);
    }
    const int32_t pos = pos_at(t, i);
    uint64_t key;
    const struct lesskv_policy_head head = seen(t);
    l->policy->keys(&head, &key, &w->score[i], &pos, 1);
    return pos < l->pinned || newer < t->head->budget.slots - t->head->budget.heavy ? UINT64_MAX : key;
}

static void evict_ref(const struct task * t, const struct room * w, int32_t n_evict) {
    memset(w->gone, 0, (size_t) t->n_pair);
    for (int32_t e = 0; e < n_evict; e++) {
        int32_t worst = -1;
        for (int32_t i = 0; i < t->n_pair; i++) {
            if (!w->gone[i] && (worst < 0 || key_ref(t, w, i) < key_ref(t, w, worst))) {
                worst = i;
            }
        }
        w->gone[worst] = 1;
    }
    for (int32_t e = 0; e < n_evict; e++) {
        int32_t oldest = -1;
        for (int32_t i = 0; i < t->n_pair; i++) {
            if (w->gone[i] == 1 && (oldest < 0 || pos_at(t, i) < pos_at(t, oldest))) {
                oldest = i;
            }
        }
        w->gone[oldest] = 2;
        w->order[e] = oldest;
    }
}

enum lesskv_status lesskv_commit_ref(struct lesskv_cache * cache, const struct lesskv_ubatch * ub, const double * worth, double * sums) {
    const struct lesskv_layer * l = &cache->layer;
    const size_t rank   = (size_t) cache->rank;
    const size_t hidden = l->kernels ? (size_t) l->kernels->hidden : 0;
    const size_t pairs  = (size_t) lesskv_cache_width(cache) + (size_t) ub->n_tokens;
    const size_t state  = rank * ((size_t) l->dv + 1);
    double *  d     = malloc((state + 1) * sizeof *d);
    float *   f     = malloc((pairs + 2 * (size_t) l->dk + (size_t) l->dv + hidden + 3 * rank) * sizeof *f);
    char *    gone  = malloc(pairs);
    int32_t * order = malloc((size_t) ub->n_tokens * sizeof *order);
    const bool ok = d && f && gone && order;
    enum lesskv_status status = ok ? LESSKV_OK : LESSKV_ERR_NOMEM;
    for (int32_t j = 0; ok && j < l->n_head_kv; j++) {
        float * row = f + pairs, * psi = row + 2 * (size_t) l->dk + l->dv;
        const struct room w = { f, gone, order, row, psi, psi + rank, sums ? sums + (size_t) j * state : d };
        const struct task t = task_of(cache, l, ub, j);
        const int32_t n_evict = evicts(&t);
        score_ref(&t, &w, worth + (size_t) j * pairs);
        evict_ref(&t, &w, n_evict);
        if (!sums) {
            lesskv_state_widen(&t.head->state, l, w.sum);
        }
        for (int32_t e = 0; e < n_evict && l->kernels; e++) {
            lesskv_state_fold_ref(w.sum, l, j, key_at(&t, order[e]), value_at(&t, order[e]), w.row, w.psi, w.tmp);
        }
        lesskv_state_round(&t.head->state, l, w.sum);
        if (n_evict > 0 && !lesskv_state_finite(&t.head->state, l)) {
            status = LESSKV_ERR_FINITE;
        }
        count(&t, n_evict, n_evict > 0 ? pos_at(&t, order[n_evict - 1]) : -1);
        int32_t hole = 0;
        for (int32_t i = t.n; i < t.n_pair; i++) {
            while (hole < n_evict && order[hole] >= t.n) {
                hole++;
            }
            if (!gone[i]) {
                const int32_t slot = hole < n_evict ? order[hole++] : t.head->store.n;
                keep(&t, slot, i, w.score[i]);
            }
        }
    }
    free(d);
    free(f);
    free(gone);
    free(order);
    return status;
}
