// policy.c: the policies there are.

#include "policy.h"

#include <string.h>

static struct lesskv_policy * first; // by name: in which order they register is the linker's to say

void lesskv_policy_register(struct lesskv_policy * policy) {
    struct lesskv_policy ** at = &first;
    while (*at && strcmp((*at)->name, policy->name) < 0) {
        at = &(*at)->next;
    }
    policy->next = *at;
    *at = policy;
}

const struct lesskv_policy * lesskv_policy_find(const char * name) {
    const struct lesskv_policy * p = first;
    while (p && (!name || strcmp(name, p->name) != 0)) {
        p = p->next;
    }
    return p;
}

const struct lesskv_policy * lesskv_policy_at(int i) {
    const struct lesskv_policy * p = i < 0 ? NULL : first;
    for (; p && i > 0; i--) {
        p = p->next;
    }
    return p;
}

const char * lesskv_policy_name(const struct lesskv_policy * policy) {
    return policy->name;
}

const char * lesskv_policy_help(const struct lesskv_policy * policy) {
    return policy->help;
}

int32_t lesskv_policy_heavy(const struct lesskv_policy * policy, int32_t budget) {
    return budget > 0 ? policy->heavy(budget) : 0;
}
