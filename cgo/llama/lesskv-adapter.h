// lesskv-adapter.h: reading the trained kernels ("The adapter file" in algorithm.md), and a model's fingerprint.

#pragma once

#include "lesskv.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_model;

// 64 lower-case hex digits over the geometry and the one-dimensional tensors of a loaded model.
std::string lesskv_model_fingerprint(const llama_model & model);

struct lesskv_adapter {
    // Reads and checks a file against a model. Throws std::runtime_error naming the file, the key or tensor, what was
    // found and what was wanted. force: accept another model's fingerprint.
    lesskv_adapter(const std::string & path, const llama_model & model, bool force);

    const lesskv_kernels * layer(int il) const; // NULL: the layer runs sparse only

    std::string path;
    int32_t     rank = 0, hidden = 0;
    std::string policy;                                // trained with
    uint32_t    heavy = 0, recent = 0, ubatch = 0, context = 0;
    std::string sha256;                                // of the file, hex
    size_t      bytes = 0;                             // of all kernels
    int32_t     n_layer = 0;                           // layers that have kernels

private:
    std::vector<lesskv_kernels>       kernels;          // by layer; rank 0: none
    std::vector<std::vector<uint8_t>> weights;          // what they point at
};

// Kernels whose queries and keys of dk numbers were rotated by the Hadamard matrix of n dimensions, block by block: they answer what
// others would for those that were not. Their first matrices are rotated too, in F32; the others are the adapter's.
class lesskv_rotated_kernels {
public:
    lesskv_rotated_kernels(const lesskv_kernels & of, int32_t n_head, int32_t n_head_kv, int32_t dk, int32_t n);
    lesskv_rotated_kernels(const lesskv_rotated_kernels &) = delete;
    lesskv_rotated_kernels & operator=(const lesskv_rotated_kernels &) = delete;

    lesskv_kernels kernels;
    size_t bytes() const;
private:
    std::vector<float> phi, psi;
};
