// Loading a model and making its context.

#include "binding_impl.h"

#include "devices.h"
#include "lesskv-cpu.h"

#include "llama-model.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include <sys/stat.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace binding {

less_config::less_config(const lesskv_config * from) {
    if (!from) {
        return;
    }
    on      = true;
    config  = *from;
    policy  = from->policy  ? from->policy  : "";
    adapter = from->adapter ? from->adapter : "";
}

lesskv_config less_config::get() const {
    lesskv_config c = config;
    c.policy     = policy.c_str();
    c.adapter    = adapter.c_str();
    c.error      = nullptr;
    c.error_size = 0;
    return c;
}

session::session(model & m, bool whole) : m(m) {
    if (m.busy.exchange(true)) {
        fail(LLAMA_BINDING_BUSY, "the model is serving another call: one at a time, or load it twice");
    }
    try {
        if (whole && m.main.broken) {
            m.main = new_sequence(m);
        }
    } catch (...) {
        m.busy = false;
        throw;
    }
}

session::~session() {
    m.interrupted = false;
    m.busy = false;
}

// llama.cpp's own answer to these is a line in the log, after it has printed a good deal.
static void check_file(const char * path) {
    struct stat st;
    if (stat(path, &st) != 0) {
        fail(LLAMA_BINDING_MODEL, "%s: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        fail(LLAMA_BINDING_MODEL, "%s is not a file: give the path of a .gguf file", path);
    }
    std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(path, "rb"), fclose);
    if (!file) {
        fail(LLAMA_BINDING_MODEL, "%s: %s", path, strerror(errno));
    }
    unsigned char magic[4] = {};
    if (st.st_size < (off_t) sizeof(magic)) {
        fail(LLAMA_BINDING_MODEL, "%s is not a GGUF file: it has %d bytes; copy or make it again", path, (int) st.st_size);
    }
    if (fread(magic, 1, sizeof(magic), file.get()) != sizeof(magic) || memcmp(magic, "GGUF", 4) != 0) {
        fail(LLAMA_BINDING_MODEL, "%s is not a GGUF file: it begins with the bytes %02x %02x %02x %02x, not with \"GGUF\"",
                path, magic[0], magic[1], magic[2], magic[3]);
    }
}

// What ggml asserts while it computes, where nothing can be caught.
static void check_numbers(const char * path, const llama_hparams & h) {
    for (const float eps : { h.f_norm_eps, h.f_norm_rms_eps, h.f_norm_group_eps }) {
        if (!std::isfinite(eps) || eps < 0.0f) {
            fail(LLAMA_BINDING_MODEL, "%s: the epsilon of its norms is %g: the file is damaged", path, eps);
        }
    }
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        const bool rotates = h.rope_type != LLAMA_ROPE_TYPE_NONE && h.n_head(il) > 0 && h.has_rope(il); // ggml never ends where that is of 0 dimensions
        if (h.n_rot(il) % 2 != 0 || h.n_rot(il) > h.n_embd_head_k(il) || (rotates && h.n_rot(il) == 0)) {
            fail(LLAMA_BINDING_MODEL, "%s: %u dimensions are rotated, of heads of %u: the file is damaged", path, h.n_rot(il), h.n_embd_head_k(il));
        }
    }
    const auto & sections = h.rope_sections;
    const int64_t dims = (int64_t) sections[0] + sections[1] + sections[2] + sections[3];
    if ((h.rope_type == LLAMA_ROPE_TYPE_MROPE || h.rope_type == LLAMA_ROPE_TYPE_IMROPE) &&
        (*std::min_element(sections.begin(), sections.end()) < 0 || dims == sections[3] || dims > h.n_embd_head_k(0))) {
        fail(LLAMA_BINDING_MODEL, "%s: the sections of its M-RoPE are %d, %d, %d and %d, of heads of %u: the file is damaged", path,
                sections[0], sections[1], sections[2], sections[3], h.n_embd_head_k(0));
    }
}

// Upstream's defaults, 10000 and 1, and 0 mean what the model says.
static float rope_setting(const char * name, float value, float standard) {
    if (!std::isfinite(value) || value < 0.0f) {
        fail(LLAMA_BINDING_ARGUMENT, "%s is %g: want a number above 0, or 0 for the model's own", name, value);
    }
    return value == standard ? 0.0f : value;
}

// The devices for layers that are not the CPU's.
struct placement {
    int32_t n_layers = 0;                    // that go there
    std::vector<ggml_backend_dev_t> devices; // with a NULL behind; without one: none

    size_t count() const { return n_layers > 0 && !devices.empty() ? devices.size() - 1 : 0; }
};

static std::string count_devices(size_t n) {
    return n == 1 ? "is 1" : "are " + std::to_string(n);
}

// What begins with no number upstream could not read either. A device that cannot be is a warning where no layer goes to one.
static int32_t parse_gpu(const model & m, const char * text, const placement & where) {
    if (!*text) {
        return 0;
    }
    char * end;
    const long n = strtol(text, &end, 10);
    if (end == text) {
        fail(LLAMA_BINDING_ARGUMENT, "main GPU \"%s\": want the number of a device below %zu", text, llama_max_devices());
    }
    if (where.count() > 0 && (*end || n < 0 || n >= (long) where.count())) {
        fail(LLAMA_BINDING_ARGUMENT, "main GPU \"%s\": there %s, counted from 0", text, count_devices(where.count()).c_str());
    }
    if (*end || n < 0 || n >= (long) llama_max_devices()) {
        warn_once(m, "main GPU \"%s\" is ignored: want the number of a device below %zu", text, llama_max_devices());
        return 0;
    }
    return (int32_t) n;
}

// Shares by device, separated by commas or slashes; the rest is 0, and so is what is no share.
static std::vector<float> parse_split(const model & m, const char * text, const placement & where) {
    std::vector<float> split(llama_max_devices(), 0.0f);
    size_t n = 0;
    while (*text) {
        char * end;
        const float share = strtof(text, &end);
        if (end == text || (*end && *end != ',' && *end != '/')) {
            fail(LLAMA_BINDING_ARGUMENT, "tensor split: \"%s\" does not begin with a share: want numbers separated by commas", text);
        }
        if (n == split.size()) {
            fail(LLAMA_BINDING_ARGUMENT, "tensor split: more than the %zu devices that there can be", split.size());
        }
        const bool good = std::isfinite(share) && share >= 0.0f;
        if (!good) {
            warn_once(m, "tensor split: a share of %g is taken for 0", share);
        }
        if (good && share > 0.0f && where.count() > 0 && n >= where.count()) {
            fail(LLAMA_BINDING_ARGUMENT, "tensor split: a share for device %zu, and there %s, counted from 0", n, count_devices(where.count()).c_str());
        }
        split[n++] = good ? share : 0.0f;
        text = *end ? end + 1 : end;
    }
    return split;
}

static placement place(const model & m, int32_t n_layers, const std::string & servers) {
    placement where;
    where.n_layers = std::max(0, n_layers);
    if (where.n_layers == 0 && !servers.empty()) {
        warn_once(m, "the RPC servers %s are not used: no layers are to run on devices (SetGPULayers)", servers.c_str());
    }
    try {
        where.devices = devices::all(where.n_layers > 0 ? servers : ""); // a server has one client: none without need
    } catch (const std::runtime_error & e) {
        fail(LLAMA_BINDING_ARGUMENT, "%s", e.what());
    }
    if (where.count() > llama_max_devices()) {
        fail(LLAMA_BINDING_ARGUMENT, "%zu devices: llama.cpp splits a model over %zu at most: name fewer servers", where.count(), llama_max_devices());
    }
    if (where.n_layers > 0 && where.count() == 0) {
        const auto backends = devices::built_for();
        if (backends.any()) {
            fail(LLAMA_BINDING_MISSING, "%d layers are to run on devices, and the runtime finds none: %s%s%s, or ask for 0", where.n_layers,
                    backends.local ? "look for the GPU's driver" : "", backends.local && backends.servers ? ", " : "",
                    backends.servers ? "name servers (LESSKV_RPC=host:port)" : "");
        }
        static std::once_flag once;
        std::call_once(once, [] { log(GGML_LOG_LEVEL_WARN, "lesskv: this runtime has no GPU backend: all layers run on the CPU\n"); });
    }
    return where;
}

static llama_context_params context_params(const load_options & o) {
    if (o.n_ctx < 0 || o.n_ctx > (1 << 30)) {
        fail(LLAMA_BINDING_ARGUMENT, "context size %d: want 1 to %d tokens, or 0 for the model's own", o.n_ctx, 1 << 30);
    }
    if (o.n_batch < 1) {
        fail(LLAMA_BINDING_ARGUMENT, "batch size %d: want at least 1", o.n_batch);
    }
    auto p = llama_context_default_params();
    p.n_ctx    = o.n_ctx;
    p.n_batch  = o.n_batch;
    p.n_ubatch = std::min(512, o.n_batch);
    p.type_k   = o.memory_f16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    p.type_v   = p.type_k;
    p.rope_freq_base  = rope_setting("rope frequency base",  o.rope_freq_base,  10000.0f);
    p.rope_freq_scale = rope_setting("rope frequency scale", o.rope_freq_scale, 1.0f);
    return p;
}

static void check_less(const model & m) {
    char why[512];
    if (!lesskv_supported(m.weights.get(), why, sizeof(why))) {
        fail(LLAMA_BINDING_UNSUPPORTED, "%s", why);
    }
}

static void load_adapter(model & m) {
    const lesskv_config less = m.less.get();
    if (!*less.adapter) {
        return;
    }
    char why[2048];
    m.adapter.reset(lesskv_adapter_load(m.weights.get(), less.adapter, less.force_adapter, why, sizeof(why)));
    if (!m.adapter) {
        fail(LLAMA_BINDING_ADAPTER, "%s", why);
    }
}

// Refuses n contexts whose caches are larger than the memory that there can be.
static void check_memory(const model & m, int n) {
    const auto & h = m.weights->hparams;
    const uint64_t n_ctx = m.cparams.n_ctx ? m.cparams.n_ctx : h.n_ctx_train;
    uint64_t token = 0; // bytes of one, where a layer keeps all
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        const bool here = ggml_backend_dev_type(m.weights->dev_layer(il)) == GGML_BACKEND_DEVICE_TYPE_CPU;
        if (here && h.has_kv(il) && !h.is_recr(il) && !h.is_swa(il)) {
            token += ggml_row_size(m.cparams.type_k, h.n_embd_k_gqa(il)) + ggml_row_size(m.cparams.type_v, h.n_embd_v_gqa(il));
        }
    }
    const uint64_t limit = memory_limit();
    if (token > 0 && n_ctx > limit/token/n) {
        fail(LLAMA_BINDING_FAILED, "a context of %llu tokens takes %.1f GiB, %sand there are %.1f: ask for a smaller one, or for a LESS cache, which does not grow with it",
                (unsigned long long) n_ctx, (double) n_ctx*token/(1 << 30), n > 1 ? "the negative prompt's as much again, " : "", (double) limit/(1 << 30));
    }
}

// The same with LESS, whose cache is made with the first batch: llama.cpp makes the context before that.
static void check_less_memory(const sequence & s, int n) {
    lesskv_info info;
    const uint64_t limit = memory_limit();
    if (lesskv_get_info(s.ctx.get(), &info) && info.bytes_sequence > limit/n) {
        fail(LLAMA_BINDING_FAILED, "a budget of %d slots takes %.1f GiB, %sand there are %.1f: ask for a smaller one, or for a smaller context where it is a share of that",
                info.budget, (double) info.bytes_sequence/(1 << 30), n > 1 ? "the negative prompt's as much again, " : "", (double) limit/(1 << 30));
    }
}

sequence new_sequence(const model & m, int n) {
    if (!m.less.on) {
        check_memory(m, n);
    } else if (n > 1 && m.main.ctx && !m.less.get().device) { // before the other context's scratch is asked for
        check_less_memory(m.main, n);
    }
    log_errors errors;
    char refused[2048] = "";
    auto params = m.cparams;
    bool no_memory = false;
    lesskv_config less = m.less.get();
    if (m.less.on) {
        less.main_memory = memory_limit()/n;
        less.no_memory   = &no_memory;
        less.error      = refused;
        less.error_size = sizeof(refused);
        less.loaded     = m.adapter.get();
        params.lesskv   = &less;
    }
    sequence s;
    s.ctx.reset(llama_init_from_model(m.weights.get(), params));
    if (!s.ctx) {
        const std::string why = errors.text();
        if (*refused) {
            fail(no_memory ? LLAMA_BINDING_FAILED : LLAMA_BINDING_CONFIG, "%s", refused);
        }
        fail(LLAMA_BINDING_FAILED, "cannot make a context of %u tokens: %s", params.n_ctx, why.empty() ? "llama.cpp gives no reason" : why.c_str());
    }
    if (m.less.on && !less.device) { // which has it by now
        check_less_memory(s, n);
    }
    if (m.lora) {
        llama_adapter_lora * lora = m.lora.get();
        float scale = 1.0f;
        if (llama_set_adapters_lora(s.ctx.get(), &lora, 1, &scale) != 0) {
            fail(LLAMA_BINDING_FAILED, "the LoRA adapter cannot be applied");
        }
    }
    return s;
}

// A base for it is no more: llama.cpp applies an adapter while it computes, to weights of any type.
static void load_lora(const load_options & o, model & m) {
    if (!*o.lora) {
        return;
    }
    if (*o.lora_base) {
        warn_once(m, "the LoRA base %s is not used: llama.cpp no longer has one, and applies adapters to quantised models too", o.lora_base);
    }
    check_file(o.lora);
    log_errors errors;
    m.lora.reset(llama_adapter_lora_init(m.weights.get(), o.lora));
    if (!m.lora) {
        const std::string why = errors.text();
        fail(LLAMA_BINDING_MODEL, "the LoRA adapter %s: %s", o.lora, why.empty() ? "llama.cpp gives no reason" : why.c_str());
    }
    if (llama_adapter_get_alora_n_invocation_tokens(m.lora.get()) > 0) { // here it would be on from the first token
        fail(LLAMA_BINDING_MISSING, "the LoRA adapter %s is an activated one (aLoRA), to be switched on by tokens of the prompt: not in this runtime", o.lora);
    }
    if (m.less.on) {
        log(GGML_LOG_LEVEL_WARN, "lesskv: the LoRA adapter %s changes the model: phi and psi were trained without it and fit less well\n", o.lora);
    }
}

// The C library's heaps, unless the environment sets them. Go calls from one thread and then another, and glibc has a heap for
// each few of them: a call would leave in every one what it left in the first. And it raises the size from which blocks are
// mapped, and so given back at once, to the largest that was ever freed: the blocks of many MiB that come and go with a model
// would then lie in heaps that keep them. Threads keep the heaps they have: those that have none yet get no more of them.
static void tune_heaps() {
#ifdef __GLIBC__
    static std::once_flag once;
    std::call_once(once, [] {
        if (!getenv("MALLOC_ARENA_MAX") && !getenv("MALLOC_MMAP_THRESHOLD_") && !getenv("GLIBC_TUNABLES")) {
            mallopt(M_ARENA_MAX, 1);
            mallopt(M_MMAP_THRESHOLD, 128*1024);
        }
    });
#endif
}

static void start_backend(bool numa) {
    static std::once_flag once, once_numa;
    std::call_once(once, [] {
        llama_backend_init();
    });
    if (numa) {
        std::call_once(once_numa, [] { llama_numa_init(GGML_NUMA_STRATEGY_DISTRIBUTE); });
    }
}

model * load(const load_options & o) {
    if (const char * missing = lesskv_cpu_missing()) {
        fail(LLAMA_BINDING_MISSING, "the runtime was compiled for a CPU with %s, which this one lacks: assemble it here, or with -preset portable", missing);
    }
    auto m = std::make_unique<model>(o.less);
    m->cparams = context_params(o);
    check_file(o.path);
    start_backend(o.numa);
    const auto where = place(*m, o.n_gpu_layers, o.rpc ? o.rpc : "");
    const auto split = parse_split(*m, o.tensor_split, where);

    auto mparams = llama_model_default_params();
    mparams.devices      = const_cast<ggml_backend_dev_t *>(where.devices.data());
    mparams.n_gpu_layers = where.n_layers;
    mparams.main_gpu     = parse_gpu(*m, o.main_gpu, where);
    if (*o.main_gpu && !*o.tensor_split && where.count() > 0) {
        mparams.split_mode = LLAMA_SPLIT_MODE_NONE; // all on that one: where they are split, llama.cpp has no use for its number
    }
    mparams.tensor_split = split.data();
    mparams.load_mode    = o.mmap ? (o.mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP) : (o.mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);

    {
        log_errors errors;
        m->weights.reset(llama_model_load_from_file(o.path, mparams));
        if (!m->weights) {
            const std::string why = errors.text();
            fail(LLAMA_BINDING_MODEL, "%s: %s", o.path, why.empty() ? "llama.cpp gives no reason" : why.c_str());
        }
    }
    check_numbers(o.path, m->weights->hparams);
    if (llama_vocab_type(m->vocab()) == LLAMA_VOCAB_TYPE_NONE) {
        fail(LLAMA_BINDING_MODEL, "%s has no vocabulary", o.path);
    }
    if (o.less) {
        tune_heaps();
        check_less(*m);
        load_adapter(*m);
    }
    load_lora(o, *m);
    m->main = new_sequence(*m);
    return m.release();
}

} // namespace binding
