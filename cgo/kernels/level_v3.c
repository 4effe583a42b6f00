// level_v3.c: the inner loops for x86-64-v3 (AVX2, FMA, F16C), where the compiler's flags do not allow it anyway. The pragma is for
// functions that are defined after it, so that headers which are not of this level come before it.

#include "internal.h"

#ifdef LESSKV_LEVEL_V3

#include <immintrin.h>
#include <math.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#define VEC_LEVEL  3
#define LEVEL      lesskv_level_v3
#define LEVEL_NAME "x86-64-v3"
#include "level_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
