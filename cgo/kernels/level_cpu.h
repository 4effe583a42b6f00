// level_cpu.h: which levels of x86-64 this processor and its operating system can run, beyond the first. For level.c, and for the choice
// among ggml's loops (cgo/llama/lesskv-ggml-level.cpp), which asks for VNNI too.

#ifndef LESSKV_LEVEL_CPU_H
#define LESSKV_LEVEL_CPU_H

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdbool.h>

// The compilers' own question covers what the operating system saves; clang 14 does not know f16c by name.
static inline bool lesskv_cpu_has_v3(void) {
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
        __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static inline bool lesskv_cpu_has_v4(void) {
    return lesskv_cpu_has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

#endif
