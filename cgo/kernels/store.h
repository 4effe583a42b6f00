// store.h: how the pairs of one KV head lie in memory. A slot is a key, a value, a position and a score; slots are in no order.
// Attention reads keys and values as rows (level_mat.h), so that another type is for types.c, level_types.h and level_mat.h alone to know.
// Keys and values of quantised types come rotated (lesskv-graph.cpp): a store holds what it is given.

#ifndef LESSKV_STORE_H
#define LESSKV_STORE_H

#include "lesskv.h"

#include <stdbool.h>

// Rows of one type, stride bytes apart.
struct rows {
    enum lesskv_type type;
    const void *     data;
    size_t           stride;
    int32_t          n;
};

// n of them from the i-th on.
static inline struct rows rows_from(struct rows a, int32_t i, int32_t n) {
    return (struct rows) { a.type, (const char *) a.data + (size_t) i * a.stride, a.stride, n };
}

static inline const void * row_at(struct rows a, int32_t i) {
    return (const char *) a.data + (size_t) i * a.stride;
}

struct store {
    enum lesskv_type type_k, type_v;
    size_t    row_k, row_v; // bytes
    int32_t   n;            // slots in use, the first ones
    char *    k;            // [B] rows of type_k
    char *    v;            // [B] rows of type_v
    int32_t * pos;          // [B]
    float *   score;        // [B]
};

static inline struct rows store_keys(const struct store * s) {
    return (struct rows) { s->type_k, s->k, s->row_k, s->n };
}

static inline struct rows store_values(const struct store * s) {
    return (struct rows) { s->type_v, s->v, s->row_v, s->n };
}

size_t lesskv_store_slot(const struct lesskv_layer * layer); // bytes of a slot
// Makes it one of so many slots, empty, in the memory at `at`; returns its size, SIZE_MAX if that is too much. They are never touched
// before they are used: a budget larger than what a sequence needs costs address space alone.
size_t lesskv_store_lay(struct store * s, const struct lesskv_layer * layer, int32_t slots, uintptr_t at);
void   lesskv_store_copy(struct store * dst, const struct store * src); // of equal layers and budgets
void   lesskv_store_write(struct store * s, int32_t slot, const void * k, const void * v, int32_t pos, float score); // slot <= n
void   lesskv_store_drop(struct store * s, int32_t slot); // the last one takes its place

// Saved, n slots are their keys, values, positions and scores; save and load return where the next thing is.
char *       lesskv_store_save(const struct store * s, char * to);
const char * lesskv_store_load(struct store * s, int32_t n, const char * from);
bool         lesskv_store_saved_ok(const struct store * s, int32_t n, int32_t last, const char * from); // no position is above last

#endif
