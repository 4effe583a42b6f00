// lesskv-hooks.h: what the patches of llama.cpp call. Each hook is "if this context has LESS, let it answer".

#pragma once

#include "lesskv-llama.h"

#include "llama-memory.h"

#include <cstddef>
#include <memory>

struct ggml_tensor;
struct llama_cparams;
struct llm_graph_context;

class llama_memory_recurrent_context;
class llm_graph_input_attn_kv;
class llm_graph_input_attn_kv_iswa;
class llm_graph_input_mem_hybrid;
class llm_graph_input_mem_hybrid_iswa;
class llm_graph_input_rs;

// llama_model::create_memory. Throws std::runtime_error, with the reason in params.lesskv->error too, where LESS cannot
// serve the model or the configuration makes no sense. NULL: a hybrid, for lesskv_create_hybrid to make once it is known
// which of its layers attend and which are recurrent; an empty filter leaves that to the model.
llama_memory_i * lesskv_create_memory(
        const llama_model         & model,
        const llama_memory_params & params,
        const llama_cparams       & cparams);

llama_memory_i * lesskv_create_hybrid(
        const llama_model         & model,
        const llama_memory_params & params,
        const llama_cparams       & cparams,
        const llama_memory_i::layer_filter_cb & attends,
        const llama_memory_i::layer_filter_cb & recurs);

// llama_context::graph_max_nodes: how many more nodes a graph of LESS has than upstream's.
uint32_t lesskv_graph_nodes(llama_memory_i * memory);

// llama_context::process_ubatch, once the graph has been computed. False: the nodes of LESS failed, and so has the decode.
bool lesskv_computed(llama_memory_context_i * mctx);

// Calls of a context that a LESS cache has no part in (llama_context::encode, ::opt_init, ::opt_epoch): remembers and logs the refusal of
// the one that is named. Returns -1.
int lesskv_refuse_call(llama_memory_i * memory, const char * call);

// llama_model::create_memory of a model that attends to the cache of another context. Throws std::runtime_error if that is LESS's.
void lesskv_refuse_other(llama_memory_i * memory);

// llama_model_loader::load_all_data, of a tensor that has been copied out of the mapped file: its pages leave the process's memory. They are
// read again where somebody looks at them.
void lesskv_release_mapped(const void * data, size_t size);

// llm_graph_context::build_attn_inp_kv and _kv_iswa.
llm_graph_input_attn_kv      * lesskv_build_inp_kv     (const llm_graph_context & g);
llm_graph_input_attn_kv_iswa * lesskv_build_inp_kv_iswa(const llm_graph_context & g);

// llm_graph_context::build_inp_mem_hybrid and _iswa, with the input that llama.cpp builds of the recurrent half, for which
// lesskv_recurrent has the micro-batches.
llm_graph_input_mem_hybrid      * lesskv_build_inp_mem_hybrid     (const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs);
llm_graph_input_mem_hybrid_iswa * lesskv_build_inp_mem_hybrid_iswa(const llm_graph_context & g, std::unique_ptr<llm_graph_input_rs> rs);
const llama_memory_recurrent_context * lesskv_recurrent(const llm_graph_context & g);

// The builders of the inputs of other caches. Throws std::runtime_error.
[[noreturn]] void lesskv_refuse_attn(const llm_graph_context & g);

// llm_graph_context::build_attn of those two inputs, output projection included. q [dk, n_head, n_tokens],
// k [dk, n_head_kv, n_tokens], v [dv, n_head_kv, n_tokens], f32, strided as they come; the result is that of wo.
ggml_tensor * lesskv_build_attn(
        const llm_graph_context      & g,
        const llm_graph_input_attn_kv * inp,
        ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla,
        float kq_scale, int il);

ggml_tensor * lesskv_build_attn(
        const llm_graph_context           & g,
        const llm_graph_input_attn_kv_iswa * inp,
        ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s,
        ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla,
        float kq_scale, int il);
