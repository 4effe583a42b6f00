// lesskv-adapter.h: reading phi and psi ("The adapter file" in algorithm.md).

#pragma once

#include "lesskv.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_hparams;
struct llama_model;

// Whether slots can have a type, by ggml's number.
inline bool lesskv_slot_type(int64_t type) {
    return type == LESSKV_TYPE_F32 || type == LESSKV_TYPE_F16 || type == LESSKV_TYPE_Q8_0 || type == LESSKV_TYPE_Q4_0;
}

struct lesskv_adapter {
    // Reads and checks a file against a model. Throws std::runtime_error naming the file, the key or tensor, what was
    // found and what was wanted. force: accept another model's fingerprint.
    lesskv_adapter(const std::string & path, const llama_model & model, bool force);

    // NULL: the layer runs sparse only. A layer that shares another's cache has phi alone; that one has psi if any that attends to it has phi.
    const lesskv_kernels * layer(int il) const;

    std::string path;
    int32_t     rank = 0, hidden = 0;                  // the largest of a layer; 0: an allocation alone
    std::string policy;                                // trained with
    uint32_t    heavy = 0, recent = 0, ubatch = 0, context = 0;
    std::string sha256;                                // of the file, hex
    size_t      bytes = 0;                             // of all kernels
    int32_t     n_layer = 0;                           // layers that have kernels
    std::vector<float> budget_weights;                 // of each KV head of each layer, layer by layer; empty: equal
    std::vector<lesskv_type> types_k, types_v;         // of each layer's slots; empty: it has none

private:
    void check_shared(const llama_hparams & hparams) const;

    std::vector<lesskv_kernels>       kernels;          // by layer; rank 0: none
    std::vector<std::vector<uint8_t>> weights;          // what they point at
};
