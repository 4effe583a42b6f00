// worker_devices.cpp: what a graph costs that is computed on several devices, and their memory.

#include "worker.h"

#include "devices.h"

#include "llama-context.h"
#include "llama-memory.h"

void worker::splits(request & req, reply & out) {
    const auto n = uint32_t(req.integer("n", 1, llama_n_ubatch(ctx.get()), 1));
    req.done();
    if (!cache()) {
        refuse("splits: want a model with a cache");
    }
    const auto memory = cache()->init_full();
    ggml_cgraph * graph = ctx->graph_reserve(n, 1, 1, memory.get(), true);
    std::set<const ggml_tensor *> copies; // which the scheduler names DEVICE#TENSOR#NUMBER
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        for (const ggml_tensor * src : ggml_graph_node(graph, i)->src) {
            if (src && src->op == GGML_OP_NONE && strchr(src->name, '#')) {
                copies.insert(src);
            }
        }
    }
    int64_t bytes = 0;
    for (const ggml_tensor * t : copies) {
        bytes += int64_t(ggml_nbytes(t));
    }
    int64_t weights = 0, context = 0, compute = 0;
    for (const auto & [type, use] : ctx->memory_breakdown()) {
        if (!ggml_backend_buft_is_host(type)) {
            weights += int64_t(use.model);
            context += int64_t(use.context);
            compute += int64_t(use.compute);
        }
    }
    out.set("splits",         ggml_backend_sched_get_n_splits(ctx->get_sched()));
    out.set("copies",         int64_t(copies.size()));
    out.set("bytes",          bytes);
    out.set("device_weights", weights);
    out.set("device_cache",   context);
    out.set("device_compute", compute);
}

void worker::device_memory(request & req, reply & out) {
    const std::string rpc = req.text("rpc");
    req.done();
    int64_t sum = 0;
    for (ggml_backend_dev_t dev : devices::all(rpc)) {
        size_t free = 0, total = 0;
        if (dev) { // the list's end
            ggml_backend_dev_memory(dev, &free, &total);
        }
        sum += int64_t(free);
    }
    out.set("free", sum);
}
