// policy.h: what a policy is. A new one is one file, policy_NAME.c, that registers it: the lists of names and helps, in C and in
// Go, are made of what is registered. The contract (docs/algorithm.md) says what it does, and integration/reference does it a
// second time, for the tests. What it computes is known in two more places: in weights/memory/heavy.go, for builds without C, and in
// cgo/llama/lesskv-device-graph.cpp, in ggml's operations. One that is not there works all the same, but not on devices.

#ifndef LESSKV_POLICY_H
#define LESSKV_POLICY_H

#include "lesskv.h"

// The softmax weights over A that a micro-batch's queries and the g heads give a pair, made one number: its worth.
enum lesskv_worth {
    LESSKV_WORTH_NONE, // nothing is asked; there are no scores
    LESSKV_WORTH_SUM,  // their sum
    LESSKV_WORTH_MAX,  // the largest
};

// What a policy sees of the KV head whose pairs it judges.
struct lesskv_policy_head {
    const struct lesskv_layer * layer; // its geometry: Hq, Hkv, D, Dv, what is pinned
    int32_t head_kv;
    struct lesskv_budget budget;       // of this head: B and h
    int32_t n_tokens;                  // T, of the micro-batch
};

struct lesskv_policy {
    const char *      name;
    const char *      help; // what stays, in a few words; printed behind the name, in parentheses
    enum lesskv_worth worth;
    int32_t           queries; // the micro-batch's last so many count for the worth: a window, which does not reach past the micro-batch; 0: all of them

    // h where none is given; 0 <= h <= budget
    int32_t (*heavy)(int32_t budget);

    // Step 2: score[n] after a micro-batch in which the pairs were worth[n]. A new pair comes with 0.
    // NULL with LESSKV_WORTH_NONE.
    void (*score)(const struct lesskv_policy_head * head, float * score, const float * worth, int32_t n);

    // Step 3, among the pairs that are neither pinned nor of the r newest: the h with the largest keys stay. key[n] of n
    // pairs; distinct positions must get distinct keys; a score may be NaN.
    void (*keys)(const struct lesskv_policy_head * head, uint64_t * key, const float * score, const int32_t * pos, int32_t n);

    struct lesskv_policy * next; // of the list of all, by name
};

// Defines a policy and puts it into the list, before main: LESSKV_POLICY(tova) = { .name = "tova", ... };
// The runtime compiles all policies as one unit, so that none is left out of a link: static names of a file begin with its id.
#define LESSKV_POLICY(id) \
    static struct lesskv_policy policy_##id; \
    __attribute__((constructor)) static void register_##id(void) { lesskv_policy_register(&policy_##id); } \
    static struct lesskv_policy policy_##id

void lesskv_policy_register(struct lesskv_policy * policy); // policy.c

// The first of n_tokens queries that counts for the worth.
static inline int32_t lesskv_policy_from(const struct lesskv_policy * policy, int32_t n_tokens) {
    return policy->queries > 0 && policy->queries < n_tokens ? n_tokens - policy->queries : 0;
}

// By score; of equal scores the newer one stays. Scores are never negative; NaN, which no comparison puts in its place,
// counts as zero.
static inline void lesskv_keys_score(const struct lesskv_policy_head * head, uint64_t * key, const float * score, const int32_t * pos, int32_t n) {
    (void) head;
    for (int32_t i = 0; i < n; i++) {
        const union { float f; uint32_t u; } s = { score[i] > 0 ? score[i] : 0 };
        key[i] = (uint64_t) s.u << 32 | ((uint32_t) pos[i] ^ 0x80000000u);
    }
}

#endif
