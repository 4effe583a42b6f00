// worker_open.cpp: a model and its context, opened, described and closed.

#include "worker.h"

#include "devices.h"

namespace {

ggml_type parse_type(const char * key, const std::string & name) {
    for (const ggml_type t : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        if (name == ggml_type_name(t)) {
            return t;
        }
    }
    refuse("%s=%.64s: want f32, f16, q8_0 or q4_0", key, name.c_str());
}

} // namespace

// ggml aborts where a row does not fill the blocks of a quantised type.
void worker::check_cache_type(const char * key, ggml_type type, const char * length_key) const {
    const int64_t n_head = std::max(1, llama_model_n_head(model.get()));
    const int64_t size   = meta_number(length_key, llama_model_n_embd(model.get())/n_head);
    if (size % ggml_blck_size(type) != 0) {
        refuse("%s=%s: heads of %lld do not fill its blocks of %lld", key, ggml_type_name(type), (long long) size, (long long) ggml_blck_size(type));
    }
}

// The types of each layer's slots: "q8_0" of all, "q8_0,0=q4_0,5=f16" of layers 0 and 5 others; default: the runtime's.
std::vector<int32_t> worker::slot_types(const char * key, const std::string & text) const {
    const auto parse = [&](const std::string & name) { return name == "default" ? -1 : int32_t(parse_type(key, name)); };
    size_t at = text.find(',');
    std::vector<int32_t> types(llama_model_n_layer(model.get()), parse(text.substr(0, at)));
    while (at != std::string::npos) {
        const size_t next = text.find(',', at + 1), is = std::min(text.find('=', at), next);
        const std::string layer = text.substr(at + 1, is - at - 1);
        const auto il = wire::numbers(key, layer, 0, int32_t(types.size()) - 1);
        if (is == next || il.size() != 1) {
            refuse("%s=%.64s: want a type, and LAYER=TYPE of layers 0 to %zu", key, text.c_str(), types.size() - 1);
        }
        types[il[0]] = parse(text.substr(is + 1, next - is - 1));
        at = next;
    }
    return types;
}

void worker::load_model(const std::string & path, bool mapped, int32_t n_gpu_layers, const std::string & rpc, ggml_backend_dev_t other) {
    if (model) {
        refuse("a model is open: close it first");
    }
    if (path.empty()) {
        refuse("open wants path=FILE");
    }
    llama_model_params params = llama_model_default_params();
    auto list = other ? std::vector<ggml_backend_dev_t>{ other, nullptr } : devices::all(rpc);
    if (n_gpu_layers > 0 && list.size() == 1) {
        refuse("gpu_layers=%d: there is no device for them: assemble the runtime with -backend, look for its driver, or name servers", n_gpu_layers);
    }
    params.load_mode    = mapped ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers = n_gpu_layers;
    params.devices      = list.data();
    model.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        throw failure(with_reason("can't load " + path));
    }
    vocab = llama_model_get_vocab(model.get());
}

void worker::release() {
    ctx.reset();
    model.reset();
    vocab   = nullptr;
    less_on = encoded = false;
    copies  = capture();
    stop    = abort_after();
}

void worker::open(request & req, reply & out) {
    llama_context_params params = llama_context_default_params();
    const std::string path   = req.text("path");
    const std::string rpc    = req.text("rpc");
    const bool        mapped = req.flag("mmap", true);
    const std::string pretend = req.text("pretend");
    const std::string lacks   = req.text("lacks");
    const int32_t     layers = int32_t(req.integer("gpu_layers", 0, max_i32, 0));
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
    params.offload_kqv     = req.flag("offload_kqv", true);
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
    const std::vector<int32_t> slots = wire::numbers("slots", req.text("slots"), INT32_MIN, max_i32);
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
    const std::string type_k  = req.text("less_type_k", "f16"); // f16 where none is given: what is measured says what it is
    const std::string type_v  = req.text("less_type_v", "f16");
    config.adapter       = adapter.c_str();
    config.force_adapter = req.flag("force_adapter", false);
    config.reference     = req.flag("reference", false);
    config.device        = req.flag("on_device", false);
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

    load_model(path, mapped, layers, rpc, pretend.empty() ? nullptr : pretended_device(pretend, lacks));
    try {
#ifdef LESSKV
        const auto types_k = slot_types("less_type_k", type_k), types_v = slot_types("less_type_v", type_v);
        config.layer_type_k  = types_k.data();
        config.layer_type_v  = types_v.data();
        config.n_layer_types = int32_t(types_k.size());
#endif
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

void worker::close(request & req, reply &) {
    req.done();
    release();
}

void worker::describe(reply & out) const {
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

void worker::info(request & req, reply & out) {
    req.done();
    describe(out);
}
