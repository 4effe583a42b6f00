// worker.h: the worker of worker.cpp, one method a verb; a file worker_*.cpp has those of one subject.

#pragma once

#include "worker_wire.h"

#include "llama.h"

#include "ggml-backend.h"
#include "ggml.h"

#ifdef LESSKV
#include "lesskv-llama.h"
#endif

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

using wire::failure, wire::max_payload, wire::refuse, wire::reply, wire::request;

constexpr int64_t max_i32     = INT32_MAX;
constexpr int64_t max_ctx     = 1 << 30;
constexpr int64_t max_threads = 512; // GGML_MAX_N_THREADS
constexpr int64_t max_seq     = 256; // LLAMA_MAX_SEQ

// llama.cpp's log.
struct log_lines {
    std::string all;    // the last of it
    std::string errors; // warnings and errors since the last request

    static void add(ggml_log_level level, const char * text, void * self);
};

// Copies of the attention nodes' inputs and outputs, taken by the scheduler's callback. The node is lesskv_attn-<il>: its
// inputs q, k, v of shape [size, heads, tokens] with any strides, k and v rounded to the slots' types.
struct capture {
    bool                 all = false;
    bool                 ends = false; // the graph, behind the first layer that is copied
    bool                 throws = false; // there, as a caller's callback may
    std::set<int>        layers;
    int64_t              n = 0;
    std::vector<uint8_t> records;

    static bool callback(ggml_tensor * t, bool ask, void * self);

private:
    void take(const ggml_tensor * t, int il);
    void append(const void * data, size_t size);
    void append(const ggml_tensor * t);
};

// Stops a decode after a number of graph nodes, once.
struct abort_after {
    int64_t left = -1;

    static bool callback(void * self) {
        return static_cast<abort_after *>(self)->left-- == 0;
    }
};

struct free_model   { void operator()(llama_model   * m) const { llama_model_free(m); } };
struct free_context { void operator()(llama_context * c) const { llama_free(c); } };

class worker {
public:
    log_lines log;

    reply answer(request & req);

private:
    std::unique_ptr<llama_model,   free_model>   model;
    std::unique_ptr<llama_context, free_context> ctx;

    const llama_vocab * vocab       = nullptr;
    bool                embeddings  = false;
    bool                unified     = false;
    bool                encoded     = false;
    bool                less_on     = false;
    bool                can_capture = false;
    capture             copies;
    abort_after         stop;
    std::string         config_error; // LESS writes to it while the context is made

    // worker.cpp

    std::string meta(const std::string & key) const;
    std::string arch() const { return meta("general.architecture"); }
    int64_t meta_number(const std::string & key, int64_t otherwise) const;
    std::string with_reason(const std::string & what) const;
    llama_memory_t cache() const { return llama_get_memory(ctx.get()); }
    int64_t n_seq() const { return unified ? max_seq : llama_n_seq_max(ctx.get()); }
    int32_t seq_of(request & req, const char * key = "seq") const { return int32_t(req.integer(key, 0, n_seq() - 1)); }

    // worker_open.cpp

    void check_cache_type(const char * key, ggml_type type, const char * length_key) const;
    std::vector<int32_t> slot_types(const char * key, const std::string & text) const;
    void load_model(const std::string & path, bool mapped, int32_t n_gpu_layers, const std::string & rpc, ggml_backend_dev_t other = nullptr);
    void release();
    void describe(reply & out) const;
    void open (request & req, reply & out);
    void close(request & req, reply & out);
    void info (request & req, reply & out);

    // worker_pretend.cpp

    static ggml_backend_dev_t pretended_device(const std::string & name, const std::string & lacks);

    // worker_devices.cpp

    void splits(request & req, reply & out);
    void device_memory(request & req, reply & out);

    // worker_text.cpp

    void check_tokens(const std::vector<int32_t> & tokens) const;
    void tokenize  (request & req, reply & out);
    void detokenize(request & req, reply & out);

    // worker_decode.cpp

    struct batch;
    void check_batch(const batch & b, bool whole) const;
    batch read_batch(request & req) const;
    int64_t run(llama_batch b);
    void rows(int64_t n, reply & out);
    void decode    (request & req, reply & out);
    void embed     (request & req, reply & out);
    void encode    (request & req, reply & out);
    void greedy    (request & req, reply & out);
    void threads   (request & req, reply & out);
    void set_abort (request & req, reply & out);
    void set_causal(request & req, reply & out);

    // worker_sequence.cpp

    void check_shift() const;
    void seq_rm  (request & req, reply & out);
    void seq_cp  (request & req, reply & out);
    void seq_keep(request & req, reply & out);
    void seq_add (request & req, reply & out);
    void seq_div (request & req, reply & out);
    void seq_pos (request & req, reply & out);
    void clear   (request & req, reply & out);

    // worker_state.cpp

    void check_whole_state(const std::vector<uint8_t> & head) const;
    size_t check_state_file(const std::string & file, bool whole) const;
    void save(request & req, reply & out);
    void load(request & req, reply & out);

    // worker_capture.cpp

    void set_capture(request & req, reply & out);
    void captured   (request & req, reply & out);

    // worker_refused.cpp

    void beside(request & req, reply & out);
    void train (request & req, reply & out);

    // worker_less.cpp

    void less       (request & req, reply & out);
    void layers     (request & req, reply & out);
    void slots      (request & req, reply & out);
    void heads      (request & req, reply & out);
    void profile    (request & req, reply & out);
    void supported  (request & req, reply & out);
    void fingerprint(request & req, reply & out);

    // worker_process.cpp

    void floats  (request & req, reply & out);
    void memory  (request & req, reply & out);
    void take_log(request & req, reply & out);

    // worker_bench.cpp

    void fill    (request & req, reply & out);
    void quantize(request & req, reply & out);
    void matmul  (request & req, reply & out);
};
