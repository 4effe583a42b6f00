// store.c: slots of one KV head: laid out, written, copied and saved. See store.h.

#include "internal.h"

#include <string.h>

size_t lesskv_store_slot(const struct lesskv_layer * layer) {
    return lesskv_row_size(layer->type_k, layer->dk) + lesskv_row_size(layer->type_v, layer->dv) + sizeof(int32_t) + sizeof(float);
}

size_t lesskv_store_lay(struct store * s, const struct lesskv_layer * layer, int32_t slots, uintptr_t at) {
    *s = (struct store) {
        .type_k = layer->type_k, .row_k = lesskv_row_size(layer->type_k, layer->dk),
        .type_v = layer->type_v, .row_v = lesskv_row_size(layer->type_v, layer->dv),
    };
    const size_t n = (size_t) slots;
    size_t total = 0;
    s->k     = lesskv_area(at, &total, times(n, s->row_k));
    s->v     = lesskv_area(at, &total, times(n, s->row_v));
    s->pos   = lesskv_area(at, &total, times(n, sizeof s->pos[0]));
    s->score = lesskv_area(at, &total, times(n, sizeof s->score[0]));
    return total;
}

void lesskv_store_copy(struct store * dst, const struct store * src) {
    const size_t n = (size_t) src->n;
    dst->n = src->n;
    memcpy(dst->k,     src->k,     n * src->row_k);
    memcpy(dst->v,     src->v,     n * src->row_v);
    memcpy(dst->pos,   src->pos,   n * sizeof src->pos[0]);
    memcpy(dst->score, src->score, n * sizeof src->score[0]);
}

void lesskv_store_write(struct store * s, int32_t slot, const void * k, const void * v, int32_t pos, float score) {
    memcpy(s->k + (size_t) slot * s->row_k, k, s->row_k);
    memcpy(s->v + (size_t) slot * s->row_v, v, s->row_v);
    s->pos[slot]   = pos;
    s->score[slot] = score;
    s->n += slot == s->n;
}

void lesskv_store_drop(struct store * s, int32_t slot) {
    const int32_t last = --s->n;
    if (slot < last) {
        lesskv_store_write(s, slot, row_at(store_keys(s), last), row_at(store_values(s), last), s->pos[last], s->score[last]);
    }
}

char * lesskv_store_save(const struct store * s, char * to) {
    const size_t n = (size_t) s->n;
    to = put(to, s->k,     n * s->row_k);
    to = put(to, s->v,     n * s->row_v);
    to = put(to, s->pos,   n * sizeof s->pos[0]);
    return put(to, s->score, n * sizeof s->score[0]);
}

const char * lesskv_store_load(struct store * s, int32_t n, const char * from) {
    s->n = n;
    from = get(s->k,     from, (size_t) n * s->row_k);
    from = get(s->v,     from, (size_t) n * s->row_v);
    from = get(s->pos,   from, (size_t) n * sizeof s->pos[0]);
    return get(s->score, from, (size_t) n * sizeof s->score[0]);
}

bool lesskv_store_saved_ok(const struct store * s, int32_t n, int32_t last, const char * from) {
    const char * pos = from + (size_t) n * (s->row_k + s->row_v);
    for (int32_t i = 0; i < n; i++) {
        int32_t p;
        memcpy(&p, pos + (size_t) i * sizeof p, sizeof p);
        if (p < 0 || p > last) {
            return false;
        }
    }
    return true;
}
