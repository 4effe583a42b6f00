// lesskv-hybrid.h: the cache of models in which some layers attend and others are recurrent. Those that attend have the LESS
// cache; the recurrent ones keep llama.cpp's memory, whose size never depended on the context. Both take the same micro-batches.

#pragma once

#include "lesskv-memory.h"

#include "llama-memory-recurrent.h"

class lesskv_hybrid : public lesskv_memory {
public:
    // Throws std::runtime_error, as lesskv_memory does. The filters say which layers attend and which are recurrent: a layer may
    // be both, or neither. Empty ones: it is what the model says of its layers.
    lesskv_hybrid(
            const llama_model         & model,
            const llama_memory_params & params,
            const llama_cparams       & cparams,
            const layer_filter_cb     & attends,
            const layer_filter_cb     & recurs);

    // llama_memory_i

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;

    void clear(bool data) override;

    bool seq_rm  (llama_seq_id seq_id,                              llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    uint64_t state_size(llama_seq_id seq_id) const override;

    void info(lesskv_info & out) const override;

    // for lesskv_hybrid_context

    llama_memory_recurrent * recurrent() const { return recr.get(); }
    void begun(const llama_ubatch & ubatch); // it has its place in both

protected:
    bool can_cut_beside(llama_seq_id seq_id, llama_pos p0) const override;
    // llama_memory_recurrent makes room for a group by moving the states of other sequences, in the group's own graph: if that graph fails, theirs are
    // wrong, and nothing says so.
    bool groups() const override { return false; }

private:
    using row = std::vector<uint8_t>; // the recurrent state of a sequence, layer by layer

    void   forget(llama_seq_id seq_id); // the recurrent part of it
    size_t row_size() const;
    row    read_row (llama_seq_id seq_id) const;
    void   place_row(llama_seq_id seq_id, llama_pos pos, const row & data);

    template <class F>
    void each_tensor(F f) const; // f(tensor, bytes of a row)

    std::unique_ptr<llama_memory_recurrent> recr;
    std::vector<uint32_t> newest; // by sequence, tokens of its last micro-batch: of no others are there states to go back to
};

// As lesskv_memory_context.
class lesskv_hybrid_context : public lesskv_memory_context {
public:
    explicit lesskv_hybrid_context(lesskv_hybrid * mem)
        : lesskv_memory_context(mem, LLAMA_MEMORY_STATUS_SUCCESS), hybrid(mem), recr(mem->recurrent()) {}
    lesskv_hybrid_context(lesskv_hybrid * mem, const std::vector<llama_ubatch> & ubatches)
        : lesskv_memory_context(mem, ubatches), hybrid(mem), recr(mem->recurrent(), ubatches) {}

    bool next()  override;
    bool apply() override;

    const llama_memory_recurrent_context * recurrent() const { return &recr; }

private:
    lesskv_hybrid *                hybrid;
    llama_memory_recurrent_context recr;
};
