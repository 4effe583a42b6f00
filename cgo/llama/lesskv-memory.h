// lesskv-memory.h: the LESS cache as a llama_memory_i. The slots and states are the kernels' own (lesskv.h), one lesskv_cache for each layer of
// each sequence, made when a sequence first decodes. With LESS on the device a sequence that decodes has a seat there beside; its caches count
// what it takes in, and get the rest when they are asked for more.

#pragma once

#include "lesskv-adapter.h"
#include "lesskv-device.h"
#include "lesskv-llama.h"
#include "lesskv.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-memory.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

struct llama_hparams;
struct llama_model;

class lesskv_memory;

inline lesskv_stats stats_of(const lesskv_cache * c) {
    lesskv_stats s;
    lesskv_cache_stats(c, &s);
    return s;
}

// What a KV head of a layer with a budget may keep.
inline lesskv_budget budget_of(const lesskv_layer & l, int32_t head_kv) {
    return l.budgets ? l.budgets[head_kv] : l.budget;
}

// One layer that has attention, its index in the memory being that of its cache unless it shares another's. The graph's custom nodes
// point at it, so it lives as long as the memory.
struct lesskv_memory_layer {
    lesskv_memory * mem = nullptr;
    int32_t il = 0;          // layer of the model
    size_t  n = 0;           // its own index
    size_t  i = 0;           // of its cache: the layer's own, or the one that it shares
    bool    shares = false;  // has no keys and values of its own, and attends to its owner's cache
    int32_t last_sharer = -1; // of an owner: the layer of the model after which it commits; -1: it shares with none
    lesskv_layer params = {};
    float   scale = 0.0f;    // kq_scale, known when the graph is built
    float   soft_cap = 0.0f;
    int32_t rot_v = 0;       // the Hadamard matrix that rotates values, as params.rotation rotates queries and keys; 0: none does
    bool    used = false;    // the graph has it: not so for layers that only a speculative head would run
};

class lesskv_memory : public llama_memory_i {
public:
    // Throws std::runtime_error; the reason goes to params.lesskv->error too. cparams must outlive the memory. attends: which
    // layers attend; empty: all that have KV heads.
    lesskv_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
            const layer_filter_cb & attends = nullptr);
    ~lesskv_memory() override = default;

    // llama_memory_i

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override { return false; }

    void clear(bool data) override;

    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    // Bytes that state_write writes of one sequence; nothing is read for it.
    virtual uint64_t state_size(llama_seq_id seq_id) const;

    // for the graph

    lesskv_memory_layer & layer(int il);        // refuses if layer il has no attention
    lesskv_memory_layer & owner(const lesskv_memory_layer & l) { return layers[l.i]; } // whose cache it attends to: itself, or another
    const std::map<int32_t, std::vector<float>> & rotations() const { return hadamard; } // that quantised slots need, by size
    [[noreturn]] void     refuse(const std::string & why) const; // throws; the reason goes to the configuration's error too
    bool                  fail(const std::string & why) const; // remembers and logs a refusal; returns false
    void                  note_elsewhere(const char * op, int il); // warns, once for each, of what layer il's device leaves to the CPU
    void                  note_lora();          // warns, once, that an adapter was trained without it
    lesskv_cache *        cache(llama_seq_id seq_id, size_t i) const; // NULL if there is none
    void *                scratch_of(int32_t i) const { return (char *) scratch.get() + (size_t) i*scratch_each; } // of the i-th sequence of a graph
    int                   scratch_threads() const { return n_threads; }
    lesskv_profile *      profile_of(int ith) { return (size_t) ith < profiles.size() ? &profiles[ith] : nullptr; } // NULL: off
    const std::vector<lesskv_profile> & profile() const { return profiles; }
    void                  reset_profile() { std::fill(profiles.begin(), profiles.end(), lesskv_profile{}); }
    double *              reference_worth(const lesskv_memory_layer & l, int32_t i); // of the i-th sequence of a graph; NULL: the fast kernels
    float *               worth_of(const lesskv_memory_layer & l, int32_t i); // the same of a cache that is shared, or NULL
    void                  note_status(llama_seq_id seq_id, const lesskv_memory_layer & l, lesskv_status status); // of a node; from any thread
    const std::vector<lesskv_memory_layer> & all_layers() const { return layers; }
    const lesskv_device * device() const { return dev.get(); } // NULL: slots and attention are here
    int32_t               seat_of(const llama_ubatch & ubatch) const; // of the micro-batch's sequence; the first while a graph is reserved
    void                  begin(llama_seq_id seq_id, const lesskv_device_inputs & graph); // it is computed now
    int32_t               in_use(llama_seq_id seq_id, bool window) const; // slots, of sliding windows or of the other layers; of the KV head that has most
    float                 number() const { return (float) n_begun; } // of the micro-batch that is computed
    bool                  computed(); // whether the nodes of the graph in flight did well; poisons the sequences for which they did not

    // for lesskv-api.cpp

    bool valid(llama_seq_id seq_id) const; // in a unified context there are more than n_seq_max
    const std::string & last_error() const { return error; }
    lesskv_status last_status() const { return status; }
    virtual void info(lesskv_info & out) const;
    bool layer_info(llama_seq_id seq_id, size_t i, lesskv_layer_info & out) const;
    bool head_info(int32_t il, int32_t head_kv, lesskv_head_info & out) const;
    int32_t slots(llama_seq_id seq_id, int32_t il, int32_t head_kv, int32_t max, int32_t * pos, float * score) const;

    // for lesskv_memory_context

    bool apply(const llama_ubatch & ubatch);
    void done();
    void settle() noexcept; // the decode has ended: what is in flight still, an exception has ended

protected:
    void note_sizing(); // the context's graphs are sized

    struct free_cache   { void operator()(lesskv_cache * c) const { lesskv_cache_free(c); } };
    using cache_ptr = std::unique_ptr<lesskv_cache, free_cache>;

    struct sequence {
        std::vector<cache_ptr> caches; // by layer; empty: no token yet
        std::string poison;            // why it refuses to decode; empty: it doesn't

        // with LESS on the device
        int32_t  seat = -1;            // its place there; -1: it has none
        uint64_t used = 0;             // when it last decoded
        bool     at_work = false;      // a micro-batch has begun and is not known to have ended well: what is there is of no use
        mutable bool ahead = false;    // what is there is newer than the caches
    };

    bool home(const sequence & seq) const; // brings what the device has into the caches; false: it does not answer
    bool take_seat(llama_seq_id seq_id);   // the way there; false: the same
    void poison(llama_seq_id seq_id, const std::string & why);
    llama_pos pos_max(const sequence & seq) const;
    bool nothing_in(const sequence & seq, llama_pos p0, llama_pos p1) const;

    // Whether what a subclass keeps beside the caches can be cut back to p0, which is not after the sequence's end.
    virtual bool can_cut_beside(llama_seq_id seq_id, llama_pos p0) const;
    virtual bool groups() const { return true; } // whether sequences that decode together may have one graph

    // Of a saved state, one sequence or (-1) all of them: which are in it; what is read of it, before anything here changes;
    // and what was read, in the place of what was here.
    static void check_flags(llama_state_seq_flags flags);
    std::vector<uint32_t> saved(llama_seq_id seq_id) const;
    std::vector<std::pair<uint32_t, sequence>> read_sequences(llama_io_read_i & io, llama_seq_id seq_id) const;
    void replace(std::vector<std::pair<uint32_t, sequence>> loaded, llama_seq_id seq_id);

    std::vector<sequence> seqs;

    // A sequence whose micro-batch was applied and is not known to be done.
    struct flight {
        llama_seq_id seq;
        int64_t   seen; // what its layers had seen before; -1: it cannot be taken back whatever they have
        int64_t   end;  // what they have seen once it is done
        llama_pos pos;  // of its first token
        int32_t   n_tokens;
        bool      whole = false; // it is done, and the graph failed for another sequence
        lesskv_status status = LESSKV_OK; // how a node first failed, and of which layer
        int32_t   il = -1;
    };

    std::vector<flight> in_flight; // the sequences of a graph: one, or several with a token each

    mutable std::string error;

private:
    struct free_scratch { void operator()(void * p) const; };

    void resolve(const lesskv_config & cfg, const layer_filter_cb & attends);
    void set_types(lesskv_memory_layer & l, const lesskv_config & cfg, lesskv_type k, lesskv_type v);
    void share(lesskv_memory_layer & l);
    void resolve_budget(const lesskv_config & cfg); // lesskv-budget.cpp
    bool made_for_budget() const;                   // whether the adapter's phi and psi were trained under one
    int64_t fit(uint64_t bytes, bool all) const;    // the largest B that takes no more, as takes() counts; 0: none
    uint64_t takes(int32_t budget, bool all) const; // slots, state of one sequence, kernels; all: with LESS on the device what it takes there
    void load_weights();
    void warn_adapter() const;
    bool spread() const; // whether heads have budgets of their own
    void set_slots(const std::vector<int32_t> & slots, int32_t heavy_asked); // B of every KV head that has a budget, layer by layer
    static bool set_budgets(std::vector<lesskv_memory_layer> & layers, const std::vector<lesskv_budget> & heads); // the same; false: one for all
    std::vector<int32_t> allocate(int32_t budget) const;
    uint64_t bytes_of(const std::vector<int32_t> & slots) const; // of one sequence, and the kernels
    uint64_t full_bytes(const lesskv_memory_layer & l) const; // of the unmodified f16 cache at n_ctx tokens
    void load_adapter(const lesskv_config & cfg);
    std::string reserve_scratch(size_t n_seqs); // lesskv-scratch.cpp: for graphs of up to so many sequences; why not, or nothing
    void place(const lesskv_config & cfg); // with LESS on the device
    bool make(sequence & seq);         // its caches; false: no memory
    void end();                        // what begin began, once it has been computed: the caches count it
    bool consistent(const sequence & seq, int64_t seen) const; // every layer has seen that many tokens
    bool can_cut(const sequence & seq, llama_pos p0) const;
    llama_pos pos_min(const sequence & seq) const;

    struct state_header; // of a saved state
    state_header make_header() const;
    std::vector<int32_t> mixed_types() const;
    void     check_header(llama_io_read_i & io) const;
    void     write_seq(llama_io_write_i & io, const sequence & seq) const;
    sequence read_seq(llama_io_read_i & io) const;

    const llama_model   & model;
    const llama_hparams & hparams;
    const llama_cparams & cparams;

    const lesskv_policy * policy = nullptr;
    int32_t budget = 0, heavy = 0, pinned = 0; // B, h, p of algorithm.md; of a head on average where they differ
    std::vector<float> weights;         // of the allocation, for every KV head that has a budget, layer by layer; empty: equal
    std::vector<lesskv_budget> budgets; // of those heads, to which the layers point; empty: all have B and h
    bool swa_full = false; // only to say what the unmodified cache would hold
    bool use_reference = false;
    bool use_profile = false;
    bool on_device = false;
    std::vector<lesskv_profile> profiles;
    std::vector<double> worth; // of the plain loops: what pairs were worth, from attend to commit, sequence by sequence of the graph
    std::vector<std::vector<float>>  worths;     // by cache, of those that are shared: the same, from the owner's attend to its commit
    std::vector<std::vector<double>> ref_worths; // and of the plain loops

    const lesskv_adapter * adapter = nullptr; // null: sparse only
    std::unique_ptr<const lesskv_adapter> own; // where the configuration only names a file
    size_t bytes_kernels = 0; // the adapter's
    mutable std::string fingerprint; // the model's, once a state has asked for it

    std::map<int32_t, std::vector<float>> hadamard; // normalised, by size
    std::vector<lesskv_memory_layer> layers;
    std::vector<int32_t> layer_of; // by il; -1: no attention

    std::unique_ptr<const lesskv_device> dev;
    std::set<std::string> elsewhere;    // operations that were warned of
    uint64_t              n_used  = 0;  // decodes of sequences that had a seat
    uint64_t              n_begun = 0;  // micro-batches on the device, as far as f32 counts
    ggml_tensor *         check = nullptr; // of the graph that is computed there, and its scheduler
    ggml_backend_sched_t  sched = nullptr;

    std::unique_ptr<void, free_scratch> scratch; // for one micro-batch of n_ubatch tokens, or one of a token for each of n_together sequences
    size_t scratch_size = 0;
    size_t scratch_each = 0; // of the latter
    size_t n_together = 0;
    int    n_threads = 0;    // that the scratch is for

    std::mutex failing; // nodes, in any thread
    lesskv_status status = LESSKV_OK; // of the nodes in the last decode

    bool warned_lora = false;
    bool warned_context = false;
    bool warned_together = false;

    // Where a refusal is written while the context is being made; NULL once it is used.
    char * config_error = nullptr;
    size_t config_error_size = 0;
    bool   sized = false; // the graphs have been sized once, as the context was made
};

// The graphs of one llama_decode: a ubatch is a micro-batch of one sequence, or has a token of each of several. Made by lesskv_memory, valid
// until the decode ends.
class lesskv_memory_context : public llama_memory_context_i {
public:
    lesskv_memory_context(lesskv_memory * mem, llama_memory_status status) : mem(mem), status(status) {}
    lesskv_memory_context(lesskv_memory * mem, std::vector<llama_ubatch> ubatches)
        : mem(mem), status(LLAMA_MEMORY_STATUS_SUCCESS), ubatches(std::move(ubatches)) {}
    ~lesskv_memory_context() override { mem->settle(); }

    bool next()  override;
    bool apply() override;

    const llama_ubatch & get_ubatch() const override { return ubatches[i]; }
    llama_memory_status  get_status() const override { return status; }

    lesskv_memory * memory() const { return mem; }
    const std::vector<llama_ubatch> & micro_batches() const { return ubatches; } // none: there is only the graph to reserve

private:
    lesskv_memory *           mem;
    llama_memory_status       status;
    size_t                    i = 0;
    std::vector<llama_ubatch> ubatches;
};
