// lesskv-cpu.h: whether this CPU can run what the runtime was compiled for. C ABI.
//
// ggml's CPU backend and the LESS kernels are compiled with instruction-set flags; this file and everything else is
// compiled for any CPU of the architecture, so the question can be asked before the first illegal instruction.

#ifndef LESSKV_CPU_H
#define LESSKV_CPU_H

#ifdef __cplusplus
extern "C" {
#endif

// The features that the runtime needs and this CPU (or its operating system) lacks, with spaces between: "avx2 fma".
// NULL if it lacks none. The text is static.
const char * lesskv_cpu_missing(void);

#ifdef __cplusplus
}
#endif

#endif
