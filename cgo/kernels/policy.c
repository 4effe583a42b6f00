// policy.c: the policies there are.

#include "policy.h"

#include <string.h>

static const struct lesskv_policy * const policies[] = {
    &lesskv_policy_h2o,
    &lesskv_policy_lambda,
    &lesskv_policy_peak,
};

const struct lesskv_policy * lesskv_policy_find(const char * name) {
    for (size_t i = 0; name && i < sizeof policies / sizeof policies[0]; i++) {
        if (strcmp(name, policies[i]->name) == 0) {
            return policies[i];
        }
    }
    return NULL;
}

const char * lesskv_policy_name(const struct lesskv_policy * policy) {
    return policy->name;
}

const char * lesskv_policy_at(int i) {
    return i >= 0 && (size_t) i < sizeof policies / sizeof policies[0] ? policies[i]->name : NULL;
}

int32_t lesskv_policy_heavy(const struct lesskv_policy * policy, int32_t budget) {
    return budget > 0 ? policy->heavy(budget) : 0;
}
