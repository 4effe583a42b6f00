// lesskv-device.cpp: the tensors of LESS on the device, and a sequence's way to them and back.

#include "lesskv-device.h"
#include "lesskv-memory.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>

std::string lesskv_device::refusal(const llama_model & model, const std::vector<lesskv_memory_layer> & layers, uint32_t n_ubatch) {
    const auto no = [](const std::string & what, const std::string & instead = "") {
        return "LESS on the device does not cover " + what + ": " + instead + "keep the cache in main memory";
    };
    for (const auto & l : layers) {
        const auto & p = l.params;
        for (const auto type : { p.type_k, p.type_v }) {
            if (type != LESSKV_TYPE_F32 && type != LESSKV_TYPE_F16) {
                return no(format("slots of type %s", ggml_type_name((ggml_type) type)), "ask for f16 or f32, which goes before an adapter's types, or ");
            }
        }
        if (!knows(p.policy)) {
            return no(format("the policy %s", lesskv_policy_name(p.policy)));
        }
        if ((uint64_t) n_ubatch*p.n_head > 65535) { // rows that a GPU's soft max has room for
            return no(format("micro-batches of %u tokens with %d heads", n_ubatch, p.n_head), format("lower n_ubatch to %d, or ", 65535/p.n_head));
        }
    }
    for (const auto & d : model.devices) { // those without layers, too: a prompt's products of the CPU's layers go to them
        auto * reg = ggml_backend_dev_backend_reg(d.dev);
        const std::string backend = reg ? ggml_backend_reg_name(reg) : "";
        if (backend == "MTL") {
            return no("Metal, on which it has not been run and whose f32 products are of half precision");
        }
        for (const char * name : { "GGML_VK_DISABLE_F16", "GGML_VK_DISABLE_COOPMAT", "GGML_VK_DISABLE_COOPMAT2" }) {
            if (backend == "Vulkan" && !getenv(name)) { // a state's sums are beyond what f16 holds, the type of the factors otherwise
                return no("Vulkan with f32 products of half precision",
                        "set GGML_VK_DISABLE_F16=1, GGML_VK_DISABLE_COOPMAT=1 and GGML_VK_DISABLE_COOPMAT2=1 in the environment, or ");
            }
        }
    }
    return "";
}

// B of the KV head that has most.
static int64_t most_slots(const lesskv_layer & p) {
    if (p.n_swa > 0) {
        return p.n_swa - 1;
    }
    int32_t most = 0;
    for (int32_t j = 0; j < p.n_head_kv; ++j) {
        most = std::max(most, budget_of(p, j).slots);
    }
    return most;
}

// A layer's tensors, without memory.
static lesskv_device_layer new_tensors(ggml_context * ctx, const lesskv_memory_layer & l, int32_t n_ubatch, int32_t n_seats) {
    const auto & p = l.params;
    const int64_t B = most_slots(p), U = (n_ubatch + n_seats - 1)/n_seats*n_seats; // the graph that is reserved has so many
    const auto f32 = [&](int64_t a, int64_t b, int64_t c, int64_t d) { return ggml_new_tensor_4d(ctx, GGML_TYPE_F32, a, b, c, d); };
    lesskv_device_layer t;
    const auto * w = p.n_swa > 0 ? nullptr : p.kernels;
    if (w && w->phi[0].data) {
        t.phi[0] = f32(p.dk, w->hidden, p.n_head, 1);
        t.phi[1] = f32(w->hidden, w->rank, p.n_head, 1);
        t.phi_scale = w->phi_scale ? f32(1, 1, p.n_head, 1) : nullptr;
    }
    if (l.shares) {
        return t;
    }
    t.slots = B;
    t.k   = ggml_new_tensor_4d(ctx, (ggml_type) p.type_k, p.dk, B + n_ubatch, p.n_head_kv, n_seats);
    t.v   = ggml_new_tensor_4d(ctx, (ggml_type) p.type_v, p.dv, B + n_ubatch, p.n_head_kv, n_seats);
    if (p.n_swa > 0 || p.budgets) {
        t.spare = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, U);
    }
    if (p.n_swa > 0) {
        return t;
    }
    t.pos = f32(B, p.n_head_kv, n_seats, 1);
    if (lesskv_worth_size(&p, 1) > 0) {
        t.score = f32(B, p.n_head_kv, n_seats, 1);
    }
    if (p.budgets) {
        t.unused = f32(B, p.n_head_kv, n_seats, 1);
        t.turn   = f32(B + U, 1, 1, 1);
        t.recent = f32(1, p.n_head_kv, 1, 1);
    }
    if (w) {
        t.state  = f32(w->rank, p.dv + 1, p.n_head_kv, n_seats);
        t.psi[0] = f32(p.dk, w->hidden, p.n_head_kv, 1);
        t.psi[1] = f32(w->hidden, w->rank, p.n_head_kv, 1);
        t.psi[2] = f32(w->rank, w->rank, p.n_head_kv, 1);
    }
    return t;
}

static ggml_context * new_context(size_t n_layers) {
    return ggml_init({ 16*n_layers*ggml_tensor_overhead(), nullptr, true });
}

static uint64_t bytes_in(ggml_context * ctx) {
    uint64_t bytes = 0;
    for (auto * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        bytes += ggml_nbytes(t);
    }
    return bytes;
}

uint64_t lesskv_device::bytes(const std::vector<lesskv_memory_layer> & layers, int32_t n_ubatch, int32_t n_seats) {
    const ggml_context_ptr ctx(new_context(layers.size()));
    for (const auto & l : layers) {
        new_tensors(ctx.get(), l, n_ubatch, n_seats);
    }
    return bytes_in(ctx.get());
}

lesskv_device::lesskv_device(const llama_model & model, const std::vector<lesskv_memory_layer> & layers, int32_t n_ubatch, int32_t n_seats, uint64_t main_memory)
    : n_seats(n_seats), model(model), all(layers.size()) {
    std::map<ggml_backend_dev_t, ggml_context *> ctxs;
    for (const auto & l : layers) {
        auto *& ctx = ctxs[model.dev_layer(l.il)];
        if (!ctx) {
            ctx = new_context(layers.size());
            contexts.emplace_back(ctx);
        }
        all[l.n] = new_tensors(ctx, l, n_ubatch, n_seats);
    }
    for (const auto & [device, ctx] : ctxs) { // all of them before any memory is taken: of more than there is the system may end the process
        size_t free, total;
        ggml_backend_dev_memory(device, &free, &total);
        const uint64_t limit = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ? std::min<uint64_t>(total, main_memory) : free;
        if (total > 0 && bytes_in(ctx) > limit) { // or the device does not say
            throw no_memory(bytes_in(ctx), limit, ggml_backend_dev_name(device));
        }
    }
    for (const auto & [device, ctx] : ctxs) {
        if (!ggml_get_first_tensor(ctx)) {
            continue; // it has layers without a cache of their own alone
        }
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(device)));
        if (!buffer) {
            throw no_memory(bytes_in(ctx), 0, ggml_backend_dev_name(device));
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
        buffers.push_back(std::move(buffer));
    }
    for (const auto & l : layers) {
        load_slots(l.n, l.params);
        load_kernels(l.n, l.params);
    }
}

// What the tensors say of slots that stays the same.
void lesskv_device::load_slots(size_t n, const lesskv_layer & params) {
    const auto & t = all[n];
    if (t.spare) {
        std::vector<int32_t> rows(t.spare->ne[0]);
        std::iota(rows.begin(), rows.end(), (int32_t) t.slots);
        ggml_backend_tensor_set(t.spare, rows.data(), 0, ggml_nbytes(t.spare));
    }
    if (!t.unused) {
        return;
    }
    std::vector<float> turn(t.turn->ne[0]), recent;
    for (size_t i = 0; i < turn.size(); ++i) {
        turn[i] = (float) (t.slots + 1) - (float) i;
    }
    for (int32_t j = 0; j < params.n_head_kv; ++j) {
        const auto b = budget_of(params, j);
        recent.push_back((float) (b.slots - b.heavy)/2);
    }
    ggml_backend_tensor_set(t.turn,   turn.data(),   0, ggml_nbytes(t.turn));
    ggml_backend_tensor_set(t.recent, recent.data(), 0, ggml_nbytes(t.recent));
}

static void set_floats(ggml_tensor * t, const lesskv_mat & mat) {
    if (!t) {
        return;
    }
    std::vector<float> values(ggml_nelements(t));
    lesskv_to_f32(mat.type, values.data(), mat.data, (int64_t) values.size());
    ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
}

void lesskv_device::load_kernels(size_t n, const lesskv_layer & params) {
    const auto & t = all[n];
    if (!params.kernels) {
        return;
    }
    const auto & w = *params.kernels;
    for (int i = 0; i < 2; ++i) {
        set_floats(t.phi[i], w.phi[i]);
    }
    for (int i = 0; i < 3; ++i) {
        set_floats(t.psi[i], w.psi[i]);
    }
    if (t.phi_scale) {
        ggml_backend_tensor_set(t.phi_scale, w.phi_scale, 0, ggml_nbytes(t.phi_scale));
    }
}

lesskv_device_layer lesskv_device::layer(ggml_context * ctx, size_t i, int32_t seat) const {
    lesskv_device_layer t = all[i];
    for (auto ** x : { &t.k, &t.v, &t.state }) {
        *x = *x ? ggml_view_3d(ctx, *x, (*x)->ne[0], (*x)->ne[1], (*x)->ne[2], (*x)->nb[1], (*x)->nb[2], seat*(*x)->nb[3]) : nullptr;
    }
    for (auto ** x : { &t.pos, &t.score, &t.unused }) {
        *x = *x ? ggml_view_2d(ctx, *x, (*x)->ne[0], (*x)->ne[1], (*x)->nb[1], seat*(*x)->nb[2]) : nullptr;
    }
    return t;
}

// All of a tensor that belongs to one seat, a KV head after the other; n: of that many seats.
namespace {
struct part {
    part(ggml_tensor * t, int32_t seat, int32_t n) : t(t), at(t ? seat*(ggml_nbytes(t)/n) : 0), data(t ? ggml_nbytes(t)/n : 0) {}

    void read()        { if (t) { ggml_backend_tensor_get(t, data.data(), at, data.size()); } }
    void write() const { if (t) { ggml_backend_tensor_set(t, data.data(), at, data.size()); } }

    template <class T = char>
    T * head(int32_t j, int32_t n_head) { return reinterpret_cast<T *>(data.data() + j*(data.size()/n_head)); }

    ggml_tensor * t;
    size_t at;
    std::vector<char> data;
};
}

// A head's first slot that is not closed to it.
static int64_t first_slot(const lesskv_device_layer & t, const lesskv_layer & p, int32_t j) {
    return t.unused ? t.slots - budget_of(p, j).slots : 0;
}

void lesskv_device::upload(int32_t seat, size_t i, lesskv_cache * cache) const {
    const auto & t = all[i];
    const auto & p = *lesskv_cache_layer(cache);
    part k(t.k, seat, n_seats), v(t.v, seat, n_seats), pos(t.pos, seat, n_seats), score(t.score, seat, n_seats), unused(t.unused, seat, n_seats), state(t.state, seat, n_seats);
    const size_t size_k = lesskv_row_size(p.type_k, p.dk), size_v = lesskv_row_size(p.type_v, p.dv);
    for (int32_t j = 0; j < p.n_head_kv; ++j) {
        const auto a = lesskv_cache_arrays(cache, j);
        for (int32_t n = 0; p.n_swa > 0 && n < a.n; ++n) {
            const int64_t row = a.pos[n] % t.slots;
            std::copy_n((const char *) a.k + n*size_k, size_k, k.head(j, p.n_head_kv) + row*size_k);
            std::copy_n((const char *) a.v + n*size_v, size_v, v.head(j, p.n_head_kv) + row*size_v);
        }
        if (p.n_swa > 0) {
            continue;
        }
        const int64_t first = first_slot(t, p, j);
        std::copy_n((const char *) a.k, a.n*size_k, k.head(j, p.n_head_kv) + first*size_k); // zeros beside it: psi of an empty slot is 0
        std::copy_n((const char *) a.v, a.n*size_v, v.head(j, p.n_head_kv) + first*size_v);
        std::copy_n(a.pos, a.n, pos.head<float>(j, p.n_head_kv) + first);
        if (t.unused) {
            auto * to = unused.head<float>(j, p.n_head_kv);
            std::fill_n(to, first, CLOSED);
            std::fill(to + first + a.n, to + t.slots, EMPTY);
        }
        for (int32_t n = 0; t.score && n < a.n; ++n) {
            score.head<float>(j, p.n_head_kv)[first + n] = std::isfinite(a.score[n]) ? std::clamp(a.score[n], -max_score, max_score) : 0; // or the order is lost
        }
        for (int32_t r = 0; t.state && r < p.kernels->rank; ++r) {
            auto * to = state.head<float>(j, p.n_head_kv) + r;
            for (int32_t c = 0; c < p.dv; ++c) {
                to[(size_t) c*p.kernels->rank] = a.H[(size_t) r*p.dv + c];
            }
            to[(size_t) p.dv*p.kernels->rank] = a.z[r];
        }
    }
    for (const auto * x : { &k, &v, &pos, &score, &unused, &state }) {
        x->write();
    }
}

// The newest position below last that is none of n: all that are older and missing were evicted before.
static int32_t highest_missing(const int32_t * pos, int32_t n, int32_t last) {
    std::vector<bool> held(n);
    for (int32_t i = 0; i < n; ++i) {
        if (pos[i] <= last && pos[i] > last - n) {
            held[last - pos[i]] = true;
        }
    }
    return last - (int32_t) (std::find(held.begin(), held.end(), false) - held.begin());
}

void lesskv_device::download(int32_t seat, size_t i, lesskv_cache * cache) const {
    const auto & t = all[i];
    const auto & p = *lesskv_cache_layer(cache);
    part k(t.k, seat, n_seats), v(t.v, seat, n_seats), pos(t.pos, seat, n_seats), score(t.score, seat, n_seats), state(t.state, seat, n_seats);
    for (auto * x : { &k, &v, &pos, &score, &state }) {
        x->read();
    }
    const size_t size_k = lesskv_row_size(p.type_k, p.dk), size_v = lesskv_row_size(p.type_v, p.dv);
    for (int32_t j = 0; j < p.n_head_kv; ++j) {
        const auto a = lesskv_cache_arrays(cache, j);
        for (int32_t n = 0; p.n_swa > 0 && n < a.n; ++n) { // the newest
            a.pos[n]   = a.last - (a.n - 1) + n;
            a.score[n] = 0;
            const int64_t row = a.pos[n] % t.slots;
            std::copy_n(k.head(j, p.n_head_kv) + row*size_k, size_k, (char *) a.k + n*size_k);
            std::copy_n(v.head(j, p.n_head_kv) + row*size_v, size_v, (char *) a.v + n*size_v);
        }
        if (p.n_swa > 0) {
            *a.evicted = a.folded > 0 ? a.last - a.n : -1;
            continue;
        }
        const int64_t first = first_slot(t, p, j);
        std::copy_n(k.head(j, p.n_head_kv) + first*size_k, a.n*size_k, (char *) a.k);
        std::copy_n(v.head(j, p.n_head_kv) + first*size_v, a.n*size_v, (char *) a.v);
        std::copy_n(pos.head<float>(j, p.n_head_kv) + first, a.n, a.pos);
        if (t.score) {
            std::copy_n(score.head<float>(j, p.n_head_kv) + first, a.n, a.score);
        } else {
            std::fill_n(a.score, a.n, 0.0f);
        }
        if (a.folded > 0) {
            *a.evicted = highest_missing(a.pos, a.n, a.last);
        }
        for (int32_t r = 0; t.state && r < p.kernels->rank; ++r) {
            const auto * from = state.head<float>(j, p.n_head_kv) + r;
            for (int32_t c = 0; c < p.dv; ++c) {
                a.H[(size_t) r*p.dv + c] = from[(size_t) c*p.kernels->rank];
            }
            a.z[r] = from[(size_t) p.dv*p.kernels->rank];
        }
    }
}

bool lesskv_device::finite(int32_t seat, size_t i) const {
    part state(all[i].state, seat, n_seats);
    state.read();
    const auto * x = state.head<float>(0, 1);
    return std::all_of(x, x + state.data.size()/sizeof(*x), [](float y) { return std::isfinite(y); });
}

bool lesskv_device::computes(const ggml_tensor * node, int32_t il) const {
    return ggml_backend_dev_supports_op(model.dev_layer(il), node);
}

std::map<ggml_backend_buffer_type_t, size_t> lesskv_device::memory() const {
    std::map<ggml_backend_buffer_type_t, size_t> sizes;
    for (const auto & ctx : contexts) {
        if (const auto * t = ggml_get_first_tensor(ctx.get())) {
            sizes[ggml_backend_buffer_get_type(t->buffer)] += bytes_in(ctx.get());
        }
    }
    return sizes;
}

static uint64_t bytes_of(std::initializer_list<ggml_tensor *> tensors) {
    uint64_t bytes = 0;
    for (const auto * t : tensors) {
        bytes += t ? ggml_nbytes(t) : 0;
    }
    return bytes;
}

uint64_t lesskv_device::bytes_slots() const {
    uint64_t bytes = 0;
    for (const auto & t : all) {
        bytes += bytes_of({ t.k, t.v, t.pos, t.score, t.unused, t.turn, t.recent, t.spare });
    }
    return bytes;
}

uint64_t lesskv_device::bytes_state() const {
    uint64_t bytes = 0;
    for (const auto & t : all) {
        bytes += bytes_of({ t.state });
    }
    return bytes;
}

uint64_t lesskv_device::bytes_kernels() const {
    uint64_t bytes = 0;
    for (const auto & t : all) {
        bytes += bytes_of({ t.phi[0], t.phi[1], t.psi[0], t.psi[1], t.psi[2], t.phi_scale });
    }
    return bytes;
}
