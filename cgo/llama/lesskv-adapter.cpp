#include "lesskv-adapter.h"

#include "adapter.h"
#include "lesskv-fingerprint.h"
#include "lesskv-gguf.h"
#include "lesskv-model.h"

#include "llama-arch.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace {

// A file that says what an adapter has for each of a model's layers.
class adapter_file : public lesskv_gguf {
public:
    using lesskv_gguf::lesskv_gguf;
    using lesskv_gguf::want;

    // Of layer il of n, where from version 2 on an array may have one number for each.
    void want(const char * key, uint32_t version, uint32_t n, uint32_t il, uint32_t wanted) const {
        if (version == 1 || !is_array(key)) {
            if (u32(key) != wanted) {
                bad(key, std::to_string(u32(key)), format("%u in layer %u", wanted, il));
            }
            return;
        }
        const auto & words = array_of(key, GGUF_TYPE_UINT32, n, "layers");
        if (words[il] != wanted) {
            bad(key, format("%u in layer %u", words[il], il), std::to_string(wanted));
        }
    }

    // What of the size of phi and psi each of n layers has: one number for all or, from version 3 on, an array.
    struct sizes_of {
        const char *          key;
        bool                  alike; // one for all, which a layer without phi and psi has no use for
        std::vector<uint32_t> each;
    };
    sizes_of sizes(const char * key, uint32_t version, uint32_t n) const {
        if (version < 3 || !is_array(key)) {
            return { key, true, std::vector<uint32_t>(n, u32(key, 1, LESSKV_ADAPTER_MAX_SIZE)) };
        }
        return { key, false, array_of(key, GGUF_TYPE_UINT32, n, "layers") };
    }
    // Refuses what is no size of layer il; has: it has phi or psi.
    void check(const sizes_of & s, uint32_t il, bool has) const {
        const uint32_t n = s.each[il];
        if (has && (n < 1 || n > LESSKV_ADAPTER_MAX_SIZE)) {
            bad(s.key, format("%u in layer %u", n, il), format("1 to %u", LESSKV_ADAPTER_MAX_SIZE));
        }
        if (!has && !s.alike && n != 0) {
            bad(s.key, format("%u in layer %u", n, il), "0: the layer has neither phi nor psi");
        }
    }

    // An array of n floats, none below 0 and all finite.
    std::vector<float> floats(const char * key, uint64_t n) const {
        const auto & words = array_of(key, GGUF_TYPE_FLOAT32, n, "key/value heads, layer by layer");
        std::vector<float> x(words.size());
        memcpy(x.data(), words.data(), n*sizeof(float));
        for (size_t i = 0; i < x.size(); ++i) {
            if (!(x[i] >= 0.0f && x[i] <= LESSKV_WEIGHT_MAX)) { // nor NaN
                bad(key, format("%g at %zu", x[i], i), format("from 0 to %.0f", LESSKV_WEIGHT_MAX));
            }
        }
        return x;
    }

    // The types of n layers' slots, whose heads, if they have any, are of some size.
    template <class F>
    std::vector<lesskv_type> slot_types(const char * key, uint32_t n, F size_of) const {
        std::vector<lesskv_type> types;
        for (const uint32_t type : array_of(key, GGUF_TYPE_UINT32, n, "layers")) {
            const uint32_t il = (uint32_t) types.size(), size = size_of(il);
            if (!lesskv_slot_type(type) || (size > 0 && lesskv_row_size((lesskv_type) type, size) == 0)) {
                bad(key, format("%u in layer %u, whose heads are %u wide", type, il, size), "0 (f32) or 1 (f16), or where 32 divides the width 8 (q8_0) or 2 (q4_0)");
            }
            types.push_back((lesskv_type) type);
        }
        return types;
    }
};

} // namespace

const lesskv_kernels * lesskv_adapter::layer(int il) const {
    return il >= 0 && (size_t) il < kernels.size() && kernels[il].rank > 0 ? &kernels[il] : nullptr;
}

// What a layer has of phi and psi must be of use: phi where something is folded, psi where something of what is folded is read. Both need the rank of
// the state.
void lesskv_adapter::check_shared(const llama_hparams & h) const {
    const auto bad = [&](uint32_t il, const std::string & found, const std::string & wanted) {
        throw std::runtime_error(format("the adapter %s does not fit: layer %u has %s, wanted %s", path.c_str(), il, found.c_str(), wanted.c_str()));
    };
    std::vector<bool> read(h.n_layer());
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        if (kernels[il].phi[0].data) {
            read[lesskv_owner(h, il)] = true;
        }
    }
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        const auto & k = kernels[il];
        const uint32_t owner = lesskv_owner(h, il);
        if (owner != il && k.psi[0].data) {
            bad(il, "psi", format("none: it shares the keys of layer %u", owner));
        }
        if (k.phi[0].data && !kernels[owner].psi[0].data) {
            bad(il, "phi", format("psi of layer %u too", owner));
        }
        if (k.phi[0].data && k.rank != kernels[owner].rank) {
            bad(il, format("phi of rank %d", k.rank), format("rank %d, as psi of layer %u has it", kernels[owner].rank, owner));
        }
        if (k.psi[0].data && !read[il]) {
            bad(il, "psi", "phi of a layer that reads what it folds");
        }
    }
}

lesskv_adapter::lesskv_adapter(const std::string & path, const llama_model & model, bool force) : path(path) {
    const auto & h = model.hparams;

    adapter_file r(path);

    r.want(LESSKV_KEY_GENERAL_TYPE, LESSKV_GENERAL_TYPE);
    r.want(LESSKV_KEY_ADAPTER_TYPE, LESSKV_ADAPTER_TYPE);
    const uint32_t version = r.u32(LESSKV_KEY_VERSION, 1, LESSKV_ADAPTER_VERSION);
    r.want(LESSKV_KEY_ARCHITECTURE, llm_arch_name(model.arch));

    r.want(LESSKV_KEY_BLOCK_COUNT, h.n_layer());
    const auto each = [&](const char * key, const auto & of) {
        for (uint32_t il = 0; il < h.n_layer(); ++il) {
            r.want(key, version, h.n_layer(), il, of(il));
        }
    };
    each(LESSKV_KEY_HEAD_COUNT,    [&](uint32_t il) { return h.n_head(il); });
    each(LESSKV_KEY_HEAD_COUNT_KV, [&](uint32_t il) { return h.n_head_kv(il); });
    each(LESSKV_KEY_KEY_LENGTH,    [&](uint32_t il) { return h.n_embd_head_k(il); });
    each(LESSKV_KEY_VALUE_LENGTH,  [&](uint32_t il) { return h.n_embd_head_v(il); });
    if (version > 1 && r.has(LESSKV_KEY_BUDGET_WEIGHT)) {
        uint64_t n = 0;
        for (uint32_t il = 0; il < h.n_layer(); ++il) {
            n += h.n_head_kv(il);
        }
        budget_weights = r.floats(LESSKV_KEY_BUDGET_WEIGHT, n);
    }
    if (version > 2 && (r.has(LESSKV_KEY_SLOT_KEY_TYPE) || r.has(LESSKV_KEY_SLOT_VALUE_TYPE))) {
        types_k = r.slot_types(LESSKV_KEY_SLOT_KEY_TYPE,   h.n_layer(), [&](uint32_t il) { return h.n_head_kv(il) ? h.n_embd_head_k(il) : 0; });
        types_v = r.slot_types(LESSKV_KEY_SLOT_VALUE_TYPE, h.n_layer(), [&](uint32_t il) { return h.n_head_kv(il) ? h.n_embd_head_v(il) : 0; });
    }

    const auto ranks   = r.sizes(LESSKV_KEY_RANK,   version, h.n_layer());
    const auto hiddens = r.sizes(LESSKV_KEY_HIDDEN, version, h.n_layer());
    policy  = r.str(LESSKV_KEY_TRAINED_POLICY);
    heavy   = r.u32(LESSKV_KEY_TRAINED_HEAVY,   0, INT32_MAX);
    recent  = r.u32(LESSKV_KEY_TRAINED_RECENT,  0, INT32_MAX);
    ubatch  = r.u32(LESSKV_KEY_TRAINED_UBATCH,  1, INT32_MAX);
    context = r.u32(LESSKV_KEY_TRAINED_CONTEXT, 1, INT32_MAX);
    if (policy.empty()) {
        r.bad(LESSKV_KEY_TRAINED_POLICY, "an empty string", "a policy's name");
    }
    if (r.has(LESSKV_KEY_DESCRIPTION)) {
        r.str(LESSKV_KEY_DESCRIPTION);
    }

    const std::string base = r.str(LESSKV_KEY_FINGERPRINT), mine = lesskv_model_fingerprint(model), name = r.str(LESSKV_KEY_BASE_NAME);
    if (base.size() != 64 || base.find_first_not_of("0123456789abcdef") != std::string::npos) {
        r.bad(LESSKV_KEY_FINGERPRINT, "\"" + base.substr(0, 80) + "\"", "64 lower-case hex digits");
    }
    if (base != mine) {
        if (!force) {
            throw std::runtime_error(format("the adapter %s was trained for another model (%s): %s is %s, this model's is %s; train one for this model, or insist if you know better",
                        path.c_str(), name.c_str(), LESSKV_KEY_FINGERPRINT, base.c_str(), mine.c_str()));
        }
        LLAMA_LOG_WARN("lesskv: the adapter %s was trained for another model, and is used all the same\n", path.c_str());
    }

    size_t n_used = 0;
    kernels.resize(h.n_layer());
    for (uint32_t il = 0; il < h.n_layer(); ++il) {
        const uint64_t n_head = h.n_head(il), n_head_kv = h.n_head_kv(il), d = h.n_embd_head_k(il);
        const uint64_t R = ranks.each[il], Rh = hiddens.each[il]; // R' of algorithm.md
        const struct {
            const char * name;
            uint64_t ne[3];
            bool    f32; // no other type
        } wanted[6] = {
            { LESSKV_TENSOR_PHI_0, { d,  Rh, n_head    }, false },
            { LESSKV_TENSOR_PHI_1, { Rh, R,  n_head    }, false },
            { LESSKV_TENSOR_PSI_0, { d,  Rh, n_head_kv }, false },
            { LESSKV_TENSOR_PSI_1, { Rh, R,  n_head_kv }, false },
            { LESSKV_TENSOR_PSI_2, { R,  R,  n_head_kv }, true  },
            { LESSKV_TENSOR_PHI_SCALE, { n_head, 1, 1 },  true  },
        };
        const bool has = n_head_kv > 0 && // else it has no attention, and no tensors
            std::any_of(wanted, wanted + 6, [&](const auto & w) { return r.find(format(w.name, (int) il)); });
        r.check(ranks,   il, has);
        r.check(hiddens, il, has);
        if (!has) {
            continue;
        }
        lesskv_mat mats[6] = {};
        int n_phi = 0, n_psi = 0, n_scale = 0;
        for (int i = 0; i < 6; ++i) {
            const std::string name = format(wanted[i].name, (int) il);
            const auto * t = r.find(name);
            if (!t) {
                continue;
            }
            ++(i < 2 ? n_phi : i < 5 ? n_psi : n_scale);
            const auto & ne = wanted[i].ne;
            if (t->ne[0] != ne[0] || t->ne[1] != ne[1] || t->ne[2] != ne[2] || t->ne[3] != 1) {
                r.bad(name, format("[%llu, %llu, %llu, %llu]", (unsigned long long) t->ne[0], (unsigned long long) t->ne[1], (unsigned long long) t->ne[2], (unsigned long long) t->ne[3]),
                        format("[%llu, %llu, %llu]", (unsigned long long) ne[0], (unsigned long long) ne[1], (unsigned long long) ne[2]));
            }
            if (wanted[i].f32 && t->type != GGML_TYPE_F32) {
                r.bad(name, ggml_type_name(t->type), "f32");
            }
            weights.push_back(r.data(*t));
            const auto & w = weights.back();

            std::vector<float> row(ne[0]);
            const size_t       row_size = lesskv_row_size((lesskv_type) t->type, ne[0]);
            for (size_t at = 0; at < w.size(); at += row_size) {
                lesskv_to_f32((lesskv_type) t->type, row.data(), w.data() + at, ne[0]);
                for (const float x : row) {
                    if (!std::isfinite(x)) {
                        r.bad(name, "not finite in row " + std::to_string(at/row_size), "finite weights");
                    }
                }
            }
            mats[i] = { (lesskv_type) t->type, w.data() };
            bytes  += w.size();
        }
        if (n_scale != 0 && (n_phi != 2 || version == 1)) {
            r.bad(format(LESSKV_TENSOR_PHI_SCALE, (int) il), "there", version == 1 ? "missing, in version 1" : "missing, or phi too");
        }
        if ((n_phi != 0 && n_phi != 2) || (n_psi != 0 && n_psi != 3) || (version == 1 && n_phi + n_psi != 5)) {
            r.bad(format("blk.%u", il), format("%d tensors of phi and %d of psi", n_phi, n_psi), version == 1 ? "all five, or none" : "two of phi or none, and three of psi or none");
        }
        kernels[il] = { (int32_t) R, (int32_t) Rh, { mats[0], mats[1] }, { mats[2], mats[3], mats[4] }, (const float *) mats[5].data };
        rank   = std::max(rank,   kernels[il].rank);
        hidden = std::max(hidden, kernels[il].hidden);
        n_used += n_phi + n_psi + n_scale;
        n_layer++;
    }
    if (n_used != r.n_tensors()) {
        r.bad("the file", format("%zu tensors", r.n_tensors()), format("%zu, those of phi and psi", n_used));
    }
    check_shared(h);
    sha256 = r.sha256();
}
