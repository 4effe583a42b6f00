#include "lesskv-adapter.h"

#include "adapter.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"
#include "gguf.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

std::string lesskv_model_fingerprint(const llama_model & model) {
    const auto & h = model.hparams;

    lesskv_sha256 sha;
    lesskv_sha256_init(&sha);

    const std::string line = format("%s %u %u %u %u %u %d\n", llm_arch_name(model.arch),
            h.n_layer, h.n_head(0), h.n_head_kv(0), h.n_embd_head_k, h.n_embd_head_v, model.vocab.n_tokens());
    lesskv_sha256_update(&sha, line.data(), line.size());

    std::map<std::string, const ggml_tensor *> vectors; // in byte order
    for (const auto & [name, t] : model.tensors_by_name) {
        if (ggml_n_dims(t) == 1 && (name.rfind("blk.", 0) == 0 || name.rfind("output_norm", 0) == 0)) {
            vectors[name] = t;
        }
    }
    for (const auto & [name, t] : vectors) {
        const int64_t n = t->ne[0];
        std::vector<uint8_t> raw(ggml_nbytes(t));
        ggml_backend_tensor_get(t, raw.data(), 0, raw.size());

        std::vector<float> values(n);
        if (t->type == GGML_TYPE_F32) {
            memcpy(values.data(), raw.data(), n*sizeof(float));
        } else if (const auto * traits = ggml_get_type_traits(t->type); traits->to_float) {
            traits->to_float(raw.data(), values.data(), n);
        }
        lesskv_sha256_update(&sha, name.c_str(), name.size() + 1);
        lesskv_sha256_update(&sha, values.data(), n*sizeof(float));
    }
    char hex[65];
    lesskv_sha256_final(&sha, hex);
    return hex;
}

namespace {

struct free_gguf { void operator()(gguf_context * g) const { gguf_free(g); } };
struct free_ggml { void operator()(ggml_context * c) const { ggml_free(c); } };
struct free_file { void operator()(FILE * f) const { fclose(f); } };

std::string file_sha256(const std::string & path) {
    std::unique_ptr<FILE, free_file> f(fopen(path.c_str(), "rb"));
    if (!f) {
        throw std::runtime_error(format("the adapter %s can't be opened: %s", path.c_str(), strerror(errno)));
    }
    lesskv_sha256 sha;
    lesskv_sha256_init(&sha);
    std::vector<uint8_t> buf(1 << 16);
    size_t n;
    while ((n = fread(buf.data(), 1, buf.size(), f.get())) > 0) {
        lesskv_sha256_update(&sha, buf.data(), n);
    }
    if (ferror(f.get())) {
        throw std::runtime_error(format("the adapter %s can't be read: %s", path.c_str(), strerror(errno)));
    }
    char hex[65];
    lesskv_sha256_final(&sha, hex);
    return hex;
}

// Typed access to the keys of one file; every failure names file, key, what was found and what was wanted.
struct reader {
    const std::string  & path;
    const gguf_context * g;

    [[noreturn]] void bad(const char * key, const std::string & found, const std::string & wanted) const {
        throw std::runtime_error(format("the adapter %s does not fit: %s is %s, wanted %s", path.c_str(), key, found.c_str(), wanted.c_str()));
    }

    int64_t find(const char * key, gguf_type type) const {
        const int64_t id = gguf_find_key(g, key);
        if (id < 0) {
            bad(key, "missing", gguf_type_name(type));
        }
        if (gguf_get_kv_type(g, id) != type) {
            bad(key, gguf_type_name(gguf_get_kv_type(g, id)), gguf_type_name(type));
        }
        return id;
    }

    uint32_t    u32(const char * key) const { return gguf_get_val_u32(g, find(key, GGUF_TYPE_UINT32)); }
    std::string str(const char * key) const { return gguf_get_val_str(g, find(key, GGUF_TYPE_STRING)); }

    void want(const char * key, uint32_t wanted) const {
        const uint32_t found = u32(key);
        if (found != wanted) {
            bad(key, std::to_string(found), std::to_string(wanted));
        }
    }
    void want(const char * key, const std::string & wanted) const {
        const std::string found = str(key);
        if (found != wanted) {
            bad(key, "\"" + found + "\"", "\"" + wanted + "\"");
        }
    }
};

} // namespace

struct lesskv_adapter::impl {
    std::unique_ptr<gguf_context, free_gguf> gguf;
    std::unique_ptr<ggml_context, free_ggml> ctx; // owns the tensors' data
};

lesskv_adapter::~lesskv_adapter() = default;

const lesskv_kernels * lesskv_adapter::layer(int il) const {
    return il >= 0 && (size_t) il < kernels.size() && kernels[il].rank > 0 ? &kernels[il] : nullptr;
}

lesskv_adapter::lesskv_adapter(const std::string & path, const llama_model & model, bool force) : data(std::make_unique<impl>()) {
    const auto & h = model.hparams;

    sha256 = file_sha256(path);

    ggml_context * ctx = nullptr;
    gguf_init_params params = { /*.no_alloc =*/ false, /*.ctx =*/ &ctx };
    data->gguf.reset(gguf_init_from_file(path.c_str(), params));
    data->ctx.reset(ctx);
    if (!data->gguf || !data->ctx) {
        throw std::runtime_error(format("the adapter %s is not a readable GGUF file: is it complete, and is it an adapter?", path.c_str()));
    }

    const reader r = { path, data->gguf.get() };

    r.want(LESSKV_KEY_GENERAL_TYPE, LESSKV_GENERAL_TYPE);
    r.want(LESSKV_KEY_ADAPTER_TYPE, LESSKV_ADAPTER_TYPE);
    r.want(LESSKV_KEY_VERSION,      LESSKV_ADAPTER_VERSION);
    r.want(LESSKV_KEY_ARCHITECTURE, llm_arch_name(model.arch));

    for (uint32_t il = 1; il < h.n_layer; ++il) {
        if (h.n_head(il) != h.n_head(0) || h.n_head_kv(il) != h.n_head_kv(0)) {
            throw std::runtime_error(format("the adapter %s can't be used: the layers of this model differ in their number of heads, which version %d of the format has no room for",
                        path.c_str(), LESSKV_ADAPTER_VERSION));
        }
    }
    const int64_t n_head = h.n_head(0), n_head_kv = h.n_head_kv(0), d = h.n_embd_head_k;
    r.want(LESSKV_KEY_BLOCK_COUNT,   h.n_layer);
    r.want(LESSKV_KEY_HEAD_COUNT,    (uint32_t) n_head);
    r.want(LESSKV_KEY_HEAD_COUNT_KV, (uint32_t) n_head_kv);
    r.want(LESSKV_KEY_KEY_LENGTH,    h.n_embd_head_k);
    r.want(LESSKV_KEY_VALUE_LENGTH,  h.n_embd_head_v);

    const uint32_t limit = 4096;
    if (r.u32(LESSKV_KEY_RANK) < 1 || r.u32(LESSKV_KEY_RANK) > limit) {
        r.bad(LESSKV_KEY_RANK, std::to_string(r.u32(LESSKV_KEY_RANK)), format("1 to %u", limit));
    }
    if (r.u32(LESSKV_KEY_HIDDEN) < 1 || r.u32(LESSKV_KEY_HIDDEN) > limit) {
        r.bad(LESSKV_KEY_HIDDEN, std::to_string(r.u32(LESSKV_KEY_HIDDEN)), format("1 to %u", limit));
    }
    rank    = (int32_t) r.u32(LESSKV_KEY_RANK);
    hidden  = (int32_t) r.u32(LESSKV_KEY_HIDDEN);
    policy  = r.str(LESSKV_KEY_TRAINED_POLICY);
    heavy   = r.u32(LESSKV_KEY_TRAINED_HEAVY);
    recent  = r.u32(LESSKV_KEY_TRAINED_RECENT);
    ubatch  = r.u32(LESSKV_KEY_TRAINED_UBATCH);
    context = r.u32(LESSKV_KEY_TRAINED_CONTEXT);

    const std::string base = r.str(LESSKV_KEY_FINGERPRINT), mine = lesskv_model_fingerprint(model);
    if (base != mine) {
        if (!force) {
            throw std::runtime_error(format("the adapter %s was trained for another model (%s): %s is %s, this model's is %s; train one for this model, or insist if you know better",
                        path.c_str(), r.str(LESSKV_KEY_BASE_NAME).c_str(), LESSKV_KEY_FINGERPRINT, base.c_str(), mine.c_str()));
        }
        LLAMA_LOG_WARN("lesskv: the adapter %s was trained for another model, and is used all the same\n", path.c_str());
    }

    const struct {
        const char * name;
        int64_t ne[3];
        bool    f32; // no other type
    } wanted[5] = {
        { LESSKV_TENSOR_PHI_0, { d,      hidden, n_head    }, false },
        { LESSKV_TENSOR_PHI_1, { hidden, rank,   n_head    }, false },
        { LESSKV_TENSOR_PSI_0, { d,      hidden, n_head_kv }, false },
        { LESSKV_TENSOR_PSI_1, { hidden, rank,   n_head_kv }, false },
        { LESSKV_TENSOR_PSI_2, { rank,   rank,   n_head_kv }, true  },
    };
    int64_t n_used = 0;
    kernels.resize(h.n_layer);
    for (uint32_t il = 0; il < h.n_layer; ++il) {
        lesskv_mat mats[5] = {};
        int n_found = 0;
        for (int i = 0; i < 5; ++i) {
            const std::string name = format(wanted[i].name, (int) il);
            const ggml_tensor * t = ggml_get_tensor(data->ctx.get(), name.c_str());
            if (!t) {
                continue;
            }
            ++n_found;
            const auto & ne = wanted[i].ne;
            if (t->ne[0] != ne[0] || t->ne[1] != ne[1] || t->ne[2] != ne[2] || t->ne[3] != 1) {
                r.bad(name.c_str(), format("[%lld, %lld, %lld, %lld]", (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3]),
                        format("[%lld, %lld, %lld]", (long long) ne[0], (long long) ne[1], (long long) ne[2]));
            }
            if (t->type != GGML_TYPE_F32 && (wanted[i].f32 || (t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_Q8_0))) {
                r.bad(name.c_str(), ggml_type_name(t->type), wanted[i].f32 ? "f32" : "f32, f16 or q8_0");
            }
            std::vector<float> row(t->ne[0]);
            for (int64_t j = 0; j < ggml_nrows(t); ++j) {
                lesskv_to_f32((lesskv_type) t->type, row.data(), (const uint8_t *) t->data + j*t->nb[1], t->ne[0]);
                for (const float x : row) {
                    if (!std::isfinite(x)) {
                        r.bad(name.c_str(), "not finite in row " + std::to_string(j), "finite weights");
                    }
                }
            }
            mats[i] = { (lesskv_type) t->type, t->data };
            bytes  += ggml_nbytes(t);
        }
        if (n_found == 0) {
            continue;
        }
        if (n_found != 5) {
            r.bad(format("blk.%u", il).c_str(), format("%d tensors", n_found), "all five of phi and psi, or none");
        }
        kernels[il] = { rank, hidden, { mats[0], mats[1] }, { mats[2], mats[3], mats[4] } };
        n_used += 5;
        n_layer++;
    }
    if (n_used != gguf_get_n_tensors(data->gguf.get())) {
        r.bad("the file", format("%lld tensors", (long long) gguf_get_n_tensors(data->gguf.get())), format("%lld, those of phi and psi", (long long) n_used));
    }
}
