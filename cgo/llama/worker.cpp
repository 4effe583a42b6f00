// worker.cpp: llama.cpp behind a pipe, for verification.
//
// One process cannot hold the patched and the unmodified runtime. So this program is built once against each, and a test
// talks to both over standard input and output. With -DLESSKV it knows the LESS cache; without, it says that it doesn't.
// The framing is in worker_wire.h. One model and one context are open at a time. Every number is checked here, because
// llama.cpp aborts on many a bad one; what a saved state holds is llama.cpp's to check. Log lines of warnings and errors
// go to standard error, all of them to the verb log.
//
// Keys with a default are optional. seq is below n_seq_max; p0, p1: -1 stands for 0 and for infinity.
//
//     open       path, n_ctx=0 (the model's), n_batch=2048, n_ubatch=512, n_seq_max=1, threads=1, type_k=f16, type_v=f16
//                (f32 f16 q8_0 q4_0), flash_attn=0, kv_unified=0, swa_full=1, embeddings=0, capture=0, rope_base=0,
//                rope_scale=0 (the model's), rollback=0 (n_rs_seq)
//                less=0, and with less=1 the fields of lesskv_config: policy, budget, budget_share, budget_bytes, budget_full, heavy,
//                pinned, less_type_k, less_type_v, adapter, force_adapter, reference, profile
//     close
//     info       -> arch desc n_vocab n_embd n_layer n_head n_head_kv n_ctx_train n_swa n_ctx n_batch n_ubatch n_seq_max
//                n_reused (graphs reused by decodes so far) less
//     tokenize   special=1 parse=0, payload: text -> int32 tokens
//     detokenize special=0, payload: int32 tokens -> text
//     decode     rows=last (none, last, all), seq=0, pos=0, payload: int32 tokens of one sequence at consecutive positions; or
//                each=1, payload: int32 (token, pos, row, seq, other) for each token: row 1 wants its row, other is a second
//                sequence that the token belongs to, or -1
//                -> rows width us (microseconds), payload: float32 [rows][width], logits, or embeddings if opened so. A
//                model without a cache (an encoder) answers for every token
//     embed      seq=0, payload: int32 positions of n embeddings, of a model with M-RoPE four times n (section by section), then
//                float32 [n][n_embd] -> as decode, with the row of the last
//     encode     as decode, for the encoder of a model that has a decoder too
//     greedy     token seq=0 pos n rows=0 -> us, payload: int32 the n most likely tokens that follow, one decode each, then
//                with rows=1 float32 [n][n_vocab] their logits
//     threads    n
//     seq_rm     seq (-1: every one) p0=-1 p1=-1
//     seq_cp     from to p0=-1 p1=-1
//     seq_keep   seq
//     seq_add    seq p0=-1 p1=-1 delta
//     seq_div    seq p0=-1 p1=-1 by
//     seq_pos    seq -> min max
//     clear
//     save       seq=-1 (the whole context) file="" -> payload: the state, or with a file nothing; payload then: int32 tokens
//                that the file keeps beside it
//     load       seq=-1 file="", payload: the state -> bytes read; with a file payload: the int32 tokens
//     capture    layers=all (none, all, or 0,1,...): what is copied from now on; the context was opened with capture=1
//     captured   -> n, payload: n records of what was copied since, in the order of computation, and forgets them: int32 il,
//                n_tokens T, n_head Hq, n_head_kv Hkv, dk D, dv Dv, then float32 q [T][Hq][D], k [T][Hkv][D],
//                v [T][Hkv][Dv] as the cache has rounded them, out [T][Hq][Dv]; where slots are quantised and
//                64 divides the head size, all four rotated (lesskv_memory_layer)
//     abort      after (-1: never): the next decode is aborted once that many graph nodes and one more were computed
//     causal     on: llama_set_causal_attn
//     less       -> lesskv_info, and error: why the last thing that LESS refused was refused
//     layers     seq -> n, payload: int64 (il swa kernels seen kept folded bytes_slots bytes_state) for each layer, then
//                float32 (softmax scale, soft cap or 0) for each
//     slots      seq layer head -> n, payload: int32 positions [n], float32 scores [n]
//     profile    -> names (commas between) attend commit, payload: int64 nanoseconds of each phase since the last time; opened
//                with profile=1. Phases are sums over threads, attend and commit those of the busiest thread
//     supported  path -> supported reason: whether LESS can serve a model, without opening it
//     fingerprint -> hex
//     floats     type n, payload: n elements of a ggml type, by its number -> payload: float32 [n]
//     memory     reset=0 -> rss peak anon, in bytes; with reset=1 the peak counts from now on (Linux)
//     fill       n seq=0: continues what the sequence holds with copies of it, to n tokens at positions 0 to n - 1; unmodified
//                caches only
//     quantize   from to type threads=1: llama_model_quantize, type Q4_0, Q4_K_M, ...; no model need be open
//     matmul     d pairs tokens heads heads_kv threads rounds=5 -> us: a prompt's attention as ggml_mul_mat computes it
//     log        -> payload: llama.cpp's log since the last time
//     quit

#include "worker_bench.h"
#include "worker_wire.h"

#include "llama.h"

#include "ggml-backend.h"
#include "ggml.h"

#ifdef LESSKV
#include "lesskv-llama.h"
#endif

#include <unistd.h>

#ifdef __APPLE__
#include <mach/mach.h>
#endif

#include <algorithm>
#include <memory>
#include <set>

using namespace wire;

namespace {

constexpr int64_t max_i32     = INT32_MAX;
constexpr int64_t max_ctx     = 1 << 30;
constexpr int64_t max_threads = 512; // GGML_MAX_N_THREADS
constexpr int64_t max_seq     = 256; // LLAMA_MAX_SEQ
constexpr size_t  max_log     = 1 << 20;

// llama.cpp's log

struct log_lines {
    std::string all;    // the last max_log bytes
    std::string errors; // warnings and errors since the last request

    static void add(ggml_log_level level, const char * text, void * self) {
        auto & log = *static_cast<log_lines *>(self);
        log.all += text;
        if (log.all.size() > max_log) {
            log.all.erase(0, log.all.size() - max_log);
        }
        if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
            log.errors += text;
            fputs(text, stderr);
        }
    }
};

// Copies of the attention nodes' inputs and outputs, taken by the scheduler's callback. The node is lesskv_attn-<il>: its
// inputs q, k, v of shape [size, heads, tokens] with any strides, k and v rounded to the slots' types.
struct capture {
    bool                 all = false;
    std::set<int>        layers;
    int64_t              n = 0;
    std::vector<uint8_t> records;

    static bool callback(ggml_tensor * t, bool ask, void * self) {
        auto & c = *static_cast<capture *>(self);
        int  il  = -1;
        char end = '\0'; // views of the node are named after it, with more behind
        const bool wanted = sscanf(t->name, "lesskv_attn-%d%c", &il, &end) == 1 && (c.all || c.layers.count(il) > 0);
        if (!ask && wanted) {
            c.take(t, il);
        }
        return ask ? wanted : true;
    }

    void take(const ggml_tensor * t, int il) {
        const ggml_tensor * q = t->src[0];
        const ggml_tensor * k = t->src[1];
        const ggml_tensor * v = t->src[2];
        const int32_t head[6] = { il, int32_t(q->ne[2]), int32_t(q->ne[1]), int32_t(k->ne[1]), int32_t(q->ne[0]), int32_t(v->ne[0]) };
        append(head, sizeof(head));
        append(q);
        append(k);
        append(v);
        append(t);
        n++;
    }

    void append(const void * data, size_t size) {
        const auto * p = static_cast<const uint8_t *>(data);
        records.insert(records.end(), p, p + size);
    }

    // As float32, without gaps.
    void append(const ggml_tensor * t) {
        const auto to_float = ggml_get_type_traits(t->type)->to_float;
        std::vector<uint8_t> raw(ggml_nbytes(t));
        std::vector<float>   row(t->ne[0]);
        ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
                const uint8_t * src = raw.data() + i2*t->nb[2] + i1*t->nb[1];
                if (t->type == GGML_TYPE_F32) {
                    append(src, row.size()*sizeof(float));
                } else {
                    to_float(src, row.data(), t->ne[0]);
                    append(row.data(), row.size()*sizeof(float));
                }
            }
        }
    }
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

struct memory_use {
    int64_t rss = -1, peak = -1, anon = -1;

    memory_use() {
#ifdef __APPLE__
        mach_task_basic_info basic;
        mach_msg_type_number_t n = MACH_TASK_BASIC_INFO_COUNT;
        if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, task_info_t(&basic), &n) == KERN_SUCCESS) {
            rss  = int64_t(basic.resident_size);
            peak = int64_t(basic.resident_size_max);
        }
        task_vm_info vm;
        n = TASK_VM_INFO_COUNT;
        if (task_info(mach_task_self(), TASK_VM_INFO, task_info_t(&vm), &n) == KERN_SUCCESS) {
            anon = int64_t(vm.internal);
        }
#else
        FILE * f = fopen("/proc/self/status", "r");
        if (!f) {
            return;
        }
        char line[256];
        while (fgets(line, sizeof(line), f)) {
            long long kb;
            if (sscanf(line, "VmRSS: %lld", &kb) == 1) {
                rss = kb*1024;
            } else if (sscanf(line, "VmHWM: %lld", &kb) == 1) {
                peak = kb*1024;
            } else if (sscanf(line, "RssAnon: %lld", &kb) == 1) {
                anon = kb*1024;
            }
        }
        fclose(f);
#endif
    }
};

#ifdef LESSKV
// The numbers of "1,2,3"; none of "".
std::vector<int32_t> parse_numbers(const char * key, const std::string & list) {
    std::vector<int32_t> numbers;
    for (const char * at = list.c_str(); *at;) {
        char * end = nullptr;
        const long long n = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || n < INT32_MIN || n > INT32_MAX) {
            refuse("%s=%s: want numbers with commas between them", key, list.c_str());
        }
        numbers.push_back(int32_t(n));
        at = *end ? end + 1 : end;
    }
    return numbers;
}
#endif

ggml_type parse_type(const char * key, const std::string & name) {
    for (const ggml_type t : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        if (name == ggml_type_name(t)) {
            return t;
        }
    }
    refuse("%s=%.64s: want f32, f16, q8_0 or q4_0", key, name.c_str());
}

class worker {
public:
    log_lines log;

    reply answer(request & req) {
        struct verb {
            const char * name;
            void (worker::*run)(request &, reply &);
            bool needs_context;
        };
        static const verb verbs[] = {
            { "open",        &worker::open,        false },
            { "close",       &worker::close,       false },
            { "info",        &worker::info,        true  },
            { "tokenize",    &worker::tokenize,    true  },
            { "detokenize",  &worker::detokenize,  true  },
            { "decode",      &worker::decode,      true  },
            { "embed",       &worker::embed,       true  },
            { "encode",      &worker::encode,      true  },
            { "greedy",      &worker::greedy,      true  },
            { "threads",     &worker::threads,     true  },
            { "seq_rm",      &worker::seq_rm,      true  },
            { "seq_cp",      &worker::seq_cp,      true  },
            { "seq_keep",    &worker::seq_keep,    true  },
            { "seq_add",     &worker::seq_add,     true  },
            { "seq_div",     &worker::seq_div,     true  },
            { "seq_pos",     &worker::seq_pos,     true  },
            { "clear",       &worker::clear,       true  },
            { "save",        &worker::save,        true  },
            { "load",        &worker::load,        true  },
            { "capture",     &worker::set_capture, true  },
            { "captured",    &worker::captured,    true  },
            { "abort",       &worker::set_abort,   true  },
            { "beside",      &worker::beside,      true  },
            { "train",       &worker::train,       true  },
            { "causal",      &worker::set_causal,  true  },
            { "less",        &worker::less,        true  },
            { "layers",      &worker::layers,      true  },
            { "slots",       &worker::slots,       true  },
            { "heads",       &worker::heads,       true  },
            { "profile",     &worker::profile,     true  },
            { "supported",   &worker::supported,   false },
            { "fingerprint", &worker::fingerprint, true  },
            { "floats",      &worker::floats,      false },
            { "memory",      &worker::memory,      false },
            { "fill",        &worker::fill,        true  },
            { "quantize",    &worker::quantize,    false },
            { "matmul",      &worker::matmul,      false },
            { "log",         &worker::take_log,    false },
        };
        log.errors.clear();
        for (const auto & v : verbs) {
            if (req.verb == v.name) {
                if (v.needs_context && !ctx) {
                    refuse("%s: no model is open", v.name);
                }
                reply out;
                (this->*v.run)(req, out);
                return out;
            }
        }
        refuse("unknown verb %.64s", req.verb.c_str());
    }

private:
    std::unique_ptr<llama_model,   free_model>   model;
    std::unique_ptr<llama_context, free_context> ctx;

    const llama_vocab * vocab      = nullptr;
    bool                embeddings = false;
    bool                unified    = false;
    bool                encoded    = false;
    bool                less_on    = false;
    bool                can_capture = false;
    capture             copies;
    abort_after         stop;
    std::string         config_error; // LESS writes to it while the context is made

    // Helpers

    std::string meta(const std::string & key) const {
        char value[256];
        return llama_model_meta_val_str(model.get(), key.c_str(), value, sizeof(value)) >= 0 ? value : "";
    }

    std::string arch() const { return meta("general.architecture"); }

    int64_t meta_number(const std::string & key, int64_t otherwise) const {
        const std::string value = meta(arch() + "." + key);
        return value.empty() ? otherwise : atoll(value.c_str());
    }

    // The reason of a failure that llama.cpp only logs.
    std::string with_reason(const std::string & what) const {
        std::string reason;
#ifdef LESSKV
        if (ctx && less_on) {
            reason = lesskv_error(ctx.get());
        }
#endif
        if (reason.empty()) {
            reason = log.errors;
        }
        while (!reason.empty() && reason.back() == '\n') {
            reason.pop_back();
        }
        return reason.empty() ? what : what + ": " + reason;
    }

    llama_memory_t cache() const { return llama_get_memory(ctx.get()); }

    int64_t n_seq() const { return llama_n_seq_max(ctx.get()); }

    int32_t seq_of(request & req, const char * key = "seq") const { return int32_t(req.integer(key, 0, n_seq() - 1)); }

    void check_tokens(const std::vector<int32_t> & tokens) const {
        const int32_t n = llama_vocab_n_tokens(vocab);
        for (size_t i = 0; i < tokens.size(); i++) {
            if (tokens[i] < 0 || tokens[i] >= n) {
                refuse("token %zu is %d: want 0 to %d", i, tokens[i], n - 1);
            }
        }
    }

    // ggml aborts where a row does not fill the blocks of a quantised type.
    void check_cache_type(const char * key, ggml_type type, const char * length_key) const {
        const int64_t n_head = std::max(1, llama_model_n_head(model.get()));
        const int64_t size   = meta_number(length_key, llama_model_n_embd(model.get())/n_head);
        if (size % ggml_blck_size(type) != 0) {
            refuse("%s=%s: heads of %lld do not fill its blocks of %lld", key, ggml_type_name(type), (long long) size, (long long) ggml_blck_size(type));
        }
    }

    // Opening

    void load_model(const std::string & path) {
        if (model) {
            refuse("a model is open: close it first");
        }
        if (path.empty()) {
            refuse("open wants path=FILE");
        }
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        model.reset(llama_model_load_from_file(path.c_str(), params));
        if (!model) {
            throw failure(with_reason("can't load " + path));
        }
        vocab = llama_model_get_vocab(model.get());
    }

    void release() {
        ctx.reset();
        model.reset();
        vocab   = nullptr;
        less_on = encoded = false;
        copies  = capture();
        stop    = abort_after();
    }

    void open(request & req, reply & out) {
        llama_context_params params = llama_context_default_params();
        const std::string path = req.text("path");
        params.n_ctx           = uint32_t(req.integer("n_ctx", 0, max_ctx, 0));
        params.n_batch         = uint32_t(req.integer("n_batch", 1, max_ctx, 2048));
        params.n_ubatch        = uint32_t(req.integer("n_ubatch", 1, params.n_batch, std::min(512u, params.n_batch)));
        params.n_seq_max       = uint32_t(req.integer("n_seq_max", 1, max_seq, 1));
        params.n_threads       = int32_t(req.integer("threads", 1, max_threads, 1));
        params.n_threads_batch = params.n_threads;
        params.type_k          = parse_type("type_k", req.text("type_k", "f16"));
        params.type_v          = parse_type("type_v", req.text("type_v", "f16"));
        params.flash_attn_type = req.flag("flash_attn", false) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        unified                = req.flag("kv_unified", false);
        params.kv_unified      = unified;
        params.swa_full        = req.flag("swa_full", true);
        embeddings             = req.flag("embeddings", false);
        params.embeddings      = embeddings;
        params.pooling_type    = LLAMA_POOLING_TYPE_NONE;
        params.rope_freq_base  = req.real("rope_base", 0);
        params.rope_freq_scale = req.real("rope_scale", 0);
        params.n_rs_seq        = uint32_t(req.integer("rollback", 0, 64, 0));
        can_capture            = req.flag("capture", false);
        if (can_capture) {
            params.cb_eval           = capture::callback;
            params.cb_eval_user_data = &copies;
        }

        if (req.flag("ahead", false)) {
            params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
        }

        const bool less = req.flag("less", false);
#ifdef LESSKV
        const std::string policy  = req.text("policy");
        const std::string adapter = req.text("adapter");
        const std::vector<int32_t> slots = parse_numbers("slots", req.text("slots"));
        config_error.assign(1024, '\0');
        lesskv_config config = lesskv_config_default();
        if (!policy.empty()) {
            config.policy = policy.c_str();
        }
        config.budget        = int32_t (req.integer("budget", INT32_MIN, max_i32, config.budget));
        config.budget_share  = req.real("budget_share", config.budget_share);
        config.budget_bytes  = uint64_t(req.integer("budget_bytes", 0, INT64_MAX, int64_t(config.budget_bytes)));
        config.budget_full   = req.real("budget_full", config.budget_full);
        config.slots         = slots.empty() ? nullptr : slots.data();
        config.n_slots       = int32_t (slots.size());
        config.heavy         = int32_t (req.integer("heavy",  INT32_MIN, max_i32, config.heavy));
        config.pinned        = int32_t (req.integer("pinned", INT32_MIN, max_i32, config.pinned));
        config.type_k        = parse_type("less_type_k", req.text("less_type_k", "f16"));
        config.type_v        = parse_type("less_type_v", req.text("less_type_v", "f16"));
        config.adapter       = adapter.c_str();
        config.force_adapter = req.flag("force_adapter", false);
        config.reference     = req.flag("reference", false);
        config.profile       = req.flag("profile", false);
        config.error         = &config_error[0];
        config.error_size    = config_error.size();
        if (less) {
            params.lesskv = &config;
        }
#else
        if (less) {
            refuse("less=1: this is the unmodified runtime, it has no LESS");
        }
        if (can_capture) {
            refuse("capture=1: only the LESS cache's attention can be captured");
        }
#endif
        req.done();

        load_model(path);
        try {
            check_cache_type("type_k", params.type_k, "attention.key_length");
            check_cache_type("type_v", params.type_v, "attention.value_length");
            ctx.reset(llama_init_from_model(model.get(), params));
            if (!ctx) {
                const std::string why = config_error.c_str();
                throw failure(why.empty() ? with_reason("can't make a context for " + path) : why);
            }
        } catch (...) {
            release();
            throw;
        }
#ifdef LESSKV
        less_on = lesskv_enabled(ctx.get());
#endif
        describe(out);
    }

    void close(request & req, reply &) {
        req.done();
        release();
    }

    void describe(reply & out) const {
        char desc[128];
        llama_model_desc(model.get(), desc, sizeof(desc));
        out.set("arch",        arch());
        out.set("desc",        desc);
        out.set("n_vocab",     llama_vocab_n_tokens(vocab));
        out.set("n_embd",      llama_model_n_embd(model.get()));
        out.set("n_layer",     llama_model_n_layer(model.get()));
        out.set("n_head",      llama_model_n_head(model.get()));
        out.set("n_head_kv",   llama_model_n_head_kv(model.get()));
        out.set("n_ctx_train", llama_model_n_ctx_train(model.get()));
        out.set("n_swa",       llama_model_n_swa(model.get()));
        out.set("n_ctx",       llama_n_ctx(ctx.get()));
        out.set("n_batch",     llama_n_batch(ctx.get()));
        out.set("n_ubatch",    llama_n_ubatch(ctx.get()));
        out.set("n_seq_max",   llama_n_seq_max(ctx.get()));
        out.set("n_reused",    llama_perf_context(ctx.get()).n_reused);
        out.set("less",        less_on);
    }

    void info(request & req, reply & out) {
        req.done();
        describe(out);
    }

    // Text

    void tokenize(request & req, reply & out) {
        const bool special = req.flag("special", true);
        const bool parse   = req.flag("parse", false);
        req.done();
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            refuse("the model has no tokenizer");
        }
        if (special && ((llama_vocab_get_add_bos(vocab) && llama_vocab_bos(vocab) < 0) ||
                        (llama_vocab_get_add_eos(vocab) && llama_vocab_eos(vocab) < 0))) {
            refuse("the model's vocabulary lacks a special token that it wants added: try special=0");
        }
        const char * text = req.payload.empty() ? "" : reinterpret_cast<const char *>(req.payload.data());
        const int32_t size = int32_t(req.payload.size());
        int32_t n = llama_tokenize(vocab, text, size, nullptr, 0, special, parse);
        if (n == INT32_MIN) {
            refuse("%d bytes make more tokens than fit", size);
        }
        std::vector<int32_t> tokens(std::abs(n));
        n = llama_tokenize(vocab, text, size, tokens.data(), int32_t(tokens.size()), special, parse);
        if (n != int32_t(tokens.size())) {
            refuse("tokenizing gave %d tokens, then %d", int(tokens.size()), n);
        }
        out.set("n", n);
        out.give(std::move(tokens));
    }

    void detokenize(request & req, reply & out) {
        const bool special = req.flag("special", false);
        req.done();
        const auto tokens = req.integers();
        check_tokens(tokens);
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
            refuse("the model has no tokenizer");
        }
        const int32_t n_tokens = int32_t(tokens.size());
        int32_t n = llama_detokenize(vocab, tokens.data(), n_tokens, nullptr, 0, false, special);
        std::vector<char> text(std::abs(n));
        n = llama_detokenize(vocab, tokens.data(), n_tokens, text.data(), int32_t(text.size()), false, special);
        text.resize(std::max(n, 0));
        out.give(std::move(text));
    }

    // Decoding

    struct batch {
        std::vector<int32_t>               token, pos, n_seq;
        std::vector<int8_t>                row;
        std::vector<std::vector<int32_t>>  seqs;
        std::vector<int32_t *>             seq;

        void add(int32_t t, int32_t p, bool r, const std::vector<int32_t> & s) {
            token.push_back(t);
            pos.push_back(p);
            row.push_back(r);
            n_seq.push_back(int32_t(s.size()));
            seqs.push_back(s);
        }

        llama_batch get() {
            seq.clear();
            for (auto & s : seqs) {
                seq.push_back(s.data());
            }
            return { int32_t(token.size()), token.data(), nullptr, pos.data(), n_seq.data(), seq.data(), row.data() };
        }
    };

    // What llama_decode would abort on.
    void check_batch(const batch & b, bool whole) const {
        const int64_t n = int64_t(b.token.size());
        if (n == 0) {
            refuse("no tokens");
        }
        if (n > int64_t(llama_n_batch(ctx.get()))) {
            refuse("%lld tokens: want at most n_batch = %u", (long long) n, llama_n_batch(ctx.get()));
        }
        if (whole && n > int64_t(llama_n_ubatch(ctx.get()))) {
            refuse("%lld tokens: attention is not causal, want at most n_ubatch = %u", (long long) n, llama_n_ubatch(ctx.get()));
        }
        check_tokens(b.token);
        for (int64_t i = 0; i < n; i++) {
            if (b.pos[i] < 0) {
                refuse("token %lld has position %d: want 0 or more", (long long) i, b.pos[i]);
            }
            for (const int32_t s : b.seqs[i]) {
                if (s < 0 || s >= n_seq()) {
                    refuse("token %lld is of sequence %d: want 0 to %lld", (long long) i, s, (long long) n_seq() - 1);
                }
            }
        }
    }

    batch read_batch(request & req) const {
        batch b;
        const auto v = req.integers();
        if (req.flag("each", false)) {
            req.done();
            constexpr size_t width = 5;
            if (v.size() % width != 0) {
                refuse("payload of %zu int32: want (token, pos, row, seq, other) for each token", v.size());
            }
            for (size_t i = 0; i < v.size(); i += width) {
                std::vector<int32_t> seqs = { v[i + 3] };
                if (v[i + 4] != -1) {
                    seqs.push_back(v[i + 4]);
                }
                b.add(v[i], v[i + 1], v[i + 2] != 0, seqs);
            }
            return b;
        }
        const std::string rows = req.text("rows", "last");
        if (rows != "none" && rows != "last" && rows != "all") {
            refuse("rows=%.64s: want none, last or all", rows.c_str());
        }
        const int32_t seq = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
        const int64_t pos = req.integer("pos", 0, max_i32 - int64_t(v.size()), 0);
        req.done();
        for (size_t i = 0; i < v.size(); i++) {
            b.add(v[i], int32_t(pos + int64_t(i)), rows == "all" || (rows == "last" && i + 1 == v.size()), { seq });
        }
        return b;
    }

    // Runs a batch. Returns microseconds.
    int64_t run(batch & b) {
        const int64_t start = llama_time_us();
        const int code = llama_decode(ctx.get(), b.get());
        llama_synchronize(ctx.get());
        if (code != 0) {
            throw failure(with_reason("llama_decode returned " + std::to_string(code)), code);
        }
        return llama_time_us() - start;
    }

    void decode(request & req, reply & out) {
        batch b = read_batch(req);
        const bool whole = !cache() || meta(arch() + ".attention.causal") == "false";
        check_batch(b, whole);
        if (!llama_model_has_decoder(model.get())) {
            refuse("the model has no decoder: use encode");
        }
        if (llama_model_has_encoder(model.get()) && !encoded) {
            refuse("the model has an encoder: encode first");
        }
        out.set("us", run(b));
        const int64_t n = cache() ? std::count(b.row.begin(), b.row.end(), 1) : int64_t(b.token.size());
        rows(n, out);
    }

    void embed(request & req, reply & out) {
        int32_t seq = seq_of(req);
        const auto v = req.integers();
        req.done();
        const auto   rope     = llama_model_rope_type(model.get());
        const size_t sections = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1;
        const size_t width    = llama_model_n_embd_inp(model.get());
        const size_t n        = v.size()/(sections + width);
        if (n == 0 || n*(sections + width) != v.size() || n > llama_n_batch(ctx.get())) {
            refuse("%zu values are no embeddings of %zu with %zu positions each, 1 to %u of them", v.size(), width, sections, llama_n_batch(ctx.get()));
        }
        std::vector<int32_t>   pos(v.begin(), v.begin() + n*sections);
        std::vector<float>     embd(n*width);
        std::vector<int32_t>   n_seq(n, 1);
        std::vector<int32_t *> seqs(n, &seq);
        std::vector<int8_t>    row(n, 0);
        memcpy(embd.data(), v.data() + n*sections, embd.size()*sizeof(float));
        row.back() = 1;
        for (const int32_t p : pos) {
            if (p < 0) {
                refuse("position %d: want 0 or more", p);
            }
        }
        const int64_t start = llama_time_us();
        const int code = llama_decode(ctx.get(), { int32_t(n), nullptr, embd.data(), pos.data(), n_seq.data(), seqs.data(), row.data() });
        llama_synchronize(ctx.get());
        if (code != 0) {
            throw failure(with_reason("llama_decode returned " + std::to_string(code)), code);
        }
        out.set("us", llama_time_us() - start);
        rows(1, out);
    }

    void encode(request & req, reply & out) {
        batch b = read_batch(req);
        check_batch(b, true);
        if (!llama_model_has_encoder(model.get()) && !less_on) { // LESS refuses it itself
            refuse("the model has no encoder that runs by itself: use decode");
        }
        const int code = llama_encode(ctx.get(), b.get());
        llama_synchronize(ctx.get());
        if (code != 0) {
            throw failure(with_reason("llama_encode returned " + std::to_string(code)), code);
        }
        encoded = true;
        rows(embeddings ? int64_t(b.token.size()) : 0, out);
    }

    // The first n rows of the output, which lie in the order of the batch.
    void rows(int64_t n, reply & out) {
        const int64_t width = embeddings ? llama_model_n_embd(model.get()) : llama_vocab_n_tokens(vocab);
        const float * data  = n == 0 ? nullptr : embeddings ? llama_get_embeddings(ctx.get()) : llama_get_logits(ctx.get());
        if (n > 0 && !data) {
            refuse("the model has no such output: try embeddings=%d", !embeddings);
        }
        out.set("rows",  n);
        out.set("width", width);
        out.lend(data, size_t(n*width)*sizeof(float));
    }

    void greedy(request & req, reply & out) {
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        const int64_t n    = req.integer("n", 0, max_ctx);
        int32_t token      = int32_t(req.integer("token", 0, n_vocab - 1));
        const int32_t seq  = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
        const int64_t pos  = req.integer("pos", 0, max_i32 - n);
        const bool    keep = req.flag("rows", false);
        req.done();
        if (!cache() || embeddings || llama_model_has_encoder(model.get())) {
            refuse("greedy wants a decoder with a cache, opened without embeddings=1");
        }

        std::vector<int32_t> tokens;
        std::vector<float>   all;
        int64_t us = 0;
        for (int64_t i = 0; i < n; i++) {
            batch b;
            b.add(token, int32_t(pos + i), true, { seq });
            us += run(b);
            const float * row = llama_get_logits(ctx.get());
            token = int32_t(std::max_element(row, row + n_vocab) - row);
            tokens.push_back(token);
            if (keep) {
                all.insert(all.end(), row, row + n_vocab);
            }
        }
        out.set("us", us);
        out.give(std::move(tokens));
        out.give(std::move(all));
    }

    void threads(request & req, reply &) {
        const int32_t n = int32_t(req.integer("n", 1, max_threads));
        req.done();
        llama_set_n_threads(ctx.get(), n, n);
    }

    // Sequences

    struct range { int32_t p0, p1; };

    static range range_of(request & req) {
        return { int32_t(req.integer("p0", -1, max_i32, -1)), int32_t(req.integer("p1", -1, max_i32, -1)) };
    }

    // llama.cpp aborts on shifting a cache that can't be. LESS answers for itself.
    void check_shift() const {
        const auto rope = llama_model_rope_type(model.get());
        if (!less_on && (!llama_memory_can_shift(cache()) || rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE)) {
            refuse("this cache can't be shifted");
        }
    }

    void seq_rm(request & req, reply &) {
        const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1));
        const range r = range_of(req);
        req.done();
        if (!llama_memory_seq_rm(cache(), seq, r.p0, r.p1)) {
            throw failure(with_reason("seq_rm was refused"));
        }
    }

    void seq_cp(request & req, reply &) {
        const int32_t from = seq_of(req, "from");
        const int32_t to   = seq_of(req, "to");
        const range r = range_of(req);
        req.done();
        if (!less_on && !unified && from != to && (r.p0 > 0 || r.p1 >= 0)) {
            refuse("a part of a sequence can't be copied unless kv_unified=1");
        }
        llama_memory_seq_cp(cache(), from, to, r.p0, r.p1);
    }

    void seq_keep(request & req, reply &) {
        const int32_t seq = seq_of(req);
        req.done();
        llama_memory_seq_keep(cache(), seq);
    }

    void seq_add(request & req, reply &) {
        const int32_t seq = seq_of(req);
        const range r = range_of(req);
        const int32_t delta = int32_t(req.integer("delta", -max_ctx, max_ctx));
        req.done();
        check_shift();
        llama_memory_seq_add(cache(), seq, r.p0, r.p1, delta);
    }

    void seq_div(request & req, reply &) {
        const int32_t seq = seq_of(req);
        const range r = range_of(req);
        const int32_t by = int32_t(req.integer("by", 1, max_ctx));
        req.done();
        check_shift();
        llama_memory_seq_div(cache(), seq, r.p0, r.p1, by);
    }

    void seq_pos(request & req, reply & out) {
        const int32_t seq = seq_of(req);
        req.done();
        out.set("min", llama_memory_seq_pos_min(cache(), seq));
        out.set("max", llama_memory_seq_pos_max(cache(), seq));
    }

    void clear(request & req, reply &) {
        req.done();
        llama_memory_clear(cache(), true);
    }

    // States

    void save(request & req, reply & out) {
        const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1, -1));
        const std::string file = req.text("file");
        const llama_state_seq_flags flags = llama_state_seq_flags(req.integer("flags", 0, max_i32, 0));
        req.done();
        if (!file.empty()) {
            const auto tokens = req.integers();
            const bool ok = seq < 0
                ? llama_state_save_file(ctx.get(), file.c_str(), tokens.data(), tokens.size())
                : llama_state_seq_save_file(ctx.get(), file.c_str(), seq, tokens.data(), tokens.size()) > 0;
            if (!ok) {
                throw failure(with_reason("can't save the state to " + file));
            }
            return;
        }
        std::vector<uint8_t> state(seq < 0 ? llama_state_get_size(ctx.get()) : llama_state_seq_get_size_ext(ctx.get(), seq, flags));
        const size_t n = seq < 0
            ? llama_state_get_data(ctx.get(), state.data(), state.size())
            : llama_state_seq_get_data_ext(ctx.get(), state.data(), state.size(), seq, flags);
        if (state.empty() || n != state.size()) {
            throw failure(with_reason("can't save the state"));
        }
        out.give(std::move(state));
    }

    // A whole state begins with the architecture's name, which llama.cpp would allocate for as long as it finds it.
    void check_whole_state(const std::vector<uint8_t> & head) const {
        const std::string want = arch();
        uint32_t size = 0;
        if (head.size() >= sizeof(size)) {
            memcpy(&size, head.data(), sizeof(size));
        }
        if (size != want.size() || head.size() < sizeof(size) + size || memcmp(head.data() + sizeof(size), want.data(), size) != 0) {
            refuse("not the state of a %s model", want.c_str());
        }
    }

    // The number of tokens kept in a state file, of which a whole state is checked.
    size_t check_state_file(const std::string & file, bool whole) const {
        std::unique_ptr<FILE, int (*)(FILE *)> f(fopen(file.c_str(), "rb"), fclose);
        uint32_t head[3] = {}; // magic, version, tokens
        if (!f || fread(head, sizeof(head), 1, f.get()) != 1) {
            refuse("%s: %s", file.c_str(), f ? "too short for a state" : strerror(errno));
        }
        fseek(f.get(), 0, SEEK_END);
        const long end = ftell(f.get());
        if (end < 0 || uint64_t(head[2])*sizeof(int32_t) + sizeof(head) > uint64_t(end)) {
            refuse("%s: %u tokens do not fit in %ld bytes", file.c_str(), head[2], end);
        }
        if (whole && head[0] == LLAMA_SESSION_MAGIC) {
            std::vector<uint8_t> rest(512);
            fseek(f.get(), long(sizeof(head) + head[2]*sizeof(int32_t)), SEEK_SET);
            rest.resize(fread(rest.data(), 1, rest.size(), f.get()));
            check_whole_state(rest);
        }
        return head[2];
    }

    void load(request & req, reply & out) {
        const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1, -1));
        const std::string file = req.text("file");
        const llama_state_seq_flags flags = llama_state_seq_flags(req.integer("flags", 0, max_i32, 0));
        req.done();
        if (!file.empty()) {
            std::vector<int32_t> tokens(check_state_file(file, seq < 0));
            size_t n = 0;
            const bool ok = seq < 0
                ? llama_state_load_file(ctx.get(), file.c_str(), tokens.data(), tokens.size(), &n)
                : llama_state_seq_load_file(ctx.get(), file.c_str(), seq, tokens.data(), tokens.size(), &n) > 0;
            if (!ok) {
                throw failure(with_reason("can't load the state from " + file));
            }
            out.give(std::move(tokens));
            return;
        }
        if (seq < 0) {
            check_whole_state(req.payload);
        }
        const size_t n = seq < 0
            ? llama_state_set_data(ctx.get(), req.payload.data(), req.payload.size())
            : llama_state_seq_set_data_ext(ctx.get(), req.payload.data(), req.payload.size(), seq, flags);
        if (n == 0) {
            throw failure(with_reason("can't load the state"));
        }
        out.set("bytes", int64_t(n));
    }

    // What only some contexts can do

    // A context of another model that takes part in this one's.
    void beside(request & req, reply &) {
        const std::string path = req.text("path");
        req.done();
        const std::unique_ptr<llama_model, decltype(&llama_model_free)> other(llama_model_load_from_file(path.c_str(), llama_model_default_params()), llama_model_free);
        if (!other) {
            throw failure(with_reason("can't load " + path));
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx     = llama_n_ctx(ctx.get());
        params.ctx_other = ctx.get();
        const std::unique_ptr<llama_context, decltype(&llama_free)> made(llama_init_from_model(other.get(), params), llama_free);
        if (!made) {
            throw failure("can't make a context for " + path + ": " + log.errors); // the open one's last error is another's
        }
    }

    // Asks LESS to be trained, which it refuses. Without it, there would have to be something to train.
    void train(request & req, reply &) {
        req.done();
        if (!less_on) {
            refuse("train: open with less=1 first");
        }
        llama_opt_params params = {};
        llama_opt_init(ctx.get(), model.get(), params);
        llama_opt_epoch(ctx.get(), nullptr, nullptr, nullptr, 0, nullptr, nullptr);
        throw failure(with_reason("can't train"));
    }

    // Looking inside

    void set_capture(request & req, reply &) {
        const std::string which = req.text("layers", "all");
        req.done();
        if (!can_capture) {
            refuse("open with capture=1 first");
        }
        std::set<int> some;
        if (which != "all" && which != "none") {
            for (const char * s = which.c_str(); *s;) {
                char * end = nullptr;
                const long il = strtol(s, &end, 10);
                if (end == s || (*end != '\0' && *end != ',') || il < 0 || il >= llama_model_n_layer(model.get())) {
                    refuse("layers=%.64s: want all, none, or numbers below %d with commas between", which.c_str(), llama_model_n_layer(model.get()));
                }
                some.insert(int(il));
                s = *end ? end + 1 : end;
            }
        }
        copies.all    = which == "all";
        copies.layers = std::move(some);
    }

    void captured(request & req, reply & out) {
        req.done();
        out.set("n", copies.n);
        out.give(std::move(copies.records));
        copies.records = {};
        copies.n       = 0;
    }

    void set_abort(request & req, reply &) {
        stop.left = req.integer("after", -1, max_i32);
        req.done();
        const bool on = stop.left >= 0;
        llama_set_abort_callback(ctx.get(), on ? abort_after::callback : nullptr, on ? &stop : nullptr);
    }

    void set_causal(request & req, reply &) {
        const bool on = req.flag("on", true);
        req.done();
        llama_set_causal_attn(ctx.get(), on);
    }

    // What a model's file holds in a quantised type.
    void floats(request & req, reply & out) {
        const auto    type = ggml_type(req.integer("type", 0, GGML_TYPE_COUNT - 1));
        const int64_t n    = req.integer("n", 1, int64_t(max_payload/sizeof(float)));
        req.done();
        const auto * traits = ggml_get_type_traits(type);
        if (!traits->to_float || n % traits->blck_size != 0) {
            refuse("type %d: can't make float32 of %lld elements", int(type), (long long) n);
        }
        const size_t want = size_t(n/traits->blck_size)*traits->type_size;
        if (req.payload.size() != want) {
            refuse("payload of %zu bytes: want %zu for %lld elements of %s", req.payload.size(), want, (long long) n, traits->type_name);
        }
        std::vector<float> v(n);
        traits->to_float(req.payload.data(), v.data(), n);
        out.give(std::move(v));
    }

    void memory(request & req, reply & out) {
        const bool reset = req.flag("reset", false);
        req.done();
        if (reset) {
            bench::reset_peak();
        }
        const memory_use use;
        out.set("rss",  use.rss);
        out.set("peak", use.peak);
        out.set("anon", use.anon);
    }

    // For lesskv bench: worker_bench.h

    void fill(request & req, reply &) {
        const int32_t seq = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
        const int64_t n   = req.integer("n", 1, llama_n_ctx(ctx.get()));
        req.done();
        if (less_on || !cache() || llama_memory_seq_pos_min(cache(), seq) != 0) {
            refuse("fill: want an unmodified cache that holds a sequence from position 0 on");
        }
        std::vector<uint8_t> state(llama_state_seq_get_size(ctx.get(), seq));
        llama_state_seq_get_data(ctx.get(), state.data(), state.size(), seq);
        state = bench::grower(state, uint32_t(n)).grow();
        llama_memory_seq_rm(cache(), seq, -1, -1);
        if (llama_state_seq_set_data(ctx.get(), state.data(), state.size(), seq) != state.size()) {
            throw failure(with_reason("can't fill the cache"));
        }
    }

    void quantize(request & req, reply &) {
        const std::string from = req.text("from");
        const std::string to   = req.text("to");
        auto params = llama_model_quantize_default_params();
        params.ftype   = bench::file_type(req.text("type"));
        params.nthread = int32_t(req.integer("threads", 1, max_threads, 1));
        req.done();
        if (llama_model_quantize(from.c_str(), to.c_str(), &params) != 0) {
            throw failure(with_reason("can't quantise " + from));
        }
    }

    void matmul(request & req, reply & out) {
        const int64_t d        = req.integer("d",        1, 1 << 12);
        const int64_t pairs    = req.integer("pairs",    1, 1 << 20);
        const int64_t tokens   = req.integer("tokens",   1, 1 << 14);
        const int64_t heads_kv = req.integer("heads_kv", 1, 1 << 10);
        const int64_t heads    = req.integer("heads", heads_kv, 1 << 10);
        const int     threads  = int(req.integer("threads", 1, max_threads));
        const int     rounds   = int(req.integer("rounds", 1, 1000, 5));
        req.done();
        if (heads % heads_kv != 0 || tokens*heads*(2*d + 2*pairs) > int64_t(1) << 31) {
            refuse("matmul: %lld heads of %lld KV heads, or too large", (long long) heads, (long long) heads_kv);
        }
        out.set("us", bench::matmul_us(d, pairs, tokens, heads, heads_kv, threads, rounds));
    }

    void take_log(request & req, reply & out) {
        req.done();
        out.give(std::vector<char>(log.all.begin(), log.all.end()));
        log.all.clear();
    }

#ifdef LESSKV
    void less(request & req, reply & out) {
        req.done();
        lesskv_info i;
        if (!lesskv_get_info(ctx.get(), &i)) {
            refuse("the context has no LESS cache");
        }
        out.set("policy",          i.policy);
        out.set("budget",          i.budget);
        out.set("heavy",           i.heavy);
        out.set("recent",          i.recent);
        out.set("pinned",          i.pinned);
        out.set("n_layer",         i.n_layer);
        out.set("n_layer_swa",     i.n_layer_swa);
        out.set("n_layer_shared",  i.n_layer_shared);
        out.set("n_layer_kernels", i.n_layer_kernels);
        out.set("rank",            i.rank);
        out.set("hidden",          i.hidden);
        out.set("n_seq",           i.n_seq);
        out.set("bytes_slots",     int64_t(i.bytes_slots));
        out.set("bytes_state",     int64_t(i.bytes_state));
        out.set("bytes_kernels",   int64_t(i.bytes_kernels));
        out.set("bytes_scratch",   int64_t(i.bytes_scratch));
        out.set("bytes_full",      int64_t(i.bytes_full));
        out.set("bytes_recurrent", int64_t(i.bytes_recurrent));
        out.set("adapter_sha256",  i.adapter_sha256);
        out.set("error",           lesskv_error(ctx.get()));
    }

    void layers(request & req, reply & out) {
        const int32_t seq = seq_of(req);
        req.done();
        std::vector<int64_t> v;
        std::vector<float>   scales;
        lesskv_layer_info i;
        int32_t n = 0;
        for (; lesskv_get_layer(ctx.get(), seq, n, &i); n++) {
            for (const int64_t x : { int64_t(i.il), int64_t(i.swa), int64_t(i.kernels), i.seen, i.kept, i.folded, int64_t(i.bytes_slots), int64_t(i.bytes_state) }) {
                v.push_back(x);
            }
            scales.push_back(i.scale);
            scales.push_back(i.soft_cap);
        }
        out.set("n", n);
        out.give(std::move(v));
        out.give(std::move(scales));
    }

    // layer, KV head, budget and heavy of every head that has a budget
    void heads(request & req, reply & out) {
        req.done();
        std::vector<int64_t> v;
        lesskv_head_info i;
        for (int32_t il = 0; il < llama_model_n_layer(model.get()); il++) {
            for (int32_t j = 0; lesskv_get_head(ctx.get(), il, j, &i); j++) {
                for (const int64_t x : { int64_t(il), int64_t(j), int64_t(i.budget), int64_t(i.heavy) }) {
                    v.push_back(x);
                }
            }
        }
        out.set("n", int64_t(v.size()/4));
        out.give(std::move(v));
    }

    void slots(request & req, reply & out) {
        const int32_t seq   = seq_of(req);
        const int32_t layer = int32_t(req.integer("layer", 0, llama_model_n_layer(model.get()) - 1));
        const int32_t head  = int32_t(req.integer("head", 0, max_i32));
        req.done();
        lesskv_info i;
        if (!lesskv_get_info(ctx.get(), &i)) {
            refuse("the context has no LESS cache");
        }
        const size_t max = size_t(llama_n_ctx(ctx.get())) + size_t(llama_model_n_swa(model.get())); // no head has more
        std::vector<int32_t> pos(max);
        std::vector<float>   score(max);
        const int32_t n = lesskv_get_slots(ctx.get(), seq, layer, head, int32_t(max), pos.data(), score.data());
        if (n < 0) {
            refuse("sequence %d, layer %d has no slots of a head %d", seq, layer, head);
        }
        pos.resize(n);
        score.resize(n);
        out.set("n", n);
        out.give(std::move(pos));
        out.give(std::move(score));
    }

    void profile(request & req, reply & out) {
        req.done();
        lesskv_profile_info i;
        std::string names;
        std::vector<int64_t> ns;
        for (int32_t n = 0; lesskv_get_profile(ctx.get(), n, &i); n++) {
            names += std::string(names.empty() ? "" : ",") + i.name;
            ns.push_back(int64_t(i.ns));
        }
        if (ns.empty()) {
            refuse("open with less=1 profile=1 first");
        }
        out.set("names",  names);
        out.set("attend", int64_t(i.attend));
        out.set("commit", int64_t(i.commit));
        out.give(std::move(ns));
        lesskv_reset_profile(ctx.get());
    }

    void supported(request & req, reply & out) {
        const std::string path = req.text("path");
        req.done();
        load_model(path);
        char reason[1024] = "";
        const bool ok = lesskv_supported(model.get(), reason, sizeof(reason));
        release();
        out.set("supported", ok);
        out.set("reason", reason);
    }

    void fingerprint(request & req, reply & out) {
        req.done();
        char hex[65];
        if (!lesskv_fingerprint(model.get(), hex)) {
            refuse("the model has no fingerprint");
        }
        out.set("hex", hex);
    }
#else
    [[noreturn]] static void no_less(const request & req) {
        refuse("%s: this is the unmodified runtime, it has no LESS", req.verb.c_str());
    }
    void less       (request & req, reply &) { no_less(req); }
    void layers     (request & req, reply &) { no_less(req); }
    void slots      (request & req, reply &) { no_less(req); }
    void heads      (request & req, reply &) { no_less(req); }
    void profile    (request & req, reply &) { no_less(req); }
    void supported  (request & req, reply &) { no_less(req); }
    void fingerprint(request & req, reply &) { no_less(req); }
#endif
};

// ggml's last words, without the debugger that it would start.
void last_words(const char * message) {
    fprintf(stderr, "%s\n", message);
    fflush(stderr);
}

// Answers until the input ends or nobody listens any more.
bool serve(FILE * in, FILE * out) {
    worker w;
    llama_log_set(log_lines::add, &w.log);
    for (;;) {
        request req;
        bool sent;
        try {
            if (!receive(in, req)) {
                return true;
            }
            if (req.verb == "quit") {
                return reply().send(out);
            }
            sent = w.answer(req).send(out);
        } catch (const failure & e) {
            sent = send_error(out, e.code, e.what());
        } catch (const std::exception & e) {
            sent = send_error(out, -1, req.verb + ": " + e.what());
        }
        if (!sent) {
            return false;
        }
    }
}

} // namespace

int main() {
    // Replies have the pipe for themselves: whatever else prints to standard output goes to standard error.
    const int fd = dup(STDOUT_FILENO);
    FILE * out = fd < 0 ? nullptr : fdopen(fd, "wb");
    if (!out || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
        perror("worker: standard output");
        return 1;
    }

    ggml_set_abort_callback(last_words);
    llama_backend_init();
    const bool ok = serve(stdin, out);
    llama_log_set(nullptr, nullptr);
    llama_backend_free();
    return ok ? 0 : 1;
}
