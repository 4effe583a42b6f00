// level.c: which of the inner loops are used. See level.h.

#include "level.h"
#include "level_cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

extern const struct lesskv_level lesskv_level_base, lesskv_level_v3, lesskv_level_v4;

const struct lesskv_level * lesskv_level_at(int i) {
    const struct lesskv_level * have[3] = { &lesskv_level_base };
    int n = 1;
#ifdef LESSKV_LEVEL_V3
    if (lesskv_cpu_has_v3()) {
        have[n++] = &lesskv_level_v3;
    }
#endif
#ifdef LESSKV_LEVEL_V4
    if (lesskv_cpu_has_v4()) {
        have[n++] = &lesskv_level_v4;
    }
#endif
    return i >= 0 && i < n ? have[i] : NULL;
}

// The best, or the one that LESSKV_LEVEL names: what a lesser processor would run can be measured and tested on this one.
static const struct lesskv_level * choose(void) {
    const char * name = getenv("LESSKV_LEVEL");
    const struct lesskv_level * level = NULL;
    for (int i = 0; lesskv_level_at(i); i++) {
        level = lesskv_level_at(i);
        if (name && strcmp(name, level->name) == 0) {
            break;
        }
    }
    return level;
}

static const struct lesskv_level * _Atomic used;

const struct lesskv_level * lesskv_level(void) {
    const struct lesskv_level * level = atomic_load_explicit(&used, memory_order_relaxed);
    if (!level) { // threads that come here together find the same
        level = choose();
        lesskv_level_use(level);
    }
    return level;
}

void lesskv_level_use(const struct lesskv_level * level) {
    atomic_store_explicit(&used, level, memory_order_relaxed);
}

const char * lesskv_level_name(void) {
    return lesskv_level()->name;
}
