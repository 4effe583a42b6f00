// vec.h: a vector of VW floats, as wide as the target's registers, and the few operations that the kernels need. The
// compiler's vector extension gives + - * / and comparisons on every target; what it can't say (a fused multiply-add in
// ISO C, half precision) is an intrinsic, with a portable fallback beside it.

#ifndef LESSKV_VEC_H
#define LESSKV_VEC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// What the code may use: what the compiler's flags allow, or a level of x86-64 that the file which includes this compiles its functions
// for (level_v3.c says how; clang's macros say nothing of that).
#ifndef VEC_LEVEL
#define VEC_LEVEL 0
#endif
#if defined(__AVX512F__) || VEC_LEVEL >= 4
#define VEC_AVX512
#endif
#if defined(__AVX__) || VEC_LEVEL >= 3
#define VEC_AVX
#endif
#if defined(__AVX2__) || VEC_LEVEL >= 3
#define VEC_AVX2
#endif
#if defined(__FMA__) || VEC_LEVEL >= 3
#define VEC_FMA
#endif
#if defined(__F16C__) || VEC_LEVEL >= 3
#define VEC_F16C
#endif
#if defined(__ARM_NEON) && defined(__aarch64__)
#define VEC_NEON
#endif

#if defined(VEC_AVX)
#include <immintrin.h>
#elif defined(VEC_NEON)
#include <arm_neon.h>
#endif

#if defined(VEC_AVX512)
#define VW 16
#elif defined(VEC_AVX)
#define VW 8
#else
#define VW 4
#endif

typedef float    vf  __attribute__((vector_size(VW * 4)));
typedef int32_t  vi  __attribute__((vector_size(VW * 4)));
typedef uint16_t vh  __attribute__((vector_size(VW * 2)));
typedef int8_t   vb  __attribute__((vector_size(VW)));
typedef uint8_t  vub __attribute__((vector_size(VW)));

// Memory may lie anywhere: strides are the caller's.
static inline vf vf_load(const void * p) {
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}

static inline void vf_store(void * p, vf a) {
    memcpy(p, &a, sizeof a);
}

// vf_load into a register for good: gcc would otherwise read memory again for every use as an operand, and loads, not
// arithmetic, are what the inner loops run out of.
static inline vf vf_load_once(const void * p) {
    vf a = vf_load(p);
#if defined(__x86_64__) && defined(__GNUC__)
    __asm__("" : "+v"(a));
#endif
    return a;
}

static inline vf vf_set(float a) {
    return a - (vf) {0};
}

// a b + c
static inline vf vf_fma(vf a, vf b, vf c) {
#if defined(VEC_AVX512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(VEC_FMA)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(VEC_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

// mask ? a : b, mask from a comparison
static inline vf vf_select(vi mask, vf a, vf b) {
    return (vf) ((mask & (vi) a) | (~mask & (vi) b));
}

// The larger one; b where one of them is NaN.
static inline vf vf_max(vf a, vf b) {
#if defined(VEC_AVX512)
    return _mm512_max_ps(a, b);
#elif defined(VEC_AVX)
    return _mm256_max_ps(a, b);
#else
    return vf_select(a > b, a, b);
#endif
}

// Zero in the place of NaN and of what is below zero.
static inline vf vf_number(vf a) {
    return vf_max(a, vf_set(0));
}

static inline vf vf_abs(vf a) {
    return (vf) ((vi) a & 0x7fffffff);
}

static inline float vf_sum(vf a) {
    float f[VW];
    vf_store(f, a);
    for (int n = VW / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) {
            f[i] += f[i + n];
        }
    }
    return f[0];
}

// Shuffles of two vectors, by the lanes of the result. SPLIT: of each 16 bytes, a lane of a and one of b in turn; PAIR: two of a, two
// of b; SWAP: the lane of a whose number differs in the bits of k; EVEN and ODD: every other 16 bytes of a, then of b.
#define SPLIT(i, k) (i) + (k), VW + (i) + (k), (i) + (k) + 1, VW + (i) + (k) + 1
#define PAIR(i, k)  (i) + (k), (i) + (k) + 1, VW + (i) + (k), VW + (i) + (k) + 1
#define SWAP(i, k)  (i) ^ (k), ((i) + 1) ^ (k), ((i) + 2) ^ (k), ((i) + 3) ^ (k)
#define FOUR(i)     (i), (i) + 1, (i) + 2, (i) + 3
#if VW == 16
#define EACH(f, k)  f(0, k), f(4, k), f(8, k), f(12, k)
#define EVERY(k)    FOUR(k), FOUR(8 + (k)), FOUR(16 + (k)), FOUR(24 + (k))
#elif VW == 8
#define EACH(f, k)  f(0, k), f(4, k)
#define EVERY(k)    FOUR(k), FOUR(8 + (k))
#else
#define EACH(f, k)  f(0, k)
#endif
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi) { __VA_ARGS__ })
#endif

static inline __attribute__((always_inline)) vf vf_join(const bool sum, vf a, vf b) {
    return sum ? a + b : vf_max(a, b);
}

// out[i] is the sum, or the largest, of s[i]'s lanes, for n vectors, a multiple of 4. s and out have room for a multiple of VW; s is
// overwritten.
static inline __attribute__((always_inline)) void vf_across(const bool sum, const int n, vf * s, float * out) {
    for (int i = 0; i < n / 4; i++) { // four sums in parts, one in each 16 bytes
        const vf * t = s + 4 * i;
        const vf a = vf_join(sum, SHUFFLE(t[0], t[1], EACH(SPLIT, 0)), SHUFFLE(t[0], t[1], EACH(SPLIT, 2)));
        const vf b = vf_join(sum, SHUFFLE(t[2], t[3], EACH(SPLIT, 0)), SHUFFLE(t[2], t[3], EACH(SPLIT, 2)));
        s[i] = vf_join(sum, SHUFFLE(a, b, EACH(PAIR, 0)), SHUFFLE(a, b, EACH(PAIR, 2)));
    }
#if VW > 4
    for (int m = n / 4, w = 4; w < VW; w *= 2, m = (m + 1) / 2) { // half the parts of twice the sums
        for (int i = 0; i < m; i += 2) {
            const vf a = s[i], b = s[i + 1 < m ? i + 1 : i];
            s[i / 2] = vf_join(sum, SHUFFLE(a, b, EVERY(0)), SHUFFLE(a, b, EVERY(4)));
        }
    }
#endif
    for (int i = 0; i < n; i += VW) {
        vf_store(out + i, s[i / VW]);
    }
}

// a by the Hadamard matrix of VW dimensions, not normalised.
static inline vf vf_hadamard(vf a) {
    const vi lane = { EACH(SWAP, 0) };
    vf b = SHUFFLE(a, a, EACH(SWAP, 1));
    a = vf_select((lane & 1) != 0, b - a, b + a);
    b = SHUFFLE(a, a, EACH(SWAP, 2));
    a = vf_select((lane & 2) != 0, b - a, b + a);
#if VW > 4
    b = SHUFFLE(a, a, EACH(SWAP, 4));
    a = vf_select((lane & 4) != 0, b - a, b + a);
#endif
#if VW > 8
    b = SHUFFLE(a, a, EACH(SWAP, 8));
    a = vf_select((lane & 8) != 0, b - a, b + a);
#endif
    return a;
}

#undef SPLIT
#undef PAIR
#undef SWAP
#undef FOUR
#undef EACH
#undef EVERY
#undef SHUFFLE

static inline float vf_top(vf a) {
    float f[VW];
    vf_store(f, a);
    for (int n = VW / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) {
            f[i] = f[i] > f[i + n] ? f[i] : f[i + n];
        }
    }
    return f[0];
}

// One half-precision number. Exact: subnormals become normal by the multiplication.
static inline float f16_to_f32(uint16_t h) {
#if defined(VEC_F16C)
    return _cvtsh_ss(h);
#else
    const uint32_t sign = (uint32_t) (h & 0x8000) << 16;
    uint32_t bits = (uint32_t) (h & 0x7fff) << 13;
    float f;
    memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f; // from bias 15 to bias 127
    memcpy(&bits, &f, sizeof bits);
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000; // infinite or NaN
    }
    bits |= sign;
    memcpy(&f, &bits, sizeof f);
    return f;
#endif
}

// One half-precision number in every lane
static inline vf vf_set_f16(const void * p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
#if defined(VEC_AVX512)
    return _mm512_cvtph_ps(_mm256_set1_epi16((short) h));
#elif defined(VEC_F16C)
    return _mm256_cvtph_ps(_mm_set1_epi16((short) h));
#else
    return vf_set(f16_to_f32(h));
#endif
}

// VW half-precision numbers
static inline vf vf_load_f16(const void * p) {
#if defined(VEC_AVX512)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *) p));
#elif defined(VEC_F16C)
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *) p));
#elif defined(VEC_NEON)
    vh h;
    memcpy(&h, p, sizeof h);
    return vcvt_f32_f16((float16x4_t) h);
#else
    vh h;
    memcpy(&h, p, sizeof h);
    const vi w    = __builtin_convertvector(h, vi);
    const vi bits = (vi) ((vf) ((w & 0x7fff) << 13) * 0x1p112f);
    return (vf) (bits | (((w & 0x7c00) == 0x7c00) & 0x7f800000) | (w & 0x8000) << 16);
#endif
}

// VW bytes
static inline vf vf_load_i8(const void * p) {
#if defined(VEC_AVX512)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *) p)));
#elif defined(VEC_AVX2)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *) p)));
#else
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vf);
#endif
}

// The low halves (shift 0) or the high ones (4) of VW bytes, less 8
static inline vf vf_load_u4(const void * p, int shift) {
#if defined(VEC_AVX512)
    const __m512 value = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const vi w = (vi) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *) p));
    return _mm512_permutexvar_ps((__m512i) (w >> shift), value); // by the lowest four bits
#elif defined(VEC_AVX2)
    const vi w = (vi) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *) p));
    return _mm256_cvtepi32_ps((__m256i) ((w >> shift & 15) - 8));
#else
    vub b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector((__builtin_convertvector(b, vi) >> shift & 15) - 8, vf);
#endif
}

// e^x, relative error below 2e-7 (3e-7 without a fused multiply-add). 0 below -87, infinite above 88.
//
// x = n ln 2 + r with n an integer and |r| <= ln(2)/2; e^r by Taylor's series to r^7, whose remainder, 5e-9, is below
// the rounding.
static inline vf vf_exp(vf x) {
    const vf magic = vf_set(0x1.8p23f); // adding it leaves round(x log2 e) in the low bits
    const vf t = vf_fma(x, vf_set(0x1.715476p0f), magic);
    const vf n = t - magic;
    const vf r = vf_fma(n, vf_set(-0x1.7f7d1cp-20f), vf_fma(n, vf_set(-0x1.62e4p-1f), x)); // ln 2 in two parts
    vf p = vf_set(1.0f / 5040);
    p = vf_fma(p, r, vf_set(1.0f / 720));
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1));
    p = vf_fma(p, r, vf_set(1));
    p = p * (vf) (((vi) t - (0x4b400000 - 127)) << 23);
    p = vf_select(x < -87.0f, vf_set(0), p);
    return vf_select(x > 88.0f, vf_set(INFINITY), p);
}

static inline vf vf_tanh(vf x) {
    return 1.0f - 2.0f / (vf_exp(2.0f * x) + 1.0f);
}

// gelu(x) = x/2 (1 + erf(x/sqrt 2)), the exact one; error below 6e-7 |gelu(x)| for x > -1, 2e-5 |gelu(x)| from there to -12.
//
// With y = |x|/sqrt 2, erfc(y) = exp(-y^2) t P(t), t = 1/(1 + 0.28 y): P interpolates exp(y^2) erfc(y) / t at the
// Chebyshev nodes of 0 <= y <= 9.4 to 1e-8. The tail is not 1 - erf, which would cancel.
static inline vf vf_gelu(vf x) {
    const vf y = vf_abs(x) * 0x1.6a09e6p-1f;
    const vf t = 1.0f / vf_fma(y, vf_set(0.28f), vf_set(1));
    vf p = vf_set(-0.0970299169f);
    p = vf_fma(p, t, vf_set( 0.350756854f));
    p = vf_fma(p, t, vf_set(-0.334969252f));
    p = vf_fma(p, t, vf_set( 0.319200963f));
    p = vf_fma(p, t, vf_set( 0.0351863205f));
    p = vf_fma(p, t, vf_set( 0.107960045f));
    p = vf_fma(p, t, vf_set( 0.155823633f));
    p = vf_fma(p, t, vf_set( 0.14632304f));
    p = vf_fma(p, t, vf_set( 0.158828974f));
    p = vf_fma(p, t, vf_set( 0.157919332f));
    const vf tail = 0.5f * t * p * vf_exp(-y * y); // Phi(-|x|)
    return x * vf_select(x < 0.0f, tail, 1.0f - tail);
}

#endif
