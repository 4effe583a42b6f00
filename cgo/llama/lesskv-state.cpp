// lesskv-state.cpp: saved states: a header that must be equal at loading, then the sequences.

#include "lesskv-fingerprint.h"
#include "lesskv-memory.h"

#include "llama-impl.h"
#include "llama-io.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>

// A part of a state, without what can be made again from tokens, is for caches that have such a part. LLAMA_STATE_SEQ_FLAGS_ON_DEVICE is
// served: what upstream leaves on a device is in the state itself.
void lesskv_memory::check_flags(llama_state_seq_flags flags) {
    if (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) {
        throw std::runtime_error("a part of a state (LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) was asked for: a LESS cache is saved and loaded whole, leave the flag out");
    }
}

static const uint32_t STATE_MAGIC   = 0x764b534c; // "LSKv"
static const uint32_t STATE_VERSION = 5;
static const int32_t  MIXED = -1; // in the place of a type, where layers differ

// What a saved state must share with the context that loads it. Plain numbers and padded strings, compared one by one.
struct lesskv_memory::state_header {
    uint32_t magic, version;
    char     policy[32];
    char     adapter[65];
    char     model[65];
    char     pad[2];
    int32_t  budget, heavy, pinned;
    uint32_t n_spread; // heads that have budgets of their own, which follow the header
    int32_t  type_k, type_v; // of all layers; MIXED: those of each layer follow, behind the budgets
    uint32_t n_ubatch, n_layer;
    float    rope_freq_base, rope_freq_scale;
    uint32_t n_ctx_orig_yarn;
    float    yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow;
};

// The types of keys and values of each layer, where layers differ; else none.
std::vector<int32_t> lesskv_memory::mixed_types() const {
    std::vector<int32_t> types;
    bool differ = false;
    for (const auto & l : layers) {
        types.push_back(l.params.type_k);
        types.push_back(l.params.type_v);
        differ = differ || types.end()[-2] != types[0] || types.end()[-1] != types[1];
    }
    return differ ? types : std::vector<int32_t>();
}

lesskv_memory::state_header lesskv_memory::make_header() const {
    state_header h;
    memset(&h, 0, sizeof(h));
    h.magic   = STATE_MAGIC;
    h.version = STATE_VERSION;
    snprintf(h.policy,  sizeof(h.policy),  "%s", lesskv_policy_name(policy));
    snprintf(h.adapter, sizeof(h.adapter), "%s", adapter ? adapter->sha256.c_str() : "");
    if (fingerprint.empty()) {
        fingerprint = lesskv_model_fingerprint(model);
    }
    snprintf(h.model,   sizeof(h.model),   "%s", fingerprint.c_str());
    h.budget = budget;
    h.heavy  = heavy;
    h.pinned = pinned;
    h.n_spread = (uint32_t) budgets.size();
    const bool mixed = !mixed_types().empty();
    h.type_k = mixed ? MIXED : (int32_t) layers[0].params.type_k;
    h.type_v = mixed ? MIXED : (int32_t) layers[0].params.type_v;
    h.n_ubatch = cparams.n_ubatch;
    h.n_layer  = (uint32_t) layers.size();
    h.rope_freq_base   = cparams.rope_freq_base;
    h.rope_freq_scale  = cparams.rope_freq_scale;
    h.n_ctx_orig_yarn  = cparams.n_ctx_orig_yarn;
    h.yarn_ext_factor  = cparams.yarn_ext_factor;
    h.yarn_attn_factor = cparams.yarn_attn_factor;
    h.yarn_beta_fast   = cparams.yarn_beta_fast;
    h.yarn_beta_slow   = cparams.yarn_beta_slow;
    return h;
}

void lesskv_memory::check_header(llama_io_read_i & io) const {
    const auto want = make_header();
    state_header h;
    io.read(&h, sizeof(h));
    const bool same = memcmp(&h, &want, sizeof(h)) == 0;

    const auto differ = [](const char * what, const std::string & found, const std::string & wanted) {
        throw std::runtime_error(format("the saved state is not for this context: %s is %s there and %s here", what, found.c_str(), wanted.c_str()));
    };
    if (h.magic != STATE_MAGIC) {
        throw std::runtime_error("this is not the state of a LESS cache");
    }
    h.policy [sizeof(h.policy)  - 1] = 0;
    h.adapter[sizeof(h.adapter) - 1] = 0;
    h.model  [sizeof(h.model)   - 1] = 0;

    const auto num = [&](const char * what, double found, double wanted) {
        if (found != wanted) {
            differ(what, format("%g", found), format("%g", wanted));
        }
    };
    num("the format version", h.version, want.version);
    if (strcmp(h.model, want.model) != 0) {
        differ("the model's fingerprint", h.model, want.model);
    }
    if (strcmp(h.policy, want.policy) != 0) {
        differ("the policy", h.policy, want.policy);
    }
    if (strcmp(h.adapter, want.adapter) != 0) {
        differ("the adapter's SHA-256", h.adapter[0] ? h.adapter : "(none)", want.adapter[0] ? want.adapter : "(none)");
    }
    num("the budget",             h.budget,           want.budget);
    num("heavy",                  h.heavy,            want.heavy);
    num("pinned",                 h.pinned,           want.pinned);
    num("the number of heads with budgets of their own", h.n_spread, want.n_spread);
    const auto types = [&](const char * what, int32_t found, int32_t wanted) {
        const auto name = [](int32_t type) { return type == MIXED ? std::string("one for each layer") : std::to_string(type); };
        if (found != wanted) {
            differ(what, name(found), name(wanted));
        }
    };
    types("the slots' key type",   h.type_k, want.type_k);
    types("the slots' value type", h.type_v, want.type_v);
    num("n_ubatch",               h.n_ubatch,         want.n_ubatch);
    num("the number of layers",   h.n_layer,          want.n_layer);
    num("rope_freq_base",         h.rope_freq_base,   want.rope_freq_base);
    num("rope_freq_scale",        h.rope_freq_scale,  want.rope_freq_scale);
    num("the YaRN context",       h.n_ctx_orig_yarn,  want.n_ctx_orig_yarn);
    num("the YaRN mix factor",    h.yarn_ext_factor,  want.yarn_ext_factor);
    num("the YaRN magnitude",     h.yarn_attn_factor, want.yarn_attn_factor);
    num("the YaRN low dimension", h.yarn_beta_fast,   want.yarn_beta_fast);
    num("the YaRN high dimension",h.yarn_beta_slow,   want.yarn_beta_slow);
    if (!same) {
        throw std::runtime_error("the saved state is damaged in its header, where it pads its strings");
    }
    for (size_t i = 0; i < budgets.size(); ++i) {
        lesskv_budget b;
        io.read(&b, sizeof(b));
        num(format("the budget of KV head %zu, counted through the layers,", i).c_str(), b.slots, budgets[i].slots);
        num(format("heavy of KV head %zu, counted through the layers,",      i).c_str(), b.heavy, budgets[i].heavy);
    }
    const auto mixed = mixed_types();
    for (size_t i = 0; i < mixed.size(); ++i) {
        int32_t found;
        io.read(&found, sizeof(found));
        types(format("the slots' %s type in layer %d", i % 2 ? "value" : "key", layers[i/2].il).c_str(), found, mixed[i]);
    }
}

void lesskv_memory::write_seq(llama_io_write_i & io, const sequence & seq) const {
    if (!home(seq)) {
        throw std::runtime_error(error);
    }
    std::vector<uint8_t> buf;
    uint32_t n = 0;
    for (const auto & c : seq.caches) {
        n += c != nullptr;
    }
    io.write(&n, sizeof(n));
    for (size_t i = 0; i < seq.caches.size(); ++i) {
        const auto * c = seq.caches[i].get();
        if (!c) {
            continue;
        }
        const uint64_t size = lesskv_cache_save_size(c);
        const uint32_t il   = layers[i].il;
        buf.resize(size);
        lesskv_cache_save(c, buf.data());
        io.write(&il,   sizeof(il));
        io.write(&size, sizeof(size));
        io.write(buf.data(), size); // with a checksum of its own
    }
}

// In pieces: memory follows the bytes that are there, not a size that damage has made.
static void read_bytes(llama_io_read_i & io, std::vector<uint8_t> & buf, size_t n) {
    buf.clear();
    while (buf.size() < n) {
        const size_t at = buf.size(), more = std::min(n - at, std::max<size_t>(at, 1u << 20));
        buf.resize(at + more);
        io.read(buf.data() + at, more);
    }
}

lesskv_memory::sequence lesskv_memory::read_seq(llama_io_read_i & io) const {
    uint32_t n;
    io.read(&n, sizeof(n));

    sequence seq;
    if (n == 0) {
        return seq;
    }
    if (!const_cast<lesskv_memory *>(this)->make(seq)) {
        throw std::runtime_error(error);
    }
    uint32_t want = 0;
    for (const auto & c : seq.caches) {
        want += c != nullptr;
    }
    if (n != want) {
        throw std::runtime_error(format("the saved state is not for this model: %u layers there, %u here", n, want));
    }
    std::vector<uint8_t> buf;
    int64_t seen = -1;
    for (size_t i = 0; i < seq.caches.size(); ++i) {
        if (!seq.caches[i]) {
            continue;
        }
        uint32_t il;
        uint64_t size;
        io.read(&il,   sizeof(il));
        io.read(&size, sizeof(size));

        size_t slots, state;
        lesskv_layer_bytes(&layers[i].params, &slots, &state);
        if (il != (uint32_t) layers[i].il || size > 2*(slots + state) + (1u << 20)) {
            throw std::runtime_error(format("the saved state is damaged at layer %d", layers[i].il));
        }
        read_bytes(io, buf, size);
        const auto status = lesskv_cache_load(seq.caches[i].get(), buf.data(), size);
        if (status != LESSKV_OK) {
            throw std::runtime_error(format("the saved state of layer %d is damaged: %s", layers[i].il, lesskv_status_str(status)));
        }
        const int64_t s = stats_of(seq.caches[i].get()).seen;
        if (seen >= 0 && s != seen) {
            throw std::runtime_error("the saved state is damaged: its layers have seen different numbers of tokens");
        }
        seen = s;
    }
    return seq;
}

std::vector<uint32_t> lesskv_memory::saved(llama_seq_id seq_id) const {
    if (seq_id >= (llama_seq_id) seqs.size()) {
        throw std::runtime_error(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
    }
    std::vector<uint32_t> ids;
    for (size_t s = 0; s < seqs.size(); ++s) {
        if (seq_id >= 0 ? (llama_seq_id) s == seq_id : !seqs[s].caches.empty() || !seqs[s].poison.empty()) {
            if (!seqs[s].poison.empty()) {
                throw std::runtime_error(seqs[s].poison);
            }
            ids.push_back((uint32_t) s);
        }
    }
    return ids;
}

void lesskv_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    try {
        check_flags(flags);
        const auto ids = saved(seq_id);
        const auto h   = make_header();
        io.write(&h, sizeof(h));
        if (spread()) {
            io.write(budgets.data(), budgets.size()*sizeof(budgets[0]));
        }
        const auto mixed = mixed_types();
        io.write(mixed.data(), mixed.size()*sizeof(mixed[0]));
        const uint32_t n = ids.size();
        io.write(&n, sizeof(n));
        for (const uint32_t s : ids) {
            io.write(&s, sizeof(s));
            write_seq(io, seqs[s]);
        }
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}

uint64_t lesskv_memory::state_size(llama_seq_id seq_id) const {
    uint64_t size = sizeof(state_header) + budgets.size()*sizeof(budgets[0]) + mixed_types().size()*sizeof(int32_t) + 3*sizeof(uint32_t); // how many sequences, which, how many layers
    for (const auto & c : seqs.at(seq_id).caches) {
        size += c ? sizeof(uint32_t) + sizeof(uint64_t) + lesskv_cache_save_size(c.get()) : 0;
    }
    return size;
}

std::vector<std::pair<uint32_t, lesskv_memory::sequence>> lesskv_memory::read_sequences(llama_io_read_i & io, llama_seq_id seq_id) const {
    if (seq_id >= (llama_seq_id) seqs.size()) {
        throw std::runtime_error(format("there is no sequence %d, the context has %zu", seq_id, seqs.size()));
    }
    check_header(io);
    uint32_t n;
    io.read(&n, sizeof(n));
    if (n > seqs.size() || (seq_id >= 0 && n != 1)) {
        throw std::runtime_error(format("the saved state holds %u sequences, %zu fit", n, seq_id >= 0 ? (size_t) 1 : seqs.size()));
    }
    std::vector<std::pair<uint32_t, sequence>> loaded;
    std::vector<bool> seen(seqs.size());
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t s;
        io.read(&s, sizeof(s));
        if (seq_id >= 0) {
            s = seq_id;
        }
        if (s >= seqs.size() || seen[s]) {
            throw std::runtime_error(format("the saved state names sequence %u, %zu fit", s, seqs.size()));
        }
        seen[s] = true;
        loaded.emplace_back(s, read_seq(io));
    }
    return loaded;
}

void lesskv_memory::replace(std::vector<std::pair<uint32_t, sequence>> loaded, llama_seq_id seq_id) {
    if (seq_id < 0) {
        for (auto & seq : seqs) {
            seq = {};
        }
    }
    for (auto & [s, seq] : loaded) {
        seqs[s] = std::move(seq);
    }
    error.clear();
}

void lesskv_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    try {
        check_flags(flags);
        replace(read_sequences(io, seq_id), seq_id); // once all of it is read, nothing fails
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}
