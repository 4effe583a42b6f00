// level_v4.c: as level_v3.c, for x86-64-v4 (AVX-512).

#include "internal.h"

#ifdef LESSKV_LEVEL_V4

#include <immintrin.h>
#include <math.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#endif

#define VEC_LEVEL  4
#define LEVEL      lesskv_level_v4
#define LEVEL_NAME "x86-64-v4"
#include "level_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
