// worker.cpp: llama.cpp behind a pipe, for verification.
//
// One process cannot hold the patched and the unmodified runtime. So this program is built once against each, and a test
// talks to both over standard input and output. With -DLESSKV it knows the LESS cache; without, it says that it doesn't.
// The framing is in worker_wire.h, the verbs in worker_*.cpp. One model and one context are open at a time. Every number is checked here, because
// llama.cpp aborts on many a bad one; what a saved state holds is llama.cpp's to check. Log lines of warnings and errors
// go to standard error, all of them to the verb log.
//
// Keys with a default are optional. seq is below n_seq_max; p0, p1: -1 stands for 0 and for infinity.
//
//     open       path, n_ctx=0 (the model's), n_batch=2048, n_ubatch=512, n_seq_max=1, threads=1, type_k=f16, type_v=f16
//                (f32 f16 q8_0 q4_0), flash_attn=0, kv_unified=0, swa_full=1, embeddings=0, capture=0, mmap=1, rope_base=0,
//                rope_scale=0 (the model's), rollback=0 (n_rs_seq), offload_kqv=1, ahead=0 (of the layers that predict further tokens)
//                gpu_layers=0, rpc="" (host:port of servers, with commas): layers on their devices and this machine's; pretend="",
//                lacks="": on the CPU instead, under a device's name and without an operation
//                less=0, and with less=1 the fields of lesskv_config: policy, budget, budget_share, budget_bytes, budget_full, slots (with
//                commas), heavy, pinned, less_type_k, less_type_v (f16; "q8_0,0=q4_0": of layer 0 another), adapter, force_adapter,
//                reference, on_device, profile
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
//                that the file keeps beside it. flags=0: llama_state_seq_flags, of a sequence without a file
//     load       seq=-1 file="" flags=0, payload: the state -> bytes read; with a file payload: the int32 tokens
//     capture    layers=all (none, all, or 0,1,...), ends=0, throws=0: what is copied from now on; the context was opened with capture=1.
//                The callback ends each graph behind the first layer that is copied with ends=1, and throws there with throws=1
//     captured   -> n, payload: n records of what was copied since, in the order of computation, and forgets them: int32 il,
//                n_tokens T, n_head Hq, n_head_kv Hkv, dk D, dv Dv, then float32 q [T][Hq][D], k [T][Hkv][D],
//                v [T][Hkv][Dv] as the cache has rounded them, out [T][Hq][Dv]; where slots are quantised and
//                64 divides the head size, all four rotated (lesskv_layer.rotation)
//     abort      after (-1: never): the next decode is aborted once that many graph nodes and one more were computed
//     beside     path: a context of another model that takes part in this one's
//     train      llama_opt_init and llama_opt_epoch, which LESS refuses
//     causal     on: llama_set_causal_attn
//     less       -> lesskv_info, level and ggml_level as lesskv_levels says them, and error: why the last thing that LESS refused was refused
//     layers     seq -> n, payload: int64 (il swa kernels seen kept folded bytes_slots bytes_state rank hidden) for each layer, then
//                float32 (softmax scale, soft cap or 0) for each
//     slots      seq layer head -> n, payload: int32 positions [n], float32 scores [n]
//     heads      -> n, payload: int64 (layer, KV head, budget, heavy) for each head that has a budget
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
//     splits     n=1 -> splits copies bytes device_weights device_cache device_compute: of a graph for n tokens, between how many parts the
//                device changes, how many tensors are copied for that, and their bytes; and the bytes in memory that is no host's
//     device_memory rpc= -> free: bytes on all devices that layers can be put on, those of the servers among them
//     log        -> payload: llama.cpp's log since the last time
//     quit

#include "worker.h"

#include <unistd.h>

#include <cstdio>

reply worker::answer(request & req) {
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
        { "splits",      &worker::splits,      true  },
        { "device_memory", &worker::device_memory, false },
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

std::string worker::meta(const std::string & key) const {
    char value[256];
    return llama_model_meta_val_str(model.get(), key.c_str(), value, sizeof(value)) >= 0 ? value : "";
}

int64_t worker::meta_number(const std::string & key, int64_t otherwise) const {
    const std::string value = meta(arch() + "." + key);
    return value.empty() ? otherwise : atoll(value.c_str());
}

// The reason of a failure that llama.cpp only logs.
std::string worker::with_reason(const std::string & what) const {
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

namespace {

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
            if (!wire::receive(in, req)) {
                return true;
            }
            if (req.verb == "quit") {
                return reply().send(out);
            }
            sent = w.answer(req).send(out);
        } catch (const failure & e) {
            sent = wire::send_error(out, e.code, e.what());
        } catch (const std::exception & e) {
            sent = wire::send_error(out, -1, req.verb + ": " + e.what());
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
