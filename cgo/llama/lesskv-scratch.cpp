// lesskv-scratch.cpp: the memory that the nodes of a graph compute in.

#include "lesskv-memory.h"

#include "llama-impl.h"

#include <algorithm>
#include <new>

void lesskv_memory::free_scratch::operator()(void * p) const {
    ::operator delete(p, std::align_val_t(64));
}

// Sizes the scratch for the context's threads, which llama_set_n_threads may have changed, and for the sequences that decode together.
std::string lesskv_memory::reserve_scratch(size_t n_seqs) try {
    const int want = std::max({ 1, n_threads, cparams.n_threads, cparams.n_threads_batch });
    if (scratch && want <= n_threads && n_seqs <= n_together) {
        return {};
    }
    n_seqs = std::max(n_seqs, n_together);
    size_t size = 0, each = 0;
    for (const auto & l : layers) {
        size = std::max(size, lesskv_scratch_size(&l.params, cparams.n_ubatch, want));
        each = std::max(each, lesskv_scratch_size(&l.params, 1, want));
    }
    each = GGML_PAD(each, 64);
    size = std::max(size, n_seqs*each);
    std::unique_ptr<void, free_scratch> p(::operator new(std::max<size_t>(size, 64), std::align_val_t(64), std::nothrow));
    if (!p) {
        return format("no memory for a scratch buffer of %.1f MiB: lower n_ubatch (%u), the budget (%d) or the number of sequences that decode together (%zu)",
                size/1048576.0, cparams.n_ubatch, budget, n_seqs);
    }
    if (use_profile) {
        profiles.resize(want);
    }
    const auto worth_size = [&](const lesskv_memory_layer & l) { // rows of the plain loops are shorter
        return std::max(lesskv_worth_size(&l.params, cparams.n_ubatch), n_seqs*lesskv_worth_size(&l.params, 1));
    };
    if (use_reference) {
        size_t n = 1; // a layer whose policy asks for nothing needs none
        for (const auto & l : layers) {
            n = std::max(n, worth_size(l));
        }
        worth.resize(n);
        size += n*sizeof(worth[0]);
    }
    worths.resize(layers.size());
    ref_worths.resize(layers.size());
    for (const auto & l : layers) {
        if (l.last_sharer < 0) {
            continue;
        }
        worths[l.i].resize(worth_size(l));
        ref_worths[l.i].resize(use_reference ? worth_size(l) : 0);
        size += worths[l.i].size()*sizeof(float) + ref_worths[l.i].size()*sizeof(double);
    }
    scratch      = std::move(p);
    scratch_size = size;
    scratch_each = each;
    n_together   = n_seqs;
    n_threads    = want;
    return {};
} catch (const std::bad_alloc &) {
    return format("no memory to compute with: lower n_ubatch (%u), the budget (%d) or the number of sequences that decode together (%zu)",
            cparams.n_ubatch, budget, n_seqs);
}

double * lesskv_memory::reference_worth(const lesskv_memory_layer & l, int32_t i) {
    if (!use_reference) {
        return nullptr;
    }
    return (ref_worths[l.i].empty() ? worth.data() : ref_worths[l.i].data()) + (size_t) i*lesskv_worth_size(&owner(l).params, 1);
}

float * lesskv_memory::worth_of(const lesskv_memory_layer & l, int32_t i) {
    return worths[l.i].empty() ? nullptr : worths[l.i].data() + (size_t) i*lesskv_worth_size(&owner(l).params, 1);
}
