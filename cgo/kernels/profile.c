// profile.c: where the time goes.

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 199309L // clock_gettime
#endif

#include "internal.h"

#include <time.h>

const char * lesskv_phase_name(int phase) {
    static const char * const names[LESSKV_PHASE_COUNT] = {
        [LESSKV_PHASE_SLOTS]   = "slots",
        [LESSKV_PHASE_UBATCH]  = "micro-batch",
        [LESSKV_PHASE_SOFTMAX] = "softmax",
        [LESSKV_PHASE_PHI]     = "phi",
        [LESSKV_PHASE_SCORE]   = "score",
        [LESSKV_PHASE_POLICY]  = "policy",
        [LESSKV_PHASE_FOLD]    = "fold",
        [LESSKV_PHASE_MOVE]    = "move",
    };
    return phase >= 0 && phase < LESSKV_PHASE_COUNT ? names[phase] : NULL;
}

uint64_t lesskv_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}
