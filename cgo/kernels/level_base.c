// level_base.c: the inner loops for what the compiler's flags allow.

#include "internal.h"

#if defined(__AVX512F__)
#define LEVEL_NAME "x86-64-v4"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LEVEL_NAME "x86-64-v3"
#elif defined(__x86_64__)
#define LEVEL_NAME "x86-64"
#elif defined(__aarch64__)
#define LEVEL_NAME "arm64"
#else
#define LEVEL_NAME "plain"
#endif

#define LEVEL lesskv_level_base
#include "level_table.h"
