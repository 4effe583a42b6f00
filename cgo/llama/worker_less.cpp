// worker_less.cpp: what a LESS cache says of itself.

#include "worker.h"

#ifdef LESSKV
void worker::less(request & req, reply & out) {
    req.done();
    lesskv_info i;
    if (!lesskv_get_info(ctx.get(), &i)) {
        refuse("the context has no LESS cache");
    }
    const char * level, * ggml_level;
    lesskv_levels(&level, &ggml_level);
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
    out.set("level",           level);
    out.set("ggml_level",      ggml_level);
    out.set("error",           lesskv_error(ctx.get()));
}

void worker::layers(request & req, reply & out) {
    const int32_t seq = seq_of(req);
    req.done();
    std::vector<int64_t> v;
    std::vector<float>   scales;
    lesskv_layer_info i;
    int32_t n = 0;
    for (; lesskv_get_layer(ctx.get(), seq, n, &i); n++) {
        for (const int64_t x : { int64_t(i.il), int64_t(i.swa), int64_t(i.kernels), i.seen, i.kept, i.folded, int64_t(i.bytes_slots), int64_t(i.bytes_state), int64_t(i.rank), int64_t(i.hidden) }) {
            v.push_back(x);
        }
        scales.push_back(i.scale);
        scales.push_back(i.soft_cap);
    }
    out.set("n", n);
    out.give(std::move(v));
    out.give(std::move(scales));
}

void worker::heads(request & req, reply & out) {
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

void worker::slots(request & req, reply & out) {
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

void worker::profile(request & req, reply & out) {
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

void worker::supported(request & req, reply & out) {
    const std::string path = req.text("path");
    req.done();
    load_model(path, true, 0, "");
    char reason[1024] = "";
    const bool ok = lesskv_supported(model.get(), reason, sizeof(reason));
    release();
    out.set("supported", ok);
    out.set("reason", reason);
}

void worker::fingerprint(request & req, reply & out) {
    req.done();
    char hex[65];
    if (!lesskv_fingerprint(model.get(), hex)) {
        refuse("the model has no fingerprint");
    }
    out.set("hex", hex);
}
#else
namespace {

[[noreturn]] void no_less(const request & req) {
    refuse("%s: this is the unmodified runtime, it has no LESS", req.verb.c_str());
}

} // namespace

void worker::less       (request & req, reply &) { no_less(req); }
void worker::layers     (request & req, reply &) { no_less(req); }
void worker::slots      (request & req, reply &) { no_less(req); }
void worker::heads      (request & req, reply &) { no_less(req); }
void worker::profile    (request & req, reply &) { no_less(req); }
void worker::supported  (request & req, reply &) { no_less(req); }
void worker::fingerprint(request & req, reply &) { no_less(req); }
#endif
