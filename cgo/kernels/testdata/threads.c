// threads.c: attend and commit by threads that share the work of one and two KV heads, of one cache and of several with no barrier
// between them, for the thread sanitizer, which Go programs do not bear. check.sh compiles and runs it. The status is 1 where the bits depend on the number of threads.

#define _POSIX_C_SOURCE 200809L

#include "../lesskv.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_HEAD = 4, D = 32, RANK = 8, HIDDEN = 8, BUDGET = 600, MOST = 256, THREADS = 4, CACHES = 2 };

static const int32_t batches[] = { 256, 256, 256, 1, 1, 3, 17, 1, 64, 1, 256, 1 };

struct task {
    struct lesskv_cache * cache;
    struct lesskv_ubatch  ub;
    void * scratch;
};

struct job {
    const struct task * task;
    int    n_task;
    const struct lesskv_layer * sharer; // NULL: none shares the caches
    int    n, ith;
    pthread_barrier_t * barrier;
};

static float rnd(void) {
    static uint32_t x = 1;
    x = x * 1664525 + 1013904223;
    return (float) (x >> 8) / (1 << 24) - 0.5f;
}

static float * numbers(size_t n) {
    float * f = malloc(n * sizeof *f);
    for (size_t i = 0; f && i < n; i++) {
        f[i] = rnd();
    }
    return f;
}

enum step { ATTEND, GATHER, COMMIT };

// One step for all caches, a thread with another share of each; by the sharer, or by the layer that the caches are of.
static void all_tasks(const struct job * j, enum step step, const struct lesskv_layer * sharer) {
    for (int i = 0; i < j->n_task; i++) {
        const struct task * t = &j->task[i];
        const int ith = (j->ith + i) % j->n;
        struct lesskv_ubatch ub = t->ub;
        ub.layer = sharer; // of the first heads' queries, and their part of the output
        switch (step) {
            case ATTEND: lesskv_attend(t->cache, &ub, t->scratch, j->n, ith, j->n); break;
            case GATHER: lesskv_gather(t->cache, &ub, t->scratch, j->n, ith, j->n); break;
            case COMMIT: lesskv_commit(t->cache, &ub, t->scratch, j->n, ith, j->n); break;
        }
    }
    pthread_barrier_wait(j->barrier); // as ggml puts one between two nodes
}

static void * work(void * arg) {
    const struct job * j = arg;
    all_tasks(j, ATTEND, NULL);
    if (j->sharer) {
        all_tasks(j, GATHER, NULL);
        all_tasks(j, ATTEND, j->sharer);
        all_tasks(j, GATHER, j->sharer);
    }
    all_tasks(j, COMMIT, NULL);
    return NULL;
}

static void run(const struct task * task, int n_task, const struct lesskv_layer * sharer, int n) {
    pthread_barrier_t barrier;
    pthread_t thread[THREADS];
    struct job job[THREADS];
    pthread_barrier_init(&barrier, NULL, (unsigned) n);
    for (int i = 0; i < n; i++) {
        job[i] = (struct job) { task, n_task, sharer, n, i, &barrier };
        pthread_create(&thread[i], NULL, work, &job[i]);
    }
    for (int i = 0; i < n; i++) {
        pthread_join(thread[i], NULL);
    }
    pthread_barrier_destroy(&barrier);
}

static int compare(int32_t n_head_kv, const char * policy, int shared, int unequal, int32_t rotation) {
    const struct lesskv_kernels kernels = { RANK, HIDDEN,
        { { LESSKV_TYPE_F32, numbers(N_HEAD*HIDDEN*D) }, { LESSKV_TYPE_F32, numbers(N_HEAD*RANK*HIDDEN) } },
        { { LESSKV_TYPE_F32, numbers(N_HEAD*HIDDEN*D) }, { LESSKV_TYPE_F32, numbers(N_HEAD*RANK*HIDDEN) }, { LESSKV_TYPE_F32, numbers(N_HEAD*RANK*RANK) } }, numbers(N_HEAD) };
    static const struct lesskv_budget budgets[] = { { 3, 1 }, { 2*BUDGET, BUDGET/2 } };
    const struct lesskv_layer layer = { .n_head = N_HEAD, .n_head_kv = n_head_kv, .dk = D, .dv = D, .type_k = rotation > 0 ? LESSKV_TYPE_Q8_0 : LESSKV_TYPE_F32, .type_v = LESSKV_TYPE_F32,
        .rotation = rotation, .policy = lesskv_policy_find(policy), .budget = { BUDGET, BUDGET/2 }, .budgets = unequal ? budgets : NULL, .pinned = 1, .kernels = &kernels };
    struct lesskv_layer sharer = layer;
    sharer.n_head = n_head_kv;
    struct task task[1 + CACHES]; // by one thread, and by all
    for (int t = 0; t < 1 + CACHES; t++) {
        if (lesskv_cache_new(&task[t].cache, &layer) != LESSKV_OK) {
            return 1;
        }
        task[t].scratch = malloc(lesskv_scratch_size(&layer, MOST, THREADS));
    }
    float * worth[1 + CACHES], * out[1 + CACHES];
    for (int t = 0; t < 1 + CACHES; t++) {
        worth[t] = numbers(lesskv_worth_size(&layer, MOST) + 1);
        out[t]   = numbers(MOST*N_HEAD*D);
    }
    int32_t pos = 0;
    int bad = 0;
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        const int32_t n = batches[i];
        float * q = numbers((size_t) (n*N_HEAD*D)), * k = numbers((size_t) (n*n_head_kv*D)), * v = numbers((size_t) (n*n_head_kv*D));
        const struct lesskv_ubatch ub = { .n_tokens = n, .pos = pos, .q = q, .q_head = D*4, .q_token = N_HEAD*D*4,
            .k = k, .k_head = D*4, .k_token = (size_t) n_head_kv*D*4, .v = v, .v_head = D*4, .v_token = (size_t) n_head_kv*D*4, .scale = 0.2f };
        for (int t = 0; t < 1 + CACHES; t++) {
            task[t].ub = ub;
            task[t].ub.worth = shared ? worth[t] : NULL;
            task[t].ub.out   = out[t];
        }
        run(task, 1, shared ? &sharer : NULL, 1);
        run(task + 1, CACHES, shared ? &sharer : NULL, THREADS);
        for (int t = 1; t < 1 + CACHES; t++) {
            bad |= memcmp(out[0], out[t], (size_t) (n*N_HEAD*D) * sizeof(float)) != 0;
        }
        pos += n;
        free(q);
        free(k);
        free(v);
    }
    const size_t size = lesskv_cache_save_size(task[0].cache);
    void * a = malloc(size), * b = malloc(size);
    lesskv_cache_save(task[0].cache, a);
    for (int t = 1; t < 1 + CACHES; t++) {
        if (lesskv_cache_save_size(task[t].cache) == size) {
            lesskv_cache_save(task[t].cache, b);
            bad |= memcmp(a, b, size) != 0;
        } else {
            bad = 1;
        }
    }
    printf("%s, %d KV heads%s%s%s: %s\n", policy, n_head_kv, shared ? ", shared" : "", unequal ? ", unequal" : "", rotation > 0 ? ", rotated" : "", bad ? "bits differ" : "ok");
    return bad; // the process ends: the rest is its
}

int main(void) {
    int bad = 0, i;
    const struct lesskv_policy * policy;
    for (i = 0; (policy = lesskv_policy_at(i)); i++) {
        const char * name = lesskv_policy_name(policy);
        bad |= compare(1, name, 0, 0, 0) | compare(2, name, 0, 0, 0) | compare(2, name, 0, 1, 0) | compare(1, name, 1, 0, 0) | compare(2, name, 1, 1, 0)
            | compare(2, name, 0, 0, D) | compare(2, name, 1, 1, D);
    }
    return bad | (i == 0); // no policy: nothing was compared
}
