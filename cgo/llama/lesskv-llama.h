// lesskv-llama.h: LESS inside llama.cpp, as seen by a caller of llama.h. C ABI.
//
// A context with LESS is made like any other, with one field more:
//
//     struct lesskv_config cfg = lesskv_config_default();
//     cfg.budget = 1024;
//     struct llama_context_params p = llama_context_default_params();
//     p.lesskv = &cfg;                       // NULL: off, the runtime is untouched
//     ctx = llama_init_from_model(model, p); // NULL: cfg.error says why
//
// The llama_memory_* and llama_state_* functions of llama.h then act on the LESS cache; what cannot be undone is
// refused ("What cannot be undone" in algorithm.md), and lesskv_error says why.

#ifndef LESSKV_LLAMA_H
#define LESSKV_LLAMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_model;
struct llama_context;
struct lesskv_adapter;

// What is asked for; lesskv_config_default() and then what differs. Needed until llama_init_from_model returns.
struct lesskv_config {
    const char * policy;       // a name of lesskv_policy_text; default: the adapter's, without one peak
    int32_t budget;            // slots per KV head, B; one of the four budgets, else the default ("Defaults" in algorithm.md)
    double  budget_share;      // of n_ctx: B = max(64, floor(share n_ctx))
    uint64_t budget_bytes;     // one sequence: the largest B that fits after state and kernels; with device: all of the n_seq_max sequences,
                               // after the rows for n_ubatch tokens and the kernels in f32 too
    double  budget_full;       // the same, as a share of the bytes of the full f16 cache at n_ctx tokens
    const int32_t * slots;     // B of every KV head that has a budget, layer by layer, in the place of these four; NULL: the adapter's
    int32_t n_slots;           // allocation spreads B over them, or all have the same
    int32_t heavy;             // h <= B; -1 (default): the policy's own share
    int32_t pinned;            // first positions that are never evicted; default 1
    int32_t type_k, type_v;    // ggml_type of the slots: F16, F32, Q8_0, Q4_0; -1 (default): the adapter's, without those Q8_0, or F16 where
                               // heads do not fill its blocks
    const int32_t * layer_type_k, * layer_type_v; // the same for each layer of the model, in the place of the two; NULL
    int32_t n_layer_types;     // how many these have
    const char * adapter;      // path of the adapter; NULL or "": sparse only
    bool    force_adapter;     // load it although its fingerprint is another model's (geometry must still fit)
    const struct lesskv_adapter * loaded; // an adapter that is loaded already, in the place of the two; it must outlive the context
    bool    reference;         // run the plain loops that judge the fast kernels: slow, for tests
    bool    device;            // slots, state and attention are where the layers' weights are ("LESS on the device" in algorithm.md)
    uint64_t main_memory;      // with device: the most bytes that layers on the CPU may take; 0: what the machine has
    bool *  no_memory;         // set to true where a refusal is for lack of memory, or NULL
    bool    profile;           // measure where the time goes: lesskv_get_profile
    char *  error;             // where a refusal is written, or NULL
    size_t  error_size;
};
struct lesskv_config lesskv_config_default(void);

// The i-th policy by name, from 0 on, and in a few words what stays. False past the last.
bool lesskv_policy_text(int i, const char ** name, const char ** help);

// The instruction sets that the inner loops use on this processor: those of LESS, and those of ggml's CPU backend where the runtime has it
// for several and chooses ("x86-64-v3", "x86-64-v4 with VNNI"), else "".
void lesskv_levels(const char ** less, const char ** ggml);

// An adapter for a model, read and checked once for any number of contexts. NULL: the reason is in error.
struct lesskv_adapter * lesskv_adapter_load(const struct llama_model * model, const char * path, bool force, char * error, size_t error_size);
void lesskv_adapter_free(struct lesskv_adapter * adapter); // NULL is fine

// Whether LESS can serve this model; if not, the reason in error.
bool lesskv_supported(const struct llama_model * model, char * error, size_t error_size);

// Whether the context has a LESS cache.
bool lesskv_enabled(const struct llama_context * ctx);

// The reason of the last refusal in this context ("" if there was none): why llama_decode returned 1, llama_memory_seq_rm
// false, a state function 0, llama_encode -1, or why llama_opt_init and llama_opt_epoch did nothing. Valid until the next call.
const char * lesskv_error(const struct llama_context * ctx);

// Whether the last llama_decode that got as far as the cache (it did not return -1) failed because a fold was not finite ("What is not finite" in algorithm.md).
bool lesskv_not_finite(const struct llama_context * ctx);

// What llama_state_seq_get_size returns, which writes the whole state to find out; this reads nothing. 0 without LESS, or if the context
// has no such sequence.
uint64_t lesskv_state_size(const struct llama_context * ctx, int32_t seq_id);

struct lesskv_info {
    char     policy[32];
    int32_t  budget, heavy, recent, pinned; // as resolved: B <= n_ctx, B = heavy + recent; where heads differ, on average, and recent of
                                            // the head that has fewest
    bool     spread;                        // whether heads differ: lesskv_get_head
    int32_t  n_layer, n_layer_swa;          // layers with a budget; sliding-window layers
    int32_t  n_layer_shared;                // layers that share the cache of one of those, and hold nothing themselves
    int32_t  n_layer_kernels;               // layers that have kernels
    int32_t  rank, hidden;                  // the largest of a layer; 0 without phi and psi
    int32_t  n_seq;                         // sequences that hold memory now
    uint64_t bytes_slots, bytes_state;      // of those sequences; with device: of n_seq_max, and the rows for n_ubatch tokens are slots
    uint64_t bytes_sequence;                // both, of one sequence that holds memory
    uint64_t bytes_kernels;                 // as they were read; with device: and in f32 there
    uint64_t bytes_scratch;                 // of computing; with device: what sequences have in main memory beside, when they are read
    uint64_t bytes_full;                    // what the unmodified f16 cache of n_ctx tokens holds, recurrent layers not counted
    uint64_t bytes_recurrent;               // of recurrent layers, for all sequences, whatever they hold; no budget counts them
    char     adapter_sha256[65];            // "" without an adapter
};
bool lesskv_get_info(const struct llama_context * ctx, struct lesskv_info * info);

struct lesskv_layer_info {
    int32_t il;      // layer
    bool    swa;     // sliding window
    bool    kernels;
    int32_t rank, hidden; // of those; 0 without
    int64_t seen, kept, folded; // tokens of the sequence; kept and folded by the KV head that did so most
    uint64_t bytes_slots, bytes_state;
    float   scale, soft_cap;    // softmax scale s; 0: no soft cap
};
// What a KV head of layer il may keep; false where it has no budget.
struct lesskv_head_info {
    int32_t budget, heavy;
};
bool lesskv_get_head(const struct llama_context * ctx, int32_t il, int32_t head_kv, struct lesskv_head_info * info);

// Where the time went since the last reset, in nanoseconds, over all layers. Phase i has a name and the sum over the threads;
// attend and commit are the two nodes as a whole, of the busiest thread. False past the last phase, or without profile.
struct lesskv_profile_info {
    const char * name;
    uint64_t ns;
    uint64_t attend, commit;
};
bool lesskv_get_profile(struct llama_context * ctx, int32_t i, struct lesskv_profile_info * info);
void lesskv_reset_profile(struct llama_context * ctx);

// Layer i of n_layer + n_layer_swa for a sequence; false past the last, or where the sequence is empty.
bool lesskv_get_layer(const struct llama_context * ctx, int32_t seq_id, int32_t i, struct lesskv_layer_info * info);

// Positions and scores that one KV head holds, in storage order; their number, or -1. Of a layer that shares another's cache: that one's.
int32_t lesskv_get_slots(const struct llama_context * ctx, int32_t seq_id, int32_t il, int32_t head_kv, int32_t max, int32_t * pos, float * score);

// The model's fingerprint of algorithm.md, 64 hex digits and a NUL.
bool lesskv_fingerprint(const struct llama_model * model, char hex[65]);

#ifdef __cplusplus
}
#endif

#endif
