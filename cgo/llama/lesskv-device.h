// lesskv-device.h: LESS on the device ("LESS on the device" in algorithm.md): the slots and the state of every layer as ggml tensors where the
// layer's weights are, and its attention, scores, eviction and folds as ggml operations over them.

#pragma once

#include "lesskv.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

struct lesskv_memory_layer;
struct llama_model;
struct llama_ubatch;
struct llm_graph_context;
class lesskv_memory;

// One layer's tensors, of all sequences that have a seat, or of one. U: the spare rows, as many as a micro-batch has tokens, in which k and v
// are put before it is known where they stay. B: the slots of its KV head that has most. A sliding window has k, v and spare alone: its slots are a ring,
// and position p is in slot p mod B. (Those of a layer that shares a cache are its owner's.)
struct lesskv_device_layer {
    int64_t slots = 0;                        // B
    ggml_tensor * k = nullptr, * v = nullptr; // [D, B + U, Hkv, seats], [Dv, B + U, Hkv, seats]
    ggml_tensor * spare = nullptr;            // i32 [U]: the spare rows; NULL where B is that of all layers without a window
    ggml_tensor * pos   = nullptr;            // f32 [B, Hkv, seats]
    ggml_tensor * score = nullptr;            // f32 [B, Hkv, seats]; NULL where the policy has none
    // where heads have budgets of their own, or NULL: a head with fewer slots than B begins behind those that are closed to it
    ggml_tensor * unused = nullptr;           // f32 [B, Hkv, seats]: 0 of slots in use, or EMPTY or CLOSED
    ggml_tensor * turn   = nullptr;           // f32 [B + U]: B + 1 and down: of empty slots the first are the first to be taken
    ggml_tensor * recent = nullptr;           // f32 [1, Hkv]: half of r
    ggml_tensor * state = nullptr;            // f32 [R, Dv + 1, Hkv, seats]: H, transposed, and behind it z; NULL without kernels
    ggml_tensor * phi[2] = {};                // f32 [D, R', Hq], [R', R, Hq]; all that a layer has that shares another's cache. NULL without
    ggml_tensor * psi[3] = {};                // f32 [D, R', Hkv], [R', R, Hkv], [R, R, Hkv]; NULL without
    ggml_tensor * phi_scale = nullptr;        // f32 [1, 1, Hq], or NULL
};

class lesskv_device {
public:
    static constexpr int32_t max_pos = 1 << 23; // positions are f32 there, and so are halves of their sums
    static constexpr float max_score = 1e11f;   // of what a saved state says, far below what keeps the newest

    // What sort keys are made of: the pairs with the largest go. Beyond every score:
    static constexpr float KEPT   = -1e12f; // the newest and the pinned
    static constexpr float EMPTY  =  2e12f; // goes before all that is in use
    static constexpr float CLOSED = -1e31f; // never goes

    // What of a configuration is not served; "" if all of it is.
    static std::string refusal(const llama_model & model, const std::vector<lesskv_memory_layer> & layers, uint32_t n_ubatch);

    static bool knows(const lesskv_policy * policy);

    // Bytes that one with these layers takes, on all devices.
    static uint64_t bytes(const std::vector<lesskv_memory_layer> & layers, int32_t n_ubatch, int32_t n_seats);

    struct no_memory : std::bad_alloc {
        no_memory(uint64_t bytes, uint64_t limit, const char * where) : bytes(bytes), limit(limit), where(where) {}
        uint64_t bytes, limit; // that are asked for, that there are; 0: nobody says
        std::string where;
    };

    // Takes its memory at once, for so many sequences; in main memory at most as much as is said. Throws no_memory.
    lesskv_device(const llama_model & model, const std::vector<lesskv_memory_layer> & layers, int32_t n_ubatch, int32_t n_seats, uint64_t main_memory);

    int32_t seats() const { return n_seats; }
    bool computes(const ggml_tensor * node, int32_t il) const; // whether layer il's device can; what is not written there can be computed elsewhere
    lesskv_device_layer layer(ggml_context * ctx, size_t i, int32_t seat) const; // views
    const lesskv_device_layer & kernels(size_t n) const { return all[n]; } // of which phi, psi and phi_scale are of no sequence
    void upload  (int32_t seat, size_t i, lesskv_cache * cache) const;
    void download(int32_t seat, size_t i, lesskv_cache * cache) const;

    bool finite(int32_t seat, size_t i) const; // H and z of a layer

    std::map<ggml_backend_buffer_type_t, size_t> memory() const;
    uint64_t bytes_slots() const, bytes_state() const, bytes_kernels() const; // of all seats

private:
    void load_slots  (size_t n, const lesskv_layer & params);
    void load_kernels(size_t n, const lesskv_layer & params);

    int32_t n_seats;
    const llama_model & model;
    std::vector<lesskv_device_layer> all; // by layer
    std::vector<ggml_context_ptr> contexts;
    std::vector<ggml_backend_buffer_ptr> buffers;
};

struct lesskv_device_steps;

// What a graph is given beside q, k and v. W = B + T columns: the slots, then the micro-batch. Where heads have budgets of their own, B is 0 here, and
// each layer's tensors say what its slots hold.
struct lesskv_device_inputs {
    lesskv_device_inputs(const llm_graph_context & g, lesskv_memory * mem);

    void set(const llama_ubatch * ub);
    void set_window(int32_t begin, int32_t n_tokens, int32_t used);

    // The attention of a layer, and behind it, or behind the last layer that shares its cache, what its scores, slots and state become. q, k, v as build_attn
    // gets them, f32, without k and v where the layer has none; sinks f32 [Hq], or NULL. Returns [Dv Hq, T].
    ggml_tensor * attend(const llm_graph_context & g, const lesskv_memory_layer & l, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * sinks) const;

    lesskv_memory * mem;
    int32_t seat;           // of the sequence that the graph is for
    int32_t slots, heads;   // B of layers without a window, and the most KV heads that a layer has
    int32_t window;         // n_swa, or 0
    bool by_head;           // they have budgets of their own
    ggml_tensor * fresh;    // i32 [T]: the spare rows that the micro-batch takes
    ggml_tensor * arrivals; // f32 [T, heads]: its positions
    ggml_tensor * rows;     // f32 [1, T, heads]: the same
    ggml_tensor * mask;     // f32 [W, 1, T]: 0 where a query sees a pair, -INFINITY where not
    ggml_tensor * unused;   // f32 [W], or [B] where all new pairs stay: EMPTY and more of slots that are, 0 for others
    ggml_tensor * middle, * half; // f32 [1]: the middle of the positions that may go, and half the distance of their ends, both negated; by head: as if r were 0
    ggml_tensor * window_mask = nullptr; // f32 [B + T, 1, T], with a window's B: the mask there
    ggml_tensor * window_rows = nullptr; // i32 [T], or [B] if that is less: where the last tokens go; NULL without slots
    ggml_tensor * number;   // f32 [1]: of the micro-batch
    mutable std::map<size_t, std::shared_ptr<lesskv_device_steps>> open; // by cache, until the last layer that shares it has attended
    mutable ggml_tensor * check; // f32 [1]: the same, to which each layer adds 0, or NaN where its state is not finite
    ggml_backend_sched_t sched;
};
