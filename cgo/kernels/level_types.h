// level_types.h: the element types back to floats.

#include "types.h"

#include <stddef.h>

static void to_f32(enum lesskv_type type, float * dst, const void * src, int64_t n) {
    switch (type) {
        case LESSKV_TYPE_F32:
            memcpy(dst, src, lesskv_row_size(type, n));
            break;
        case LESSKV_TYPE_F16: {
            int64_t i = 0;
            for (; i + VW <= n; i += VW) {
                vf_store(dst + i, vf_load_f16((const char *) src + i * 2));
            }
            for (; i < n; i++) {
                uint16_t h;
                memcpy(&h, (const char *) src + i * 2, sizeof h);
                dst[i] = f16_to_f32(h);
            }
            break;
        }
        case LESSKV_TYPE_Q4_0:
            for (int64_t i = 0; i < n / 32; i++) {
                const char * b = (const char *) src + (size_t) i * sizeof(struct block_q4_0);
                uint16_t h;
                memcpy(&h, b, sizeof h);
                const vf d = vf_set(f16_to_f32(h));
                for (size_t j = 0; j < 16; j += VW) {
                    const char * q = b + offsetof(struct block_q4_0, q) + j;
                    vf_store(dst + i * 32 + (int64_t) j,      d * vf_load_u4(q, 0));
                    vf_store(dst + i * 32 + (int64_t) j + 16, d * vf_load_u4(q, 4));
                }
            }
            break;
        case LESSKV_TYPE_Q8_0:
            for (int64_t i = 0; i < n / 32; i++) {
                const char * b = (const char *) src + (size_t) i * sizeof(struct block_q8_0);
                uint16_t h;
                memcpy(&h, b, sizeof h);
                const vf d = vf_set(f16_to_f32(h));
                for (size_t j = 0; j < 32; j += VW) {
                    vf_store(dst + i * 32 + (int64_t) j, d * vf_load_i8(b + offsetof(struct block_q8_0, q) + j));
                }
            }
            break;
    }
}
