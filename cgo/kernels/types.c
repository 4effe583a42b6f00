// types.c: rounding to the element types and back.

#include "level.h"
#include "types.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

size_t lesskv_row_size(enum lesskv_type type, int64_t n) {
    if (n <= 0) {
        return 0;
    }
    switch (type) {
        case LESSKV_TYPE_F32:  return (size_t) n * sizeof(float);
        case LESSKV_TYPE_F16:  return (size_t) n * sizeof(uint16_t);
        case LESSKV_TYPE_Q4_0: return n % 32 == 0 ? (size_t) n / 32 * sizeof(struct block_q4_0) : 0;
        case LESSKV_TYPE_Q8_0: return n % 32 == 0 ? (size_t) n / 32 * sizeof(struct block_q8_0) : 0;
    }
    return 0;
}

// Rounds to nearest even; NaN becomes a quiet one.
static uint16_t f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    const uint16_t sign = (uint16_t) (u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u >= 0x47800000) { // 2^16 and above
        return sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00);
    }
    if (u < 0x38800000) { // below 2^-14: subnormal; an addition puts the last place at that of 1/2, 2^-24, and rounds
        memcpy(&f, &u, sizeof f);
        f += 0.5f;
        memcpy(&u, &f, sizeof u);
        return sign | (uint16_t) (u - 0x3f000000);
    }
    u += (u >> 13 & 1) + 0xfff;                    // half a place, and the tie to even
    return sign | (uint16_t) ((u >> 13) - (112 << 10)); // bias 127 to 15; may carry into infinity, as it should
}

// 8 more than the nearest of -8 .. 7; NaN and infinity stay in range too.
static unsigned q4_0_of(float q) {
    const float up = q + 8.5f; // then truncated, as ggml does
    return up > 0 ? up < 15 ? (unsigned) up : 15 : 0;
}

// The element of largest magnitude, the first of several, becomes -8.
static void q4_0_from_f32(struct block_q4_0 * b, const float * x) {
    float top = 0;
    for (int i = 0; i < 32; i++) {
        top = fabsf(x[i]) > fabsf(top) ? x[i] : top;
    }
    const float d = top / -8;
    const float inv = d != 0 ? 1 / d : 0;
    b->d = f32_to_f16(d);
    for (int i = 0; i < 16; i++) {
        b->q[i] = (uint8_t) (q4_0_of(x[i] * inv) | q4_0_of(x[i + 16] * inv) << 4);
    }
}

static void q8_0_from_f32(struct block_q8_0 * b, const float * x) {
    float top = 0;
    for (int i = 0; i < 32; i++) {
        const float a = fabsf(x[i]);
        top = a > top ? a : top;
    }
    const float d = top / 127;
    const float inv = d > 0 ? 1 / d : 0;
    b->d = f32_to_f16(d);
    for (int i = 0; i < 32; i++) {
        const float q = rintf(x[i] * inv);
        b->q[i] = (int8_t) (q > -127 ? q < 127 ? q : 127 : -127); // NaN and infinity stay in range too
    }
}

static bool all_finite(const float * x) {
    uint32_t bits[32], odd = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 32; i++) {
        odd |= (bits[i] & 0x7f800000) == 0x7f800000;
    }
    return !odd;
}

void lesskv_mark_not_finite(enum lesskv_type type, void * dst, const float * src, int64_t n) {
    if (type != LESSKV_TYPE_Q4_0 && type != LESSKV_TYPE_Q8_0) {
        return;
    }
    const uint16_t nan = 0x7e00;
    const size_t block = lesskv_row_size(type, 32);
    for (int64_t i = 0; i < n / 32; i++) {
        if (!all_finite(src + i * 32)) {
            memcpy((char *) dst + (size_t) i * block, &nan, sizeof nan); // the scale is first in both
        }
    }
}

void lesskv_from_f32(enum lesskv_type type, void * dst, const float * src, int64_t n) {
    switch (type) {
        case LESSKV_TYPE_F32:
            memcpy(dst, src, lesskv_row_size(type, n));
            break;
        case LESSKV_TYPE_F16:
            for (int64_t i = 0; i < n; i++) {
                const uint16_t h = f32_to_f16(src[i]);
                memcpy((char *) dst + i * 2, &h, sizeof h);
            }
            break;
        case LESSKV_TYPE_Q4_0:
            for (int64_t i = 0; i < n / 32; i++) {
                struct block_q4_0 b;
                q4_0_from_f32(&b, src + i * 32);
                memcpy((char *) dst + i * sizeof b, &b, sizeof b);
            }
            break;
        case LESSKV_TYPE_Q8_0:
            for (int64_t i = 0; i < n / 32; i++) {
                struct block_q8_0 b;
                q8_0_from_f32(&b, src + i * 32);
                memcpy((char *) dst + i * sizeof b, &b, sizeof b);
            }
            break;
    }
    lesskv_mark_not_finite(type, dst, src, n);
}

void lesskv_to_f32(enum lesskv_type type, float * dst, const void * src, int64_t n) {
    lesskv_level()->to_f32(type, dst, src, n);
}
