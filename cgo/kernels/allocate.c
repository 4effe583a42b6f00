// allocate.c: a budget, spread over KV heads by weight ("Budgets by layer and head" in algorithm.md). In exact integers, so that every
// machine spreads it alike.

#include "lesskv.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#define WEIGHT_ONE 65536.0 // weights are multiples of its inverse

__extension__ typedef unsigned __int128 wide; // slots times weights

// What is shared among the heads that are not capped.
struct rest {
    uint64_t slots;
    uint64_t weight; // the sum of theirs
    bool     even;   // all of those are 0: each counts 1
    int32_t  n;
};

static uint64_t weight_in(const struct rest * r, uint64_t weight) {
    return r->even ? 1 : weight;
}

static struct rest rest_of(const uint64_t * weight, const bool * capped, int32_t n, uint64_t total, uint64_t least, uint64_t most) {
    struct rest r = { .slots = total };
    for (int32_t i = 0; i < n; i++) {
        r.slots  -= capped[i] ? most : least;
        r.weight += capped[i] ? 0 : weight[i];
        r.n      += !capped[i];
    }
    if (r.weight == 0) {
        r.even   = true;
        r.weight = (uint64_t) r.n;
    }
    return r;
}

// Caps the heads whose exact share is above most. False if there is none.
static bool cap(const struct rest * r, const uint64_t * weight, bool * capped, int32_t n, uint64_t least, uint64_t most) {
    bool any = false;
    for (int32_t i = 0; i < n; i++) {
        if (!capped[i] && (wide) r->slots * weight_in(r, weight[i]) > (wide) (most - least) * r->weight) {
            any = capped[i] = true;
        }
    }
    return any;
}

int32_t lesskv_head_least(int32_t budget, int32_t pinned) {
    const int32_t old = pinned > 4 ? pinned : 4; // and a few recent ones
    return budget - 4 < old ? budget : old + 4;
}

int32_t lesskv_head_heavy(const struct lesskv_policy * policy, int32_t slots, int32_t budget, int32_t heavy, int32_t pinned) {
    const int64_t share = heavy < 0 ? lesskv_policy_heavy(policy, slots) : (int64_t) slots * heavy / budget;
    const int64_t h     = share > pinned ? share : pinned;
    return h < slots ? (int32_t) h : slots;
}

static bool args_ok(const float * weight, int32_t n, int32_t budget, int32_t least, int32_t most) {
    if (n < 1 || least < 1 || budget < least || most < budget) {
        return false;
    }
    for (int32_t i = 0; i < n; i++) {
        if (!(weight[i] >= 0 && weight[i] <= LESSKV_WEIGHT_MAX)) { // nor NaN
            return false;
        }
    }
    return true;
}

enum lesskv_status lesskv_allocate(const float * weight, int32_t n, int32_t budget, int32_t least, int32_t most, int32_t * slots) {
    if (!args_ok(weight, n, budget, least, most)) {
        return LESSKV_ERR_ARG;
    }
    uint64_t * w      = malloc((size_t) n * sizeof *w);
    uint64_t * left   = malloc((size_t) n * sizeof *left); // what rounding down took, in parts of the rest's weight
    bool *     capped = calloc((size_t) n, sizeof *capped);
    const bool ok = w && left && capped;
    if (ok) {
        for (int32_t i = 0; i < n; i++) {
            w[i] = (uint64_t) llround((double) weight[i] * WEIGHT_ONE);
        }
        const uint64_t total = (uint64_t) n * (uint64_t) budget, lo = (uint64_t) least, hi = (uint64_t) most;
        struct rest r;
        do {
            r = rest_of(w, capped, n, total, lo, hi);
        } while (cap(&r, w, capped, n, lo, hi));

        uint64_t over = r.n > 0 ? r.slots : 0;
        for (int32_t i = 0; i < n; i++) {
            const wide share = capped[i] ? 0 : (wide) r.slots * weight_in(&r, w[i]);
            slots[i] = capped[i] ? most : (int32_t) (lo + (uint64_t) (share / r.weight));
            left[i]  = capped[i] ? 0    : (uint64_t) (share % r.weight);
            over    -= capped[i] ? 0    : (uint64_t) slots[i] - lo;
        }
        for (; over > 0; over--) { // fewer than there are heads with something left
            int32_t top = 0;
            for (int32_t i = 1; i < n; i++) {
                top = left[i] > left[top] ? i : top;
            }
            slots[top]++;
            left[top] = 0;
        }
    }
    free(w);
    free(left);
    free(capped);
    return ok ? LESSKV_OK : LESSKV_ERR_NOMEM;
}
