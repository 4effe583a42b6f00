// lesskv-ggml-level.cpp: which copy of ggml's CPU backend a portable runtime on x86-64 uses. It has two, for x86-64-v3 and for x86-64-v4
// with VNNI (patches/README.md), and one process uses one of them: the registry has it, and the functions below lead to it. Everything else of a
// copy is visible to itself alone, so that code which calls it past the registry does not link. Other runtimes have no use for this file.

#ifdef LESSKV_GGML_LEVELS

#include "level_cpu.h"

#include "ggml-cpu.h"

#include <cstdlib>
#include <cstring>

// As lesskv_level chooses: the best that the processor has, or the one that LESSKV_LEVEL names.
static bool v4() {
    static const bool chosen = [] {
        const char * name = getenv("LESSKV_LEVEL");
        return lesskv_cpu_has_v4() && __builtin_cpu_supports("avx512vnni") && !(name && strcmp(name, "x86-64-v3") == 0);
    }();
    return chosen;
}

const char * lesskv_ggml_level() {
    return v4() ? "x86-64-v4 with VNNI" : "x86-64-v3";
}

extern "C" {

decltype(ggml_backend_cpu_reg)     ggml_backend_cpu_reg_v3,     ggml_backend_cpu_reg_v4;
decltype(ggml_get_type_traits_cpu) ggml_get_type_traits_cpu_v3, ggml_get_type_traits_cpu_v4;
decltype(ggml_graph_plan)          ggml_graph_plan_v3,          ggml_graph_plan_v4;
decltype(ggml_graph_compute)       ggml_graph_compute_v3,       ggml_graph_compute_v4;

}

ggml_backend_reg_t ggml_backend_cpu_reg() {
    return v4() ? ggml_backend_cpu_reg_v4() : ggml_backend_cpu_reg_v3();
}

const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) {
    return v4() ? ggml_get_type_traits_cpu_v4(type) : ggml_get_type_traits_cpu_v3(type);
}

ggml_cplan ggml_graph_plan(const ggml_cgraph * graph, int threads, ggml_threadpool * pool) {
    return v4() ? ggml_graph_plan_v4(graph, threads, pool) : ggml_graph_plan_v3(graph, threads, pool);
}

ggml_status ggml_graph_compute(ggml_cgraph * graph, ggml_cplan * plan) {
    return v4() ? ggml_graph_compute_v4(graph, plan) : ggml_graph_compute_v3(graph, plan);
}

#endif
