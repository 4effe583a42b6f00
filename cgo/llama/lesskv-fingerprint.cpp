#include "lesskv-fingerprint.h"

#include "lesskv.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

std::string lesskv_model_fingerprint(const llama_model & model) {
    const auto & h = model.hparams;

    lesskv_sha256 sha;
    lesskv_sha256_init(&sha);

    const std::string line = format("%s %u %u %u %u %u %d\n", llm_arch_name(model.arch),
            h.n_layer(), h.n_head(0), h.n_head_kv(0), h.n_embd_head_k(0), h.n_embd_head_v(0), model.vocab.n_tokens());
    lesskv_sha256_update(&sha, line.data(), line.size());

    std::map<std::string, const ggml_tensor *> vectors; // in byte order
    for (const auto & [name, t] : model.tensors_by_name) {
        int il;
        const bool ahead = sscanf(name.c_str(), "blk.%d.", &il) == 1 && il >= (int) h.n_layer(); // predicts further tokens: the model is the same without
        if (ggml_n_dims(t) == 1 && !ahead && (name.rfind("blk.", 0) == 0 || name.rfind("output_norm", 0) == 0)) {
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
