// attend.c: attention of a micro-batch over slots, micro-batch and low-rank state ("Attention of one query" and steps 1
// and 2 of "A micro-batch" in algorithm.md).

#include "internal.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

// One KV head's part of a micro-batch, and a query head's share of it.
struct task {
    const struct lesskv_cache *  cache;
    const struct lesskv_layer *  layer; // that asks, as it attends: lesskv_layer_asking
    const struct lesskv_ubatch * ub;
    const struct lesskv_head *   head;
    int32_t head_q, head_kv;
    struct rows slots_k, slots_v; // [n]
    struct rows batch_k, batch_v; // [T]
};

static struct task task_of(const struct lesskv_cache * cache, const struct lesskv_layer * l, const struct lesskv_ubatch * ub, int32_t head_q) {
    const int32_t j = head_q / (l->n_head / l->n_head_kv);
    const struct lesskv_head * h = &cache->head[j];
    return (struct task) {
        .cache = cache, .layer = l, .ub = ub, .head = h, .head_q = head_q, .head_kv = j,
        .slots_k = store_keys(&h->store),   .batch_k = lesskv_batch_keys(l, ub, j),
        .slots_v = store_values(&h->store), .batch_v = lesskv_batch_values(l, ub, j),
    };
}

static const char * query_at(const struct task * t, int32_t i) {
    return (const char *) t->ub->q + (size_t) t->head_q * t->ub->q_head + (size_t) i * t->ub->q_token;
}

static float * out_at(const struct task * t, int32_t i) {
    const struct lesskv_layer * l = t->layer;
    return t->ub->out + ((size_t) i * (size_t) l->n_head + (size_t) t->head_q) * (size_t) l->dv;
}

// The queries of the micro-batch that a pair at pos is visible to: from lo on, below hi.
static void visible(const struct task * t, int64_t pos, int32_t * lo, int32_t * hi) {
    const int64_t from = pos - t->ub->pos;
    const int64_t to   = t->layer->n_swa > 0 ? from + t->layer->n_swa : t->ub->n_tokens;
    *lo = from > 0 ? (int32_t) from : 0;
    *hi = to < t->ub->n_tokens ? (int32_t) (to > 0 ? to : 0) : t->ub->n_tokens;
}

// out[Dv] = softmax over A, whose unnormalised sum is acc with normaliser sum and maximum top, joined by the state's token (a logit of
// -INFINITY: none), and by the sink in the denominator. A NaN is in sum, top is the largest of the others.
static void join(const struct task * t, int32_t i, const float * acc, float top, float sum, float logit, const float * value) {
    const bool  state = logit != -INFINITY; // NaN stays
    const float sink  = t->ub->sinks ? t->ub->sinks[t->head_q] : -INFINITY;
    float m = top;
    m = logit > m ? logit : m;
    m = sink  > m ? sink  : m;

    float * out = out_at(t, i);
    const int32_t dv = t->layer->dv;
    if (m == -INFINITY && sum == 0) { // the query sees nothing
        memset(out, 0, (size_t) dv * sizeof(float));
        return;
    }
    const float a   = expf(top - m);
    const float b   = expf(logit - m);
    const float den = a * sum + b + expf(sink - m);
    const float wa  = a / den;
    const float wb  = b / den;
    if (!state) {
        for (int32_t c = 0; c < dv; c++) {
            out[c] = wa * acc[c];
        }
        return;
    }
    for (int32_t c = 0; c < dv; c++) {
        out[c] = wa * acc[c] + wb * value[c];
    }
}

// Where query a of a KV head's n = g T lies: token a mod T of the KV head's query head a / T.
static struct task task_few(const struct task * t, int32_t a) {
    const struct lesskv_layer * l = t->layer;
    struct task one = *t;
    one.head_q = t->head_kv * (l->n_head / l->n_head_kv) + a / t->ub->n_tokens;
    return one;
}

static int32_t queries_few(const struct task * t) {
    return t->layer->n_head / t->layer->n_head_kv * t->ub->n_tokens;
}

// x[m][D] = queries a .. a + m - 1, times scale.
static void read_few(const struct task * t, int32_t a, int32_t m, float scale, float * x) {
    const int32_t dk = t->layer->dk;
    for (int32_t j = 0; j < m; j++, x += dk) {
        const struct task one = task_few(t, a + j);
        lesskv_to_f32(LESSKV_TYPE_F32, x, query_at(&one, (a + j) % t->ub->n_tokens), dk);
        for (int32_t d = 0; d < dk; d++) {
            x[d] *= scale;
        }
    }
}

static struct parts parts_of(const struct task * t) {
    return lesskv_parts(t->cache, t->head_kv, t->slots_k.n, t->slots_k.n + t->head->folded);
}

// A part of the slots, the last one with the micro-batch, for all queries of a KV head; internal.h says what it leaves.
static void attend_part(const struct task * t, const struct scratch * s, int32_t part) {
    const struct lesskv_layer * l = t->layer;
    const int32_t T    = t->ub->n_tokens;
    const int32_t n    = queries_few(t);
    const struct parts parts = parts_of(t);
    const bool    last = part + 1 == parts.n;
    const int32_t r0   = part * parts.slots;
    const int32_t ns   = last ? t->slots_k.n - r0 : parts.slots; // slots
    const int32_t na   = last ? ns + T : ns;              // pairs
    const int32_t end  = (int32_t) round_up((size_t) na, LANES);
    const size_t  ldv  = round_up((size_t) l->dv, PAD);
    const size_t  at   = (size_t) (parts.first + part) * (size_t) n;

    const struct lesskv_level * loops = lesskv_level();
    const struct rows k = rows_from(t->slots_k, r0, ns), v = rows_from(t->slots_v, r0, ns);

    for (int32_t a = 0; a < n; a += FEW_BLOCK) {
        const int32_t m = n - a < FEW_BLOCK ? n - a : FEW_BLOCK;
        const size_t  ld = s->worth ? s->width : round_up((size_t) na, PAD);
        float * p = s->worth ? s->worth + ((size_t) t->head_kv * (size_t) n + (size_t) a) * s->width + r0 : s->logit;

        // 1. logits
        read_few(t, a, m, t->ub->scale, s->x);
        lesskv_rows_few(k, l->dk, s->x, (size_t) l->dk, m, p, ld);
        lesskv_lap(s->profile, LESSKV_PHASE_SLOTS);
        if (last) {
            lesskv_rows_few(t->batch_k, l->dk, s->x, (size_t) l->dk, m, p + ns, ld);
            lesskv_lap(s->profile, LESSKV_PHASE_UBATCH);
        }

        // 2. softmax, not yet divided
        for (int32_t j = 0; j < m; j++) {
            float * e = p + (size_t) j * ld;
            if (t->ub->soft_cap > 0) {
                memset(e + na, 0, (size_t) (end - na) * sizeof(float));
                loops->soft_cap(e, (size_t) end, t->ub->soft_cap);
            }
            for (int32_t r = l->n_swa > 0 ? 0 : ns; r < na; r++) {
                int32_t lo, hi;
                visible(t, r < ns ? t->head->store.pos[r0 + r] : (int64_t) t->ub->pos + r - ns, &lo, &hi);
                const int32_t i = (a + j) % T;
                e[r] = i >= lo && i < hi ? e[r] : -INFINITY;
            }
            for (int32_t r = na; r < end; r++) {
                e[r] = -INFINITY;
            }
            loops->softmax(e, end, &s->part_top[at + (size_t) (a + j)], &s->part_sum[at + (size_t) (a + j)]);
        }
        lesskv_lap(s->profile, LESSKV_PHASE_SOFTMAX);

        // 3. values
        float * acc = s->part_acc + (at + (size_t) a) * ldv;
        memset(acc, 0, (size_t) m * ldv * sizeof(float));
        lesskv_cols_few(v, l->dv, p, ld, m, acc, ldv);
        lesskv_lap(s->profile, LESSKV_PHASE_SLOTS);
        if (last) {
            lesskv_cols_few(t->batch_v, l->dv, p + ns, ld, m, acc, ldv);
            lesskv_lap(s->profile, LESSKV_PHASE_UBATCH);
        }
    }
}

// The state's answers to all queries of a KV head.
static void attend_state(const struct task * t, const struct scratch * s) {
    const struct lesskv_layer * l = t->layer;
    const int32_t n    = queries_few(t);
    const size_t  ldv  = round_up((size_t) l->dv, PAD);
    const size_t  at   = (size_t) t->head_kv * (size_t) n;
    for (int32_t a = 0; a < n; a += FEW_BLOCK) {
        const int32_t m = n - a < FEW_BLOCK ? n - a : FEW_BLOCK;
        int32_t head_q[FEW_BLOCK];
        read_few(t, a, m, t->ub->scale * sqrtf((float) l->dk), s->x);
        for (int32_t j = 0; j < m; j++) {
            head_q[j] = task_few(t, a + j).head_q;
        }
        lesskv_state_query(&t->head->state, l, head_q, s->x, m, s->state_logit + at + (size_t) a, s->state_value + (at + (size_t) a) * ldv, ldv, s);
    }
    lesskv_lap(s->profile, LESSKV_PHASE_PHI);
}

// The parts of a KV head become the output, always in the same order.
static void join_parts(const struct task * t, const struct scratch * s) {
    const struct lesskv_layer * l = t->layer;
    const int32_t n     = queries_few(t);
    const struct parts parts = parts_of(t);
    const size_t  ldv   = round_up((size_t) l->dv, PAD);
    for (int32_t a = 0; a < n; a++) {
        const size_t at   = (size_t) parts.first * (size_t) n + (size_t) a;
        const size_t here = (size_t) t->head_kv * (size_t) n + (size_t) a;
        float top = -INFINITY, sum = 0;
        for (int32_t i = 0; i < parts.n; i++) {
            const float x = s->part_top[at + (size_t) (i * n)];
            top = x > top ? x : top;
        }
        memset(s->sum, 0, (size_t) l->dv * sizeof(float));
        for (int32_t i = 0; i < parts.n; i++) {
            const size_t  part = at + (size_t) (i * n);
            const float   e    = top > -INFINITY ? expf(s->part_top[part] - top) : 1; // NaN stays
            const float * acc  = s->part_acc + part * ldv;
            sum += e * s->part_sum[part];
            for (int32_t c = 0; c < l->dv; c++) {
                s->sum[c] += e * acc[c];
            }
            s->share[part] = e;
        }
        for (int32_t i = 0; i < parts.n; i++) {
            s->share[at + (size_t) (i * n)] *= sum > 0 ? 1 / sum : 0;
        }
        const struct task one = task_few(t, a);
        join(&one, a % t->ub->n_tokens, s->sum, top, sum, l->kernels ? s->state_logit[here] : -INFINITY, l->kernels ? s->state_value + here * ldv : NULL);
    }
    lesskv_lap(s->profile, LESSKV_PHASE_SOFTMAX);
}

// A micro-batch of few tokens; see internal.h.
static void attend_few(const struct lesskv_cache * cache, const struct lesskv_layer * l, const struct lesskv_ubatch * ub, const struct scratch * s, int ith, int workers) {
    int32_t before = 0; // units of the heads before
    for (int32_t j = 0; j < l->n_head_kv; j++) {
        const struct task t = task_of(cache, l, ub, j * (l->n_head / l->n_head_kv));
        const int32_t parts = parts_of(&t).n;
        const int32_t units = parts + (l->kernels != NULL);
        for (int32_t unit = 0; unit < units; unit++) {
            if ((before + unit) % workers != ith) {
                continue;
            }
            if (unit < parts) {
                attend_part(&t, s, unit);
            } else {
                attend_state(&t, s);
            }
            // what the others wrote before they arrived is seen by the last
            if (atomic_fetch_add_explicit(&cache->arrived[j], 1, memory_order_acq_rel) == units - 1) {
                atomic_store_explicit(&cache->arrived[j], 0, memory_order_relaxed);
                join_parts(&t, s);
            }
        }
        before += units;
    }
}

// A block of LANES queries, or fewer; see internal.h for the layout.
struct block {
    int32_t i0, i1;  // queries, from i0 on, below i1
    int32_t b0;      // of the micro-batch's pairs those from here on, below i1
    int32_t n, na;   // slots; pairs in all
    float * x;       // [D][LANES] queries, times scale
    float * p;       // [na][LANES] logits, then exponentials
    float * sum;     // [LANES][round_up(Dv, PAD)]
    float top[LANES], total[LANES];
};

static void read_block(const struct task * t, const struct scratch * s, const struct block * b) {
    const int32_t dk = t->layer->dk;
    memset(b->x, 0, (size_t) dk * LANES * sizeof(float));
    for (int32_t i = b->i0; i < b->i1; i++) {
        lesskv_to_f32(LESSKV_TYPE_F32, s->tile, query_at(t, i), dk);
        for (int32_t d = 0; d < dk; d++) {
            b->x[(size_t) d * LANES + (i - b->i0)] = s->tile[d] * t->ub->scale;
        }
    }
}

// The micro-batch's logits, and softmax over all, not yet divided.
static void softmax_block(const struct task * t, const struct scratch * s, struct block * b) {
    const struct lesskv_layer * l = t->layer;
    const struct lesskv_level * loops = lesskv_level();
    lesskv_rows_block(rows_from(t->batch_k, b->b0, b->i1 - b->b0), l->dk, b->x, LANES, b->p + (size_t) b->n * LANES, 0, s->tile);
    lesskv_lap(s->profile, LESSKV_PHASE_UBATCH);
    if (t->ub->soft_cap > 0) {
        loops->soft_cap(b->p, (size_t) b->na * LANES, t->ub->soft_cap);
    }
    for (int32_t r = l->n_swa > 0 ? 0 : b->n; r < b->na; r++) {
        int32_t lo, hi;
        visible(t, r < b->n ? t->head->store.pos[r] : (int64_t) t->ub->pos + b->b0 + r - b->n, &lo, &hi);
        for (int32_t i = b->i0; i < b->i1 && (lo > b->i0 || hi < b->i1); i++) {
            if (i < lo || i >= hi) {
                b->p[(size_t) r * LANES + (i - b->i0)] = -INFINITY;
            }
        }
    }
    loops->softmax_block(b->p, b->na, b->top, b->total);
    lesskv_lap(s->profile, LESSKV_PHASE_SOFTMAX);
}

// The micro-batch's values, the low-rank state, and what the pairs were worth.
static void finish_block(const struct task * t, const struct scratch * s, const struct block * b, float * worth) {
    const struct lesskv_layer * l = t->layer;
    const int32_t nq = b->i1 - b->i0;
    const size_t  ld = round_up((size_t) l->dv, PAD);
    lesskv_cols_block(rows_from(t->batch_v, b->b0, b->i1 - b->b0), l->dv, b->p + (size_t) b->n * LANES, 0, nq, b->sum, s->tile);
    lesskv_lap(s->profile, LESSKV_PHASE_UBATCH);

    float logit[LANES];
    for (int i = 0; i < LANES; i++) {
        logit[i] = -INFINITY;
    }
    if (l->kernels) {
        const float qn = sqrtf((float) l->dk);
        for (size_t d = 0; d < (size_t) l->dk * LANES; d++) {
            b->x[d] *= qn;
        }
        lesskv_state_query_block(&t->head->state, l, t->head_q, b->x, nq, logit, s->low, s);
        lesskv_lap(s->profile, LESSKV_PHASE_PHI);
    }
    for (int32_t i = 0; i < nq; i++) {
        join(t, b->i0 + i, b->sum + i * ld, b->top[i], b->total[i], logit[i], s->low + i * ld);
    }
    lesskv_lap(s->profile, LESSKV_PHASE_SOFTMAX);

    // a policy that asks has no window, so the rows are the slots and the micro-batch
    const int32_t from = lesskv_policy_from(l->policy, t->ub->n_tokens) - b->i0;
    if (worth && from < nq) {
        float inv[LANES];
        for (int i = 0; i < LANES; i++) {
            inv[i] = i >= from && i < nq && b->total[i] > 0 ? 1 / b->total[i] : 0; // of the queries that count
        }
        lesskv_level()->worth_block(l->policy->worth, b->p, b->na, inv, worth);
        lesskv_lap(s->profile, LESSKV_PHASE_SCORE);
    }
}

// Queries i0 .. i0 + nq - 1, 1 <= nq <= LANES * s->blocks: all of their blocks see slots, or none does.
static void attend_blocks(const struct task * t, const struct scratch * s, int32_t i0, int32_t nq, float * worth) {
    const struct lesskv_layer * l = t->layer;
    const int32_t n  = l->n_swa > 0 && i0 >= l->n_swa - 1 ? 0 : t->slots_k.n; // 0: no query sees a slot
    const size_t  ld = round_up((size_t) l->dv, PAD);
    struct block block[BLOCKS];
    int32_t n_block = 0;
    for (int32_t i = i0; i < i0 + nq; i += LANES) {
        struct block * b = &block[n_block];
        b->i0  = i;
        b->i1  = i0 + nq - i < LANES ? i0 + nq : i + LANES;
        b->b0  = l->n_swa > 0 && i >= l->n_swa ? i - l->n_swa + 1 : 0; // what is before a window is left out
        b->n   = n;
        b->na  = n + b->i1 - b->b0;
        b->x   = s->x     + (size_t) n_block * LANES * (size_t) l->dk;
        b->p   = s->logit + (size_t) n_block * LANES * s->width;
        b->sum = s->sum   + (size_t) n_block * LANES * ld;
        read_block(t, s, b);
        n_block++;
    }

    lesskv_rows_block(rows_from(t->slots_k, 0, n), l->dk, s->x, nq, s->logit, LANES * s->width, s->tile);
    lesskv_lap(s->profile, LESSKV_PHASE_SLOTS);
    for (int32_t i = 0; i < n_block; i++) {
        softmax_block(t, s, &block[i]);
    }
    memset(s->sum, 0, (size_t) n_block * LANES * ld * sizeof(float));
    lesskv_cols_block(rows_from(t->slots_v, 0, n), l->dv, s->logit, LANES * s->width, nq, s->sum, s->tile);
    lesskv_lap(s->profile, LESSKV_PHASE_SLOTS);
    for (int32_t i = 0; i < n_block; i++) {
        finish_block(t, s, &block[i], worth);
    }
}

void lesskv_attend(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth) {
    const int workers = nth < n_threads ? nth : n_threads;
    if (ith >= workers) {
        return;
    }
    const struct lesskv_layer asking = lesskv_layer_asking(cache, ub), * l = &asking;
    struct scratch s = lesskv_scratch_plan(l, ub->n_tokens, n_threads, scratch, ith);
    s.profile = ub->profile;
    lesskv_start(s.profile);
    const uint64_t begin = s.profile ? s.profile->last : 0;
    if (s.few) {
        attend_few(cache, l, ub, &s, ith, workers);
    }
    for (int32_t u = ith; u < s.n_chunk * l->n_head && !s.few; u += workers) {
        const int32_t head_q = u % l->n_head; // later chunks see more: spread them over the threads
        const int32_t chunk  = u / l->n_head;
        const int32_t i0     = chunk * s.chunk;
        const int32_t i1     = i0 + s.chunk < ub->n_tokens ? i0 + s.chunk : ub->n_tokens;
        const struct task t  = task_of(cache, l, ub, head_q);
        float * worth = NULL;
        if (s.worth) {
            worth = s.worth + ((size_t) head_q * (size_t) s.n_chunk + (size_t) chunk) * s.width;
            memset(worth, 0, ((size_t) t.head->store.n + (size_t) i1) * sizeof(float));
        }
        for (int32_t i = i0, nq; i < i1; i += nq) {
            nq = i1 - i < LANES * s.blocks ? i1 - i : LANES * s.blocks;
            const int32_t seeing = l->n_swa > 0 && i < l->n_swa - 1 ? (l->n_swa - 1 - i + LANES - 1) / LANES * LANES : nq;
            nq = seeing < nq ? seeing : nq; // the blocks behind that are past the window's slots
            attend_blocks(&t, &s, i, nq, worth);
        }
    }
    if (s.profile) {
        s.profile->attend += lesskv_now() - begin;
    }
}

// What the reference works in.
struct room {
    double * logit; // [n + T]
    double * sum;   // [Dv]
    double * value; // [Dv] the state's
    float *  row;   // [max(D, Dv)]
    float *  x;     // [D]
    float *  phi;   // [R]
    float *  tmp;   // [R' + 2 R]
};

static void read_ref(struct rows a, struct rows b, int32_t r, int32_t n, float * row) {
    lesskv_to_f32(a.type, row, r < a.n ? row_at(a, r) : row_at(b, r - a.n), n);
}

// One query; worth: [B' + T] of its KV head, which it joins, or NULL.
static void query_ref(const struct task * t, const struct room * w, int32_t i, double * worth) {
    const struct lesskv_layer *   l = t->layer;
    const struct lesskv_kernels * k = l->kernels;
    const int32_t n  = t->slots_k.n;
    const int32_t na = n + t->ub->n_tokens;
    const double  s  = (double) t->ub->scale, cap = (double) t->ub->soft_cap;

    // l = s q.k for what the query sees
    double m = -INFINITY;
    lesskv_to_f32(LESSKV_TYPE_F32, w->x, query_at(t, i), l->dk);
    for (int32_t r = 0; r < na; r++) {
        int32_t lo, hi;
        visible(t, r < n ? t->head->store.pos[r] : (int64_t) t->ub->pos + r - n, &lo, &hi);
        w->logit[r] = -INFINITY;
        if (i >= lo && i < hi) {
            read_ref(t->slots_k, t->batch_k, r, l->dk, w->row);
            double dot = 0;
            for (int32_t d = 0; d < l->dk; d++) {
                dot += (double) w->x[d] * (double) w->row[d];
            }
            w->logit[r] = cap > 0 ? cap * tanh(s * dot / cap) : s * dot;
        }
        m = w->logit[r] > m ? w->logit[r] : m;
    }

    // the softmax weights over A alone; those of a query that has a NaN among them count as nothing
    double sum = 0;
    for (int32_t r = 0; r < na; r++) {
        sum += w->logit[r] == -INFINITY ? 0 : exp(w->logit[r] - m);
    }
    const bool counts = worth && i >= lesskv_policy_from(l->policy, t->ub->n_tokens);
    for (int32_t r = 0; r < na && counts && sum > 0; r++) {
        const double weight = exp(w->logit[r] - m) / sum;
        double * to = &worth[r < n ? r : lesskv_cache_width(t->cache) + r - n];
        if (l->policy->worth == LESSKV_WORTH_SUM) {
            *to += weight;
        } else {
            *to = weight > *to ? weight : *to;
        }
    }

    // L = scale + log(phi(qn).z)
    for (int32_t d = 0; d < l->dk && k; d++) {
        w->x[d] = (float) ((double) w->x[d] * s * sqrt((double) l->dk));
    }
    const double L = k ? lesskv_state_query_ref(&t->head->state, l, t->head_q, w->x, w->value, w->row, w->phi, w->tmp) : -INFINITY;
    const double sink = t->ub->sinks ? (double) t->ub->sinks[t->head_q] : -INFINITY;
    m = L > m ? L : m;
    m = sink > m ? sink : m;

    // a(q)
    double den = 0;
    for (int32_t c = 0; c < l->dv; c++) {
        w->sum[c] = 0;
    }
    for (int32_t r = 0; r < na; r++) {
        if (w->logit[r] != -INFINITY) {
            const double e = exp(w->logit[r] - m);
            read_ref(t->slots_v, t->batch_v, r, l->dv, w->row);
            for (int32_t c = 0; c < l->dv; c++) {
                w->sum[c] += e * (double) w->row[c];
            }
            den += e;
        }
    }
    for (int32_t c = 0; c < l->dv && L != -INFINITY; c++) {
        w->sum[c] += exp(L - m) * w->value[c];
    }
    den += L != -INFINITY ? exp(L - m) : 0;
    den += sink > -INFINITY ? exp(sink - m) : 0;
    for (int32_t c = 0; c < l->dv; c++) {
        out_at(t, i)[c] = den != 0 ? (float) (w->sum[c] / den) : 0; // 0: the query sees nothing
    }
}

enum lesskv_status lesskv_attend_ref(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, double * worth) {
    const struct lesskv_layer asking = lesskv_layer_asking(cache, ub), * l = &asking;
    const size_t n_token = (size_t) ub->n_tokens;
    const size_t width   = (size_t) lesskv_cache_width(cache) + n_token;
    const bool   asked   = worth && l->policy->worth != LESSKV_WORTH_NONE;
    const size_t rank    = (size_t) cache->rank;
    const size_t hidden  = l->kernels ? (size_t) l->kernels->hidden : 0;
    const size_t row     = (size_t) (l->dk > l->dv ? l->dk : l->dv);

    double * d = malloc((width + 2 * (size_t) l->dv) * sizeof *d);
    float *  f = malloc((row + (size_t) l->dk + hidden + 3 * rank) * sizeof *f);
    if (d && f) {
        const struct room w = { d, d + width, d + width + l->dv, f, f + row, f + row + l->dk, f + row + l->dk + rank };
        for (size_t i = 0; asked && !ub->layer && i < (size_t) l->n_head_kv * width; i++) {
            worth[i] = 0;
        }
        for (int32_t head_q = 0; head_q < l->n_head; head_q++) {
            const struct task t = task_of(cache, l, ub, head_q);
            for (int32_t i = 0; i < ub->n_tokens; i++) {
                query_ref(&t, &w, i, asked ? worth + (size_t) t.head_kv * width : NULL);
            }
        }
    }
    const enum lesskv_status status = d && f ? LESSKV_OK : LESSKV_ERR_NOMEM;
    free(d);
    free(f);
    return status;
}
